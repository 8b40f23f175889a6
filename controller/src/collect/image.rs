//! Freezes a container into an image on its node, saves that, and removes it from the node.
//!
//! The image's tag is the collection's name, so that no other collection ever names the same image.
//! It is removed only when it is stored and re-read: until then it may be the only copy of a
//! container that is gone. It is never left behind silently: if it can't be saved or removed, the
//! manifest, the custody log and a warning say that it is there; if there is no manifest, as the
//! collection is given up, the log and its status do (`left`).

use impound_evidence::{Alteration, AlterationKind, EvidencePath, image_name};
use impound_proto::agent::v1 as wire;
use tokio::sync::mpsc;
use tonic::Code;

use super::failure::{COMMIT, Failure, LOOK_UP, cut, cut_call, within};
use super::fetch::{Ask, Fetched, Wanted};
use super::note::{Image, Known};
use super::session::Session;
use super::{CollectError, instant};

impl Session<'_> {
    /// Makes the image of a container; none if an earlier run has, else its id or the reason why it can't be had.
    pub(super) async fn make_image(
        &self,
        known: &Known,
        image: &ImagePaths,
    ) -> Result<Option<Result<String, String>>, CollectError> {
        let made = self.made(image).await.is_some_and(|made| made.id.is_some());
        if made || self.stored(&image.path).is_some() {
            return Ok(None);
        }
        if let Some(why) = &self.job.unpaused {
            let what = format!("pause of container {}", known.container.name);
            let warning = format!("{what}: {why}; its image is made while it runs");
            self.warn(&what, warning).await?;
        }
        self.commit(known, image).await.map(Some)
    }

    /// Saves it. `made`: what [`Session::make_image`] said. `expected`: estimate of its size in bytes.
    pub(super) async fn save_image(
        &self,
        known: &Known,
        image: &ImagePaths,
        made: Option<Result<String, String>>,
        expected: u64,
    ) -> Result<(), CollectError> {
        if self.stored(&image.path).is_some() {
            return Ok(());
        }
        let made = match made {
            Some(made) => made,
            None => {
                // Made by a run that was interrupted. Made again only if it is surely gone.
                let id = self.made(image).await.and_then(|made| made.id);
                match self.save(image, id.as_deref(), expected).await? {
                    Fetched::Stored => return Ok(()),
                    Fetched::GivenUp(Some(Code::NotFound)) => self.commit(known, image).await?,
                    Fetched::GivenUp(_) => return self.left_on_node(&image.reference).await,
                }
            }
        };
        self.board.running(&image.path, 1, expected);
        // Also after a commit that failed: its answer may have been lost, or an earlier run's.
        let id = made.as_ref().ok().map(String::as_str);
        match (self.save(image, id, expected).await?, made) {
            (Fetched::Stored, Ok(_)) => Ok(()),
            (Fetched::Stored, Err(_)) => {
                let id = self.stored(&image.path).map(|record| record.source_id);
                self.note_made(known, image, id.unwrap_or_default()).await
            }
            (Fetched::GivenUp(Some(Code::NotFound)), Err(why)) => {
                // There is none: the commit's reason is the one.
                self.miss(&image.path, false, why);
                self.note(|note| note.images.remove(&image.reference))
                    .await
                    .map(drop)
            }
            (Fetched::GivenUp(_), Ok(_)) => self.left_on_node(&image.reference).await,
            (Fetched::GivenUp(_), Err(why)) => {
                self.miss(&image.path, false, why);
                self.left_on_node(&image.reference).await
            }
        }
    }

    /// Images that a crash has left on their node between storing and removing.
    pub(super) async fn images_left(&self) -> Result<Vec<ImagePaths>, CollectError> {
        let mut left = Vec::new();
        for known in self.noted(|note| note.containers.clone()).await {
            let image = self.image_paths(&known)?;
            let (Some(made), Some(record)) = (self.made(&image).await, self.stored(&image.path))
            else {
                continue;
            };
            if made.id.is_none() {
                self.note_made(&known, &image, record.source_id).await?;
            }
            left.push(image);
        }
        Ok(left)
    }

    /// Removes images from the node, beside everything else: those that are `left`, and those that come from `saved`,
    /// until it says that no other does.
    pub(super) async fn remove_images(
        &self,
        left: Vec<ImagePaths>,
        saved: &mut Saved,
    ) -> Result<(), CollectError> {
        for image in left {
            self.remove(&image).await?;
        }
        while let Some(Some(image)) = saved.recv().await {
            self.remove(&image).await?;
        }
        Ok(())
    }

    /// Hands an image on if it is stored. Its node has time to remove it until the manifest is made.
    pub(super) fn hand_on(&self, image: ImagePaths) {
        if self.stored(&image.path).is_some() {
            // Nobody is there to take it only if this run has failed.
            let _ = self.saved.send(Some(image));
        }
    }

    /// Says that no other image is made.
    pub(super) fn no_more_images(&self) {
        let _ = self.saved.send(None);
    }

    /// What the note says of an image that was made, or is being made.
    async fn made(&self, image: &ImagePaths) -> Option<Image> {
        self.noted(|note| note.images.get(&image.reference).cloned())
            .await
    }

    /// The image's name, which no other container's nor collection's image has, and where its archive goes.
    pub(super) fn image_paths(&self, known: &Known) -> Result<ImagePaths, CollectError> {
        let what = "the name of a container";
        let repository = image_name(known.file_name(), &known.container.id);
        let repository = repository.map_err(|source| CollectError::Name {
            at: self.at.to_string(),
            what,
            source,
        })?;
        Ok(ImagePaths {
            reference: format!("{repository}:{}", self.at.name),
            path: self.path(&format!("{}/{repository}.tar", known.directory), what)?,
            repository,
        })
    }

    async fn save(
        &self,
        image: &ImagePaths,
        id: Option<&str>,
        expected_bytes: u64,
    ) -> Result<Fetched, CollectError> {
        let wanted = Wanted {
            node: &self.job.target.node,
            paths: vec![image.path.clone()],
            ask: Ask::Save {
                reference: &image.reference,
                image: id,
            },
            expected_bytes,
            deadline: None,
        };
        let _of_node = self.collector.budget.turn(wanted.node).await;
        let _turn = self.collector.exports.acquire().await;
        self.fetch(&wanted).await
    }

    /// Makes the image and returns its id; the reason if it can't be had.
    async fn commit(
        &self,
        known: &Known,
        image: &ImagePaths,
    ) -> Result<Result<String, String>, CollectError> {
        let reference = &image.reference;
        self.note(|note| note.images.insert(reference.clone(), Image { id: None }))
            .await?;
        let attempts = self.collector.retry.attempts.max(1);
        let mut attempt = 1;
        loop {
            let failure = match self.commit_once(known, &image.repository).await {
                Ok(made) => {
                    let id = made.image_id.clone();
                    self.note_commit(known, image, made).await?;
                    return Ok(Ok(id));
                }
                Err(failure) => failure,
            };
            if failure.is_of_channel() {
                self.disconnect(&self.job.target.node).await;
            }
            // More attempts don't make room.
            let full = failure.code() == Some(Code::ResourceExhausted);
            let (why, again) = failure.reason()?;
            self.record_failed(&format!("commit of {reference}, attempt {attempt}"), &why)
                .await?;
            if !again || full || attempt >= attempts {
                return Ok(Err(format!("the container could not be committed: {why}")));
            }
            attempt += 1;
            tokio::time::sleep(self.collector.retry.before(attempt)).await;
        }
    }

    async fn commit_once(
        &self,
        known: &Known,
        repository: &str,
    ) -> Result<wire::CommitResponse, Failure> {
        let connection = self.connection(&self.job.target.node).await?;
        let message = wire::CommitRequest {
            container_id: known.container.id.clone(),
            repository: repository.to_owned(),
            tag: self.at.name.to_string(),
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
        let mut client = connection.client.clone();
        within(COMMIT, client.commit(self.request(message))).await
    }

    /// Removes a stored image from the node, unless that was done; a warning if that fails.
    async fn remove(&self, image: &ImagePaths) -> Result<(), CollectError> {
        if self.made(image).await.is_none() {
            return Ok(());
        }
        let reference = &image.reference;
        let node = &self.job.target.node;
        let attempts = self.collector.retry.attempts.max(1);
        let mut attempt = 1;
        let why = loop {
            let failure = match self.remove_once(reference).await {
                Ok(answer) => return self.note_removal(image, answer).await,
                Err(failure) => failure,
            };
            if failure.is_of_channel() {
                self.disconnect(node).await;
            }
            let (why, again) = failure.reason()?;
            if !again || attempt >= attempts {
                break why;
            }
            attempt += 1;
            tokio::time::sleep(self.collector.retry.before(attempt)).await;
        };
        let warning = format!(
            "image {reference} is stored but could not be removed from node {node}: {why}; remove it with `docker image rm {reference}`"
        );
        self.warn(
            &format!("removing image {reference} from node {node}"),
            warning,
        )
        .await?;
        self.note(|note| note.images.remove(reference))
            .await
            .map(drop)
    }

    async fn remove_once(&self, reference: &str) -> Result<wire::RemoveImageResponse, Failure> {
        let connection = self.connection(&self.job.target.node).await?;
        let message = wire::RemoveImageRequest {
            reference: reference.to_owned(),
        };
        let mut client = connection.client.clone();
        within(LOOK_UP, client.remove_image(self.request(message))).await
    }

    /// The image could not be saved: it stays, as it may be the only copy.
    async fn left_on_node(&self, reference: &str) -> Result<(), CollectError> {
        let node = &self.job.target.node;
        let warning = format!(
            "image {reference} may be on node {node} and could not be saved; save it there with `docker save`, then remove it with `docker image rm {reference}`"
        );
        self.warn(&format!("image {reference} on node {node}"), warning)
            .await
    }

    async fn note_commit(
        &self,
        known: &Known,
        image: &ImagePaths,
        made: wire::CommitResponse,
    ) -> Result<(), CollectError> {
        let reference = &image.reference;
        let id = cut(made.image_id);
        let (started, finished) = (instant(made.started), instant(made.finished));
        let api_call = cut_call(made.api_call);
        let done = |kind, effect: String| Alteration {
            kind,
            source_id: known.container.id.clone(),
            api_call: api_call.clone(),
            effect,
            artifacts: vec![image.path.clone()],
            started,
            finished,
        };
        self.note(|note| {
            if self.job.pause {
                let effect = "the container stood still while its image was made";
                let pause = done(AlterationKind::Pause, effect.to_owned());
                note.alterations.push(pause);
            }
            let effect = format!("image {reference} ({id}) was made on the node's disk");
            note.alterations.push(done(AlterationKind::Commit, effect));
            note.images
                .insert(reference.clone(), Image { id: Some(id) });
        })
        .await
    }

    /// An image whose commit was never answered, but that is there.
    async fn note_made(
        &self,
        known: &Known,
        image: &ImagePaths,
        id: String,
    ) -> Result<(), CollectError> {
        let reference = &image.reference;
        let paused = if self.job.pause {
            "; the container stood still meanwhile"
        } else {
            ""
        };
        let made = Alteration {
            kind: AlterationKind::Commit,
            source_id: known.container.id.clone(),
            api_call: self.commit_call(known, image),
            effect: format!(
                "image {reference} ({id}) was made on the node's disk{paused}; when is not known, as the answer was lost"
            ),
            artifacts: vec![image.path.clone()],
            started: None,
            finished: None,
        };
        self.note(|note| {
            note.alterations.push(made);
            note.images
                .insert(reference.clone(), Image { id: Some(id) });
        })
        .await
    }

    async fn note_removal(
        &self,
        image: &ImagePaths,
        answer: wire::RemoveImageResponse,
    ) -> Result<(), CollectError> {
        let reference = &image.reference;
        let effect = match answer.removed {
            true => "the image is gone from the node",
            false => {
                "the image was gone already: the answer to an earlier call was lost, or somebody else has removed it"
            }
        };
        let api_call = match answer.api_call.is_empty() {
            // The answer to an earlier attempt was lost.
            true => format!("DELETE /images/{reference}?force=false&noprune=true"),
            false => cut_call(answer.api_call),
        };
        self.note(|note| {
            let id = note.images.remove(reference).and_then(|image| image.id);
            note.alterations.push(Alteration {
                kind: AlterationKind::RemoveImage,
                source_id: id.unwrap_or_else(|| reference.clone()),
                api_call,
                effect: effect.to_owned(),
                artifacts: vec![image.path.clone()],
                started: instant(answer.started),
                finished: instant(answer.finished),
            });
        })
        .await
    }

    /// What the agent was asked to send: how it sent it is not known, as the answer was lost.
    fn commit_call(&self, known: &Known, image: &ImagePaths) -> String {
        format!(
            "POST /commit?container={}&repo={}&tag={}&pause={}",
            known.container.id, image.repository, self.at.name, self.job.pause
        )
    }
}

/// Where stored images come from that are to be removed from their node; nothing: no other comes.
pub(super) type Saved = mpsc::UnboundedReceiver<Option<ImagePaths>>;

/// An image of a container.
pub(super) struct ImagePaths {
    /// `compromised-<container>-<short id>`.
    repository: String,
    /// What the runtime knows it by: the repository, and the collection's name as its tag.
    reference: String,
    /// Its archive.
    pub(super) path: EvidencePath,
}
