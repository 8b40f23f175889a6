//! What a container changed, in batches, with the digest of the text that `docker diff` prints.

use std::time::{Instant, SystemTime};

use futures::StreamExt;
use futures::stream::BoxStream;
use impound_evidence::Sha256Hasher;
use impound_proto::agent::v1::diff_message::Message;
use impound_proto::agent::v1::{self as proto, DiffBatch, DiffMessage, DiffTrailer};
use tonic::Status;

use super::call::Call;
use super::{Shared, status};
use crate::runtime::{Change, ChangeKind, RuntimeError};
use crate::stream::{Outgoing, Sender, pump};

/// Changes per message, as the contract says.
const BATCH: usize = 4096;

/// Bytes of paths per message: with paths of 4 KiB, a full batch would be larger than the 4 MiB that
/// gRPC clients accept.
const BATCH_BYTES: usize = 512 << 10;

impl Shared {
    pub(super) async fn diff(
        &self,
        call: &Call,
        container_id: &str,
    ) -> Result<Outgoing<DiffMessage>, Status> {
        let id = self.resolve(call, container_id).await?;
        let started = SystemTime::now();
        let changes = self
            .runtime
            .changes(&id)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(pump(call.span(), move |sender| {
            send(changes, started, sender)
        }))
    }
}

async fn send(
    mut changes: BoxStream<'static, Result<Change, RuntimeError>>,
    started: SystemTime,
    client: Sender<DiffMessage>,
) -> Result<(), Status> {
    let clock = Instant::now();
    let mut text = Sha256Hasher::new();
    let mut count = 0_u64;
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    while let Some(change) = client.unless_left(changes.next()).await? {
        let Change { kind, path } = change.map_err(|error| status::broken(&error, count))?;
        let (letter, kind) = match kind {
            ChangeKind::Added => ("A ", proto::ChangeKind::Added),
            ChangeKind::Changed => ("C ", proto::ChangeKind::Changed),
            ChangeKind::Deleted => ("D ", proto::ChangeKind::Deleted),
        };
        text.update(letter.as_bytes());
        text.update(path.as_bytes());
        text.update(b"\n");
        count += 1;
        batch_bytes += path.len();
        batch.push(proto::Change {
            kind: kind.into(),
            path,
        });
        if batch.len() == BATCH || batch_bytes >= BATCH_BYTES {
            batch_bytes = 0;
            let changes = std::mem::take(&mut batch);
            client
                .send(message(Message::Batch(DiffBatch { changes })))
                .await?;
        }
    }
    if !batch.is_empty() {
        client
            .send(message(Message::Batch(DiffBatch { changes: batch })))
            .await?;
    }
    let finished = SystemTime::now();
    let sha256 = text.finish();
    let elapsed_ms = clock.elapsed().as_millis();
    tracing::info!(changes = count, %sha256, elapsed_ms, "sent, complete");
    let trailer = DiffTrailer {
        changes: count,
        text_sha256: sha256.as_bytes().to_vec(),
        started: Some(started.into()),
        finished: Some(finished.into()),
    };
    client.send(message(Message::Trailer(trailer))).await
}

fn message(message: Message) -> DiffMessage {
    DiffMessage {
        message: Some(message),
    }
}
