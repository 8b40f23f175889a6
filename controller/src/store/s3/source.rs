//! A stored collection as the verifier reads it, in threads that may block. Unfinished objects are
//! listed too: they are no evidence, and it should say so.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use impound_evidence::{EvidencePath, EvidenceSource, Listing, OpenFile};
use tokio::sync::mpsc;

use super::{Inner, log, reader};
use crate::store::{CollectionId, ObjectReader, StoreError};

/// Pieces read ahead.
const AHEAD: usize = 2;

pub(super) struct Source {
    inner: Arc<Inner>,
    at: CollectionId,
}

impl Source {
    pub(super) fn new(inner: Arc<Inner>, at: CollectionId) -> Self {
        Self { inner, at }
    }
}

impl EvidenceSource for Source {
    fn list(&self) -> io::Result<Listing> {
        self.inner.runtime.block_on(async {
            let (files, refused) = self.inner.objects(&self.at).await.map_err(io_error)?;
            let mut files: Vec<EvidencePath> = files.into_iter().map(|file| file.path).collect();
            let log = log::file(&self.inner, &self.at).await.map_err(io_error)?;
            files.extend(log.map(|log| log.path));
            let named = |name| (name, "has a name that no evidence can have".to_owned());
            Ok(Listing {
                files,
                refused: refused.into_iter().map(named).collect(),
                ..Listing::default()
            })
        })
    }

    fn open(&self, path: &EvidencePath) -> io::Result<OpenFile> {
        let runtime = &self.inner.runtime;
        let opened = runtime.block_on(reader::open(&self.inner, &self.at, path, 0));
        let ObjectReader { size, mut chunks } = opened.map_err(io_error)?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        runtime.spawn(async move {
            while let Some(chunk) = chunks.next().await {
                // A reader that went away wants no more.
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        Ok(OpenFile {
            size,
            reader: Box::new(Pieces {
                receiver,
                piece: Bytes::new(),
            }),
        })
    }
}

struct Pieces {
    receiver: mpsc::Receiver<Result<Bytes, StoreError>>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece.map_err(io_error)?,
            }
        }
        let size = self.piece.len().min(buffer.len());
        self.piece
            .copy_to_slice(buffer.get_mut(..size).unwrap_or_default());
        Ok(size)
    }
}

fn io_error(error: StoreError) -> io::Error {
    match error.is_not_found() {
        true => io::Error::new(io::ErrorKind::NotFound, error),
        false => io::Error::other(error),
    }
}
