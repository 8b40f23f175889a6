//! What ends with a certificate: new calls at once, what runs a bounded time later.
//!
//! Certificates are looked at in handshakes only, and a connection can outlive them. So an agent asks again before
//! each call ([`Unexpired`]), the controller begins none on a connection whose certificates have ended
//! ([`Link`](super::Link)), and both cut what is still running [`GRACE`] later.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::accept::Peer;

/// How long a stream that runs when a certificate ends may go on: an export that is broken off must be read anew,
/// from a container that may be another one by then. 300 GiB, the largest object, need an hour at 85 MiB/s.
pub const GRACE: Duration = Duration::from_secs(60 * 60);

/// What a connection is told that was cut off.
pub(super) const CUT: &str =
    "the connection was cut off: its certificate ended more than an hour ago";

/// Refuses calls of a peer whose certificate has ended, with `UNAUTHENTICATED`, and logs each. For servers of
/// [`incoming`](super::incoming); calls that came in otherwise pass.
#[derive(Clone, Copy, Debug)]
pub struct Unexpired;

impl<S> Layer<S> for Unexpired {
    type Service = Asked<S>;

    fn layer(&self, inner: S) -> Asked<S> {
        Asked { inner }
    }
}

/// `S`, called by peers whose certificate is valid.
#[derive(Clone, Debug)]
pub struct Asked<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Asked<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.extensions().get::<Peer>().map(refusal) {
            Some(Some(status)) => Box::pin(std::future::ready(Ok(status.into_http()))),
            _ => Box::pin(self.inner.call(request)),
        }
    }
}

fn refusal(peer: &Peer) -> Option<Status> {
    let ended = peer.expires.filter(|end| *end <= SystemTime::now())?;
    let reason = format!(
        "the certificate of this connection ended at {}: connect again with a new one",
        OffsetDateTime::from(ended)
    );
    tracing::warn!(remote = %peer.remote, peer = %peer.id, reason, "refused a call");
    Some(Status::unauthenticated(reason))
}

/// Completes [`GRACE`] after `end`, by the clock of now.
pub(super) async fn grace_after(end: SystemTime) -> &'static str {
    let left = end
        .duration_since(SystemTime::now())
        .unwrap_or(Duration::ZERO);
    tokio::time::sleep(left.saturating_add(GRACE)).await;
    CUT
}
