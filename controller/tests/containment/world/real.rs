//! A real cluster as the place of a test: what it has to be, alone in it, a node of the test's own, and left as it
//! was found.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use impound_controller::resources::Quarantine;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{NAMESPACE, client, container};

/// The file that names the cluster, if the suite is to run in a real one.
pub(super) fn kubeconfig() -> Option<PathBuf> {
    std::env::var_os("KUBECONFIG").map(PathBuf::from)
}

pub(super) fn read(path: &Path) -> Kubeconfig {
    let read = Kubeconfig::read_from(path);
    read.unwrap_or_else(|error| {
        panic!(
            "KUBECONFIG={}: expected the kubeconfig of a cluster to throw away: {error}",
            path.display()
        )
    })
}

/// The lock that lets one test at a time into a cluster; it goes with the file.
pub(super) fn alone(kubeconfig: &Path) -> File {
    let clusters = read(kubeconfig).clusters.into_iter();
    let servers = clusters.filter_map(|cluster| cluster.cluster?.server);
    let name: String = servers
        .flat_map(|server| server.chars().collect::<Vec<_>>())
        .map(|letter| {
            if letter.is_alphanumeric() {
                letter
            } else {
                '-'
            }
        })
        .collect();
    let path = std::env::temp_dir().join(format!("impound-test-{name}.lock"));
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    file.lock().unwrap();
    file
}

/// Who runs the pods of a cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kubelet {
    /// Kubelets, each on a machine of its own.
    Real,
    /// kube-memory: they say that they run.
    Played,
    /// Nobody: a test may bring a kubelet.
    Nobody,
}

/// The same of the cluster that a kubeconfig names.
pub(super) async fn kubelet_of(kubeconfig: &Path) -> Kubelet {
    let client = client(read(kubeconfig)).await;
    let nodes = Api::<Node>::all(client).list(&ListParams::default()).await;
    kubelet(&nodes.unwrap().items)
}

/// kube-memory says on each node who runs its pods.
fn kubelet(nodes: &[Node]) -> Kubelet {
    let mut said = nodes
        .iter()
        .filter_map(|node| node.annotations().get("kube-memory/kubelet"));
    match said.next().map(String::as_str) {
        Some("instant") => Kubelet::Played,
        Some(_) => Kubelet::Nobody,
        None => Kubelet::Real,
    }
}

/// Looks once, before the first test, whether the cluster is as the suite needs it.
///
/// # Panics
/// If it is not, with everything that is missing.
pub(super) async fn expected(client: &Client) -> Kubelet {
    static FOUND: OnceCell<Result<Kubelet, String>> = OnceCell::const_new();
    let found = FOUND.get_or_init(|| async {
        let (kubelet, unmet) = look(client).await?;
        if unmet.is_empty() {
            return Ok(kubelet);
        }
        Err(format!("- {}", unmet.join("\n- ")))
    });
    match found.await {
        Ok(kubelet) => *kubelet,
        Err(unmet) => panic!(
            "the cluster that KUBECONFIG names is not as these tests need it (README, Development):\n{unmet}"
        ),
    }
}

/// Who runs the pods, and what is not as it has to be.
async fn look(client: &Client) -> Result<(Kubelet, Vec<String>), String> {
    let said = |error: kube::Error| format!("its API does not answer as it should: {error}");
    let mut unmet = Vec::new();
    let version = client.apiserver_version().await.map_err(said)?;
    let minor: String = version
        .minor
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    if minor.parse::<u32>().is_ok_and(|minor| minor < 30) {
        unmet.push(format!(
            "expected Kubernetes 1.30 or later, found {}",
            version.git_version
        ));
    }
    for (verb, group, resource) in [("*", "*", "*"), ("impersonate", "", "users")] {
        if !may(client, verb, group, resource).await.map_err(said)? {
            unmet.push(format!(
                "the user of the kubeconfig may not {verb} {resource}: these tests make, change and delete everything, \
                 and act as other users"
            ));
        }
    }
    let nodes = Api::<Node>::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await.map_err(said)?;
    let schedulable = nodes.iter().filter(|node| is_schedulable(node)).count();
    if schedulable < 2 {
        unmet.push(format!(
            "expected two nodes or more that are schedulable and have no taint, found {schedulable} of {}: kubectl \
             uncordon NODE, kubectl taint node NODE KEY-",
            nodes.items.len()
        ));
    }
    if let Err(why) = free_node(client).await {
        unmet.push(why);
    }
    unmet.extend(installed(client).await);
    let kubelet = kubelet(&nodes.items);
    if kubelet != Kubelet::Nobody && unmet.is_empty() {
        unmet.extend(runs(client).await.err());
    }
    Ok((kubelet, unmet))
}

