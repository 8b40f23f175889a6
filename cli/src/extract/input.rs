//! The bytes of a tar on their way to its parser: hashed, counted, and stopped where a hostile one
//! would go on.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use impound_evidence::{Completeness, Sha256, Sha256Hasher, TarEnd};

/// Most bytes of headers between two entries (long names, PAX records, sparse maps): the parser keeps
/// them in memory. Real ones need a few hundred.
const METADATA: u64 = 4 << 20;

/// Entries and their data have their own limits; these are for what the parser reads by itself.
pub(super) struct Input<'a, R> {
    inner: R,
    bounds: &'a Bounds,
    hasher: Sha256Hasher,
    end: TarEnd,
    watch: &'a dyn Fn(u64),
}

/// How far the parser may read, shared with who drives it.
pub(super) struct Bounds {
    /// Bytes read.
    position: Cell<u64>,
    /// Bytes that may be read before the next entry must be there.
    limit: Cell<u64>,
    /// Bytes that may be read in all.
    all: u64,
}

impl Bounds {
    /// `all`: most bytes of the tar itself, which matters when it is decompressed.
    pub(super) fn new(all: u64) -> Self {
        Self {
            position: Cell::new(0),
            limit: Cell::new(METADATA.min(all)),
            all,
        }
    }

    /// An entry was met whose data lies at `at` and takes `size` bytes of the tar.
    pub(super) fn entry(&self, at: u64, size: u64) {
        let end = at.saturating_add(size).saturating_add(METADATA);
        self.limit.set(end.min(self.all));
    }

    /// The parser is done; what is left is only hashed.
    fn lift(&self) {
        self.limit.set(self.all);
    }
}

impl<'a, R: Read> Input<'a, R> {
    pub(super) fn new(inner: R, bounds: &'a Bounds, watch: &'a dyn Fn(u64)) -> Self {
        Self {
            inner,
            bounds,
            hasher: Sha256Hasher::new(),
            end: TarEnd::new(),
            watch,
        }
    }

    /// Reads what the parser left. Returns the SHA-256 over everything, whether the tar has its end,
    /// and whether anything but zeros came after it.
    pub(super) fn finish(mut self) -> io::Result<(Sha256, Completeness, bool)> {
        self.bounds.lift();
        let mut buffer = vec![0; 256 << 10];
        let mut more = false;
        loop {
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => more |= buffer.iter().take(n).any(|byte| *byte != 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((self.hasher.finish(), self.end.finish(), more))
    }
}

impl<R: Read> Read for Input<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let position = self.bounds.position.get();
        if position >= self.bounds.all {
            let mut one = [0];
            return match self.inner.read(&mut one)? {
                0 => Ok(0),
                _ => Err(io::Error::other(format!(
                    "it has more than the {} bytes that it may have",
                    self.bounds.all
                ))),
            };
        }
        if position >= self.bounds.limit.get() {
            return Err(io::Error::other(
                "more than 4 MiB of headers stand before one entry",
            ));
        }
        let room = usize::try_from(self.bounds.all - position).unwrap_or(usize::MAX);
        let length = buffer.len().min(room);
        let buffer = buffer.get_mut(..length).unwrap_or_default();
        let n = self.inner.read(buffer)?;
        let part = buffer.get(..n).unwrap_or_default();
        self.hasher.update(part);
        self.end.update(part);
        self.bounds.position.set(position + n as u64);
        (self.watch)(n as u64);
        Ok(n)
    }
}

/// A part of a file that is open, e.g. a layer in a saved image.
pub(super) struct Section<'a> {
    pub(super) file: &'a File,
    pub(super) at: u64,
    pub(super) left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self
            .file
            .read_at(buffer.get_mut(..length).unwrap_or_default(), self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
