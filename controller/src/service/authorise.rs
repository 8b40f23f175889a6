//! Who calls, and whether the role allows it. The identity comes from the client certificate.

use impound_proto::tls::Peer;
use impound_proto::{PeerId, Role};
use tonic::{Request, Status};

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// See what is quarantined and collected: every role.
    Look,
    /// Contain, release, collect and read evidence: responders and custodians.
    Respond,
}

/// The caller's identity as it is recorded, e.g. "spiffe://impound.dev/responder/responder/alice".
///
/// # Errors
/// `PERMISSION_DENIED` if the role does not allow it, `UNAUTHENTICATED` without an identity.
pub(super) fn requester<T>(request: &Request<T>, need: Need) -> Result<String, Status> {
    let peer = Peer::of(request)
        .ok_or_else(|| Status::unauthenticated("the connection carries no client certificate"))?;
    let PeerId::Responder { role, .. } = &peer.id else {
        return Err(refused(peer, "only a responder's certificate may call the controller"));
    };
    if need == Need::Respond && *role == Role::Viewer {
        return Err(refused(
            peer,
            "the role viewer may only look: this call needs the role responder or custodian",
        ));
    }
    Ok(peer.id.to_string())
}

fn refused(peer: &Peer, why: &str) -> Status {
    tracing::warn!(peer = %peer.id, remote = %peer.remote, why, "call refused");
    Status::permission_denied(format!("{}: {why}", peer.id))
}
