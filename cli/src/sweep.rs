//! `impound sweep`: started, followed, paused, resumed, cancelled; and its targets.

mod summary;

use std::time::{Duration, SystemTime};

use impound_proto::controller::v1 as wire;
use serde::Serialize;

use crate::arguments::{Connection, Select, Sweep, SweepChange, SweepStart, SweepTargets};
use crate::client::{Client, LIST_CALL, answer, request, request_within};
use crate::collection;
use crate::failure::{Exit, Failure};
use crate::follow::{Subject, Until};
use crate::human;
use crate::output::{Output, Table};
use crate::quarantine::followed;
use crate::view;

pub(crate) async fn run(
    connection: &Connection,
    output: &mut Output,
    wanted: Sweep,
) -> Result<Exit, Failure> {
    let client = Client::new(connection)?;
    match wanted {
        Sweep::Start(wanted) => start(&client, output, *wanted).await,
        Sweep::List(wanted) => {
            let case_id = wanted.case.map(|case| case.to_string()).unwrap_or_default();
            list(&client, output, case_id).await
        }
        Sweep::Status(wanted) => {
            let asked = wire::GetSweepRequest { name: wanted.name };
            let sweep = answer(client.grpc().get_sweep(request(asked)).await)?;
            let program = output.program().to_owned();
            output.document(view::Sweep::from(&sweep), |_| {
                summary::status(&sweep, &program)
            })?;
            Ok(Exit::Ok)
        }
        Sweep::Targets(wanted) => targets(&client, output, wanted).await,
        Sweep::Watch(wanted) => to_the_end(&client, output, wanted.name).await,
        Sweep::Pause(wanted) => change(&client, output, wanted, "Paused").await,
        Sweep::Resume(wanted) => change(&client, output, wanted, "Running").await,
        Sweep::Cancel(wanted) => change(&client, output, wanted, "Cancelled").await,
    }
}

async fn start(client: &Client, output: &mut Output, wanted: SweepStart) -> Result<Exit, Failure> {
    let expires = wanted
        .expires
        .map(|seconds| SystemTime::now() + Duration::from_secs(seconds));
    let asked = wire::CreateSweepRequest {
        name: wanted.name,
        select: Some(selection(wanted.select)),
        case_id: wanted.cause.case.to_string(),
        reason: wanted.cause.reason,
        pause: wanted.pause,
        freeze: wanted.freeze,
        encrypt_to: collection::recipients(&wanted.encrypt_to)?,
        at_once: wanted.at_once,
        per_node: wanted.per_node,
        expires: expires.map(prost_types::Timestamp::from),
        dry_run: wanted.dry_run,
    };
    // The whole cluster may be listed before it answers.
    let asked = request_within(asked, LIST_CALL);
    let response = answer(client.grpc().create_sweep(asked).await)?;
    if wanted.dry_run {
        let plan = response.plan.unwrap_or_default();
        output.document(view::SweepPlan::from(&plan), |_| summary::plan(&plan))?;
        return Ok(Exit::Ok);
    }
    let sweep = response.sweep.ok_or_else(|| {
        Failure::Failed(
            "expected the recorded sweep, and the controller sent none; see `impound sweep list`"
                .to_owned(),
        )
    })?;
    if wanted.wait {
        return to_the_end(client, output, sweep.name).await;
    }
    let program = output.program().to_owned();
    output.document(view::Sweep::from(&sweep), |_| {
        let name = human::clean(&sweep.name);
        format!(
            "Sweep {name} is recorded (case {}, requested by {}).\n\nFollow it:\n  {program} sweep watch {name}\n",
            human::clean(&sweep.case_id),
            client.own()
        )
    })?;
    Ok(Exit::Ok)
}

fn selection(select: Select) -> wire::PodSelection {
    wire::PodSelection {
        all_namespaces: select.all_namespaces,
        namespaces: select.namespaces,
        labels: select.labels,
        node_labels: select.node_labels,
        images: select.images,
        owner: select.owner,
    }
}

/// Follows to the end and sums up.
async fn to_the_end(client: &Client, output: &mut Output, name: String) -> Result<Exit, Failure> {
    let followed = followed(client, output, Subject::Sweep { name }, Until::Over, None).await?;
    let sweep = followed.sweep.unwrap_or_default();
    let program = output.program().to_owned();
    output.document(view::Sweep::from(&sweep), |_| {
        summary::end(&sweep, &program)
    })?;
    Ok(exit(&sweep))
}

/// What the end of a sweep says to a script.
fn exit(sweep: &wire::Sweep) -> Exit {
    let counts = sweep.counts.unwrap_or_default();
    match sweep.phase.as_str() {
        "Complete" => Exit::Ok,
        "Refused" => Exit::Refused,
        _ if counts.sealed + counts.partial > 0 => Exit::Partial,
        _ => Exit::Failed,
    }
}

