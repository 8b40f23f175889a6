//! The threads that list a tar, and the queues to and from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use impound_evidence::Method;
use impound_evidence::index::{BodyIndex, Changes, FileIndex, Indexed, Kind, Limits};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::What;

/// Chunks of half a MiB that wait for a thread: as many as wait for the disk, which are the same.
const QUEUE: usize = 16;
/// Bytes of lines from which on they are handed to the writer.
pub(super) const PIECE: usize = 64 << 10;
/// Pieces on their way to the writers.
const PIECES: usize = 8;
/// Longest time until a thread takes a chunk: it has listed the one before it within a second, unless what it
/// writes to stands still. The tar does not wait longer.
const BEHIND: Duration = Duration::from_secs(150);

/// How much of a machine the MD5 hashes may take while a tar arrives: what nothing else wants.
const LEISURELY: i32 = 19;

/// Where a tar's bytes go besides the store.
pub(in crate::collect) struct Tap {
    queues: Vec<mpsc::Sender<Bytes>>,
    /// To the MD5 hashes of a tar that is arriving.
    leisurely: Option<mpsc::Sender<Bytes>>,
    given_up: Arc<AtomicBool>,
    behind: Arc<AtomicBool>,
    patience: Duration,
}

impl Tap {
    /// Gives the next bytes to every thread; waits while one is behind. A thread that has ended or stands
    /// still costs the listings, which can be made again, and never the tar.
    pub(in crate::collect) async fn send(&mut self, chunk: &Bytes) {
        // MD5 is the slowest of all hashes. A machine that has no processor to spare makes these afterwards, of
        // the stored tar.
        if let Some(queue) = &self.leisurely
            && queue.try_send(chunk.clone()).is_err()
        {
            self.behind.store(true, Ordering::Release);
            self.leisurely = None;
        }
        for queue in &self.queues {
            let sent = timeout(self.patience, queue.send(chunk.clone())).await;
            if !matches!(sent, Ok(Ok(()))) {
                self.given_up.store(true, Ordering::Release);
                self.queues.clear();
                return;
            }
        }
    }
}

/// The threads' end: what they have written, and what they know when the tap is gone.
pub(super) struct Threads {
    pub(super) pieces: mpsc::Receiver<(What, Vec<u8>)>,
    index: JoinHandle<Indexed>,
    body: Option<oneshot::Receiver<()>>,
    given_up: Arc<AtomicBool>,
    behind: Arc<AtomicBool>,
}

impl Threads {
    /// What is known at the end, once all pieces were taken. None if not every byte was seen to the end.
    pub(super) async fn end(&mut self) -> Option<Indexed> {
        let indexed = (&mut self.index).await.ok()?;
        if let Some(body) = &mut self.body {
            body.await.ok()?;
        }
        (!self.given_up.load(Ordering::Acquire)).then_some(indexed)
    }
}

impl Threads {
    /// Whether the MD5 hashes were given up because they kept up with nothing. Known at the end.
    pub(super) fn body_is_behind(&self) -> bool {
        self.behind.load(Ordering::Acquire)
    }
}

/// Starts the threads for a tar. `body`: whether its body file and MD5 hashes are wanted;
/// `arriving`: whether the tar waits for nobody.
pub(super) fn start(
    method: Method,
    changes: Option<Changes>,
    body: bool,
    arriving: bool,
) -> (Threads, Tap) {
    let (to_writers, pieces) = mpsc::channel(PIECES);
    let (to_files, chunks) = mpsc::channel(QUEUE);
    let mut queues = vec![to_files];
    let kind = match method {
        Method::Export | Method::Layer => Kind::FileSystem(changes.unwrap_or_default()),
        Method::Commit => Kind::Image,
        _ => Kind::Other,
    };
    let to = to_writers.clone();
    let index = tokio::task::spawn_blocking(move || list_files(chunks, kind, &to));
    let mut leisurely = None;
    let body = body.then(|| {
        let (to_body, chunks) = mpsc::channel(QUEUE);
        match arriving {
            true => leisurely = Some(to_body),
            false => queues.push(to_body),
        }
        listing_body(chunks, to_writers, arriving)
    });
    let (given_up, behind) = (Arc::default(), Arc::default());
    let threads = Threads {
        pieces,
        index,
        body,
        given_up: Arc::clone(&given_up),
        behind: Arc::clone(&behind),
    };
    let tap = Tap {
        queues,
        leisurely,
        given_up,
        behind,
        patience: BEHIND,
    };
    (threads, tap)
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

/// A thread of its own: one of the pool could not take back that it is leisurely. If none can be had, the
/// queue's end is gone and the listing is behind.
fn listing_body(
    chunks: mpsc::Receiver<Bytes>,
    to: Pieces,
    arriving: bool,
) -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    let work = move || {
        if arriving {
            // No harm but a slower export if it is refused.
            let _ = rustix::process::setpriority_process(None, LEISURELY);
        }
        list_body(chunks, &to);
        let _ = ended.send(());
    };
    let _ = std::thread::Builder::new().name("md5".into()).spawn(work);
    end
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
        let (mut threads, mut tap) = start(Method::Export, None, true, false);
        // As after a panic: its end of the queue is gone.
        let (dead, gone) = mpsc::channel(1);
        drop(gone);
        tap.queues.push(dead);
        let tar = Bytes::from_static(&[0; 1024]);
        tap.send(&tar).await;
        tap.send(&tar).await;
        drop(tap);
        while threads.pieces.recv().await.is_some() {}
        assert!(threads.end().await.is_none(), "a part passes for all of it");
    }

    #[tokio::test]
    async fn a_thread_that_stands_still_stops_no_tar() {
        let (_threads, mut tap) = start(Method::Export, None, false, false);
        let (full, _held) = mpsc::channel(1);
        full.send(Bytes::new()).await.unwrap();
        tap.queues.push(full);
        tap.patience = Duration::from_millis(20);
        tap.send(&Bytes::from_static(&[0; 512])).await;
        assert!(tap.queues.is_empty() && tap.given_up.load(Ordering::Acquire));
    }

    #[tokio::test]
    async fn a_tar_that_was_seen_to_its_end_is_listed() {
        let (mut threads, mut tap) = start(Method::Export, None, true, false);
        tap.send(&Bytes::from_static(&[0; 1024])).await;
        drop(tap);
        while threads.pieces.recv().await.is_some() {}
        let indexed = threads.end().await.unwrap();
        assert!(indexed.summary.completeness.is_complete());
    }

    #[tokio::test]
    async fn md5_hashes_that_do_not_keep_up_cost_nothing_else_and_are_known_to_lack() {
        let (mut threads, mut tap) = start(Method::Export, None, true, true);
        let (slow, _held) = mpsc::channel(1);
        tap.leisurely = Some(slow);
        let tar = Bytes::from_static(&[0; 512]);
        tap.send(&tar).await;
        tap.send(&tar).await;
        assert!(tap.leisurely.is_none());
        drop(tap);
        while threads.pieces.recv().await.is_some() {}
        let indexed = threads.end().await.unwrap();
        assert!(indexed.summary.completeness.is_complete() && threads.body_is_behind());
    }
}
