//! Reads a stored file of ours line by line: a diff that listings are joined with, the changes that the
//! timeline is made of.

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use impound_evidence::EvidencePath;

use crate::collect::session::Session;
use crate::store::StoreError;

/// Longest line that is read: a path of 4096 bytes, six characters each, and its file's line.
const LINE_LIMIT: usize = 128 << 10;

/// A stored file, line by line; one that is too long is left out.
pub(in crate::collect) struct Lines {
    chunks: BoxStream<'static, Result<Bytes, StoreError>>,
    text: Vec<u8>,
    at: usize,
}

impl Session<'_> {
    /// The lines of a stored file of ours.
    pub(in crate::collect) async fn lines(&self, path: &EvidencePath) -> Result<Lines, StoreError> {
        let chunks = match self.stored(path) {
            Some(record) => self.read(&record, 0).await?,
            None => self.collector.store.read(&self.at, path, 0).await?.chunks,
        };
        Ok(Lines {
            chunks,
            text: Vec::new(),
            at: 0,
        })
    }
}

impl Lines {
    /// The next line without its newline.
    pub(in crate::collect) async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.get(..end).unwrap_or_default().to_vec();
                self.at += end + 1;
                if line.len() <= LINE_LIMIT {
                    return Ok(Some(line));
                }
                continue;
            }
            // Of a line that is too long, its end is waited for and its beginning not kept.
            let keep = rest.len().min(LINE_LIMIT + 1);
            let rest = rest.get(..keep).unwrap_or_default().to_vec();
            self.text = rest;
            self.at = 0;
            match self.chunks.try_next().await? {
                Some(chunk) => self.text.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}
