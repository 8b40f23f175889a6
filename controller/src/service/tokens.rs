//! Callers who prove themselves with a Kubernetes token: who they are by a TokenReview, what they may by a
//! SubjectAccessReview. Both answers are believed for some seconds, as the API server itself does.
//!
//! The right is `use` of `roles.impound.dev` with the role's name, in a namespace or, by a ClusterRoleBinding, in all
//! of them. It is a right of its own: what somebody may do to our objects with kubectl says nothing about evidence.

mod answers;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use impound_proto::Role;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{ObjectMeta, PostParams};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tonic::Status;
use zeroize::Zeroizing;

use super::authorise::Scope;
use super::limits::{Allowance, Limits, Running};
use super::status;
use crate::kubernetes::token;
use crate::resources::GROUP;
use answers::Answers;

/// Audience that tokens must be for. One for the API server is not accepted, and this one is of no use there.
pub const AUDIENCE: &str = "impound.dev/controller";

/// Largest token. Kubernetes' are about 1 KiB.
const LARGEST: usize = 15 << 10;

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Questions to the API server at the same time.
const QUESTIONS: usize = 16;

/// Longest name of a user. That of a service account has at most 339 characters.
const NAME: usize = 512;

/// Reviews that one address may cause, by tokens that were not seen before.
const REVIEWS: Allowance = Allowance {
    per_second: 5,
    at_once: 4,
};

/// Asks the API server who holds a token and what they may do.
pub struct Tokens {
    api: Arc<Api>,
    /// By the token's SHA-256.
    users: Arc<Answers<[u8; 32], Reviewed>>,
    rights: Arc<Answers<Right, bool>>,
    reviews: Arc<Limits>,
}

/// The API server, and how much it is asked.
struct Api {
    client: Client,
    /// Questions to the API server at the same time, of all callers: the reconcilers ask it, too.
    asking: Semaphore,
}

/// A caller's token, for as long as its call lasts.
#[derive(Clone)]
pub(super) struct Token(Arc<Zeroizing<String>>);

impl From<&str> for Token {
    fn from(token: &str) -> Self {
        Self(Arc::new(Zeroizing::new(token.to_owned())))
    }
}

/// What the API server said of the token with a SHA-256: whose it is, or why it is nobody's.
type Reviewed = Result<Arc<User>, String>;

/// What a user was asked about for: by [`User::key`], which role in which namespace.
type Right = ([u8; 32], Role, Option<String>);

/// Who holds a token.
#[derive(Debug)]
pub(super) struct User {
    /// As it is recorded, e.g. "kubernetes:system:serviceaccount:soar:playbooks".
    pub(super) id: String,
    info: UserInfo,
    /// Tells users apart whose rights may differ: SHA-256 of name, uid, groups and extra.
    key: [u8; 32],
}

