//! A container of the suspect that was restarted: reported as the loss of evidence that it is, and, once the first
//! collection has ended, collected by a later one, with what is left of the container before it.
//!
//! ```text
//! look     compares the pod's containers with those that were contained, and with those whose export is stored
//!          -> status.laterCollections: name and request id, recorded before anything is made
//! make     the custody log says that the controller asks for it; the Collection is made
//! follow   how it stands, until it has ended
//! ```
//! The name of a later collection is that of the quarantine and the id of the container that it is made for: whoever
//! makes it again, after a crash or as another replica, finds it. One is made at a time, as each takes every
//! container that its pod has by then, and [`LIMIT`] in all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use impound_evidence::{Entry, Event, short_id};
use impound_proto::PeerId;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use uuid::Uuid;

use super::collecting::{self, Made, Taken as NameTaken};
use super::custody::{self, AT_ONCE};
use super::guarding::note;
use super::next_step::{ended, state};
use super::record::Record;
use super::{Context, ReconcileError};
use crate::contain::observe::{self, ObserveError};
use crate::contain::owner::is_same;
use crate::contain::plan::NAME_LIMIT;
use crate::contain::refusal::Refusal;
use crate::describe::describe;
use crate::resources::{
    ArtifactState, Collection, CollectionPhase, CollectionStatus, LaterCollection, QuarantinePhase,
    StepName, StepState,
};

/// Later collections of one quarantine. A container in a crash loop must fill neither the store nor, with the images
/// that are made on the way, its node's disk; a few restarts are those of a probe, or of somebody covering traces.
pub const LIMIT: usize = 5;

/// Reason of a restart.
const EVIDENCE_LOSS: &str = "EvidenceLoss";

/// Reason of a collection that is made by hand because of one.
const RESTART: &str = "a container was restarted";

/// What making a later collection is called where it is put off, and the pauses after which it is tried again.
const MAKE: &str = "later collection";
const PAUSE: Duration = Duration::from_secs(5);
const SLOWEST: Duration = Duration::from_secs(60);

/// What is, or will be, collected of a container that was not there when the pod was contained.
enum Taken {
    /// The request says to collect nothing.
    Unwanted,
    /// This collection has not ended, and takes what it finds.
    OnItsWay(String),
    /// A collection that has ended holds its export.
    Held,
    /// This later collection is to be made for it.
    Begun(String),
    /// There were [`LIMIT`] of them.
    NoMore,
}

/// Compares the containers with those that ran when the pod was contained. What no collection holds gets a later
/// one, which is only recorded here: [`make`] makes it once that is saved.
pub fn look(record: &mut Record, suspect: &Pod) {
    let before = container_ids(&record.suspect_before());
    let debugging = ephemeral(suspect);
    for (name, (id, restarts)) in container_ids(suspect) {
        let old = before.get(&name).map(|(old, _)| old);
        // Who debugs the pod has put another container into it: that is nothing of the suspect's.
        if old == Some(&id) || (old.is_none() && debugging.contains(&name)) {
            continue;
        }
        let Some(old) = old else {
            let what = format!("container {name} was started");
            taken(record, &id, &what);
            continue;
        };
        let restarted = format!("container {name} was restarted (restart {restarts})");
        let taken = taken(record, &id, &restarted);
        let what = format!("{restarted}: {old} is now {id}");
        // What became of the old one was said as it was when the restart was seen.
        let mut drift = record.status.drift.iter();
        if !drift.any(|drift| drift.reason == EVIDENCE_LOSS && drift.what.starts_with(&what)) {
            let became = became(record, &taken, old, &id);
            note(record, EVIDENCE_LOSS, format!("{what}; {became}"));
        }
    }
}

