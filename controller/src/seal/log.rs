//! The custody logs as this process knows them: each is read once, and then only what has come since.
//!
//! Other replicas append to the same logs. What they have written is read behind what is known, and the whole
//! is compared with the signed checkpoint, which was read before it: a log only grows, so it must cover that.
//! Entries are parsed on a thread for blocking work and kept only by who asked for them; of the case itself, as
//! opposed to its collections, they are kept here, since every step of a containment looks for its own.
//!
//! Memory: 32 bytes for each entry of a log, some thousand entries of its case, one line while it is read.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use impound_evidence::{
    CHECKPOINT, CHECKPOINT_LIMIT, CUSTODY, CaseId, Checkpoint, CustodyError, CustodyLog,
    ENTRY_LIMIT, Entry, Event, LogHead, NameError, Signer, Timestamp, VerifyingKey, case_log,
    origin,
};
use impound_proto::PeerId;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::SealError;
use crate::store::{CollectionId, Store, StoreError};

/// Longest log that is continued, in bytes: some hundred thousand entries, while a large collection
/// has a few thousand.
const LOG_LIMIT: u64 = 256 << 20;
/// Bytes and entries of it that only collections that are begun may use, and what the controller itself has
/// done: whoever reads evidence again and again must not make it impossible to seal some.
const RESERVED: (u64, u64) = (32 << 20, 100_000);
/// How long an append is tried when other replicas append to the same log at the same time. One of them
/// gets further with every try, so this ends long before; what waits for it may be a finished export.
const CONTENTION: Duration = Duration::from_secs(60);
/// Longest pause between two of these tries; they are random, or two replicas would meet again.
const PAUSE: Duration = Duration::from_millis(500);
/// Most entries about a case itself that are kept; of a case that has more, they are read each time.
const OF_CASE: usize = 4096;
/// Most logs that are known at a time; of more, those that nobody uses are read again when they are needed.
const KNOWN: usize = 64;

/// Writes to the custody logs: one entry after the other per case, each durable and covered by a signed
/// checkpoint before the call returns.
pub struct CustodyAppender {
    store: Arc<dyn Store>,
    key: Arc<dyn Signer>,
    trusted: Vec<VerifyingKey>,
    open: Mutex<HashMap<CaseId, Arc<Mutex<Option<OpenLog>>>>>,
    limit: (u64, u64),
}

/// A log as it is in the store.
struct OpenLog {
    log: CustodyLog,
    /// Entries about the case itself; none if they are too many.
    of_case: Option<Vec<Entry>>,
}

impl OpenLog {
    fn new(case: &CaseId) -> Self {
        Self {
            log: CustodyLog::new(origin(case)),
            of_case: Some(Vec::new()),
        }
    }

    /// Takes whole lines behind those that are here.
    fn extend(
        &mut self,
        lines: impl io::BufRead,
        mut each: impl FnMut(Entry),
    ) -> Result<(), CustodyError> {
        let Self { log, of_case } = self;
        log.extend(lines, |entry| {
            if entry.collection.is_none() {
                if of_case.as_ref().is_some_and(|known| known.len() >= OF_CASE) {
                    *of_case = None;
                }
                if let Some(known) = of_case {
                    known.push(entry.clone());
                }
            }
            each(entry);
        })
    }

    /// With the lines that come behind it, and those of their entries that are wanted. An unfinished last line
    /// was never acknowledged, and the next append cuts it off.
    fn with(
        mut self,
        lines: impl io::BufRead,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<(Self, Vec<Entry>), CustodyError> {
        let mut entries = Vec::new();
        let read = self.extend(lines, |entry| {
            if wanted(&entry) {
                entries.push(entry);
            }
        });
        match read {
            Ok(()) | Err(CustodyError::Torn { .. }) => Ok((self, entries)),
            Err(error) => Err(error),
        }
    }
}

/// What was read of a log.
struct Read {
    log: OpenLog,
    /// Entries of the part that was read that were wanted.
    entries: Vec<Entry>,
    /// Entries that the checkpoint covers.
    signed: u64,
}

/// The lines of a log up to some head, and that head signed.
#[derive(Clone, Debug)]
pub struct LogCopy {
    /// Whole lines.
    pub lines: Vec<u8>,
    /// The checkpoint over them.
    pub checkpoint: Vec<u8>,
}

impl CustodyAppender {
    /// `key` signs the checkpoints, as it signs the manifests; `former` are the keys that did before.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, key: Arc<dyn Signer>, former: Vec<VerifyingKey>) -> Self {
        let mut trusted = vec![key.verifying_key().clone()];
        trusted.extend(former);
        Self {
            store,
            key,
            trusted,
            open: Mutex::default(),
            limit: (LOG_LIMIT, ENTRY_LIMIT),
        }
    }

