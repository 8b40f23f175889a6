//! Reading, writing, applying, selecting objects; custom resources.

use super::*;

#[tokio::test]
async fn a_configmap_is_created_read_replaced_patched_and_deleted() {
    let (cluster, client) = start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let made = api
        .create(
            &PostParams::default(),
            &parse(json!({"metadata": {"generateName": "c-"}, "data": {"a": "1"}})),
        )
        .await
        .unwrap();
    let name = made.name_any();
    assert!(name.starts_with("c-") && name.len() == 7);
    let mut changed = api.get(&name).await.unwrap();
    changed
        .data
        .as_mut()
        .unwrap()
        .insert("b".into(), "2".into());
    let replaced = api
        .replace(&name, &PostParams::default(), &changed)
        .await
        .unwrap();
    assert_ne!(replaced.resource_version(), made.resource_version());
    let stale = api
        .replace(&name, &PostParams::default(), &changed)
        .await
        .unwrap_err();
    assert_eq!(
        (status(&stale).code, status(&stale).reason.as_str()),
        (409, "Conflict")
    );
    let patch = Patch::Merge(json!({"data": {"a": null}}));
    let dry = api
        .patch(
            &name,
            &PatchParams {
                dry_run: true,
                ..PatchParams::default()
            },
            &patch,
        )
        .await
        .unwrap();
    assert_eq!(dry.data.unwrap().len(), 1);
    assert_eq!(api.get(&name).await.unwrap().data.unwrap().len(), 2);
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    assert_eq!(status(&api.get(&name).await.unwrap_err()).code, 404);
    cluster.shutdown().await;
}

#[tokio::test]
async fn apply_owns_fields_conflicts_and_removes_what_it_drops() {
    let (cluster, client) = start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let apply = |manager: &str, data: Value| {
        let params = PatchParams::apply(manager);
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data});
        let api = api.clone();
        async move { api.patch("x", &params, &Patch::Apply(body)).await }
    };
    apply("one", json!({"a": "1", "b": "1"})).await.unwrap();
    apply("two", json!({"b": "1", "c": "1"})).await.unwrap();
    let conflict = apply("two", json!({"a": "2"})).await.unwrap_err();
    assert_eq!(
        status(&conflict).message,
        "Apply failed with 1 conflict: conflict with \"one\": .data.a"
    );
    let left = apply("one", json!({})).await.unwrap();
    let keys: Vec<String> = left.data.unwrap().into_keys().collect();
    assert_eq!(keys, ["b", "c"], "a was only one's, b is two's too");
    cluster.shutdown().await;
}

#[tokio::test]
async fn lists_of_containers_merge_by_name_under_apply_and_strategic_merge() {
    let (cluster, client) = start().await;
    let api: Api<Deployment> = Api::default_namespaced(client);
    api.create(&PostParams::default(), &deployment("d", 1))
        .await
        .unwrap();
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s:1"}]}}}});
    let both = api
        .patch("d", &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .unwrap();
    assert_eq!(
        both.spec.unwrap().template.spec.unwrap().containers.len(),
        2
    );
    let apply = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"template": {"spec": {"containers": [{"name": "side", "env": [{"name": "A", "value": "1"}]}]}}}});
    let applied = api
        .patch("d", &PatchParams::apply("m"), &Patch::Apply(apply))
        .await
        .unwrap();
    let containers = applied.spec.unwrap().template.spec.unwrap().containers;
    assert_eq!(
        (containers.len(), containers[1].env.as_ref().unwrap().len()),
        (2, 1)
    );
    let delete = json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "$patch": "delete"}]}}}});
    let one = api
        .patch("d", &PatchParams::default(), &Patch::Strategic(delete))
        .await
        .unwrap();
    assert_eq!(one.spec.unwrap().template.spec.unwrap().containers.len(), 1);
    cluster.shutdown().await;
}

#[tokio::test]
async fn custom_resources_are_served_once_their_definition_is_and_go_with_it() {
    let (cluster, client) = start().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition = |rule: &str| -> CustomResourceDefinition {
        parse(json!({
            "metadata": {"name": "things.example.dev"},
            "spec": {"group": "example.dev", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": {"type": "object", "x-kubernetes-validations": [{"rule": rule, "message": "no"}],
                                 "properties": {"n": {"type": "integer", "minimum": 1, "default": 2}}},
                        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}}))
    };
    let refused = definitions
        .create(&PostParams::default(), &definition("quantity(self.n) > 0"))
        .await
        .unwrap_err();
    assert_eq!(
        status(&refused).code,
        422,
        "a rule that can't be evaluated is refused, not ignored"
    );
    definitions
        .create(&PostParams::default(), &definition("self == oldSelf"))
        .await
        .unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.dev", "v1", "Thing"));
    let api: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
    let made = until("the resource is served", || async {
        let body = DynamicObject::new("a", &resource).data(json!({"spec": {}}));
        api.create(&PostParams::default(), &body).await.ok()
    })
    .await;
    assert_eq!(made.data["spec"]["n"], 2);
    let low = Patch::Merge(json!({"spec": {"n": 0}}));
    assert_eq!(
        status(
            &api.patch("a", &PatchParams::default(), &low)
                .await
                .unwrap_err()
        )
        .code,
        422
    );
    let other = Patch::Merge(json!({"spec": {"n": 3}}));
    let refused = api
        .patch("a", &PatchParams::default(), &other)
        .await
        .unwrap_err();
    assert!(
        status(&refused)
            .message
            .ends_with("spec: Invalid value: no"),
        "{refused}"
    );
    let patch = Patch::Merge(json!({"status": {"phase": "Done"}, "spec": {"n": 9}}));
    let changed = api
        .patch_status("a", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(
        (&changed.data["status"]["phase"], &changed.data["spec"]["n"]),
        (&json!("Done"), &json!(2))
    );
    assert_eq!(changed.metadata.generation, Some(1));
    definitions
        .delete("things.example.dev", &DeleteParams::default())
        .await
        .unwrap();
    until("the resource is no longer served", || async {
        api.list(&ListParams::default()).await.err()
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn lists_page_and_select() {
    let (cluster, client) = start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    for at in 0..7 {
        let body = json!({"metadata": {"name": format!("m{at}"), "labels": {"n": at.to_string(), "m": "x"}}});
        api.create(&PostParams::default(), &parse(body))
            .await
            .unwrap();
    }
    let mut params = ListParams::default().labels("m").limit(3);
    let mut names = Vec::new();
    loop {
        let page = api.list(&params).await.unwrap();
        names.extend(page.items.iter().map(ResourceExt::name_any));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    for (selector, count) in [
        ("n in (1,2)", 2),
        ("m,n notin (1,2)", 5),
        ("!n,m", 0),
        ("n!=1,m=x", 6),
        ("n=3", 1),
    ] {
        let found = api
            .list(&ListParams::default().labels(selector))
            .await
            .unwrap();
        assert_eq!(found.items.len(), count, "{selector}");
    }
    let one = api
        .list(&ListParams::default().fields("metadata.name=m4"))
        .await
        .unwrap();
    assert_eq!(one.items.len(), 1);
    let unknown = api
        .list(&ListParams::default().fields("data.x=1"))
        .await
        .unwrap_err();
    assert_eq!(status(&unknown).code, 400);
    cluster.shutdown().await;
}
