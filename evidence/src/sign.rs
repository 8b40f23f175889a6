//! The evidence keys: ECDSA on P-256 with SHA-256, signatures as ASN.1 DER.
//!
//! One key signs both the manifest's bundle and the custody log's checkpoints. Everything that it
//! signs starts with a text of its own kind (`DSSEv1 ` or the log's origin), so neither signature can
//! be taken for the other. Of the two ECDSA signatures (r, s) and (r, n - s) that fit alike only the one
//! with the low s is made and taken, so that nobody without the key can write another good signature,
//! and with it another good file. The public half is a plain SPKI PEM that `openssl` and `cosign` read.

use p256::ecdsa::Signature;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
    LineEnding,
};

use crate::digest::Sha256;
use crate::timestamp::Timestamp;

/// Whatever holds an evidence key: a file, a mounted Secret, one day a device that never shows it.
pub trait Signer: Send + Sync {
    /// The public half.
    fn verifying_key(&self) -> &VerifyingKey;

    /// DER signature with low s over `message`.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError>;
}

/// The secret half in memory. Has no `Debug`; wiped from memory when dropped.
pub struct SigningKey {
    key: p256::ecdsa::SigningKey,
    public: VerifyingKey,
}

/// The public half, by which evidence is checked.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    key: p256::ecdsa::VerifyingKey,
    spki: Vec<u8>,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
}

/// Text that is no evidence key, or a key that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a secret key. Says nothing of what came: it may be another secret.
    #[error("expected an EC P-256 secret key in PKCS#8 PEM (\"-----BEGIN PRIVATE KEY-----\"): {0}")]
    Secret(String),
    /// Not a public key.
    #[error("expected an EC P-256 public key in SPKI PEM (\"-----BEGIN PUBLIC KEY-----\"): {0}")]
    Public(String),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes for a new key: {0}")]
    Random(String),
    /// A list of keys that is none.
    #[error("expected a list of evidence keys, as `impound pki init` writes it: {0}")]
    Ring(String),
    /// A key that can't be asked for a signature.
    #[error("the key could not sign: {0}")]
    Sign(String),
    /// A key that can't be written.
    #[error("the key could not be encoded: {0}")]
    Encode(String),
}

impl SigningKey {
    /// A new key from the system's random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        p256::ecdsa::SigningKey::try_generate()
            .map_err(|error| KeyError::Random(error.to_string()))
            .and_then(Self::new)
    }

    /// From PKCS#8 PEM.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        p256::ecdsa::SigningKey::from_pkcs8_pem(pem)
            .map_err(|error| KeyError::Secret(error.to_string()))
            .and_then(Self::new)
    }

    /// As PKCS#8 PEM, wiped from memory when dropped.
    pub fn to_pem(&self) -> Result<zeroize::Zeroizing<String>, KeyError> {
        self.key
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| KeyError::Encode(error.to_string()))
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    fn new(key: p256::ecdsa::SigningKey) -> Result<Self, KeyError> {
        let public = VerifyingKey::new(*key.verifying_key())?;
        Ok(Self { key, public })
    }
}

impl Signer for SigningKey {
    fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    /// Deterministic (RFC 6979): needs no random numbers, and signing again gives the same bytes.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signed: Result<Signature, _> = self.key.try_sign(message);
        let signature = signed.map_err(|error| KeyError::Sign(error.to_string()))?;
        Ok(signature.normalize_s().to_der().as_bytes().to_vec())
    }
}

impl VerifyingKey {
    /// From SPKI PEM.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        p256::ecdsa::VerifyingKey::from_public_key_pem(pem)
            .map_err(|error| KeyError::Public(error.to_string()))
            .and_then(Self::new)
    }

    /// As SPKI PEM.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.key
            .to_public_key_pem(LineEnding::LF)
            .map_err(|error| KeyError::Encode(error.to_string()))
    }

    /// SHA-256 of the SPKI DER: `openssl pkey -pubin -in evidence.pub -outform DER | sha256sum`.
    #[must_use]
    pub fn key_id(&self) -> Sha256 {
        Sha256::of(&self.spki)
    }

    /// The same key, with the time that it was in use; none: without an end on that side.
    #[must_use]
    pub fn valid(self, from: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        Self {
            from,
            until,
            ..self
        }
    }

    /// Why it is odd that it signed what says it was made at `time`; none if it is not. No more than
    /// odd: whoever has a key writes whatever time they like, so the time proves nothing, and the clock
    /// that a key was replaced by need not be the one that evidence is dated by.
    #[must_use]
    pub fn objection(&self, time: Timestamp) -> Option<String> {
        let id = self.key_id();
        if let Some(from) = self.from.filter(|from| time < *from) {
            return Some(format!(
                "says it was made at {time}, and key {id} was not in use before {from}"
            ));
        }
        let until = self.until.filter(|until| time > *until)?;
        Some(format!(
            "says it was made at {time}, and key {id} was out of use from {until} on"
        ))
    }

    /// Whether `signature`, DER with low s, is this key's over `message`.
    #[must_use]
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_der(signature).is_ok_and(|parsed| {
            parsed.normalize_s().to_der().as_bytes() == signature
                && self.key.verify(message, &parsed).is_ok()
        })
    }

    fn new(key: p256::ecdsa::VerifyingKey) -> Result<Self, KeyError> {
        let spki = key
            .to_public_key_der()
            .map_err(|error| KeyError::Encode(error.to_string()))?
            .into_vec();
        Ok(Self {
            key,
            spki,
            from: None,
            until: None,
        })
    }
}

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyingKey({})", self.key_id())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The other signature that fits where `signature` does, with high s.
    pub(crate) fn mirrored(signature: &[u8]) -> Vec<u8> {
        let (r, s) = Signature::from_der(signature).unwrap().split_scalars();
        let mirrored = Signature::from_scalars(r, -s).unwrap();
        mirrored.to_der().as_bytes().to_vec()
    }

    #[test]
    fn nobody_makes_a_second_signature_of_a_good_one() {
        let key = SigningKey::generate().unwrap();
        for n in 0..32u8 {
            let signature = key.sign(&[n]).unwrap();
            assert!(key.verifying_key().verifies(&[n], &signature));
            let mirrored = mirrored(&signature);
            assert_ne!(mirrored, signature);
            let parsed = Signature::from_der(&mirrored).unwrap();
            assert!(
                key.public.key.verify(&[n], &parsed).is_ok(),
                "ECDSA itself takes it"
            );
            assert!(!key.verifying_key().verifies(&[n], &mirrored));
        }
    }
}
