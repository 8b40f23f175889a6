//! Certificate files, read and checked: nothing is used that the other end would refuse.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use super::verify::IdentityVerifier;
use super::{ALPN, Peers, TlsFiles};
use crate::identity::{IdentityError, PeerId};

/// Largest file that is read. A certificate is 1 KiB; a bundle of a few CAs a few.
const MAX_FILE: u64 = 1 << 20;

/// The files' bytes as they are now. The key is wiped from memory when dropped.
pub(super) struct Snapshot {
    certificate: Zeroizing<Vec<u8>>,
    /// `None`: it is in the file of the certificate.
    key: Option<Zeroizing<Vec<u8>>>,
    roots: Vec<u8>,
}

/// One end's certificate, key and roots, checked.
pub(super) struct Material {
    own: PeerId,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    not_after: OffsetDateTime,
}

impl Snapshot {
    pub(super) fn read(files: &TlsFiles) -> Result<Self, MaterialError> {
        let apart = files.key != files.certificate;
        Ok(Self {
            certificate: Zeroizing::new(read(&files.certificate)?),
            key: match apart {
                true => Some(Zeroizing::new(read(&files.key)?)),
                false => None,
            },
            roots: read(&files.roots)?,
        })
    }

    fn key(&self) -> &[u8] {
        self.key.as_ref().unwrap_or(&self.certificate)
    }

    /// Differs whenever one of the files does.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in [
            self.certificate.as_slice(),
            self.key(),
            self.roots.as_slice(),
        ] {
            hash.update(Sha256::digest(file));
        }
        hash.finalize().into()
    }

    /// Parses and checks: the key belongs to the certificate, the certificate is valid now, names
    /// one of `own` and its DNS name, and its chain, if the file holds it, verifies.
    pub(super) fn check(&self, files: &TlsFiles, own: &Peers) -> Result<Material, MaterialError> {
        let chain = certificates(&self.certificate, &files.certificate)?;
        let leaf = chain
            .first()
            .ok_or_else(|| MaterialError::NoCertificate(files.certificate.clone()))?;
        let identity =
            PeerId::from_certificate(leaf).map_err(|source| MaterialError::Identity {
                path: files.certificate.clone(),
                source,
            })?;
        if !own.contains(&identity) {
            return Err(MaterialError::NotOurs {
                path: files.certificate.clone(),
                expected: own.clone(),
                found: identity,
            });
        }
        let not_after = valid_now(leaf, &files.certificate)?;
        let refused = |source| MaterialError::Refused {
            path: files.certificate.clone(),
            source,
        };
        verify_chain(&chain, &identity).map_err(refused)?;
        let mut der =
            PrivateKeyDer::from_pem_slice(self.key()).map_err(|source| MaterialError::Pem {
                path: files.key.clone(),
                source,
            })?;
        let signing = rustls::crypto::ring::sign::any_supported_type(&der);
        der.zeroize();
        let unfit = |source| MaterialError::Refused {
            path: files.key.clone(),
            source,
        };
        let key = CertifiedKey::new(chain, signing.map_err(unfit)?);
        key.keys_match().map_err(unfit)?;
        let roots = root_store(&self.roots, &files.roots)?;
        Ok(Material {
            own: identity,
            key: Arc::new(key),
            roots: Arc::new(roots),
            not_after,
        })
    }
}

impl Material {
    pub(super) fn own(&self) -> &PeerId {
        &self.own
    }

    pub(super) fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    pub(super) fn server_config(&self, accept: &Peers) -> Result<ServerConfig, MaterialError> {
        self.checked_server_config(self.verifier(accept)?)
    }

    /// For a service that also takes tokens: whoever shows a certificate is one of `accept`.
    pub(super) fn caller_config(&self, accept: &Peers) -> Result<ServerConfig, MaterialError> {
        self.checked_server_config(self.verifier(accept)?.or_none())
    }

