//! The threads that list a tar, and the queues to and from them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use impound_evidence::Method;
use impound_evidence::index::{BodyIndex, Changes, FileIndex, Indexed, Kind, Limits};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::What;
use crate::locked::locked;

/// Chunks of half a MiB that wait for a thread: as many as wait for the disk, which are the same.
const QUEUE: usize = 16;
/// Of a tar that is read from the store from its beginning: it can be read when there is room.
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
    /// A file system that changes while it arrives waits for nobody: a listing that can't keep up gets the rest of
    /// it from the store.
    Hurried,
    /// What stands still where it comes from, or would have to cross a network again, waits for its listings.
    InStep,
    /// It is stored, and all of it is read from there.
    Stored,
}

/// A thread's queue, and where in the tar the bytes begin that it has not been given.
pub(super) struct Queue {
    to: mpsc::Sender<Bytes>,
    at: u64,
}

impl Queue {
    /// Gives the thread what it lacks of the bytes at `at`, and waits while it is busy.
    async fn give(&mut self, at: u64, chunk: &Bytes) -> Result<(), Lost> {
        let seen = usize::try_from(self.at.saturating_sub(at)).unwrap_or(usize::MAX);
        if seen >= chunk.len() {
            return Ok(());
        }
        self.to.send(chunk.slice(seen..)).await.map_err(|_| Lost)?;
        self.at = at + chunk.len() as u64;
        Ok(())
    }
}

/// A thread ended early or stood still: a listing has not every byte and must be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// What became of the queues that the tap doesn't serve to the end.
#[derive(Default)]
struct Rest {
    behind: Vec<Queue>,
    lost: bool,
}

/// Where a tar's bytes go besides the store.
pub(in crate::collect) struct Tap {
    queues: Vec<Queue>,
    hurried: bool,
    patience: Duration,
    rest: Arc<Mutex<Rest>>,
    at: u64,
}

impl Tap {
    /// Gives the next bytes to every thread, and waits while one is busy, unless the tar is hurried: then what is
    /// busy falls behind. Nothing that a thread does costs the tar.
    pub(in crate::collect) async fn send(&mut self, chunk: &Bytes) {
        let mut index = 0;
        while let Some(queue) = self.queues.get_mut(index) {
            let given = if self.hurried {
                match queue.to.try_send(chunk.clone()) {
                    Ok(()) => Ok(()),
                    Err(TrySendError::Full(_)) => {
                        // MD5 above all costs more than this machine's processors have to spare.
                        let mut queue = self.queues.remove(index);
                        queue.at = self.at;
                        locked(&self.rest).behind.push(queue);
                        continue;
                    }
                    Err(TrySendError::Closed(_)) => Err(Lost),
                }
            } else {
                let given = timeout(self.patience, queue.give(self.at, chunk)).await;
                given.unwrap_or(Err(Lost))
            };
            if given == Err(Lost) {
                self.queues.clear();
                let mut rest = locked(&self.rest);
                rest.behind.clear();
                rest.lost = true;
                break;
            }
            index += 1;
        }
        self.at += chunk.len() as u64;
    }
}

/// The threads' end: what they know when they have all bytes.
pub(super) struct Threads {
    index: oneshot::Receiver<Indexed>,
    body: Option<oneshot::Receiver<()>>,
    rest: Arc<Mutex<Rest>>,
}

impl Threads {
    /// Whether the tar was faster than a thread, which needs the rest from the store.
    pub(super) fn are_behind(&self) -> bool {
        !locked(&self.rest).behind.is_empty()
    }

    /// Takes what the tar was too fast for.
    pub(super) fn behind(&self) -> Behind {
        Behind {
            queues: std::mem::take(&mut locked(&self.rest).behind),
            rest: Arc::clone(&self.rest),
        }
    }

    /// What is known at the end, once all pieces were taken, unless not every byte was seen to the end.
    pub(super) async fn end(self) -> Result<Indexed, Lost> {
        let indexed = self.index.await.map_err(|_| Lost)?;
        if let Some(body) = self.body {
            body.await.map_err(|_| Lost)?;
        }
        match locked(&self.rest).lost {
            false => Ok(indexed),
            true => Err(Lost),
        }
    }
}

/// The queues of threads that are behind: given the rest of the tar as it is read from the store.
pub(super) struct Behind {
    queues: Vec<Queue>,
    rest: Arc<Mutex<Rest>>,
}

impl Behind {
    /// Where reading must begin; none if there is nothing to catch up with.
    pub(super) fn from(&self) -> Option<u64> {
        self.queues.iter().map(|queue| queue.at).min()
    }

    /// Gives the bytes at `at` to all that lack them. Nothing else waits, so a thread that gets little of a busy
    /// processor has the time it needs.
    pub(super) async fn give(&mut self, at: u64, chunk: &Bytes) {
        for queue in &mut self.queues {
            if queue.give(at, chunk).await.is_err() {
                self.lose();
                return;
            }
        }
    }

    /// The rest can't be read: what the threads have made is not all.
    pub(super) fn lose(&mut self) {
        self.queues.clear();
        locked(&self.rest).lost = true;
    }
}

