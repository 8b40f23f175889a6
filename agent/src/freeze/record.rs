//! The files that say which containers are frozen, one for each freeze, for the agent that comes after.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::FreezeError;
use crate::runtime::ContainerId;

/// Largest file that is read: 64 ids of 64 digits are 4160 bytes.
const LIMIT: u64 = 8 << 10;

/// What is frozen.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(super) containers: Vec<ContainerId>,
}

/// The directory of the files.
#[derive(Clone, Debug)]
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Durable when it returns: it must be there before anything is paused.
    pub(super) fn write(&self, name: &str, record: &Record) -> Result<(), FreezeError> {
        let path = self.dir.join(name);
        let failed = |source| FreezeError::Record {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(&self.dir).map_err(failed)?;
        let lines = record.containers.iter().map(|id| format!("{id}\n"));
        let mut file = File::create_new(&path).map_err(failed)?;
        file.write_all(lines.collect::<String>().as_bytes())
            .map_err(failed)?;
        file.sync_all().map_err(failed)?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), FreezeError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(FreezeError::Record { path, source })
            }
            _ => Ok(()),
        }
    }

    /// What is there. Of a file that was cut off the whole lines count: nothing was paused before it was
    /// complete.
    pub(super) fn all(&self) -> Result<Vec<(String, Record)>, FreezeError> {
        let failed = |path: &Path, source| FreezeError::Record {
            path: path.to_owned(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| failed(&self.dir, source))?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| failed(&self.dir, source))?.path();
            let mut text = String::new();
            let read = File::open(&path).and_then(|file| {
                io::Read::read_to_string(&mut io::Read::take(file, LIMIT), &mut text)
            });
            read.map_err(|source| failed(&path, source))?;
            let ids = text
                .lines()
                .filter_map(|line| ContainerId::parse(line).ok());
            let name = path.file_name().unwrap_or_default();
            let record = Record {
                containers: ids.collect(),
            };
            all.push((name.to_string_lossy().into_owned(), record));
        }
        Ok(all)
    }
}
