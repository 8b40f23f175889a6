//! The status of one quarantine while it is worked on: steps begun and ended, saved, announced.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::custody::{REQUEST, request_id};
use super::next_step::verdict;
use super::{Context, ReconcileError};
use crate::contain::recorded::Recorded;
use crate::contain::settings::FIELD_MANAGER;
use crate::kubernetes::{from_kube, pace};
use crate::resources::{
    Collection, CollectionSpec, Fact, Names, Quarantine, QuarantinePhase, QuarantineStatus,
    StepName, StepState, StepStatus, now,
};

/// A quarantine under work. Changes go to memory first; [`Record::save`] makes them durable.
pub struct Record {
    /// The object as read at the start of the reconciliation.
    pub object: Quarantine,
    /// Its status as it is now.
    pub status: QuarantineStatus,
    context: Arc<Context>,
    saved: Value,
    /// What the API did not keep of the status that was written last.
    lost: Vec<String>,
    events: Vec<Event>,
}

impl Record {
    /// Starts from a freshly read object.
    #[must_use]
    pub fn new(object: Quarantine, context: Arc<Context>) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let saved = object
            .status
            .as_ref()
            .map_or(Value::Null, |status| json!(status));
        Self {
            object,
            status,
            context,
            saved,
            lost: Vec::new(),
            events: Vec::new(),
        }
    }

    /// A collection of the suspect's evidence as the quarantine asks for it, not made yet. `request` is the id of the
    /// request for it, if there is one.
    #[must_use]
    pub fn collection(
        &self,
        name: &str,
        reason: &str,
        requested_by: &str,
        request: Option<String>,
    ) -> Collection {
        let spec = &self.object.spec;
        let mut collection = Collection::new(
            name,
            CollectionSpec {
                pod: spec.pod.clone(),
                pod_uid: self.status.pod_uid.clone(),
                node: self.status.node.clone(),
                case: spec.case.clone(),
                reason: reason.to_owned(),
                requested_by: requested_by.to_owned(),
                pause: spec.pause,
                freeze: spec.freeze,
                encrypt_to: spec.encrypt_to.clone(),
                quarantine: Some(self.name()),
            },
        );
        collection.metadata.annotations = request.map(|id| [(REQUEST.into(), id)].into());
        collection
    }

    /// The first collection, which has the quarantine's name unless that is taken, not made yet.
    #[must_use]
    pub fn first_collection(&self) -> Collection {
        let (quarantine, spec) = (self.name(), &self.object.spec);
        let name = self.status.first_collection(&quarantine);
        let request = request_id(&self.object).map(|id| id.to_string());
        self.collection(name, &spec.reason, &spec.requested_by, request)
    }

    /// Whether what has the name of a collection that this quarantine `wanted` is that one. A name alone says
    /// nothing: it may be of a quarantine of the same name that was released and deleted, or somebody else's, and what
    /// is sealed there would pass for evidence of this suspect.
    #[must_use]
    pub fn owns(&self, there: &Collection, wanted: &Collection) -> bool {
        let is_about = |collection: &Collection| {
            let spec = &collection.spec;
            (
                spec.quarantine.clone(),
                spec.pod.clone(),
                spec.pod_uid.clone(),
                spec.case.clone(),
                request_id(collection),
            )
        };
        is_about(there) == is_about(wanted) && is_younger(there, &self.object)
    }

    /// Namespace of quarantine and pod.
    #[must_use]
    pub fn namespace(&self) -> String {
        self.object.namespace().unwrap_or_default()
    }

    /// Name of the quarantine.
    #[must_use]
    pub fn name(&self) -> String {
        self.object.name_any()
    }

    /// metadata.uid of the quarantine.
    #[must_use]
    pub fn uid(&self) -> String {
        self.object.metadata.uid.clone().unwrap_or_default()
    }

    /// What things were called when the plan was made; what its record does not say, what they are called now.
    #[must_use]
    pub fn names(&self) -> Names {
        Recorded::of(&self.status).or(&self.context.settings.names)
    }

    /// Records what things are called, if a former version made the plan and the record tells it otherwise.
    pub fn record_names(&mut self) {
        let names = Recorded::of(&self.status).whole();
        if let Some(undo) = &mut self.status.undo {
            undo.names = undo.names.take().or(names);
        }
    }

    /// Why the suspect itself is not changed; none for most pods, and as long as nothing is planned.
    #[must_use]
    pub fn untouched(&self) -> Option<&str> {
        self.status.undo.as_ref()?.untouched.as_deref()
    }

    /// The suspect as it was before the first change.
    #[must_use]
    pub fn suspect_before(&self) -> Pod {
        let before = self.status.before.as_ref();
        before
            .and_then(|before| serde_json::from_value(before.pod.clone()).ok())
            .unwrap_or_default()
    }

    /// Marks a step as begun and counts the attempt, which is returned.
    pub fn begin(&mut self, name: StepName) -> u32 {
        let step = self.step(name);
        step.state = StepState::Running;
        step.attempts += 1;
        step.started.get_or_insert_with(now);
        step.attempts
    }

    /// Says what a step waits for.
    pub fn wait(&mut self, name: StepName, message: impl Into<String>) {
        let step = self.step(name);
        step.state = StepState::Waiting;
        step.message = message.into();
        step.started.get_or_insert_with(now);
    }

    /// A step that has ended is to be carried out again.
    pub fn reopen(&mut self, name: StepName, why: impl Into<String>) {
        self.wait(name, why);
        self.step(name).finished = None;
    }

    /// Ends a step and announces it.
    pub fn end(&mut self, name: StepName, state: StepState, message: impl Into<String>) {
        let message = message.into();
        // What comes now is a first attempt.
        pace::speed_up(&name.to_string());
        let step = self.step(name);
        step.state = state;
        step.message.clone_from(&message);
        step.started.get_or_insert_with(now);
        step.finished = Some(now());
        step.intended.clear();
        tracing::info!(
            case = self.object.spec.case,
            pod = self.object.spec.pod,
            namespace = self.namespace(),
            step = %name,
            state = ?state,
            message,
            "step ended"
        );
        let metrics = &self.context.metrics;
        metrics.step_ended(&name.to_string(), &format!("{state:?}"));
        self.announce(state == StepState::Failed, &name.to_string(), message);
    }

    /// What earlier attempts at a step set out to do and are not known to have failed at.
    #[must_use]
    pub fn intended(&self, name: StepName) -> Vec<String> {
        let mut steps = self.status.steps.iter();
        let step = steps.find(|step| step.name == name);
        step.map(|step| step.intended.clone()).unwrap_or_default()
    }

    /// Says what a step sets out to do; [`Record::save`] makes it durable, before the first call.
    pub fn intend(&mut self, name: StepName, what: Vec<String>) {
        self.step(name).intended = what;
    }

    /// Sets the phase and announces it when it is another one.
    pub fn enter(&mut self, phase: QuarantinePhase, message: impl Into<String>) {
        let message = message.into();
        let before = self.status.phase;
        let entered = before != phase;
        self.status.phase = phase;
        self.status.message.clone_from(&message);
        if entered {
            tracing::info!(
                case = self.object.spec.case,
                pod = self.object.spec.pod,
                namespace = self.namespace(),
                phase = ?phase,
                message,
                "quarantine entered a phase"
            );
            self.count(before, phase);
            let bad = matches!(
                phase,
                QuarantinePhase::Refused | QuarantinePhase::Failed | QuarantinePhase::Incomplete
            );
            self.announce(bad, &format!("{phase:?}"), message);
        }
    }

    /// Announces something bad that is no step.
    pub fn alert(&mut self, reason: &str, what: String) {
        tracing::warn!(
            case = self.object.spec.case,
            pod = self.object.spec.pod,
            namespace = self.namespace(),
            reason,
            what,
            "quarantine disturbed"
        );
        self.context.metrics.disturbed(reason);
        self.announce(true, reason, what);
    }

    /// States the facts, and what follows from them.
    pub fn state(&mut self, facts: Vec<Fact>) {
        self.status.facts = facts;
        self.status.verdict = verdict(&self.status);
    }

    /// Makes the status durable, if it changed, and publishes the events of what was saved.
    ///
    /// The patch carries the uid, so a quarantine re-created under the same name is never touched, and
    /// the resourceVersion, so a replica that has lost its lease without knowing it never overwrites what
    /// its successor wrote. Server-side apply would not do: both replicas write under one field manager,
    /// which never conflicts with itself, and a manager for each would leave its fields behind.
    ///
    /// # Errors
    /// If the API does not take it, or somebody else wrote the status since it was read; the work is then
    /// begun again from what is saved.
    pub async fn save(&mut self) -> Result<(), ReconcileError> {
        self.status.observed_generation = self.object.metadata.generation;
        self.save_changes().await?;
        if self.warn_of_lost() {
            self.save_changes().await?;
        }
        self.publish();
        Ok(())
    }

    /// Whether the API has kept this field of the status, e.g. `status.collectionName`, when it was written last. A
    /// definition that is older than this program drops what it does not know, and answers as if all were well.
    #[must_use]
    pub fn has_kept(&self, field: &str) -> bool {
        !self.lost.iter().any(|lost| lost == field)
    }

    async fn save_changes(&mut self) -> Result<(), ReconcileError> {
        let status = json!(self.status);
        if status != self.saved {
            let changed = changed_fields(&self.saved, &status);
            let kept = self.write(&changed).await?;
            self.lost = lost(&status, &kept);
            // What was not kept is written again with the next change.
            self.saved = if self.lost.is_empty() { status } else { kept };
        }
        Ok(())
    }

    /// Puts what the API did not keep among the warnings; false if nothing was lost, or it is there already.
    fn warn_of_lost(&mut self) -> bool {
        if self.lost.is_empty() {
            return false;
        }
        let warning = not_kept(&self.lost.join(", "));
        if self.status.warnings.contains(&warning) {
            return false;
        }
        tracing::error!(
            case = self.object.spec.case,
            pod = self.object.spec.pod,
            namespace = self.namespace(),
            warning,
            "the status is not kept whole"
        );
        self.status.warnings.push(warning);
        true
    }

    fn count(&self, before: QuarantinePhase, phase: QuarantinePhase) {
        let metrics = &self.context.metrics;
        metrics.phase_entered(&format!("{phase:?}"));
        // One that is collected from again was contained before.
        let contained = phase == QuarantinePhase::Contained && !before.is_final();
        let created = self.object.metadata.creation_timestamp.as_ref();
        if let Some(created) = created.filter(|_| contained) {
            // The API server's clock, in whole seconds, against ours: good to a second.
            let since = Timestamp::now().duration_since(created.0).as_secs_f64();
            metrics.contained_after(since.max(0.0));
        }
    }

    /// Takes over metadata and wishes as the API has just given them; the status stays.
    pub fn take_over(&mut self, object: Quarantine) {
        self.object.metadata = object.metadata;
        self.object.spec = object.spec;
    }

    /// Gives the status as the API has it then.
    async fn write(&mut self, changed: &Value) -> Result<Value, ReconcileError> {
        let api = Api::<Quarantine>::namespaced(self.context.client.clone(), &self.namespace());
        let name = self.name();
        let path = format!("quarantines/{name}/status");
        loop {
            let patch = json!({
                "metadata": {
                    "uid": self.object.metadata.uid,
                    "resourceVersion": self.object.metadata.resource_version,
                },
                "status": changed,
            });
            let answer = api
                .patch_status(&name, &manager(), &Patch::Merge(patch))
                .await
                .map_err(|error| from_kube("PATCH", &path, error));
            match answer {
                Ok(mut object) => {
                    let kept = json!(object.status.take().unwrap_or_default());
                    self.take_over(object);
                    return Ok(kept);
                }
                Err(error) if error.is_conflict() => {
                    let now = api
                        .get(&name)
                        .await
                        .map_err(|error| from_kube("GET", &path, error))?;
                    let unchanged =
                        now.metadata.resource_version == self.object.metadata.resource_version;
                    if unchanged
                        || without_nulls(json!(now.status)) != without_nulls(self.saved.clone())
                    {
                        return Err(error.into());
                    }
                    // Only the wish or the metadata changed, e.g. a release was asked for.
                    self.take_over(now);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn step(&mut self, name: StepName) -> &mut StepStatus {
        let steps = &mut self.status.steps;
        let position = steps
            .iter()
            .position(|step| step.name == name)
            .unwrap_or_else(|| {
                steps.push(StepStatus {
                    name,
                    state: StepState::Running,
                    message: String::new(),
                    started: None,
                    finished: None,
                    attempts: 0,
                    intended: Vec::new(),
                });
                steps.len() - 1
            });
        #[expect(clippy::indexing_slicing, reason = "found or pushed just above")]
        &mut steps[position]
    }

    fn announce(&mut self, bad: bool, reason: &str, note: String) {
        self.events.push(Event {
            type_: if bad {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.into(),
            note: Some(shortened(note)),
            action: "Quarantine".into(),
            secondary: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(self.object.spec.pod.clone()),
                namespace: self.object.namespace(),
                uid: self.status.pod_uid.clone(),
                ..Default::default()
            }),
        });
    }

    /// Events are for people who look with kubectl; containment does not wait for them. The
    /// status and the custody log are the record.
    fn publish(&mut self) {
        let events = std::mem::take(&mut self.events);
        if events.is_empty() {
            return;
        }
        self.context.publish(self.object.object_ref(&()), events);
    }
}

/// What is said of fields of a status that the API did not keep.
#[must_use]
pub fn not_kept(fields: &str) -> String {
    format!(
        "The API did not keep {fields}: the custom resource definitions are of an older version than the controller. \
         Apply those of its version: kubectl apply --server-side --force-conflicts -f deploy/crds"
    )
}

/// Whether a collection was made since the quarantine was, by the API server's clock in whole seconds.
#[must_use]
pub fn is_younger(collection: &Collection, quarantine: &Quarantine) -> bool {
    collection.metadata.creation_timestamp >= quarantine.metadata.creation_timestamp
}

/// Writes under the name of this controller.
#[must_use]
pub fn manager() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..Default::default()
    }
}

