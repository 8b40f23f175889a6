//! The threads that list a tar, and the queues to and from them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use impound_evidence::Method;
use impound_evidence::index::{BodyIndex, Changes, FileIndex, Indexed, Kind, Limits};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::What;

/// Chunks of half a MiB that wait for a thread: as many as wait for the disk, which are the same.
const QUEUE: usize = 16;
/// Of a tar that is read again: it can be read when there is room.
const QUEUE_AGAIN: usize = 4;
/// Bytes of lines from which on they are handed to the writer.
pub(super) const PIECE: usize = 64 << 10;
/// Pieces on their way to the writers.
const PIECES: usize = 8;
/// Longest time until a thread takes a chunk: it has listed the one before it within a second, unless what it
/// writes to stands still. The tar does not wait longer.
const STANDSTILL: Duration = Duration::from_secs(150);

/// Niceness of the threads that get what nothing else wants.
const LEISURELY: i32 = 19;

/// Which of the two waits, a tar or its listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// A file system that changes while it arrives waits for nobody: listings that can't keep up are given up.
    Hurried,
    /// What stands still where it comes from, or would have to cross a network again, waits for its listings.
    InStep,
    /// A stored tar is read again, at leisure.
    Again,
}

/// Where a tar's bytes go besides the store.
pub(in crate::collect) struct Tap {
    queues: Vec<mpsc::Sender<Bytes>>,
    pace: Pace,
    patience: Duration,
    lack: Arc<OnceLock<Lack>>,
}

/// Why the listings don't have every byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// The tar was faster: hashes, MD5 above all, cost more than this machine's processors had to spare.
    Behind,
    /// A thread ended early or stood still.
    Lost,
}

impl Tap {
    /// Gives the next bytes to every thread, and waits while one is behind, unless the tar is hurried. Nothing that
    /// a thread does costs the tar: its listings can be made again.
    pub(in crate::collect) async fn send(&mut self, chunk: &Bytes) {
        for queue in &self.queues {
            let lack = if self.pace == Pace::Hurried {
                match queue.try_send(chunk.clone()) {
                    Ok(()) => continue,
                    Err(TrySendError::Full(_)) => Lack::Behind,
                    Err(TrySendError::Closed(_)) => Lack::Lost,
                }
            } else {
                match timeout(self.patience, queue.send(chunk.clone())).await {
                    Ok(Ok(())) => continue,
                    _ => Lack::Lost,
                }
            };
            self.lack.get_or_init(|| lack);
            self.queues.clear();
            return;
        }
    }
}

/// The threads' end: what they have written, and what they know when the tap is gone.
pub(super) struct Threads {
    pub(super) pieces: mpsc::Receiver<(What, Vec<u8>)>,
    index: oneshot::Receiver<Indexed>,
    body: Option<oneshot::Receiver<()>>,
    lack: Arc<OnceLock<Lack>>,
}

impl Threads {
    /// What is known at the end, once all pieces were taken, unless not every byte was seen to the end.
    pub(super) async fn end(&mut self) -> Result<Indexed, Lack> {
        if let Some(lack) = self.lack.get() {
            return Err(*lack);
        }
        let indexed = (&mut self.index).await.map_err(|_| Lack::Lost)?;
        if let Some(body) = &mut self.body {
            body.await.map_err(|_| Lack::Lost)?;
        }
        self.lack.get().map_or(Ok(indexed), |lack| Err(*lack))
    }

    /// Why not every byte is seen, once that is so.
    pub(super) fn lack(&self) -> Arc<OnceLock<Lack>> {
        Arc::clone(&self.lack)
    }
}

/// Starts the threads for a tar. `body`: whether its body file and MD5 hashes are wanted.
pub(super) fn start(
    method: Method,
    changes: Option<Changes>,
    body: bool,
    pace: Pace,
) -> (Threads, Tap) {
    let queue = match pace {
        Pace::Again => QUEUE_AGAIN,
        Pace::Hurried | Pace::InStep => QUEUE,
    };
    let (to_writers, pieces) = mpsc::channel(PIECES);
    let (to_files, chunks) = mpsc::channel(queue);
    let mut queues = vec![to_files];
    let kind = match method {
        Method::Export | Method::Layer => Kind::FileSystem(changes.unwrap_or_default()),
        Method::Commit => Kind::Image,
        _ => Kind::Other,
    };
    let to = to_writers.clone();
    // A tar that waits for its listings should not wait for long.
    let leisurely = pace != Pace::InStep;
    let index = thread("list", leisurely, move || list_files(chunks, kind, &to));
    let body = body.then(|| {
        let (to_body, chunks) = mpsc::channel(queue);
        queues.push(to_body);
        thread("list-md5", leisurely, move || {
            list_body(chunks, &to_writers)
        })
    });
    let lack = Arc::default();
    let threads = Threads {
        pieces,
        index,
        body,
        lack: Arc::clone(&lack),
    };
    let tap = Tap {
        queues,
        pace,
        patience: STANDSTILL,
        lack,
    };
    (threads, tap)
}

