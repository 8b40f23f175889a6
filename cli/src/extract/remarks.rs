//! What was not extracted, or not as it stands in the tar, and why: one JSON line each, beside the
//! directory.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Remarks that are kept to be shown; all are in the file.
const SHOWN: usize = 20;

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Kind {
    /// It is not there.
    LeftOut,
    /// It is there, and not quite as in the tar.
    Changed,
    /// It is there as it was; somebody should know.
    Noted,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Remark {
    pub(super) kind: Kind,
    /// As the tar has it; what is no UTF-8 as `\xNN`.
    pub(super) path: String,
    pub(super) why: String,
}

pub(super) struct Remarks {
    at: PathBuf,
    file: BufWriter<File>,
    pub(super) left_out: u64,
    pub(super) changed: u64,
    pub(super) noted: u64,
    /// The first that are left out, then the first others.
    pub(super) first_left_out: Vec<Remark>,
    pub(super) first_others: Vec<Remark>,
}

impl Remarks {
    /// Into a new file.
    pub(super) fn create(at: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(at)?;
        Ok(Self {
            at: at.to_owned(),
            file: BufWriter::new(file),
            left_out: 0,
            changed: 0,
            noted: 0,
            first_left_out: Vec::new(),
            first_others: Vec::new(),
        })
    }

    pub(super) fn add(
        &mut self,
        kind: Kind,
        path: String,
        why: impl Into<String>,
    ) -> io::Result<()> {
        let remark = Remark {
            kind,
            path,
            why: why.into(),
        };
        serde_json::to_writer(&mut self.file, &remark)?;
        self.file.write_all(b"\n")?;
        let (count, first) = match kind {
            Kind::LeftOut => (&mut self.left_out, &mut self.first_left_out),
            Kind::Changed => (&mut self.changed, &mut self.first_others),
            Kind::Noted => (&mut self.noted, &mut self.first_others),
        };
        *count += 1;
        if first.len() < SHOWN {
            first.push(remark);
        }
        Ok(())
    }

    pub(super) fn at(&self) -> &Path {
        &self.at
    }

    /// Everything is in the file.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