impl Tokens {
    /// Asks with `client`.
    #[must_use]
    pub fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            api: Arc::new(Api {
                client,
                asking: Semaphore::new(QUESTIONS),
            }),
            users: Answers::new(),
            rights: Answers::new(),
            reviews: Limits::new(REVIEWS),
        })
    }

    /// The user that holds `token`, which came from `remote`. Calls with the same token wait for one review.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if the API server does not accept it for [`AUDIENCE`], `RESOURCE_EXHAUSTED` if too many
    /// unknown tokens come from there, `UNAVAILABLE` if it does not answer.
    pub(super) async fn user(&self, token: &Token, remote: IpAddr) -> Result<Arc<User>, Status> {
        let running = || {
            let running = self.reviews.begin(&network(remote));
            running.map(Some).map_err(|much| much.status())
        };
        self.reviewed(token, running).await
    }

    /// The user that holds `token`, which was accepted before, as the API server says now.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if it is not accepted any more, `UNAVAILABLE` if the API server does not answer.
    pub(super) async fn again(&self, token: &Token) -> Result<Arc<User>, Status> {
        self.reviewed(token, || Ok(None)).await
    }

    async fn reviewed(
        &self,
        token: &Token,
        running: impl FnOnce() -> Result<Option<Running>, Status>,
    ) -> Result<Arc<User>, Status> {
        let length = token.0.len();
        if !(1..=LARGEST).contains(&length) {
            return Err(Status::unauthenticated(format!(
                "expected a token of 1 to {LARGEST} bytes, came {length}"
            )));
        }
        let key: [u8; 32] = Sha256::digest(token.0.as_bytes()).into();
        let begin = || {
            let (running, api, token) = (running()?, self.api.clone(), token.clone());
            Ok(async move {
                let reviewed = api.review(&token).await;
                drop(running);
                reviewed
            })
        };
        let reviewed = self.users.of(key, begin).await?;
        reviewed.map_err(Status::unauthenticated)
    }

    /// Whether `user` has at least `role` there.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the API server does not answer.
    pub(super) async fn may(
        &self,
        user: &Arc<User>,
        role: Role,
        scope: &Scope<'_>,
    ) -> Result<bool, Status> {
        // Each role may also do what the ones before it may.
        let roles = [Role::Viewer, Role::Responder, Role::Custodian];
        for role in roles.into_iter().filter(|enough| *enough >= role) {
            let namespace = match scope {
                Scope::Namespace(namespace) => Some((*namespace).to_owned()),
                Scope::Everything => None,
            };
            let begin = || {
                let (api, user, namespace) = (self.api.clone(), user.clone(), namespace.clone());
                Ok(async move { api.access(&user, role, namespace).await })
            };
            let key = (user.key, role, namespace.clone());
            if self.rights.of(key, begin).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Api {
    async fn review(&self, token: &Token) -> Result<Reviewed, Status> {
        let asked = token::review(&self.client, &token.0, AUDIENCE);
        let status = self.answered("tokenreviews", asked).await?;
        let info = match token::holder(status, AUDIENCE) {
            Ok(info) => info,
            Err(why) => {
                return Ok(Err(format!(
                    "the Kubernetes API does not accept the token for the audience {AUDIENCE}: {why}"
                )));
            }
        };
        let name = info.username.clone().unwrap_or_default();
        if name.is_empty() || name.len() > NAME || name.chars().any(char::is_control) {
            return Ok(Err(format!(
                "the token's user has no name of 1 to {NAME} bytes without control characters"
            )));
        }
        Ok(Ok(Arc::new(User {
            id: format!("kubernetes:{name}"),
            key: serde_json::to_vec(&info)
                .map(|info| Sha256::digest(info).into())
                .map_err(|error| Status::internal(error.to_string()))?,
            info,
        })))
    }

    async fn access(
        &self,
        user: &User,
        role: Role,
        namespace: Option<String>,
    ) -> Result<bool, Status> {
        let info = user.info.clone();
        let review = SubjectAccessReview {
            metadata: ObjectMeta::default(),
            spec: SubjectAccessReviewSpec {
                user: info.username,
                uid: info.uid,
                groups: info.groups,
                extra: info.extra,
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    resource: Some("roles".to_owned()),
                    name: Some(role.to_string()),
                    verb: Some("use".to_owned()),
                    namespace,
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            status: None,
        };
        let api = kube::Api::<SubjectAccessReview>::all(self.client.clone());
        let options = PostParams::default();
        let reviewed = self
            .answered("subjectaccessreviews", api.create(&options, &review))
            .await?;
        let status = reviewed.status.unwrap_or_default();
        Ok(status.allowed && status.denied != Some(true))
    }

    /// The API server's answer. Why there is none is in the log: it is nobody's business who is not known yet.
    async fn answered<T>(
        &self,
        what: &'static str,
        asked: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Status> {
        let in_turn = async {
            // It is never closed; and if it were, asking out of turn would do no harm.
            let _turn = self.asking.acquire().await.ok();
            asked.await
        };
        match tokio::time::timeout(PATIENCE, in_turn).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let error = status::of_kube("POST", what, error);
                tracing::error!(error = error.message(), "a token can't be reviewed");
                Err(Status::unavailable(
                    "the Kubernetes API can't be asked who that is",
                ))
            }
            Err(_) => {
                tracing::error!(after = ?PATIENCE, "a token can't be reviewed: the Kubernetes API does not answer");
                Err(Status::unavailable(
                    "the Kubernetes API does not say who that is",
                ))
            }
        }
    }
}

/// An address, or of IPv6 the network that one machine has to itself.
pub(super) fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_machine_are_one_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
