//! Receives one artifact's stream: checks its order and a tar's end, has a tar listed, and hands the bytes
//! on to the store's writer.
//!
//! ```text
//! connection task (TLS, HTTP/2) -> this loop -> queues -> the listing threads, of a tar
//!                                            -> queue -> the writer's threads
//! ```
//! What arrived is hashed where the store reads it back, behind the writer, and that digest must be the
//! trailer's: it speaks for the way here and for the store, and a second one here would cost every export a
//! tenth of its time to say half of it again.
//!
//! Chunks are reference-counted, not copied: however many queues of chunks there are, memory is
//! the client's 8 MiB stream window and little more than the longest of the queues.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use impound_evidence::{Completeness, Sha256, TarEnd};
use impound_proto::agent::v1 as wire;
use impound_proto::tls::explain;
use tokio::time::timeout;
use tonic::{Status, Streaming};
use wire::artifact_message::Message;

use super::budget::Share;
use super::derive::Tap;
use super::failure::cut;
use crate::store::{Content, ObjectWriter, StoreError};

/// Most reasons for an artifact's incompleteness that are recorded.
const REASONS: usize = 16;
/// Most bytes of one chunk, of the wire contract.
const CHUNK_LIMIT: usize = 1 << 20;
/// Bytes below which chunks are gathered. An agent of ours sends larger ones, but for the last.
const GATHERED: usize = 64 << 10;
/// Most bytes of a document: what the runtime says of a container has some KiB, and who reads it later
/// reads it whole.
pub(super) const DOCUMENT: u64 = 16 << 20;
/// Longest time until the store takes a chunk: longer than an object store's retries.
pub(super) const STALL: Duration = Duration::from_secs(600);

/// What is on its way.
pub(super) enum Incoming {
    /// JSON, of at most [`DOCUMENT`] bytes.
    Document,
    /// A tar of any size, whose bytes also go there.
    Tar(Option<Tap>),
}

/// An artifact that arrived to its trailer.
pub(super) struct Received {
    /// As many bytes as came, and the SHA-256 that the trailer says they have: what the store reads back must
    /// be that.
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
    /// More than a document has.
    #[error("expected a document of at most {DOCUMENT} bytes, the agent sent more")]
    TooLong,
    /// The trailer is about other bytes.
    #[error("{expected} bytes were announced by the agent's trailer, {found} arrived")]
    Size {
        /// The trailer's.
        expected: u64,
        /// What arrived.
        found: u64,
    },
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
    /// The store stands still: nothing can be kept there either.
    #[error("the store has not taken the next bytes for {} s", STALL.as_secs())]
    Stalled,
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

/// Everything behind the header. `limit` is asked how long the next message may take, `watch` told how many
/// bytes have come, and `share` waited for after each chunk.
pub(super) async fn body(
    stream: &mut Streaming<wire::ArtifactMessage>,
    writer: &mut dyn ObjectWriter,
    incoming: Incoming,
    limit: impl Fn() -> Duration,
    watch: impl Fn(u64),
    share: &Share<'_>,
) -> Result<Received, ReceiveError> {
    let (tar, most, tap) = match incoming {
        Incoming::Document => (None, DOCUMENT, None),
        Incoming::Tar(tap) => (Some(TarEnd::new()), u64::MAX, tap),
    };
    let mut intake = Intake {
        tar,
        tap,
        writer,
        gathered: BytesMut::new(),
    };
    let came = chunks_of(stream, &mut intake, most, &limit, watch, share).await;
    // Also of what broke off: what came is kept. A store that stands still is not asked again.
    let flushed = match came {
        Err(ReceiveError::Stalled) => Ok(()),
        _ => intake.flush().await,
    };
    let tar = intake.tar.map(TarEnd::finish);
    let (trailer, found) = came?;
    flushed?;
    // An error status behind the trailer takes it back.
    if let Some(more) = next(stream, limit()).await? {
        return Err(ReceiveError::Order {
            expected: "the end",
            found: name(Some(&more)),
        });
    }
    let sha256 = Sha256::try_from(trailer.sha256.as_slice()).map_err(|_| ReceiveError::NoDigest)?;
    let expected = trailer.size;
    if found != expected {
        return Err(ReceiveError::Size { expected, found });
    }
    Ok(Received {
        content: Content {
            size: found,
            sha256,
        },
        completeness: verdict(&trailer, tar),
        finished: trailer.finished,
    })
}

/// The chunks up to the trailer, and how many bytes they had.
async fn chunks_of(
    stream: &mut Streaming<wire::ArtifactMessage>,
    intake: &mut Intake<'_>,
    most: u64,
    limit: &impl Fn() -> Duration,
    watch: impl Fn(u64),
    share: &Share<'_>,
) -> Result<(wire::ArtifactTrailer, u64), ReceiveError> {
    let mut at = 0;
    loop {
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
                if at > most {
                    return Err(ReceiveError::TooLong);
                }
                let bytes = chunk.data.len();
                intake.take(chunk.data).await?;
                watch(at);
                share.came(bytes).await;
            }
            Some(Message::Trailer(trailer)) => return Ok((trailer, at)),
            other => {
                return Err(ReceiveError::Order {
                    expected: "a chunk or a trailer",
                    found: name(other.as_ref()),
                });
            }
        }
    }
}

/// Where the bytes go.
struct Intake<'w> {
    tar: Option<TarEnd>,
    tap: Option<Tap>,
    writer: &'w mut dyn ObjectWriter,
    /// Of chunks that are small: each would hold the buffer that it came in, and cost a turn of every thread.
    gathered: BytesMut,
}

impl Intake<'_> {
    async fn take(&mut self, chunk: Bytes) -> Result<(), ReceiveError> {
        if chunk.len() < GATHERED {
            self.gathered.extend_from_slice(&chunk);
            return match self.gathered.len() < GATHERED {
                true => Ok(()),
                false => self.flush().await,
            };
        }
        self.flush().await?;
        self.pass(chunk).await
    }

    async fn flush(&mut self) -> Result<(), ReceiveError> {
        match self.gathered.is_empty() {
            true => Ok(()),
            false => {
                let gathered = self.gathered.split().freeze();
                self.pass(gathered).await
            }
        }
    }

    async fn pass(&mut self, data: Bytes) -> Result<(), ReceiveError> {
        if let Some(tar) = &mut self.tar {
            tar.update(&data);
        }
        if let Some(tap) = &mut self.tap {
            tap.send(&data).await;
        }
        Ok(in_time(self.writer.write(data)).await??)
    }
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

/// What is taken within [`STALL`].
async fn in_time<T>(taken: impl Future<Output = T>) -> Result<T, ReceiveError> {
    timeout(STALL, taken)
        .await
        .map_err(|_| ReceiveError::Stalled)
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
