//! Gathers what is written into pieces of exactly one chunk, which go through the stream uncopied.

use std::os::fd::AsFd;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread, retry_on_intr};
use tokio::sync::mpsc;

use super::tar::BLOCK;
use super::walk::Stop;
use crate::runtime::RuntimeError;
use crate::stream::CHUNK;

/// Where a tar goes. Blocks while whoever reads it is slower.
pub(super) struct Output {
    pieces: mpsc::Sender<Result<Bytes, RuntimeError>>,
    /// Less than [`CHUNK`] bytes.
    buffer: Vec<u8>,
}

impl Output {
    pub(super) fn new(pieces: mpsc::Sender<Result<Bytes, RuntimeError>>) -> Self {
        Self {
            pieces,
            buffer: Vec::with_capacity(CHUNK),
        }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        while !bytes.is_empty() {
            let room = CHUNK.saturating_sub(self.buffer.len()).min(bytes.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.buffer.extend_from_slice(now);
            self.send_if_full()?;
            bytes = later;
        }
        Ok(())
    }

    pub(super) fn zeros(&mut self, mut count: u64) -> Result<(), Stop> {
        while count > 0 {
            let room = CHUNK.saturating_sub(self.buffer.len());
            let now = usize::try_from(count).unwrap_or(usize::MAX).min(room);
            self.buffer.resize(self.buffer.len() + now, 0);
            self.send_if_full()?;
            count -= now as u64;
        }
        Ok(())
    }

    /// Zeros up to the end of the block, after `written` bytes of contents.
    pub(super) fn pad(&mut self, written: u64) -> Result<(), Stop> {
        self.zeros(written.next_multiple_of(BLOCK) - written)
    }

    /// The next bytes of a file, at most `most`: how many there were, 0 at its end.
    pub(super) fn read(
        &mut self,
        file: impl AsFd,
        offset: u64,
        most: u64,
    ) -> Result<Result<u64, Errno>, Stop> {
        let before = self.buffer.len();
        let read = retry_on_intr(|| pread(file.as_fd(), spare_capacity(&mut self.buffer), offset));
        let wanted = match read {
            Ok(count) => usize::try_from(most).unwrap_or(usize::MAX).min(count),
            Err(errno) => {
                self.buffer.truncate(before);
                return Ok(Err(errno));
            }
        };
        self.buffer.truncate(before + wanted);
        self.send_if_full()?;
        Ok(Ok(wanted as u64))
    }

    /// The two zero blocks, and whatever waits.
    pub(super) fn finish(mut self) -> Result<(), Stop> {
        self.zeros(2 * BLOCK)?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.send()
    }

    fn send_if_full(&mut self) -> Result<(), Stop> {
        // Capacity may be more than was asked for, and then a read fills it.
        if self.buffer.len() < CHUNK {
            return Ok(());
        }
        self.send()
    }

    fn send(&mut self) -> Result<(), Stop> {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        let sent = self.pieces.blocking_send(Ok(Bytes::from(full)));
        sent.map_err(|_| Stop::Gone)
    }
}
