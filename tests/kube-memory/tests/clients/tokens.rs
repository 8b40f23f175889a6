//! Tokens of service accounts, as recording 13-tokens has them: audience, bound pod, review.

use super::*;

struct World {
    client: Client,
    _cluster: Cluster,
}

async fn ask(client: &Client, method: &str, path: &str, body: &Value) -> kube::Result<Value> {
    let bytes = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json");
    client.request(request.body(bytes).unwrap()).await
}

async fn token(world: &World, body: Value) -> String {
    let path = "/api/v1/namespaces/default/serviceaccounts/agent/token";
    let made = ask(&world.client, "POST", path, &body).await.unwrap();
    made["status"]["token"].as_str().unwrap().to_owned()
}

async fn review(world: &World, token: &str, audiences: &[&str]) -> Value {
    let body = json!({"spec": {"token": token, "audiences": audiences}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    ask(&world.client, "POST", path, &body).await.unwrap()["status"].clone()
}

async fn world_with_agent() -> (World, Value) {
    let (_cluster, client) = start().await;
    let world = World { client, _cluster };
    let account = json!({"metadata": {"name": "agent"}});
    ask(
        &world.client,
        "POST",
        "/api/v1/namespaces/default/serviceaccounts",
        &account,
    )
    .await
    .unwrap();
    let pod = json!({"metadata": {"name": "agent"}, "spec": {"serviceAccountName": "agent",
        "nodeName": "k8s-worker2", "containers": [{"name": "c", "image": "busybox:1"}]}});
    let pod = ask(
        &world.client,
        "POST",
        "/api/v1/namespaces/default/pods",
        &pod,
    )
    .await
    .unwrap();
    (world, pod)
}

#[tokio::test]
async fn a_bound_token_tells_its_pod_and_node_to_its_audience_and_nobody_else() {
    let (world, pod) = world_with_agent().await;
    let bound =
        json!({"kind": "Pod", "apiVersion": "v1", "name": "agent", "uid": pod["metadata"]["uid"]});
    let token = token(
        &world,
        json!({"spec": {"audiences": ["impound"], "boundObjectRef": bound}}),
    )
    .await;

    let right = review(&world, &token, &["impound"]).await;
    assert_eq!(right["authenticated"], true);
    assert_eq!(right["audiences"], json!(["impound"]));
    assert_eq!(
        right["user"]["username"],
        "system:serviceaccount:default:agent"
    );
    let extra = &right["user"]["extra"];
    let node = ask(
        &world.client,
        "GET",
        "/api/v1/nodes/k8s-worker2",
        &Value::Null,
    )
    .await
    .unwrap();
    for (key, value) in [
        ("pod-name", &json!("agent")),
        ("pod-uid", &pod["metadata"]["uid"]),
        ("node-name", &json!("k8s-worker2")),
        ("node-uid", &node["metadata"]["uid"]),
    ] {
        assert_eq!(
            &extra[format!("authentication.kubernetes.io/{key}")][0],
            value,
            "{key}"
        );
    }

    let wrong = review(&world, &token, &["other"]).await;
    assert_eq!(wrong["authenticated"], Value::Null);
    assert_eq!(
        wrong["error"],
        "[invalid bearer token, token audiences [\"impound\"] is invalid for the target audiences [\"other\"]]"
    );
    let rubbish = review(&world, "rubbish", &["impound"]).await;
    assert_eq!(
        rubbish,
        json!({"user": {}, "error": "invalid bearer token"})
    );
}

#[tokio::test]
async fn a_bound_token_ends_with_its_pod_and_is_not_made_for_another() {
    let (world, pod) = world_with_agent().await;
    let other = json!({"spec": {"audiences": ["impound"], "boundObjectRef": {"kind": "Pod", "apiVersion": "v1",
        "name": "agent", "uid": "00000000-0000-4000-8000-000000000000"}}});
    let path = "/api/v1/namespaces/default/serviceaccounts/agent/token";
    let refused = ask(&world.client, "POST", path, &other).await.unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 409),
        "{refused}"
    );

    let bound =
        json!({"kind": "Pod", "apiVersion": "v1", "name": "agent", "uid": pod["metadata"]["uid"]});
    let token = token(
        &world,
        json!({"spec": {"audiences": ["impound"], "boundObjectRef": bound}}),
    )
    .await;
    ask(
        &world.client,
        "DELETE",
        "/api/v1/namespaces/default/pods/agent?gracePeriodSeconds=0",
        &Value::Null,
    )
    .await
    .unwrap();
    let after = review(&world, &token, &["impound"]).await;
    assert_eq!(
        after["error"],
        "[invalid bearer token, service account token has been invalidated]"
    );
}
