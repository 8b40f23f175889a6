//! The age file format with X25519 recipients, as far as evidence needs it: what the controller encrypts with
//! public keys alone, and whoever has one of the secret keys reads, with our programs or with `age -d`.
//!
//! Source of every rule: <https://c2sp.org/age>. A header wraps a random file key for each recipient and ends in a
//! MAC; the payload is cut into chunks of 64 KiB, each sealed with ChaCha20-Poly1305 under a counter and a mark of
//! the last one, so that nothing is changed, reordered or cut off unnoticed by who has the file key.
//!
//! ```text
//! Encryptor: plain bytes -> chunks          Decryptor: Read of an age file -> Read of the plain bytes
//! ```

mod bech32;
mod header;

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read};
use std::str::FromStr;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Most recipients of one file.
pub const RECIPIENT_LIMIT: usize = 32;

/// Longest file of identities that is read, in bytes.
pub const IDENTITY_LIMIT: u64 = 64 << 10;

/// Bytes of a chunk before it is sealed.
const CHUNK: usize = 64 << 10;
/// Bytes that sealing adds to a chunk.
const TAG: usize = 16;
/// Bytes between the header and the first chunk.
const NONCE: u64 = 16;

/// As many bytes of a file as [`check_form`] looks at.
pub(crate) const START: u64 = header::LONGEST;
/// Human-readable parts of the two kinds of keys.
const RECIPIENT: &str = "age";
const IDENTITY: &str = "age-secret-key-";

/// What a file can't be encrypted to, or decrypted with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AgeError {
    /// Not a public key.
    #[error(
        "expected the public key of an age X25519 recipient (age1 and 58 characters), got {got:?}: {why}"
    )]
    Recipient {
        /// What came, cut.
        got: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not a secret key. It is never repeated.
    #[error(
        "line {line}: expected an age X25519 identity (AGE-SECRET-KEY-1…), a comment or nothing: {why}"
    )]
    Identity {
        /// 1 the first.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// None in the file.
    #[error("expected at least one age identity (AGE-SECRET-KEY-1…), got none")]
    NoIdentity,
    /// None or too many to encrypt to.
    #[error("expected 1 to {RECIPIENT_LIMIT} recipients, got {0}")]
    Recipients(usize),
    /// No randomness, or a key that can't be one.
    #[error("the file can't be encrypted: {0}")]
    Cipher(&'static str),
}

/// Who can read a file: a public key, `age1…`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recipient {
    public: [u8; 32],
}

impl FromStr for Recipient {
    type Err = AgeError;

    fn from_str(text: &str) -> Result<Self, AgeError> {
        let wrong = |why| AgeError::Recipient {
            got: text.chars().take(80).collect(),
            why,
        };
        // The secret key in the place of the public one must not be repeated in any message.
        if text.to_ascii_lowercase().contains(IDENTITY) {
            return Err(AgeError::Recipient {
                got: "AGE-SECRET-KEY-…".to_owned(),
                why: "this is a secret key: keep it to yourself, replace it if others saw it, and give its public key",
            });
        }
        let (prefix, key) = bech32::decode(text).map_err(wrong)?;
        match (prefix.as_str(), <[u8; 32]>::try_from(key.as_slice())) {
            // Upper case is the same key; one spelling is taken, so that lists of them compare.
            (RECIPIENT, Ok(public)) if text.starts_with(RECIPIENT) => match flaw(&public) {
                None => Ok(Self { public }),
                Some(why) => Err(wrong(why)),
            },
            (RECIPIENT, Ok(_)) => Err(wrong("it is not in lower case")),
            _ => Err(wrong("it is another kind of key")),
        }
    }
}

