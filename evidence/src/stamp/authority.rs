//! Whether a time-stamp token is what an authority that we trust has signed: RFC 3161 section 2.4.2,
//! CMS signature (RFC 5652), certificate chain at the time that the token says (RFC 5280).

use std::time::Duration;

use der::Tag;
use der::asn1::ObjectIdentifier;
use ring::digest;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{
    CertificateDer, SignatureVerificationAlgorithm as Algorithm, TrustAnchor, UnixTime,
};
use webpki::{EndEntityCert, KeyUsage};

use super::der::{Part, field};
use super::token::Token;
use super::{SHA1, SHA256, StampError};
use crate::digest::Sha256;
use crate::timestamp::Timestamp;

const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SHA256_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const SHA384_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const SHA512_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const TIME_STAMPING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.8");
const TIME_STAMPING_BYTES: &[u8] = TIME_STAMPING.as_bytes();

/// What certificates of a chain may be signed with.
const CHAIN: &[&dyn Algorithm] = &[
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
];

/// Certificates of time-stamping authorities that are trusted.
#[derive(Debug)]
pub struct StampAuthority {
    roots: Vec<TrustAnchor<'static>>,
    /// Help to find a way to a root; not trusted.
    others: Vec<CertificateDer<'static>>,
}

impl StampAuthority {
    /// The certificates in a PEM file. Those that signed themselves are trusted; others only help to find
    /// a way to one that is.
    ///
    /// # Errors
    /// If it holds no certificate that signed itself, or what can't be read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, StampError> {
        let wrong = |why: String| StampError::Authority(why);
        let (mut roots, mut others) = (Vec::new(), Vec::new());
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            let anchor = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|error| wrong(format!("{error:?}")))?
                .to_owned();
            let read = EndEntityCert::try_from(&certificate);
            match read.is_ok_and(|read| read.issuer() != read.subject()) {
                true => others.push(certificate),
                false => roots.push(anchor),
            }
        }
        match roots.is_empty() {
            true => Err(wrong(
                "it has no certificate that signed itself: the root is needed".to_owned(),
            )),
            false => Ok(Self { roots, others }),
        }
    }

    /// When the authority says that bytes with the SHA-256 `imprint` existed, if all of `token` is as it
    /// should be: it is of these bytes, signed by a certificate that is for time-stamping and nothing else,
    /// and that leads, at the time that the token says, to a trusted one.
    ///
    /// # Errors
    /// The first thing that is not.
    pub fn check(&self, token: &[u8], imprint: Sha256) -> Result<Timestamp, StampError> {
        self.check_token(&Token::decode(token)?, imprint)
    }

    pub(super) fn check_token(
        &self,
        token: &Token<'_>,
        imprint: Sha256,
    ) -> Result<Timestamp, StampError> {
        token.info.is_of(imprint)?;
        if !digest_is(token.digest, token.content, token.message_digest)? {
            return Err(StampError::Content);
        }
        let (algorithm, expected) = token.certificate_digest;
        let mut signer = None;
        for certificate in &token.certificates {
            if digest_is(algorithm, certificate, expected)? {
                signer = Some(CertificateDer::from(*certificate));
            }
        }
        let signer = signer.ok_or(StampError::Form("the certificate that it says signed it"))?;
        let read = EndEntityCert::try_from(&signer)
            .map_err(|error| StampError::Certificate(format!("{error:?}")))?;
        if (read.issuer(), read.serial()) != (token.issuer, token.serial) {
            return Err(StampError::Form("one certificate as that of the signer"));
        }
        only_time_stamping(&signer)?;
        let fits = |with: &&dyn Algorithm| {
            let signature = read.verify_signature(*with, &token.signed, token.signature);
            signature.is_ok()
        };
        if !algorithms(token)?.iter().any(fits) {
            return Err(StampError::Signature);
        }
        self.leads_to_a_root(&read, token)?;
        Ok(token.info.time)
    }

    fn leads_to_a_root(
        &self,
        signer: &EndEntityCert<'_>,
        token: &Token<'_>,
    ) -> Result<(), StampError> {
        let time = token.info.time;
        let seconds = u64::try_from(time.to_utc().unix_timestamp()).unwrap_or(0);
        let mut between: Vec<CertificateDer<'_>> = self.others.clone();
        between.extend(token.certificates.iter().copied().map(CertificateDer::from));
        let chain = signer.verify_for_usage(
            CHAIN,
            &self.roots,
            &between,
            UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
            // Certificates between may be for anything, or for this too.
            KeyUsage::required_if_present(TIME_STAMPING_BYTES),
            None,
            None,
        );
        chain.map(drop).map_err(|error| {
            use webpki::Error;
            StampError::Chain(match error {
                Error::CertExpired { .. } => format!("a certificate had expired at {time}"),
                Error::CertNotValidYet { .. } => {
                    format!("a certificate was not valid yet at {time}")
                }
                Error::UnknownIssuer => "no way leads to a given certificate".to_owned(),
                other => format!("{other:?}"),
            })
        })
    }
}

