//! `containment.json`: the Quarantine as it stood when everything else was stored: steps, checks,
//! warnings, evictions, drift and credentials, for whoever reads the evidence years later.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use impound_evidence::{Alteration, AlterationKind, EvidencePath, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::Deserialize;

use super::CollectError;
use super::session::Session;
use crate::resources::{IsolationStatus, QuarantineStatus, StepName, StepState, TableState};

/// File name in a collection.
const NAME: &str = "containment.json";

/// Attempts at reading it, each after a longer pause: an API that is away for a moment must not turn
/// into a collection that is partial.
const ATTEMPTS: u32 = 4;

/// What setting the table changed.
const SET: &str = "a table was set that drops everything in and out of the pod, but for what containment.json names";

/// Where the record of the pod's containment is read from.
#[async_trait]
pub trait Containment: Send + Sync {
    /// The object as the API server gives it, as JSON.
    ///
    /// # Errors
    /// In words.
    async fn read(&self) -> Result<Vec<u8>, String>;
}

/// The containment that a collection belongs to.
#[derive(Clone)]
pub struct ContainmentSource(pub Arc<dyn Containment>);

impl fmt::Debug for ContainmentSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContainmentSource")
    }
}

impl Session<'_> {
    /// Stores it, once; without one to be had the collection is partial and says why.
    pub(super) async fn store_containment(&self) -> Result<(), CollectError> {
        let Some(ContainmentSource(source)) = &self.job.containment else {
            return Ok(());
        };
        let path = self.path(NAME, "the record of the containment")?;
        if self.stored(&path).is_some() {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            match source.read().await {
                Ok(bytes) => {
                    self.note_isolation(&path, &bytes).await?;
                    return self.store_object(&path, &bytes).await;
                }
                Err(why) if attempt >= ATTEMPTS => {
                    let why = format!("the Quarantine could not be read: {why}");
                    self.record_failed(path.as_str(), &why).await?;
                    self.miss(&path, false, why);
                    return Ok(());
                }
                Err(why) => {
                    tracing::warn!(case = %self.at.case, reason = why, "the Quarantine is read again");
                    attempt += 1;
                    tokio::time::sleep(self.collector.retry.before(attempt)).await;
                }
            }
        }
    }

    /// Notes the table in the pod's network namespace as something that was changed on the node, once for each
    /// namespace that had one.
    async fn note_isolation(
        &self,
        at: &EvidencePath,
        quarantine: &[u8],
    ) -> Result<(), CollectError> {
        match isolation(at, quarantine) {
            Ok(None) => Ok(()),
            Ok(Some(isolated)) => self.note(|note| isolated.join(&mut note.alterations)).await,
            Err(error) => {
                let warning = format!(
                    "what isolation at the node changed is not among the manifest's alterations, as the status of the \
                     Quarantine is not understood ({error}): read {at}"
                );
                self.warn(at.as_str(), warning).await
            }
        }
    }
}

/// What isolation at the node changed.
struct Isolated {
    alteration: Alteration,
    /// The table was taken away, and which one it was is known no more.
    lifted: bool,
}

impl Isolated {
    /// Takes the place of what was noted of the same table by an attempt before, or stands beside what is of others.
    fn join(self, alterations: &mut Vec<Alteration>) {
        let Self { alteration, lifted } = self;
        let known = alterations.iter_mut().rev().find(|one| {
            let same = lifted || one.source_id == alteration.source_id;
            one.kind == AlterationKind::Isolate && same
        });
        match known {
            Some(known) if lifted => {
                known.effect = alteration.effect;
                known.artifacts = alteration.artifacts;
            }
            Some(known) => *known = alteration,
            None => alterations.push(alteration),
        }
    }
}

/// What isolation at the node changed, as the status of the Quarantine has it; nothing if there never was any.
///
/// # Errors
/// If the object is not a Quarantine's.
fn isolation(at: &EvidencePath, quarantine: &[u8]) -> Result<Option<Isolated>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Object {
        status: Option<QuarantineStatus>,
    }
    let object: Object = serde_json::from_slice(quarantine)?;
    let status = object.status.unwrap_or_default();
    let table = status.isolation.as_ref();
    let table = table.filter(|table| !table.sandbox.is_empty());
    Ok(match table {
        Some(table) => Some(seen(at, table)),
        None => lifted(at, &status),
    })
}

/// A table that was there when it was last looked for, or should have been.
fn seen(at: &EvidencePath, table: &IsolationStatus) -> Isolated {
    let looked = match &table.looked {
        Some(MicroTime(looked)) => format!("the last look, at {looked:.6},"),
        None => "the last look".to_owned(),
    };
    let problem = match table.problem.as_str() {
        "" => "the Quarantine does not say why",
        problem => problem,
    };
    let end = match table.state {
        TableState::InForce => format!("at {looked} it was in force"),
        TableState::Missing => {
            format!("at {looked} it was NOT there as set, and could not be set again: {problem}")
        }
        TableState::Unknown => {
            format!("at {looked} it could NOT be told whether it was still there: {problem}")
        }
    };
    let since = table.since.as_ref();
    let namespace = table.netns_inode;
    Isolated {
        alteration: Alteration {
            kind: AlterationKind::Isolate,
            source_id: table.sandbox.clone(),
            api_call: format!(
                "nftables over netlink: table inet impound in network namespace {namespace}"
            ),
            effect: format!("{SET}; {end}"),
            artifacts: vec![at.clone()],
            started: since.and_then(|MicroTime(since)| {
                Timestamp::from_unix(since.as_second(), since.subsec_nanosecond())
            }),
            finished: None,
        },
        lifted: false,
    }
}

