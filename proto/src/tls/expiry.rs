//! What ends with a certificate: new calls at once, what runs a bounded time later.
//!
//! Certificates are looked at in handshakes only, and a connection can outlive them. So an agent asks again before
//! each call ([`unexpired`]), the controller begins none on a connection whose certificates have ended
//! ([`Link`](super::Link)), and both cut what is still running [`GRACE`] later.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use tonic::{Request, Status};

use super::accept::Peer;

/// How long a stream that runs when a certificate ends may go on: an export that is broken off must be read anew,
/// from a container that may be another one by then. 300 GiB, the largest object, need an hour at 85 MiB/s.
pub const GRACE: Duration = Duration::from_secs(60 * 60);

/// What a connection is told that was cut off.
pub(super) const CUT: &str =
    "the connection was cut off: its certificate ended more than an hour ago";

/// Refuses calls of a peer whose certificate has ended, with `UNAUTHENTICATED`, and logs each. The interceptor for
/// servers of [`incoming`](super::incoming); calls that came in otherwise pass.
///
/// # Errors
/// The refusal.
pub fn unexpired(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get::<Peer>().and_then(refusal) {
        Some(status) => Err(status),
        None => Ok(request),
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