/// What a signature may be checked with; one that fits is enough.
fn algorithms(token: &Token<'_>) -> Result<Vec<&'static dyn Algorithm>, StampError> {
    use webpki::ring as with;
    let of = match (token.signature_algorithm, token.digest) {
        (RSA, SHA256) => SHA256_RSA,
        (RSA, SHA384) => SHA384_RSA,
        (RSA, SHA512) => SHA512_RSA,
        (other, _) => other,
    };
    Ok(match of {
        SHA256_RSA => vec![with::RSA_PKCS1_2048_8192_SHA256],
        SHA384_RSA => vec![with::RSA_PKCS1_2048_8192_SHA384],
        SHA512_RSA => vec![with::RSA_PKCS1_2048_8192_SHA512],
        ECDSA_SHA256 => vec![with::ECDSA_P256_SHA256, with::ECDSA_P384_SHA256],
        ECDSA_SHA384 => vec![with::ECDSA_P256_SHA384, with::ECDSA_P384_SHA384],
        other => return Err(StampError::Algorithm(other.to_string())),
    })
}

fn digest_is(
    algorithm: ObjectIdentifier,
    bytes: &[u8],
    expected: &[u8],
) -> Result<bool, StampError> {
    let with = match algorithm {
        // Only ever to name a certificate whose signature is checked otherwise.
        SHA1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        SHA256 => &digest::SHA256,
        SHA384 => &digest::SHA384,
        SHA512 => &digest::SHA512,
        other => return Err(StampError::Algorithm(other.to_string())),
    };
    Ok(digest::digest(with, bytes).as_ref() == expected)
}

/// RFC 3161 section 2.3: the certificate's extended key usage is critical and has no other purpose.
pub(super) fn only_time_stamping(certificate: &[u8]) -> Result<(), StampError> {
    let what = "an X.509 certificate";
    let whole = Part::only(certificate, Tag::Sequence, what)?;
    let mut parts = whole.parts(what)?.next(Tag::Sequence)?.parts(what)?;
    while let Some(part) = parts.any()? {
        if part.tag != field(3) {
            continue;
        }
        let mut extensions = Part::only(part.value, Tag::Sequence, what)?.parts(what)?;
        while let Some(extension) = extensions.any()? {
            let mut extension = extension.parts(what)?;
            if extension.oid()? != EXTENDED_KEY_USAGE {
                continue;
            }
            let critical = extension.optional(Tag::Boolean)?;
            let purposes = extension.next(Tag::OctetString)?.value;
            let mut purposes = Part::only(purposes, Tag::Sequence, what)?.parts(what)?;
            if critical.is_some_and(|part| part.value == [0xff])
                && purposes.oid()? == TIME_STAMPING
                && purposes.end().is_ok()
            {
                return Ok(());
            }
        }
    }
    Err(StampError::Purpose)
}
