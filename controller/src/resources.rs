//! The custom resources of group `impound.dev`: what a responder asks for, and what became of it.
//!
//! Generated YAML is checked in under `deploy/crds/` and compared by a test.

pub mod collection;
pub mod isolation;
pub mod quarantine;
pub mod sweep;
pub mod undo;

pub use collection::{
    ArtifactState, ArtifactStatus, Collection, CollectionPhase, CollectionSpec, CollectionStatus,
};
pub use isolation::{
    AllowDirection, AllowProtocol, AllowRule, AttemptOrigin, AttemptOutcome, AttemptStatus,
    IsolationSpec, IsolationStatus, TableState, Verdict, WeaknessKind, WeaknessStatus,
};
pub use quarantine::{
    ApiCall, Credential, Drift, EvictionState, EvictionStatus, Fact, FactState, LaterCollection,
    Quarantine, QuarantinePhase, QuarantineSpec, QuarantineStatus, ReleaseSpec, StepName,
    StepState, StepStatus,
};
pub use sweep::{
    Selection, Sweep, SweepCounts, SweepException, SweepPhase, SweepRoster, SweepRosterSpec,
    SweepRosterStatus, SweepSpec, SweepState, SweepStatus, SweepTarget, TargetState, TargetStatus,
};
pub use undo::{Before, DenyUndo, Label, Names, NodeUndo, PodUndo, PolicyUndo, TaintRecord, Undo};

use impound_evidence::age::{AgeError, Recipient};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

/// API group of the custom resources.
pub const GROUP: &str = "impound.dev";

/// Case id as [`impound_evidence::CaseId`] accepts it, but for its length: no two dots in a row.
pub(crate) const CASE_PATTERN: &str = r"^[A-Za-z0-9]+(\.?([_-]+\.?)*[A-Za-z0-9]+)*$";

/// Name of an object: a DNS-1123 subdomain, as the API server has it for pods, nodes and our own.
pub(crate) const NAME_PATTERN: &str =
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// Public key of an age X25519 recipient.
pub(crate) const RECIPIENT_PATTERN: &str = "^age1[02-9ac-hj-np-z]{58}$";

/// The recipients that an object names. The pattern does not see a mistyped letter; this does.
///
/// # Errors
/// If one is none, or there are too many.
pub fn recipients(texts: &[String]) -> Result<Vec<Recipient>, AgeError> {
    match texts.len() > RECIPIENTS {
        true => Err(AgeError::Recipients(texts.len())),
        false => texts.iter().map(|text| text.parse()).collect(),
    }
}

/// Most recipients that an object names.
pub const RECIPIENTS: usize = 16;

/// A text that says something.
pub(crate) const TEXT_PATTERN: &str = r"\S";

/// The definitions in the order in which they are to be applied.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let all = [
        Quarantine::crd(),
        Collection::crd(),
        Sweep::crd(),
        SweepRoster::crd(),
    ];
    all.into_iter().map(with_known_formats).collect()
}

/// The API server warns about integer formats that OpenAPI doesn't know; `minimum: 0` stays.
fn with_known_formats(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let text = serde_json::to_string(&definition).map(|text| {
        text.replace(r#""format":"uint32""#, r#""format":"int32""#)
            .replace(r#""format":"uint64""#, r#""format":"int64""#)
    });
    text.and_then(|text| serde_json::from_str(&text))
        .unwrap_or(definition)
}

/// The present moment in the resolution that status fields have (microseconds).
#[must_use]
pub fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// Schema of a field that holds a foreign object exactly as the API server gave it.
pub(crate) fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// Prints the definitions as YAML documents.
///
/// # Errors
/// If the output can't be written.
pub fn print_definitions(out: &mut impl std::io::Write) -> anyhow::Result<()> {
    for definition in definitions() {
        write!(out, "---\n{}", yaml(&definition)?)?;
    }
    Ok(())
}

/// Any objects as the YAML documents of one file.
///
/// # Errors
/// If one can't be serialised.
pub fn documents(objects: &[Value]) -> anyhow::Result<String> {
    let mut all = String::new();
    for object in objects {
        all.push_str("---\n");
        all.push_str(&serde_saphyr::to_string(object)?);
    }
    Ok(all)
}

/// One definition as YAML, as it is checked in.
///
/// # Errors
/// If it can't be serialised.
pub fn yaml(definition: &CustomResourceDefinition) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(definition)?)
}
