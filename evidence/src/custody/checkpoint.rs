//! `custody.checkpoint`: the signed head of a custody log, a C2SP tlog-checkpoint.
//!
//! A signed note: origin, size and root, an empty line, exactly one signature line. The note format
//! lets others add lines of their own; here nobody but the controller signs, and a line that nobody
//! checks could be anything.
//!
//! ```text
//! impound.dev/INC-1
//! 12
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
//!
//! — impound.dev/INC-1 <base64 of 4 bytes of key id and the signature>
//! ```
//!
//! Signature type: C2SP signed-note assigns `0x02` to ECDSA on P-256. With it the signature is ASN.1
//! DER over the SHA-256 of the note's text, and the key id is the first four bytes of the SHA-256 of
//! the key's SPKI DER (other types mix the key's name in; this one doesn't). Its s must be low. It was chosen over
//! Ed25519, the note format's first type, so that one key and one openssl command check the manifest
//! and the log alike. By hand:
//!
//! ```text
//! sed '/^$/,$d' custody.checkpoint > text
//! tail -n 1 custody.checkpoint | cut -d ' ' -f 3 | base64 -d | tail -c +5 > sig
//! openssl dgst -sha256 -verify evidence.pub -signature sig text
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::LogHead;
use crate::digest::Sha256;
use crate::sign::{KeyError, Signer, VerifyingKey};

/// Longest checkpoint that is read, in bytes: ours have a few hundred.
pub const CHECKPOINT_LIMIT: u64 = 4 << 10;

/// A log's head and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log, `impound.dev/<case>`.
    pub origin: String,
    /// Its head.
    pub head: LogHead,
}

impl Checkpoint {
    /// The head in the note `bytes`, if one of `keys` signed it.
    pub fn open(bytes: &[u8], keys: &[VerifyingKey]) -> Result<Self, CheckpointError> {
        if bytes.len() as u64 > CHECKPOINT_LIMIT {
            return Err(CheckpointError::TooLong(bytes.len() as u64));
        }
        let note = str::from_utf8(bytes).map_err(|_| CheckpointError::Form("UTF-8 text"))?;
        if note.chars().any(|c| c.is_ascii_control() && c != '\n') {
            return Err(CheckpointError::Form("text without control characters"));
        }
        let (text, signatures) = note
            .rsplit_once("\n\n")
            .ok_or(CheckpointError::Form("an empty line after the text"))?;
        let checkpoint = Self::parse(text)?;
        let signed = [text, "\n"].concat();
        let line = signatures
            .strip_suffix('\n')
            .filter(|line| !line.contains('\n'))
            .ok_or(CheckpointError::Form(
                "exactly one signature line, ended by a newline",
            ))?;
        let (name, id, signature) = signature_line(line)?;
        let mut named = keys
            .iter()
            .filter(|key| name == checkpoint.origin && key_id(key) == id)
            .peekable();
        let Some(first) = named.peek() else {
            return Err(CheckpointError::Key {
                id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
                name: name.chars().take(200).collect(),
                given: keys
                    .iter()
                    .map(|key| key.key_id().to_string())
                    .collect::<Vec<_>>()
                    .join(", "),
            });
        };
        let wrong = CheckpointError::Signature(first.key_id());
        // Two keys may share four bytes.
        match named.any(|key| key.verifies(signed.as_bytes(), &signature)) {
            true => Ok(checkpoint),
            false => Err(wrong),
        }
    }

    /// The note, signed.
    pub fn sign(&self, key: &dyn Signer) -> Result<Vec<u8>, KeyError> {
        let text = format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.head.size,
            STANDARD.encode(self.head.root.as_bytes())
        );
        let mut signature = key_id(key.verifying_key());
        signature.extend(key.sign(text.as_bytes())?);
        Ok(format!(
            "{text}\n\u{2014} {} {}\n",
            self.origin,
            STANDARD.encode(signature)
        )
        .into_bytes())
    }

    /// Exactly three lines: extension lines would be signed text that nobody reads.
    fn parse(text: &str) -> Result<Self, CheckpointError> {
        let lines: Vec<&str> = text.split('\n').collect();
        let [origin, size, root] = lines.as_slice() else {
            return Err(CheckpointError::Form("three lines: origin, size, root"));
        };
        if origin.is_empty() || origin.contains([' ', '+']) {
            return Err(CheckpointError::Form(
                "an origin without spaces and \"+\" in line 1",
            ));
        }
        let number: u64 = size
            .parse()
            .map_err(|_| CheckpointError::Form("the number of entries in line 2"))?;
        if number.to_string() != *size {
            return Err(CheckpointError::Form(
                "the number of entries without sign and leading zeros in line 2",
            ));
        }
        let root = STANDARD
            .decode(root)
            .ok()
            .and_then(|root| Sha256::try_from(root.as_slice()).ok())
            .ok_or(CheckpointError::Form(
                "a root of 32 bytes in base64 in line 3",
            ))?;
        Ok(Self {
            origin: (*origin).to_owned(),
            head: LogHead { size: number, root },
        })
    }
}

/// Name, key id and signature of `— <name> <base64>`.
fn signature_line(line: &str) -> Result<(&str, Vec<u8>, Vec<u8>), CheckpointError> {
    let form = || CheckpointError::Form("a signature line \"\u{2014} <name> <base64>\"");
    let (name, base64) = line
        .strip_prefix("\u{2014} ")
        .and_then(|rest| rest.split_once(' '))
        .ok_or_else(form)?;
    let bytes = STANDARD.decode(base64).map_err(|_| form())?;
    let (id, signature) = bytes.split_at_checked(4).ok_or_else(form)?;
    Ok((name, id.to_vec(), signature.to_vec()))
}

/// The note's id of an ECDSA key.
fn key_id(key: &VerifyingKey) -> Vec<u8> {
    key.key_id().as_bytes().iter().take(4).copied().collect()
}

/// A checkpoint that is none, or is not signed as it should be.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Too long to be read.
    #[error("expected a checkpoint of at most {CHECKPOINT_LIMIT} bytes, got {0}")]
    TooLong(u64),
    /// Not the format.
    #[error("expected a checkpoint with {0}")]
    Form(&'static str),
    /// The named key is there, but did not make this signature.
    #[error("the signature does not fit: key {0} did not sign this checkpoint; it was changed")]
    Signature(Sha256),
    /// No signature of a given key.
    #[error(
        "signed for {name} with key id {id}, expected this log and one of the given keys: {given}"
    )]
    Key {
        /// The name in the signature line.
        name: String,
        /// The id in it, 4 bytes in hexadecimal.
        id: String,
        /// The keys that were given.
        given: String,
    },
}
