//! Evidence that is encrypted on its way into the store, to public keys alone.
//!
//! The controller can't read it again afterwards; while it collects it has to, for what is made of it (listings that
//! were given up, the timeline). So each run encrypts to a key of its own besides, which is in its memory only and gone
//! with it. What another run has stored stays closed: what would be made of it is missing then, and said.

use std::collections::BTreeSet;
use std::io::{self, Read as _};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use impound_evidence::age::{AgeError, Identity, OpenError, Recipient};
use impound_evidence::{
    ArtifactRecord, Encoded, Encoder, EvidencePath, NameError, StoredForm, open_artifact,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::session::{Session, in_store};
use crate::store::encoded::{EncodedWriter, both};
use crate::store::{Content, ObjectWriter, StoreError, Unfinished};

/// Bytes that are read at once.
const READ: usize = 512 << 10;
/// Pieces that wait for whoever reads.
const PIECES: usize = 4;

/// Stands in the log's first entry before the recipients of the collection.
pub(super) const ENCRYPTED: &str = ", encrypted to ";

/// To whom an entry of [`Encryption::in_words`] says that a collection is encrypted. A recipient that is refused now, as
/// one of an earlier version may be, must not be left out: what the log calls encrypted would be stored plain.
pub(super) fn encrypted_to(what: &str) -> Result<BTreeSet<Recipient>, AgeError> {
    match what.split_once(ENCRYPTED) {
        Some((_, list)) => list.split(", ").map(str::parse).collect(),
        None => Ok(BTreeSet::new()),
    }
}

/// To whom a run encrypts.
pub(super) struct Encryption {
    /// Those who were asked for, and this run.
    all: Vec<Recipient>,
    own: [Identity; 1],
    /// Whether an earlier run had the key, too.
    again: bool,
    /// Those who were asked for.
    pub(super) shown: BTreeSet<Recipient>,
}

impl Encryption {
    /// None if it is for nobody. `last`: the key of an earlier run.
    pub(super) fn new(
        recipients: BTreeSet<Recipient>,
        last: Option<&Identity>,
    ) -> Result<Option<Self>, AgeError> {
        if recipients.is_empty() {
            return Ok(None);
        }
        let own = match last {
            Some(last) => last.clone(),
            None => Identity::generate()?,
        };
        Ok(Some(Self {
            all: recipients
                .iter()
                .cloned()
                .chain([own.recipient()])
                .collect(),
            own: [own],
            again: last.is_some(),
            shown: recipients,
        }))
    }

    /// The key of this run.
    pub(super) fn key(&self) -> Identity {
        let [own] = &self.own;
        own.clone()
    }

    /// To whom, as the log's first entry says it: it ends with this.
    pub(super) fn in_words(&self) -> String {
        let shown: Vec<String> = self.shown.iter().map(ToString::to_string).collect();
        format!("{ENCRYPTED}{}", shown.join(", "))
    }

    /// Bytes that are here.
    pub(super) fn encode(&self, bytes: &[u8]) -> Result<(Vec<u8>, Encoded), AgeError> {
        let mut encoder = Encoder::new(&self.all)?;
        let mut out = encoder.update(bytes)?;
        let (rest, encoded) = encoder.finish()?;
        out.extend(rest);
        Ok((out, encoded))
    }
}

/// What a writer has left, and what it was encoded from if that has an end.
pub(super) struct Left {
    pub(super) unfinished: Box<dyn Unfinished>,
    encoded: Option<Encoded>,
    /// Why its end could not be written.
    failure: Option<StoreError>,
}

impl Left {
    /// Of a writer that was cut off by a crash.
    pub(super) fn cut_off(unfinished: Box<dyn Unfinished>) -> Self {
        Self {
            unfinished,
            encoded: None,
            failure: None,
        }
    }

    /// What came, and the form that the artifact at `path` is stored in; the stored bytes for want of anything else.
    pub(super) fn content(
        &self,
        path: &EvidencePath,
    ) -> Result<(Content, Option<StoredForm>), NameError> {
        let found = self.unfinished.content();
        match &self.encoded {
            Some(encoded) if both(encoded).1 == found => {
                Ok((both(encoded).0, Some(encoded.form(path)?)))
            }
            _ => Ok((found, None)),
        }
    }

    /// Why its writer had stopped, if it had failed; once.
    pub(super) fn take_failure(&mut self) -> Option<StoreError> {
        self.unfinished
            .take_failure()
            .or_else(|| self.failure.take())
    }
}

/// A writer that took everything.
pub(super) struct Ended {
    writer: Box<dyn ObjectWriter>,
    encoded: Option<Encoded>,
    failure: Option<StoreError>,
    /// What went in, if that was hashed here.
    plain: Option<Content>,
}

impl Ended {
    /// Ends what is encoded, and gives `record` its stored form, unless other bytes went in than it says.
    pub(super) async fn of(
        mut writer: Box<dyn ObjectWriter>,
        record: &mut ArtifactRecord,
    ) -> Result<Self, NameError> {
        let (encoded, failure) = end(writer.as_mut()).await;
        let plain = encoded.as_ref().map(|encoded| both(encoded).0);
        if let Some(encoded) = &encoded
            && plain == Some(in_store(record))
        {
            record.stored = Some(encoded.form(&record.path)?);
        }
        Ok(Self {
            writer,
            encoded,
            failure,
            plain,
        })
    }

    /// Whether what went in, as far as that was hashed here, is what `record` says.
    pub(super) fn fits(&self, record: &ArtifactRecord) -> bool {
        let said = (record.size, record.sha256);
        self.failure.is_none()
            && self
                .plain
                .is_none_or(|plain| (plain.size, plain.sha256) == said)
    }

    /// Makes it durable and reads it back.
    pub(super) async fn keep(self) -> Result<Left, StoreError> {
        Ok(Left {
            unfinished: self.writer.keep().await?,
            encoded: self.encoded,
            failure: self.failure,
        })
    }
}

/// Ends what is encoded: what went in, if that is known, or why the end could not be written.
async fn end(writer: &mut dyn ObjectWriter) -> (Option<Encoded>, Option<StoreError>) {
    match writer.end().await {
        Ok(encoded) => (encoded, None),
        Err(error) => (None, Some(error)),
    }
}

/// What `writer` has taken of something that is not whole.
pub(super) async fn kept(mut writer: Box<dyn ObjectWriter>) -> Result<Left, StoreError> {
    let (encoded, failure) = end(writer.as_mut()).await;
    Ok(Left {
        unfinished: writer.keep().await?,
        encoded,
        failure,
    })
}

impl Session<'_> {
    /// Opens the object of an artifact.
    pub(super) async fn writer(
        &self,
        path: &EvidencePath,
    ) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let store = &self.collector.store;
        let Some(encryption) = &self.encryption else {
            return store.writer(&self.lock, path).await;
        };
        let encoder = Encoder::new(&encryption.all).map_err(|error| StoreError::Encoding {
            at: path.to_string(),
            why: error.to_string(),
        })?;
        let writer = store.writer(&self.lock, &self.stored_name(path)?).await?;
        Ok(Box::new(EncodedWriter::new(
            path.to_string(),
            writer,
            encoder,
        )))
    }

    /// What the object of an artifact is called.
    pub(super) fn stored_name(&self, path: &EvidencePath) -> Result<EvidencePath, StoreError> {
        match &self.encryption {
            None => Ok(path.clone()),
            Some(_) => Encoder::stored_path(path).map_err(|source| StoreError::Name {
                at: path.to_string(),
                source: Box::new(source),
            }),
        }
    }

    /// Whether an artifact was encrypted by another run, so that this one can't read it.
    pub(super) fn is_sealed_off(&self, record: &ArtifactRecord) -> bool {
        self.sealed_off().contains(&record.path)
    }

    /// An earlier run has stored this: notes it if it was encrypted with a key that is gone.
    pub(super) async fn take_over(&self, record: &ArtifactRecord) -> Result<(), StoreError> {
        if record.stored.is_some() && !self.is_opened(record).await? {
            self.sealed_off().insert(record.path.clone());
        }
        Ok(())
    }

    /// Whether an artifact is encrypted to the key of this run.
    async fn is_opened(&self, record: &ArtifactRecord) -> Result<bool, StoreError> {
        // Nothing can be encrypted to a new one.
        let Some(encryption) = self.encryption.as_ref().filter(|with| with.again) else {
            return Ok(false);
        };
        let source = self.collector.store.evidence(&self.at);
        let (own, wanted) = (encryption.own.clone(), record.clone());
        let opening =
            tokio::task::spawn_blocking(move || open_artifact(&source, &wanted, &own).map(drop));
        let failed = |source: io::Error| StoreError::Io {
            at: format!("{}/{}", self.at, record.stored_path()),
            step: "look at how it is encrypted",
            source,
        };
        match opening.await.map_err(|error| failed(error.into()))? {
            Ok(()) => Ok(true),
            Err(OpenError::Closed | OpenError::NotForUs) => Ok(false),
            Err(OpenError::Io(error)) => Err(failed(error)),
        }
    }

    /// An artifact's own bytes from `offset` on, in pieces of at most 1 MiB.
    pub(super) async fn read(
        &self,
        record: &ArtifactRecord,
        offset: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        if record.stored.is_none() {
            let reader = self
                .collector
                .store
                .read(&self.at, &record.path, offset)
                .await?;
            return Ok(reader.chunks);
        }
        let own = self
            .encryption
            .as_ref()
            .map(|encryption| encryption.own.to_vec());
        let (own, record) = (own.unwrap_or_default(), record.clone());
        let source = self.collector.store.evidence(&self.at);
        let (to, pieces) = mpsc::channel(PIECES);
        tokio::task::spawn_blocking(move || {
            let mut file = match open_artifact(&source, &record, &own) {
                Ok(file) => file.reader,
                Err(error) => {
                    // Whoever does not wait for it any more needs no reason either.
                    let _ = to.blocking_send(Err(closed(&record, &error)));
                    return;
                }
            };
            // Nothing else says what is there: all before it is decrypted, too.
            let skipped = io::copy(&mut (&mut file).take(offset), &mut io::sink());
            if let Err(error) = skipped {
                let _ = to.blocking_send(Err(closed(&record, &error.into())));
                return;
            }
            loop {
                let mut piece = vec![0; READ];
                let read = match file.read(&mut piece) {
                    Ok(0) => return,
                    Ok(n) => {
                        piece.truncate(n);
                        Ok(Bytes::from(piece))
                    }
                    Err(error) => Err(closed(&record, &error.into())),
                };
                let failed = read.is_err();
                if to.blocking_send(read).is_err() || failed {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(pieces).boxed())
    }

    /// An artifact that has at most `limit` bytes, whole.
    pub(super) async fn document(
        &self,
        path: &EvidencePath,
        limit: u64,
    ) -> Result<Vec<u8>, StoreError> {
        let Some(record) = self.stored(path).filter(|record| record.stored.is_some()) else {
            let bytes = self
                .collector
                .store
                .read_small(&self.at, path, limit)
                .await?;
            return Ok(bytes.unwrap_or_default());
        };
        let mut bytes = Vec::new();
        let mut pieces = self.read(&record, 0).await?;
        while let Some(piece) = pieces.try_next().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(StoreError::TooLarge {
                    at: path.to_string(),
                    size: bytes.len() as u64,
                    limit,
                });
            }
        }
        Ok(bytes)
    }
}

fn closed(record: &ArtifactRecord, error: &OpenError) -> StoreError {
    StoreError::Encoding {
        at: record.path.to_string(),
        why: match error {
            OpenError::Closed | OpenError::NotForUs => {
                "an earlier run has encrypted it, and only its recipients can read it".to_owned()
            }
            OpenError::Io(error) => error.to_string(),
        },
    }
}
