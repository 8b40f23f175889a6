//! What this process knows of the sweeps that it works on: their lists and which of them have ended. All of it can be
//! read again: a process that is started anew, or a write that failed, begins without it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use impound_evidence::Entry;
use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;
use uuid::Uuid;

use super::look::Looks;
use crate::describe::describe;
use crate::kubernetes::ApiError;
use crate::locked::locked;
use crate::resources::sweep::{EXCEPTIONS, TARGET_MESSAGE};
use crate::resources::{
    Collection, CollectionPhase, CollectionStatus, Sweep, SweepCounts, SweepException, SweepState,
    SweepTarget, TargetState, TargetStatus,
};
use crate::sweep::list::collection_name;

/// Pauses between attempts to reach a node's agent.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Silent nodes are tried again one by one, and so many at once: a thousand of them must not keep the API server busy.
const PROBE_EVERY: Duration = Duration::from_millis(250);
const PROBES: usize = 4;

/// Times that a node's agent has to be silent before it is given up.
const TRIES: u32 = 2;

/// The sweeps of this process, and the collections that its watch shows.
#[derive(Default)]
pub struct Sweeps {
    collections: OnceLock<Store<Collection>>,
    woken: Mutex<Option<UnboundedSender<ObjectRef<Sweep>>>>,
    at_work: Mutex<HashMap<String, Work>>,
}

impl Sweeps {
    /// The collections that this process's watch shows.
    pub fn watched(&self, collections: Store<Collection>) {
        // It has one.
        let _ = self.collections.set(collections);
    }

    /// Sweeps of which a collection has ended, from now on, for the replica that leads.
    #[must_use]
    pub fn wakes(&self) -> UnboundedReceiver<ObjectRef<Sweep>> {
        let (wake, woken) = mpsc::unbounded_channel();
        *locked(&self.woken) = Some(wake);
        woken
    }

    /// A collection of this sweep has ended.
    pub fn wake(&self, sweep: ObjectRef<Sweep>) {
        let woken = locked(&self.woken);
        if let Some(wake) = &*woken {
            // Nobody listens once the reconcilers were dropped, as by a lost lease.
            let _ = wake.send(sweep);
        }
    }

    pub(super) fn collections(&self) -> Option<&Store<Collection>> {
        self.collections.get()
    }

    /// Takes what is known of the sweep with this uid; nobody else has it then.
    pub(super) fn take(&self, uid: &str) -> Option<Work> {
        self.locked().remove(uid)
    }

    pub(super) fn keep(&self, uid: &str, work: Work) {
        self.locked().insert(uid.to_owned(), work);
    }

    /// The map is whole after every statement, so a panic elsewhere doesn't spoil it.
    fn locked(&self) -> MutexGuard<'_, HashMap<String, Work>> {
        locked(&self.at_work)
    }
}

/// The sweep that has to look, if one of its collections has ended or is gone.
#[must_use]
pub fn waiting_for(event: &Event<Collection>) -> Option<ObjectRef<Sweep>> {
    let collection = match event {
        Event::Delete(collection) => collection,
        Event::Apply(collection) if is_final(collection) => collection,
        _ => return None,
    };
    owner(collection).map(|(name, _)| ObjectRef::new(name))
}

/// What the watch's memory needs not hold: a sweep's collections are thousands, and whoever works on one reads it whole.
pub fn slim(collection: &mut Collection) {
    collection.metadata.managed_fields = None;
    if let Some(status) = &mut collection.status {
        status.artifacts = Vec::new();
    }
}

fn is_final(collection: &Collection) -> bool {
    let status = collection.status.as_ref();
    status.is_some_and(|status| status.phase.is_final())
}

/// Name and uid of the sweep that a collection belongs to.
fn owner(collection: &Collection) -> Option<(&str, &str)> {
    let mut owners = collection.owner_references().iter();
    let sweep = owners.find(|owner| owner.kind == "Sweep" && owner.controller == Some(true))?;
    Some((&sweep.name, &sweep.uid))
}

/// Whether a collection is the one that this sweep makes for this target: owner references and names are free text,
/// so another may be there under its name, and its evidence would be another pod's.
pub(super) fn is_ours(collection: &Collection, sweep: &str, target: &Target) -> bool {
    let (spec, pod) = (&collection.spec, &target.pod);
    owner(collection).is_some_and(|(_, uid)| uid == sweep)
        && collection.metadata.namespace.as_deref() == Some(&pod.namespace)
        && spec.pod == pod.pod
        && spec.pod_uid.as_deref() == Some(&pod.uid)
        && spec.node.as_deref() == Some(&pod.node)
        && spec.case == target.case
}

