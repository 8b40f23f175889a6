//! Issues the three private CAs and the certificates below them.
//!
//! `impound pki init` writes a whole installation's files with [`init`]; tests issue single
//! certificates (expired, of the wrong CA, of another identity) with [`Ca`]. Which side trusts
//! which CA is decided in [`crate::tls`], not here: a CA signs whatever identity it is asked to.

mod files;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::identity::PeerId;

/// Why a key is not certified.
pub use rcgen::Error as CertifyError;

pub use files::{Outcome, PkiError, Plan, Responder, Written, init};

/// Life of a CA in a static installation: 5 years.
pub const CA_LIFE: Duration = Duration::days(5 * 365);

/// Life of a peer's certificate in a static installation: 90 days.
pub const LEAF_LIFE: Duration = Duration::days(90);

/// How far the start of validity lies in the past, so that a node whose clock is a little slow
/// does not refuse a fresh certificate.
const BACKDATE: Duration = Duration::minutes(5);

/// Subject attribute serialNumber (X.520), which holds the node's uid in an agent's certificate.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// When a certificate is valid. Whole seconds, UTC.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// First instant.
    pub not_before: OffsetDateTime,
    /// Last instant.
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// From five minutes ago until `life` from now.
    #[must_use]
    pub fn from_now(life: Duration) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            not_before: now - BACKDATE,
            not_after: now + life,
        }
    }
}

/// A certificate and its key as PEM text. The key is wiped from memory when dropped.
pub struct Issued {
    /// The certificate, followed by its CA's, so that a reader of the file can check the chain.
    pub certificate: String,
    /// PKCS#8.
    pub key: Zeroizing<String>,
}

/// A private CA that can sign.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Ca {
    /// A new self-signed CA. `name` becomes its common name.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn generate(name: &str, validity: Validity) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = parameters(name, validity);
        // No CA below this one.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// A CA from its certificate and PKCS#8 key.
    ///
    /// # Errors
    /// If either is not valid PEM of its kind.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self {
            issuer,
            certificate: certificate.to_owned(),
        })
    }

    /// The CA's own certificate as PEM, which peers use as root.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The CA's own key as PKCS#8 PEM.
    #[must_use]
    pub fn key(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// A certificate with `peer` as its URI name and `peer`'s DNS name, for `addresses` (DNS names
    /// or IP addresses) besides. An agent's is for servers only, a responder's for clients only.
    ///
    /// # Errors
    /// If an address is no DNS name in ASCII, or no key can be made.
    pub fn issue(
        &self,
        peer: &PeerId,
        addresses: &[String],
        validity: Validity,
    ) -> Result<Issued, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = leaf(peer, addresses, validity)?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued {
            certificate: format!("{certificate}{}", self.certificate),
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    /// A certificate (PEM, followed by the CA's) for `key`, with `peer` as its URI name and `node_uid` as its
    /// subject's serial number. Names and extensions of a request are ignored.
    ///
    /// # Errors
    /// `UnsupportedSignatureAlgorithm` if the key is not ECDSA P-256; others if it is none, or nothing proves that
    /// who asks has it.
    pub fn certify(
        &self,
        key: ProvenKey<'_>,
        peer: &PeerId,
        node_uid: &str,
        validity: Validity,
    ) -> Result<String, CertifyError> {
        let mut params = leaf(peer, &[], validity)?;
        params
            .distinguished_name
            .push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), node_uid);
        let certificate = match key {
            ProvenKey::Request(request) => {
                let request = CertificateSigningRequestParams::from_der(&request.into())?;
                params.signed_by(&p256(request.public_key)?, &self.issuer)
            }
            ProvenKey::Signed {
                key,
                signature,
                message,
            } => {
                let key = p256(SubjectPublicKeyInfo::from_der(key)?)?;
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.der_bytes())
                    .verify(message, signature)
                    .map_err(|_| rcgen::Error::InvalidCertificationRequestSignature)?;
                params.signed_by(&key, &self.issuer)
            }
        };
        Ok(format!("{}{}", certificate?.pem(), self.certificate))
    }
}

/// A key to be certified, with the proof that whoever asks has the private one.
#[derive(Clone, Copy, Debug)]
pub enum ProvenKey<'a> {
    /// A PKCS#10 request, DER, as [`KeyRequest`] makes it: signed by its own key.
    Request(&'a [u8]),
    /// The key by itself, and what was signed with it.
    Signed {
        /// SubjectPublicKeyInfo, DER.
        key: &'a [u8],
        /// ECDSA with SHA-256 over `message`, ASN.1 DER.
        signature: &'a [u8],
        /// Says for whom the key is.
        message: &'a [u8],
    },
}

/// A new key and the request to have it certified.
pub struct KeyRequest {
    /// PKCS#10, DER. It names nobody: the signer sets all names.
    pub request: Vec<u8>,
    /// PKCS#8 PEM.
    pub key: Zeroizing<String>,
}

impl KeyRequest {
    /// A new ECDSA P-256 key.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn generate() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(Self {
            request: params.serialize_request(&key)?.der().to_vec(),
            key: Zeroizing::new(key.serialize_pem()),
        })
    }
}

fn p256<K: PublicKeyData>(key: K) -> Result<K, rcgen::Error> {
    match key.algorithm() == &PKCS_ECDSA_P256_SHA256 {
        true => Ok(key),
        false => Err(rcgen::Error::UnsupportedSignatureAlgorithm),
    }
}

/// What a certificate of `peer` says, whoever's key it is for.
fn leaf(
    peer: &PeerId,
    addresses: &[String],
    validity: Validity,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = parameters("impound", validity);
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(peer.to_string())?)];
    for name in peer.dns_name().iter().chain(addresses) {
        params.subject_alt_names.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(Ia5String::try_from(name.as_str())?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match peer {
        PeerId::Controller => {
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ]
        }
        PeerId::Agent { .. } => vec![ExtendedKeyUsagePurpose::ServerAuth],
        PeerId::Responder { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn parameters(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params
}

#[cfg(test)]
mod tests;
