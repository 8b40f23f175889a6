//! Has a container stand still while it is exported, for no longer than the pod's own probes allow.
//!
//! The agent lets go at the end of the time whatever becomes of us. A container is paused once, and all of
//! a pod's pauses together stay within its patience, also over a crash of this program: probes count
//! failures in a row, and what failed during one pause may not have recovered before the next.

use std::time::Duration;

use impound_evidence::{Alteration, AlterationKind, Consistency, EvidencePath, Timestamp};
use impound_proto::agent::v1 as wire;
use tokio::time::Instant;

use super::failure::{Failure, within};
use super::note::Known;
use super::session::Session;
use super::{CollectError, instant};
use crate::locked::locked;

/// Longest time for a pause and for letting go: the engine needs milliseconds.
const PAUSE: Duration = Duration::from_secs(10);

/// A shorter pause is not worth the disturbance: the beginning of any export takes as long.
const LEAST: Duration = Duration::from_millis(500);

/// A container that does not change while it is read.
#[derive(Debug)]
pub(super) enum Standstill {
    /// It has ended, so nothing in it moves.
    Ended,
    /// The agent has paused it.
    Frozen(Frozen),
}

/// A pause that was begun. Times by the agent's clock.
#[derive(Debug)]
pub(super) struct Frozen {
    container: String,
    /// What it stands still for.
    artifact: EvidencePath,
    freeze: String,
    begun: Instant,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Standstill {
    /// What can be said of bytes that were read from `started` to `finished`, in one unbroken stream: the
    /// agent that sent it also held the pause until its time was over.
    pub(super) fn consistency(
        &self,
        started: Option<Timestamp>,
        finished: Option<Timestamp>,
    ) -> Consistency {
        let Self::Frozen(frozen) = self else {
            return Consistency::Frozen;
        };
        let during = |time: Option<Timestamp>| {
            let (time, since, until) = (time?, frozen.since?, frozen.until?);
            Some(since <= time && time <= until)
        };
        match (during(started), during(finished)) {
            (Some(true), Some(true)) => Consistency::Frozen,
            (Some(true), _) => Consistency::PartlyFrozen,
            _ => Consistency::Live,
        }
    }
}

impl Session<'_> {
    /// Before the export of a container: has it stand still, if that is wanted and possible. Why it is not
    /// is recorded, and it is read while it runs.
    pub(super) async fn stand_still(
        &self,
        known: &Known,
        artifact: &EvidencePath,
    ) -> Result<(), CollectError> {
        let id = known.container.id.as_str();
        if ["exited", "dead"].contains(&known.container.state.as_str()) {
            *locked(&self.standstill) = Some(Standstill::Ended);
            return Ok(());
        }
        let Some(patience) = self.job.freeze else {
            return Ok(());
        };
        let (again, used) = self
            .noted(|note| (note.frozen.contains_key(id), note.frozen.values().sum()))
            .await;
        let left = patience.saturating_sub(Duration::from_millis(used));
        let what = format!("freeze of container {}", known.container.name);
        if again {
            let why = "it was paused before and is not paused twice";
            return self
                .warn(&what, format!("{what}: {why}; it is read while it runs"))
                .await;
        }
        if left < LEAST {
            let why = "the pod's own probes allow no (further) standstill, or the kubelet restarts a container";
            return self
                .warn(&what, format!("{what}: {why}; it is read while it runs"))
                .await;
        }
        // Before the call: whether it has its effect is not known if the answer is lost.
        let limit = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        self.note(|note| note.frozen.insert(id.to_owned(), limit.into()))
            .await?;
        match self.freeze_once(id, artifact, limit).await {
            Ok(frozen) => {
                *locked(&self.standstill) = Some(Standstill::Frozen(frozen));
                Ok(())
            }
            Err(failure) => {
                if failure.is_of_channel() {
                    self.disconnect(&self.job.target.node).await;
                }
                let (why, _) = failure.reason()?;
                self.warn(&what, format!("{what}: {why}; it is read while it runs"))
                    .await
            }
        }
    }