    /// With room for other numbers of bytes and entries in a log; for tests.
    #[must_use]
    pub fn with_limit(mut self, bytes: u64, entries: u64) -> Self {
        self.limit = (bytes, entries);
        self
    }

    /// The keys whose signatures are taken, the present one first.
    #[must_use]
    pub fn trusted(&self) -> &[VerifyingKey] {
        &self.trusted
    }

    /// The present key.
    pub(super) fn key(&self) -> &dyn Signer {
        self.key.as_ref()
    }

    /// What speaks against dating something that our key signs at `time`, by the list of keys.
    pub(super) fn objection(&self, time: Timestamp) -> Option<String> {
        let own = self.key.verifying_key().key_id();
        let listed = self.trusted.iter().filter(|key| key.key_id() == own);
        listed.filter_map(|key| key.objection(time)).next_back()
    }

    /// Appends an entry about a collection to its case's log and signs the new head.
    ///
    /// # Errors
    /// If the log was tampered with, is full, or the store does not take it. The entry is then not in the
    /// log, except when only the checkpoint could not be written: the next append signs it too.
    pub async fn append(&self, at: &CollectionId, entry: Entry) -> Result<LogHead, SealError> {
        self.append_all(at, vec![entry]).await
    }

    /// Appends entries about a collection, all or none of them, and signs the new head; returns it.
    ///
    /// # Errors
    /// As [`CustodyAppender::append`].
    pub async fn append_all(
        &self,
        at: &CollectionId,
        entries: Vec<Entry>,
    ) -> Result<LogHead, SealError> {
        let entries = entries.into_iter().map(|entry| entry.of(&at.name));
        self.append_to_case(&at.case, entries.collect()).await
    }