    fn verifier(&self, accept: &Peers) -> Result<IdentityVerifier, MaterialError> {
        IdentityVerifier::new(Arc::clone(&self.roots), provider(), accept.clone())
            .map_err(|error| MaterialError::Rustls(rustls::Error::General(error.to_string())))
    }

    fn checked_server_config(
        &self,
        verifier: IdentityVerifier,
    ) -> Result<ServerConfig, MaterialError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(MaterialError::Rustls)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(
                &self.key,
            ))));
        unresumable(&mut config);
        Ok(config)
    }

    /// For a service whose requests carry their own proof: no certificate is asked for.
    pub(super) fn open_server_config(&self) -> Result<ServerConfig, MaterialError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(MaterialError::Rustls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(
                &self.key,
            ))));
        unresumable(&mut config);
        Ok(config)
    }

    pub(super) fn client_config(&self) -> Result<ClientConfig, MaterialError> {
        let key = rustls::sign::SingleCertAndKey::from(Arc::clone(&self.key));
        let builder = client_builder(Arc::clone(&self.roots))?;
        Ok(client(builder.with_client_cert_resolver(Arc::new(key))))
    }
}

/// The configuration of a client that has no certificate yet and asks for one. `roots` is the PEM file
/// of the CAs that the server's certificate must come from.
pub(super) fn client_without_certificate(roots: &Path) -> Result<ClientConfig, MaterialError> {
    let roots = root_store(&read(roots)?, roots)?;
    Ok(client(
        client_builder(Arc::new(roots))?.with_no_client_auth(),
    ))
}

fn client_builder(
    roots: Arc<RootCertStore>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, MaterialError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| MaterialError::Rustls(rustls::Error::General(error.to_string())))?;
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(MaterialError::Rustls)?
        .with_webpki_verifier(verifier))
}

fn client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// h2 only; and a resumed session would skip the verifier of the client's certificate.
fn unresumable(config: &mut ServerConfig) {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
}

fn root_store(pem: &[u8], path: &Path) -> Result<RootCertStore, MaterialError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(pem, path)? {
        roots.add(root).map_err(|source| MaterialError::Refused {
            path: path.to_owned(),
            source,
        })?;
    }
    if roots.is_empty() {
        return Err(MaterialError::NoCertificate(path.to_owned()));
    }
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(path: &Path) -> Result<Vec<u8>, MaterialError> {
    let failed = |source| MaterialError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // Room for all of it and a little more: a buffer that grows leaves its old bytes, a key's too, behind.
    let length = file.metadata().map_err(failed)?.len().min(MAX_FILE);
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 64);
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::other(format!(
            "expected at most {MAX_FILE} bytes, it is larger"
        ))));
    }
    Ok(bytes)
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| MaterialError::Pem {
            path: path.to_owned(),
            source,
        })
}

/// First and last instant of the certificate in `files`, provided that its key is there as well.
///
/// # Errors
/// If a file cannot be read or is no PEM file of its kind. That it is valid now is not checked.
pub fn certificate_life(
    files: &TlsFiles,
) -> Result<(OffsetDateTime, OffsetDateTime), MaterialError> {
    let snapshot = Snapshot::read(files)?;
    let chain = certificates(&snapshot.certificate, &files.certificate)?;
    let leaf = chain
        .first()
        .ok_or_else(|| MaterialError::NoCertificate(files.certificate.clone()))?;
    life(leaf, &files.certificate)
}

fn life(
    leaf: &CertificateDer<'_>,
    path: &Path,
) -> Result<(OffsetDateTime, OffsetDateTime), MaterialError> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| MaterialError::Identity {
        path: path.to_owned(),
        source: IdentityError::Certificate(error.to_string()),
    })?;
    let validity = parsed.validity();
    Ok((
        validity.not_before.to_datetime(),
        validity.not_after.to_datetime(),
    ))
}