    /// After the last byte, or the failure: lets the container go on, and notes how long it stood.
    pub(super) async fn let_go(&self) -> Result<Option<Standstill>, CollectError> {
        let taken = locked(&self.standstill).take();
        let Some(Standstill::Frozen(frozen)) = taken else {
            return Ok(taken);
        };
        let thawed = self.thaw_once(&frozen.freeze).await;
        let stood = u64::try_from(frozen.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (finished, how) = match thawed {
            Ok(thawed) if thawed.by_deadline => (
                instant(thawed.thawed),
                "until its probes allowed no more".to_owned(),
            ),
            Ok(thawed) => (instant(thawed.thawed), "while it was exported".to_owned()),
            Err(failure) => {
                if failure.is_of_channel() {
                    self.disconnect(&self.job.target.node).await;
                }
                let (why, _) = failure.reason()?;
                let until = frozen
                    .until
                    .map_or_else(String::new, |until| format!(" ({until})"));
                (
                    None,
                    format!(
                        "at the latest until its time was over{until}, since the agent could not be told to let go: {why}"
                    ),
                )
            }
        };
        let id = &frozen.container;
        let pause = Alteration {
            kind: AlterationKind::Pause,
            source_id: id.clone(),
            api_call: format!("POST /containers/{id}/pause, then POST /containers/{id}/unpause"),
            effect: format!("the container stood still {how}"),
            started: frozen.since,
            finished,
            artifacts: vec![frozen.artifact.clone()],
        };
        self.note(|note| {
            if finished.is_some()
                && let Some(granted) = note.frozen.get_mut(id)
            {
                *granted = (*granted).min(stood);
            }
            note.alterations.push(pause);
        })
        .await?;
        Ok(Some(Standstill::Frozen(frozen)))
    }

    async fn freeze_once(
        &self,
        container: &str,
        artifact: &EvidencePath,
        limit_ms: u32,
    ) -> Result<Frozen, Failure> {
        let connection = self.connection(&self.job.target.node).await?;
        let message = wire::FreezeRequest {
            container_ids: vec![container.to_owned()],
            limit_ms,
        };
        let begun = Instant::now();
        let mut client = connection.client.clone();
        let frozen = within(PAUSE, client.freeze(self.request(message))).await?;
        Ok(Frozen {
            container: container.to_owned(),
            artifact: artifact.clone(),
            freeze: frozen.freeze_id,
            begun,
            since: instant(frozen.frozen),
            until: instant(frozen.until),
        })
    }

    async fn thaw_once(&self, freeze: &str) -> Result<wire::ThawResponse, Failure> {
        let connection = self.connection(&self.job.target.node).await?;
        let message = wire::ThawRequest {
            freeze_id: freeze.to_owned(),
        };
        let mut client = connection.client.clone();
        within(PAUSE, client.thaw(self.request(message))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_called_frozen_only_if_the_pause_lasted_from_the_first_to_the_last() {
        let at = |second: i64| Timestamp::from_unix(second, 0);
        let frozen = Standstill::Frozen(Frozen {
            container: String::new(),
            artifact: "artifacts/a".parse().unwrap(),
            freeze: String::new(),
            begun: Instant::now(),
            since: at(10),
            until: at(20),
        });
        let said = |started, finished| frozen.consistency(started, finished);
        assert_eq!(said(at(10), at(20)), Consistency::Frozen);
        assert_eq!(said(at(11), at(21)), Consistency::PartlyFrozen);
        assert_eq!(said(at(9), at(15)), Consistency::Live);
        assert_eq!(said(at(21), at(22)), Consistency::Live);
        assert_eq!(said(None, None), Consistency::Live);
        assert_eq!(
            Standstill::Ended.consistency(None, None),
            Consistency::Frozen
        );
    }
}
