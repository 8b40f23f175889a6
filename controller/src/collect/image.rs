//! Freezes a container into an image on its node, saves that, and removes it from the node.
//!
//! The image is removed only when it is stored and re-read. It is never left behind silently: if it
//! can't be saved or removed, the manifest, the custody log and a warning say that it is there.

use impound_evidence::{Alteration, AlterationKind, EvidencePath};
use impound_proto::agent::v1 as wire;
use tonic::Code;

use super::fetch::{Ask, Failure, Wanted};
use super::note::{Image, Known};
use super::session::Session;
use super::{CollectError, instant};

/// The tag that the runtime gives an image without one.
const TAG: &str = "latest";

impl Session<'_> {
    /// `repository`: the image's name. `path`: where its archive goes. `expected`: estimate of its
    /// size in bytes.
    pub(super) async fn image(
        &self,
        known: &Known,
        repository: &str,
        path: EvidencePath,
        expected: u64,
    ) -> Result<(), CollectError> {
        let reference = format!("{repository}:{TAG}");
        let image = self
            .noted(|note| note.images.get(&reference).map(|image| image.made))
            .await;
        if self.stored(&path).is_some() {
            // The crash came between storing and removing.
            return if image.is_some() {
                self.remove(&reference).await
            } else {
                Ok(())
            };
        }
        if image != Some(true) || !self.is_on_node(&reference).await? {
            self.board.running(&path, 1, expected);
            if let Err(why) = self.commit(known, repository, &reference).await? {
                self.record_failed(&format!("{path}, commit"), &why).await?;
                self.miss(&path, false, why);
                return Ok(());
            }
        }
        let node = self.job.target.node.as_str();
        let wanted = Wanted {
            node,
            paths: vec![path.clone()],
            ask: Ask::Save {
                reference: &reference,
            },
            expected_bytes: expected,
        };
        if self.fetch(&wanted).await?.is_some() {
            return self.remove(&reference).await;
        }
        let warning = format!(
            "image {reference} stays on node {node}, because it could not be saved; another collection makes it anew, or remove it with `docker image rm {reference}`"
        );
        self.record_failed(&format!("image {reference} on node {node}"), &warning)
            .await?;
        self.warn(warning);
        Ok(())
    }

    /// Makes the image; the reason if it can't be had.
    async fn commit(
        &self,
        known: &Known,
        repository: &str,
        reference: &str,
    ) -> Result<Result<(), String>, CollectError> {
        self.note(|note| {
            note.images
                .insert(reference.to_owned(), Image { made: false })
        })
        .await?;
        let attempts = self.collector.retry.attempts.max(1);
        let mut why = String::new();
        for attempt in 1..=attempts {
            if attempt > 1 {
                tokio::time::sleep(self.collector.retry.before(attempt)).await;
            }
            let failure = match self.commit_once(known, repository).await {
                Ok(made) => {
                    self.note_commit(known, reference, made).await?;
                    return Ok(Ok(()));
                }
                Err(failure) => failure,
            };
            let (code, channel) = match &failure {
                Failure::Attempt { code, channel, .. } => (*code, *channel),
                Failure::Fatal(_) => (None, false),
            };
            let again;
            (why, again) = failure.reason()?;
            if channel {
                self.disconnect(&self.job.target.node).await;
            }
            // An image of that name is one that a run of ours has left: made anew.
            let stale = code == Some(Code::FailedPrecondition)
                && self
                    .remove_once(reference)
                    .await
                    .is_ok_and(|removed| removed);
            if stale {
                self.note_removal(reference, "an earlier image of the same name was removed")
                    .await?;
                self.note(|note| {
                    note.images
                        .insert(reference.to_owned(), Image { made: false })
                })
                .await?;
            } else if !again || code == Some(Code::ResourceExhausted) {
                break;
            }
        }
        // A commit whose answer was lost may have made it all the same.
        if let Ok(true) = self.remove_once(reference).await {
            self.note_removal(reference, "an image whose commit had failed was removed")
                .await?;
        }
        Ok(Err(format!("the container could not be committed: {why}")))
    }

    async fn commit_once(
        &self,
        known: &Known,
        repository: &str,
    ) -> Result<wire::CommitResponse, Failure> {
        let mut client = self.connection(&self.job.target.node).await?.client.clone();
        let message = wire::CommitRequest {
            container_id: known.container.id.clone(),
            repository: repository.to_owned(),
            tag: TAG.to_owned(),
            message: format!("impound case {}: {}", self.at.case, self.job.reason),
            author: self.job.requested_by.clone(),
            labels: [(
                "dev.impound.collection".to_owned(),
                self.at.name.to_string(),
            )]
            .into(),
            case_id: self.at.case.to_string(),
            pause: self.job.pause,
        };
        let answer = client.commit(self.request(message)).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| Failure::status(&status))
    }

    /// Whether the image that an interrupted run has made can still be saved.
    async fn is_on_node(&self, reference: &str) -> Result<bool, CollectError> {
        let connection = match self.connection(&self.job.target.node).await {
            Ok(connection) => connection,
            Err(Failure::Fatal(error)) => return Err(error),
            Err(Failure::Attempt { .. }) => return Ok(false),
        };
        let message = wire::SaveImageRequest {
            reference: reference.to_owned(),
        };
        Ok(connection
            .client
            .clone()
            .save_image(self.request(message))
            .await
            .is_ok())
    }

    /// Removes a stored image from the node; a warning if that fails.
    async fn remove(&self, reference: &str) -> Result<(), CollectError> {
        let attempts = self.collector.retry.attempts.max(1);
        let mut why = String::new();
        for attempt in 1..=attempts {
            if attempt > 1 {
                tokio::time::sleep(self.collector.retry.before(attempt)).await;
            }
            let failure = match self.remove_once(reference).await {
                Ok(true) => {
                    return self
                        .note_removal(reference, "the image is gone from the node")
                        .await;
                }
                Ok(false) => {
                    return self
                        .note_removal(reference, "the image was gone already")
                        .await;
                }
                Err(failure) => failure,
            };
            if let Failure::Attempt { channel: true, .. } = &failure {
                self.disconnect(&self.job.target.node).await;
            }
            let again;
            (why, again) = failure.reason()?;
            if !again {
                break;
            }
        }
        let node = &self.job.target.node;
        let warning = format!(
            "image {reference} is stored but could not be removed from node {node}: {why}; remove it with `docker image rm {reference}`"
        );
        self.record_failed(
            &format!("removing image {reference} from node {node}"),
            &warning,
        )
        .await?;
        self.warn(warning);
        Ok(())
    }

    async fn remove_once(&self, reference: &str) -> Result<bool, Failure> {
        let mut client = self.connection(&self.job.target.node).await?.client.clone();
        let message = wire::RemoveImageRequest {
            reference: reference.to_owned(),
        };
        let answer = client.remove_image(self.request(message)).await;
        answer
            .map(|answer| answer.into_inner().removed)
            .map_err(|status| Failure::status(&status))
    }

    async fn note_commit(
        &self,
        known: &Known,
        reference: &str,
        made: wire::CommitResponse,
    ) -> Result<(), CollectError> {
        let container = &known.container.id;
        let done = |kind, effect: String| Alteration {
            kind,
            source_id: container.clone(),
            api_call: format!(
                "POST /commit?container={container}&pause={}",
                self.job.pause
            ),
            effect,
            started: instant(made.started),
            finished: instant(made.finished),
        };
        self.note(|note| {
            if self.job.pause {
                let effect = "the container stood still while its image was made";
                note.alterations
                    .push(done(AlterationKind::Pause, effect.to_owned()));
            }
            let effect = format!(
                "image {} ({}) was made on the node's disk",
                made.reference, made.image_id
            );
            note.alterations.push(done(AlterationKind::Commit, effect));
            note.images
                .insert(reference.to_owned(), Image { made: true });
        })
        .await
    }

    async fn note_removal(&self, reference: &str, effect: &str) -> Result<(), CollectError> {
        let removal = Alteration {
            kind: AlterationKind::RemoveImage,
            source_id: reference.to_owned(),
            api_call: format!("DELETE /images/{reference}"),
            effect: effect.to_owned(),
            started: None,
            finished: None,
        };
        self.note(|note| {
            note.alterations.push(removal);
            note.images.remove(reference);
        })
        .await
    }
}
