//! The server's view of a client certificate: the chain by rustls' own verifier, then the identity.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::Peers;
use crate::identity::{IdentityError, PeerId};

/// Accepts a client whose certificate comes from the roots and whose identity is one of `accept`.
///
/// The identity is checked inside the handshake, so that a refused client gets a TLS alert and not
/// just a closed connection, and no byte of a request is ever read from it.
#[derive(Debug)]
pub(super) struct IdentityVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    accept: Peers,
    without: bool,
}

impl IdentityVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        accept: Peers,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider).build()?;
        Ok(Self {
            chain,
            accept,
            without: false,
        })
    }

    /// The same, which also lets in who shows no certificate at all. One that is shown must be good.
    pub(super) fn or_none(self) -> Self {
        Self {
            without: true,
            ..self
        }
    }
}

impl ClientCertVerifier for IdentityVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.without
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        let found = PeerId::from_certificate(end_entity).map_err(|error| refused(error.into()))?;
        if self.accept.contains(&found) {
            Ok(verified)
        } else {
            Err(refused(Unexpected::Other {
                expected: self.accept.clone(),
                found,
            }))
        }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// A certificate with a good chain and the wrong identity.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Unexpected {
    #[error(transparent)]
    None(#[from] IdentityError),
    #[error("expected the identity {expected}, found {found}")]
    Other { expected: Peers, found: PeerId },
}

fn refused(reason: Unexpected) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

/// The reason of a failed handshake, for people: rustls prints what a verifier of ours said with
/// `Debug`.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => {
            reason.to_string()
        }
        Error::NoCertificatesPresented => "the peer presented no certificate".to_owned(),
        other => other.to_string(),
    }
}
