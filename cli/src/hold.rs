//! `impound evidence hold` and `unhold`: legal holds on a collection in the store.

use impound_evidence::{CaseId, CollectionName};
use impound_proto::controller::v1 as wire;
use serde::Serialize;

use crate::arguments::EvidenceHold;
use crate::client::{Client, LONG_CALL, answer, request_within};
use crate::failure::{Exit, Failure};
use crate::human;
use crate::output::Output;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    case: &'a CaseId,
    collection: &'a CollectionName,
    held: bool,
    objects: u64,
    failed: u64,
    problems: &'a [String],
}

/// `on`: puts the hold; otherwise lifts it.
pub(crate) async fn run(
    client: &Client,
    output: &mut Output,
    wanted: EvidenceHold,
    on: bool,
) -> Result<Exit, Failure> {
    let asked = wire::HoldEvidenceRequest {
        case_id: wanted.case.to_string(),
        collection: wanted.collection.to_string(),
        lift: !on,
        reason: wanted.reason,
    };
    let asked = request_within(asked, LONG_CALL);
    let done = answer(client.grpc().hold_evidence(asked).await)?;
    let view = View {
        case: &wanted.case,
        collection: &wanted.collection,
        held: on,
        objects: done.objects,
        failed: done.failed,
        problems: &done.problems,
    };
    output.document(&view, |_| {
        let word = if on { "put on" } else { "lifted from" };
        let name = format!("{}/{}", wanted.case, wanted.collection);
        let mut text = format!("legal hold {word} {} objects of {name}\n", done.objects);
        if done.failed > 0 {
            text.push_str(&format!("NOT {word} {} of them\n", done.failed));
        }
        for problem in &done.problems {
            text.push_str(&format!("  {}\n", human::clean(problem)));
        }
        text
    })?;
    Ok(match done.failed {
        0 => Exit::Ok,
        _ => Exit::Failed,
    })
}
