//! A time-stamp token taken apart: CMS SignedData (RFC 5652) around a TSTInfo (RFC 3161). Nothing is
//! believed here; [`super::authority`] does that.

use der::Tag;
use der::asn1::ObjectIdentifier;

use super::der::{Part, Parts, field};
use super::{StampError, TOKEN_LIMIT};
use crate::timestamp::Timestamp;

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const TST_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.1.4");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
const SIGNING_CERTIFICATE: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.12");
const SIGNING_CERTIFICATE_V2: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.47");

/// Most certificates in a token: chains have three or four.
const CERTIFICATES: usize = 16;

/// What a token says, and what that is signed with.
pub(super) struct Token<'a> {
    pub(super) info: Info<'a>,
    /// The TSTInfo, exactly as it was signed.
    pub(super) content: &'a [u8],
    /// Certificates that came along, the signer's among them, DER.
    pub(super) certificates: Vec<&'a [u8]>,
    /// Issuer and serial number of the signer's, the inside of each.
    pub(super) issuer: &'a [u8],
    pub(super) serial: &'a [u8],
    /// The algorithm of `message_digest`.
    pub(super) digest: ObjectIdentifier,
    pub(super) signature_algorithm: ObjectIdentifier,
    pub(super) signature: &'a [u8],
    /// The signed attributes as they were signed: a SET.
    pub(super) signed: Vec<u8>,
    /// One of the signed attributes: the digest of `content`.
    pub(super) message_digest: &'a [u8],
    /// Another: algorithm and digest of the signer's certificate.
    pub(super) certificate_digest: (ObjectIdentifier, &'a [u8]),
}

/// A TSTInfo.
pub(super) struct Info<'a> {
    pub(super) imprint_algorithm: ObjectIdentifier,
    pub(super) imprint: &'a [u8],
    pub(super) time: Timestamp,
    /// The inside of the INTEGER.
    pub(super) nonce: Option<&'a [u8]>,
}

impl<'a> Token<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, StampError> {
        if bytes.len() as u64 > TOKEN_LIMIT {
            return Err(StampError::TooLong(bytes.len() as u64));
        }
        let mut outer =
            Part::only(bytes, Tag::Sequence, "a time-stamp token")?.parts("CMS content")?;
        if outer.oid()? != SIGNED_DATA {
            return Err(StampError::Form("signed CMS content"));
        }
        let data = outer.next(field(0))?;
        outer.end()?;
        let mut data = Part::only(data.value, Tag::Sequence, "CMS signed data")?
            .parts("CMS signed data: version, digests, content, certificates, signers")?;
        data.next(Tag::Integer)?;
        data.next(Tag::Set)?;
        let content = content(data.next(Tag::Sequence)?)?;
        let certificates = certificates(data.optional(field(0))?)?;
        data.optional(field(1))?;
        let signers = data.next(Tag::Set)?;
        data.end()?;

        let signer = Part::only(signers.value, Tag::Sequence, "exactly one signer")?;
        let mut signer =
            signer.parts("a signer: version, who, digest, attributes, algorithm, signature")?;
        signer.next(Tag::Integer)?;
        let mut who = signer
            .next(Tag::Sequence)?
            .parts("a signer's issuer and serial number")?;
        let (issuer, serial) = (
            who.next(Tag::Sequence)?.value,
            who.next(Tag::Integer)?.value,
        );
        who.end()?;
        let digest = algorithm(signer.next(Tag::Sequence)?)?;
        let attributes = Attributes::of(signer.next(field(0))?)?;
        let signature_algorithm = algorithm(signer.next(Tag::Sequence)?)?;
        let signature = signer.next(Tag::OctetString)?.value;
        signer.optional(field(1))?;
        signer.end()?;
        Ok(Self {
            info: Info::decode(content)?,
            content,
            certificates,
            issuer,
            serial,
            digest,
            signature_algorithm,
            signature,
            signed: attributes.signed,
            message_digest: attributes.message_digest,
            certificate_digest: attributes.certificate_digest,
        })
    }
}

/// The bytes of the TSTInfo in an EncapsulatedContentInfo.
fn content(part: Part<'_>) -> Result<&[u8], StampError> {
    let mut parts = part.parts("a TSTInfo in the CMS content")?;
    if parts.oid()? != TST_INFO {
        return Err(StampError::Form("a TSTInfo in the CMS content"));
    }
    let octets = parts.next(field(0))?.value;
    parts.end()?;
    Ok(Part::only(octets, Tag::OctetString, "a TSTInfo in the CMS content")?.value)
}

fn certificates(part: Option<Part<'_>>) -> Result<Vec<&[u8]>, StampError> {
    let Some(part) = part else {
        return Ok(Vec::new());
    };
    let (mut parts, mut all) = (part.parts("certificates")?, Vec::new());
    while let Some(one) = parts.any()? {
        // Other kinds of certificates than X.509's have tags of their own.
        if one.tag == Tag::Sequence {
            all.push(one.whole);
        }
        if all.len() > CERTIFICATES {
            return Err(StampError::Form("at most 16 certificates"));
        }
    }
    Ok(all)
}

