//! Writes one object: a thread that writes and syncs, and one that reads back behind it. A small object is
//! written and read back in one go when it has come.
//!
//! ```text
//! write() -> queue of 16 chunks -> block, up to 4 MiB -> pwrite (direct) -> fdatasync, each 64 MiB at least
//!                                                                         -> reread thread
//! ```
//! Direct I/O halves the processor time of writing (no copy through the page cache), does not count
//! as the process's memory in its cgroup, and makes the re-read one from the device.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc as marks;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use impound_evidence::{Digests, EvidencePath};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::aligned::{BLOCK, Block};
use super::reread::{self, Mark};
use super::tree::{self, TEMPORARY, Tree};
use super::unfinished::Left;
use crate::store::{CollectionLock, Content, ObjectWriter, Receipt, StoreError, Unfinished};

/// Chunks that wait for the disk: 16 of half a MiB ride out 30 ms of a sync without stalling the stream.
const QUEUE: usize = 16;
/// Bytes up to which an object waits in memory for its end: documents, diffs, most listings.
const SMALL: usize = 1 << 20;
/// Most bytes between syncs: what remains to be re-read at the end, well under a second of disk time.
const SYNC_EVERY: u64 = 64 << 20;
/// Before that, a sync comes whenever this part of what is there has been added: of a small tar, too, most is
/// re-read before its end.
const SYNC_PART: u64 = 4;

/// An object's file while it has no name. The lock lives as long as any thread that uses the file.
pub(super) struct Temporary {
    pub(super) tree: Arc<Tree>,
    pub(super) directory: OwnedFd,
    pub(super) file: OwnedFd,
    pub(super) path: EvidencePath,
    pub(super) lock: CollectionLock,
}

impl Temporary {
    /// Makes the file. Blocks.
    pub(super) fn create(
        tree: Arc<Tree>,
        lock: CollectionLock,
        path: EvidencePath,
    ) -> Result<Self, StoreError> {
        let at = lock.collection();
        tree::writable(at, &path)?;
        let name = tree::name(at, &path);
        let directory = tree.parent(at, &path, true)?;
        match fs::statat(&directory, path.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(StoreError::ObjectExists { at: name }),
            Err(error) => return Err(tree.failed(&name, "look for it", error)),
        }
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::openat(
            &directory,
            temporary_name(&path),
            flags,
            Mode::RUSR | Mode::WUSR,
        ) {
            Ok(file) => Ok(Self {
                tree,
                directory,
                file,
                path,
                lock,
            }),
            Err(Errno::EXIST) => Err(StoreError::Leftover { at: name }),
            Err(error) => Err(tree.failed(&name, "create it", error)),
        }
    }

    /// Gives the file a name in its directory. Its bytes must be durable and re-read. Blocks.
    pub(super) fn publish(
        &self,
        at: &EvidencePath,
        digests: Digests,
    ) -> Result<Receipt, StoreError> {
        let name = tree::name(self.lock.collection(), at);
        let temporary = temporary_name(&self.path);
        let renamed = fs::renameat_with(
            &self.directory,
            temporary.as_str(),
            &self.directory,
            at.file_name(),
            fs::RenameFlags::NOREPLACE,
        );
        let named = match renamed {
            // A file system without that flag (NFS): a hard link doesn't replace anything either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::linkat(
                &self.directory,
                temporary.as_str(),
                &self.directory,
                at.file_name(),
                AtFlags::empty(),
            )
            .and_then(|()| fs::unlinkat(&self.directory, temporary.as_str(), AtFlags::empty())),
            other => other,
        };
        match named {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(StoreError::ObjectExists { at: name }),
            Err(error) => return Err(self.tree.failed(&name, "give it its name", error)),
        }
        self.tree.sync(&name, &self.directory)?;
        let storage = self.tree.receipt(&name);
        Ok(Receipt::new(at.clone(), digests, storage))
    }

    /// Removes the file. Blocks.
    pub(super) fn remove(&self) -> Result<(), StoreError> {
        match fs::unlinkat(
            &self.directory,
            temporary_name(&self.path),
            AtFlags::empty(),
        ) {
            Ok(()) | Err(Errno::NOENT) => self.tree.sync(&self.name(), &self.directory),
            Err(error) => Err(self
                .tree
                .failed(&self.name(), "remove what there is of it", error)),
        }
    }

    /// A second descriptor of the same file, for reading.
    pub(super) fn reopen(&self) -> Result<OwnedFd, StoreError> {
        let name = self.name();
        let opened = self
            .tree
            .regular(&self.directory, &temporary_name(&self.path), &name)?;
        let (file, _) = opened.ok_or_else(|| StoreError::NotFound { at: name.clone() })?;
        let inode = |fd: &OwnedFd| {
            fs::fstat(fd)
                .map(|stat| (stat.st_dev, stat.st_ino))
                .map_err(|error| self.tree.failed(&name, "look at it", error))
        };
        if inode(&file)? == inode(&self.file)? {
            Ok(file)
        } else {
            Err(StoreError::Planted {
                at: name,
                expected: "file that was written",
            })
        }
    }

    /// Makes the file durable and read-only. Blocks.
    pub(super) fn settle(&self) -> Result<(), StoreError> {
        fs::fchmod(&self.file, Mode::RUSR)
            .and_then(|()| fs::fsync(&self.file))
            .map_err(|error| self.tree.failed(&self.name(), "sync it", error))
    }

    /// How errors call it.
    pub(super) fn name(&self) -> String {
        tree::name(self.lock.collection(), &self.path)
    }
}

