//! `impound quarantine`, `release`, `status`, `list` and `watch`.

mod summary;

use std::io::{IsTerminal as _, Write as _};

use impound_proto::controller::v1 as wire;

use crate::arguments::{Isolation, Kind, List, Quarantine, Reference, Release, Status, Watch};
use crate::client::{Client, answer, request};
use crate::collection;
use crate::failure::{Exit, Failure};
use crate::follow::{Followed, Subject, Until, follow};
use crate::human;
use crate::output::{Output, Table};
use crate::view;

/// `impound quarantine`
pub(crate) async fn create(
    client: &Client,
    output: &mut Output,
    wanted: Quarantine,
) -> Result<Exit, Failure> {
    let asked = wire::CreateQuarantineRequest {
        namespace: wanted.pod.namespace,
        pod: wanted.pod.pod,
        pod_uid: wanted.pod.uid,
        case_id: wanted.cause.case.to_string(),
        reason: wanted.cause.reason,
        dry_run: wanted.dry_run,
        keep_neighbours: wanted.keep_neighbours,
        evict_unmanaged: wanted.evict_unmanaged,
        delete_empty_dir_data: wanted.delete_emptydir_data,
        exclude_from_policies: wanted.exclude_from_policies,
        skip_collection: wanted.no_collect,
        pause: wanted.pause,
        isolation: Some(isolation(wanted.isolation)),
        freeze: wanted.freeze,
        encrypt_to: collection::recipients(&wanted.encrypt_to)?,
    };
    let pod = format!("{}/{}", asked.namespace, asked.pod);
    let response = answer(client.grpc().create_quarantine(request(asked)).await)?;
    let plan = response.plan.unwrap_or_default();
    if wanted.dry_run {
        let what = format!("Quarantine of pod {pod}");
        output.document(view::Plan::from(&plan), |_| summary::plan(&what, &plan))?;
        return Ok(Exit::Ok);
    }
    let quarantine = response.quarantine.ok_or_else(|| {
        Failure::Failed(
            "expected the recorded quarantine, and the controller sent none; see `impound list`"
                .to_owned(),
        )
    })?;
    if !wanted.wait {
        let view = view::Quarantine::from(&quarantine);
        let program = output.program().to_owned();
        output.document(&view, |_| {
            summary::recorded(&quarantine, &plan, client.own(), &program)
        })?;
        return Ok(Exit::Ok);
    }
    let subject = Subject::Quarantine {
        namespace: quarantine.namespace,
        name: quarantine.name,
    };
    to_the_end(client, output, subject, Until::Over, None).await
}

fn isolation(wanted: Isolation) -> wire::Isolation {
    let chosen =
        wanted.isolate || wanted.drop_probes || wanted.drop_loopback || !wanted.allow.is_empty();
    wire::Isolation {
        enabled: match (wanted.no_isolation, chosen) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            // As the controller was started.
            (false, false) => None,
        },
        allow: wanted.allow,
        drop_probes: wanted.drop_probes,
        drop_loopback: wanted.drop_loopback,
    }
}

/// `impound watch`
pub(crate) async fn watch(
    client: &Client,
    output: &mut Output,
    wanted: Watch,
) -> Result<Exit, Failure> {
    let namespace = wanted.name.namespace;
    let subject = match wanted.name.name {
        Reference::Quarantine(name) => Subject::Quarantine { namespace, name },
        Reference::Collection(name) => Subject::Collection { namespace, name },
    };
    let until = match wanted.follow {
        true => Until::Forever,
        false => Until::Over,
    };
    to_the_end(client, output, subject, until, None).await
}

/// Follows to the end, telling what is not `known` yet, and sums up.
pub(crate) async fn to_the_end(
    client: &Client,
    output: &mut Output,
    subject: Subject,
    until: Until,
    known: Option<&wire::Quarantine>,
) -> Result<Exit, Failure> {
    let followed = followed(client, output, subject, until, known).await?;
    let view = view::Followed {
        quarantine: followed.quarantine.as_ref().map(view::Quarantine::from),
        collection: followed.collection.as_ref().map(view::Collection::from),
    };
    let program = output.program().to_owned();
    output.document(&view, |_| summary::end(&followed, &program))?;
    Ok(exit(&followed))
}