fn valid_now(leaf: &CertificateDer<'_>, path: &Path) -> Result<OffsetDateTime, MaterialError> {
    let (not_before, not_after) = life(leaf, path)?;
    let now = OffsetDateTime::now_utc();
    if now < not_before || now > not_after {
        return Err(MaterialError::NotValidNow {
            path: path.to_owned(),
            not_before,
            not_after,
            now,
        });
    }
    Ok(not_after)
}

/// Checks what peers will check: the DNS name and, as far as the file holds the issuers (its last
/// certificate is taken as root), signatures, validity and purpose.
fn verify_chain(chain: &[CertificateDer<'static>], own: &PeerId) -> Result<(), rustls::Error> {
    let Some((leaf, issuers)) = chain.split_first() else {
        return Err(rustls::Error::NoCertificatesPresented);
    };
    let name = match own.dns_name() {
        Some(name) => Some(
            ServerName::try_from(name)
                .map_err(|error| rustls::Error::General(error.to_string()))?,
        ),
        None => None,
    };
    if let Some(name) = &name {
        let parsed = rustls::server::ParsedCertificate::try_from(leaf)?;
        rustls::client::verify_server_name(&parsed, name)?;
    }
    let Some(root) = issuers.last() else {
        return Ok(());
    };
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let roots = Arc::new(roots);
    let general =
        |error: rustls::server::VerifierBuilderError| rustls::Error::General(error.to_string());
    if let Some(name) = &name {
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(general)?
            .verify_server_cert(leaf, issuers, name, &[], UnixTime::now())?;
    }
    if !matches!(own, PeerId::Agent { .. }) {
        WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(general)?
            .verify_client_cert(leaf, issuers, UnixTime::now())?;
    }
    Ok(())
}

/// Why certificate files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A file cannot be read.
    #[error("could not read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Broken PEM, or a key file without a key.
    #[error("{} is not the PEM file it should be", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// No certificate in the file.
    #[error("expected at least one PEM certificate in {}, found none", .0.display())]
    NoCertificate(PathBuf),
    /// The certificate has no identity of ours.
    #[error("the certificate in {} has no usable identity", path.display())]
    Identity {
        /// Which.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The certificate belongs to somebody else.
    #[error("expected the certificate of {expected} in {}, found that of {found}", path.display())]
    NotOurs {
        /// Which file.
        path: PathBuf,
        /// Who we are.
        expected: Peers,
        /// Whose it is.
        found: PeerId,
    },
    /// Expired or not valid yet, by this machine's clock.
    #[error(
        "the certificate in {} is valid from {not_before} to {not_after}, and this machine's clock says \
         {now}: issue a new one or correct the clock",
        path.display()
    )]
    NotValidNow {
        /// Which file.
        path: PathBuf,
        /// Start.
        not_before: OffsetDateTime,
        /// End.
        not_after: OffsetDateTime,
        /// This machine's clock.
        now: OffsetDateTime,
    },
    /// The chain, a name or the key does not fit.
    #[error("what {} holds would be refused by peers", path.display())]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// rustls refused a configuration.
    #[error("TLS cannot be configured")]
    Rustls(#[source] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Ca, Validity};

    #[test]
    fn fuzz_pem_any_file_has_certificates_or_is_refused() {
        let validity = Validity::from_now(time::Duration::hours(1));
        let ca = Ca::generate("a test's CA", validity).unwrap();
        let pem = ca.certificate().as_bytes().to_vec();
        let path = Path::new("tls.crt");
        impound_fuzz::run("pem", &[pem], |_, bytes| {
            if let Ok(roots) = root_store(&bytes, path) {
                assert!(!roots.is_empty());
            }
            for leaf in certificates(&bytes, path).unwrap_or_default() {
                if let Ok((from, to)) = life(&leaf, path) {
                    assert!(from.unix_timestamp() != i64::MIN && to.unix_timestamp() != i64::MIN);
                }
            }
        });
    }
}