/// An AlgorithmIdentifier without its parameters.
fn algorithm(part: Part<'_>) -> Result<ObjectIdentifier, StampError> {
    part.parts("an algorithm")?.oid()
}

/// The signed attributes that are looked at.
struct Attributes<'a> {
    signed: Vec<u8>,
    message_digest: &'a [u8],
    certificate_digest: (ObjectIdentifier, &'a [u8]),
}

impl<'a> Attributes<'a> {
    fn of(part: Part<'a>) -> Result<Self, StampError> {
        let mut parts = part.parts("signed attributes")?;
        let (mut content_type, mut message_digest) = (None, None);
        let (mut first, mut second) = (None, None);
        while let Some(one) = parts.any()? {
            let mut attribute = one.parts("an attribute and its values")?;
            let kind = attribute.oid()?;
            let values = attribute.next(Tag::Set)?.value;
            attribute.end()?;
            let slot = match kind {
                CONTENT_TYPE => &mut content_type,
                MESSAGE_DIGEST => &mut message_digest,
                SIGNING_CERTIFICATE => &mut first,
                SIGNING_CERTIFICATE_V2 => &mut second,
                _ => continue,
            };
            if slot.replace(values).is_some() {
                return Err(StampError::Form("each signed attribute once"));
            }
        }
        let missing = || {
            StampError::Form(
                "the content's type and digest and the signer's certificate among the signed attributes",
            )
        };
        if Parts::of(content_type.ok_or_else(missing)?, "a content type")?.oid()? != TST_INFO {
            return Err(StampError::Form("a TSTInfo as the signed content's type"));
        }
        let digest = message_digest.ok_or_else(missing)?;
        // The newer attribute counts if both are there.
        let certificate_digest = match (second, first) {
            (Some(values), _) => certificate(values, super::SHA256)?,
            (None, Some(values)) => certificate(values, super::SHA1)?,
            (None, None) => return Err(missing()),
        };
        let mut signed = part.whole.to_vec();
        if let Some(tag) = signed.first_mut() {
            // RFC 5652 section 5.4: signed is the SET, whose tag the message has replaced by [0].
            *tag = 0x31;
        }
        Ok(Self {
            signed,
            message_digest: Part::only(digest, Tag::OctetString, "a message digest")?.value,
            certificate_digest,
        })
    }
}

/// Algorithm and digest of the first ESSCertID (RFC 2634) or ESSCertIDv2 (RFC 5035), the signer's.
fn certificate(
    values: &[u8],
    default: ObjectIdentifier,
) -> Result<(ObjectIdentifier, &[u8]), StampError> {
    let what = "the digest of the signer's certificate";
    let attribute = Part::only(values, Tag::Sequence, what)?;
    let all = attribute.parts(what)?.next(Tag::Sequence)?;
    let mut first = all.parts(what)?.next(Tag::Sequence)?.parts(what)?;
    let digest = match first.optional(Tag::Sequence)? {
        Some(part) => algorithm(part)?,
        None => default,
    };
    Ok((digest, first.next(Tag::OctetString)?.value))
}

impl<'a> Info<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, StampError> {
        let what = "a TSTInfo: version 1, policy, imprint, serial number, time";
        let mut parts = Part::only(bytes, Tag::Sequence, what)?.parts(what)?;
        if parts.next(Tag::Integer)?.value != [1] {
            return Err(StampError::Form(what));
        }
        parts.oid()?;
        let mut imprint = parts.next(Tag::Sequence)?.parts(what)?;
        let imprint_algorithm = algorithm(imprint.next(Tag::Sequence)?)?;
        let digest = imprint.next(Tag::OctetString)?.value;
        imprint.end()?;
        parts.next(Tag::Integer)?;
        let time = time(parts.next(Tag::GeneralizedTime)?.value)?;
        // Accuracy, ordering.
        parts.optional(Tag::Sequence)?;
        parts.optional(Tag::Boolean)?;
        let nonce = parts.optional(Tag::Integer)?.map(|part| part.value);
        // The authority's name, extensions.
        parts.optional(field(0))?;
        parts.optional(field(1))?;
        parts.end()?;
        Ok(Self {
            imprint_algorithm,
            imprint: digest,
            time,
            nonce,
        })
    }
}

/// `YYYYMMDDhhmmss[.f…]Z`, cut to microseconds.
fn time(text: &[u8]) -> Result<Timestamp, StampError> {
    let form = || StampError::Form("a time YYYYMMDDhhmmss[.f]Z in UTC");
    let text = str::from_utf8(text).map_err(|_| form())?;
    let (whole, fraction) = text
        .strip_suffix('Z')
        .map(|text| text.split_once('.').unwrap_or((text, "0")))
        .ok_or_else(form)?;
    let digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if whole.len() != 14 || fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(form());
    }
    let at = |from: usize, to: usize| whole.get(from..to).unwrap_or_default();
    let micros = fraction.get(..6).unwrap_or(fraction);
    format!(
        "{}-{}-{}T{}:{}:{}.{micros:0<6}Z",
        at(0, 4),
        at(4, 6),
        at(6, 8),
        at(8, 10),
        at(10, 12),
        at(12, 14)
    )
    .parse()
    .map_err(|_| form())
}
