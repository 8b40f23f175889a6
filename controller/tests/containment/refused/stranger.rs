//! Whoever knocks at a port: certificates that nobody should have, and clients that check nothing about themselves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use impound_proto::PeerId;
use impound_proto::pki::{Ca, Issued, LEAF_LIFE, Validity};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What somebody shows in a handshake.
pub(super) struct Shown {
    issued: Option<Issued>,
    h2: bool,
    tls12: bool,
}

impl Shown {
    pub(super) fn nothing() -> Self {
        Self {
            issued: None,
            h2: true,
            tls12: false,
        }
    }

    pub(super) fn certificate(issued: Issued) -> Self {
        Self {
            issued: Some(issued),
            ..Self::nothing()
        }
    }

    pub(super) fn without_h2(self) -> Self {
        Self { h2: false, ..self }
    }

    pub(super) fn with_tls12(self) -> Self {
        Self {
            tls12: true,
            ..self
        }
    }

    fn config(&self, roots: Vec<u8>) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let version = match self.tls12 {
            true => &rustls::version::TLS12,
            false => &rustls::version::TLS13,
        };
        let mut store = RootCertStore::empty();
        store
            .add(CertificateDer::from_pem_slice(&roots).unwrap())
            .unwrap();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(store);
        let mut config = match &self.issued {
            None => builder.with_no_client_auth(),
            Some(issued) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        if self.h2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        config
    }
}

/// Ok if a byte came after the handshake: then the door is open.
pub(super) fn knock(
    at: SocketAddr,
    dns: &str,
    roots: Vec<u8>,
    shown: Shown,
) -> impl Future<Output = Result<(), String>> + use<> {
    let dns = dns.to_owned();
    async move { shake(at, dns, Arc::new(shown.config(roots))).await }
}

/// Opens a session with a good certificate, then comes again with what it remembers of it, and no certificate.
pub(super) async fn resume(
    at: SocketAddr,
    dns: &str,
    roots: Vec<u8>,
    good: Issued,
) -> impl Future<Output = Result<(), String>> + use<> {
    // One configuration: rustls takes up no session of another. So it is the certificate that goes.
    let mut config = Shown::certificate(good).config(roots);
    let once = Arc::new(Once {
        good: config.client_auth_cert_resolver.clone(),
        shown: AtomicBool::new(false),
    });
    config.client_auth_cert_resolver = once;
    let (config, dns) = (Arc::new(config), dns.to_owned());
    let first = shake(at, dns.clone(), config.clone()).await;
    first.expect("the good certificate is let in");
    async move { shake(at, dns, config).await }
}

/// Has a certificate for the first who asks.
#[derive(Debug)]
struct Once {
    good: Arc<dyn ResolvesClientCert>,
    shown: AtomicBool,
}

impl ResolvesClientCert for Once {
    fn resolve(
        &self,
        hints: &[&[u8]],
        schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        match self.shown.swap(true, Ordering::Relaxed) {
            true => None,
            false => self.good.resolve(hints, schemes),
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A server that gives tickets, unlike ours, and says in a byte whether a session was resumed.
#[tokio::test]
async fn a_client_that_resumes_a_session_gets_past_a_server_that_lets_it() {
    let controller = PeerId::Controller;
    let now = Validity::from_now(LEAF_LIFE);
    let ca = Ca::generate("test", now).unwrap();
    let issued = ca.issue(&controller, &[], now).unwrap();
    let roots = ca.certificate().as_bytes().to_vec();
    let mut store = RootCertStore::empty();
    store
        .add(CertificateDer::from_pem_slice(&roots).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(store.into(), provider.clone());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = tokio::spawn(async move {
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut tls = acceptor.accept(tcp).await.unwrap();
            kinds.push(tls.get_ref().1.handshake_kind().unwrap());
            tls.write_all(b"x").await.unwrap();
            tls.shutdown().await.unwrap();
        }
        kinds
    });
    let dns = controller.dns_name().unwrap();
    let second = resume(at, &dns, roots, issued).await;
    second.await.expect("it is let in without a certificate");
    let kinds = server.await.unwrap();
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
}

async fn shake(at: SocketAddr, dns: String, config: Arc<ClientConfig>) -> Result<(), String> {
    let tcp = TcpStream::connect(at).await.unwrap();
    let name = ServerName::try_from(dns).unwrap();
    let mut tls = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| error.to_string())?;
    match tls.read(&mut [0]).await {
        Ok(1) => Ok(()),
        Ok(_) => Err("the connection was closed".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// HTTP/2 without TLS.
pub(super) async fn plain(at: SocketAddr) -> Result<(), String> {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    tcp.write_all(preface).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = tcp.read_to_end(&mut answer).await;
    match answer.first() {
        // An alert, in TLS as little as anything can be said.
        None | Some(0x15) => Err("the connection was closed".to_owned()),
        Some(_) => Ok(()),
    }
}

/// Says nothing. Ok if the other end says something.
pub(super) async fn silent(tcp: &mut TcpStream) -> Result<(), String> {
    match tcp.read(&mut [0]).await {
        Ok(1) => Ok(()),
        _ => Err("the connection was closed".to_owned()),
    }
}

pub(super) fn self_signed(peer: &PeerId) -> Issued {
    let (params, key) = (names(&[&peer.to_string()]), KeyPair::generate().unwrap());
    issued(params.self_signed(&key).unwrap().pem(), &key)
}

pub(super) fn two_names(ca: &Ca) -> Issued {
    let both = [
        "spiffe://impound.dev/controller",
        "spiffe://impound.dev/responder/custodian/eve",
    ];
    signed(ca, &names(&both))
}

/// A certificate with a name that is not checked.
pub(super) fn named(ca: &Ca, name: &str) -> Issued {
    signed(ca, &names(&[name]))
}

fn names(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    for uri in uris {
        let name = SanType::URI(Ia5String::try_from(*uri).unwrap());
        params.subject_alt_names.push(name);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn signed(ca: &Ca, params: &CertificateParams) -> Issued {
    let key = KeyPair::from_pem(&ca.key()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(ca.certificate(), key).unwrap();
    let key = KeyPair::generate().unwrap();
    issued(params.signed_by(&key, &issuer).unwrap().pem(), &key)
}

fn issued(certificate: String, key: &KeyPair) -> Issued {
    Issued {
        certificate,
        key: key.serialize_pem().into(),
    }
}
