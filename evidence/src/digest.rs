//! SHA-256 digests: the type that names bytes everywhere in the evidence, and its hasher.
//!
//! Every byte of evidence passes through [`Sha256Hasher`] twice before it is called stored: at the agent while it
//! is sent, and when the controller has read it back from the store. The `sha2` crate uses the
//! processor's SHA instructions where there are any.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// A SHA-256 digest. Displayed and serialised as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 32 bytes of the digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A digest that is being computed over bytes as they pass.
#[derive(Clone, Default)]
pub struct Sha256Hasher(sha2::Sha256);

impl Sha256Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(self) -> Sha256 {
        Sha256(self.0.finalize().into())
    }
}

/// Text or bytes that are no SHA-256 digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    /// Text of another form.
    #[error("expected a SHA-256 as 64 lower-case hexadecimal digits, got {0:?}")]
    Text(String),
    /// Bytes of another length.
    #[error("expected a SHA-256 of 32 bytes, got {0} bytes")]
    Length(usize),
}

impl From<[u8; 32]> for Sha256 {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for Sha256 {
    type Error = DigestError;

    fn try_from(bytes: &[u8]) -> Result<Self, DigestError> {
        <[u8; 32]>::try_from(bytes)
            .map(Self)
            .map_err(|_| DigestError::Length(bytes.len()))
    }
}

impl AsRef<[u8]> for Sha256 {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256 {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let wrong = || DigestError::Text(text.chars().take(80).collect());
        if text.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let [high, low] = pair else {
                return Err(wrong());
            };
            *byte = nibble(*high).ok_or_else(wrong)? << 4 | nibble(*low).ok_or_else(wrong)?;
        }
        Ok(Self(bytes))
    }
}

/// Lower case only: one digest has one spelling.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-2, appendix B.1 and B.2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const TWO_BLOCKS: &str = "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1";

    #[test]
    fn known_answers() {
        assert_eq!(Sha256::of(b"abc").to_string(), ABC);
        let mut hasher = Sha256Hasher::new();
        hasher.update(b"abcdbcdecdefdefgefghfghighijhijk");
        hasher.update(b"ijkljklmklmnlmnomnopnopq");
        assert_eq!(hasher.finish().to_string(), TWO_BLOCKS);
    }

    #[test]
    fn one_digest_has_one_spelling() {
        let digest: Sha256 = ABC.parse().unwrap();
        assert_eq!(digest, Sha256::of(b"abc"));
        for wrong in [
            "",
            &ABC[1..],
            &ABC.to_uppercase(),
            &ABC.replace('b', "g"),
            &format!("{ABC}0"),
        ] {
            assert!(wrong.parse::<Sha256>().is_err(), "{wrong:?} was taken");
        }
        // 64 bytes, but not 64 characters: no panic at a character boundary.
        assert!("é".repeat(32).parse::<Sha256>().is_err());
    }

    #[test]
    fn error_says_what_was_expected_and_what_came() {
        assert_eq!(
            "xyz".parse::<Sha256>().unwrap_err().to_string(),
            "expected a SHA-256 as 64 lower-case hexadecimal digits, got \"xyz\""
        );
        assert_eq!(
            Sha256::try_from(&[0; 20][..]).unwrap_err().to_string(),
            "expected a SHA-256 of 32 bytes, got 20 bytes"
        );
    }

    #[test]
    fn serialises_as_hexadecimal() {
        let json = serde_json::to_string(&Sha256::of(b"abc")).unwrap();
        assert_eq!(json, format!("\"{ABC}\""));
        assert_eq!(
            serde_json::from_str::<Sha256>(&json).unwrap(),
            Sha256::of(b"abc")
        );
    }
}
