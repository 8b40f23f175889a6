//! What controllers do: nodes, budgets, owners, namespaces, rollouts.

use super::*;

#[tokio::test]
async fn nodes_are_ready_with_their_addresses_and_leave_as_they_are_told() {
    let nodes = vec!["a=10.0.0.1".to_owned(), "b".to_owned()];
    let cluster = Cluster::start(ClusterConfig {
        nodes,
        ..ClusterConfig::default()
    })
    .await
    .unwrap();
    let api: Api<Node> = Api::all(connect(&cluster.kubeconfig()).await);
    let addresses: Vec<String> = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .iter()
        .map(|node| {
            node.status.as_ref().unwrap().addresses.as_ref().unwrap()[0]
                .address
                .clone()
        })
        .collect();
    assert_eq!(addresses, ["10.0.0.1", "127.0.0.1"]);
    api.cordon("a").await.unwrap();
    until("the taint", || async {
        let node = api.get("a").await.unwrap();
        node.spec
            .unwrap()
            .taints
            .filter(|taints| taints[0].key == "node.kubernetes.io/unschedulable")
    })
    .await;
    api.uncordon("a").await.unwrap();
    until("no taint", || async {
        api.get("a")
            .await
            .unwrap()
            .spec
            .unwrap()
            .taints
            .is_none()
            .then_some(())
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_budget_stops_the_second_eviction_and_no_other() {
    let (cluster, client) = start().await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    Api::<Deployment>::default_namespaced(client.clone())
        .create(&PostParams::default(), &deployment("web", 2))
        .await
        .unwrap();
    let found = running(&pods, "app=web", 2).await;
    let budgets: Api<k8s_openapi::api::policy::v1::PodDisruptionBudget> =
        Api::default_namespaced(client);
    let budget = json!({"metadata": {"name": "b"},
                        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}});
    cluster.hold_controllers(true);
    budgets
        .create(&PostParams::default(), &parse(budget))
        .await
        .unwrap();
    let evict = |at: usize| {
        let (pods, name) = (pods.clone(), found[at].name_any());
        async move { pods.evict(&name, &EvictParams::default()).await }
    };
    let unprocessed = evict(0).await.unwrap_err();
    assert_eq!(status(&unprocessed).code, 429);
    assert_eq!(
        status(&unprocessed)
            .details
            .as_ref()
            .unwrap()
            .retry_after_seconds,
        10
    );
    cluster.hold_controllers(false);
    let exhausted = until("the processed budget", || async {
        let error = evict(0).await.unwrap_err();
        (status(&error).details.as_ref().unwrap().retry_after_seconds == 0).then_some(error)
    })
    .await;
    assert_eq!(status(&exhausted).code, 429);
    budgets
        .patch(
            "b",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"minAvailable": 1}})),
        )
        .await
        .unwrap();
    until("one allowed disruption", || async {
        let status = budgets.get("b").await.unwrap().status?;
        (status.disruptions_allowed == Some(1)).then_some(())
    })
    .await;
    // Else a replacement could be ready before the next line.
    cluster.hold_controllers(true);
    evict(0).await.unwrap();
    assert_eq!(
        status(&evict(1).await.unwrap_err()).code,
        429,
        "the first eviction used the budget up"
    );
    cluster.shutdown().await;
}

#[tokio::test]
async fn deleting_owners_orphans_or_takes_along_what_they_own() {
    let (cluster, client) = start().await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    for (name, policy) in [
        ("back", PropagationPolicy::Background),
        ("fore", PropagationPolicy::Foreground),
        ("orphan", PropagationPolicy::Orphan),
    ] {
        deployments
            .create(&PostParams::default(), &deployment(name, 1))
            .await
            .unwrap();
        let label = format!("app={name}");
        running(&pods, &label, 1).await;
        let params = DeleteParams {
            propagation_policy: Some(policy),
            ..DeleteParams::default()
        };
        deployments.delete(name, &params).await.unwrap();
        until("the deployment is gone", || async {
            deployments
                .get_opt(name)
                .await
                .unwrap()
                .is_none()
                .then_some(())
        })
        .await;
        if name == "orphan" {
            running(&pods, &label, 1).await;
        } else {
            until("its pods are gone", || async {
                let list = pods
                    .list(&ListParams::default().labels(&label))
                    .await
                    .unwrap();
                list.items.is_empty().then_some(())
            })
            .await;
        }
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_namespace_takes_everything_in_it_along() {
    let (cluster, client) = start().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(
            &PostParams::default(),
            &parse(json!({"metadata": {"name": "n"}})),
        )
        .await
        .unwrap();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "n");
    deployments
        .create(&PostParams::default(), &deployment("web", 2))
        .await
        .unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "n");
    running(&pods, "app=web", 2).await;
    namespaces
        .delete("n", &DeleteParams::default())
        .await
        .unwrap();
    let refused = deployments
        .create(&PostParams::default(), &deployment("late", 1))
        .await
        .unwrap_err();
    assert!(matches!(status(&refused).code, 403 | 404));
    until("the namespace is gone", || async {
        namespaces
            .get_opt("n")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert!(
        pods.list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_rollout_replaces_pods_and_a_scale_adds_some() {
    let (cluster, client) = start().await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let api: Api<Deployment> = Api::default_namespaced(client);
    api.create(&PostParams::default(), &deployment("web", 2))
        .await
        .unwrap();
    let before = running(&pods, "app=web", 2).await;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "busybox:2"}]}}}});
    api.patch("web", &PatchParams::default(), &Patch::Strategic(image))
        .await
        .unwrap();
    until("only new pods", || async {
        let list = pods
            .list(&ListParams::default().labels("app=web"))
            .await
            .unwrap();
        let fresh = |pod: &Pod| before.iter().all(|old| old.uid() != pod.uid());
        (list.items.len() == 2 && list.items.iter().all(fresh)).then_some(())
    })
    .await;
    api.patch_scale(
        "web",
        &PatchParams::default(),
        &Patch::Merge(json!({"spec": {"replicas": 3}})),
    )
    .await
    .unwrap();
    running(&pods, "app=web", 3).await;
    cluster.shutdown().await;
}
