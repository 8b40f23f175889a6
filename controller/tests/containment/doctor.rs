//! An installation looked at over gRPC: what is found, and what it says to do.

use std::collections::{BTreeSet, HashMap};

use impound_controller::kubernetes::pace::FIRST_WATCHES;
use impound_proto::controller::v1::{Check, DiagnoseRequest};

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, Role, RoleBinding, RoleRef, Subject,
};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube_memory::ClusterConfig;
use serde_json::Value;

use super::agent::FakeAgent;
use super::world::{CONTROLLER, World, eventually};

async fn diagnose(world: &World) -> HashMap<String, Check> {
    let mut eve = world.responder("eve").await;
    let seen = eve.diagnose(DiagnoseRequest {}).await.unwrap().into_inner();
    assert_eq!(seen.version, env!("CARGO_PKG_VERSION"));
    let checks = seen.checks.into_iter();
    checks.map(|check| (check.about.clone(), check)).collect()
}

#[tokio::test]
async fn a_doctor_finds_what_works_and_says_what_to_do_about_the_rest() {
    let mut world = World::in_memory_without_controller().await;
    let node = "k8s-worker2";
    let agent = FakeAgent::new(node);
    let pki = world.dir.path().join("pki/agents").join(node);
    let (port, _serving) = agent.serve(&pki).await;
    world.about_agents = vec!["--agent-port".into(), port.to_string()];
    world.start_controller().await;
    let checks = eventually("a replica works", || async {
        let checks = diagnose(&world).await;
        match checks["working replica"].state.as_str() {
            "ok" => Ok(checks),
            _ => Err(format!("{checks:#?}")),
        }
    })
    .await;
    for good in [
        "Kubernetes API",
        "controller's rights",
        "controller's certificate towards agents",
        "controller's certificate towards responders",
        "store",
        "agent k8s-worker2, clock",
        "agent k8s-worker2, certificate",
    ] {
        assert_eq!(checks[good].state, "ok", "{good}: {:#?}", checks[good]);
    }
    // A directory proves nothing, and the policies are not there.
    for doubtful in ["store's memory", "admission policies"] {
        let check = &checks[doubtful];
        assert_eq!(check.state, "warning", "{check:#?}");
        assert!(!check.remedy.is_empty(), "{check:#?}");
    }
    // All nodes have the address of the one agent, which is another's for two of them.
    let other = &checks["agent k8s-worker1"];
    assert_eq!(other.state, "failed", "{other:#?}");
    assert!(other.remedy.contains("DaemonSet"), "{other:#?}");
    // What was written to try the store is gone again.
    let store = world.dir.path().join("store");
    assert_eq!(std::fs::read_dir(store).unwrap().count(), 0);
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_found() {
    let world = World::start_in_memory().await;
    // As a volume that was unmounted: the directory that is open is no more.
    std::fs::remove_dir(world.dir.path().join("store")).unwrap();
    let store = &diagnose(&world).await["store"];
    assert_eq!(store.state, "failed", "{store:#?}");
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_one_of_the_reviews_too() {
    let mut world = World::in_memory_without_controller().await;
    world.arguments = vec!["--kubernetes-tokens".into()];
    bind_the_installed_roles(&world).await;
    world.start_controller().await;
    let about = "controller's rights";
    let rights = &diagnose(&world).await[about];
    assert_eq!(rights.state, "ok", "{rights:#?}");
    let bindings = Api::<ClusterRoleBinding>::all(world.client.clone());
    let delete = DeleteParams::default();
    bindings.delete("impound-callers", &delete).await.unwrap();
    bindings.delete("impound-reviews", &delete).await.unwrap();
    let rights = eventually("what is missing is seen", || async {
        let rights = diagnose(&world).await.remove(about).unwrap();
        match rights.state.as_str() {
            "failed" => Ok(rights),
            _ => Err(format!("{rights:#?}")),
        }
    })
    .await;
    for missing in [
        "2 of ",
        "create tokenreviews.authentication.k8s.io",
        "create subjectaccessreviews.authorization.k8s.io",
    ] {
        assert!(rights.found.contains(missing), "{rights:#?}");
    }
    assert!(!rights.remedy.is_empty(), "{rights:#?}");
}

#[tokio::test]
async fn where_kubelets_ask_for_certificates_it_is_told_whether_the_cluster_lets_them() {
    for (served, state, found) in [
        (
            false,
            "failed",
            "does not serve certificates.k8s.io/v1beta1",
        ),
        (true, "ok", "no request waits"),
    ] {
        let mut world = World::in_memory_of(ClusterConfig {
            pod_certificates: served,
            ..ClusterConfig::default()
        })
        .await;
        sign_for_kubelets(&mut world);
        world.start_controller().await;
        let check = diagnose(&world).await.remove("pod certificates").unwrap();
        assert_eq!(check.state, state, "{check:#?}");
        assert!(check.found.contains(found), "{check:#?}");
        assert_eq!(check.remedy.is_empty(), served, "{check:#?}");
    }
}

/// Has the controller that is started next answer PodCertificateRequests.
fn sign_for_kubelets(world: &mut World) {
    let ca = world.dir.path().join("agent-ca");
    std::fs::create_dir(&ca).unwrap();
    for end in ["crt", "key"] {
        let from = world.dir.path().join(format!("pki/ca/agent-ca.{end}"));
        std::fs::copy(from, ca.join(format!("ca.{end}"))).unwrap();
    }
    world.arguments = vec![
        "--pod-certificates".into(),
        format!("--agent-ca-dir={}", ca.display()),
    ];
}

#[tokio::test]
async fn a_process_that_begins_may_begin_all_its_watches_at_once() {
    let mut world = World::in_memory_of(ClusterConfig {
        pod_certificates: true,
        ..ClusterConfig::default()
    })
    .await;
    sign_for_kubelets(&mut world);
    world.start_controller().await;
    let all = [
        "collections",
        "configmaps",
        "networkpolicies",
        "nodes",
        "podcertificaterequests",
        "poddisruptionbudgets",
        "pods",
        "quarantines",
        "sweeps",
    ];
    eventually("it watches", || async {
        let requests = world.requests().into_iter();
        let watches = requests.filter(|request| request.path.contains("watch=true"));
        let watched: BTreeSet<String> = watches
            .filter_map(|watch| {
                let path = watch.path.split('?').next()?;
                path.rsplit('/').next().map(str::to_owned)
            })
            .collect();
        match watched.iter().eq(all.iter()) {
            true => Ok(()),
            false => Err(format!("{watched:?}")),
        }
    })
    .await;
    // A list and a watch of each, and of the collections once more.
    assert_eq!(FIRST_WATCHES, 2 * (all.len() + 1));
}

/// The controller has what deploy/ gives it, with callers' tokens.
async fn bind_the_installed_roles(world: &World) {
    let kustomize = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/");
    let installed = [
        "base/impound.yaml",
        "components/kubernetes-tokens/roles.yaml",
    ]
    .map(|file| std::fs::read_to_string(format!("{kustomize}{file}")).unwrap())
    .join("\n---\n");
    let (client, make) = (&world.client, PostParams::default());
    let own = client.default_namespace();
    let subjects = Some(vec![Subject {
        kind: "User".into(),
        name: CONTROLLER.into(),
        ..Subject::default()
    }]);
    let mut bound = 0;
    for document in installed.split("\n---\n") {
        let mut object: Value = serde_saphyr::from_str(document).unwrap();
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let name = name.to_owned();
        let roles = ["impound-controller", "impound-reviews", "impound-callers"];
        if !roles.contains(&name.as_str()) {
            continue;
        }
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        };
        let role_ref = RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: kind.clone(),
            name,
        };
        let subjects = subjects.clone();
        match kind.as_str() {
            "ClusterRole" => {
                let role: ClusterRole = serde_json::from_value(object).unwrap();
                let roles = Api::<ClusterRole>::all(client.clone());
                roles.create(&make, &role).await.unwrap();
                let binding = ClusterRoleBinding {
                    metadata,
                    role_ref,
                    subjects,
                };
                let bindings = Api::<ClusterRoleBinding>::all(client.clone());
                bindings.create(&make, &binding).await.unwrap();
            }
            "Role" => {
                object["metadata"]["namespace"] = own.into();
                let role: Role = serde_json::from_value(object).unwrap();
                let roles = Api::<Role>::namespaced(client.clone(), own);
                roles.create(&make, &role).await.unwrap();
                let binding = RoleBinding {
                    metadata,
                    role_ref,
                    subjects,
                };
                let bindings = Api::<RoleBinding>::namespaced(client.clone(), own);
                bindings.create(&make, &binding).await.unwrap();
            }
            _ => continue,
        }
        bound += 1;
    }
    assert_eq!(
        bound, 4,
        "a role for the cluster, one for our namespace, one for agents' tokens, one for callers"
    );
}
