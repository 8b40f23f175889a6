//! Callers who prove themselves with a Kubernetes token: who they are by a TokenReview, what they may by a
//! SubjectAccessReview. Both answers are believed for some seconds, as the API server itself does.
//!
//! The right is `use` of `roles.impound.dev` with the role's name, in a namespace or, by a ClusterRoleBinding, in all
//! of them. It is a right of its own: what somebody may do to our objects with kubectl says nothing about evidence.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use impound_proto::Role;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Status;

use super::authorise::Scope;
use super::limits::{Allowance, Limits};
use super::status;
use crate::kubernetes::token;
use crate::resources::GROUP;

/// Audience that tokens must be for. One for the API server is not accepted, and this one is of no use there.
pub const AUDIENCE: &str = "impound.dev/controller";

/// How long an answer of the API server is believed: it believes its own for about ten seconds, too.
const BELIEVED: Duration = Duration::from_secs(10);

/// Answers that are kept, of each kind.
const KEPT: usize = 4096;

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
    client: Client,
    users: Mutex<Recent<[u8; 32], Reviewed>>,
    rights: Mutex<Recent<Right, bool>>,
    reviews: Arc<Limits>,
    /// Questions to the API server at the same time, of all callers: the reconcilers ask it, too.
    asking: Semaphore,
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
            client,
            users: Mutex::default(),
            rights: Mutex::default(),
            reviews: Limits::new(REVIEWS),
            asking: Semaphore::new(QUESTIONS),
        })
    }

    /// The user that holds `token`, which came from `remote`.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if the API server does not accept it for [`AUDIENCE`], `RESOURCE_EXHAUSTED` if too many
    /// unknown tokens come from there, `UNAVAILABLE` if it does not answer.
    pub(super) async fn user(&self, token: &str, remote: IpAddr) -> Result<Arc<User>, Status> {
        if !(1..=LARGEST).contains(&token.len()) {
            return Err(Status::unauthenticated(format!(
                "expected a token of 1 to {LARGEST} bytes, came {}",
                token.len()
            )));
        }
        let key: [u8; 32] = Sha256::digest(token).into();
        let known = lock(&self.users).get(&key);
        let reviewed = match known {
            Some(reviewed) => reviewed,
            None => {
                let _running = self
                    .reviews
                    .begin(&network(remote))
                    .map_err(|much| much.status())?;
                let reviewed = self.review(token).await?;
                lock(&self.users).put(key, reviewed.clone());
                reviewed
            }
        };
        reviewed.map_err(Status::unauthenticated)
    }

    /// Whether `user` has at least `role` there.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the API server does not answer.
    pub(super) async fn may(
        &self,
        user: &User,
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
            let key = (user.key, role, namespace.clone());
            let known = lock(&self.rights).get(&key);
            let allowed = match known {
                Some(allowed) => allowed,
                None => {
                    let allowed = self.access(user, role, namespace).await?;
                    lock(&self.rights).put(key, allowed);
                    allowed
                }
            };
            if allowed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn review(&self, token: &str) -> Result<Reviewed, Status> {
        let asked = token::review(&self.client, token, AUDIENCE);
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
        let api = Api::<SubjectAccessReview>::all(self.client.clone());
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was said lately.
struct Recent<K, V>(HashMap<K, (Instant, V)>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let (then, value) = self.0.get(key)?;
        (then.elapsed() < BELIEVED).then(|| value.clone())
    }

    fn put(&mut self, key: K, value: V) {
        // Also long before that, or what nobody asks about again would stay.
        if self.0.len().is_power_of_two() || self.0.len() >= KEPT {
            self.0.retain(|_, (then, _)| then.elapsed() < BELIEVED);
        }
        if self.0.len() >= KEPT {
            self.0.clear();
        }
        self.0.insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_believed_for_some_seconds_only() {
        let mut recent = Recent::default();
        recent.put("ada", true);
        assert_eq!(recent.get(&"ada"), Some(true));
        tokio::time::advance(BELIEVED).await;
        assert_eq!(recent.get(&"ada"), None);
    }

    #[test]
    fn addresses_of_one_machine_are_one_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