/// A sweep under work.
pub(super) struct Work {
    pub(super) uid: String,
    pub(super) parts: Vec<Part>,
    /// Nodes whose agents could not be reached.
    pub(super) silent: HashMap<String, Retried>,
    /// When such nodes were last tried again.
    probed: Instant,
    /// At targets whose turn it is.
    pub(super) looks: Looks,
    /// Targets that the Kubernetes API did not let begin.
    pub(super) refused: HashMap<Place, Retried>,
    /// Waiting targets whose collections may be there all the same: the answer to their creation was none.
    pub(super) uncertain: HashSet<Place>,
    /// Ids of authorised requests whose collections are not made yet.
    pub(super) requests: HashMap<Place, Uuid>,
    /// Whether the custody logs have who asked for it, and the entry that authorised that.
    pub(super) logged: Option<Option<Entry>>,
    /// The state that the custody log has last, if this process wrote it.
    pub(super) wished: Option<SweepState>,
    /// What keeps it from coming on, for people.
    pub(super) problem: Option<String>,
    /// When rosters and status were last written.
    pub(super) rosters_saved: Instant,
    pub(super) status_saved: Option<Instant>,
}

/// A roster.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) case: String,
    /// Number of its first target, from 1.
    pub(super) first: usize,
    pub(super) targets: Vec<SweepTarget>,
    /// As many as targets.
    pub(super) states: Vec<TargetStatus>,
    /// Whether the states are not written yet.
    pub(super) unsaved: bool,
}

/// Place of a target: which part, and where in it.
pub(super) type Place = (usize, usize);

/// A target with what belongs to it.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) place: Place,
    pub(super) case: String,
    pub(super) collection: String,
    pub(super) pod: SweepTarget,
}

/// What is tried again after a while, longer each time.
pub(super) struct Retried {
    pub(super) since: Instant,
    pub(super) due: Instant,
    pause: Duration,
    times: u32,
    pub(super) why: String,
}

impl Retried {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            due: now,
            pause: FIRST_PAUSE / 2,
            times: 0,
            why: String::new(),
        }
    }

    /// It failed again. What fails while its turn has not come was begun together with what failed before.
    fn failed(&mut self, why: String, at_least: Duration) {
        let now = Instant::now();
        if self.due <= now {
            self.times = self.times.saturating_add(1);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.due = now + self.pause.max(at_least);
        }
        self.why = why;
    }
}

impl Work {
    pub(super) fn new(uid: &str, parts: Vec<Part>) -> Self {
        Self {
            uid: uid.to_owned(),
            parts,
            silent: HashMap::new(),
            probed: Instant::now(),
            looks: Looks::default(),
            refused: HashMap::new(),
            uncertain: HashSet::new(),
            requests: HashMap::new(),
            logged: None,
            wished: None,
            problem: None,
            rosters_saved: Instant::now(),
            status_saved: None,
        }
    }

    /// Every target's place, node and state, in the order of the list.
    pub(super) fn states(
        &self,
    ) -> impl Iterator<Item = (Place, &SweepTarget, &TargetStatus)> + Clone {
        self.parts.iter().enumerate().flat_map(|(number, part)| {
            let targets = part.targets.iter().zip(&part.states).enumerate();
            targets.map(move |(at, (target, state))| ((number, at), target, state))
        })
    }

    /// The targets in this state.
    pub(super) fn of(&self, state: TargetState) -> Vec<Target> {
        let places = self.states().filter(|(_, _, now)| now.state == state);
        let places: Vec<_> = places.map(|(place, ..)| place).collect();
        self.targets(&places)
    }

    pub(super) fn targets(&self, places: &[Place]) -> Vec<Target> {
        let target = |place: &Place| {
            let part = self.parts.get(place.0)?;
            let pod = part.targets.get(place.1)?.clone();
            Some(Target {
                place: *place,
                case: part.case.clone(),
                collection: collection_name(&self.uid, &pod, part.first + place.1),
                pod,
            })
        };
        places.iter().filter_map(target).collect()
    }

