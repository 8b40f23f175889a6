//! Who calls, and whether they may do that there. The identity comes from the client certificate or from a
//! Kubernetes token; the [`door`](super::door) found it out.

use std::sync::Arc;
use std::time::SystemTime;

use impound_evidence::Sha256;
use impound_proto::{Namespaces, Role};
use tonic::{Request, Status};

use super::status;
use super::tokens::{Token, Tokens, User};

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

/// Where a call acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope<'a> {
    /// In this namespace.
    Namespace(&'a str),
    /// In all of them, or on what is of none: nodes, and evidence, of which a case has that of neighbours in
    /// other namespaces, too.
    Everything,
}

impl<'a> Scope<'a> {
    /// The namespace of a request; an empty one stands for all.
    pub(super) fn of(namespace: &'a str) -> Self {
        match namespace {
            "" => Self::Everything,
            namespace => Self::Namespace(namespace),
        }
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Requester {
    /// As it is recorded, e.g. "spiffe://impound.dev/responder/responder/alice" or
    /// "kubernetes:system:serviceaccount:soar:playbooks".
    pub(super) id: String,
    /// SHA-256 of the certificate, DER, if one was shown.
    pub(super) certificate: Option<Sha256>,
}

/// Who calls, and what says what they may. In the extensions of every request.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) who: Requester,
    pub(super) rights: Rights,
}

/// What says what a caller may.
#[derive(Clone)]
pub(super) enum Rights {
    /// The certificate itself.
    Certificate {
        role: Role,
        namespaces: Namespaces,
        /// When it stops to count.
        expires: SystemTime,
    },
    /// The Kubernetes API.
    Token {
        user: Arc<User>,
        tokens: Arc<Tokens>,
        /// For a stream: its holder is asked for again.
        token: Token,
    },
}

impl Caller {
    /// Who sent `request`.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if it did not come through the door.
    pub(super) fn of<T>(request: &Request<T>) -> Result<&Self, Status> {
        let nobody = || Status::unauthenticated("the call did not come from a verified caller");
        request.extensions().get().ok_or_else(nobody)
    }

    /// Whether the caller may do that there.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` if not, `INVALID_ARGUMENT` if the namespace can be none, `UNAVAILABLE` if that can't be
    /// found out.
    pub(super) async fn may(&self, need: Need, scope: Scope<'_>) -> Result<(), Status> {
        if let Scope::Namespace(namespace) = scope {
            // Before anybody is asked about it, or it is remembered.
            status::checked_name("namespace", namespace)?;
        }
        let needed = need.role();
        let why = match &self.rights {
            Rights::Certificate { role, .. } if *role < needed => {
                format!("this call needs the role {needed}, the certificate has {role}")
            }
            Rights::Certificate { namespaces, .. } => {
                let granted = match namespaces {
                    Namespaces::All => return Ok(()),
                    Namespaces::Only(granted) => granted.names().join(", "),
                };
                match scope {
                    Scope::Namespace(namespace) if namespaces.contains(namespace) => return Ok(()),
                    Scope::Namespace(namespace) => {
                        format!("namespace {namespace:?} is not granted; granted are {granted}")
                    }
                    Scope::Everything => format!(
                        "this call is about all namespaces, and granted are only {granted}; where a call takes a \
                         namespace, name one of them"
                    ),
                }
            }
            Rights::Token { user, tokens, .. } => {
                if tokens.may(user, needed, &scope).await? {
                    return Ok(());
                }
                let place = match scope {
                    Scope::Namespace(namespace) => format!("in namespace {namespace:?}"),
                    Scope::Everything => "in all namespaces (by a ClusterRoleBinding)".to_owned(),
                };
                format!(
                    "this call needs the right to `use` roles.impound.dev {needed} {place}; the ClusterRole \
                     impound-access-{needed} has it"
                )
            }
        };
        Err(Status::permission_denied(format!("{}: {why}", self.who.id)))
    }

    /// Whether the caller, who was let in and admitted some time ago, is still who that was and may still do that.
    ///
    /// # Errors
    /// As [`Caller::may`]; `UNAUTHENTICATED` if the certificate has expired or the token is not accepted any more.
    pub(super) async fn still_may(&self, need: Need, scope: Scope<'_>) -> Result<(), Status> {
        let mut now = self.clone();
        match &mut now.rights {
            Rights::Certificate { expires, .. } => unexpired(*expires)?,
            Rights::Token {
                user,
                tokens,
                token,
            } => {
                // With the groups that it has now.
                *user = tokens.again(token).await?;
                if user.id != self.who.id {
                    return Err(Status::unauthenticated(format!(
                        "the token was that of {}, and is now of {}",
                        self.who.id, user.id
                    )));
                }
            }
        }
        now.may(need, scope).await
    }
}

/// A connection outlives its certificate, and what the certificate says does not.
///
/// # Errors
/// `UNAUTHENTICATED` if it has expired.
pub(super) fn unexpired(expires: SystemTime) -> Result<(), Status> {
    match SystemTime::now() < expires {
        true => Ok(()),
        false => Err(Status::unauthenticated(
            "the client certificate of this connection has expired: connect again with a new one",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn caller(role: Role, namespaces: Namespaces, expires: SystemTime) -> Caller {
        Caller {
            who: Requester {
                id: "alice".to_owned(),
                certificate: None,
            },
            rights: Rights::Certificate {
                role,
                namespaces,
                expires,
            },
        }
    }

    async fn may(role: Role, namespaces: Namespaces, need: Need, scope: Scope<'_>) -> bool {
        let caller = caller(role, namespaces, SystemTime::now() + HOUR);
        let (may, still) = futures::join!(caller.may(need, scope), caller.still_may(need, scope));
        assert_eq!(may.is_ok(), still.is_ok());
        may.is_ok()
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_certificate_that_it_was_opened_with() {
        for (expires, goes_on) in [
            (SystemTime::now() + HOUR, true),
            (SystemTime::now() - HOUR, false),
        ] {
            let caller = caller(Role::Custodian, Namespaces::All, expires);
            let still = caller.still_may(Need::Look, Scope::Everything).await;
            let code = still.map_err(|status| status.code());
            assert_eq!(code.is_ok(), goes_on);
            assert!(goes_on || code == Err(tonic::Code::Unauthenticated));
        }
    }

    #[tokio::test]
    async fn a_grant_of_namespaces_ends_at_their_border() {
        let shop = || Namespaces::only(["shop"]).unwrap();
        let (respond, keep) = (Need::Respond, Need::Keep);
        assert!(may(Role::Responder, shop(), respond, Scope::of("shop")).await);
        assert!(!may(Role::Responder, shop(), respond, Scope::of("sho")).await);
        assert!(!may(Role::Responder, shop(), respond, Scope::of("")).await);
        assert!(!may(Role::Responder, shop(), keep, Scope::of("shop")).await);
        assert!(!may(Role::Custodian, shop(), keep, Scope::Everything).await);
        assert!(may(Role::Custodian, Namespaces::All, keep, Scope::Everything).await);
    }
}
