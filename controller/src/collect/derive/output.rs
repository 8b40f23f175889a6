//! A file that is made here, on its way into the store: hashed as it is written, like what arrives.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use impound_evidence::{Completeness, EvidencePath, Sha256Hasher};
use tokio::time::timeout;

use super::What;
use crate::collect::attempt;
use crate::collect::encrypted::kept;
use crate::collect::failure::Failure;
use crate::collect::note::Begun;
use crate::collect::session::Session;
use crate::describe::describe;
use crate::store::{Content, ObjectWriter, StoreError};

/// Most bytes that a writer takes at once.
const WRITE: usize = 1 << 20;
/// Longest time until a writer has taken them. What is listed waits for it, and can be made again.
const STALL: Duration = Duration::from_secs(120);

/// One file.
pub(in crate::collect) struct Output {
    /// None: what is made of more than one tar.
    pub(super) what: Option<What>,
    pub(super) begun: Begun,
    path: EvidencePath,
    writer: Box<dyn ObjectWriter>,
    hasher: Sha256Hasher,
    size: u64,
    failure: Option<StoreError>,
    /// Why it does not have everything that it should.
    pub(in crate::collect) truncated: Option<String>,
}

impl Output {
    pub(in crate::collect) fn new(
        what: Option<What>,
        path: EvidencePath,
        begun: Begun,
        writer: Box<dyn ObjectWriter>,
    ) -> Self {
        Self {
            what,
            begun,
            path,
            writer,
            hasher: Sha256Hasher::new(),
            size: 0,
            failure: None,
            truncated: None,
        }
    }

    /// Does nothing after a failure, which `finish_outputs` reports.
    pub(in crate::collect) async fn write(&mut self, bytes: Vec<u8>) {
        let mut bytes = Bytes::from(bytes);
        while !bytes.is_empty() && self.failure.is_none() {
            let piece = bytes.split_to(bytes.len().min(WRITE));
            self.hasher.update(&piece);
            self.size += piece.len() as u64;
            // The tar goes on: its listings can be made again, the tar can't.
            let written = timeout(STALL, self.writer.write(piece)).await;
            let stalled = |_| {
                Err(StoreError::Stalled {
                    at: self.path.to_string(),
                    seconds: STALL.as_secs(),
                })
            };
            self.failure = written.unwrap_or_else(stalled).err();
        }
    }
}

impl Session<'_> {
    /// Stores what was written, all of it or nothing.
    pub(in crate::collect) async fn finish_outputs(
        &self,
        mut outputs: Vec<Output>,
    ) -> Result<(), Failure> {
        if let Some(error) = outputs.iter_mut().find_map(|output| output.failure.take()) {
            self.drop_outputs(outputs).await;
            return Err(Failure::store(&error));
        }
        let mut objects = Vec::new();
        for output in outputs {
            let content = Content {
                size: output.size,
                sha256: output.hasher.finish(),
            };
            let mut record = attempt::record(&output.path, &output.begun, content, None);
            if let Some(reason) = output.truncated {
                let reasons = vec![reason];
                record.completeness = Completeness::Incomplete { reasons };
            }
            objects.push((record, output.writer));
        }
        self.finish_together(objects).await
    }

    /// Keeps what was written, incomplete for `reason`.
    pub(super) async fn keep_outputs(
        &self,
        outputs: Vec<Output>,
        reason: &str,
    ) -> Result<(), Failure> {
        for output in outputs {
            let mut left = kept(output.writer)
                .await
                .map_err(|error| self.store_error(error))?;
            let full = left.take_failure().is_some_and(|error| error.is_full());
            let worthless = full || output.failure.is_some();
            let reasons = vec![reason.to_owned()];
            self.keep_unless(worthless, left, &output.begun, reasons, None)
                .await?;
        }
        Ok(())
    }

    /// Leaves nothing of what was written. What can't be removed is found again before the seal, as
    /// after a crash.
    pub(in crate::collect) async fn drop_outputs(&self, outputs: Vec<Output>) {
        for output in outputs {
            if let Err(error) = output.writer.abort().await {
                tracing::warn!(case = %self.at.case, collection = %self.at.name, path = %output.path, error = describe(&error), "not removed yet");
            }
        }
    }

    /// Opens a file that is made here, as was noted. What an earlier attempt at it has left is removed first.
    pub(in crate::collect) async fn open_output(
        &self,
        what: Option<What>,
        path: EvidencePath,
        begun: Begun,
    ) -> Result<Output, Failure> {
        let opened = match self.writer(&path).await {
            Err(StoreError::Leftover { .. }) => {
                let name = self.stored_name(&path);
                let name = name.map_err(|error| self.store_error(error))?;
                self.settle(&name, &BTreeMap::new()).await?;
                self.writer(&path).await
            }
            opened => opened,
        };
        let writer = opened.map_err(|error| Failure::store(&error))?;
        Ok(Output::new(what, path, begun, writer))
    }
}
