//! Whether kubelets get the certificates that they ask for in the name of agents' pods.

use impound_proto::controller::v1 as wire;
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams};

use super::{PATIENCE, failed, listed, ok};
use crate::describe::describe;
use crate::issue::SIGNER;

/// A request that is older, in seconds, is not answered.
const ANSWERED_WITHIN: i64 = 30;

/// Whether kubelets can ask for the agents' certificates, and do not wait for them, where they are to.
pub(super) async fn look(client: &Client, wanted: bool) -> Option<wire::Check> {
    if !wanted {
        return None;
    }
    let about = "pod certificates";
    let requests =
        Api::<PodCertificateRequest>::namespaced(client.clone(), client.default_namespace());
    let asked = tokio::time::timeout(PATIENCE, requests.list(&ListParams::default())).await;
    Some(match asked {
        Ok(Ok(requests)) => waiting(about, &requests.items),
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

fn waiting(about: &str, requests: &[PodCertificateRequest]) -> wire::Check {
    let old = Timestamp::now().as_second() - ANSWERED_WITHIN;
    let open = requests.iter().filter(|request| {
        let conditions = request.status.iter().flat_map(|status| &status.conditions);
        request.spec.signer_name == SIGNER && conditions.flatten().next().is_none()
    });
    let late = open.filter(|request| {
        let made = request.metadata.creation_timestamp.as_ref();
        made.is_none_or(|made| made.0.as_second() < old)
    });
    let late: Vec<String> = late.map(|request| request.spec.pod_name.clone()).collect();
    match late.is_empty() {
        true => ok(about, "served, and no request waits".into()),
        false => failed(
            about,
            format!("{} requests wait: of {}", late.len(), listed(&late)),
            "see the controller's log: it says why it can't answer",
        ),
    }
}
