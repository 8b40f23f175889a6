//! Begins the collections of targets whose turn it is.
//!
//! Each is looked at first (`look`): a pod that is gone is named as that, and a node whose agent does not answer takes
//! up no place of those that do. Then the custody logs say that the collections are authorised, if the sweep is; then
//! they are made.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use impound_evidence::{CaseId, Entry, Event};
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, PostParams};
use uuid::Uuid;

use super::expand::owned_by;
use super::logged;
use super::look::{Looked, Seen};
use super::memory::{Target, Work, is_ours};
use super::turns::turns;
use crate::describe::describe;
use crate::kubernetes::{ApiError, from_kube, pace};
use crate::reconcile::Context;
use crate::reconcile::custody::{self, AT_LEISURE, within};
use crate::resources::sweep::SWEEP_LABEL;
use crate::resources::{Collection, CollectionSpec, CollectionStatus, Sweep, TargetState};

/// Collections that are made at the same time.
const SIDE_BY_SIDE: usize = 16;

/// Looks at those that are chosen, and at those by which silent nodes are tried again; makes the collections of those
/// that are seen to be ready, within the bounds. Says whether others may have their turn at once.
pub(super) async fn begin(
    sweep: &Sweep,
    work: &mut Work,
    (chosen, probes): (Vec<Target>, Vec<Target>),
    context: &Context,
) -> bool {
    if chosen.is_empty() && probes.is_empty() && work.looks.is_empty() {
        return false;
    }
    // Before anything is made, the logs say who asked for it.
    let authorised = match logged::requested(sweep, work, context).await {
        Ok(authorised) => authorised,
        Err(problem) => {
            work.problem = Some(problem);
            return false;
        }
    };
    if !chosen.is_empty() && work.refused.is_empty() {
        // They have their turn for the first time, so this is nobody's retry.
        pace::came_on();
    }
    work.looks.begin(chosen, false, context);
    work.looks.begin(probes, true, context);
    let mut more = false;
    let mut ready = Vec::new();
    for Looked { target, seen, late } in work.looks.ended().await {
        if !work.is_waiting(target.place) {
            continue;
        }
        let node = &target.pod.node;
        match seen {
            Seen::Ready => {
                work.silent.remove(node);
                ready.push(target);
            }
            Seen::Absent(why) => {
                work.set(target.place, TargetState::Absent, &why, 0);
                more = true;
            }
            Seen::Silent(why) => {
                context.metrics.agent_failed();
                work.is_silent(node, why);
                // Whoever was looked at late took up no place.
                more |= !late;
            }
            Seen::NoAgent(why) => {
                let waiting = work.of(TargetState::Waiting);
                let here = waiting.iter().filter(|other| other.pod.node == *node);
                let here: Vec<_> = here
                    .filter(|other| !work.uncertain.contains(&other.place))
                    .collect();
                for target in here {
                    work.set(target.place, TargetState::Failed, &why, 0);
                }
                more = true;
            }
            Seen::Unknown(error) => {
                wait(work, &target, &error);
            }
        }
    }
    // Of those that were passed over others may have their turn meanwhile.
    more |= work.looks.pass_over() > 0;
    let ready = within_bounds(sweep, work, &ready);
    if let Err(problem) = authorise(sweep, authorised.as_ref(), &ready, work, context).await {
        work.problem = Some(problem);
        return false;
    }
    let making = ready.into_iter().map(|target| {
        let request = work.requests.get(&target.place).copied();
        async move {
            let made = make(sweep, &target, request, context).await;
            (target, made)
        }
    });
    let made: Vec<_> = stream::iter(making)
        .buffer_unordered(SIDE_BY_SIDE)
        .collect()
        .await;
    for (target, made) in made {
        work.uncertain.remove(&target.place);
        match made {
            Ok(status) => {
                work.requests.remove(&target.place);
                work.refused.remove(&target.place);
                work.take_over(target.place, status.as_ref());
                pace::came_on();
            }
            Err(Unmade::Never(why)) => {
                work.set(target.place, TargetState::Failed, &why, 0);
                more = true;
            }
            Err(Unmade::Now(error)) => {
                work.uncertain.insert(target.place);
                wait(work, &target, &error);
            }
            Err(Unmade::Yet(error)) => {
                let since = wait(work, &target, &error);
                if since >= context.agent_patience() {
                    let why = describe(&error);
                    work.set(target.place, TargetState::Failed, &why, 0);
                    more = true;
                }
            }
        }
    }
    if more {
        pace::came_on();
    }
    more
}

