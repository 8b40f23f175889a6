//! Runtime bytes in, artifact messages out: coalesce, hash, check the end, send.
//!
//! ```text
//! runtime --small pieces--> fill --chunks--> digest --messages--> gRPC
//! ```
//! `fill` and `digest` are tasks of their own, so that hashing one chunk overlaps with reading the
//! next. The queues between them hold [`QUEUE`] chunks each: a client that stops reading stops the
//! runtime's stream within a few chunks, and memory stays flat. Peak per stream: 9 chunks of [`CHUNK`] and
//! what HTTP/2 buffers, about 6 MiB.
//!
//! The message stream ends in exactly one of two ways: with a trailer, or with an error status. An
//! end of the tasks for any other reason, a panic included, is the error.

use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use impound_evidence::{Completeness, Sha256, Sha256Hasher, TarEnd};
use impound_proto::agent::v1::artifact_message::Message;
use impound_proto::agent::v1::{
    self as proto, ArtifactChunk, ArtifactHeader, ArtifactMessage, ArtifactTrailer,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{Instrument, Span};

use crate::capture::Reasons;
use crate::runtime::{ByteStream, RuntimeError};
use crate::service::status;

/// Size of a chunk on the wire, bytes. Docker hands out 32 KiB at a time, and a message costs a header,
/// a wake-up and a queue slot each; four chunks of this size per stream are still nothing.
pub(crate) const CHUNK: usize = 512 << 10;

/// Chunks that wait for the next task. With one, everything waits for everything on a busy node: each
/// chunk costs a turn of every task and process on its way.
const QUEUE: usize = 3;

/// How long a client may leave a full stream unread. Then the stream is given up: the runtime would
/// keep the container's file system mounted for it.
const STALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// What a gRPC method returns for a stream of `M`.
pub(crate) type Outgoing<M> = std::pin::Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// How the end of an artifact is judged.
pub(crate) enum Check {
    /// By the tar's own end.
    Tar,
    /// By the tar's own end, and by what could not be read into it.
    Captured(Reasons),
    /// It was judged before.
    Known(Completeness),
}

/// Streams `bytes` to the client under `span`. `held` is kept until the stream has ended (a slot of
/// a limit).
pub(crate) fn artifact(
    header: ArtifactHeader,
    bytes: ByteStream,
    check: Check,
    held: impl Send + 'static,
    span: Span,
) -> Outgoing<ArtifactMessage> {
    pump(span, move |sender| async move {
        let sent = digest(header, bytes, check, &sender).await;
        drop(held);
        sent
    })
}

/// Runs `produce` as a task whose messages the client gets, and after them its error if it fails.
pub(crate) fn pump<M, P, W>(span: Span, produce: P) -> Outgoing<M>
where
    M: Send + 'static,
    P: FnOnce(Sender<M>) -> W,
    W: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (messages, receiver) = mpsc::channel(QUEUE);
    let (verdict, judged) = oneshot::channel();
    let work = produce(Sender { messages });
    let task = async move {
        let started = Instant::now();
        let result = work.await;
        if let Err(status) = &result {
            tracing::warn!(
                code = ?status.code(),
                error = status.message(),
                elapsed_ms = started.elapsed().as_millis(),
                "stream failed"
            );
        }
        // Fails only if the client is gone.
        let _ = verdict.send(result);
    };
    tokio::spawn(task.instrument(span));
    let end = futures::stream::once(judged).filter_map(|judged| async {
        match judged {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some(Err(status)),
            Err(_) => Some(Err(Status::internal(
                "the agent failed in the middle of the stream: see its log",
            ))),
        }
    });
    ReceiverStream::new(receiver).map(Ok).chain(end).boxed()
}

/// The client's end of a stream, as its producer sees it.
pub(crate) struct Sender<M> {
    messages: mpsc::Sender<M>,
}

impl<M> Sender<M> {
    /// Hands over one message, as soon as the client has taken the one before.
    pub(crate) async fn send(&self, message: M) -> Result<(), Status> {
        match tokio::time::timeout(STALL_LIMIT, self.messages.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(left()),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the client did not read for {STALL_LIMIT:?}"
            ))),
        }
    }

    /// Waits for `work`, unless the client leaves before.
    pub(crate) async fn unless_left<T>(&self, work: impl Future<Output = T>) -> Result<T, Status> {
        tokio::select! {
            done = work => Ok(done),
            () = self.messages.closed() => Err(left()),
        }
    }
}

fn left() -> Status {
    Status::cancelled("the client ended the call")
}

