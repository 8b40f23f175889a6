//! Receives a container's diff and writes it twice: as `docker diff` prints it, and as JSON lines.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use impound_evidence::{Sha256, Sha256Hasher};
use impound_proto::agent::v1 as wire;
use serde::Serialize;
use tokio::time::timeout;
use tonic::Streaming;
use wire::diff_message::Message;

use super::receive::ReceiveError;
use crate::store::{Content, ObjectWriter};

/// Most changes of one batch, of the wire contract.
const BATCH_LIMIT: usize = 4096;
/// Bytes that are gathered before they go to the writer.
const PIECE: usize = 256 << 10;

/// A diff that arrived to its trailer.
pub(super) struct ReceivedDiff {
    /// Of diff.txt; the trailer says the same.
    pub(super) text: Content,
    /// Of diff.jsonl.
    pub(super) lines: Content,
    /// When the runtime was asked, and when its answer was complete.
    pub(super) started: Option<prost_types::Timestamp>,
    pub(super) finished: Option<prost_types::Timestamp>,
}

/// One line of diff.jsonl.
#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    path: &'a str,
}

/// Receives the whole stream. `limit` is asked how long the next message may take, `watch` told how
/// many bytes of text have come.
pub(super) async fn receive(
    stream: &mut Streaming<wire::DiffMessage>,
    text: &mut dyn ObjectWriter,
    lines: &mut dyn ObjectWriter,
    limit: impl Fn() -> Duration,
    watch: impl Fn(u64),
) -> Result<ReceivedDiff, ReceiveError> {
    let (mut text, mut lines) = (Output::new(text), Output::new(lines));
    let received = changes(stream, &mut text, &mut lines, limit, watch).await;
    // Also of a broken diff: what came is kept. The first failure is the one that is reported.
    let (text, lines) = (text.end().await, lines.end().await);
    let (trailer, changes) = received?;
    let (text, lines) = (text?, lines?);
    let announced =
        Sha256::try_from(trailer.text_sha256.as_slice()).map_err(|_| ReceiveError::NoDigest)?;
    if text.sha256 != announced {
        let expected = Content {
            size: text.size,
            sha256: announced,
        };
        return Err(ReceiveError::Differs {
            expected,
            found: text,
        });
    }
    if trailer.changes != changes {
        return Err(ReceiveError::Count {
            expected: trailer.changes,
            found: changes,
        });
    }
    Ok(ReceivedDiff {
        text,
        lines,
        started: trailer.started,
        finished: trailer.finished,
    })
}

/// The changes up to the trailer, and how many there were.
async fn changes(
    stream: &mut Streaming<wire::DiffMessage>,
    text: &mut Output<'_>,
    lines: &mut Output<'_>,
    limit: impl Fn() -> Duration,
    watch: impl Fn(u64),
) -> Result<(wire::DiffTrailer, u64), ReceiveError> {
    let mut changes = 0;
    let trailer = loop {
        match next(stream, limit()).await? {
            Some(Message::Batch(batch)) => {
                if batch.changes.len() > BATCH_LIMIT {
                    return Err(ReceiveError::Order {
                        expected: "a batch of at most 4096 changes",
                        found: "more",
                    });
                }
                for change in &batch.changes {
                    let kind = letter(change.kind())?;
                    let line = serde_json::to_vec(&Line {
                        kind,
                        path: &change.path,
                    })
                    .unwrap_or_default();
                    text.write(&[kind.as_bytes(), b" ", change.path.as_bytes(), b"\n"])
                        .await?;
                    lines.write(&[&line, b"\n"]).await?;
                    changes += 1;
                }
                watch(text.size);
            }
            Some(Message::Trailer(trailer)) => break trailer,
            None => {
                return Err(ReceiveError::Order {
                    expected: "a trailer",
                    found: "the end without a trailer",
                });
            }
        }
    };
    if next(stream, limit()).await?.is_some() {
        return Err(ReceiveError::Order {
            expected: "the end",
            found: "more behind the trailer",
        });
    }
    Ok((trailer, changes))
}

fn letter(kind: wire::ChangeKind) -> Result<&'static str, ReceiveError> {
    match kind {
        wire::ChangeKind::Added => Ok("A"),
        wire::ChangeKind::Changed => Ok("C"),
        wire::ChangeKind::Deleted => Ok("D"),
        wire::ChangeKind::Unspecified => Err(ReceiveError::Order {
            expected: "a change that is A, C or D",
            found: "one of another kind",
        }),
    }
}

async fn next(
    stream: &mut Streaming<wire::DiffMessage>,
    limit: Duration,
) -> Result<Option<Message>, ReceiveError> {
    let message = timeout(limit, stream.message())
        .await
        .map_err(|_| ReceiveError::Silence(limit))??;
    match message {
        None => Ok(None),
        Some(wire::DiffMessage {
            message: Some(message),
        }) => Ok(Some(message)),
        Some(_) => Err(ReceiveError::Order {
            expected: "a message",
            found: "an empty one",
        }),
    }
}

/// Hashes small writes and hands them on in larger pieces.
struct Output<'a> {
    writer: &'a mut dyn ObjectWriter,
    hasher: Sha256Hasher,
    gathered: BytesMut,
    size: u64,
}

impl<'a> Output<'a> {
    fn new(writer: &'a mut dyn ObjectWriter) -> Self {
        Self {
            writer,
            hasher: Sha256Hasher::new(),
            gathered: BytesMut::new(),
            size: 0,
        }
    }

    async fn write(&mut self, parts: &[&[u8]]) -> Result<(), ReceiveError> {
        for part in parts {
            self.gathered.extend_from_slice(part);
        }
        if self.gathered.len() >= PIECE {
            self.flush().await
        } else {
            Ok(())
        }
    }

    async fn flush(&mut self) -> Result<(), ReceiveError> {
        let piece: Bytes = self.gathered.split().freeze();
        self.hasher.update(&piece);
        self.size += piece.len() as u64;
        self.writer.write(piece).await.map_err(ReceiveError::from)
    }

    async fn end(mut self) -> Result<Content, ReceiveError> {
        self.flush().await?;
        Ok(Content {
            size: self.size,
            sha256: self.hasher.finish(),
        })
    }
}