/// Why nothing can be encrypted to a public key, which no secret key has then: found where it is configured, and not
/// when evidence is on its way. Source of both: <https://www.rfc-editor.org/rfc/rfc7748#section-6.1>.
fn flaw(public: &[u8; 32]) -> Option<&'static str> {
    // 2^255 - 19, the least significant byte first: what is not below it is another spelling of what is.
    let [first, middle @ .., last] = public;
    if *last > 0x7f || (*last == 0x7f && *first >= 0xed && middle.iter().all(|byte| *byte == 0xff))
    {
        return Some("it is not the one spelling of a key, so nobody could decrypt");
    }
    // A clamped secret key is a multiple of eight: only of a point of low order nothing is left.
    let shared = StaticSecret::from([1; 32]).diffie_hellman(&PublicKey::from(*public));
    match shared.was_contributory() {
        true => None,
        false => Some("it is of low order: anybody could decrypt"),
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bech32::encode(RECIPIENT, &self.public))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Recipient {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Recipient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A secret key, `AGE-SECRET-KEY-1…`. Wiped from memory when dropped, and in no `Debug`.
#[derive(Clone)]
pub struct Identity {
    secret: StaticSecret,
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate() -> Result<Self, AgeError> {
        Ok(Self {
            secret: StaticSecret::from(*random::<32>()?),
        })
    }

    /// The identities in a file as `age-keygen` writes it: one a line, comments begin with `#`.
    ///
    /// # Errors
    /// If a line is something else, or there is none.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, AgeError> {
        let mut identities = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let wrong = |why| AgeError::Identity { line, why };
            let (prefix, key) = bech32::decode(text).map_err(wrong)?;
            let key = Zeroizing::new(key);
            match (prefix.as_str(), <[u8; 32]>::try_from(key.as_slice())) {
                (IDENTITY, Ok(secret)) => identities.push(Self {
                    secret: StaticSecret::from(secret),
                }),
                _ => return Err(wrong("it is another kind of key")),
            }
        }
        match identities.is_empty() {
            true => Err(AgeError::NoIdentity),
            false => Ok(identities),
        }
    }

    /// The text of the secret key, for a file that only its owner may read.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut text = bech32::encode(IDENTITY, self.secret.as_bytes());
        text.make_ascii_uppercase();
        Zeroizing::new(text)
    }

    /// Its public key.
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        Recipient {
            public: *PublicKey::from(&self.secret).as_bytes(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the identity of {}", self.recipient())
    }
}

/// Encrypts bytes as they pass. Memory: one chunk.
pub struct Encryptor {
    chunks: Chunks,
    pending: Vec<u8>,
}

impl Encryptor {
    /// For `recipients`, each of which can read it alone; and the bytes that the file begins with.
    ///
    /// # Errors
    /// If there are none or too many of them, or no randomness.
    pub fn new(recipients: &[Recipient]) -> Result<(Self, Vec<u8>), AgeError> {
        if !(1..=RECIPIENT_LIMIT).contains(&recipients.len()) {
            return Err(AgeError::Recipients(recipients.len()));
        }
        let file_key = random::<16>()?;
        let nonce = random::<16>()?;
        let mut start = header::write(&file_key, recipients)?;
        start.extend_from_slice(nonce.as_slice());
        let encryptor = Self {
            chunks: Chunks::new(&file_key, &nonce).ok_or(AgeError::Cipher("no key came of it"))?,
            pending: Vec::with_capacity(CHUNK),
        };
        Ok((encryptor, start))
    }