/// Runs `work` on a thread of its own: one of the pool could not take back that it is leisurely. If none can be
/// had, or it panics, nothing comes.
fn thread<T: Send + 'static>(
    name: &str,
    leisurely: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (ended, end) = oneshot::channel();
    let work = move || {
        if leisurely {
            // No harm but a slower export if it is refused.
            let _ = rustix::process::setpriority_process(None, LEISURELY);
        }
        let _ = ended.send(work());
    };
    let _ = std::thread::Builder::new().name(name.into()).spawn(work);
    end
}

type Pieces = mpsc::Sender<(What, Vec<u8>)>;

fn list_files(mut chunks: mpsc::Receiver<Bytes>, kind: Kind, to: &Pieces) -> Indexed {
    let mut index = FileIndex::new(kind, Limits::default());
    while let Some(chunk) = chunks.blocking_recv() {
        index.update(&chunk);
        let lines = index.lines();
        hand_on(to, What::Files, &mut lines.files, PIECE);
        hand_on(to, What::Sha256, &mut lines.sha256, PIECE);
        hand_on(to, What::Changes, &mut lines.changes, PIECE);
    }
    let mut indexed = index.finish();
    hand_on(to, What::Files, &mut indexed.lines.files, 1);
    hand_on(to, What::Sha256, &mut indexed.lines.sha256, 1);
    hand_on(to, What::Changes, &mut indexed.lines.changes, 1);
    indexed
}

fn list_body(mut chunks: mpsc::Receiver<Bytes>, to: &Pieces) {
    let mut index = BodyIndex::new(Limits::default());
    while let Some(chunk) = chunks.blocking_recv() {
        index.update(&chunk);
        let lines = index.lines();
        hand_on(to, What::Body, &mut lines.body, PIECE);
        hand_on(to, What::Md5, &mut lines.md5, PIECE);
    }
    let mut lines = index.finish();
    hand_on(to, What::Body, &mut lines.body, 1);
    hand_on(to, What::Md5, &mut lines.md5, 1);
}

/// Lines from `enough` bytes on. Nobody takes them once the attempt was given up.
fn hand_on(to: &Pieces, what: What, lines: &mut Vec<u8>, enough: usize) {
    if lines.len() >= enough {
        let _ = to.blocking_send((what, std::mem::take(lines)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_ends_early_costs_the_listings_and_stops_no_tar() {
        for pace in [Pace::Hurried, Pace::InStep, Pace::Again] {
            let (mut threads, mut tap) = start(Method::Export, None, true, pace);
            // As after a panic: its end of the queue is gone.
            let (dead, gone) = mpsc::channel(1);
            drop(gone);
            tap.queues.push(dead);
            let tar = Bytes::from_static(&[0; 1024]);
            tap.send(&tar).await;
            tap.send(&tar).await;
            drop(tap);
            while threads.pieces.recv().await.is_some() {}
            assert_eq!(threads.end().await.err(), Some(Lack::Lost));
        }
    }

    #[tokio::test]
    async fn a_thread_that_stands_still_stops_no_tar() {
        let (threads, mut tap) = start(Method::Export, None, false, Pace::InStep);
        let (full, _held) = mpsc::channel(1);
        full.send(Bytes::new()).await.unwrap();
        tap.queues.push(full);
        tap.patience = Duration::from_millis(20);
        tap.send(&Bytes::from_static(&[0; 512])).await;
        assert_eq!(
            (tap.queues.len(), threads.lack().get()),
            (0, Some(&Lack::Lost))
        );
    }

    #[tokio::test]
    async fn a_hurried_tar_waits_for_no_listing() {
        let (mut threads, mut tap) = start(Method::Export, None, true, Pace::Hurried);
        let (slow, _held) = mpsc::channel(1);
        tap.queues.push(slow);
        let tar = Bytes::from_static(&[0; 512]);
        tap.send(&tar).await;
        tap.send(&tar).await;
        drop(tap);
        while threads.pieces.recv().await.is_some() {}
        assert_eq!(threads.end().await.err(), Some(Lack::Behind));
    }

    #[tokio::test]
    async fn a_tar_that_was_seen_to_its_end_is_listed() {
        for pace in [Pace::Hurried, Pace::InStep, Pace::Again] {
            let (mut threads, mut tap) = start(Method::Export, None, true, pace);
            tap.send(&Bytes::from_static(&[0; 1024])).await;
            drop(tap);
            while threads.pieces.recv().await.is_some() {}
            let indexed = threads.end().await.unwrap();
            assert!(indexed.summary.completeness.is_complete());
        }
    }
}
