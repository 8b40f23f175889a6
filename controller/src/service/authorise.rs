//! Who calls, and whether the role allows it. The identity comes from the client certificate.

use impound_evidence::Sha256;
use impound_proto::tls::Peer;
use impound_proto::{PeerId, Role};
use tonic::{Request, Status};

/// What a call needs; the roles are those of [`Role`], each with the rights of the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// See what is quarantined and collected.
    Look,
    /// Contain, release, collect.
    Respond,
    /// Read evidence, which may hold anybody's secrets, and have it held.
    Keep,
}

impl Need {
    fn role(self) -> Role {
        match self {
            Self::Look => Role::Viewer,
            Self::Respond => Role::Responder,
            Self::Keep => Role::Custodian,
        }
    }
}

/// Who calls.
#[derive(Clone, Debug)]
pub(super) struct Requester {
    /// As it is recorded, e.g. "spiffe://impound.dev/responder/responder/alice".
    pub(super) id: String,
    /// SHA-256 of the certificate, DER.
    pub(super) certificate: Sha256,
}

/// The caller, if the role allows the call.
///
/// # Errors
/// `PERMISSION_DENIED` if the role does not allow it, `UNAUTHENTICATED` without an identity.
pub(super) fn requester<T>(request: &Request<T>, need: Need) -> Result<Requester, Status> {
    let peer = Peer::of(request)
        .ok_or_else(|| Status::unauthenticated("the connection carries no client certificate"))?;
    let PeerId::Responder { role, .. } = &peer.id else {
        return Err(refused(
            peer,
            "only a responder's certificate may call the controller",
        ));
    };
    let needed = need.role();
    if *role < needed {
        return Err(refused(
            peer,
            &format!("this call needs the role {needed}, the certificate has {role}"),
        ));
    }
    Ok(Requester {
        id: peer.id.to_string(),
        certificate: peer.certificate_sha256.into(),
    })
}

fn refused(peer: &Peer, why: &str) -> Status {
    tracing::warn!(peer = %peer.id, remote = %peer.remote, why, "call refused");
    Status::permission_denied(format!("{}: {why}", peer.id))
}