/// The threads of a tar, and what they have written. `body`: whether its body file and MD5 hashes are wanted.
pub(super) fn start(
    method: Method,
    changes: Option<Changes>,
    body: bool,
    pace: Pace,
) -> (Threads, Tap, mpsc::Receiver<(What, Vec<u8>)>) {
    let length = match pace {
        Pace::Stored => QUEUE_AGAIN,
        Pace::Hurried | Pace::InStep => QUEUE,
    };
    let (to_writers, pieces) = mpsc::channel(PIECES);
    let (to, chunks) = mpsc::channel(length);
    let mut queues = vec![Queue { to, at: 0 }];
    let kind = match method {
        Method::Export | Method::Layer => Kind::FileSystem(changes.unwrap_or_default()),
        Method::Commit => Kind::Image,
        _ => Kind::Other,
    };
    let lines = to_writers.clone();
    // A tar that waits for its listings should not wait for long.
    let leisurely = pace != Pace::InStep;
    let index = thread("list", leisurely, move || list_files(chunks, kind, &lines));
    let body = body.then(|| {
        let (to, chunks) = mpsc::channel(length);
        queues.push(Queue { to, at: 0 });
        thread("list-md5", leisurely, move || {
            list_body(chunks, &to_writers)
        })
    });
    let mut rest = Rest::default();
    if pace == Pace::Stored {
        rest.behind = std::mem::take(&mut queues);
    }
    let rest = Arc::new(Mutex::new(rest));
    let tap = Tap {
        queues,
        hurried: pace == Pace::Hurried,
        patience: STANDSTILL,
        rest: Arc::clone(&rest),
        at: 0,
    };
    (Threads { index, body, rest }, tap, pieces)
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

    fn queue(length: usize) -> (Queue, mpsc::Receiver<Bytes>) {
        let (to, chunks) = mpsc::channel(length);
        (Queue { to, at: 0 }, chunks)
    }

    async fn drain(mut pieces: mpsc::Receiver<(What, Vec<u8>)>) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some((what, piece)) = pieces.recv().await {
            all.extend(format!("{what:?}:").into_bytes());
            all.extend(piece);
        }
        all
    }

    #[tokio::test]
    async fn a_thread_that_ends_early_costs_the_listings_and_stops_no_tar() {
        for pace in [Pace::Hurried, Pace::InStep] {
            let (threads, mut tap, pieces) = start(Method::Export, None, true, pace);
            // As after a panic: its end of the queue is gone.
            tap.queues.push(queue(1).0);
            let tar = Bytes::from_static(&[0; 1024]);
            tap.send(&tar).await;
            tap.send(&tar).await;
            drop(tap);
            drain(pieces).await;
            assert!(!threads.are_behind());
            assert_eq!(threads.end().await.err(), Some(Lost));
        }
    }

    #[tokio::test]
    async fn a_thread_that_stands_still_stops_no_tar() {
        let (threads, mut tap, pieces) = start(Method::Export, None, false, Pace::InStep);
        let (full, _held) = queue(1);
        full.to.send(Bytes::new()).await.unwrap();
        tap.queues.push(full);
        tap.patience = Duration::from_millis(20);
        tap.send(&Bytes::from_static(&[0; 512])).await;
        assert_eq!(tap.queues.len(), 0);
        drop(tap);
        drain(pieces).await;
        assert_eq!(threads.end().await.err(), Some(Lost));
    }

    #[tokio::test]
    async fn what_falls_behind_a_hurried_tar_sees_the_rest_and_nothing_twice() {
        let (threads, mut tap, pieces) = start(Method::Export, None, true, Pace::Hurried);
        let (slow, mut seen) = queue(1);
        tap.queues.push(slow);
        let tar = Bytes::from_static(&[0; 512]);
        for byte in 1..4 {
            tap.send(&Bytes::from(vec![byte; 512])).await;
        }
        assert_eq!(tap.queues.len(), 2, "the others go on");
        drop(tap);
        drop(tar);
        let mut behind = threads.behind();
        assert_eq!(behind.from(), Some(512));
        let catching_up = async {
            // Pieces of the store's own size, from any place before.
            for (at, byte) in [(0, 1), (256, 1), (512, 2), (768, 2), (1024, 3), (1280, 3)] {
                behind.give(at, &Bytes::from(vec![byte; 256])).await;
            }
            drop(behind);
        };
        let seeing = async {
            let mut all = Vec::new();
            while let Some(chunk) = seen.recv().await {
                all.extend(chunk);
            }
            all
        };
        let ((), all) = tokio::join!(catching_up, seeing);
        assert_eq!(all, [[1; 512], [2; 512], [3; 512]].concat());
        drain(pieces).await;
        assert!(threads.end().await.is_ok());
    }

    #[tokio::test]
    async fn what_can_not_be_read_to_its_end_is_lost() {
        let (threads, tap, pieces) = start(Method::Export, None, true, Pace::Stored);
        drop(tap);
        let mut behind = threads.behind();
        behind.give(0, &Bytes::from_static(&[0; 1024])).await;
        behind.lose();
        drain(pieces).await;
        assert_eq!(threads.end().await.err(), Some(Lost));
    }

    #[tokio::test]
    async fn a_tar_is_listed_alike_as_it_arrives_and_from_the_store() {
        let tar = Bytes::from_static(&[0; 1024]);
        let mut listed = Vec::new();
        for pace in [Pace::Hurried, Pace::InStep, Pace::Stored] {
            let (threads, mut tap, pieces) = start(Method::Export, None, true, pace);
            tap.send(&tar).await;
            drop(tap);
            let mut behind = threads.behind();
            assert_eq!(behind.from().is_some(), pace == Pace::Stored);
            behind.give(0, &tar).await;
            drop(behind);
            listed.push(drain(pieces).await);
            let indexed = threads.end().await.unwrap();
            assert!(indexed.summary.completeness.is_complete());
        }
        assert_eq!(listed[0], listed[1]);
        assert_eq!(listed[0], listed[2]);
    }
}