/// A table that was set and taken away; nothing if none was set.
fn lifted(at: &EvidencePath, status: &QuarantineStatus) -> Option<Isolated> {
    let step = |name| status.steps.iter().find(move |step| step.name == name);
    step(StepName::Isolate).filter(|step| step.state == StepState::Done)?;
    let how = match step(StepName::UndoIsolate) {
        Some(undo) if !undo.message.is_empty() => undo.message.as_str(),
        _ => "the Quarantine does not say how",
    };
    Some(Isolated {
        alteration: Alteration {
            kind: AlterationKind::Isolate,
            // The sandbox is not in the status any more.
            source_id: status.pod_uid.clone().unwrap_or_default(),
            api_call: "nftables over netlink: table inet impound in the pod's network namespace"
                .to_owned(),
            effect: format!("{SET}; it was not in force any more at the end: {how}"),
            artifacts: vec![at.clone()],
            started: None,
            finished: None,
        },
        lifted: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: &str) -> Option<Isolated> {
        let object = format!(r#"{{"status":{status}}}"#);
        isolation(&"containment.json".parse().unwrap(), object.as_bytes()).unwrap()
    }

    fn table(state: &str, sandbox: &str) -> String {
        format!(
            r#"{{"isolation":{{{state},"sandbox":"{sandbox}","netnsInode":4026532566,"since":"2026-01-31T03:04:05.678901Z","looked":"2026-01-31T04:00:00.000000Z"}}}}"#
        )
    }

    const IN_FORCE: &str = r#""state":"InForce""#;
    const LIFTED: &str = r#"{"podUid":"u-1","steps":[{"name":"Isolate","state":"Done"},{"name":"UndoIsolate","state":"Done","message":"the pod is on the network again"}]}"#;

    #[test]
    fn a_table_that_was_set_is_an_alteration_of_the_node_and_one_that_was_not_is_none() {
        let isolated = read(&table(IN_FORCE, "abc")).unwrap().alteration;
        assert_eq!(
            (isolated.kind, isolated.source_id.as_str()),
            (AlterationKind::Isolate, "abc")
        );
        assert!(isolated.api_call.ends_with("network namespace 4026532566"));
        assert_eq!(
            isolated.started.unwrap().to_string(),
            "2026-01-31T03:04:05.678901Z"
        );
        for never in [
            r#"{"isolation":{"state":"Unknown","problem":"off"}}"#,
            r#"{"steps":[{"name":"Isolate","state":"Failed"}]}"#,
            r#"{"steps":[{"name":"UndoIsolate","state":"Done"}]}"#,
            "{}",
            "null",
        ] {
            assert!(read(never).is_none(), "{never}");
        }
    }

    #[test]
    fn a_status_that_is_not_understood_is_never_taken_for_one_without_isolation() {
        let at = "containment.json".parse().unwrap();
        for other in [
            r#"{"status":{"isolation":{"sandbox":"abc","state":"Elsewhere"}}}"#,
            r#"{"status":{"steps":"none"}}"#,
            "[]",
        ] {
            assert!(isolation(&at, other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn a_table_is_called_in_force_only_if_it_was_seen_so_and_one_that_was_lifted_is_named() {
        let missing = table(r#""state":"Missing","problem":"no table""#, "abc");
        let unknown = table(r#""state":"Unknown","problem":"no agent""#, "abc");
        for (status, end) in [
            (table(IN_FORCE, "abc"), "it was in force"),
            (
                missing,
                "it was NOT there as set, and could not be set again: no table",
            ),
            (
                unknown,
                "it could NOT be told whether it was still there: no agent",
            ),
            (
                LIFTED.to_owned(),
                "it was not in force any more at the end: the pod is on the network again",
            ),
        ] {
            let effect = read(&status).unwrap().alteration.effect;
            assert!(effect.starts_with(SET) && effect.ends_with(end), "{effect}");
        }
    }

    #[test]
    fn each_namespace_has_one_alteration_that_says_what_was_last_known() {
        let mut noted = Vec::new();
        let (one, other) = (table(IN_FORCE, "abc"), table(IN_FORCE, "def"));
        let missing = table(r#""state":"Missing","problem":"no table""#, "abc");
        for status in [&*one, &missing, &other, LIFTED] {
            read(status).unwrap().join(&mut noted);
        }
        let seen: Vec<_> = noted
            .iter()
            .map(|one| (one.source_id.as_str(), one.effect.contains("NOT there")))
            .collect();
        assert_eq!(seen, [("abc", true), ("def", false)]);
        assert!(noted[1].effect.contains("not in force any more"));
        let mut noted = Vec::new();
        read(LIFTED).unwrap().join(&mut noted);
        assert_eq!(noted[0].source_id, "u-1");
    }
}