async fn digest(
    header: ArtifactHeader,
    bytes: ByteStream,
    check: Check,
    client: &Sender<ArtifactMessage>,
) -> Result<(), Status> {
    let started = Instant::now();
    client.send(message(Message::Header(header))).await?;
    let (chunks, mut filled) = mpsc::channel(QUEUE);
    tokio::spawn(fill(bytes, chunks).in_current_span());
    let mut hasher = Sha256Hasher::new();
    let mut judge = Judge::new(check);
    let mut offset = 0_u64;
    loop {
        match client.unless_left(filled.recv()).await? {
            Some(Filled::Chunk(data)) => {
                hasher.update(&data);
                judge.update(&data);
                let size = data.len() as u64;
                client
                    .send(message(Message::Chunk(ArtifactChunk { offset, data })))
                    .await?;
                offset += size;
            }
            Some(Filled::End) => break,
            Some(Filled::Failed(error)) => return Err(status::broken(&error, offset)),
            None => {
                return Err(Status::internal(
                    "the agent failed while reading: see its log",
                ));
            }
        }
    }
    let sha256 = hasher.finish();
    let completeness = judge.finish();
    log_end(offset, sha256, &completeness, started);
    let trailer = trailer(offset, sha256, completeness, SystemTime::now());
    client.send(message(Message::Trailer(trailer))).await
}

enum Filled {
    /// 1 byte to [`CHUNK`] bytes.
    Chunk(Bytes),
    End,
    Failed(RuntimeError),
}

/// Gathers small pieces into chunks. Ends early if nobody takes them.
async fn fill(mut pieces: ByteStream, chunks: mpsc::Sender<Filled>) {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            () = chunks.closed() => return,
        };
        let mut piece = match piece {
            Some(Ok(piece)) => piece,
            other => {
                let end = match other {
                    Some(Err(error)) => Filled::Failed(error),
                    _ => Filled::End,
                };
                // What was read before an error is still sent: it is evidence.
                if !buffer.is_empty() && chunks.send(Filled::Chunk(buffer.freeze())).await.is_err()
                {
                    return;
                }
                // Fails only if nobody waits for it.
                let _ = chunks.send(end).await;
                return;
            }
        };
        while !piece.is_empty() {
            if buffer.is_empty() && piece.len() >= CHUNK {
                // Whole already: it need not be copied.
                let full = piece.split_to(CHUNK);
                if chunks.send(Filled::Chunk(full)).await.is_err() {
                    return;
                }
                continue;
            }
            let room = CHUNK - buffer.len();
            let part = piece.split_to(room.min(piece.len()));
            buffer.extend_from_slice(&part);
            if buffer.len() == CHUNK {
                let full = std::mem::replace(&mut buffer, BytesMut::with_capacity(CHUNK));
                if chunks.send(Filled::Chunk(full.freeze())).await.is_err() {
                    return;
                }
            }
        }
    }
}

enum Judge {
    Tar(Box<TarEnd>, Reasons),
    Known(Completeness),
}

impl Judge {
    fn new(check: Check) -> Self {
        match check {
            Check::Tar => Self::Tar(Box::default(), Reasons::default()),
            Check::Captured(reasons) => Self::Tar(Box::default(), reasons),
            Check::Known(completeness) => Self::Known(completeness),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Self::Tar(walk, _) = self {
            walk.update(bytes);
        }
    }

    fn finish(self) -> Completeness {
        match self {
            Self::Tar(walk, reasons) => {
                let mut all = match walk.finish() {
                    Completeness::Complete => Vec::new(),
                    Completeness::Incomplete { reasons } => reasons,
                };
                all.extend(reasons.told());
                match all.is_empty() {
                    true => Completeness::Complete,
                    false => Completeness::Incomplete { reasons: all },
                }
            }
            Self::Known(completeness) => completeness,
        }
    }
}

fn log_end(bytes: u64, sha256: Sha256, completeness: &Completeness, started: Instant) {
    let elapsed_ms = started.elapsed().as_millis();
    match completeness {
        Completeness::Complete => tracing::info!(bytes, %sha256, elapsed_ms, "sent, complete"),
        Completeness::Incomplete { reasons } => {
            tracing::warn!(bytes, %sha256, elapsed_ms, ?reasons, "sent, but it is incomplete");
        }
    }
}

fn trailer(
    size: u64,
    sha256: Sha256,
    completeness: Completeness,
    finished: SystemTime,
) -> ArtifactTrailer {
    let (completeness, reasons) = match completeness {
        Completeness::Complete => (proto::Completeness::Complete, Vec::new()),
        Completeness::Incomplete { reasons } => (proto::Completeness::Incomplete, reasons),
    };
    ArtifactTrailer {
        size,
        sha256: sha256.as_bytes().to_vec(),
        completeness: completeness.into(),
        reasons,
        finished: Some(finished.into()),
    }
}

fn message(message: Message) -> ArtifactMessage {
    ArtifactMessage {
        message: Some(message),
    }
}
