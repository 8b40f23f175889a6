//! Encrypted files of a copy, decrypted beside it: the copy stays what was signed, and can be checked by anybody.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{self, Path, PathBuf};

use impound_evidence::age::{Identity, OpenError};
use impound_evidence::{
    ArtifactRecord, BUNDLE, DirSource, EvidenceSource as _, MANIFEST, MANIFEST_LIMIT, Manifest,
    Sha256Hasher, open_artifact,
};

use super::place::{Place, Readers};
use crate::failure::Failure;
use crate::verify::encrypted_to;

/// Bytes that are read at once.
const READ: usize = 1 << 20;

/// Where the decrypted files of the copy in `root` go: beside it, and into no copy of evidence, which would not be what
/// was signed any more.
///
/// # Errors
/// If there is no such place.
pub(crate) fn directory(root: &Path) -> Result<PathBuf, Failure> {
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::Usage(format!(
            "{}: there is no place beside it for what is decrypted: {why}; choose another --to",
            root.display()
        ))
    };
    // Of `.` and `..` the name is not in the path.
    let beside = match root.file_name() {
        Some(_) => path::absolute(root).map_err(|error| wrong(&error))?,
        None => fs::canonicalize(root).map_err(|error| wrong(&error))?,
    };
    let mut name = beside
        .file_name()
        .ok_or_else(|| wrong(&"it has no name"))?
        .to_owned();
    name.push(".plain");
    let to = beside.with_file_name(name);
    let real = to.ancestors().find_map(|at| fs::canonicalize(at).ok());
    let copy = real
        .as_deref()
        .and_then(|real| real.ancestors().find(|at| at.join(BUNDLE).exists()));
    match copy {
        Some(copy) => Err(wrong(&format_args!(
            "{} lies in a copy of evidence, {}, which would not verify any more",
            to.display(),
            copy.display()
        ))),
        None if root.file_name().is_some() => {
            Ok(root.with_file_name(to.file_name().unwrap_or_default()))
        }
        None => Ok(to),
    }
}

/// Decrypts what is there of the copy in `root` to the directory `to`, and compares it with the manifest. How many files
/// that were.
pub(crate) fn decrypt(root: &Path, to: &Path, identities: &[Identity]) -> Result<usize, Failure> {
    let source = DirSource::open(root)?;
    let manifest = manifest(&source)?;
    let mut files = 0;
    for record in manifest
        .artifacts
        .iter()
        .filter(|record| record.stored.is_some())
    {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", record.stored_path());
        match open_artifact(&source, record, identities) {
            // Not all of the collection was asked for.
            Err(OpenError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error @ OpenError::NotForUs) => {
                return Err(Failure::Usage(format!(
                    "{}; {}. The copy in {} is whole",
                    wrong(&error),
                    encrypted_to(&manifest.encrypted_to),
                    root.display()
                )));
            }
            Err(error) => return Err(Failure::Failed(wrong(&error))),
            Ok(file) => {
                write(to, record, file.reader)?;
                files += 1;
            }
        }
    }
    Ok(files)
}

fn manifest(source: &DirSource) -> Result<Manifest, Failure> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::Failed(format!(
            "{MANIFEST}: {error}; nothing is decrypted without it, as it says what must come of it"
        ))
    };
    let file = MANIFEST
        .parse()
        .map_err(std::io::Error::other)
        .and_then(|path| source.open(&path))
        .map_err(|error| wrong(&error))?;
    let mut bytes = Vec::new();
    let mut reader = file.reader.take(MANIFEST_LIMIT + 1);
    reader
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(&error))?;
    Manifest::decode(&bytes).map_err(|error| wrong(&error))
}

/// Nothing that is there is overwritten, and nothing gets its name before it is what was recorded.
fn write(
    to: &Path,
    record: &ArtifactRecord,
    mut from: Box<dyn std::io::Read + Send>,
) -> Result<(), Failure> {
    let place = Place::prepare(to, &record.path, Readers::Owner)?;
    if let Some((there, _)) = place.hash()? {
        return match there == record.sha256 {
            true => Ok(()),
            false => Err(place.differs(record.sha256, there)),
        };
    }
    let mut part = place.part_afresh()?;
    let mut hasher = Sha256Hasher::new();
    let mut buffer = vec![0; READ];
    let failed = |error: std::io::Error| Failure::Failed(format!("{}: {error}", record.path));
    loop {
        let n = from.read(&mut buffer).map_err(failed)?;
        let bytes = buffer.get(..n).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        part.write_all(bytes).map_err(failed)?;
    }
    let got = hasher.finish();
    if got != record.sha256 {
        place.discard()?;
        return Err(Failure::Failed(format!(
            "{}: expected SHA-256 {} of what is in it, got {got}; nothing of it was kept",
            record.stored_path(),
            record.sha256
        )));
    }
    part.sync_all()?;
    place.install()
}