    /// Takes the next bytes and adds what is sealed to `to`.
    ///
    /// # Errors
    /// If the cipher fails, or after 2^64 chunks.
    pub fn update(&mut self, bytes: &[u8], to: &mut Vec<u8>) -> Result<(), AgeError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // A full chunk waits for a byte behind it: the last one is sealed as that.
            if self.pending.len() == CHUNK {
                self.seal(false, to)?;
            }
            let (now, later) = rest.split_at(rest.len().min(CHUNK - self.pending.len()));
            self.pending.extend_from_slice(now);
            rest = later;
        }
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// As of [`Encryptor::update`].
    pub fn finish(mut self, to: &mut Vec<u8>) -> Result<(), AgeError> {
        self.seal(true, to)
    }

    fn seal(&mut self, last: bool, to: &mut Vec<u8>) -> Result<(), AgeError> {
        let start = to.len();
        to.append(&mut self.pending);
        let nonce = self
            .chunks
            .nonce(last)
            .ok_or(AgeError::Cipher("too long"))?;
        let chunk = to.get_mut(start..).unwrap_or_default();
        let sealed = (self.chunks.key).seal_in_place_separate_tag(nonce, Aad::empty(), chunk);
        let tag = sealed.map_err(|_| AgeError::Cipher("the cipher failed"))?;
        to.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// The plain bytes of an age file. Fails instead of giving a byte that was not written, and at the end of what was
/// cut off; whoever reads on behind an error gets the next one. Memory: two chunks.
pub struct Decryptor<R> {
    from: BufReader<R>,
    chunks: Chunks,
    plain: Vec<u8>,
    at: usize,
    first: bool,
    ended: bool,
    failed: bool,
}

/// Why an age file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Encrypted, and nothing to open it with.
    #[error("is encrypted, and no identity was given to read it with")]
    Closed,
    /// Encrypted to others.
    #[error("is not encrypted to any identity that was given")]
    NotForUs,
    /// Broken, or can't be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<R: Read> Decryptor<R> {
    /// Reads the header of `from`.
    ///
    /// # Errors
    /// If it is none, was changed, or is for none of `identities`.
    pub fn new(from: R, identities: &[Identity]) -> Result<Self, OpenError> {
        let mut from = BufReader::with_capacity(CHUNK + TAG, from);
        let file_key = header::read(&mut from)?.open(identities)?;
        let mut nonce = [0; 16];
        from.read_exact(&mut nonce)?;
        let chunks = Chunks::new(&file_key, &nonce).ok_or_else(|| broken("no key came of it"))?;
        Ok(Self {
            from,
            chunks,
            plain: Vec::new(),
            at: 0,
            first: true,
            ended: false,
            failed: false,
        })
    }

    /// Opens the next chunk. What is in `plain` is only plain if that succeeds.
    fn next(&mut self) -> io::Result<()> {
        let whole = (CHUNK + TAG) as u64;
        let read = (&mut self.from).take(whole).read_to_end(&mut self.plain)?;
        let last = read < CHUNK + TAG || self.is_at_end()?;
        let nonce = self.chunks.nonce(last).ok_or_else(|| broken("too long"))?;
        let opened = (self.chunks.key).open_in_place(nonce, Aad::empty(), &mut self.plain);
        let length = opened
            .map_err(|_| broken("a chunk was changed, or the file was cut off"))?
            .len();
        self.plain.truncate(length);
        if length == 0 && !self.first {
            return Err(broken("its last chunk is empty"));
        }
        (self.first, self.ended) = (false, last);
        Ok(())
    }

    fn is_at_end(&mut self) -> io::Result<bool> {
        loop {
            match self.from.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return Ok(read?.is_empty()),
            }
        }
    }
}

impl<R: Read> Read for Decryptor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(broken("reading it has failed before"));
        }
        if self.at == self.plain.len() && !self.ended {
            (self.at, self.failed) = (0, true);
            self.plain.clear();
            if let Err(error) = self.next() {
                self.plain.clear();
                return Err(error);
            }
            self.failed = false;
        }
        let rest = self.plain.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.at += n;
        Ok(n)
    }
}

/// Whether a file of `size` bytes that begins with `start` has the form of an age file, as far as that is seen without a
/// key: a header with its recipients and its MAC, and room for the least that can follow.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_form(mut start: &[u8], size: u64) -> io::Result<()> {
    let header = header::read(&mut start)?;
    let least = header.length + NONCE + TAG as u64;
    match size < least {
        true => Err(broken("nothing follows its header")),
        false => Ok(()),
    }
}

/// Key and counter of a payload's chunks.
struct Chunks {
    key: LessSafeKey,
    count: u64,
}

impl Chunks {
    fn new(file_key: &[u8; 16], nonce: &[u8; 16]) -> Option<Self> {
        let key = header::derive(file_key, nonce, b"payload")?;
        Some(Self {
            key: LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_slice()).ok()?),
            count: 0,
        })
    }

    /// Of the next chunk: its number in eleven bytes, and whether it is the last. None past 2^64.
    fn nonce(&mut self, last: bool) -> Option<Nonce> {
        let mut nonce = [0; 12];
        nonce
            .get_mut(3..11)?
            .copy_from_slice(&self.count.to_be_bytes());
        *nonce.last_mut()? = u8::from(last);
        self.count = self.count.checked_add(1)?;
        Some(Nonce::assume_unique_for_key(nonce))
    }
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, AgeError> {
    let mut bytes = Zeroizing::new([0; N]);
    let filled = SystemRandom::new().fill(bytes.as_mut_slice());
    filled.map_err(|_| AgeError::Cipher("the system has no randomness"))?;
    Ok(bytes)
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("is no whole age file: {why}"),
    )
}

#[cfg(test)]
mod tests;