/// The name of the file that becomes `path`, in the same directory.
pub(super) fn temporary_name(path: &EvidencePath) -> String {
    format!("{TEMPORARY}{}", path.file_name())
}

/// The writer of one object: small ones wait in memory for their end, and need no threads of their own.
pub(super) struct Writer {
    temporary: Arc<Temporary>,
    small: BytesMut,
    running: Option<Running>,
}

/// The threads of a large object.
struct Running {
    queue: mpsc::Sender<Command>,
    writing: JoinHandle<Result<(), StoreError>>,
    rereading: JoinHandle<Result<Option<Digests>, StoreError>>,
}

enum Command {
    Data(Bytes),
    End,
}

impl Writer {
    pub(super) fn start(temporary: Temporary) -> Self {
        Self {
            temporary: Arc::new(temporary),
            small: BytesMut::new(),
            running: None,
        }
    }

    /// Ends the writing: what came is durable and re-read, unless an error says otherwise.
    async fn end(self) -> Result<(Arc<Temporary>, Digests), StoreError> {
        let Self {
            temporary,
            small,
            running,
        } = self;
        let lost = || StoreError::WriterLost {
            at: temporary.name(),
        };
        let digests = match running {
            Some(running) => {
                // A failure to send is one of the thread, which `stop` reports.
                let _ = running.queue.send(Command::End).await;
                running.stop(&temporary).await?.ok_or_else(lost)?
            }
            None => {
                let of = Arc::clone(&temporary);
                let written = tokio::task::spawn_blocking(move || {
                    let mut sink = Sink::new(&of, None);
                    sink.take(&small)?;
                    sink.end(true)?;
                    reread::whole(&of.tree, &of.name(), of.reopen()?)
                });
                written.await.map_err(|_| lost())??
            }
        };
        Ok((temporary, digests))
    }
}

impl Running {
    fn start(temporary: &Arc<Temporary>) -> Self {
        let (queue, commands) = mpsc::channel(QUEUE);
        let (mark, marks) = marks::channel();
        let (of, reread_of) = (Arc::clone(temporary), Arc::clone(temporary));
        let writing = tokio::task::spawn_blocking(move || Sink::new(&of, Some(mark)).run(commands));
        let rereading = tokio::task::spawn_blocking(move || {
            reread::follow(
                &reread_of.tree,
                &reread_of.name(),
                reread_of.reopen()?,
                &marks,
            )
        });
        Self {
            queue,
            writing,
            rereading,
        }
    }

    /// Waits for both threads; the bytes are then durable unless an error says otherwise.
    async fn stop(self, temporary: &Temporary) -> Result<Option<Digests>, StoreError> {
        let Self {
            queue,
            writing,
            rereading,
        } = self;
        drop(queue);
        let lost = |_| StoreError::WriterLost {
            at: temporary.name(),
        };
        let written = writing.await.map_err(lost)?;
        // A writer that finds nobody reading behind it stops: the reader knows why.
        let reread = rereading.await.map_err(lost)??;
        written?;
        Ok(reread)
    }

    async fn write(&mut self, data: Bytes, temporary: &Temporary) -> Result<(), StoreError> {
        if self.queue.send(Command::Data(data)).await.is_ok() {
            return Ok(());
        }
        // The thread has ended, so it has failed: say why.
        let lost = || StoreError::WriterLost {
            at: temporary.name(),
        };
        let again = lost();
        let writing = std::mem::replace(&mut self.writing, tokio::spawn(async { Err(again) }));
        match writing.await {
            Ok(Err(error)) => {
                // Whoever ends this writer is told as well.
                let again = error.again();
                self.writing = tokio::spawn(async { Err(again) });
                Err(error)
            }
            _ => Err(lost()),
        }
    }
}