    /// Whether the target is not begun.
    pub(super) fn is_waiting(&self, (part, at): Place) -> bool {
        let part = self.parts.get(part);
        let status = part.and_then(|part| part.states.get(at));
        status.is_some_and(|status| status.state == TargetState::Waiting)
    }

    /// Sets the state of a target, to be written.
    pub(super) fn set(&mut self, (part, at): Place, state: TargetState, message: &str, bytes: u64) {
        let Some(part) = self.parts.get_mut(part) else {
            return;
        };
        if let Some(known) = part.states.get_mut(at) {
            let status = TargetStatus {
                state,
                message: cut(message),
                bytes,
            };
            part.unsaved |= *known != status;
            *known = status;
        }
    }

    /// A collection of the sweep is there: the target is as that is.
    pub(super) fn take_over(&mut self, place: Place, collection: Option<&CollectionStatus>) {
        let phase = collection.map_or(CollectionPhase::Pending, |status| status.phase);
        let bytes = collection.map_or(0, |status| status.bytes);
        let text = || {
            let status = collection.cloned().unwrap_or_default();
            match status.missing.first() {
                Some(missing) if phase == CollectionPhase::Partial => {
                    format!("{}: {missing}", status.message)
                }
                _ => status.message,
            }
        };
        match phase {
            CollectionPhase::Pending | CollectionPhase::Collecting => {
                self.set(place, TargetState::Running, "", 0);
            }
            CollectionPhase::Sealed => self.set(place, TargetState::Sealed, "", bytes),
            CollectionPhase::Partial => self.set(place, TargetState::Partial, &text(), bytes),
            CollectionPhase::Failed => self.set(place, TargetState::Failed, &text(), bytes),
        }
    }

    /// How many are in which state, their bytes, and the first exceptions with the number of those beyond.
    pub(super) fn summary(&self) -> (SweepCounts, u64, Vec<SweepException>, u32) {
        let mut counts = SweepCounts::default();
        let (mut bytes, mut exceptions, mut more) = (0_u64, Vec::new(), 0_u32);
        for (_, target, status) in self.states() {
            counts.add(status.state);
            bytes = bytes.saturating_add(status.bytes);
            if !status.state.is_exception() {
                continue;
            }
            if exceptions.len() < EXCEPTIONS {
                exceptions.push(SweepException {
                    namespace: target.namespace.clone(),
                    pod: target.pod.clone(),
                    node: target.node.clone(),
                    state: status.state,
                    message: status.message.clone(),
                });
            } else {
                more = more.saturating_add(1);
            }
        }
        (counts, bytes, exceptions, more)
    }

    /// The node's agent did not answer: it is left alone for a while, longer each time.
    pub(super) fn is_silent(&mut self, node: &str, why: String) {
        let silent = self.silent.entry(node.to_owned());
        silent
            .or_insert_with(Retried::new)
            .failed(why, Duration::ZERO);
    }

    /// A target on each of the silent nodes that are to be tried again now, those first that have waited longest.
    pub(super) fn probes(&mut self) -> Vec<Target> {
        let now = Instant::now();
        let gained = now.duration_since(self.probed).as_millis() / PROBE_EVERY.as_millis();
        let room = usize::try_from(gained).map_or(PROBES, |gained| gained.min(PROBES));
        let (_, asked) = self.looks.held();
        let due = |(node, silent): &(&String, &Retried)| {
            silent.due <= now && !asked.contains(node.as_str())
        };
        let mut due: Vec<_> = self.silent.iter().filter(due).collect();
        due.sort_by_key(|(_, silent)| silent.due);
        let nodes = due.into_iter().take(room).map(|(node, _)| node.as_str());
        let mut nodes: HashSet<_> = nodes.collect();
        let waiting = |status: &TargetStatus| status.state == TargetState::Waiting;
        let of_each = |(_, target, status): &(Place, &SweepTarget, &TargetStatus)| {
            waiting(status) && nodes.remove(target.node.as_str())
        };
        let places: Vec<_> = self.states().filter(of_each).map(|(at, ..)| at).collect();
        if !places.is_empty() {
            self.probed = now;
        }
        self.targets(&places)
    }

    /// The Kubernetes API did not let the target begin: the others have their turn first. Says for how long it has
    /// been so.
    pub(super) fn is_refused(&mut self, place: Place, error: &ApiError) -> Duration {
        let refused = self.refused.entry(place).or_insert_with(Retried::new);
        refused.failed(describe(error), error.retry_after());
        refused.since.elapsed()
    }

