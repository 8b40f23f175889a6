//! Certificates that the kubelet asks for in the name of an agent's pod: PodCertificateRequests of our signer.
//!
//! ```text
//! pod with a podCertificate volume -> its kubelet makes a key and a PodCertificateRequest -> here, by a watch
//!    the rules for tokens, and the agent CA's signature -> status -> the kubelet puts both into the volume
//! ```
//! For whom a request is, is the API server's word: it lets a kubelet make some for the pods of its own node alone.
//! Requests of other signers are left alone. One that is answered is answered for good. Of a pod that has a certificate the
//! kubelet makes another request when it is to be renewed. A denial it takes for a permanent error of the pod, for which it never
//! asks again: what was denied and is to be granted takes another pod.

use std::time::Duration;

use futures::StreamExt;
use impound_proto::pki::{CertifyError, ProvenKey, Validity};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{
    PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use time::OffsetDateTime;

use super::proof::Refused;
use super::{AgentIssuer, IssueError, issued};
use crate::describe::describe;
use crate::kubernetes::from_kube;

/// Name of the signer that the agents' volumes name. The controller may sign for this one alone.
pub const SIGNER: &str = "impound.dev/agent";

/// Shortest life that Kubernetes lets such a certificate have.
pub const LEAST_LIFE: time::Duration = time::Duration::hours(1);

/// Longest life of one whose request does not say; the API server fills the same in.
const DEFAULT_LIFE: time::Duration = time::Duration::hours(24);

/// How far the start of validity lies in the past, for nodes whose clock is slow. The API server wants it within five
/// minutes of its own clock, which may be fast: half of that is left.
const BACKDATE: time::Duration = time::Duration::seconds(150);

/// Requests answered at the same time; each costs three calls to the Kubernetes API.
const AT_ONCE: usize = 8;

/// Wait before a request is looked at again that could not be answered; it doubles, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Key type that a request must have, as Kubernetes spells it.
const KEY_TYPE: &str = "ECDSAP256";

impl AgentIssuer {
    /// Answers what kubelets ask in the agents' namespace, for as long as the process lives. Every replica does; whose
    /// answer is written first has given it.
    pub async fn answer_kubelets(&self, watch_client: Client) {
        let requests =
            Api::<PodCertificateRequest>::namespaced(watch_client, &self.rules.namespace);
        watcher(requests, watcher::Config::default())
            .default_backoff()
            .applied_objects()
            .for_each_concurrent(AT_ONCE, |seen| async move {
                match seen {
                    Ok(request) => self.settle(&request).await,
                    Err(error) => tracing::warn!(
                        error = describe(&error),
                        "PodCertificateRequests (certificates.k8s.io/v1beta1) can't be watched"
                    ),
                }
            })
            .await;
    }

    /// Answers, as often as it takes.
    async fn settle(&self, request: &PodCertificateRequest) {
        if !is_open(request) {
            return;
        }
        let mut wait = FIRST_WAIT;
        loop {
            let Err(error) = self.answer(request).await else {
                return;
            };
            tracing::warn!(
                request = request.name_any(),
                pod = request.spec.pod_name,
                node = request.spec.node_name,
                error = describe(&error),
                retry_in = ?wait,
                "a kubelet's request for an agent's certificate can't be answered"
            );
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn answer(&self, request: &PodCertificateRequest) -> Result<(), IssueError> {
        let spec = &request.spec;
        let error = match self.sign(spec).await {
            Ok((certificate, validity)) => {
                let given = self.write(request, given(certificate, validity)).await?;
                if given {
                    issued(&self.rules.claim_of(spec)?, validity);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let Some((reason, message)) = denial(&error) else {
            return Err(error);
        };
        let message = match reason {
            "NodeRevoked" => format!(
                "{message}. Once that is taken back: kubectl delete pod -n {} {}; for this pod its kubelet does not ask again",
                self.rules.namespace, spec.pod_name
            ),
            _ => message,
        };
        if self.write(request, denied(reason, message)).await? {
            tracing::warn!(
                request = request.name_any(),
                pod = spec.pod_name,
                node = spec.node_name,
                error = describe(&error),
                "refused an agent's certificate"
            );
        }
        Ok(())
    }

    async fn sign(
        &self,
        spec: &PodCertificateRequestSpec,
    ) -> Result<(String, Validity), IssueError> {
        if let Some(annotations) = &spec.unverified_user_annotations
            && let Some(first) = annotations.keys().next()
        {
            return Err(IssueError::Annotation(first.clone()));
        }
        let claim = self.rules.claim_of(spec)?;
        let validity = validity(
            OffsetDateTime::now_utc(),
            self.life,
            spec.max_expiration_seconds,
        );
        let certificate = self.certify(&claim, key(spec), validity).await?;
        Ok((certificate, validity))
    }

    /// False: the request is gone, or has changed meanwhile; then it comes again if it is still open.
    async fn write(
        &self,
        request: &PodCertificateRequest,
        status: PodCertificateRequestStatus,
    ) -> Result<bool, IssueError> {
        let name = request.name_any();
        let guard = json!({"uid": request.metadata.uid, "resourceVersion": request.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": guard, "status": status}));
        let requests =
            Api::<PodCertificateRequest>::namespaced(self.client.clone(), &self.rules.namespace);
        let written = requests
            .patch_status(&name, &PatchParams::default(), &patch)
            .await;
        let Err(error) = written else { return Ok(true) };
        let path = format!("podcertificaterequests/{name}/status");
        let error = from_kube("PATCH", &path, error);
        match error.code() {
            404 | 409 => Ok(false),
            _ => Err(error.into()),
        }
    }
}

/// Whether it is ours to answer, and not answered yet.
fn is_open(request: &PodCertificateRequest) -> bool {
    let conditions = request.status.iter().flat_map(|status| &status.conditions);
    request.spec.signer_name == SIGNER && conditions.flatten().next().is_none()
}

/// A PKCS#10 request since Kubernetes 1.36; before, the key and a signature by it over the pod's uid.
fn key(spec: &PodCertificateRequestSpec) -> ProvenKey<'_> {
    match spec.stub_pkc_s10_request.0.as_slice() {
        [] => ProvenKey::Signed {
            key: bytes(spec.pkix_public_key.as_ref()),
            signature: bytes(spec.proof_of_possession.as_ref()),
            message: spec.pod_uid.as_bytes(),
        },
        request => ProvenKey::Request(request),
    }
}

fn bytes(given: Option<&ByteString>) -> &[u8] {
    given.map(|given| given.0.as_slice()).unwrap_or_default()
}

/// Whole seconds; as long as ours live, within what the request and Kubernetes allow.
fn validity(now: OffsetDateTime, life: time::Duration, most_seconds: Option<i32>) -> Validity {
    let most = most_seconds.map(|seconds| time::Duration::seconds(seconds.into()));
    let life = life.min(most.unwrap_or(DEFAULT_LIFE)).max(LEAST_LIFE);
    let not_before = now - time::Duration::nanoseconds(now.nanosecond().into()) - BACKDATE;
    Validity {
        not_before,
        not_after: not_before + life,
    }
}

fn given(certificate: String, validity: Validity) -> PodCertificateRequestStatus {
    let life = validity.not_after - validity.not_before;
    PodCertificateRequestStatus {
        certificate_chain: Some(certificate),
        not_before: Some(at(validity.not_before)),
        begin_refresh_at: Some(at(validity.not_before + life / 3 * 2)),
        not_after: Some(at(validity.not_after)),
        conditions: Some(vec![condition("Issued", "Issued", String::new())]),
    }
}

fn denied(reason: &str, message: String) -> PodCertificateRequestStatus {
    PodCertificateRequestStatus {
        conditions: Some(vec![condition("Denied", reason, message)]),
        ..PodCertificateRequestStatus::default()
    }
}

/// Why it is refused for good, as a reason and in words; `None`: it may be granted later. Two of the reasons are
/// Kubernetes' own; with `UnsupportedKeyType` the message names one that is supported.
fn denial(error: &IssueError) -> Option<(&'static str, String)> {
    let reason = match error {
        IssueError::Request(CertifyError::UnsupportedSignatureAlgorithm) => {
            return Some(("UnsupportedKeyType", KEY_TYPE.to_owned()));
        }
        IssueError::Request(_) => "NotProven",
        IssueError::Annotation(_) => "InvalidUnverifiedUserAnnotations",
        IssueError::Refused(Refused::Revoked { .. }) => "NodeRevoked",
        IssueError::Refused(_) => "NotAnAgent",
        IssueError::Size { .. } | IssueError::Busy | IssueError::NotKnown | IssueError::Api(_) => {
            return None;
        }
    };
    Some((reason, error.to_string()))
}

fn condition(kind: &str, reason: &str, message: String) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: at(OffsetDateTime::now_utc()),
        observed_generation: None,
    }
}

/// Both count years up to 9999.
fn at(time: OffsetDateTime) -> Time {
    Time(Timestamp::from_second(time.unix_timestamp()).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_ours_within_what_the_request_and_kubernetes_allow() {
        let now = OffsetDateTime::now_utc();
        let life = |minutes, most| {
            let found = validity(now, time::Duration::minutes(minutes), most);
            assert_eq!(found.not_before.nanosecond(), 0);
            let age = now - found.not_before;
            // What the API server takes is less than five minutes, by a clock that may be another.
            assert!(age >= BACKDATE && age < time::Duration::minutes(3), "{age}");
            found.not_after - found.not_before
        };
        assert_eq!(life(720, Some(86_400)), time::Duration::hours(12));
        assert_eq!(life(720, Some(3_600)), time::Duration::hours(1));
        assert_eq!(life(10_080, None), time::Duration::hours(24));
        assert_eq!(life(5, Some(86_400)), LEAST_LIFE);
    }

    #[test]
    fn what_may_be_granted_later_is_not_denied() {
        assert!(denial(&IssueError::NotKnown).is_none() && denial(&IssueError::Busy).is_none());
        let other = IssueError::Request(CertifyError::UnsupportedSignatureAlgorithm);
        let (reason, message) = denial(&other).unwrap();
        assert_eq!((reason, &*message), ("UnsupportedKeyType", "ECDSAP256"));
    }
}
