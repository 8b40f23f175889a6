//! The form in which an artifact lies in the store: as it is, or encoded; and the one reader that undoes it.
//!
//! ```text
//! controller: artifact -> Encoder -> stored bytes        anybody: stored bytes -> decode -> artifact
//! ```
//! What an artifact is known by (path, size, SHA-256) is always that of its own bytes. A [`StoredForm`] says besides
//! what file holds them, and that file's size and SHA-256, so that whoever has no key checks that it is the one that
//! was signed, and whoever has one that what is in it is the artifact.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

pub(crate) use crate::age::START;
use crate::age::{self, AgeError, Decryptor, Identity, OpenError, Recipient};
use crate::digest::{Sha256, Sha256Hasher};
use crate::manifest::{ArtifactRecord, Method, is_count};
use crate::names::{EvidencePath, NameError};
use crate::source::{EvidenceSource, OpenFile};

/// The file that holds an artifact which is not stored as it is.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredForm {
    /// Where it is below the collection: the artifact's path and the suffix of each encoding.
    pub path: EvidencePath,
    /// Bytes.
    pub size: u64,
    /// Over all its bytes, as re-read from the store.
    pub sha256: Sha256,
    /// What was done to the artifact's bytes, in this order; never nothing.
    pub encoding: Vec<Encoding>,
}

/// Something that was done to an artifact's bytes, and is undone without loss.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Encrypted to age recipients, see <https://c2sp.org/age>.
    Age,
}

/// What can be done to an artifact, in which order.
const CHAINS: [&[Encoding]; 1] = [&[Encoding::Age]];

impl Encoding {
    /// What its files' names end with.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Age => ".age",
        }
    }
}

impl StoredForm {
    /// Whether it is a form that the artifact at `path` can have.
    pub(crate) fn is_of(&self, path: &EvidencePath) -> bool {
        let behind = self.path.as_str().strip_prefix(path.as_str());
        CHAINS.iter().any(|chain| *chain == self.encoding)
            && behind == Some(suffixes(&self.encoding).as_str())
    }

    /// Whether only who has a secret key can read it.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.encoding.contains(&Encoding::Age)
    }
}

fn suffixes(encoding: &[Encoding]) -> String {
    encoding.iter().map(|one| one.suffix()).collect()
}

/// What an artifact's path can be whose stored form is the file at `path`.
pub(crate) fn plain_paths(path: &EvidencePath) -> impl Iterator<Item = EvidencePath> {
    CHAINS.iter().filter_map(|chain| {
        let plain = path.as_str().strip_suffix(suffixes(chain).as_str())?;
        plain.parse().ok()
    })
}

/// `path` without the suffixes that encodings have put behind it.
#[must_use]
pub fn without_suffixes(path: &str) -> &str {
    let cut = |path| str::strip_suffix(path, Encoding::Age.suffix());
    std::iter::successors(Some(path), |path| cut(path))
        .last()
        .unwrap_or(path)
}

impl ArtifactRecord {
    /// The file that holds it.
    #[must_use]
    pub fn stored_path(&self) -> &EvidencePath {
        self.stored
            .as_ref()
            .map_or(&self.path, |stored| &stored.path)
    }

    /// Whether only who has a secret key can read it.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.stored.as_ref().is_some_and(StoredForm::is_encrypted)
    }

    /// Whether it is what lies plain in a collection that is encrypted: what checks that, and what was encrypted when
    /// it was cut off, so that nobody says what it would have been.
    pub(crate) fn may_be_plain(&self) -> bool {
        let cut_off = self.path.as_str().rsplit_once(".partial-");
        let cut_off = cut_off.filter(|(of, n)| of.ends_with(Encoding::Age.suffix()) && is_count(n));
        self.method == Method::Program
            || (cut_off.is_some() && self.stored.is_none() && !self.completeness.is_complete())
    }

    /// That file's size in bytes.
    #[must_use]
    pub fn stored_size(&self) -> u64 {
        self.stored.as_ref().map_or(self.size, |stored| stored.size)
    }

    /// That file's SHA-256.
    #[must_use]
    pub fn stored_sha256(&self) -> Sha256 {
        self.stored
            .as_ref()
            .map_or(self.sha256, |stored| stored.sha256)
    }
}

/// Encodes an artifact as its bytes pass, and hashes both sides. Memory: one chunk of 64 KiB.
pub struct Encoder {
    age: age::Encryptor,
    /// What the stored bytes begin with.
    start: Vec<u8>,
    plain: Counted,
    stored: Counted,
}

/// What came of an encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Bytes that went in, and their SHA-256.
    pub plain: (u64, Sha256),
    /// Bytes that came out, and theirs.
    pub stored: (u64, Sha256),
    /// How.
    pub encoding: Vec<Encoding>,
}

impl Encoded {
    /// The stored form of the artifact at `path`.
    ///
    /// # Errors
    /// If the name is too long.
    pub fn form(&self, path: &EvidencePath) -> Result<StoredForm, NameError> {
        Ok(StoredForm {
            path: format!("{path}{}", suffixes(&self.encoding)).parse()?,
            size: self.stored.0,
            sha256: self.stored.1,
            encoding: self.encoding.clone(),
        })
    }
}

