//! Whether a token, or a PodCertificateRequest, is of the agent of a node. Pure: what the API said comes in.

use std::collections::BTreeMap;

use impound_proto::identity::IdentityError;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequestSpec;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::kubernetes::token;

/// Audience that the agents' projected tokens are for. A token for anything else (the API server, another
/// program) is refused, and this one is of no use there.
pub const AUDIENCE: &str = "impound.dev/issuer";

/// Who is an agent of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Namespace of the agents.
    pub namespace: String,
    /// Their service account.
    pub service_account: String,
    /// The DaemonSet that owns their pods.
    pub daemon_set: String,
}

/// Which pod asks, and on which node, by the API server's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) pod: String,
    pub(super) pod_uid: String,
    pub(super) node: String,
    pub(super) node_uid: String,
}

/// Why a token or a request proves nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the Kubernetes API does not accept the token for the audience {AUDIENCE}: {why}")]
    NotAuthenticated { why: String },
    #[error("expected a token of {expected}, it is one of {found}")]
    OtherUser { expected: String, found: String },
    #[error(
        "the token does not say its {field}: it must be a projected token of a pod, and Kubernetes must be 1.30 or later"
    )]
    Unbound { field: &'static str },
    #[error("expected a pod of the service account {expected}, {pod} is one of {found:?}")]
    OtherAccount {
        pod: String,
        expected: String,
        found: String,
    },
    #[error("pod {pod} is gone, has ended, is being deleted or is another one by now")]
    PodGone { pod: String },
    #[error("pod {pod} is on node {found}, and what it shows says {said}")]
    OtherPlace {
        pod: String,
        found: String,
        said: String,
    },
    #[error("pod {pod} does not belong to the DaemonSet {expected}")]
    OtherOwner { pod: String, expected: String },
    #[error("node {node} is gone, or is another one by now")]
    NodeGone { node: String },
    #[error("node {node} is revoked: {reason}")]
    Revoked { node: String, reason: String },
    #[error("the token was used before, for another key: wait until the kubelet has renewed it")]
    Used,
    #[error("node {node} can't have an agent")]
    Name {
        node: String,
        #[source]
        source: IdentityError,
    },
}

impl Rules {
    /// What the token claims, if it is one of our service account; and its id.
    pub(super) fn claim(&self, status: TokenReviewStatus) -> Result<(Claim, String), Refused> {
        let holder = token::holder(status, AUDIENCE);
        let user = holder.map_err(|why| Refused::NotAuthenticated { why })?;
        let expected = format!(
            "system:serviceaccount:{}:{}",
            self.namespace, self.service_account
        );
        let found = user.username.unwrap_or_default();
        if found != expected {
            return Err(Refused::OtherUser { expected, found });
        }
        let extra = user.extra.unwrap_or_default();
        let claim = Claim {
            pod: one(&extra, "pod-name")?,
            pod_uid: one(&extra, "pod-uid")?,
            node: one(&extra, "node-name")?,
            node_uid: one(&extra, "node-uid")?,
        };
        Ok((claim, one(&extra, "credential-id")?))
    }

    /// What a kubelet's request claims, if it is for a pod of our service account.
    pub(super) fn claim_of(&self, request: &PodCertificateRequestSpec) -> Result<Claim, Refused> {
        self.check_account(&request.pod_name, &request.service_account_name)?;
        Ok(Claim {
            pod: request.pod_name.clone(),
            pod_uid: request.pod_uid.clone(),
            node: request.node_name.clone(),
            node_uid: request.node_uid.clone(),
        })
    }

    fn check_account(&self, pod: &str, found: &str) -> Result<(), Refused> {
        match found == self.service_account {
            true => Ok(()),
            false => Err(Refused::OtherAccount {
                pod: pod.to_owned(),
                expected: self.service_account.clone(),
                found: found.to_owned(),
            }),
        }
    }

    /// Whether the claim's pod lives where it says, as a pod of our DaemonSet and of our service account.
    pub(super) fn check_pod(&self, claim: &Claim, pod: Option<&Pod>) -> Result<(), Refused> {
        let same = |pod: &&Pod| {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            pod.metadata.uid.as_deref() == Some(&claim.pod_uid)
                && pod.metadata.deletion_timestamp.is_none()
                && !matches!(phase, Some("Succeeded" | "Failed"))
        };
        let Some(pod) = pod.filter(same) else {
            return Err(Refused::PodGone {
                pod: claim.pod.clone(),
            });
        };
        let spec = pod.spec.as_ref();
        let account = spec.and_then(|spec| spec.service_account_name.as_deref());
        self.check_account(&claim.pod, account.unwrap_or_default())?;
        let found = spec
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default();
        if found != claim.node {
            return Err(Refused::OtherPlace {
                pod: claim.pod.clone(),
                found,
                said: claim.node.clone(),
            });
        }
        let ours = pod.metadata.owner_references.iter().flatten().any(|owner| {
            owner.controller == Some(true)
                && owner.kind == "DaemonSet"
                && owner.api_version.starts_with("apps/")
                && owner.name == self.daemon_set
        });
        if ours {
            Ok(())
        } else {
            Err(Refused::OtherOwner {
                pod: claim.pod.clone(),
                expected: format!("{}/{}", self.namespace, self.daemon_set),
            })
        }
    }
}

/// Whether the claim's node is the one that has the name now.
pub(super) fn check_node(claim: &Claim, node: Option<&Node>) -> Result<(), Refused> {
    let same = node.is_some_and(|node| node.metadata.uid.as_deref() == Some(&claim.node_uid));
    if same {
        Ok(())
    } else {
        Err(Refused::NodeGone {
            node: claim.node.clone(),
        })
    }
}

/// The one value of a key; several would be ambiguous.
fn one(extra: &BTreeMap<String, Vec<String>>, field: &'static str) -> Result<String, Refused> {
    match extra
        .get(&format!("authentication.kubernetes.io/{field}"))
        .map(Vec::as_slice)
    {
        Some([value]) if !value.is_empty() => Ok(value.clone()),
        _ => Err(Refused::Unbound { field }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_token_review_nothing_is_claimed_but_by_our_service_account() {
        let seed = br#"{"authenticated":true,"audiences":["impound.dev/issuer"],"user":{"username":"system:serviceaccount:impound:impound-agent","uid":"u","groups":["system:serviceaccounts"],"extra":{"authentication.kubernetes.io/credential-id":["JTI=1"],"authentication.kubernetes.io/node-name":["worker2"],"authentication.kubernetes.io/node-uid":["u2"],"authentication.kubernetes.io/pod-name":["impound-agent-x"],"authentication.kubernetes.io/pod-uid":["u3"]}}}"#;
        let rules = Rules {
            namespace: "impound".to_owned(),
            service_account: "impound-agent".to_owned(),
            daemon_set: "impound-agent".to_owned(),
        };
        let read = |bytes: &[u8]| serde_json::from_slice::<TokenReviewStatus>(bytes).ok();
        assert!(rules.claim(read(seed).unwrap()).is_ok());
        impound_fuzz::run("token-review", &[seed.to_vec()], |_, bytes| {
            let Some(status) = read(&bytes) else { return };
            let user = status.user.clone().and_then(|user| user.username);
            if let Ok((claim, _)) = rules.claim(status) {
                assert_eq!(
                    user.as_deref(),
                    Some("system:serviceaccount:impound:impound-agent")
                );
                let said = [&claim.pod, &claim.pod_uid, &claim.node, &claim.node_uid];
                assert!(said.iter().all(|text| !text.is_empty()));
            }
        });
    }
}
