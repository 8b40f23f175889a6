//! Bad input and pods that can't be contained: refused with the reason, and nothing is changed.

use impound_proto::controller::v1::{
    CreateCollectionRequest, CreateQuarantineRequest, ListContainersRequest,
};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tonic::Code;

use super::world::{World, name};

/// Public keys of age that no secret key has: of the point 0, and of the point 9 with a bit that does not count.
pub(crate) const LOW_ORDER: &str = "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z";
const MISSPELT: &str = "age1pyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqzqqyr3apl";

type Spoil = fn(&mut CreateQuarantineRequest);

#[tokio::test]
async fn malformed_requests_are_refused_before_anything_is_read() {
    let world = World::start().await;
    let cases: [(&str, Spoil, &str); 11] = [
        (
            "case with a path",
            |request| request.case_id = "../../etc".into(),
            "case",
        ),
        (
            "case with dots",
            |request| request.case_id = "a..b".into(),
            "case",
        ),
        ("no case", |request| request.case_id.clear(), "case"),
        (
            "long case",
            |request| request.case_id = "x".repeat(64),
            "case",
        ),
        (
            "no reason",
            |request| request.reason = "  ".into(),
            "reason",
        ),
        (
            "long reason",
            |request| request.reason = "x".repeat(1025),
            "at most 1024",
        ),
        (
            "pod with a path",
            |request| request.pod = "a/b".into(),
            "expected a Kubernetes name",
        ),
        (
            "namespace with a query",
            |request| request.namespace = "x?y".into(),
            "expected a Kubernetes name",
        ),
        (
            "mistyped recipient",
            |request| request.encrypt_to = vec![LOW_ORDER.replacen('q', "p", 1)],
            "its checksum is wrong",
        ),
        (
            "recipient of low order",
            |request| request.encrypt_to = vec![LOW_ORDER.into()],
            "it is of low order",
        ),
        (
            "recipient in another spelling",
            |request| request.encrypt_to = vec![MISSPELT.into()],
            "it is not the one spelling of a key",
        ),
    ];
    let mut alice = world.responder("alice").await;
    let before = world.requests().len();
    for (what, spoil, expected) in cases {
        let mut request = world.request("nginx");
        spoil(&mut request);
        let refused = alice.create_quarantine(request).await.expect_err(what);
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
        assert!(refused.message().contains(expected), "{what}: {refused}");
    }
    let asked: Vec<_> = world.requests().split_off(before);
    let looked = asked
        .iter()
        .filter(|request| request.path.contains("/pods/") || request.path.contains("/nodes/"));
    assert_eq!(looked.count(), 0, "{asked:#?}");
}

#[tokio::test]
async fn an_unknown_pod_is_not_found() {
    let world = World::start().await;
    let mut alice = world.responder("alice").await;
    let refused = alice
        .create_quarantine(world.request("nosuch"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("kubectl get pods"), "{refused}");
}

#[tokio::test]
async fn a_pod_that_has_ended_is_not_called_contained_and_its_evidence_is_pointed_to() {
    let world = World::start_in_memory().await;
    let pods = world.deployment("nginx", 1, None).await;
    let pod = name(pods.first().unwrap());
    let api = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let mut alice = world.responder("alice").await;
    for phase in ["Succeeded", "Failed"] {
        let ended = Patch::Merge(json!({ "status": { "phase": phase } }));
        api.patch_status(&pod, &PatchParams::default(), &ended)
            .await
            .unwrap();
        for dry_run in [true, false] {
            let mut request = world.request(&pod);
            request.dry_run = dry_run;
            let refused = alice.create_quarantine(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            for words in [phase, "nothing to contain", "impound collect"] {
                assert!(refused.message().contains(words), "{refused}");
            }
        }
    }
    assert_eq!(world.effects(), Vec::<String>::new());
}

#[tokio::test]
async fn a_viewer_may_look_but_not_quarantine() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let mut eve = world.responder("eve").await;
    let refused = eve
        .create_quarantine(world.request(&name(pods.first().unwrap())))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    eve.list_quarantines(impound_proto::controller::v1::ListQuarantinesRequest::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_second_quarantine_of_a_pod_names_the_first() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let first = world.quarantine(&name(pods.first().unwrap())).await;
    let mut alice = world.responder("alice").await;
    let refused = alice
        .create_quarantine(world.request(&name(pods.first().unwrap())))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains(&first.name), "{refused}");
}

#[tokio::test]
async fn a_quarantine_made_with_kubectl_for_an_unfit_pod_ends_refused() {
    let world = World::start().await;
    world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
            "spec": { "pod": "nosuch", "case": "INC-1", "reason": "x" },
        }))
        .await;
    let done = world.settled("q").await;
    assert_eq!(done.phase, "Refused");
    assert!(done.message.contains("does not exist"), "{}", done.message);
    assert_eq!(world.effects(), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_without_an_agent_is_an_answer_and_not_a_failed_collection() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let mut alice = world.responder("alice").await;
    let request = CreateCollectionRequest {
        namespace: world.namespace.clone(),
        pod: name(pods.first().unwrap()),
        case_id: "INC-1".into(),
        reason: "x".into(),
        ..Default::default()
    };
    let refused = alice.create_collection(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("the agent of node"), "{refused}");
    let unknown = ListContainersRequest {
        node: "nosuch".into(),
    };
    let refused = alice.list_containers(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        refused.message().contains("node nosuch does not exist"),
        "{refused}"
    );
}

#[tokio::test]
async fn the_api_server_refuses_malformed_quarantines_and_collections() {
    let world = World::start().await;
    let cases = [
        (
            "spec.case",
            json!({ "pod": "web", "case": "a..b", "reason": "x" }),
        ),
        (
            "spec.case",
            json!({ "pod": "web", "case": "../../etc", "reason": "x" }),
        ),
        (
            "spec.case",
            json!({ "pod": "web", "case": "x".repeat(64), "reason": "x" }),
        ),
        (
            "spec.pod",
            json!({ "pod": "web/status", "case": "INC-1", "reason": "x" }),
        ),
        (
            "spec.pod",
            json!({ "pod": "web?dryRun=All", "case": "INC-1", "reason": "x" }),
        ),
        (
            "spec.pod",
            json!({ "pod": "Web", "case": "INC-1", "reason": "x" }),
        ),
        (
            "spec.reason",
            json!({ "pod": "web", "case": "INC-1", "reason": "  " }),
        ),
    ];
    for kind in ["Quarantine", "Collection"] {
        for (field, spec) in &cases {
            let object = json!({
                "apiVersion": "impound.dev/v1alpha1", "kind": kind, "metadata": { "name": "q" }, "spec": spec,
            });
            let refused = world.try_create(object).await.unwrap_err().to_string();
            assert!(refused.contains(field), "{kind} {spec}: {refused}");
        }
    }
    let accepted = ["INC-7", "a", "a.b-c_d", "2026.11_x--y", &"x".repeat(63)];
    for (number, case) in accepted.into_iter().enumerate() {
        let name = format!("q{number}");
        let object = json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": name },
            "spec": { "pod": "nosuch", "case": case, "reason": "x" },
        });
        world
            .try_create(object)
            .await
            .unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}
