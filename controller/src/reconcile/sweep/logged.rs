//! What the custody logs say of a sweep: who asked for it, in the log of each of its cases, before anything is
//! begun; and at its end the targets that have no collection, which no other entry names, and those that failed.

use std::collections::BTreeMap;

use impound_evidence::{CaseId, Entry, Event, NameError};
use impound_proto::PeerId;
use kube::ResourceExt;
use uuid::Uuid;

use super::memory::{Part, Target, Work};
use crate::contain::settings::FIELD_MANAGER;
use crate::describe::describe;
use crate::reconcile::Context;
use crate::reconcile::custody::{self, AT_LEISURE, AT_ONCE, Asked, within};
use crate::resources::{Sweep, TargetState};
use crate::sweep::matching;

/// Writes who asked for the sweep, once. Returns the entry by which somebody was authorised to ask for it, none if
/// nobody is known to be.
pub(super) async fn requested(
    sweep: &Sweep,
    work: &mut Work,
    context: &Context,
) -> Result<Option<Entry>, String> {
    if let Some(known) = &work.logged {
        return Ok(known.clone());
    }
    let id = custody::request_id(sweep);
    let name = sweep.name_any();
    let wanted = matching::words(&sweep.spec.select);
    let request = id.map(|id| custody::request_of_sweep(&name, &wanted, id));
    let who = sweep.spec.requested_by.as_str();
    let reason = sweep.spec.reason.as_str();
    let total: usize = work.parts.iter().map(|part| part.targets.len()).sum();
    let writing = async {
        let case = parse(&sweep.spec.case)?;
        let entries = context.custody.of_case(&case).await;
        let entries = entries.map_err(|error| describe(&error))?;
        let authorised = request
            .as_ref()
            .and_then(|request| custody::authorisation(&entries, who, request, reason));
        let authorised = authorised.cloned();
        for (case, (first, last)) in cases(&work.parts) {
            if let Some(entry) = &authorised {
                custody::once(context, case, vec![entry.clone()]).await?;
            }
            let subject = format!(
                "sweep {name} (uid {}) of {wanted}: pods {first} to {last} of {total}",
                work.uid
            );
            let asked = Asked {
                event: Event::Requested,
                who,
                subject: &subject,
                authorised: request.as_deref(),
                request: id,
                reason,
            };
            custody::asked(context, case, asked).await?;
        }
        // Another sweep that repeats the request of this one is only claimed to be asked for by its requester.
        let entries = context.custody.of_case(&case).await;
        let entries = entries.map_err(|error| describe(&error))?;
        let own = format!("sweep {name} (uid {})", work.uid);
        let mut own = entries
            .iter()
            .filter(|entry| entry.event == Event::Requested && entry.what.starts_with(&own));
        Ok::<_, String>(authorised.filter(|_| own.any(|entry| !entry.claimed)))
    };
    let mut authorised = None;
    within(AT_LEISURE, async {
        authorised = writing.await?;
        Ok(())
    })
    .await?;
    work.logged = Some(authorised.clone());
    Ok(authorised)
}

/// Writes that a sweep's state has changed. By whom is known if it was over gRPC; of others the API server tells no
/// more than the program, in `managedFields`, which is what anybody may write there.
pub(super) async fn changed(sweep: &Sweep, context: &Context) -> Result<(), String> {
    let uid = sweep.uid().unwrap_or_default();
    let deleted = sweep.metadata.deletion_timestamp.as_ref();
    let wish = deleted.map_or(sweep.spec.state.wish(), |_| "delete");
    let asked = custody::wish_of_sweep(wish, &sweep.name_any(), &uid);
    let what = format!(
        "{asked}, generation {}",
        sweep.metadata.generation.unwrap_or_default()
    );
    let writing = async {
        let case = parse(&sweep.spec.case)?;
        let entries = context.custody.of_case(&case).await;
        let entries = entries.map_err(|error| describe(&error))?;
        let of = |event| entries.iter().filter(move |entry| entry.event == event);
        if of(Event::Requested).any(|entry| entry.what == what) {
            return Ok(());
        }
        let taken = of(Event::Requested)
            .filter(|entry| !entry.claimed && entry.what.starts_with(&asked))
            .count();
        let (manager, time) = writer_of_state(sweep);
        let ours = manager == FIELD_MANAGER && deleted.is_none();
        let mut authorised = of(Event::Authorised).filter(|entry| entry.what == asked);
        let entry = match authorised.nth(taken).filter(|_| ours) {
            Some(authorised) => {
                let mut entry = Entry::new(Event::Requested, authorised.who.clone(), what);
                entry.why = authorised.why.clone();
                entry.certificate_sha256 = authorised.certificate_sha256;
                entry
            }
            None => {
                let (who, time) = match deleted {
                    Some(time) => ("not known".to_owned(), time.0.to_string()),
                    None => (format!("not known, with {manager}"), time),
                };
                let why = format!(
                    "through the Kubernetes API at {time}: the API server's audit log says who"
                );
                let mut entry = Entry::new(Event::Requested, who, what).because(why);
                entry.claimed = true;
                entry
            }
        };
        custody::append(context, &case, vec![entry]).await
    };
    within(AT_ONCE, writing).await
}

