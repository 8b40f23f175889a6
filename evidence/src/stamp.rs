//! `custody.checkpoint.tst`: what a time-stamping authority says of a collection's checkpoint: that it
//! existed at a time. A time-stamp token as RFC 3161 has it.
//!
//! The controller asks before it makes the manifest, which has the token's SHA-256: a token that was
//! changed, dropped or replaced shows without the authority's certificate. What the token says is
//! checked with that certificate, offline: [`StampAuthority::check`].

mod authority;
mod der;
mod token;

use ::der::Tag;
use ::der::asn1::ObjectIdentifier;
use serde::{Deserialize, Serialize};

pub use authority::StampAuthority;

use self::der::{Part, Parts};
use self::token::{Info, Token};
use crate::digest::Sha256;
use crate::timestamp::Timestamp;

/// Longest token that is read, in bytes: with certificates and their revocation lists some have 20 000.
pub const TOKEN_LIMIT: u64 = 64 << 10;

const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");

/// Whether an authority dated the checkpoint that a manifest was made over.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CheckpointStamp {
    /// It did, in `custody.checkpoint.tst`.
    Token {
        /// SHA-256 of that file.
        sha256: Sha256,
        /// URL of the authority that was asked.
        authority: String,
    },
    /// It was asked and did not, or what it said was not good.
    None {
        /// Why.
        reason: String,
    },
}

/// A question for an authority.
#[derive(Debug)]
pub struct StampRequest {
    imprint: Sha256,
    nonce: [u8; 8],
}

impl StampRequest {
    /// About bytes with this SHA-256. `nonce` must be random: the answer has to repeat it.
    #[must_use]
    pub fn new(imprint: Sha256, mut nonce: [u8; 8]) -> Self {
        // A positive INTEGER of exactly eight bytes.
        let [first, ..] = &mut nonce;
        *first = *first & 0x3f | 0x40;
        Self { imprint, nonce }
    }

    /// The TimeStampReq, DER: version 1, SHA-256 of the bytes, the nonce, and that certificates are wanted.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Nothing in it is of varying length.
        let imprint = [
            &[0x30, 0x31, 0x30, 0x0d, 0x06, 0x09][..],
            SHA256.as_bytes(),
            &[0x05, 0x00, 0x04, 0x20],
            self.imprint.as_bytes(),
        ];
        let request = [
            &[0x30, 0x43, 0x02, 0x01, 0x01][..],
            &imprint.concat(),
            &[0x02, 0x08],
            &self.nonce,
            &[0x01, 0x01, 0xff],
        ];
        request.concat()
    }

    /// The token in an answer (a TimeStampResp), and the time in it, if it answers this question and
    /// `authority` finds it good.
    ///
    /// # Errors
    /// If the authority refused, or the answer is not to this question or not good.
    pub fn token<'r>(
        &self,
        response: &'r [u8],
        authority: &StampAuthority,
    ) -> Result<(&'r [u8], Timestamp), StampError> {
        let limit = TOKEN_LIMIT * 2;
        if response.len() as u64 > limit {
            return Err(StampError::TooLong(response.len() as u64));
        }
        let what = "an answer of a time-stamping authority";
        let mut parts = Part::only(response, Tag::Sequence, what)?.parts(what)?;
        let mut status = parts.next(Tag::Sequence)?.parts(what)?;
        let code = status.next(Tag::Integer)?.value;
        // Granted, perhaps with modifications.
        if ![&[0][..], &[1]].contains(&code) {
            return Err(refusal(code, status));
        }
        let bytes = parts.next(Tag::Sequence)?.whole;
        parts.end()?;
        let token = Token::decode(bytes)?;
        if token.info.nonce != Some(&self.nonce) {
            return Err(StampError::Nonce);
        }
        let time = authority.check_token(&token, self.imprint)?;
        Ok((bytes, time))
    }
}

/// The time that a token says; to be believed only if [`StampAuthority::check`] agrees.
///
/// # Errors
/// If it is no token.
pub fn stamp_time(token: &[u8]) -> Result<Timestamp, StampError> {
    Ok(Token::decode(token)?.info.time)
}

impl Info<'_> {
    fn is_of(&self, imprint: Sha256) -> Result<(), StampError> {
        if self.imprint_algorithm == SHA256 && self.imprint == imprint.as_bytes() {
            return Ok(());
        }
        Err(StampError::Imprint {
            expected: imprint,
            got: Sha256::try_from(self.imprint)
                .map_or_else(|_| "another kind of digest".to_owned(), |it| it.to_string()),
        })
    }
}

/// What a refusing authority says, RFC 3161 section 2.4.2.
fn refusal(code: &[u8], mut rest: Parts<'_>) -> StampError {
    let status = match code {
        [2] => "rejection",
        [3] => "waiting",
        [4] => "revocation warning",
        [5] => "revocation notification",
        _ => "an unknown status",
    };
    let mut says = String::new();
    if let Ok(Some(texts)) = rest.optional(Tag::Sequence)
        && let Ok(mut texts) = texts.parts("texts")
        && let Ok(text) = texts.next(Tag::Utf8String)
    {
        let text = String::from_utf8_lossy(text.value);
        let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        says = format!(": {text:?}");
    }
    StampError::Refused(format!("{status}{says}"))
}

/// A token that is none, is not good, or did not come.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// Too long to be read.
    #[error("expected a time-stamp token of at most {TOKEN_LIMIT} bytes, got {0} bytes")]
    TooLong(u64),
    /// Not the format.
    #[error("expected {0} in DER, got something else")]
    Form(&'static str),
    /// The authority gives none.
    #[error("the time-stamping authority gave none: {0}")]
    Refused(String),
    /// An answer to another question.
    #[error("the answer has not the nonce of the question: it is an answer to another one")]
    Nonce,
    /// Of something else.
    #[error("expected a time-stamp of SHA-256 {expected}, got one of {got}")]
    Imprint {
        /// Of the bytes.
        expected: Sha256,
        /// In the token.
        got: String,
    },
    /// What was signed is not what is in it.
    #[error("the signed digest is not that of what the time-stamp token says; it was changed")]
    Content,
    /// By an algorithm that is not known here.
    #[error(
        "expected RSA or ECDSA (P-256, P-384) with SHA-256, SHA-384 or SHA-512, got algorithm {0}"
    )]
    Algorithm(String),
    /// The signer's certificate can't be read.
    #[error("the certificate of the time-stamp's signer can't be read: {0}")]
    Certificate(String),
    /// A certificate for something else.
    #[error(
        "the certificate of the time-stamp's signer is not, critically and only, for time-stamping"
    )]
    Purpose,
    /// The signature does not fit.
    #[error("the signature does not fit: its certificate's key did not sign this time-stamp token")]
    Signature,
    /// The certificate is not one of the authority's.
    #[error("the time-stamp's signer is not to be trusted: {0}")]
    Chain(String),
    /// The given certificates are none.
    #[error("expected certificates of a time-stamping authority in PEM: {0}")]
    Authority(String),
}

#[cfg(test)]
pub(crate) mod tests;