    /// Appends entries as they are.
    ///
    /// # Errors
    /// As [`CustodyAppender::append`].
    pub async fn append_to_case(
        &self,
        case: &CaseId,
        entries: Vec<Entry>,
    ) -> Result<LogHead, SealError> {
        let at = log_of(case)?;
        let slot = self.slot(case).await;
        let mut open = slot.lock().await;
        let until = Instant::now() + CONTENTION;
        let mut pause = Duration::from_millis(10);
        // Taken out: whatever fails from here on, the next append reads the log again.
        let mut known = match open.take() {
            Some(known) => known,
            None => self.read(&at, None, |_| false).await?.log,
        };
        loop {
            let lines = known.log.lines(entries.iter().cloned());
            let lines = lines.map_err(|source| wrong(&at, source))?;
            if lines.is_empty() {
                let head = known.log.head();
                *open = Some(known);
                return Ok(head);
            }
            self.require_room(&at, &known, &entries, lines.len() as u64)?;
            let bytes = known.log.bytes();
            match self.extend(&at, bytes, lines.clone()).await {
                Ok(_) => {
                    let ours = known.extend(lines.as_slice(), |_| {});
                    ours.map_err(|source| wrong(&at, source))?;
                    let head = known.log.head();
                    let checkpoint = known.log.checkpoint(self.key.as_ref())?;
                    self.sign(&at, checkpoint).await?;
                    *open = Some(known);
                    return Ok(head);
                }
                // Another replica was first: read what it wrote.
                Err(StoreError::LogMoved { .. }) if Instant::now() < until => {
                    tokio::time::sleep(pause.mul_f64(fastrand::f64())).await;
                    pause = (pause * 2).min(PAUSE);
                    known = self.read(&at, Some(known), |_| false).await?.log;
                }
                Err(StoreError::LogMoved { .. }) => return Err(SealError::Contended { at }),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Every entry about a collection, oldest first.
    ///
    /// # Errors
    /// If the log was tampered with or can't be read.
    pub async fn entries(&self, at: &CollectionId) -> Result<Vec<Entry>, SealError> {
        let name = at.name.clone();
        let of = move |entry: &Entry| entry.collection.as_ref() == Some(&name);
        self.select(&at.case, of).await
    }

    /// Every entry about a collection or about its case itself, oldest first.
    ///
    /// # Errors
    /// As [`CustodyAppender::entries`].
    pub async fn entries_around(&self, at: &CollectionId) -> Result<Vec<Entry>, SealError> {
        let name = at.name.clone();
        let of = move |entry: &Entry| entry.collection.as_ref().is_none_or(|of| *of == name);
        self.select(&at.case, of).await
    }

    /// Every entry about a case itself, and none about its collections, oldest first; none for a case that
    /// nobody has heard of. Costs only what has come since the last look.
    ///
    /// # Errors
    /// As [`CustodyAppender::entries`].
    pub async fn of_case(&self, case: &CaseId) -> Result<Vec<Entry>, SealError> {
        let at = log_of(case)?;
        let slot = self.slot(case).await;
        let of_case = {
            let mut open = slot.lock().await;
            let read = self.read(&at, open.take(), |_| false).await?;
            let of_case = read.log.of_case.clone();
            *open = Some(read.log);
            of_case
        };
        match of_case {
            Some(entries) => Ok(entries),
            None => self.select(case, |entry| entry.collection.is_none()).await,
        }
    }

    /// Signs a case's log as it is, if a crash came between an entry and its checkpoint.
    ///
    /// # Errors
    /// As [`CustodyAppender::append`].
    pub async fn settle(&self, case: &CaseId) -> Result<LogHead, SealError> {
        let at = log_of(case)?;
        let slot = self.slot(case).await;
        let mut open = slot.lock().await;
        let Read { log, signed, .. } = self.read(&at, open.take(), |_| false).await?;
        let head = log.log.head();
        if head.size > signed {
            let checkpoint = log.log.checkpoint(self.key.as_ref())?;
            self.sign(&at, checkpoint).await?;
        }
        *open = Some(log);
        Ok(head)
    }

    /// The log as it was at `head`, which it must have had.
    ///
    /// # Errors
    /// If it never had that head, was tampered with or can't be read.
    pub async fn copy(&self, case: &CaseId, head: LogHead) -> Result<LogCopy, SealError> {
        let at = log_of(case)?;
        let signed = small(&self.store, &at, CHECKPOINT, CHECKPOINT_LIMIT).await?;
        let mut lines = lines(&self.store, &at).await?;
        let origin_of_case = origin(case);
        let (log, lines) = blocking(&at, move || {
            let log = CustodyLog::read(origin_of_case, lines.as_slice(), |_| {})?;
            let ends = lines.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            let end = ends
                .map(|(end, _)| end + 1)
                .take(usize::try_from(head.size).unwrap_or(0));
            let end = end.last().unwrap_or(0);
            lines.truncate(end);
            Ok((log, lines))
        })
        .await?;
        self.checked(&at, &log, signed)?;
        let expected = Checkpoint {
            origin: origin(case),
            head,
        };
        log.check(&expected).map_err(|source| wrong(&at, source))?;
        let checkpoint = log.checkpoint_of(head, self.key.as_ref())?;
        Ok(LogCopy { lines, checkpoint })
    }

    /// Fails if the log is full for such entries: what is reserved is for collections that are begun.
    fn require_room(
        &self,
        at: &CollectionId,
        known: &OpenLog,
        entries: &[Entry],
        bytes: u64,
    ) -> Result<(), SealError> {
        let own = PeerId::Controller.to_string();
        let of_work = |entry: &Entry| entry.who == own && entry.event != Event::Requested;
        let reserved = match entries.iter().all(of_work) {
            true => (0, 0),
            false => RESERVED,
        };
        let left = |limit: u64, reserved: u64| limit.saturating_sub(reserved);
        let room = known.log.bytes() + bytes <= left(self.limit.0, reserved.0)
            && known.log.size() + entries.len() as u64 <= left(self.limit.1, reserved.1);
        match room {
            true => Ok(()),
            false => Err(SealError::Full { at: at.clone() }),
        }
    }

    /// Reads a whole log for the entries that are wanted. Nobody waits for it.
    async fn select(
        &self,
        case: &CaseId,
        wanted: impl Fn(&Entry) -> bool + Send + 'static,
    ) -> Result<Vec<Entry>, SealError> {
        let at = log_of(case)?;
        let Read { log, entries, .. } = self.read(&at, None, wanted).await?;
        let slot = self.slot(case).await;
        if let Ok(mut open) = slot.try_lock()
            && open
                .as_ref()
                .is_none_or(|known| known.log.size() < log.log.size())
        {
            *open = Some(log);
        }
        Ok(entries)
    }

    /// Extends the log in the store; the first entry makes its directory.
    async fn extend(
        &self,
        at: &CollectionId,
        bytes: u64,
        lines: Vec<u8>,
    ) -> Result<u64, StoreError> {
        match self.store.append_log(at, bytes, lines.clone()).await {
            Err(StoreError::NoCollection { .. }) if bytes == 0 => {}
            other => return other,
        }
        match self.store.create_collection(at).await {
            Ok(()) | Err(StoreError::CollectionExists { .. }) => {}
            Err(error) => return Err(error),
        }
        self.store.append_log(at, bytes, lines).await
    }

    /// Puts a newer checkpoint in place, unless another replica's, over more entries, is there: the
    /// log only grows, so that one covers ours.
    async fn sign(&self, at: &CollectionId, checkpoint: Vec<u8>) -> Result<(), StoreError> {
        match self.store.replace_checkpoint(at, checkpoint).await {
            Ok(()) | Err(StoreError::CheckpointBackwards { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn slot(&self, case: &CaseId) -> Arc<Mutex<Option<OpenLog>>> {
        let mut open = self.open.lock().await;
        if open.len() >= KNOWN && !open.contains_key(case) {
            open.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        open.entry(case.clone()).or_default().clone()
    }

    /// Reads what a log has behind what is `known` of it, or all of it, and checks the whole against its
    /// checkpoint. Entries behind the checkpoint were written by a process that crashed before it could sign
    /// them, or that is about to.
    async fn read(
        &self,
        at: &CollectionId,
        known: Option<OpenLog>,
        wanted: impl Fn(&Entry) -> bool + Send + 'static,
    ) -> Result<Read, SealError> {
        // The checkpoint first: another replica extends the log before it signs it.
        let signed = small(&self.store, at, CHECKPOINT, CHECKPOINT_LIMIT).await?;
        let known = known.unwrap_or_else(|| OpenLog::new(&at.case));
        let (from, least) = (known.log.bytes(), known.log.size());
        let (known, rest) = match self.store.read(at, &CUSTODY.parse()?, from).await {
            Ok(reader) if reader.size == from => (known, None),
            Ok(reader) if reader.size > from => (known, Some(reader.chunks)),
            Ok(_) => {
                // Cut: how much of it is left is said below.
                let all = self.store.read(at, &CUSTODY.parse()?, 0).await?;
                (OpenLog::new(&at.case), Some(all.chunks))
            }
            Err(error) if error.is_not_found() => (OpenLog::new(&at.case), None),
            Err(error) => return Err(error.into()),
        };
        let (log, entries) = match rest {
            Some(rest) => {
                blocking(at, move || {
                    let rest = StreamReader::new(rest.map_err(io::Error::other));
                    known.with(SyncIoBridge::new(rest), wanted)
                })
                .await?
            }
            None => (known, Vec::new()),
        };
        let entries_left = log.log.size();
        if entries_left < least {
            let (entries, covered) = (entries_left, least);
            return Err(wrong(at, CustodyError::Cut { entries, covered }));
        }
        let signed = self.checked(at, &log.log, signed)?;
        Ok(Read {
            log,
            entries,
            signed,
        })
    }

    /// Compares a log with its checkpoint, if it has one; how many entries that covers.
    fn checked(
        &self,
        at: &CollectionId,
        log: &CustodyLog,
        signed: Option<Vec<u8>>,
    ) -> Result<u64, SealError> {
        let Some(signed) = signed else { return Ok(0) };
        let opened = Checkpoint::open(&signed, &self.trusted);
        let checkpoint = opened.map_err(|source| SealError::Checkpoint {
            at: at.clone(),
            source,
        })?;
        log.check(&checkpoint).map_err(|source| wrong(at, source))?;
        Ok(checkpoint.head.size)
    }
}

fn wrong(at: &CollectionId, source: CustodyError) -> SealError {
    SealError::Log {
        at: at.clone(),
        source,
    }
}

/// Parses on a thread for blocking work. A store that fails meanwhile says so itself.
async fn blocking<T: Send + 'static>(
    at: &CollectionId,
    work: impl FnOnce() -> Result<T, CustodyError> + Send + 'static,
) -> Result<T, SealError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|_| StoreError::WriterLost { at: at.to_string() })?;
    done.map_err(|error| match error {
        CustodyError::Io(error) => match error.downcast::<StoreError>() {
            Ok(error) => SealError::Store(error),
            Err(error) => wrong(at, CustodyError::Io(error)),
        },
        error => wrong(at, error),
    })
}

/// The whole lines of a log. An unfinished last line was never acknowledged, and the next append
/// cuts it off.
pub(super) async fn lines(store: &Arc<dyn Store>, at: &CollectionId) -> Result<Vec<u8>, SealError> {
    let mut lines = small(store, at, CUSTODY, LOG_LIMIT)
        .await?
        .unwrap_or_default();
    let end = lines
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |last| last + 1);
    lines.truncate(end);
    Ok(lines)
}

/// Where a case's log is.
///
/// # Errors
/// Never: the name is ours.
pub fn log_of(case: &CaseId) -> Result<CollectionId, NameError> {
    Ok(CollectionId {
        case: case.clone(),
        name: case_log()?,
    })
}

/// A small file, or nothing if neither it nor its collection is there.
pub(super) async fn small(
    store: &Arc<dyn Store>,
    at: &CollectionId,
    file: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, SealError> {
    match store.read_small(at, &file.parse()?, limit).await {
        Err(StoreError::NoCollection { .. }) => Ok(None),
        other => Ok(other?),
    }
}