/// Of those that are ready the ones whose turn it is. The others are looked at again when it is theirs.
fn within_bounds(sweep: &Sweep, work: &Work, ready: &[Target]) -> Vec<Target> {
    let places: HashSet<_> = ready.iter().map(|target| target.place).collect();
    turns(sweep, work, |place, _| !places.contains(place))
}

/// The Kubernetes API is in the way of a target, for how long.
fn wait(work: &mut Work, target: &Target, error: &ApiError) -> Duration {
    tracing::warn!(
        case = target.case,
        pod = target.pod.pod,
        collection = target.collection,
        error = %describe(error),
        "a collection could not be begun"
    );
    work.is_refused(target.place, error)
}

/// Writes into the custody logs that each collection is authorised, as the sweep is; once for each, however often it
/// is tried to make it. The ids of these requests are in `work` then.
async fn authorise(
    sweep: &Sweep,
    authorised: Option<&Entry>,
    ready: &[Target],
    work: &mut Work,
    context: &Context,
) -> Result<(), String> {
    let Some(authorised) = authorised else {
        return Ok(());
    };
    let mut requests = Vec::new();
    let mut entries: BTreeMap<&str, Vec<Entry>> = BTreeMap::new();
    for target in ready {
        if work.requests.contains_key(&target.place) {
            continue;
        }
        let id = Uuid::new_v4();
        let subject = logged::request_of(target, id);
        let mut entry = Entry::new(Event::Authorised, authorised.who.clone(), subject)
            .because(sweep.spec.reason.clone());
        entry.certificate_sha256 = authorised.certificate_sha256;
        entries.entry(&target.case).or_default().push(entry);
        requests.push((target.place, id));
    }
    for (case, entries) in entries {
        let case: CaseId = case
            .parse()
            .map_err(|error: impound_evidence::NameError| error.to_string())?;
        within(AT_LEISURE, custody::append(context, &case, entries)).await?;
    }
    work.requests.extend(requests);
    Ok(())
}

/// Why there is no collection.
enum Unmade {
    /// There never will be one.
    Never(String),
    /// Something forbids it that may pass: a quota, a webhook, a role that is about to be granted.
    Yet(ApiError),
    /// The API did not answer as it should: it may be there.
    Now(ApiError),
}

/// Makes the collection, or finds the one that was made before; its status.
async fn make(
    sweep: &Sweep,
    target: &Target,
    request: Option<Uuid>,
    context: &Context,
) -> Result<Option<CollectionStatus>, Unmade> {
    let spec = &sweep.spec;
    let pod = &target.pod;
    let collection = Collection {
        metadata: ObjectMeta {
            name: Some(target.collection.clone()),
            labels: Some([(SWEEP_LABEL.into(), sweep.name_any())].into()),
            annotations: request.map(|id| [(custody::REQUEST.into(), id.to_string())].into()),
            owner_references: Some(owned_by(sweep)),
            ..ObjectMeta::default()
        },
        spec: CollectionSpec {
            pod: pod.pod.clone(),
            pod_uid: Some(pod.uid.clone()),
            node: Some(pod.node.clone()),
            case: target.case.clone(),
            reason: spec.reason.clone(),
            requested_by: spec.requested_by.clone(),
            pause: spec.pause,
            freeze: spec.freeze,
            encrypt_to: spec.encrypt_to.clone(),
            quarantine: None,
        },
        status: None,
    };
    let api = Api::<Collection>::namespaced(context.client.clone(), &pod.namespace);
    let (error, ends) = match api.create(&PostParams::default(), &collection).await {
        Ok(_) => return Ok(None),
        Err(error) => {
            let ends = namespace_ends(&error);
            (from_kube("POST", "collections", error), ends)
        }
    };
    match error.code() {
        409 => {}
        // Nothing that more patience would change.
        404 | 422 => return Err(Unmade::Never(describe(&error))),
        403 if ends => return Err(Unmade::Never(describe(&error))),
        400 | 403 => return Err(Unmade::Yet(error)),
        _ => return Err(Unmade::Now(error)),
    }
    let there = api.get_opt(&target.collection).await;
    match there.map_err(|error| Unmade::Now(from_kube("GET", "collection", error)))? {
        Some(there) if is_ours(&there, &sweep.uid().unwrap_or_default(), target) => {
            Ok(there.status)
        }
        Some(_) => Err(Unmade::Never(format!(
            "a collection {} is there that is not of this sweep, or about another pod",
            target.collection
        ))),
        None => Err(Unmade::Now(error)),
    }
}

/// Whether a refusal says that nothing more is made in the namespace, because it is being deleted.
fn namespace_ends(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == "NamespaceTerminating")
}
