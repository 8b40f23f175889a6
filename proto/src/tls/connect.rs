//! The client's way in: a channel to exactly one peer.
//!
//! In TLS 1.3 a client that the server refuses sees its handshake succeed and learns of the refusal
//! at its first read. So [`Connector`] waits for the server's first byte (every HTTP/2 server sends
//! its settings at once) before it calls the connection established; a refusal is then an error of
//! connecting, with the reason, and not of some later call.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tower::Service;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::cut::Cuttable;
use super::expiry::grace_after;
use super::reload::Credentials;
use super::{ALPN, HANDSHAKE_TIMEOUT, http2};
use crate::identity::{IdentityError, PeerId};

/// A channel to `expected` at `address` ("host:port", "[v6]:port") that connects at the first call and again
/// whenever the connection was lost. Errors of connecting arrive as `UNAVAILABLE` statuses; see
/// [`explain`].
///
/// # Errors
/// If `address` is malformed or `expected` is a responder, which is never connected to.
pub fn channel(
    address: &str,
    credentials: Credentials<ClientConfig>,
    expected: PeerId,
) -> Result<Channel, ConnectError> {
    let connector = Connector::new(credentials, expected)?;
    Ok(endpoint(address)?.connect_with_connector_lazy(connector))
}

/// As [`channel`], but connects now.
///
/// # Errors
/// Also if the peer cannot be reached, is not who it should be, or refuses us.
pub async fn connect(
    address: &str,
    credentials: Credentials<ClientConfig>,
    expected: PeerId,
) -> Result<Channel, ConnectError> {
    let (channel, _) = connect_shown(address, credentials, expected).await?;
    Ok(channel)
}

/// As [`connect`], with the certificate that the peer shows at each handshake.
///
/// # Errors
/// As [`connect`].
pub async fn connect_shown(
    address: &str,
    credentials: Credentials<ClientConfig>,
    expected: PeerId,
) -> Result<(Channel, ShownCertificate), ConnectError> {
    connect_with(address, Connector::new(credentials, expected)?).await
}

/// As [`connect_shown`], with a connector that has conditions of its own.
///
/// # Errors
/// As [`connect`].
pub async fn connect_with(
    address: &str,
    connector: Connector,
) -> Result<(Channel, ShownCertificate), ConnectError> {
    let (shown, expected) = (connector.shown.clone(), connector.expected.clone());
    let connected = endpoint(address)?.connect_with_connector(connector).await;
    let channel = connected.map_err(|source| ConnectError::Channel {
        peer: expected,
        address: address.to_owned(),
        source,
    })?;
    Ok((channel, shown))
}

/// The certificate that a peer showed at the latest handshake of a channel.
#[derive(Clone, Debug, Default)]
pub struct ShownCertificate(Arc<Mutex<Handshakes>>);

#[derive(Clone, Copy, Debug, Default)]
struct Handshakes {
    count: u64,
    latest: Option<Shown>,
}

#[derive(Clone, Copy, Debug)]
struct Shown {
    sha256: [u8; 32],
    not_after: OffsetDateTime,
    /// Of the certificate that was shown to the peer.
    ours_not_after: OffsetDateTime,
}

impl ShownCertificate {
    /// SHA-256 of its DER; `None` before the first handshake.
    #[must_use]
    pub fn sha256(&self) -> Option<[u8; 32]> {
        self.latest().map(|shown| shown.sha256)
    }

    /// Its last instant; `None` before the first handshake.
    #[must_use]
    pub fn not_after(&self) -> Option<OffsetDateTime> {
        self.latest().map(|shown| shown.not_after)
    }

    /// How many handshakes there were.
    pub(super) fn handshakes(&self) -> u64 {
        self.locked().count
    }

    /// Until when both ends' certificates of the latest handshake are valid; `None` before the first.
    pub(super) fn both_until(&self) -> Option<OffsetDateTime> {
        self.latest().map(Shown::both_until)
    }

    fn latest(&self) -> Option<Shown> {
        self.locked().latest
    }

    fn record(&self, shown: Shown) {
        let mut handshakes = self.locked();
        handshakes.count += 1;
        handshakes.latest = Some(shown);
    }

