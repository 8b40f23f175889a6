//! Hashes bytes beside the task that moves them.

use bytes::Bytes;
use impound_evidence::{Digests, DigestsHasher, Sha256, Sha256Hasher};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::S3Error;
use super::http::Chunks;
use crate::store::Content;

/// Chunks that wait to be hashed.
const QUEUE: usize = 4;

/// A thread that hashes what it is sent.
pub(super) struct Hashing<T> {
    pub(super) chunks: mpsc::Sender<Bytes>,
    result: JoinHandle<T>,
}

impl Hashing<Content> {
    /// For bytes on their way to the store.
    pub(super) fn of_content() -> Self {
        Self::start(|mut queue| {
            let mut hasher = Sha256Hasher::new();
            let mut size = 0;
            while let Some(chunk) = queue.blocking_recv() {
                hasher.update(&chunk);
                size += chunk.len() as u64;
            }
            let sha256 = hasher.finish();
            Content { size, sha256 }
        })
    }
}

impl Hashing<Digests> {
    /// For bytes that are read back.
    pub(super) fn of_digests() -> Self {
        Self::start(|mut queue| {
            let mut hasher = DigestsHasher::new();
            while let Some(chunk) = queue.blocking_recv() {
                hasher.update(&chunk);
            }
            hasher.finish()
        })
    }
}

impl<T: Send + 'static> Hashing<T> {
    fn start(hash: impl FnOnce(mpsc::Receiver<Bytes>) -> T + Send + 'static) -> Self {
        let (chunks, queue) = mpsc::channel(QUEUE);
        let result = tokio::task::spawn_blocking(move || hash(queue));
        Self { chunks, result }
    }

    /// Of everything that was sent; nothing if the thread has ended early.
    pub(super) async fn end(self) -> Option<T> {
        drop(self.chunks);
        self.result.await.ok()
    }
}

/// A body and its digest.
pub(super) async fn hashed(body: Chunks) -> Result<(Chunks, Sha256), S3Error> {
    let hashing = tokio::task::spawn_blocking(move || {
        let mut hasher = Sha256Hasher::new();
        for piece in body.pieces() {
            hasher.update(piece);
        }
        (body, hasher.finish())
    });
    let lost = |_| S3Error::Request("the thread that hashes ended".to_owned());
    hashing.await.map_err(lost)
}
