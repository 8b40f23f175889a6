//! Whether kubelets get the certificates that they ask for in the name of agents' pods.

use impound_proto::controller::v1 as wire;
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams};

use super::{PATIENCE, failed, listed, ok};
use crate::describe::describe;
use crate::issue::SIGNER;

/// A request that is older, in seconds, is not answered.
const ANSWERED_WITHIN: i64 = 30;

/// Whether kubelets can ask for the agents' certificates, and neither wait for them nor were denied them, where they are
/// to.
pub(super) async fn look(client: &Client, wanted: bool) -> Option<wire::Check> {
    if !wanted {
        return None;
    }
    let about = "pod certificates";
    let requests =
        Api::<PodCertificateRequest>::namespaced(client.clone(), client.default_namespace());
    let pods = Api::<Pod>::namespaced(client.clone(), client.default_namespace());
    let all = ListParams::default();
    let asked = async { tokio::try_join!(requests.list(&all), pods.list(&all)) };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    Some(match asked {
        Ok(Ok((requests, pods))) => judge(about, &requests.items, &pods.items),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => failed(
            about,
            "the cluster does not serve certificates.k8s.io/v1beta1 podcertificaterequests".into(),
            "turn the API and the feature PodCertificateRequest on, in API server and kubelets (Kubernetes 1.35 or \
             later), or let the controller issue the agents' certificates by itself (certificates.agents: issued)",
        ),
        Ok(Err(error)) => failed(about, describe(&error), "see the controller's rights above"),
        Err(_) => failed(
            about,
            format!("no answer within {} s", PATIENCE.as_secs()),
            "see the Kubernetes API above",
        ),
    })
}

fn judge(about: &str, requests: &[PodCertificateRequest], pods: &[Pod]) -> wire::Check {
    let ours = requests
        .iter()
        .filter(|request| request.spec.signer_name == SIGNER);
    let old = Timestamp::now().as_second() - ANSWERED_WITHIN;
    let late = ours.clone().filter(|request| {
        let made = request.metadata.creation_timestamp.as_ref();
        !has_condition(request, |_| true) && made.is_none_or(|made| made.0.as_second() < old)
    });
    let late: Vec<String> = late.map(|request| request.spec.pod_name.clone()).collect();
    let denied = ours.filter(|request| {
        let lives = pods.iter().any(|pod| {
            pod.metadata.uid.as_ref() == Some(&request.spec.pod_uid)
                && pod.metadata.deletion_timestamp.is_none()
        });
        lives && has_condition(request, |kind| kind == "Denied")
    });
    let mut denied: Vec<String> = denied
        .map(|request| request.spec.pod_name.clone())
        .collect();
    denied.sort();
    denied.dedup();
    match (late.is_empty(), denied.is_empty()) {
        (false, _) => failed(
            about,
            format!("{} requests wait: of {}", late.len(), listed(&late)),
            "see the controller's log: it says why it can't answer",
        ),
        // For such a pod its kubelet never asks again.
        (true, false) => failed(
            about,
            format!(
                "{} pods have none, and get none, because it was denied: {}",
                denied.len(),
                listed(&denied)
            ),
            "kubectl get podcertificaterequests -o yaml says why (e.g. a revoked node); once that is mended or taken back, \
             delete the pod: the DaemonSet makes another, and for that one its kubelet asks anew",
        ),
        (true, true) => ok(about, "served, and no request waits".into()),
    }
}

fn has_condition(request: &PodCertificateRequest, is: impl Fn(&str) -> bool) -> bool {
    let conditions = request.status.iter().flat_map(|status| &status.conditions);
    conditions.flatten().any(|condition| is(&condition.type_))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(pod: &str, conditions: Value) -> PodCertificateRequest {
        let request = json!({
            "metadata": { "name": pod, "creationTimestamp": Timestamp::now().to_string() },
            "spec": {
                "signerName": SIGNER, "podName": pod, "podUID": format!("uid-{pod}"), "serviceAccountName": "a",
                "serviceAccountUID": "a", "nodeName": "n", "nodeUID": "n",
            },
            "status": { "conditions": conditions },
        });
        serde_json::from_value(request).unwrap()
    }

    fn pod(name: &str) -> Pod {
        let pod = json!({ "metadata": { "name": name, "uid": format!("uid-{name}") } });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_living_pod_whose_request_was_denied_is_named_and_one_that_is_gone_is_not() {
        let denied = json!([{
            "type": "Denied", "status": "True", "reason": "NodeRevoked", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
        let requests = [request("one", denied.clone()), request("two", denied)];
        let check = judge("a", &requests, &[pod("one"), pod("another")]);
        assert_eq!(check.state, "failed", "{check:?}");
        assert!(check.found.ends_with("denied: one"), "{check:?}");
        assert!(check.remedy.contains("delete the pod"), "{check:?}");
        assert_eq!(judge("a", &requests, &[pod("another")]).state, "ok");
    }
}
