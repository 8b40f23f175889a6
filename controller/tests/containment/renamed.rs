//! A controller that is told other names while quarantines are in force: what was made under the former ones is
//! watched, shared and taken away by them.

use impound_controller::resources::Quarantine;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::kinds::allowing;
use super::world::{World, eventually, label, name, node_of};

/// Other names than the default ones.
const OTHER: [&str; 6] = [
    "--pod-label",
    "state=evil",
    "--node-label",
    "state=bad",
    "--policy-name",
    "deny-evil",
];

async fn policies(world: &World) -> Vec<Value> {
    let api = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    let policies = api.list(&ListParams::default()).await.unwrap();
    let selected = |policy: NetworkPolicy| {
        let selector = policy.spec.unwrap().pod_selector;
        json!([policy.metadata.name, selector])
    };
    policies.into_iter().map(selected).collect()
}

fn names(policies: &[Value]) -> Vec<&str> {
    policies
        .iter()
        .filter_map(|policy| policy[0].as_str())
        .collect()
}

async fn node_labels(world: &World, node: &str) -> Value {
    json!(world.node(node).await.metadata.labels)
}

#[tokio::test]
async fn what_was_made_under_former_names_is_watched_shared_and_undone_under_these() {
    renamed(Version::This).await;
}

#[tokio::test]
async fn what_a_version_made_that_recorded_no_names_is_watched_shared_and_undone_under_its_own() {
    renamed(Version::WithoutNames).await;
}

/// Which version has made the first quarantine.
#[derive(PartialEq, Eq)]
enum Version {
    This,
    /// One that did not record what it calls things.
    WithoutNames,
}

async fn renamed(version: Version) {
    let mut world = World::in_memory_without_controller().await;
    world.serve_cilium().await;
    world.create(allowing()).await;
    world.start_controller().await;
    let first_pod = world.deployment("nginx", 1, None).await.remove(0);
    let node = node_of(&first_pod);
    let second_pod = world.deployment("tomcat", 1, Some(&node)).await.remove(0);
    assert_eq!(
        node_of(&second_pod),
        node,
        "two pods on one node are needed"
    );
    let before = (policies(&world).await, node_labels(&world, &node).await);
    let mut request = world.request(&name(&first_pod));
    request.exclude_from_policies = true;
    request.keep_neighbours = true;
    let mut alice = world.responder("alice").await;
    let created = alice.create_quarantine(request).await.unwrap().into_inner();
    let first = created.quarantine.unwrap().name;
    let done = world.settled(&first).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    let made = policies(&world).await;
    assert_eq!(names(&made), ["allowing", "deny-all-suspectpod"]);

    world.kill_controller();
    let client = world.client.clone();
    let everywhere = PatchParams::default();
    if version == Version::WithoutNames {
        let quarantines = Api::<Quarantine>::namespaced(client.clone(), &world.namespace);
        let unnamed = Patch::Merge(json!({ "status": { "undo": { "names": null } } }));
        let patched = quarantines
            .patch_status(&first, &everywhere, &unnamed)
            .await;
        let undo = patched.unwrap().status.unwrap().undo.unwrap();
        assert_eq!(undo.names, None);
    }
    let of_namespace = Api::<NetworkPolicy>::namespaced(client.clone(), &world.namespace);
    let gone = DeleteParams::default();
    of_namespace
        .delete("deny-all-suspectpod", &gone)
        .await
        .unwrap();
    let opened = Patch::Merge(json!({ "spec": { "podSelector": before.0[0][1] } }));
    of_namespace
        .patch("allowing", &everywhere, &opened)
        .await
        .unwrap();
    let unlabelled = Patch::Merge(json!({ "metadata": { "labels": { "status": null } } }));
    let nodes = Api::<Node>::all(client.clone());
    nodes.patch(&node, &everywhere, &unlabelled).await.unwrap();
    let pods = Api::<Pod>::namespaced(client.clone(), &world.namespace);
    pods.patch(&name(&first_pod), &everywhere, &unlabelled)
        .await
        .unwrap();
    let deny = format!(
        "/apis/cilium.io/v2/namespaces/{}/ciliumnetworkpolicies/impound-deny-suspects",
        world.namespace
    );
    let request = http::Request::delete(&deny).body(Vec::new()).unwrap();
    world.client.request::<Value>(request).await.unwrap();
    world.arguments = OTHER.map(String::from).to_vec();
    world.expire_lease().await;
    world.start_controller().await;

    let put_back = eventually("all of it is put back as it was", || async {
        let policies = policies(&world).await;
        let marked = (
            label(&world.pod(&name(&first_pod)).await, "status"),
            node_labels(&world, &node).await["status"].clone(),
        );
        let expected = (Some("suspectpod".to_owned()), json!("suspectnode"));
        let request = http::Request::get(&deny).body(Vec::new()).unwrap();
        let denied = client.request::<Value>(request).await;
        let of = |deny: Value| deny["spec"]["endpointSelector"]["matchLabels"].clone();
        match denied.map(of) {
            Ok(denied)
                if policies == made
                    && marked == expected
                    && denied == json!({ "status": "suspectpod" }) =>
            {
                Ok(world.current(&first).await)
            }
            denied => Err(format!("{policies:?} {marked:?} {denied:?}")),
        }
    })
    .await;
    assert_eq!(put_back.phase, "Complete", "{put_back:#?}");

    let second = world.quarantine(&name(&second_pod)).await;
    assert_eq!(second.phase, "Complete", "{second:#?}");
    let said = |word: &str| second.warnings.iter().any(|warning| warning.contains(word));
    assert!(
        said("status=suspectpod") && said("suspectnode"),
        "{:#?}",
        second.warnings
    );
    let pod = world.pod(&name(&second_pod)).await;
    assert_eq!(label(&pod, "status").as_deref(), Some("suspectpod"));
    assert_eq!(label(&pod, "state"), None);

    world.release(&first, false).await.unwrap();
    let released = world.settled(&first).await;
    assert_eq!(released.phase, "Released", "{released:#?}");
    let between = policies(&world).await;
    assert!(
        names(&between).contains(&"deny-all-suspectpod"),
        "{between:#?}"
    );
    world.release(&second.name, false).await.unwrap();
    let released = world.settled(&second.name).await;
    assert_eq!(released.phase, "Released", "{released:#?}");
    assert_eq!(policies(&world).await, before.0);
    assert_eq!(node_labels(&world, &node).await, before.1);
    let request = http::Request::get(&deny).body(Vec::new()).unwrap();
    assert!(
        client.request::<Value>(request).await.is_err(),
        "the denial is still there"
    );

    // Nothing of the former names is in force any more.
    let third_pod = world.deployment("redis", 1, None).await.remove(0);
    let third = world.quarantine(&name(&third_pod)).await;
    assert_eq!(third.phase, "Complete", "{third:#?}");
    let pod = world.pod(&name(&third_pod)).await;
    assert_eq!(label(&pod, "state").as_deref(), Some("evil"));
    assert_eq!(label(&pod, "status"), None);
    assert_eq!(names(&policies(&world).await), ["allowing", "deny-evil"]);
}
