//! One attempt at an artifact: the call, the stream, the writer, and what is kept if it fails.

use futures::future::{join_all, try_join_all};
use impound_evidence::{
    ArtifactRecord, Completeness, Consistency, EvidencePath, Method, Timestamp,
};
use impound_proto::agent::v1 as wire;
use impound_proto::traces::TARGET;
use tracing::{Instrument, Span};

use super::derive::{Deriving, Tap, What};
use super::diff;
use super::encrypted::{Ended, kept as kept_of};
use super::failure::{Failure, LOOK_UP, READ, cut, until, within};
use super::fetch::{Ask, Wanted};
use super::note::Begun;
use super::receive::{self, Incoming, ReceiveError};
use super::session::{Session, content, in_store};
use super::{CollectError, instant};
use crate::describe::describe;
use crate::store::{Content, ObjectWriter, StoreError};

impl Session<'_> {
    /// `last`: no other attempt follows.
    pub(super) async fn attempt(&self, wanted: &Wanted<'_>, last: bool) -> Result<(), Failure> {
        match (wanted.ask, wanted.paths.as_slice()) {
            (Ask::Diff { container }, [text, lines]) => {
                self.attempt_diff(wanted, container, text, lines).await
            }
            (_, [path]) => self.attempt_stream(wanted, path, last).await,
            _ => Err(Failure::now(
                "an artifact was asked for with the wrong number of paths",
                false,
            )),
        }
    }

    async fn attempt_stream(
        &self,
        wanted: &Wanted<'_>,
        path: &EvidencePath,
        last: bool,
    ) -> Result<(), Failure> {
        let connection = self.connection(wanted.node).await?;
        let mut client = connection.client.clone();
        let received_started = Timestamp::now();
        let silence = match wanted.ask {
            Ask::Inspect { .. } => LOOK_UP,
            _ => READ,
        };
        let limit = until(wanted.deadline, silence);
        let (method, source, mut stream) = match wanted.ask {
            Ask::Inspect { container } => {
                let message = wire::InspectContainerRequest {
                    container_id: container.to_owned(),
                };
                let call = client.inspect_container(self.request(message));
                (Method::Inspect, Some(container), within(limit, call).await?)
            }
            Ask::Export { container, .. } => {
                let message = wire::ExportRequest {
                    container_id: container.to_owned(),
                };
                let call = client.export(self.request(message));
                (Method::Export, Some(container), within(limit, call).await?)
            }
            Ask::Layer { container } => {
                let message = wire::LayerRequest {
                    container_id: container.to_owned(),
                };
                let call = client.layer(self.request(message));
                (Method::Layer, Some(container), within(limit, call).await?)
            }
            Ask::Save { reference, image } => {
                let message = wire::SaveImageRequest {
                    reference: reference.to_owned(),
                };
                let call = client.save_image(self.request(message));
                (Method::Commit, image, within(limit, call).await?)
            }
            Ask::Diff { .. } => return Err(Failure::now("a diff is no stream of bytes", false)),
        };
        let header = receive::header(&mut stream, until(wanted.deadline, silence))
            .await
            .map_err(|error| Failure::receive(&error))?;
        if let Some(source) = source.filter(|source| *source != header.source_id) {
            let why = format!(
                "asked for {source}, the agent answered with {:?}",
                cut(header.source_id)
            );
            return Err(Failure::now(why, false));
        }
        let begun = Begun {
            media_type: cut(header.media_type),
            method,
            api_call: cut(header.api_call),
            source_id: cut(header.source_id),
            consistency: self.consistency(method),
            derived_from: Vec::new(),
            started: instant(header.started),
            clock_offset_ms: Some(connection.clock_offset_ms),
            received_started,
        };
        let live = matches!(method, Method::Export | Method::Layer);
        let _arrival = live.then(|| self.arrivals.begin());
        let mut writer = self.begin_object(path, &begun).await?;
        let (deriving, tap) = self.begin_listing(path, &begun).await?.unzip();
        let kind = match wanted.ask {
            Ask::Inspect { .. } => Incoming::Document,
            _ => Incoming::Tar(tap),
        };
        let hold_back = matches!(wanted.ask, Ask::Export { .. } | Ask::Save { .. });
        let share = self.collector.budget.share(wanted.node, !hold_back);
        let received = receive::body(
            &mut stream,
            writer.as_mut(),
            kind,
            || until(wanted.deadline, silence),
            |bytes| self.board.received(path, bytes),
            &share,
        )
        .await;
        // Others come beside an export, and let nothing go that stands still for it.
        let standstill = match wanted.ask {
            Ask::Export { .. } => self.let_go().await?,
            _ => None,
        };
        if let (Ask::Export { read, .. }, true) = (wanted.ask, last || received.is_ok()) {
            let bytes = received
                .as_ref()
                .map_or(0, |received| received.content.size);
            // Another attempt's word may be there.
            let _ = read.set(bytes);
        }
        let (failure, reasons, finished) = match received {
            Ok(received) => match received.completeness {
                Completeness::Complete => {
                    let finished = instant(received.finished);
                    let mut record = record(path, &begun, received.content, finished);
                    if let (Ask::Export { .. }, Some(still)) = (wanted.ask, standstill) {
                        record.consistency = still.consistency(begun.started, finished);
                    }
                    return self.finish_tar(record, writer, deriving).await;
                }
                Completeness::Incomplete { reasons } => {
                    let why = format!("the artifact is incomplete: {}", reasons.join("; "));
                    (Failure::now(why, true), reasons, instant(received.finished))
                }
            },
            // Left as a crash would leave it: what has stopped taking bytes can't keep them now.
            Err(ReceiveError::Stalled) => {
                let stalled = StoreError::Stalled {
                    at: path.to_string(),
                    seconds: receive::STALL.as_secs(),
                };
                return Err(Failure::Fatal(self.store_error(stalled)));
            }
            Err(error) => (Failure::receive(&error), vec![cut(describe(&error))], None),
        };
        // The image stands still on the node: the next attempt brings the same bytes.
        let worthless = method == Method::Commit && !last;
        let kept = self
            .leave(vec![(writer, &begun)], worthless, &reasons, finished)
            .await?;
        match (deriving, kept.first()) {
            (Some(deriving), Some(_)) if deriving.is_behind() => {
                self.drop_deriving(deriving).await;
            }
            (Some(deriving), Some(tar)) => {
                let listed = self.keep_deriving(deriving, tar).await;
                self.record_unlisted(tar, listed).await?;
            }
            (Some(deriving), None) => self.drop_deriving(deriving).await,
            (None, _) => {}
        }
        Err(failure)
    }

    /// Opens the listings of a tar that is about to arrive; none if it is no tar, or if that failed: it
    /// is recorded, and they are made later.
    async fn begin_listing(
        &self,
        path: &EvidencePath,
        begun: &Begun,
    ) -> Result<Option<(Deriving, Tap)>, CollectError> {
        let wanted = self.listings(path, begun.method)?;
        match self.begin_deriving(path, begun, &wanted, true).await {
            Ok(begun) => Ok(begun),
            Err(failure) => {
                self.record_failed(&format!("listing {path}"), &failure.words())
                    .await?;
                Ok(None)
            }
        }
    }

    /// Stores an artifact, and hands on the listings that were made of it, if it is a tar. Without them
    /// it is whole all the same: [`Session::derive_missing`] makes them again.
    async fn finish_tar(
        &self,
        record: ArtifactRecord,
        writer: Box<dyn ObjectWriter>,
        deriving: Option<Deriving>,
    ) -> Result<(), Failure> {
        let path = record.path.clone();
        let finished = self.finish_object(record, writer).await;
        let Some(deriving) = deriving else {
            return finished;
        };
        if let Err(failure) = finished {
            self.drop_deriving(deriving).await;
            return Err(failure);
        }
        self.finish_listing_later(path, deriving).await;
        Ok(())
    }

    async fn attempt_diff(
        &self,
        wanted: &Wanted<'_>,
        container: &str,
        text: &EvidencePath,
        lines: &EvidencePath,
    ) -> Result<(), Failure> {
        if self.stored(text).is_some() || self.stored(lines).is_some() {
            // They are named together; only a damaged store has one without the other.
            let why = "the other form of this diff is stored already and can't be written again";
            return Err(Failure::now(why, false));
        }
        let connection = self.connection(wanted.node).await?;
        let mut client = connection.client.clone();
        let received_started = Timestamp::now();
        let message = wire::DiffRequest {
            container_id: container.to_owned(),
        };
        let limit = || until(wanted.deadline, READ);
        let mut stream = within(limit(), client.diff(self.request(message))).await?;
        let begun = |media_type: &str| Begun {
            media_type: media_type.to_owned(),
            method: Method::Diff,
            api_call: format!("GET /containers/{container}/changes"),
            source_id: container.to_owned(),
            consistency: self.consistency(Method::Diff),
            derived_from: Vec::new(),
            started: None,
            clock_offset_ms: Some(connection.clock_offset_ms),
            received_started,
        };
        let (begun_text, begun_lines) = (begun("text/plain"), begun("application/jsonl"));
        let mut to_text = self.begin_object(text, &begun_text).await?;
        let mut to_lines = match self.begin_object(lines, &begun_lines).await {
            Ok(writer) => writer,
            Err(failure) => {
                let aborted = to_text.abort().await;
                aborted.map_err(|error| self.store_error(error))?;
                return Err(failure);
            }
        };
        let watch = |bytes| self.board.received(text, bytes);
        let received = diff::receive(
            &mut stream,
            to_text.as_mut(),
            to_lines.as_mut(),
            limit,
            watch,
        )
        .await;
        match received {
            Ok(received) => {
                let (started, finished) = (instant(received.started), instant(received.finished));
                let mut text = record(text, &begun_text, received.text, finished);
                let mut lines = record(lines, &begun_lines, received.lines, finished);
                (text.started, lines.started) = (started, started);
                let both = vec![(text, to_text), (lines, to_lines)];
                self.finish_together(both).await
            }
            Err(error) => {
                let both = vec![(to_text, &begun_text), (to_lines, &begun_lines)];
                let full = matches!(&error, ReceiveError::Store(error) if error.is_full());
                self.leave(both, full, &[cut(describe(&error))], None)
                    .await?;
                Err(Failure::receive(&error))
            }
        }
    }

    /// An image is read at leisure, but what it holds is as consistent as its commit was.
    fn consistency(&self, method: Method) -> Consistency {
        match method {
            Method::Commit if self.job.pause => Consistency::Frozen,
            _ => Consistency::Live,
        }
    }

    /// Notes where an object comes from, so that it is known also after a crash, and opens it.
    pub(super) async fn begin_object(
        &self,
        path: &EvidencePath,
        begun: &Begun,
    ) -> Result<Box<dyn ObjectWriter>, Failure> {
        self.note(|note| note.begun.insert(path.clone(), begun.clone()))
            .await?;
        match self.writer(path).await {
            Ok(writer) => Ok(writer),
            Err(error) if error.is_full() => Err(Failure::store(&error)),
            Err(error) => Err(Failure::Fatal(self.store_error(error))),
        }
    }

    /// Makes what came durable, compares what the store reads back with what the agent said of it, names it,
    /// records. What the agent said is recorded meanwhile: a store on the network may take minutes, and after a
    /// crash in these, what lies there is the whole artifact if it is what was said.
    async fn finish_object(
        &self,
        mut record: ArtifactRecord,
        writer: Box<dyn ObjectWriter>,
    ) -> Result<(), Failure> {
        let ended = Ended::of(writer, &mut record).await;
        let ended = ended.map_err(|error| self.too_long(error))?;
        let fits = ended.fits(&record);
        let read = async {
            match What::of(record.method).is_empty() {
                // What is known to be something else is recorded as that.
                _ if !fits => Ok(()),
                true => self.record_read(&[&record]).await,
                false => self.record_read_surely(&record).await,
            }
        };
        let stored = ended.keep().instrument(store_write(&record));
        let (read, kept) = futures::join!(read, stored);
        read?;
        let mut kept = kept.map_err(|error| self.store_error(error))?;
        let expected = content(&record);
        if !fits || in_store(&record) != kept.unfinished.content() {
            let found = kept.content(&record.path);
            let (found, _) = found.map_err(|error| self.too_long(error))?;
            let error = kept.take_failure();
            let full = error.as_ref().is_some_and(StoreError::is_full);
            let why = error.map_or_else(
                || {
                    format!(
                        "{expected} were announced by the agent's trailer, and what arrived was read back from the store as {found}: the agent's word is not true, or the volume is not to be trusted"
                    )
                },
                |error| describe(&error),
            );
            let reasons = vec![cut(why.clone())];
            self.keep_unless(full, kept, &begun_of(&record), reasons, record.finished)
                .await?;
            return Err(Failure::now(why, !full));
        }
        // A failure here ends the run; the next one takes up what has no name yet.
        let named = kept.unfinished.keep_as(record.stored_path()).await;
        let receipt = named.map_err(|error| self.store_error(error))?;
        self.record_stored(vec![(record, receipt)]).await?;
        Ok(())
    }

    /// As `finish_object`, for objects that belong together and were hashed as they were written: all are durable
    /// before the first is recorded, so that a crash between two names leaves nothing that the next run can't
    /// finish. Side by side, as most of the time goes to waiting for the disk.
    pub(super) async fn finish_together(
        &self,
        objects: Vec<(ArtifactRecord, Box<dyn ObjectWriter>)>,
    ) -> Result<(), Failure> {
        let ended = objects.into_iter().map(|(mut record, writer)| async {
            let ended = Ended::of(writer, &mut record).await;
            let ended = ended.map_err(|error| self.too_long(error))?;
            let fits = ended.fits(&record);
            let kept = ended.keep().instrument(store_write(&record)).await;
            kept.map(|kept| (record, kept, fits))
                .map_err(|error| self.store_error(error))
        });
        let mut durable = try_join_all(ended).await?;
        let mut failed: Option<StoreError> = None;
        for (record, kept, fits) in &mut durable {
            let (expected, found) = (in_store(record), kept.unfinished.content());
            if (!*fits || expected != found) && failed.is_none() {
                let differs = StoreError::Mismatch {
                    at: record.path.to_string(),
                    expected: expected.into(),
                    found: found.into(),
                };
                failed = Some(kept.take_failure().unwrap_or(differs));
            }
        }
        if let Some(error) = failed {
            for (record, kept, _) in durable {
                let reasons = vec![cut(describe(&error))];
                // What is made here is made again: a part of a set must not pass for all of it.
                let worthless = error.is_full() || record.method == Method::Derived;
                self.keep_unless(worthless, kept, &begun_of(&record), reasons, None)
                    .await?;
            }
            return Err(Failure::store(&error));
        }
        let records: Vec<&ArtifactRecord> = durable.iter().map(|(record, ..)| record).collect();
        self.record_read(&records).await?;
        let named = durable.into_iter().map(|(record, kept, _)| async {
            let receipt = kept.unfinished.keep_as(record.stored_path()).await;
            receipt
                .map(|receipt| (record, receipt))
                .map_err(|error| self.store_error(error))
        });
        // A failure here ends the run; the next one takes up what has no name yet.
        let stored = join_all(named).await;
        let stored = stored.into_iter().collect::<Result<Vec<_>, _>>()?;
        self.record_stored(stored).await?;
        Ok(())
    }

    /// Ends the writers of a failed attempt: their bytes are kept as partial ones, unless they are
    /// `worthless` or the volume is full, as room to record and seal is worth more than the
    /// beginning of an artifact. The names they are kept under.
    async fn leave(
        &self,
        writers: Vec<(Box<dyn ObjectWriter>, &Begun)>,
        worthless: bool,
        reasons: &[String],
        finished: Option<Timestamp>,
    ) -> Result<Vec<EvidencePath>, Failure> {
        let mut kept = Vec::new();
        for (writer, begun) in writers {
            if worthless {
                writer
                    .abort()
                    .await
                    .map_err(|error| self.store_error(error))?;
                continue;
            }
            let mut left = kept_of(writer)
                .await
                .map_err(|error| self.store_error(error))?;
            let full = left.take_failure().is_some_and(|error| error.is_full());
            let path = self.keep_unless(full, left, begun, reasons.to_vec(), finished);
            kept.extend(path.await?);
        }
        Ok(kept)
    }
}

/// Until what came is durable and read back.
fn store_write(record: &ArtifactRecord) -> Span {
    tracing::info_span!(target: TARGET, "store write", path = %record.path, bytes = record.size)
}

pub(super) fn record(
    path: &EvidencePath,
    begun: &Begun,
    content: Content,
    finished: Option<Timestamp>,
) -> ArtifactRecord {
    begun.record(path, content, Completeness::Complete, finished)
}

pub(super) fn begun_of(record: &ArtifactRecord) -> Begun {
    Begun {
        media_type: record.media_type.clone(),
        method: record.method,
        api_call: record.api_call.clone(),
        source_id: record.source_id.clone(),
        consistency: record.consistency,
        derived_from: record.derived_from.clone(),
        started: record.started,
        clock_offset_ms: record.clock_offset_ms,
        received_started: record.received_started,
    }
}