/// A merge patch drops what is null, so what was saved and what is read back differ in it.
#[must_use]
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        value => value,
    }
}

/// Only the top-level fields that differ: the plan and the recorded objects are large and are
/// written once.
fn changed_fields(saved: &Value, status: &Value) -> Value {
    let fields = status.as_object().into_iter().flatten();
    let changed = fields
        .filter(|(key, value)| saved.get(key.as_str()) != Some(*value))
        .map(|(key, value)| (key.clone(), value.clone()));
    // A merge patch leaves alone what it doesn't name: what is gone must be named.
    let saved = saved.as_object().into_iter().flatten();
    let gone = saved
        .filter(|(key, _)| status.get(key.as_str()).is_none())
        .map(|(key, _)| (key.clone(), Value::Null));
    changed
        .chain(gone)
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Paths of what was written as status and is not in what is there; what is there with another value was kept.
fn lost(written: &Value, kept: &Value) -> Vec<String> {
    fn compare(path: &str, written: &Value, kept: Option<&Value>, lost: &mut Vec<String>) {
        match (written, kept) {
            (Value::Null, _) => {}
            (_, None) => lost.push(path.to_owned()),
            (Value::Object(written), Some(kept)) => {
                for (key, value) in written {
                    compare(&format!("{path}.{key}"), value, kept.get(key), lost);
                }
            }
            (Value::Array(written), Some(kept)) => {
                for (at, value) in written.iter().enumerate() {
                    // The same of each item is said once.
                    compare(&format!("{path}[]"), value, kept.get(at), lost);
                }
                lost.dedup();
            }
            _ => {}
        }
    }
    let mut lost = Vec::new();
    compare("status", written, Some(kept), &mut lost);
    lost
}

/// The API server refuses an event whose note has more than 1024 bytes.
pub(super) fn shortened(mut note: String) -> String {
    const LIMIT: usize = 1024;
    const MARK: &str = "…";
    if note.len() > LIMIT {
        let mut end = LIMIT - MARK.len();
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push_str(MARK);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_has_not_kept_of_a_status_is_named_and_what_it_has_is_not() {
        let status = json!({
            "phase": "Contained", "node": null,
            "undo": { "pod": { "annotations": { "a": null } }, "names": { "policy": "p" } },
            "steps": [{ "name": "Cordon", "more": 1 }, { "name": "Strip", "more": 2 }],
        });
        assert_eq!(
            lost(&status, &without_nulls(status.clone())),
            Vec::<String>::new()
        );
        let kept = json!({
            "phase": "Complete", "undo": { "pod": { "annotations": {} } },
            "steps": [{ "name": "Cordon" }, { "name": "Strip" }],
        });
        assert_eq!(
            lost(&status, &kept),
            ["status.steps[].more", "status.undo.names"]
        );
    }
}
