//! Gets one artifact from the agent into the store: attempt after attempt, each recorded.

use impound_evidence::{ArtifactRecord, Completeness, EvidencePath, Method, Timestamp};
use impound_proto::agent::v1 as wire;
use impound_proto::tls::explain;
use tonic::{Code, Status};

use super::diff;
use super::note::Begun;
use super::receive::{self, ReceiveError};
use super::session::Session;
use super::{CollectError, instant};
use crate::agents::AgentError;
use crate::describe::describe;
use crate::store::{Content, ObjectWriter, StoreError};

/// What to ask for, and where it goes.
pub(super) struct Wanted<'w> {
    /// Whose agent.
    pub(super) node: &'w str,
    /// diff.txt, and diff.jsonl beside it, for a diff; one path for everything else.
    pub(super) paths: Vec<EvidencePath>,
    pub(super) ask: Ask<'w>,
    /// Estimate in bytes; 0: not known.
    pub(super) expected_bytes: u64,
}

/// The call.
#[derive(Clone, Copy)]
pub(super) enum Ask<'w> {
    Inspect { container: &'w str },
    Diff { container: &'w str },
    Export { container: &'w str },
    Save { reference: &'w str },
}

/// Why an attempt failed.
pub(super) enum Failure {
    /// Nothing can be recorded any more: the run ends.
    Fatal(CollectError),
    /// Only this attempt failed.
    Attempt {
        why: String,
        /// Whether another one can help.
        again: bool,
        /// Whether the connection is to blame.
        channel: bool,
        /// The status, if the agent gave one.
        code: Option<Code>,
    },
}

impl Failure {
    pub(super) fn agent(error: &AgentError) -> Self {
        Self::Attempt {
            why: describe(error),
            again: error.is_transient(),
            channel: true,
            code: None,
        }
    }

    pub(super) fn status(status: &Status) -> Self {
        let settled = matches!(
            status.code(),
            Code::NotFound
                | Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented
        );
        let channel = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled
        );
        let why = format!("the agent answered: {}", explain(status));
        Self::Attempt {
            why,
            again: !settled,
            channel,
            code: Some(status.code()),
        }
    }

    /// The reason and whether another attempt can help; the error if there can't be one.
    pub(super) fn reason(self) -> Result<(String, bool), CollectError> {
        match self {
            Self::Fatal(error) => Err(error),
            Self::Attempt { why, again, .. } => Ok((why, again)),
        }
    }

    fn now(why: impl Into<String>, again: bool) -> Self {
        Self::Attempt {
            why: why.into(),
            again,
            channel: false,
            code: None,
        }
    }

    fn receive(error: &ReceiveError) -> Self {
        match error {
            ReceiveError::Status(status) => Self::status(status),
            ReceiveError::Store(error) => Self::store(error),
            error => Self::now(describe(error), true),
        }
    }

    fn store(error: &StoreError) -> Self {
        Self::now(describe(error), !error.is_full())
    }
}

impl From<CollectError> for Failure {
    fn from(error: CollectError) -> Self {
        Self::Fatal(error)
    }
}

impl Session<'_> {
    /// Gets an artifact unless it is stored already. Returns the content of its first path, or
    /// nothing if it was given up, which is recorded.
    pub(super) async fn fetch(&self, wanted: &Wanted<'_>) -> Result<Option<Content>, CollectError> {
        if let Some(content) = self.have(wanted) {
            return Ok(Some(content));
        }
        let attempts = self.collector.retry.attempts.max(1);
        for attempt in 1..=attempts {
            if attempt > 1 {
                tokio::time::sleep(self.collector.retry.before(attempt)).await;
            }
            for path in &wanted.paths {
                self.board.running(path, attempt, wanted.expected_bytes);
            }
            let failure = match self.attempt(wanted, attempt == attempts).await {
                Ok(content) => return Ok(Some(content)),
                Err(failure) => failure,
            };
            if let Failure::Attempt { channel: true, .. } = &failure {
                self.disconnect(wanted.node).await;
            }
            let (why, again) = failure.reason()?;
            let last = !again || attempt == attempts;
            for path in wanted
                .paths
                .iter()
                .filter(|path| self.stored(path).is_none())
            {
                self.record_failed(&format!("{path}, attempt {attempt}"), &why)
                    .await?;
                self.board.broke(path, &why);
                if last {
                    self.miss(
                        path,
                        self.has_partial(path),
                        format!("{why} (after {attempt} of {attempts} attempts)"),
                    );
                }
            }
            if last {
                break;
            }
        }
        Ok(None)
    }

    /// The content of the first path, if all are stored.
    fn have(&self, wanted: &Wanted<'_>) -> Option<Content> {
        let mut records = wanted.paths.iter().map(|path| self.stored(path));
        let first = records.next()??;
        records.all(|record| record.is_some()).then_some(Content {
            size: first.size,
            sha256: first.sha256,
        })
    }

    fn has_partial(&self, path: &EvidencePath) -> bool {
        let prefix = format!("{path}.partial-");
        self.all_stored()
            .iter()
            .any(|record| record.path.as_str().starts_with(&prefix))
    }

    async fn attempt(&self, wanted: &Wanted<'_>, last: bool) -> Result<Content, Failure> {
        match (wanted.ask, wanted.paths.as_slice()) {
            (Ask::Diff { container }, [text, lines]) => {
                self.attempt_diff(wanted.node, container, text, lines).await
            }
            (ask, [path]) => self.attempt_stream(wanted.node, ask, path, last).await,
            _ => Err(Failure::now(
                "an artifact was asked for with the wrong number of paths",
                false,
            )),
        }
    }

    async fn attempt_stream(
        &self,
        node: &str,
        ask: Ask<'_>,
        path: &EvidencePath,
        last: bool,
    ) -> Result<Content, Failure> {
        let connection = self.connection(node).await?;
        let mut client = connection.client.clone();
        let offset = Some(connection.clock_offset_ms);
        let received_started = Timestamp::now();
        let (method, source, opened) = match ask {
            Ask::Inspect { container } => {
                let message = wire::InspectContainerRequest {
                    container_id: container.to_owned(),
                };
                (
                    Method::Inspect,
                    Some(container),
                    client.inspect_container(self.request(message)).await,
                )
            }
            Ask::Export { container } => {
                let message = wire::ExportRequest {
                    container_id: container.to_owned(),
                };
                (
                    Method::Export,
                    Some(container),
                    client.export(self.request(message)).await,
                )
            }
            Ask::Save { reference } => {
                let message = wire::SaveImageRequest {
                    reference: reference.to_owned(),
                };
                (
                    Method::Commit,
                    None,
                    client.save_image(self.request(message)).await,
                )
            }
            Ask::Diff { .. } => return Err(Failure::now("a diff is no stream of bytes", false)),
        };
        let mut stream = opened
            .map_err(|status| Failure::status(&status))?
            .into_inner();
        let header = receive::header(&mut stream)
            .await
            .map_err(|error| Failure::receive(&error))?;
        if let Some(source) = source.filter(|source| *source != header.source_id) {
            let why = format!(
                "asked for container {source}, the agent answered with {:?}",
                header.source_id
            );
            return Err(Failure::now(why, false));
        }
        let begun = Begun {
            media_type: header.media_type,
            method,
            api_call: header.api_call,
            source_id: header.source_id,
            started: instant(header.started),
            received_started,
        };
        let mut writer = self.begin_object(path, &begun).await?;
        let is_tar = path.as_str().ends_with(".tar");
        let received = receive::body(&mut stream, writer.as_mut(), is_tar, |bytes| {
            self.board.received(path, bytes)
        })
        .await;
        let (failure, reasons, finished) = match received {
            Ok(received) => match received.completeness {
                Completeness::Complete => {
                    let record = record(path, &begun, received.content, instant(received.finished));
                    return self.finish_objects(vec![(record, writer)], offset).await;
                }
                Completeness::Incomplete { reasons } => {
                    let failure = Failure::now(
                        format!("the artifact is incomplete: {}", reasons.join("; ")),
                        true,
                    );
                    (failure, reasons, instant(received.finished))
                }
            },
            Err(error) => {
                let failure = Failure::receive(&error);
                let reasons = vec![describe(&error)];
                if matches!(&error, ReceiveError::Store(error) if error.is_full()) {
                    // Room to record and seal is worth more than the beginning of an artifact.
                    writer
                        .abort()
                        .await
                        .map_err(|error| self.store_error(error))?;
                    return Err(failure);
                }
                (failure, reasons, None)
            }
        };
        if method == Method::Commit && !last {
            // The image stands still on the node: the next attempt brings the same bytes.
            writer
                .abort()
                .await
                .map_err(|error| self.store_error(error))?;
        } else {
            let left = writer
                .keep()
                .await
                .map_err(|error| self.store_error(error))?;
            self.keep(left, &begun, reasons, finished).await?;
        }
        Err(failure)
    }

    async fn attempt_diff(
        &self,
        node: &str,
        container: &str,
        text: &EvidencePath,
        lines: &EvidencePath,
    ) -> Result<Content, Failure> {
        let connection = self.connection(node).await?;
        let mut client = connection.client.clone();
        let received_started = Timestamp::now();
        let message = wire::DiffRequest {
            container_id: container.to_owned(),
        };
        let opened = client.diff(self.request(message)).await;
        let mut stream = opened
            .map_err(|status| Failure::status(&status))?
            .into_inner();
        let begun = |media_type: &str| Begun {
            media_type: media_type.to_owned(),
            method: Method::Diff,
            api_call: format!("GET /containers/{container}/changes"),
            source_id: container.to_owned(),
            started: None,
            received_started,
        };
        let (begun_text, begun_lines) = (begun("text/plain"), begun("application/jsonl"));
        let mut to_text = self.begin_object(text, &begun_text).await?;
        let mut to_lines = match self.begin_object(lines, &begun_lines).await {
            Ok(writer) => writer,
            Err(failure) => {
                to_text
                    .abort()
                    .await
                    .map_err(|error| self.store_error(error))?;
                return Err(failure);
            }
        };
        let watch = |bytes| self.board.received(text, bytes);
        match diff::receive(&mut stream, to_text.as_mut(), to_lines.as_mut(), watch).await {
            Ok(received) => {
                let (started, finished) = (instant(received.started), instant(received.finished));
                let mut text = record(text, &begun_text, received.text, finished);
                let mut lines = record(lines, &begun_lines, received.lines, finished);
                (text.started, lines.started) = (started, started);
                let both = vec![(text, to_text), (lines, to_lines)];
                self.finish_objects(both, Some(connection.clock_offset_ms))
                    .await
            }
            Err(error) => {
                for (writer, begun) in [(to_text, &begun_text), (to_lines, &begun_lines)] {
                    let left = writer
                        .keep()
                        .await
                        .map_err(|error| self.store_error(error))?;
                    self.keep(left, begun, vec![describe(&error)], None).await?;
                }
                Err(Failure::receive(&error))
            }
        }
    }

    /// Notes where an object comes from, so that it is known also after a crash, and opens it.
    async fn begin_object(
        &self,
        path: &EvidencePath,
        begun: &Begun,
    ) -> Result<Box<dyn ObjectWriter>, Failure> {
        self.note(|note| note.begun.insert(path.clone(), begun.clone()))
            .await?;
        match self.collector.store.writer(&self.lock, path).await {
            Ok(writer) => Ok(writer),
            Err(error) if error.is_full() => Err(Failure::store(&error)),
            Err(error) => Err(Failure::Fatal(self.store_error(error))),
        }
    }

    /// Record, store, record: of all objects together. Returns the first one's content.
    async fn finish_objects(
        &self,
        objects: Vec<(ArtifactRecord, Box<dyn ObjectWriter>)>,
        offset: Option<i64>,
    ) -> Result<Content, Failure> {
        let records: Vec<&ArtifactRecord> = objects.iter().map(|(record, _)| record).collect();
        self.record_read(&records, offset).await?;
        let mut stored = Vec::new();
        let mut failed = None;
        for (record, writer) in objects {
            let expected = super::session::content(&record);
            match writer.finish(expected).await {
                Ok(receipt) => stored.push((record, receipt)),
                Err(error) => failed = Some((record, error)),
            }
        }
        let first = stored.first().map(|(_, receipt)| receipt.content());
        self.record_stored(stored).await?;
        match (failed, first) {
            (None, Some(content)) => Ok(content),
            (Some((record, error)), _) => {
                let failure = Failure::store(&error);
                let left = self
                    .collector
                    .store
                    .leftover(&self.lock, &record.path)
                    .await
                    .map_err(|error| self.store_error(error))?;
                if let Some(left) = left {
                    if error.is_full() {
                        left.discard()
                            .await
                            .map_err(|error| self.store_error(error))?;
                    } else {
                        let begun = begun_of(&record);
                        self.keep(left, &begun, vec![describe(&error)], record.finished)
                            .await?;
                    }
                }
                Err(failure)
            }
            (None, None) => Err(Failure::now("nothing was to be stored", false)),
        }
    }
}

fn record(
    path: &EvidencePath,
    begun: &Begun,
    content: Content,
    finished: Option<Timestamp>,
) -> ArtifactRecord {
    ArtifactRecord {
        path: path.clone(),
        size: content.size,
        sha256: content.sha256,
        media_type: begun.media_type.clone(),
        method: begun.method,
        api_call: begun.api_call.clone(),
        source_id: begun.source_id.clone(),
        completeness: Completeness::Complete,
        started: begun.started,
        finished,
        received_started: begun.received_started,
        received_finished: Timestamp::now(),
    }
}

fn begun_of(record: &ArtifactRecord) -> Begun {
    Begun {
        media_type: record.media_type.clone(),
        method: record.method,
        api_call: record.api_call.clone(),
        source_id: record.source_id.clone(),
        started: record.started,
        received_started: record.received_started,
    }
}