/// The program that wrote `spec.state` last, and when.
fn writer_of_state(sweep: &Sweep) -> (String, String) {
    let all = sweep.metadata.managed_fields.iter().flatten();
    let mut writers = all.filter(|entry| {
        let fields = entry.fields_v1.as_ref();
        fields.is_some_and(|fields| fields.0.pointer("/f:spec/f:state").is_some())
    });
    let writer = writers.next_back();
    let manager = writer.and_then(|entry| entry.manager.clone());
    let time = writer.and_then(|entry| Some(entry.time.as_ref()?.0.to_string()));
    (
        manager.unwrap_or_else(|| "a program without a name".into()),
        time.unwrap_or_else(|| "a time that is not known".into()),
    )
}

/// Whether there is a log for what is said of it.
pub(super) fn is_of_a_case(sweep: &Sweep) -> bool {
    parse(&sweep.spec.case).is_ok()
}

/// Takes back what was authorised: nothing is collected.
pub(super) async fn refused(sweep: &Sweep, why: &str, context: &Context) -> Result<(), String> {
    // Without a request, or of what is no case, nobody was authorised.
    let Some(id) = custody::request_id(sweep).filter(|_| is_of_a_case(sweep)) else {
        return Ok(());
    };
    let wanted = matching::words(&sweep.spec.select);
    let subject = custody::request_of_sweep(&sweep.name_any(), &wanted, id);
    let case = &sweep.spec.case;
    let why = Some(why.to_owned());
    let writing = custody::done(context, case, Event::Failed, &subject, why);
    within(AT_LEISURE, writing).await
}

/// Names the targets that have ended without a collection or without evidence, and takes back what was authorised and
/// not made.
pub(super) async fn ended(sweep: &Sweep, work: &Work, context: &Context) -> Result<(), String> {
    let mut entries: BTreeMap<&str, Vec<Entry>> = BTreeMap::new();
    for part in &work.parts {
        for (target, status) in part.targets.iter().zip(&part.states) {
            let how = match status.state {
                TargetState::Absent | TargetState::Expired | TargetState::Cancelled => {
                    format!("not collected ({:?})", status.state)
                }
                // One that was begun has entries of its own as well, and something of it may be stored.
                TargetState::Failed => "failed".to_owned(),
                _ => String::new(),
            };
            if !how.is_empty() {
                let what = format!(
                    "sweep {}: pod {}/{} (uid {}) on node {}",
                    sweep.name_any(),
                    target.namespace,
                    target.pod,
                    target.uid,
                    target.node
                );
                let who = PeerId::Controller.to_string();
                let why = format!("{how}: {}", status.message);
                let entry = Entry::new(Event::Failed, who, what).because(why);
                entries.entry(&part.case).or_default().push(entry);
            }
        }
    }
    // Of these nothing came.
    let places: Vec<_> = work.requests.keys().copied().collect();
    for target in work.targets(&places) {
        let Some(id) = work.requests.get(&target.place) else {
            continue;
        };
        let Some(part) = work.parts.get(target.place.0) else {
            continue;
        };
        let who = PeerId::Controller.to_string();
        let entry = Entry::new(Event::Failed, who, request_of(&target, *id))
            .because("its collection was not made");
        entries.entry(&part.case).or_default().push(entry);
    }
    for (case, entries) in entries {
        within(AT_LEISURE, custody::once(context, case, entries)).await?;
    }
    Ok(())
}

/// What the entry that authorises a target's collection is about.
pub(super) fn request_of(target: &Target, id: Uuid) -> String {
    let pod = (target.pod.pod.as_str(), Some(target.pod.uid.as_str()));
    let namespace = &target.pod.namespace;
    custody::request("collection", namespace, &target.collection, pod, id)
}

/// The cases of a list, each with the numbers of its first and its last target.
fn cases(parts: &[Part]) -> BTreeMap<&str, (usize, usize)> {
    let mut cases = BTreeMap::new();
    for part in parts {
        let end = (part.first + part.targets.len()).saturating_sub(1);
        let (_, last) = cases.entry(part.case.as_str()).or_insert((part.first, end));
        *last = end.max(*last);
    }
    cases
}

fn parse(case: &str) -> Result<CaseId, String> {
    case.parse().map_err(|error: NameError| error.to_string())
}
