//! Room on the runtime's disk, asked before a call that fills it.
//!
//! A commit copies the container's writable layer, a save writes the whole image to a temporary
//! directory first. A node whose disk fills up evicts pods, the suspect perhaps among them.

use std::io;
use std::path::{Path, PathBuf};

/// The disk that the runtime stores images on.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    reserve_percent: u8,
}

impl Disk {
    /// `root`: a directory on that disk, as the agent sees it. `reserve_percent`: share of the disk
    /// that must stay free.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, reserve_percent: u8) -> Self {
        Self {
            root: root.into(),
            reserve_percent: reserve_percent.min(100),
        }
    }

    /// Checks that `bytes` more fit. If the disk cannot be looked at, that is logged and allowed: an
    /// agent without that mount can still collect.
    pub(crate) fn require(&self, bytes: u64, purpose: &'static str) -> Result<(), DiskError> {
        match rustix::fs::statvfs(&self.root) {
            Ok(disk) => {
                let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                let total = disk.f_blocks.saturating_mul(disk.f_frsize);
                self.fits(bytes, purpose, free, total)
            }
            Err(error) => {
                tracing::warn!(
                    root = %self.root.display(),
                    error = %io::Error::from(error),
                    bytes,
                    "free space is not checked: the runtime's directory cannot be seen from here"
                );
                Ok(())
            }
        }
    }

    fn fits(
        &self,
        bytes: u64,
        purpose: &'static str,
        free: u64,
        total: u64,
    ) -> Result<(), DiskError> {
        let reserve = total / 100 * u64::from(self.reserve_percent);
        if free >= bytes.saturating_add(reserve) {
            return Ok(());
        }
        Err(DiskError {
            purpose,
            root: self.root.clone(),
            bytes,
            free,
            reserve,
            percent: self.reserve_percent,
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
}

/// Not enough room.
#[derive(Debug, thiserror::Error)]
#[error(
    "a {purpose} needs {bytes} bytes on the disk of {} and must leave {reserve} free ({percent} %, so \
     that the kubelet evicts nobody), but {free} are free: make room, or lower \
     IMPOUND_DISK_RESERVE_PERCENT of this node's agent",
    root.display()
)]
pub(crate) struct DiskError {
    purpose: &'static str,
    root: PathBuf,
    bytes: u64,
    free: u64,
    reserve: u64,
    percent: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_eat_into_the_reserve_is_refused() {
        let disk = Disk::new("/", 15);
        assert!(disk.fits(100, "commit", 250, 1000).is_ok());
        assert!(disk.fits(101, "commit", 250, 1000).is_err());
        assert!(disk.fits(u64::MAX, "commit", 250, 1000).is_err());
        assert!(disk.require(u64::MAX, "commit").is_err());
    }

    #[test]
    fn a_disk_that_cannot_be_seen_does_not_stop_a_collection() {
        assert!(
            Disk::new("/nonexistent", 15)
                .require(u64::MAX, "commit")
                .is_ok()
        );
    }
}