/// Follows to the end, telling what is not `known` yet; who is interrupted is told how to go on.
pub(crate) async fn followed(
    client: &Client,
    output: &Output,
    subject: Subject,
    until: Until,
    known: Option<&wire::Quarantine>,
) -> Result<Followed, Failure> {
    let mut screen = output.screen();
    let program = output.program();
    let again = match &subject {
        Subject::Quarantine { namespace, name } => format!("{program} watch {name} -n {namespace}"),
        Subject::Collection { namespace, name } => {
            format!("{program} watch collection/{name} -n {namespace}")
        }
        Subject::Sweep { name } => format!("{program} sweep watch {name}"),
    };
    match follow(client, &mut screen, subject, until, known).await {
        Err(Failure::Interrupted(why)) => Err(Failure::Interrupted(format!(
            "{why}; go on watching with: {again}"
        ))),
        Err(Failure::Unreachable(why)) => Err(Failure::Unreachable(format!(
            "{why}\nThe work goes on in the cluster; go on watching with: {again}"
        ))),
        other => other,
    }
}

/// `impound release`
pub(crate) async fn release(
    client: &Client,
    output: &mut Output,
    wanted: Release,
) -> Result<Exit, Failure> {
    let Reference::Quarantine(name) = wanted.name.name else {
        return Err(Failure::Usage(
            "a collection can't be released; name a quarantine or its pod".to_owned(),
        ));
    };
    let asked = wire::ReleaseQuarantineRequest {
        namespace: wanted.name.namespace,
        name,
        reason: wanted.reason.unwrap_or_default(),
        force: wanted.force,
    };
    let plan = client.grpc().plan_release(request(asked.clone())).await;
    let plan = answer(plan)?;
    let what = format!("Release of {}/{}", asked.namespace, asked.name);
    if wanted.dry_run {
        output.document(view::Plan::from(&plan), |_| summary::plan(&what, &plan))?;
        return Ok(Exit::Ok);
    }
    if !wanted.yes {
        confirm(&what, &plan)?;
    }
    let quarantine = answer(client.grpc().release_quarantine(request(asked)).await)?;
    if wanted.wait {
        let subject = Subject::Quarantine {
            namespace: quarantine.namespace.clone(),
            name: quarantine.name.clone(),
        };
        return to_the_end(client, output, subject, Until::Released, Some(&quarantine)).await;
    }
    let program = output.program().to_owned();
    output.document(view::Quarantine::from(&quarantine), |_| {
        summary::releasing(&quarantine, &program)
    })?;
    Ok(Exit::Ok)
}

/// Says what a release leads to and asks. Without a terminal nobody can answer, so nothing is done.
fn confirm(what: &str, plan: &wire::Plan) -> Result<(), Failure> {
    let mut err = std::io::stderr();
    err.write_all(summary::question(what, plan).as_bytes())?;
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "nothing was released: nobody can be asked here; say --yes, or see the calls with --dry-run"
                .to_owned(),
        ));
    }
    write!(err, "\nGo on? [y/N] ")?;
    err.flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    match line.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Interrupted("nothing was released".to_owned())),
    }
}

/// `impound status`
pub(crate) async fn status(
    client: &Client,
    output: &mut Output,
    wanted: Status,
) -> Result<Exit, Failure> {
    let namespace = wanted.name.namespace;
    match wanted.name.name {
        Reference::Collection(name) => collection::status(client, output, namespace, name).await,
        Reference::Quarantine(name) => {
            let asked = wire::GetQuarantineRequest { namespace, name };
            let quarantine = answer(client.grpc().get_quarantine(request(asked)).await)?;
            let program = output.program().to_owned();
            output.document(view::Quarantine::from(&quarantine), |_| {
                summary::status(&quarantine, &program)
            })?;
            Ok(Exit::Ok)
        }
    }
}