async fn list(client: &Client, output: &mut Output, case_id: String) -> Result<Exit, Failure> {
    let asked = wire::ListSweepsRequest { case_id };
    let sweeps = answer(client.grpc().list_sweeps(request(asked)).await)?.sweeps;
    let views: Vec<_> = sweeps.iter().map(view::Sweep::from).collect();
    output.document(&views, |wide| {
        if sweeps.is_empty() {
            return "no sweeps".to_owned();
        }
        let mut head = vec![
            "NAME", "CASE", "PHASE", "PODS", "SEALED", "RUNNING", "WAITING", "OTHER", "CREATED",
        ];
        if wide {
            head.extend(["SIZE", "REQUESTED BY", "REASON", "MESSAGE"]);
        }
        let mut table = Table::new(&head);
        for sweep in &sweeps {
            let counts = sweep.counts.unwrap_or_default();
            let other = summary::exceptions(&counts);
            let mut row = [&sweep.name, &sweep.case_id, &sweep.phase]
                .map(Clone::clone)
                .to_vec();
            let numbers = [
                sweep.targets,
                counts.sealed,
                counts.running,
                counts.waiting,
                other,
            ];
            row.extend(numbers.map(|number| number.to_string()));
            row.push(human::date(sweep.created.as_ref()));
            if wide {
                row.push(human::bytes(sweep.bytes));
                row.extend([&sweep.requested_by, &sweep.reason, &sweep.message].map(Clone::clone));
            }
            table.row(row);
        }
        table.to_string()
    })?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct Targets {
    targets: Vec<view::SweepTarget>,
}

async fn targets(
    client: &Client,
    output: &mut Output,
    wanted: SweepTargets,
) -> Result<Exit, Failure> {
    let asked = wire::ListSweepTargetsRequest {
        name: wanted.sweep.name,
    };
    let asked = request_within(asked, LIST_CALL);
    let mut answers = answer(client.grpc().list_sweep_targets(asked).await)?;
    let mut all = Vec::new();
    while let Some(some) = answers
        .message()
        .await
        .map_err(|status| Failure::of_call(&status))?
    {
        all.extend(some.targets);
    }
    let of_interest = |state: &str| {
        let states = &wanted.states;
        states.is_empty() || states.iter().any(|one| one.eq_ignore_ascii_case(state))
    };
    all.retain(|target| of_interest(&target.state));
    let view = Targets {
        targets: all.iter().map(view::SweepTarget::from).collect(),
    };
    output.document(&view, |wide| {
        if all.is_empty() {
            return "no pods".to_owned();
        }
        let mut head = vec!["STATE", "NAMESPACE", "POD"];
        if wide {
            head.push("POD UID");
        }
        head.extend(["NODE", "CASE", "COLLECTION", "SIZE", "MESSAGE"]);
        let mut table = Table::new(&head);
        for one in &all {
            let size = match one.bytes {
                0 => String::new(),
                bytes => human::bytes(bytes),
            };
            let mut row = vec![&one.state, &one.namespace, &one.pod];
            if wide {
                row.push(&one.pod_uid);
            }
            row.extend([
                &one.node,
                &one.case_id,
                &one.collection,
                &size,
                &one.message,
            ]);
            table.row(row.into_iter().cloned());
        }
        table.to_string()
    })?;
    Ok(Exit::Ok)
}

async fn change(
    client: &Client,
    output: &mut Output,
    wanted: SweepChange,
    state: &str,
) -> Result<Exit, Failure> {
    let asked = wire::SetSweepRequest {
        name: wanted.sweep.name,
        state: state.to_owned(),
        reason: wanted.reason,
    };
    let sweep = answer(client.grpc().set_sweep(request(asked)).await)?;
    output.document(view::Sweep::from(&sweep), |_| summary::changed(&sweep))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_sees_whether_everything_some_or_nothing_is_sealed() {
        for (phase, sealed, expected) in [
            ("Complete", 3, Exit::Ok),
            ("Partial", 2, Exit::Partial),
            ("Partial", 0, Exit::Failed),
            ("Cancelled", 1, Exit::Partial),
            ("Cancelled", 0, Exit::Failed),
            ("Refused", 0, Exit::Refused),
        ] {
            let sweep = wire::Sweep {
                phase: phase.into(),
                counts: Some(wire::SweepCounts {
                    sealed,
                    ..Default::default()
                }),
                ..Default::default()
            };
            assert_eq!(exit(&sweep), expected, "{phase} {sealed}");
        }
    }
}