async fn may(client: &Client, verb: &str, group: &str, resource: &str) -> kube::Result<bool> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.into()),
                group: Some(group.into()),
                resource: Some(resource.into()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Another Impound would work on the tests' quarantines, or forbid what the tests do.
async fn installed(client: &Client) -> Vec<String> {
    let kind = |group: &str, version: &str, kind: &str| {
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
    };
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=impound");
    let admission = "admissionregistration.k8s.io";
    let kinds = [
        (kind("apps", "v1", "Deployment"), &ours),
        (kind("apps", "v1", "DaemonSet"), &ours),
        (kind(admission, "v1", "ValidatingAdmissionPolicy"), &ours),
        (
            kind("impound.dev", "v1alpha1", "Quarantine"),
            &ListParams::default(),
        ),
    ];
    let mut found = BTreeSet::new();
    for (kind, which) in kinds {
        match Api::<DynamicObject>::all_with(client.clone(), &kind)
            .list(which)
            .await
        {
            Ok(objects) => found.extend(objects.iter().filter_map(|object| {
                let namespace = object.namespace().unwrap_or_default();
                // What an earlier test made may still be ending.
                let earlier = namespace.starts_with(NAMESPACE);
                (!earlier).then(|| format!("{} {namespace}/{}", kind.kind, object.name_any()))
            })),
            // A kind that is not served has no objects.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return vec![format!("{} can't be listed: {error}", kind.plural)],
        }
    }
    if found.is_empty() {
        return Vec::new();
    }
    let found: Vec<String> = found.into_iter().collect();
    vec![format!(
        "expected a cluster without Impound, found {}: take it away (README, Taking it away)",
        found.join(", ")
    )]
}

/// Whether a pod of these tests runs at all.
async fn runs(client: &Client) -> Result<(), String> {
    let said = |error: kube::Error| format!("a pod can't be made to see whether it runs: {error}");
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": { "generateName": format!("{NAMESPACE}probe-") },
    }))
    .unwrap();
    let namespaces = Api::<Namespace>::all(client.clone());
    let namespace = namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .map_err(said)?
        .name_any();
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "probe" },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [container("probe")] },
    }))
    .unwrap();
    let ran = async {
        // The service account of a namespace comes a moment after it.
        super::try_until(|| async {
            let made = pods.create(&PostParams::default(), &pod).await;
            made.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        super::try_until(|| async {
            let now = pods.get("probe").await.map_err(|error| error.to_string())?;
            if super::is_running(&now) {
                return Ok(());
            }
            Err(json!(now.status.map(|status| json!({
                "phase": status.phase, "conditions": status.conditions,
                "containers": status.container_statuses.map(|all| all.into_iter().map(|one| one.state).collect::<Vec<_>>()),
            })))
            .to_string())
        })
        .await
    };
    let ran = ran.await.map_err(|last| {
        format!(
            "expected a pod with the image {} to run (IMPOUND_TEST_IMAGE names another, which needs `sleep`); last it was {last}",
            container("probe")["image"]
        )
    });
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .map_err(said)?;
    ran
}

fn is_schedulable(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    spec.is_none_or(|spec| {
        spec.unschedulable != Some(true) && spec.taints.as_ref().is_none_or(Vec::is_empty)
    })
}

/// A schedulable node with nothing on it but pods of DaemonSets and static pods.
pub(super) async fn free_node(client: &Client) -> Result<String, String> {
    let said = |error: kube::Error| error.to_string();
    let pods = Api::<Pod>::all(client.clone());
    let pods = pods.list(&ListParams::default()).await.map_err(said)?.items;
    let stays = |pod: &Pod| {
        let owners = pod.metadata.owner_references.iter().flatten();
        let mut kinds = owners.map(|owner| owner.kind.as_str());
        kinds.any(|kind| matches!(kind, "DaemonSet" | "Node"))
    };
    let nodes = Api::<Node>::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await.map_err(said)?;
    let mut names = nodes
        .iter()
        .filter(|node| is_schedulable(node))
        .map(ResourceExt::name_any);
    let free = names.find(|node| {
        let here =
            |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(node);
        pods.iter().filter(here).all(stays)
    });
    free.ok_or_else(|| {
        "expected a schedulable node that runs nothing but pods of DaemonSets and static pods, for the tests that \
         evict: kubectl drain one, then uncordon it"
            .to_owned()
    })
}

/// Leaves a real cluster as it was: nodes, quarantines, denials, what the test made, and the namespace, also
/// after a failure.
pub(super) async fn tidy(client: Client, namespace: &str, made: &[String]) -> kube::Result<()> {
    let quarantines = Api::<Quarantine>::namespaced(client.clone(), namespace);
    let nodes = Api::<Node>::all(client.clone());
    for quarantine in quarantines.list(&ListParams::default()).await? {
        let status = quarantine.status.clone().unwrap_or_default();
        if let (Some(node), Some(undo)) = (&status.node, &status.undo)
            && !status.phase.is_over()
        {
            let now = nodes.get(node).await?;
            let names = undo.names.clone().unwrap_or_default();
            for call in [
                impound_controller::contain::node::unlabel(&now, &undo.node, &names),
                impound_controller::contain::node::uncordon(&now, &undo.node),
            ] {
                let Some(call) = call else { continue };
                let mut patch: Value = serde_json::from_str(&call.body).unwrap_or_default();
                if let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("resourceVersion");
                }
                let request = http::Request::patch(&call.path)
                    .header("content-type", &call.content_type)
                    .body(patch.to_string().into_bytes())
                    .map_err(kube::Error::HttpError)?;
                client.request::<Value>(request).await?;
            }
            for deny in &undo.denies {
                remove(&client, &deny.path).await?;
            }
        }
        let none = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        let name = quarantine.metadata.name.unwrap_or_default();
        quarantines
            .patch(&name, &PatchParams::default(), &none)
            .await?;
    }
    for path in made.iter().rev() {
        remove(&client, path).await?;
    }
    let namespace = format!("/api/v1/namespaces/{namespace}");
    remove(&client, &namespace).await
}

/// Deletes what may be gone already.
async fn remove(client: &Client, path: &str) -> kube::Result<()> {
    let request = http::Request::delete(path).body(Vec::new());
    let request = request.map_err(kube::Error::HttpError)?;
    match client.request::<Value>(request).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        answer => answer.map(drop),
    }
}
