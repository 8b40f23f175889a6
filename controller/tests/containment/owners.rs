//! Every kind of pod: the right steps, the consequences, and the way back.

use serde_json::{Value, json};

use super::world::{World, eventually, label, name, node_of, state};

impl World {
    async fn workload(&self, kind: &str, more: Value) -> k8s_openapi::api::core::v1::Pod {
        let template = json!({
            "metadata": { "labels": { "app": "db" } },
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{ "name": "c", "image": "busybox:1", "command": ["sleep", "100000"] }],
            },
        });
        let mut spec = json!({ "template": template });
        let (api, selects) = if kind == "Job" {
            ("batch/v1", false)
        } else {
            ("apps/v1", true)
        };
        if selects {
            spec["selector"] = json!({ "matchLabels": { "app": "db" } });
        }
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        if kind == "Job" {
            spec["template"]["spec"]["restartPolicy"] = json!("Never");
        }
        self.create(
            json!({ "apiVersion": api, "kind": kind, "metadata": { "name": "db" }, "spec": spec }),
        )
        .await;
        eventually("a pod runs", || async {
            let running = self
                .pods("app=db")
                .await
                .into_iter()
                .find(super::world::is_running);
            running.ok_or_else(|| "none runs".to_owned())
        })
        .await
    }

    async fn bare(&self, pod_name: &str, spec: Value) -> k8s_openapi::api::core::v1::Pod {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": pod_name, "labels": { "app": "bare" } },
            "spec": { "terminationGracePeriodSeconds": 1,
                "containers": [{ "name": "c", "image": "busybox:1", "command": ["sleep", "100000"] }] },
        });
        if let (Some(target), Some(spec)) = (object["spec"].as_object_mut(), spec.as_object()) {
            target.extend(spec.clone());
        }
        self.create(object).await;
        self.running("app=bare", 1).await.remove(0)
    }
}

#[tokio::test]
async fn a_statefulsets_pod_keeps_its_name_and_is_not_replaced() {
    let world = World::start().await;
    let pod = world
        .workload("StatefulSet", json!({ "replicas": 1, "serviceName": "db" }))
        .await;
    let done = world.quarantine(&name(&pod)).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    assert!(
        done.warnings
            .iter()
            .any(|warning| warning.contains("starts no replacement"))
    );
    let contained = world.pod(&name(&pod)).await;
    assert_eq!(
        (contained.metadata.uid, contained.metadata.owner_references),
        (pod.metadata.uid, None)
    );
    assert_eq!(
        world.pods("app=db").await.len(),
        0,
        "its name is taken, so there is no replacement"
    );
}

#[tokio::test]
async fn a_daemonsets_pod_gets_no_successor_on_the_suspect_node() {
    let world = World::start().await;
    let pod = world.workload("DaemonSet", json!({})).await;
    let node = node_of(&pod);
    let done = world.quarantine(&name(&pod)).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    assert!(
        done.warnings
            .iter()
            .any(|warning| warning.contains("own taint keeps it away"))
    );
    let others = world.pods("app=db").await;
    assert!(
        others.iter().all(|other| node_of(other) != node),
        "a new daemon pod is on the suspect node"
    );
}

#[tokio::test]
async fn a_jobs_pod_is_released_by_its_controller_uid() {
    let world = World::start().await;
    let pod = world.workload("Job", json!({ "backoffLimit": 3 })).await;
    let done = world.quarantine(&name(&pod)).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    assert!(
        done.warnings
            .iter()
            .any(|warning| warning.contains("no longer counts the pod"))
    );
    let contained = world.pod(&name(&pod)).await;
    assert_eq!(contained.metadata.owner_references, None);
    assert_eq!(
        label(&contained, "batch.kubernetes.io/controller-uid"),
        None
    );
    assert_eq!(
        label(&contained, "batch.kubernetes.io/job-name").as_deref(),
        Some("db")
    );
}

#[tokio::test]
async fn a_bare_pod_is_contained_without_an_owner_to_release_it() {
    let world = World::start().await;
    let pod = world.bare("lonely", json!({})).await;
    let done = world.quarantine(&name(&pod)).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    assert_eq!(
        label(&world.pod("lonely").await, "status").as_deref(),
        Some("suspectpod")
    );
}

#[tokio::test]
async fn a_pod_on_its_nodes_network_is_never_called_contained() {
    let world = World::start().await;
    let pod = world.bare("host", json!({ "hostNetwork": true })).await;
    let done = world.quarantine(&name(&pod)).await;
    assert_eq!(done.phase, "Failed", "{done:#?}");
    assert!(
        done.message.starts_with("NOT contained"),
        "{}",
        done.message
    );
    assert!(done.message.contains("hostNetwork"), "{}", done.message);
    assert_eq!(
        state(&done, "Strip"),
        "Done",
        "what can be done is done all the same"
    );
}