/// The same before a release puts the labels back: the pod may have changed since the last look. Whether the release
/// has to wait for a later collection.
///
/// # Errors
/// If the API can't be read.
pub async fn look_before_release(
    record: &mut Record,
    context: &Context,
) -> Result<bool, ReconcileError> {
    let forced = record.object.spec.release.as_ref();
    let forced = forced.is_some_and(|release| release.force);
    if forced || record.status.phase == QuarantinePhase::Releasing {
        return Ok(false);
    }
    let (namespace, pod) = (record.namespace(), record.object.spec.pod.clone());
    match observe::suspect(&context.client, &namespace, &pod).await {
        Ok((_, pod)) if is_same(&record.suspect_before(), &pod) => look(record, &pod),
        Ok(_) | Err(ObserveError::Refused(Refusal::NoSuchPod { .. })) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(is_under_way(record))
}

/// Whether a later collection has not ended.
fn is_under_way(record: &Record) -> bool {
    state(&record.status, StepName::CollectAgain).is_some_and(|state| !state.is_final())
}

/// Whether a later collection is to be made now.
#[must_use]
pub fn is_due(record: &Record, context: &Context) -> bool {
    left(record, context).is_some_and(|left| left.is_zero())
}

/// When a later collection is to be made; `None` if none is.
#[must_use]
pub fn left(record: &Record, context: &Context) -> Option<Duration> {
    let over = record.status.phase.is_over() || record.status.phase == QuarantinePhase::Releasing;
    unmade(record).filter(|_| !over)?;
    let left = context.pace.left(&record.uid(), MAKE);
    Some(left.unwrap_or_default())
}

/// Makes the later collection that is recorded, once that is saved. One that the API refuses is tried again and keeps
/// nothing else waiting.
///
/// # Errors
/// If that it is about to be made can't be saved.
pub async fn make(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    let Some(later) = unmade(record).cloned() else {
        return Ok(());
    };
    record.begin(StepName::CollectAgain);
    record.save().await?;
    let logged = custody::within(AT_ONCE, log(record, context, &later)).await;
    if let Err(problem) = logged {
        tracing::error!(
            quarantine = record.name(),
            problem,
            "not in the custody log"
        );
    }
    let first_name = later_name(&record.name(), &record.uid(), &short(&later.container));
    let chosen = later.name != first_name;
    match collecting::make(record, context, &wanted(record, &later), chosen).await {
        Ok(Made::There(made)) => {
            context.pace.clear(&record.uid(), MAKE);
            record.wait(StepName::CollectAgain, on_its_way(&later));
            see(record, &later.name, Some(made.as_ref()));
        }
        Ok(Made::Taken(how)) => rename(record, context, &later, how).await,
        Err(error) => {
            let pace = &context.pace;
            pace.failed(&record.uid(), MAKE, PAUSE.max(error.retry_after()), SLOWEST);
            let message = format!(
                "{}; it is NOT made yet, and tried again: {}",
                on_its_way(&later),
                describe(&error)
            );
            record.wait(StepName::CollectAgain, message);
        }
    }
    Ok(())
}

/// Takes over how the later collection that is under way stands.
///
/// # Errors
/// If the API can't be read.
pub async fn follow(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    let under_way = |later: &&LaterCollection| later.phase.is_some_and(|phase| !phase.is_final());
    let mut later = record.status.later_collections.iter();
    let Some(later) = later.find(under_way).cloned() else {
        return Ok(());
    };
    let found = collecting::find(record, context, &wanted(record, &later)).await?;
    see(record, &later.name, found.as_ref());
    Ok(())
}

/// Takes over which containers' exports a collection holds, if it is sealed.
pub fn hold(record: &mut Record, collection: &CollectionStatus) {
    let sealed = [CollectionPhase::Sealed, CollectionPhase::Partial];
    if !sealed.contains(&collection.phase) {
        return;
    }
    let stored = collection.artifacts.iter();
    let stored = stored.filter(|artifact| artifact.state == ArtifactState::Stored);
    let held: Vec<String> = stored
        .filter_map(|artifact| exported(&artifact.path))
        .collect();
    let exported = &mut record.status.exported;
    exported.extend(held);
    exported.sort();
    exported.dedup();
}

/// Id and restarts of each container that the API knows, by container name.
#[must_use]
pub fn container_ids(pod: &Pod) -> BTreeMap<String, (String, i32)> {
    let statuses = pod.status.iter().flat_map(|status| {
        let all = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        all.into_iter().flatten().flatten()
    });
    let known = |status: &ContainerStatus| {
        let id = status.container_id.clone()?;
        Some((status.name.clone(), (id, status.restart_count)))
    };
    statuses.filter_map(known).collect()
}

/// Names of the containers that somebody has added to the running pod.
fn ephemeral(pod: &Pod) -> BTreeSet<String> {
    let status = pod.status.iter();
    let added = status.flat_map(|status| status.ephemeral_container_statuses.iter().flatten());
    added.map(|status| status.name.clone()).collect()
}

/// What is collected of the container with this id. If nothing is and could be, a later collection is recorded.
fn taken(record: &mut Record, id: &str, what: &str) -> Taken {
    if record.object.spec.skip_collection {
        return Taken::Unwanted;
    }
    if !ended(&record.status, StepName::Collect) {
        return Taken::OnItsWay("the collection".into());
    }
    let short = short(id);
    let mut later = record.status.later_collections.iter();
    if let Some(open) = later.find(|later| !is_over(later)) {
        return if open.container == id {
            Taken::Begun(open.name.clone())
        } else {
            Taken::OnItsWay(format!("collection {}", open.name))
        };
    }
    let mut later = record.status.later_collections.iter();
    // Another one would find no more than that did.
    if record.status.exported.contains(&short) || later.any(|later| later.container == id) {
        return Taken::Held;
    }
    if record.status.later_collections.len() >= LIMIT {
        no_more(record);
        return Taken::NoMore;
    }
    let name = later_name(&record.name(), &record.uid(), &short);
    let quarantine = record.name();
    let later = LaterCollection {
        name: name.clone(),
        container: id.to_owned(),
        reason: format!(
            "{what} after the containers of the pod were read for quarantine {quarantine}"
        ),
        request: Uuid::new_v4().to_string(),
        phase: None,
        message: String::new(),
    };
    record.reopen(StepName::CollectAgain, on_its_way(&later));
    record.status.later_collections.push(later);
    Taken::Begun(name)
}

/// Says that what runs now is not collected any more by itself.
fn no_more(record: &mut Record) {
    let message = format!(
        "a container was restarted again, and what it is now is NOT collected: {LIMIT} later collections were made \
         of this quarantine, and no more is made by itself. {}",
        by_hand(record, RESTART)
    );
    let mut steps = record.status.steps.iter();
    if steps.any(|step| step.name == StepName::CollectAgain && step.message == message) {
        return;
    }
    record.end(StepName::CollectAgain, StepState::Failed, message);
}

/// What the collections have, or will have, of a container that is not there any more, and of the one that took its
/// place.
fn became(record: &Record, taken: &Taken, old: &str, new: &str) -> String {
    let lost = format!("what {old} changed is lost as soon as the kubelet removes it");
    let mut steps = record.status.steps.iter();
    let first = steps.find(|step| step.name == StepName::Collect);
    let first = first.map(|step| step.message.clone()).unwrap_or_default();
    match taken {
        Taken::Unwanted => format!(
            "nothing was to be collected: {lost}. {}",
            by_hand(record, RESTART)
        ),
        Taken::OnItsWay(collection) => {
            format!("{lost}; {collection}, which has not ended, takes it if it still exists then")
        }
        Taken::Held => format!("{lost}; of {new} there is an export, or it was tried"),
        Taken::Begun(name) => format!(
            "the collection had ended by then ({first}): it holds {old} only as it was when it was read, and nothing of \
             {new}. Collection {name} takes what there is of both now"
        ),
        Taken::NoMore => format!(
            "the collections had ended by then, and hold nothing of {new}. {}",
            by_hand(record, RESTART)
        ),
    }
}

/// The command that collects what there is, and why.
pub(super) fn by_hand(record: &Record, why: &str) -> String {
    let spec = &record.object.spec;
    format!(
        "To collect what is there now: impound collect {} -n {} --case {} --reason '{why}'",
        spec.pod,
        record.namespace(),
        spec.case
    )
}

fn on_its_way(later: &LaterCollection) -> String {
    format!(
        "{}: collection {} takes what there is now",
        later.reason, later.name
    )
}

fn is_over(later: &LaterCollection) -> bool {
    later.phase.is_some_and(CollectionPhase::is_final)
}

fn unmade(record: &Record) -> Option<&LaterCollection> {
    let mut later = record.status.later_collections.iter();
    later.find(|later| later.phase.is_none())
}

/// Writes that the controller itself asks for the collection, once for each: else whoever writes objects could have
/// made it.
async fn log(record: &Record, context: &Context, later: &LaterCollection) -> Result<(), String> {
    let who = PeerId::Controller.to_string();
    let subject = request_for(record, later)?;
    let entry = Entry::new(Event::Authorised, who, subject).because(later.reason.clone());
    custody::once(context, &record.object.spec.case, vec![entry]).await
}

async fn log_withdrawn(
    record: &Record,
    context: &Context,
    later: &LaterCollection,
) -> Result<(), String> {
    let who = PeerId::Controller.to_string();
    let subject = request_for(record, later)?;
    let entry = Entry::new(Event::Failed, who, subject).because("the name is somebody else's");
    custody::once(context, &record.object.spec.case, vec![entry]).await
}

/// What the log calls the request for a later collection.
fn request_for(record: &Record, later: &LaterCollection) -> Result<String, String> {
    let id = Uuid::try_parse(&later.request).map_err(|error| error.to_string())?;
    let pod = (
        record.object.spec.pod.as_str(),
        record.status.pod_uid.as_deref(),
    );
    let (namespace, name) = (record.namespace(), &later.name);
    Ok(custody::request("collection", &namespace, name, pod, id))
}

/// The collection as it is to be made.
fn wanted(record: &Record, later: &LaterCollection) -> Collection {
    let who = PeerId::Controller.to_string();
    record.collection(
        &later.name,
        &later.reason,
        &who,
        Some(later.request.clone()),
    )
}

/// Gives a later collection whose name is somebody else's, or may be, another one, under which it is made once that is
/// saved. The log says that nothing came of the request under the old one: nobody else's object may pass for it.
async fn rename(record: &mut Record, context: &Context, taken: &LaterCollection, how: NameTaken) {
    let Some(name) = collecting::another_name(record) else {
        see(record, &taken.name, None);
        return;
    };
    collecting::write_down(record, &taken.name, how, &name);
    let logged = custody::within(AT_ONCE, log_withdrawn(record, context, taken)).await;
    if let Err(problem) = logged {
        tracing::error!(
            quarantine = record.name(),
            problem,
            "not in the custody log"
        );
    }
    let mut all = record.status.later_collections.iter_mut();
    let Some(later) = all.find(|later| later.name == taken.name) else {
        return;
    };
    later.name = name;
    later.request = Uuid::new_v4().to_string();
    let message = on_its_way(later);
    record.wait(StepName::CollectAgain, message);
}

/// Records how a later collection stands, and when it was the last one that had not ended, how they ended.
fn see(record: &mut Record, name: &str, collection: Option<&Collection>) {
    let (phase, message) = match collection {
        None => (
            CollectionPhase::Failed,
            "its Collection object was deleted, or one of its name is not this quarantine's"
                .to_owned(),
        ),
        Some(collection) => {
            let status = collection.status.clone().unwrap_or_default();
            hold(record, &status);
            (status.phase, status.outcome())
        }
    };
    let later = &mut record.status.later_collections;
    let Some(seen) = later.iter_mut().find(|later| later.name == name) else {
        return;
    };
    seen.phase = Some(phase);
    if !phase.is_final() {
        return;
    }
    seen.message = message;
    let all: Vec<String> = later
        .iter()
        .map(|later| format!("{}: {}", later.name, later.message))
        .collect();
    let sealed = later
        .iter()
        .all(|later| later.phase == Some(CollectionPhase::Sealed));
    let state = if sealed {
        StepState::Done
    } else {
        StepState::Failed
    };
    record.end(StepName::CollectAgain, state, all.join("; "));
}

/// The part of a container's id that its files are called by; the id is `docker://` and 64 digits.
fn short(id: &str) -> String {
    let id = id.rsplit('/').next().unwrap_or(id);
    short_id(id).unwrap_or(id).to_owned()
}

/// The short id in the name of an export that is complete, from its path.
fn exported(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?.strip_suffix(".tar")?;
    let (_, short) = file
        .strip_prefix("evidence-compromised-")?
        .rsplit_once('-')?;
    Some(short.to_owned())
}

/// Name of the later collection for a container: never another one's, and short enough.
fn later_name(quarantine: &str, uid: &str, short: &str) -> String {
    const UID: usize = 8;
    let room = NAME_LIMIT - short.len().min(12) - 1;
    let short: String = short.chars().take(12).collect();
    if quarantine.len() <= room {
        return format!("{quarantine}-{short}");
    }
    let start: String = quarantine.chars().take(room - UID - 1).collect();
    let uid: String = uid.chars().take(UID).collect();
    format!("{}-{uid}-{short}", start.trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_collection_is_named_by_its_quarantine_and_the_container_it_is_made_for() {
        let id = format!("docker://{}", "0123456789abcdef".repeat(4));
        assert_eq!(short(&id), "0123456789ab");
        assert_eq!(
            later_name("web-1", "5f3c2d1e-4711", &short(&id)),
            "web-1-0123456789ab"
        );
        let long = "w".repeat(49) + "-" + &"x".repeat(13);
        let (one, other) = (
            later_name(&long, "5f3c2d1e-4711", &short(&id)),
            later_name(&long, "6f3c2d1e-4711", &short(&id)),
        );
        assert_eq!(one.len(), NAME_LIMIT);
        assert_ne!(one, other, "of two quarantines");
    }

    #[test]
    fn only_an_export_says_that_a_container_is_held() {
        let at = |file: &str| exported(&format!("artifacts/n/shop_web/app/{file}"));
        assert_eq!(
            at("evidence-compromised-my-app-0123456789ab.tar").as_deref(),
            Some("0123456789ab")
        );
        for other in [
            "compromised-my-app-0123456789ab.tar",
            "evidence-compromised-my-app-0123456789ab.tar.partial-1",
            "layer.tar",
            "inspect.json",
        ] {
            assert_eq!(at(other), None, "{other}");
        }
    }
}
