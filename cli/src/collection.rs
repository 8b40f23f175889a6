//! `impound collect`, and collections in `status` and `list`.

pub(crate) mod summary;

use impound_evidence::age::Recipient;
use impound_proto::controller::v1 as wire;

use crate::arguments::Collect;
use crate::client::{Client, answer, request};
use crate::failure::{Exit, Failure};
use crate::follow::{Subject, Until};
use crate::human;
use crate::output::{Output, Table};
use crate::quarantine::to_the_end;
use crate::view;

/// The age recipients that were given, checked here: what is none may be a secret key, which must not leave this machine.
pub(crate) fn recipients(given: &[String]) -> Result<Vec<String>, Failure> {
    let parsed = given.iter().map(|text| text.trim().parse::<Recipient>());
    parsed
        .map(|parsed| parsed.map(|recipient| recipient.to_string()))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::Usage(format!("--encrypt-to: {error}")))
}

/// `impound collect`
pub(crate) async fn create(
    client: &Client,
    output: &mut Output,
    wanted: Collect,
) -> Result<Exit, Failure> {
    let asked = wire::CreateCollectionRequest {
        namespace: wanted.pod.namespace,
        pod: wanted.pod.pod,
        pod_uid: wanted.pod.uid,
        case_id: wanted.cause.case.to_string(),
        reason: wanted.cause.reason,
        name: wanted.name.map(|name| name.to_string()).unwrap_or_default(),
        pause: wanted.pause,
        freeze: wanted.freeze,
        encrypt_to: recipients(&wanted.encrypt_to)?,
    };
    let collection = answer(client.grpc().create_collection(request(asked)).await)?;
    if wanted.wait {
        let subject = Subject::Collection {
            namespace: collection.namespace,
            name: collection.name,
        };
        return to_the_end(client, output, subject, Until::Over, None).await;
    }
    let program = output.program().to_owned();
    output.document(view::Collection::from(&collection), |_| {
        let (namespace, name) = (human::clean(&collection.namespace), human::clean(&collection.name));
        format!(
            "Collection {namespace}/{name} is recorded (case {}, requested by {}).\n\nFollow it:\n  {program} watch collection/{name} -n {namespace}\n",
            human::clean(&collection.case_id),
            client.own()
        )
    })?;
    Ok(Exit::Ok)
}

pub(crate) async fn status(
    client: &Client,
    output: &mut Output,
    namespace: String,
    name: String,
) -> Result<Exit, Failure> {
    let asked = wire::GetCollectionRequest { namespace, name };
    let collection = answer(client.grpc().get_collection(request(asked)).await)?;
    let program = output.program().to_owned();
    output.document(view::Collection::from(&collection), |wide| {
        summary::status(&collection, wide, &program)
    })?;
    Ok(Exit::Ok)
}

pub(crate) async fn list(
    client: &Client,
    output: &mut Output,
    namespace: String,
    case_id: String,
) -> Result<Exit, Failure> {
    let asked = wire::ListCollectionsRequest { namespace, case_id };
    let collections = answer(client.grpc().list_collections(request(asked)).await)?.collections;
    let views: Vec<_> = collections.iter().map(view::Collection::from).collect();
    output.document(&views, |wide| {
        if collections.is_empty() {
            return "no collections".to_owned();
        }
        let mut head = vec![
            "NAMESPACE",
            "NAME",
            "CASE",
            "POD",
            "NODE",
            "PHASE",
            "SIZE",
            "CREATED",
        ];
        if wide {
            head.extend(["LOCATION", "REQUESTED BY", "REASON", "MESSAGE"]);
        }
        let mut table = Table::new(&head);
        for c in &collections {
            let mut row: Vec<String> =
                [&c.namespace, &c.name, &c.case_id, &c.pod, &c.node, &c.phase]
                    .map(Clone::clone)
                    .into();
            row.push(human::bytes(summary::size(c)));
            row.push(human::date(c.created.as_ref()));
            if wide {
                row.extend([&c.location, &c.requested_by, &c.reason, &c.message].map(Clone::clone));
            }
            table.row(row);
        }
        table.to_string()
    })?;
    Ok(Exit::Ok)
}
