//! PodCertificateRequests: served where they are turned on, asked for by a pod's own kubelet, answered once.

use super::*;

const REQUESTS: &str =
    "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests";
/// A P-256 key, SubjectPublicKeyInfo. (The generator of the curve, which is a point as good as any.)
const KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==";

async fn ask(client: &Client, method: &str, path: &str, body: &Value) -> kube::Result<Value> {
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(body.to_string().into_bytes());
    client.request(request.unwrap()).await
}

async fn world() -> (Cluster, Client, Value) {
    let config = ClusterConfig {
        pod_certificates: true,
        ..ClusterConfig::default()
    };
    let cluster = Cluster::start(config).await.unwrap();
    let client = connect(&cluster.kubeconfig()).await;
    let pod = json!({"metadata": {"name": "web"}, "spec": {"nodeName": "k8s-worker2",
        "containers": [{"name": "c", "image": "busybox:1"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    let pod = ask(&client, "POST", pods, &pod).await.unwrap();
    let spec = json!({"signerName": "example.org/web", "podName": "web", "podUID": pod["metadata"]["uid"],
        "serviceAccountName": "default", "serviceAccountUID": "u", "nodeName": "k8s-worker2", "nodeUID": "u",
        "pkixPublicKey": KEY, "proofOfPossession": "AA=="});
    let request = json!({"metadata": {"name": "web"}, "spec": spec});
    (cluster, client, request)
}

#[tokio::test]
async fn pod_certificate_requests_are_served_where_they_are_turned_on_only() {
    let (_cluster, client) = start().await;
    let request = http::Request::get(REQUESTS).body(Vec::new()).unwrap();
    let refused = client.request::<Value>(request).await.unwrap_err();
    assert_eq!(status(&refused).code, 404);
}

#[tokio::test]
async fn a_kubelet_asks_for_the_pods_of_its_own_node_and_never_changes_what_it_asked() {
    let (cluster, client, request) = world().await;
    let other = connect(&cluster.kubeconfig_as("system:node:k8s-worker3")).await;
    let refused = ask(&other, "POST", REQUESTS, &request).await.unwrap_err();
    assert_eq!(status(&refused).code, 403);
    let own = connect(&cluster.kubeconfig_as("system:node:k8s-worker2")).await;
    let made = ask(&own, "POST", REQUESTS, &request).await.unwrap();
    assert_eq!(made["spec"]["maxExpirationSeconds"], 86_400);
    let path = format!("{REQUESTS}/web");
    let change = json!({"spec": {"podName": "other"}});
    let refused = ask(&client, "PATCH", &path, &change).await.unwrap_err();
    assert_eq!(status(&refused).code, 422);
    assert!(status(&refused).message.contains("immutable"));
}

#[tokio::test]
async fn a_request_is_answered_once_and_only_in_the_ways_that_there_are() {
    let (cluster, client, request) = world().await;
    ask(&client, "POST", REQUESTS, &request).await.unwrap();
    let path = format!("{REQUESTS}/web/status");
    let answer = |kind: &str, reason: &str| {
        json!({"status": {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    for (wrong, why) in [
        (answer("Approved", "Fine"), "Unsupported value"),
        (answer("Denied", ""), "Required value"),
        (answer("Issued", "Issued"), "at least one certificate"),
        (
            json!({"status": {"certificateChain": "x"}}),
            "immutable unless",
        ),
    ] {
        let refused = ask(&client, "PATCH", &path, &wrong).await.unwrap_err();
        assert_eq!(status(&refused).code, 422, "{refused}");
        assert!(status(&refused).message.contains(why), "{refused}");
    }
    let nobody = connect(&cluster.kubeconfig_as("nobody")).await;
    ask(&nobody, "PATCH", &path, &answer("Denied", "No"))
        .await
        .expect("who denies signs nothing");
    let again = ask(&client, "PATCH", &path, &answer("Failed", "Late"))
        .await
        .unwrap_err();
    assert!(
        status(&again).message.contains("immutable after"),
        "{again}"
    );
}