impl Encoder {
    /// Encrypts to `recipients`, each of which can read it alone.
    ///
    /// # Errors
    /// As of [`age::Encryptor::new`].
    pub fn new(recipients: &[Recipient]) -> Result<Self, AgeError> {
        let (age, start) = age::Encryptor::new(recipients)?;
        Ok(Self {
            age,
            start,
            plain: Counted::new(),
            stored: Counted::new(),
        })
    }

    /// What the file of the artifact at `path` is called.
    ///
    /// # Errors
    /// If the name is too long.
    pub fn stored_path(path: &EvidencePath) -> Result<EvidencePath, NameError> {
        format!("{path}{}", Encoding::Age.suffix()).parse()
    }

    /// Takes the next bytes, and gives what is to be stored.
    ///
    /// # Errors
    /// If they can't be encoded.
    pub fn update(&mut self, bytes: &[u8]) -> Result<Vec<u8>, AgeError> {
        self.plain.update(bytes);
        let mut out = std::mem::take(&mut self.start);
        out.reserve(bytes.len() + bytes.len() / 1024);
        self.age.update(bytes, &mut out)?;
        self.stored.update(&out);
        Ok(out)
    }

    /// The last bytes that are to be stored, and what came of it.
    ///
    /// # Errors
    /// As of [`Encoder::update`].
    pub fn finish(mut self) -> Result<(Vec<u8>, Encoded), AgeError> {
        let mut out = std::mem::take(&mut self.start);
        self.age.finish(&mut out)?;
        self.stored.update(&out);
        let encoded = Encoded {
            plain: self.plain.finish(),
            stored: self.stored.finish(),
            encoding: vec![Encoding::Age],
        };
        Ok((out, encoded))
    }
}

struct Counted {
    size: u64,
    hasher: Sha256Hasher,
}

impl Counted {
    fn new() -> Self {
        Self {
            size: 0,
            hasher: Sha256Hasher::new(),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.hasher.update(bytes);
    }

    fn finish(self) -> (u64, Sha256) {
        (self.size, self.hasher.finish())
    }
}

/// Opens an artifact of a collection for one read of its own bytes, not the stored ones. They are not compared with
/// the record's SHA-256: that is for the reader.
///
/// # Errors
/// [`OpenError::Closed`] and [`OpenError::NotForUs`] if it is encrypted and `identities` don't open it.
pub fn open_artifact(
    source: &(impl EvidenceSource + ?Sized),
    record: &ArtifactRecord,
    identities: &[Identity],
) -> Result<OpenFile, OpenError> {
    let file = source.open(record.stored_path())?;
    Ok(OpenFile {
        size: match &record.stored {
            Some(_) => record.size,
            None => file.size,
        },
        reader: decode(file.reader, record, identities)?,
    })
}

/// The artifact's own bytes out of the stored ones. Never more than the record says there are: more, or fewer, is an
/// error of the reader that is returned.
///
/// # Errors
/// As of [`open_artifact`].
pub fn decode(
    stored: Box<dyn Read + Send>,
    record: &ArtifactRecord,
    identities: &[Identity],
) -> Result<Box<dyn Read + Send>, OpenError> {
    let Some(form) = &record.stored else {
        return Ok(stored);
    };
    let mut reader = stored;
    for one in form.encoding.iter().rev() {
        reader = match one {
            Encoding::Age if identities.is_empty() => return Err(OpenError::Closed),
            Encoding::Age => Box::new(Decryptor::new(reader, identities)?),
        };
    }
    Ok(Box::new(Bounded {
        reader,
        size: record.size,
        left: record.size,
        failed: false,
    }))
}

/// Looks at how a file of the form `form` begins, in as many bytes as [`START`]: all that is seen of an encrypted one
/// without a key.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_start(start: &[u8], form: &StoredForm) -> io::Result<()> {
    match form.encoding.last() {
        Some(Encoding::Age) => age::check_form(start, form.size),
        None => Ok(()),
    }
}

/// Exactly as many bytes as were recorded. Behind an error comes no byte more.
struct Bounded {
    reader: Box<dyn Read + Send>,
    size: u64,
    left: u64,
    failed: bool,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wrong = |got: &str| {
            let expected = self.size;
            let why = format!("holds another file: expected {expected} bytes in it, got {got}");
            io::Error::new(io::ErrorKind::InvalidData, why)
        };
        if self.failed {
            return Err(wrong("an error before"));
        }
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = match self.reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            read => read.inspect_err(|_| self.failed = true)?,
        };
        match (n, self.left.checked_sub(n as u64)) {
            (_, None) => {
                self.failed = true;
                Err(wrong("more"))
            }
            (0, Some(left)) if left > 0 => {
                self.failed = true;
                Err(wrong(&(self.size - left).to_string()))
            }
            (_, Some(left)) => {
                self.left = left;
                Ok(n)
            }
        }
    }
}