/// `impound list`
pub(crate) async fn list(
    client: &Client,
    output: &mut Output,
    wanted: List,
) -> Result<Exit, Failure> {
    let namespace = wanted.namespace.unwrap_or_default();
    let case_id = wanted.case.map(|case| case.to_string()).unwrap_or_default();
    if wanted.kind == Kind::Collections {
        return collection::list(client, output, namespace, case_id).await;
    }
    let asked = wire::ListQuarantinesRequest { namespace, case_id };
    let quarantines = answer(client.grpc().list_quarantines(request(asked)).await)?.quarantines;
    let views: Vec<_> = quarantines.iter().map(view::Quarantine::from).collect();
    output.document(&views, |wide| {
        if quarantines.is_empty() {
            return "no quarantines".to_owned();
        }
        let mut head = vec![
            "NAMESPACE",
            "NAME",
            "CASE",
            "POD",
            "NODE",
            "PHASE",
            "CREATED",
        ];
        if wide {
            head.extend(["COLLECTION", "REQUESTED BY", "REASON", "MESSAGE"]);
        }
        let mut table = Table::new(&head);
        for q in &quarantines {
            let created = human::date(q.created.as_ref());
            let mut row: Vec<String> = [
                &q.namespace,
                &q.name,
                &q.case_id,
                &q.pod,
                &q.node,
                &q.phase,
                &created,
            ]
            .map(Clone::clone)
            .into();
            if wide {
                row.extend(
                    [&q.collection, &q.requested_by, &q.reason, &q.message].map(Clone::clone),
                );
            }
            table.row(row);
        }
        table.to_string()
    })?;
    Ok(Exit::Ok)
}

/// What the end of it all says to a script.
fn exit(followed: &Followed) -> Exit {
    let phase = |object: Option<&str>| object.unwrap_or_default().to_owned();
    let quarantine = followed.quarantine.as_ref();
    let collection = followed.collection.as_ref();
    match phase(quarantine.map(|quarantine| quarantine.phase.as_str())).as_str() {
        "Refused" => return Exit::Refused,
        // Not contained, whatever else is done.
        "Failed" => return Exit::Failed,
        // A forced release leaves what it can't undo, and is over all the same.
        "Released" if quarantine.is_some_and(summary::is_left_undone) => return Exit::Partial,
        "Released" => return Exit::Ok,
        _ => {}
    }
    match phase(collection.map(|collection| collection.phase.as_str())).as_str() {
        "Partial" => Exit::Partial,
        "" | "Sealed" if quarantine.is_some_and(|quarantine| quarantine.phase == "Incomplete") => {
            Exit::Partial
        }
        "" | "Sealed" => Exit::Ok,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_sees_what_the_quarantine_and_its_evidence_came_to() {
        let rows = [
            ("Complete", Some("Sealed"), Exit::Ok),
            ("Complete", None, Exit::Ok),
            ("Complete", Some("Partial"), Exit::Partial),
            // Something asked for is not done, e.g. a neighbour stayed.
            ("Incomplete", Some("Sealed"), Exit::Partial),
            ("Incomplete", None, Exit::Partial),
            ("Incomplete", Some("Failed"), Exit::Failed),
            // Not contained.
            ("Failed", Some("Sealed"), Exit::Failed),
            ("Refused", None, Exit::Refused),
            ("Released", Some("Partial"), Exit::Ok),
        ];
        for (phase, collection, expected) in rows {
            let followed = Followed {
                quarantine: Some(wire::Quarantine {
                    phase: phase.into(),
                    // Of a pod isolated at its node: what its policies allow matters no more.
                    facts: vec![wire::Fact {
                        name: "NoPolicyAllows".into(),
                        state: "False".into(),
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
                collection: collection.map(|phase| wire::Collection {
                    phase: phase.into(),
                    ..Default::default()
                }),
                sweep: None,
            };
            assert_eq!(exit(&followed), expected, "{phase} {collection:?}");
        }
    }
}
