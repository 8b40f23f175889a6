//! Receives one artifact's stream: checks its order, hashes it, has a tar listed, and hands the bytes
//! on to the store's writer.
//!
//! ```text
//! connection task (TLS, HTTP/2) -> this loop -> queue -> hashing thread (SHA-256)
//!                                            -> queues -> the listing threads, of a tar
//!                                            -> queue -> the writer's threads
//! ```
//! Chunks are reference-counted, not copied: however many queues of chunks there are, memory is
//! the client's 8 MiB stream window and little more than the longest of the queues.

use std::time::Duration;

use bytes::Bytes;
use impound_evidence::{Completeness, Sha256, Sha256Hasher};
use impound_proto::agent::v1 as wire;
use impound_proto::tls::explain;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Status, Streaming};
use wire::artifact_message::Message;

use super::derive::Tap;
use super::failure::cut;
use crate::store::{Content, ObjectWriter, StoreError};

/// Most reasons for an artifact's incompleteness that are recorded.
const REASONS: usize = 16;
/// Chunks of half a MiB that wait to be hashed: as many as wait for the disk, which are the same.
const QUEUE: usize = 16;
/// Most bytes of one chunk, of the wire contract.
const CHUNK_LIMIT: usize = 1 << 20;

/// An artifact that arrived to its trailer.
pub(super) struct Received {
    /// What arrived; the trailer says the same.
    pub(super) content: Content,
    /// The agent's verdict, or ours if it is worse.
    pub(super) completeness: Completeness,
    /// When the agent had the last byte.
    pub(super) finished: Option<prost_types::Timestamp>,
}

/// Why a stream did not bring its artifact.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    /// The agent or the connection ended it.
    #[error("the agent's stream broke off: {}", explain(.0))]
    Status(#[from] Status),
    /// Nothing came.
    #[error("the agent sent nothing for {} s", .0.as_secs())]
    Silence(Duration),
    /// Messages in another order than the contract says.
    #[error("expected {expected}, the agent sent {found}")]
    Order {
        /// What belonged there.
        expected: &'static str,
        /// What came.
        found: &'static str,
    },
    /// A gap or an overlap.
    #[error("expected the chunk at byte {expected}, the agent sent the one at {found}")]
    Gap {
        /// Where the last chunk ended.
        expected: u64,
        /// Where this one begins.
        found: u64,
    },
    /// Changes are missing from a diff, or too many.
    #[error("{expected} changes were announced by the agent's trailer, {found} arrived")]
    Count {
        /// The trailer's.
        expected: u64,
        /// What arrived.
        found: u64,
    },
    /// Too large or empty.
    #[error("expected a chunk of 1 to {CHUNK_LIMIT} bytes, the agent sent {0}")]
    Chunk(usize),
    /// The trailer is about other bytes.
    #[error("{expected} were announced by the agent's trailer, {found} arrived")]
    Differs {
        /// The trailer's.
        expected: Content,
        /// What arrived.
        found: Content,
    },
    /// The trailer's digest is none.
    #[error("the agent's trailer has no SHA-256")]
    NoDigest,
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The hashing thread ended.
    #[error("the thread that hashes it ended unexpectedly")]
    HasherLost,
}

/// The header that begins every stream, if it comes within `limit`.
pub(super) async fn header(
    stream: &mut Streaming<wire::ArtifactMessage>,
    limit: Duration,
) -> Result<wire::ArtifactHeader, ReceiveError> {
    match next(stream, limit).await? {
        Some(Message::Header(header)) => Ok(header),
        other => Err(ReceiveError::Order {
            expected: "a header",
            found: name(other.as_ref()),
        }),
    }
}