    fn locked(&self) -> MutexGuard<'_, Handshakes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    fn of(der: &[u8], ours_not_after: OffsetDateTime) -> Result<Self, IdentityError> {
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        Ok(Self {
            sha256: Sha256::digest(der).into(),
            not_after: parsed.validity().not_after.to_datetime(),
            ours_not_after,
        })
    }

    fn both_until(self) -> OffsetDateTime {
        self.not_after.min(self.ours_not_after)
    }
}

/// An error and everything that caused it, on one line. tonic's statuses and transport errors say
/// only "transport error" by themselves.
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Wrappers often repeat what they wrap.
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

pub(super) fn endpoint(address: &str) -> Result<Endpoint, ConnectError> {
    // "http": the connector below does TLS, tonic must not.
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|_| ConnectError::Address {
            found: address.to_owned(),
        })?;
    if endpoint.uri().port_u16().is_none() || endpoint.uri().path() != "/" {
        return Err(ConnectError::Address {
            found: address.to_owned(),
        });
    }
    Ok(http2::endpoint(endpoint))
}

/// Connects to one peer: TCP, TLS against our roots and the peer's DNS name, then its exact
/// identity. For tonic's `connect_with_connector`.
#[derive(Clone)]
pub struct Connector {
    credentials: Credentials<ClientConfig>,
    expected: PeerId,
    name: ServerName<'static>,
    node_uid: Option<String>,
    pub(super) shown: ShownCertificate,
    cut: CancellationToken,
}

impl Connector {
    /// A connector to `expected` and nobody else.
    ///
    /// # Errors
    /// If `expected` is a responder, which is never connected to.
    pub fn new(
        credentials: Credentials<ClientConfig>,
        expected: PeerId,
    ) -> Result<Self, ConnectError> {
        let name = expected
            .dns_name()
            .and_then(|name| ServerName::try_from(name).ok())
            .ok_or_else(|| ConnectError::NoServer {
                peer: expected.clone(),
            })?;
        Ok(Self {
            credentials,
            expected,
            name,
            node_uid: None,
            shown: ShownCertificate::default(),
            cut: CancellationToken::new(),
        })
    }

    /// Whom it connects to.
    pub(super) fn expected(&self) -> &PeerId {
        &self.expected
    }

    /// Refuses an agent whose certificate was issued for another Node object, e.g. an earlier node of the
    /// same name. A certificate that names no uid (a static installation's) is let pass.
    #[must_use]
    pub fn of_node(mut self, uid: &str) -> Self {
        self.node_uid = Some(uid.to_owned());
        self
    }

    /// Once `cut` is cancelled every connection that was made ends, in the middle of what it does, and no
    /// new one is made.
    #[must_use]
    pub fn until(mut self, cut: CancellationToken) -> Self {
        self.cut = cut;
        self
    }

    async fn open(self, uri: Uri) -> Result<TokioIo<Cuttable<TlsStream<TcpStream>>>, ConnectError> {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        let peer = self.expected.clone();
        let cut = self.cut.clone();
        let handshake = self.handshake(&address);
        let connected = tokio::select! {
            connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => connected,
            () = cut.cancelled() => return Err(ConnectError::CutOff { peer, address }),
        };
        let (tls, shown) = connected.map_err(|_| ConnectError::Timeout { peer, address })??;
        let end = async move {
            tokio::select! {
                () = cut.cancelled_owned() => "the connection was cut off: the node is revoked",
                why = grace_after(shown.both_until().into()) => why,
            }
        };
        Ok(TokioIo::new(Cuttable::new(tls, end)))
    }

