//! Callers with Kubernetes tokens: many calls at once, and streams that outlive the right to them.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use impound_controller::service::AUDIENCE;
use impound_proto::controller::v1 as wire;
use kube_memory::{Effect, Fault};
use serde_json::json;
use tonic::{Code, Status, Streaming};

use super::binding;
use super::scene::{Caller, Scene};

/// As many as one caller may have running at the same time, and twice as many as one address may have reviewed.
const PARALLEL: usize = 8;

#[tokio::test]
async fn parallel_calls_with_one_token_wait_for_one_review() {
    let scene = Scene::start().await;
    let token = scene.token_of("soar", AUDIENCE);
    let soar = scene.stranger(&format!("Bearer {token}")).await;
    // Long enough that all have come before the first is answered.
    let api = scene.world.api();
    let slow = Effect::Delay(Duration::from_millis(500));
    let slow = api.inject(Fault::new(slow).on("POST", "reviews"));
    let namespace = scene.namespace();
    let calls = join_all((0..PARALLEL).map(|_| soar.list_quarantines(&namespace))).await;
    for answer in calls {
        answer.unwrap();
    }
    slow.remove();
    let asked = |what: &str| {
        let requests = scene.world.requests().into_iter();
        let theirs = requests.filter(|request| request.path.contains(what));
        theirs.count()
    };
    assert_eq!(asked("/tokenreviews"), 1);
    // A viewer's right, which the responder's binding has not, and then the responder's.
    assert_eq!(asked("/subjectaccessreviews"), 2);
}

#[tokio::test]
async fn a_stream_ends_soon_after_its_callers_right_is_taken_away() {
    let scene = Scene::start_with(&["--caller-recheck=1"]).await;
    let namespace = scene.namespace();
    let suspect = scene.pod("nginx", "other").await;
    let soar = scene.token_of("soar", AUDIENCE);
    let soar = scene.stranger(&format!("Bearer {soar}")).await;
    let spec = json!({"pod": "nginx", "podUid": suspect["metadata"]["uid"], "case": "INC-1", "reason": "baseline"});
    // Its agent can't be reached: it waits.
    let made = json!({"apiVersion": "impound.dev/v1alpha1", "kind": "Collection", "metadata": {"name": "baseline"},
        "spec": spec});
    scene.world.create(made).await;
    let collection = "baseline".to_owned();
    // One whose binding goes, one whose pod goes and with it its token, and one who stays.
    let account = format!("system:serviceaccount:{namespace}:other");
    let bindings =
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings");
    let account = binding("RoleBinding", "account", "impound-access-viewer", &account);
    scene.post(&bindings, account).await;
    let pod = scene.pod("platform", "other").await;
    let bound = scene.service_account_token("other", AUDIENCE, Some(&pod));
    let bound = scene.stranger(&format!("Bearer {}", bound.await)).await;
    let stays = scene.token_of("looker", AUDIENCE);
    let stays = scene.stranger(&format!("Bearer {stays}")).await;
    let mut streams = Vec::new();
    for caller in [&soar, &bound, &stays] {
        streams.push(watched(caller, &namespace, &collection).await);
    }
    let [unbound, gone, mut stays] = <[_; 3]>::try_from(streams).unwrap();
    let pod = format!("/api/v1/namespaces/{namespace}/pods/platform?gracePeriodSeconds=0");
    scene.ask("DELETE", &format!("{bindings}/soar"), None).await;
    scene.ask("DELETE", &pod, None).await;
    let (unbound, gone) = futures::join!(end(unbound), end(gone));
    assert_eq!(unbound.code(), Code::PermissionDenied, "{unbound}");
    assert!(unbound.message().contains("the stream ends"), "{unbound}");
    assert!(unbound.message().contains("roles.impound.dev"), "{unbound}");
    assert_eq!(gone.code(), Code::Unauthenticated, "{gone}");
    assert!(gone.message().contains("the stream ends"), "{gone}");
    let next = stays.message().now_or_never();
    assert!(!matches!(next, Some(Ok(None) | Err(_))), "{next:?}");
    let log = scene.world.log();
    let ended = log.lines().filter(|line| line.contains("a stream ends"));
    assert_eq!(ended.count(), 2);
}

/// A stream that has begun.
async fn watched(caller: &Caller, namespace: &str, name: &str) -> Streaming<wire::Collection> {
    let request = caller.request(wire::WatchCollectionRequest {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    });
    let stream = caller.client().watch_collection(request).await.unwrap();
    let mut stream = stream.into_inner();
    stream.message().await.unwrap().expect("how it stands");
    stream
}

/// With what a stream ends.
async fn end(mut stream: Streaming<wire::Collection>) -> Status {
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended as if that were all"),
                Err(status) => return status,
            }
        }
    };
    let limit = Duration::from_secs(60);
    let ended = tokio::time::timeout(limit, end).await;
    ended.expect("it goes on and on")
}