/// Everything behind the header. A tar's bytes also go to `tap`. `limit` is asked how long the next
/// message may take, `watch` told how many bytes have come.
pub(super) async fn body(
    stream: &mut Streaming<wire::ArtifactMessage>,
    writer: &mut dyn ObjectWriter,
    tap: Option<Tap>,
    limit: impl Fn() -> Duration,
    watch: impl Fn(u64),
) -> Result<Received, ReceiveError> {
    let (to_hash, chunks) = mpsc::channel(QUEUE);
    let hashing = tokio::task::spawn_blocking(move || hash(chunks));
    let mut at = 0;
    let trailer = loop {
        match next(stream, limit()).await? {
            Some(Message::Chunk(chunk)) => {
                if chunk.offset != at {
                    return Err(ReceiveError::Gap {
                        expected: at,
                        found: chunk.offset,
                    });
                }
                if chunk.data.is_empty() || chunk.data.len() > CHUNK_LIMIT {
                    return Err(ReceiveError::Chunk(chunk.data.len()));
                }
                at += chunk.data.len() as u64;
                to_hash
                    .send(chunk.data.clone())
                    .await
                    .map_err(|_| ReceiveError::HasherLost)?;
                if let Some(tap) = &tap {
                    tap.send(&chunk.data).await?;
                }
                writer.write(chunk.data).await?;
                watch(at);
            }
            Some(Message::Trailer(trailer)) => break trailer,
            other => {
                return Err(ReceiveError::Order {
                    expected: "a chunk or a trailer",
                    found: name(other.as_ref()),
                });
            }
        }
    };
    // An error status behind the trailer takes it back.
    if let Some(more) = next(stream, limit()).await? {
        return Err(ReceiveError::Order {
            expected: "the end",
            found: name(Some(&more)),
        });
    }
    drop(to_hash);
    let sha256 = hashing.await.map_err(|_| ReceiveError::HasherLost)?;
    let tar = match tap {
        Some(tap) => Some(tap.end().await?),
        None => None,
    };
    let found = Content { size: at, sha256 };
    let announced =
        Sha256::try_from(trailer.sha256.as_slice()).map_err(|_| ReceiveError::NoDigest)?;
    let expected = Content {
        size: trailer.size,
        sha256: announced,
    };
    if found != expected {
        return Err(ReceiveError::Differs { expected, found });
    }
    Ok(Received {
        content: found,
        completeness: verdict(&trailer, tar),
        finished: trailer.finished,
    })
}

/// The agent's word, unless the bytes themselves say otherwise.
fn verdict(trailer: &wire::ArtifactTrailer, tar: Option<Completeness>) -> Completeness {
    let theirs = trailer.reasons.iter().take(REASONS).cloned().map(cut);
    let mut reasons = match trailer.completeness() {
        wire::Completeness::Complete => Vec::new(),
        wire::Completeness::Incomplete if !trailer.reasons.is_empty() => theirs.collect(),
        wire::Completeness::Incomplete => vec!["the agent gave no reason".to_owned()],
        wire::Completeness::Unspecified => {
            vec!["the agent did not say whether it is complete".to_owned()]
        }
    };
    if let Some(Completeness::Incomplete { reasons: ours }) = tar {
        let new = |reason: &String| !trailer.reasons.contains(reason);
        reasons.extend(ours.into_iter().filter(new));
    }
    if reasons.is_empty() {
        Completeness::Complete
    } else {
        Completeness::Incomplete { reasons }
    }
}

fn hash(mut chunks: mpsc::Receiver<Bytes>) -> Sha256 {
    let mut hasher = Sha256Hasher::new();
    while let Some(chunk) = chunks.blocking_recv() {
        hasher.update(&chunk);
    }
    hasher.finish()
}

async fn next(
    stream: &mut Streaming<wire::ArtifactMessage>,
    limit: Duration,
) -> Result<Option<Message>, ReceiveError> {
    let message = timeout(limit, stream.message())
        .await
        .map_err(|_| ReceiveError::Silence(limit))??;
    match message {
        None => Ok(None),
        Some(wire::ArtifactMessage {
            message: Some(message),
        }) => Ok(Some(message)),
        Some(_) => Err(ReceiveError::Order {
            expected: "a message",
            found: "an empty one",
        }),
    }
}

fn name(message: Option<&Message>) -> &'static str {
    match message {
        None => "the end without a trailer",
        Some(Message::Header(_)) => "a header",
        Some(Message::Chunk(_)) => "a chunk",
        Some(Message::Trailer(_)) => "a trailer",
    }
}