    async fn handshake(self, address: &str) -> Result<(TlsStream<TcpStream>, Shown), ConnectError> {
        let Self {
            credentials,
            expected,
            name,
            node_uid,
            shown,
            cut: _,
        } = self;
        let at = |source| (expected.clone(), address.to_owned(), source);
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|error| ConnectError::tcp(at(error)))?;
        tcp.set_nodelay(true)
            .map_err(|error| ConnectError::tcp(at(error)))?;
        let (config, ours_not_after) = credentials.in_use();
        let mut tls = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(|error| ConnectError::tls(at(error)))?;
        let (_, session) = tls.get_ref();
        let certificate = session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or_else(|| {
                ConnectError::tls(at(io::Error::other("it presented no certificate")))
            })?;
        let found =
            PeerId::from_certificate(certificate).map_err(|source| ConnectError::NoIdentity {
                address: address.to_owned(),
                source,
            })?;
        if found != expected {
            return Err(ConnectError::Identity {
                expected,
                found,
                address: address.to_owned(),
            });
        }
        let unreadable = |source| ConnectError::NoIdentity {
            address: address.to_owned(),
            source,
        };
        match (node_uid, PeerId::node_uid(certificate).map_err(unreadable)?) {
            (Some(expected), Some(found)) if expected != found => {
                return Err(ConnectError::OtherNode {
                    address: address.to_owned(),
                    expected,
                    found,
                });
            }
            _ => {}
        }
        let latest = Shown::of(certificate, ours_not_after).map_err(unreadable)?;
        if session.alpn_protocol() != Some(ALPN) {
            return Err(ConnectError::tls(at(io::Error::other(
                "it does not speak h2",
            ))));
        }
        let first = tls
            .fill_buf()
            .await
            .map_err(|error| ConnectError::refused(at(error)))?;
        if first.is_empty() {
            let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection");
            return Err(ConnectError::refused(at(closed)));
        }
        shown.record(latest);
        Ok((tls, latest))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Cuttable<TlsStream<TcpStream>>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().open(uri))
    }
}

/// Why there is no connection to a peer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an address.
    #[error("expected an address of the form host:port, found {found:?}")]
    Address {
        /// What came.
        found: String,
    },
    /// A responder was to be connected to.
    #[error("{peer} is nobody that can be connected to")]
    NoServer {
        /// Who.
        peer: PeerId,
    },
    /// Nobody listens, no route, …
    #[error("could not connect to {peer} at {address}")]
    Tcp {
        /// Who should be there.
        peer: PeerId,
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The handshake failed on our side, or the peer does not speak TLS.
    #[error("no TLS connection to {peer} at {address}")]
    Tls {
        /// Who should be there.
        peer: PeerId,
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The peer's CA is right, its certificate has no identity.
    #[error("whoever is at {address} has no identity")]
    NoIdentity {
        /// Where.
        address: String,
        /// Why.
        source: IdentityError,
    },
    /// The peer's CA is right, but it is another peer.
    #[error("expected {expected} at {address}, found {found}")]
    Identity {
        /// Who should be there.
        expected: PeerId,
        /// Who is there.
        found: PeerId,
        /// Where.
        address: String,
    },
    /// It is the agent of that node's name, but of another Node object.
    #[error(
        "the agent at {address} has a certificate for the node with uid {found}, and the node has {expected}: \
         it was issued for an earlier node of the same name; restart the agent's pod"
    )]
    OtherNode {
        /// Where.
        address: String,
        /// uid of the Node object.
        expected: String,
        /// uid in the certificate.
        found: String,
    },
    /// Connections to this peer are not wanted any more.
    #[error("connections to {peer} at {address} were cut off: the node is revoked")]
    CutOff {
        /// Who.
        peer: PeerId,
        /// Where.
        address: String,
    },
    /// The peer does not want our certificate. Its log says why.
    #[error("{peer} at {address} refused our certificate; its log says why")]
    Refused {
        /// Who refused.
        peer: PeerId,
        /// Where.
        address: String,
        /// The TLS alert, or that it closed the connection.
        source: io::Error,
    },
    /// It took longer than [`HANDSHAKE_TIMEOUT`].
    #[error("no connection to {peer} at {address} within {HANDSHAKE_TIMEOUT:?}")]
    Timeout {
        /// Who should be there.
        peer: PeerId,
        /// Where.
        address: String,
    },
    /// tonic's view of one of the above, or of an HTTP/2 failure.
    #[error("no channel to {peer} at {address}")]
    Channel {
        /// Who should be there.
        peer: PeerId,
        /// Where.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
}

type At = (PeerId, String, io::Error);

impl ConnectError {
    fn tcp((peer, address, source): At) -> Self {
        Self::Tcp {
            peer,
            address,
            source,
        }
    }

    fn tls((peer, address, source): At) -> Self {
        Self::Tls {
            peer,
            address,
            source,
        }
    }

    fn refused((peer, address, source): At) -> Self {
        Self::Refused {
            peer,
            address,
            source,
        }
    }
}
