//! Mutual TLS, both ends: between controller and agents, and between responders and controller.
//!
//! TLS 1.3 only, ALPN `h2` only, no session resumption (a resumed session would skip the client
//! verifier). Peers are verified twice: the chain against private roots, and the identity against
//! the [`Peers`] that this end expects.
//!
//! Server: [`server_credentials`] -> [`incoming`] -> tonic's `serve_with_incoming`; each request then
//! carries a [`Peer`], and [`unexpired`] refuses that of a peer whose certificate has ended since. Client:
//! [`client_credentials`] -> [`channel`] or [`link`]. The [`Reloader`] that comes with the credentials
//! re-reads the files; new handshakes use what it publishes, and servers ask clients for a new handshake
//! every hour, see [`http2`].

mod accept;
mod connect;
mod cut;
mod expiry;
pub mod http2;
mod link;
mod material;
mod reload;
mod verify;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::identity::PeerId;
pub use accept::{
    Accepted, Caller, CallerStream, Incoming, OpenStream, Peer, PeerStream, incoming,
    incoming_callers, incoming_open,
};
pub use connect::{
    ConnectError, Connector, ShownCertificate, channel, connect, connect_shown, connect_with,
    explain,
};
pub use cut::Cuttable;
pub use expiry::{GRACE, unexpired};
pub use link::{Link, link};
pub use material::{MaterialError, certificate_life};
pub use reload::{
    Credentials, Reload, Reloader, caller_credentials, client_credentials, open_server_credentials,
    server_credentials,
};

/// Longest time a handshake may take, on either end. A peer on the same network needs
/// milliseconds; a busy node under attack may need seconds.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the certificate files are looked at again. Kubernetes itself takes about a minute to
/// update a mounted Secret, so a few seconds add nothing that matters.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Application protocol of every connection: HTTP/2.
const ALPN: &[u8] = b"h2";

/// The three files of one end of the connection.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Own certificate, PEM; may be followed by its CA's.
    pub certificate: PathBuf,
    /// Own key, PKCS#8 PEM.
    pub key: PathBuf,
    /// CAs that the other end's certificate must come from, PEM.
    pub roots: PathBuf,
}

impl TlsFiles {
    /// `tls.crt`, `tls.key` and the given roots file in `dir`, e.g. "controller-ca.crt".
    #[must_use]
    pub fn in_dir(dir: &Path, roots: &str) -> Self {
        Self {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            roots: dir.join(roots),
        }
    }

    /// Key and certificate in one file `bundle`, as the kubelet writes those of a pod, and the given roots file.
    /// It is read once, so that the two fit together.
    #[must_use]
    pub fn bundle_in_dir(dir: &Path, bundle: &str, roots: &str) -> Self {
        Self {
            certificate: dir.join(bundle),
            key: dir.join(bundle),
            roots: dir.join(roots),
        }
    }
}

/// Which identities are acceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// This one and no other.
    Only(PeerId),
    /// Every responder, whatever the role: the service decides per call.
    AnyResponder,
}

impl Peers {
    /// Whether `peer` is one of them.
    #[must_use]
    pub fn contains(&self, peer: &PeerId) -> bool {
        match self {
            Self::Only(one) => peer == one,
            Self::AnyResponder => matches!(peer, PeerId::Responder { .. }),
        }
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(peer) => peer.fmt(f),
            Self::AnyResponder => f.write_str("a responder"),
        }
    }
}

#[cfg(test)]
mod tests;