    /// Whether it is not a target's turn yet to be tried again.
    pub(super) fn is_barred(&self, place: &Place) -> bool {
        let refused = self.refused.get(place);
        refused.is_some_and(|refused| refused.due > Instant::now())
    }

    /// Why a node is given up, whose agent was silent for this long and has been tried again.
    pub(super) fn given_up(&self, node: &str, patience: Duration) -> Option<&str> {
        let silent = self.silent.get(node)?;
        let enough = silent.times >= TRIES && silent.since.elapsed() >= patience;
        enough.then_some(silent.why.as_str())
    }

    /// Nothing is begun now: how long it has not worked is counted anew.
    pub(super) fn is_held(&mut self) {
        self.silent.clear();
        self.refused.clear();
        self.looks = Looks::default();
    }

    /// When the next of what failed is tried again.
    pub(super) fn due(&self) -> Option<Instant> {
        let (_, asked) = self.looks.held();
        let silent = self.silent.iter();
        let silent = silent.filter(|(node, _)| !asked.contains(node.as_str()));
        let silent = silent.map(|(_, silent)| silent.due.max(self.probed + PROBE_EVERY));
        silent
            .chain(self.refused.values().map(|refused| refused.due))
            .min()
    }
}

/// A message that fits into a roster, whatever it is about: what a JSON text would write in six bytes is left out.
fn cut(message: &str) -> String {
    let mut text: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.len() > TARGET_MESSAGE {
        let mut end = TARGET_MESSAGE - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::sweep::{CASE_TARGETS, MOST_TARGETS, ROSTER_TARGETS, SWEEP_NAME};
    use crate::resources::{SweepRoster, SweepRosterSpec, SweepRosterStatus};

    /// Half of what etcd takes is left for what the API server adds.
    const LIMIT: usize = 1 << 20;

    /// The longest names and messages that there can be.
    fn worst() -> Work {
        let target = SweepTarget {
            namespace: "n".repeat(63),
            pod: "p".repeat(253),
            uid: "u".repeat(64),
            node: "w".repeat(253),
        };
        let parts = (0..MOST_TARGETS / ROSTER_TARGETS).map(|number| Part {
            name: String::new(),
            uid: String::new(),
            version: String::new(),
            case: "c".repeat(63),
            first: number * ROSTER_TARGETS + 1,
            targets: vec![target.clone(); ROSTER_TARGETS],
            states: vec![TargetStatus::default(); ROSTER_TARGETS],
            unsaved: false,
        });
        let mut work = Work::new("uid", parts.collect());
        let all: Vec<_> = work.states().map(|(place, ..)| place).collect();
        for place in all {
            let message = "\"\n\\".repeat(1000);
            work.set(place, TargetState::Failed, &message, u64::MAX);
        }
        work
    }

    #[test]
    fn no_object_of_the_largest_sweep_reaches_a_mebibyte_whatever_its_pods_are_called() {
        let work = worst();
        let part = &work.parts[0];
        let mut roster = SweepRoster::new(
            &"r".repeat(253),
            SweepRosterSpec {
                sweep: "s".repeat(SWEEP_NAME),
                case: part.case.clone(),
                first: 1,
                targets: part.targets.clone(),
            },
        );
        roster.status = Some(SweepRosterStatus {
            targets: part.states.clone(),
        });
        let size = json!(roster).to_string().len();
        assert!(size < LIMIT, "{size} bytes");
        let (counts, _, exceptions, more) = work.summary();
        let size = json!([exceptions, counts]).to_string().len();
        assert!(size < LIMIT / 8, "{size} bytes");
        assert_eq!(counts.failed as usize, MOST_TARGETS);
        assert_eq!(more as usize + exceptions.len(), MOST_TARGETS);
        assert_eq!(CASE_TARGETS % ROSTER_TARGETS, 0, "a roster is of one case");
    }

    #[test]
    fn a_message_is_cut_where_a_character_ends() {
        let text = cut(&"ä".repeat(400));
        assert!(
            text.len() <= TARGET_MESSAGE && text.ends_with("ä…"),
            "{text}"
        );
        assert_eq!(cut("a\nb"), "a b");
    }
}