#[async_trait]
impl ObjectWriter for Writer {
    async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        if self.running.is_none() && self.small.len() + data.len() <= SMALL {
            self.small.extend_from_slice(&data);
            return Ok(());
        }
        let running = self
            .running
            .get_or_insert_with(|| Running::start(&self.temporary));
        let waiting = std::mem::take(&mut self.small).freeze();
        if !waiting.is_empty() {
            running.write(waiting, &self.temporary).await?;
        }
        running.write(data, &self.temporary).await
    }

    async fn finish(self: Box<Self>, expected: Content) -> Result<Receipt, StoreError> {
        let (temporary, found) = self.end().await?;
        let name = temporary.name();
        if Content::from(found) != expected {
            return Err(StoreError::Mismatch {
                at: name,
                expected: expected.into(),
                found: Content::from(found).into(),
            });
        }
        let publish = move || temporary.publish(&temporary.path, found);
        tokio::task::spawn_blocking(publish)
            .await
            .map_err(|_| StoreError::WriterLost { at: name })?
    }

    async fn keep(self: Box<Self>) -> Result<Box<dyn Unfinished>, StoreError> {
        let name = self.temporary.name();
        let temporary = Arc::clone(&self.temporary);
        let failure = match self.end().await {
            Ok((temporary, digests)) => return Ok(Box::new(Left::reread(temporary, digests))),
            Err(error) => Some(error),
        };
        // What the disk has taken is kept, also after it failed.
        let settle = move || {
            let (tree, lock) = (&temporary.tree, &temporary.lock);
            Left::settle(tree, lock, temporary.path.clone(), failure)?.ok_or_else(|| {
                StoreError::NotFound {
                    at: temporary.name(),
                }
            })
        };
        tokio::task::spawn_blocking(settle)
            .await
            .map_err(|_| StoreError::WriterLost { at: name })?
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        let name = self.temporary.name();
        let temporary = Arc::clone(&self.temporary);
        if let Some(running) = self.running {
            // Only that the threads have ended counts: what they wrote is not wanted.
            let _ = running.stop(&temporary).await;
        }
        let remove = move || temporary.remove();
        tokio::task::spawn_blocking(remove)
            .await
            .map_err(|_| StoreError::WriterLost { at: name })?
    }
}

/// The writing thread's state.
struct Sink<'a> {
    of: &'a Temporary,
    /// Who reads behind it, if somebody does.
    marks: Option<marks::Sender<Mark>>,
    direct: bool,
    block: Block,
    written: u64,
    synced: u64,
}

impl<'a> Sink<'a> {
    fn new(of: &'a Temporary, marks: Option<marks::Sender<Mark>>) -> Self {
        let direct = fs::fcntl_setfl(&of.file, OFlags::DIRECT).is_ok();
        Self {
            of,
            marks,
            direct,
            block: Block::new(),
            written: 0,
            synced: 0,
        }
    }

    /// Until the end is said, or the sender is gone: then what came is made durable all the same.
    fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), StoreError> {
        let mut ended = false;
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Data(data) => self.take(&data)?,
                Command::End => {
                    ended = true;
                    break;
                }
            }
        }
        self.end(ended)
    }

    /// Makes what came durable. `whole`: as all that there will be.
    fn end(&mut self, whole: bool) -> Result<(), StoreError> {
        // The last block is rarely a multiple of what direct I/O writes.
        self.buffered()?;
        self.flush()?;
        if whole {
            self.of.settle()?;
            return self.mark(Mark::End(self.written));
        }
        fs::fsync(&self.of.file).map_err(|error| self.failed("sync it", error))
    }

    fn mark(&self, mark: Mark) -> Result<(), StoreError> {
        let told = self.marks.as_ref().map_or(Ok(()), |to| to.send(mark));
        told.map_err(|_| StoreError::WriterLost { at: self.of.name() })
    }

    fn take(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let mut rest = self.block.fill(data);
        while self.block.is_full() {
            self.flush()?;
            let due = (self.written / SYNC_PART).clamp(BLOCK as u64, SYNC_EVERY);
            if self.written - self.synced >= due {
                fs::fdatasync(&self.of.file).map_err(|error| self.failed("sync it", error))?;
                self.synced = self.written;
                self.mark(Mark::Synced(self.synced))?;
            }
            rest = self.block.fill(rest);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let tree = &self.of.tree;
        // Small objects are what the rest of the disk is kept for.
        let _room = match self.marks {
            Some(_) => Some(tree.room_for(&self.of.name(), self.block.bytes().len() as u64)?),
            None => None,
        };
        let mut from = 0;
        while let Some(bytes) = self
            .block
            .bytes()
            .get(from..)
            .filter(|bytes| !bytes.is_empty())
        {
            match rustix::io::pwrite(&self.of.file, bytes, self.written) {
                Ok(taken) => {
                    from += taken;
                    self.written += taken as u64;
                }
                Err(Errno::INTR) => {}
                // Another alignment than ours: a device's, or after a short write.
                Err(Errno::INVAL) if self.direct => self.buffered()?,
                Err(error) => return Err(self.failed("write it", error)),
            }
        }
        self.block.clear();
        Ok(())
    }

    fn buffered(&mut self) -> Result<(), StoreError> {
        self.direct = false;
        fs::fcntl_setfl(&self.of.file, OFlags::empty())
            .map_err(|error| self.failed("turn direct I/O off", error))
    }

    fn failed(&self, step: &'static str, error: Errno) -> StoreError {
        self.of.tree.failed(&self.of.name(), step, error)
    }
}
