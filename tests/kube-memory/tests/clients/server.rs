//! The server itself: discovery, faults, audit, speed.

use super::*;

#[tokio::test]
async fn discovery_finds_built_in_and_custom_resources() {
    let (cluster, client) = start().await;
    let discovery = Discovery::new(client.clone()).run().await.unwrap();
    let (resource, _) = discovery
        .resolve_gvk(&GroupVersionKind::gvk(
            "policy",
            "v1",
            "PodDisruptionBudget",
        ))
        .unwrap();
    assert_eq!(resource.plural, "poddisruptionbudgets");
    assert_eq!(client.apiserver_version().await.unwrap().minor, "36");
    cluster.shutdown().await;
}

#[tokio::test]
async fn injected_faults_hit_the_requests_they_are_meant_for() {
    let (cluster, client) = start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let make = |name: &str| {
        let (api, body) = (
            api.clone(),
            parse::<ConfigMap>(json!({"metadata": {"name": name}})),
        );
        async move { api.create(&PostParams::default(), &body).await }
    };
    let busy = cluster.inject(
        Fault::answer(429)
            .on("POST", "/configmaps")
            .nth(2)
            .retry_after(7),
    );
    make("a").await.unwrap();
    let refused = make("b").await.unwrap_err();
    assert_eq!(
        (
            status(&refused).code,
            status(&refused)
                .details
                .as_ref()
                .unwrap()
                .retry_after_seconds
        ),
        (429, 7)
    );
    make("b").await.unwrap();
    assert_eq!(busy.hits(), 1);

    let lost = cluster.inject(
        Fault::new(Effect::DropAfter)
            .on("POST", "/configmaps")
            .times(1),
    );
    assert!(!matches!(make("c").await.unwrap_err(), kube::Error::Api(_)));
    assert_eq!(
        (lost.hits(), api.get_opt("c").await.unwrap().is_some()),
        (1, true),
        "done, but nobody was told"
    );
    cluster.inject(
        Fault::new(Effect::DropBefore)
            .on("POST", "/configmaps")
            .times(1),
    );
    make("d").await.unwrap_err();
    assert!(api.get_opt("d").await.unwrap().is_none());

    let slow = cluster
        .inject(Fault::new(Effect::Delay(Duration::from_millis(80))).on("GET", "/configmaps/a"));
    let start = Instant::now();
    api.get("a").await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(80));
    slow.remove();
    api.get("a").await.unwrap();
    assert_eq!(slow.hits(), 1);
    let records = cluster.requests();
    let create = records
        .iter()
        .find(|record| record.method == "POST")
        .unwrap();
    assert_eq!(create.body.as_ref().unwrap()["metadata"]["name"], "a");
    assert_eq!(
        (create.status, create.user.as_str()),
        (201, "kubernetes-admin")
    );
    cluster.shutdown().await;
}

#[tokio::test]
async fn unknown_tokens_are_refused_and_other_users_are_named_in_the_audit() {
    let audit = tempfile::NamedTempFile::new().unwrap();
    let config = ClusterConfig {
        audit: Some(audit.path().to_owned()),
        ..ClusterConfig::default()
    };
    let cluster = Cluster::start(config).await.unwrap();
    let account = connect(&cluster.kubeconfig_as("system:serviceaccount:default:agent")).await;
    let pods: Api<Pod> = Api::default_namespaced(account);
    pods.list(&ListParams::default()).await.unwrap();
    let forged = cluster.kubeconfig().replace("token: \"", "token: \"x");
    let forged: Api<Pod> = Api::default_namespaced(connect(&forged).await);
    assert_eq!(
        status(&forged.list(&ListParams::default()).await.unwrap_err()).code,
        401
    );
    let lines = std::fs::read_to_string(audit.path()).unwrap();
    let users: Vec<String> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<kube_memory::RequestRecord>(line)
                .unwrap()
                .user
        })
        .collect();
    assert!(users.contains(&"system:serviceaccount:default:agent".to_owned()));
    cluster.shutdown().await;
}

/// Prints what a call costs; the bound is loose because test builds aren't optimised.
#[tokio::test]
async fn a_call_is_answered_in_far_less_than_a_moment() {
    let (cluster, client) = start().await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    Api::<Deployment>::default_namespaced(client)
        .create(&PostParams::default(), &deployment("web", 30))
        .await
        .unwrap();
    let name = running(&pods, "app=web", 30).await[0].name_any();
    let rounds = futures::stream::iter(0..200).map(Ok::<i32, kube::Error>);
    rounds
        .try_for_each(|at| {
            let (pods, name) = (pods.clone(), name.clone());
            async move {
                let patch =
                    Patch::Merge(json!({"metadata": {"annotations": {"n": at.to_string()}}}));
                pods.patch(&name, &PatchParams::default(), &patch)
                    .await
                    .map(drop)
            }
        })
        .await
        .unwrap();
    let mut micros: Vec<u64> = cluster
        .requests()
        .iter()
        .filter(|r| r.method == "PATCH")
        .map(|r| r.micros)
        .collect();
    micros.sort_unstable();
    eprintln!(
        "patch of a pod: median {} us, p99 {} us",
        micros[100], micros[198]
    );
    assert!(micros[100] < 10_000);
    cluster.shutdown().await;
}
