//! The way from the front to a part, on one machine: a Unix socket without TLS.
//!
//! ```text
//! controller ==mutual TLS==> front --socket--> Door -> Service -> the runtime
//! ```
//! The socket's mode (0660) and the user at its other end (`SO_PEERCRED`) decide who may speak: the
//! front and nobody else. Who asked the front travels in metadata that only the front can set, since
//! it forwards no metadata that it does not know.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use futures::stream::{Stream, unfold};
use impound_evidence::Sha256;
use impound_proto::PeerId;
use impound_proto::tls::Peer;
use tokio::net::{UnixListener, UnixStream};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tonic::server::NamedService;

use crate::methods::{Part, part_of};

/// Identity of the peer that the front let in, as its certificate names it.
const PEER: HeaderName = HeaderName::from_static("impound-peer");
/// SHA-256 of that certificate, hexadecimal.
const CERTIFICATE: HeaderName = HeaderName::from_static("impound-peer-certificate");
/// The peer's address and port.
const REMOTE: HeaderName = HeaderName::from_static("impound-peer-remote");

/// Owner and group may connect: the front shares the group (`fsGroup` of the pod).
const MODE: u32 = 0o660;

/// Pause after the system refused to accept (out of file descriptors, most likely).
const ACCEPT_BACKOFF: std::time::Duration = std::time::Duration::from_millis(100);

/// A Unix socket's place, written `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(PathBuf);

impl SocketPath {
    /// Where it is in the file system.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for SocketPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self(path.into())),
            _ => Err(format!(
                "expected unix: and an absolute path, e.g. unix:/run/impound/collector.sock, found {text:?}"
            )),
        }
    }
}

impl std::fmt::Display for SocketPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

/// Listens at `socket`. A socket that an earlier process left there is replaced; anything else is not.
///
/// # Errors
/// If something else is at the path, or the directory cannot be written.
pub fn listen(socket: &SocketPath) -> io::Result<UnixListener> {
    let path = socket.as_path();
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::other(
                "expected nothing or a socket there, found something else",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    Ok(listener)
}

/// Connections of `user`, for tonic's `serve_with_incoming`. Any other is closed before it is read,
/// and logged.
pub(crate) fn incoming(
    listener: UnixListener,
    user: u32,
) -> impl Stream<Item = io::Result<UnixStream>> {
    unfold(listener, move |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == user => return Some((Ok(stream), listener)),
                    Ok(peer) => tracing::warn!(
                        uid = peer.uid(),
                        gid = peer.gid(),
                        pid = peer.pid(),
                        reason = format!("expected user {user}, the front's"),
                        "refused a peer"
                    ),
                    Err(error) => {
                        tracing::warn!(%error, reason = "it is not known who it is", "refused a peer");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    })
}

/// Says who asks, in the headers of a request from the front to a part.
pub(crate) fn name_peer(headers: &mut HeaderMap, peer: &Peer) -> Result<(), Status> {
    let texts = [
        (PEER, peer.id.to_string()),
        (
            CERTIFICATE,
            Sha256::from(peer.certificate_sha256).to_string(),
        ),
        (REMOTE, peer.remote.to_string()),
    ];
    for (name, text) in texts {
        let value = HeaderValue::try_from(text)
            .map_err(|_| Status::internal(format!("the peer's {name} is no header value")))?;
        headers.insert(name, value);
    }
    Ok(())
}

/// Who asks, as the front says it.
fn named_peer(headers: &HeaderMap) -> Result<Peer, String> {
    let certificate: Sha256 = header(headers, &CERTIFICATE)?;
    let peer = Peer {
        id: header(headers, &PEER)?,
        certificate_sha256: *certificate.as_bytes(),
        // The front has looked.
        expires: None,
        remote: header(headers, &REMOTE)?,
    };
    match peer.id {
        PeerId::Controller => Ok(peer),
        other => Err(format!("expected {}, found {other}", PeerId::Controller)),
    }
}

fn header<T: FromStr<Err: std::fmt::Display>>(
    headers: &HeaderMap,
    name: &HeaderName,
) -> Result<T, String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value
            .to_str()
            .map_err(|error| format!("{name}: {error}"))?
            .parse()
            .map_err(|error| format!("{name}: {error}")),
        (None, _) => Err(format!("expected the metadata {name}, found none")),
        (Some(_), Some(_)) => Err(format!("expected the metadata {name} once")),
    }
}

/// Stands before the service of a part: lets in the RPCs of that part, and only with a peer that the
/// front names.
#[derive(Clone)]
pub(crate) struct Door<S> {
    part: Part,
    service: S,
}

impl<S> Door<S> {
    pub(crate) fn new(part: Part, service: S) -> Self {
        Self { part, service }
    }
}

impl<S: NamedService> NamedService for Door<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Door<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let refused = |status: Status| {
            tracing::warn!(code = ?status.code(), reason = status.message(), "refused a call");
            Box::pin(std::future::ready(Ok(status.into_http()))) as Self::Future
        };
        let path = request.uri().path();
        if part_of(path) != Some(self.part) {
            let shown: String = path.chars().take(100).collect();
            return refused(Status::unimplemented(format!(
                "{shown:?} is no call of the {}",
                self.part
            )));
        }
        match named_peer(request.headers()) {
            Ok(peer) => {
                request.extensions_mut().insert(peer);
                Box::pin(self.service.call(request))
            }
            Err(why) => refused(Status::unauthenticated(why)),
        }
    }
}

#[cfg(test)]
mod tests;
