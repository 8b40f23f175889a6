//! The evidence guard: with the admission policies of deploy/admission nobody but the controller
//! destroys, frees or fakes what is quarantined; a release and the end of the pod's node work as before.

use impound_controller::contain::guard;
use impound_controller::contain::settings::Settings;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use super::world::{World, eventually, label, name, node_of};

mod spec;
mod sweeps;

const MALLORY: &str = "mallory";

/// Policies and bindings, in the order in which they are applied.
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";

struct Guarded {
    world: World,
    installed: Vec<String>,
}

impl Guarded {
    async fn start() -> Self {
        let world = World::start().await;
        let user = match &world.memory {
            Some(_) => super::world::CONTROLLER.to_owned(),
            // There the controller is who runs the tests.
            None => {
                let api = Api::<SelfSubjectReview>::all(world.client.clone());
                let review = api
                    .create(&PostParams::default(), &SelfSubjectReview::default())
                    .await
                    .unwrap();
                let user = review.status.and_then(|status| status.user_info);
                user.and_then(|user| user.username).unwrap()
            }
        };
        let mut policies = guard::guard(&user, &Settings::default());
        policies.extend(guard::access(&user));
        let installed = install(&world.client, policies).await;
        for path in &installed {
            world.made(path.clone());
        }
        let guarded = Self { world, installed };
        // A policy works about 0.7 s after its binding on a real cluster (recorded).
        eventually("the policies work", || async {
            let quarantine = json!({
                "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "probe" },
                "spec": { "pod": "p", "case": "INC-1", "reason": "x", "requestedBy": "somebody else" },
            });
            let path = guarded.path("impound.dev/v1alpha1", "quarantines?dryRun=All");
            match guarded.mallory("POST", &path, quarantine).await {
                (403, _) => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        })
        .await;
        guarded
    }

    /// Takes the policies away again.
    async fn end(self) {
        for path in &self.installed {
            ask(&self.world.client, "DELETE", path, &Value::Null, "").await;
        }
    }

    fn path(&self, group: &str, rest: &str) -> String {
        let start = if group == "v1" { "/api/v1" } else { "/apis" };
        let group = if group == "v1" {
            String::new()
        } else {
            format!("/{group}")
        };
        format!("{start}{group}/namespaces/{}/{rest}", self.world.namespace)
    }

    async fn mallory(&self, method: &str, path: &str, body: Value) -> (u16, String) {
        ask(&self.world.client, method, path, &body, MALLORY).await
    }

    async fn refused(&self, what: &str, method: &str, path: &str, body: Value) {
        let (code, message) = self.mallory(method, path, body).await;
        assert_eq!(code, 403, "{what}: {message}");
        assert!(
            message.contains("ValidatingAdmissionPolicy"),
            "{what}: {message}"
        );
    }
}

/// Makes the policies and bindings; the path of each.
async fn install(client: &Client, policies: Vec<Value>) -> Vec<String> {
    let mut installed = Vec::new();
    for policy in policies {
        let name = policy["metadata"]["name"].as_str().unwrap();
        let path = format!("{POLICIES}/{}", plural(&policy));
        let answer = ask(client, "POST", &path, &policy, "").await;
        assert!(matches!(answer.0, 201 | 409), "{answer:?}");
        installed.push(format!("{path}/{name}"));
    }
    installed
}

fn plural(policy: &Value) -> &'static str {
    match policy["kind"].as_str().unwrap() {
        "ValidatingAdmissionPolicy" => "validatingadmissionpolicies",
        _ => "validatingadmissionpolicybindings",
    }
}

/// As somebody else with every right, unless `user` is empty. Code and message of the answer.
async fn ask(client: &Client, method: &str, path: &str, body: &Value, user: &str) -> (u16, String) {
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind);
    if !user.is_empty() {
        request = request
            .header("impersonate-user", user)
            .header("impersonate-group", "system:masters");
    }
    let body = match body {
        Value::Null => Vec::new(),
        body => body.to_string().into_bytes(),
    };
    let answer = client
        .send(request.body(body.into()).unwrap())
        .await
        .unwrap();
    let code = answer.status().as_u16();
    let text = answer.into_body().collect_bytes().await.unwrap();
    let message = serde_json::from_slice::<Value>(&text)
        .ok()
        .and_then(|status| status["message"].as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
    (code, message)
}

#[tokio::test]
async fn nobody_but_the_controller_takes_a_quarantined_pod_or_what_holds_it_away() {
    let guarded = Guarded::start().await;
    let world = &guarded.world;
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = name(pods.first().unwrap());
    let quarantine = world.quarantine(&suspect).await;
    assert_eq!(quarantine.phase, "Complete", "{quarantine:#?}");
    let fact = quarantine
        .facts
        .iter()
        .find(|fact| fact.name == "Guarded")
        .unwrap();
    assert_eq!(fact.state, "True", "{fact:?}");

    let pod = guarded.path("v1", &format!("pods/{suspect}"));
    let labels = |labels: Value| json!({ "metadata": { "labels": labels } });
    let none = Value::Null;
    let key = "impound.dev/quarantine";
    for (what, method, path, body) in [
        ("delete", "DELETE", pod.clone(), none.clone()),
        (
            "delete at once",
            "DELETE",
            format!("{pod}?gracePeriodSeconds=0"),
            none.clone(),
        ),
        (
            "delete of all",
            "DELETE",
            guarded.path("v1", "pods?labelSelector=status%3Dsuspectpod"),
            none.clone(),
        ),
        (
            "eviction",
            "POST",
            format!("{pod}/eviction"),
            json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": suspect } }),
        ),
        (
            "label off",
            "PATCH",
            pod.clone(),
            labels(json!({ key: null })),
        ),
        (
            "label off through the status",
            "PATCH",
            format!("{pod}/status"),
            labels(json!({ key: null })),
        ),
        (
            "other label off",
            "PATCH",
            pod.clone(),
            labels(json!({ "status": null })),
        ),
        (
            "owner's label on",
            "PATCH",
            pod.clone(),
            labels(json!({ "app": "nginx" })),
        ),
        (
            "annotation off",
            "PATCH",
            pod.clone(),
            json!({ "metadata": { "annotations": { "cluster-autoscaler.kubernetes.io/safe-to-evict": null } } }),
        ),
        (
            "label on another pod",
            "POST",
            guarded.path("v1", "pods"),
            json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "m", "labels": { key: "x" } },
            "spec": { "containers": [super::world::container("c")] } }),
        ),
        (
            "policy deleted",
            "DELETE",
            guarded.path(
                "networking.k8s.io/v1",
                "networkpolicies/deny-all-suspectpod",
            ),
            none.clone(),
        ),
        (
            "policy opened",
            "PATCH",
            guarded.path(
                "networking.k8s.io/v1",
                "networkpolicies/deny-all-suspectpod",
            ),
            json!({ "spec": { "egress": [{}] } }),
        ),
        (
            "budget deleted",
            "DELETE",
            guarded.path(
                "policy/v1",
                &format!("poddisruptionbudgets/impound-{}", quarantine.name),
            ),
            none.clone(),
        ),
        (
            "quarantine deleted",
            "DELETE",
            guarded.path(
                "impound.dev/v1alpha1",
                &format!("quarantines/{}", quarantine.name),
            ),
            none.clone(),
        ),
        (
            "finalizer off",
            "PATCH",
            guarded.path(
                "impound.dev/v1alpha1",
                &format!("quarantines/{}", quarantine.name),
            ),
            json!({ "metadata": { "finalizers": null } }),
        ),
        (
            "status faked",
            "PATCH",
            guarded.path(
                "impound.dev/v1alpha1",
                &format!("quarantines/{}/status", quarantine.name),
            ),
            json!({ "status": { "phase": "Released" } }),
        ),
        (
            "shell in it",
            "POST",
            format!("{pod}/exec?command=sh"),
            none.clone(),
        ),
    ] {
        guarded.refused(what, method, &path, body).await;
    }
    // What is not about the labels stays possible, and pods that are not quarantined are nobody's business.
    let noted = json!({ "metadata": { "annotations": { "seen-by": "mallory" } } });
    assert_eq!(guarded.mallory("PATCH", &pod, noted).await.0, 200);
    let other = world.running("app=nginx", 1).await.remove(0);
    let other = guarded.path("v1", &format!("pods/{}", name(&other)));
    let relabel = labels(json!({ "seen": "yes" }));
    assert_eq!(guarded.mallory("PATCH", &other, relabel).await.0, 200);
    assert_eq!(guarded.mallory("DELETE", &other, Value::Null).await.0, 200);

    let still = world.pod(&suspect).await;
    assert_eq!(label(&still, "status").as_deref(), Some("suspectpod"));
    world.release(&quarantine.name, false).await.unwrap();
    assert_eq!(world.settled(&quarantine.name).await.phase, "Released");
    let freed = guarded.path("v1", &format!("pods/{suspect}"));
    let code = guarded.mallory("DELETE", &freed, Value::Null).await.0;
    assert!(matches!(code, 200 | 404), "{code}");
    guarded.end().await;
}

#[tokio::test]
async fn a_deny_all_policy_that_has_a_former_name_is_guarded_as_one_of_the_present_name_is() {
    let guarded = Guarded::start().await;
    let world = &guarded.world;
    let pods = world.deployment("nginx", 1, None).await;
    let quarantine = world.quarantine(&name(pods.first().unwrap())).await;
    assert_eq!(quarantine.phase, "Complete", "{quarantine:#?}");
    let mut settings = Settings::default();
    settings.names.policy = "deny-evil".into();
    let newer = guard::guard(super::world::CONTROLLER, &settings);
    let objects = newer.iter().find(|one| {
        one["kind"] == "ValidatingAdmissionPolicy" && one["metadata"]["name"] == "impound-objects"
    });
    let condition = &objects.unwrap()["spec"]["matchConditions"][1];
    // Who is let through stays as it is installed.
    let path = format!("{POLICIES}/validatingadmissionpolicies/impound-objects");
    let request = http::Request::get(&path).body(Vec::new()).unwrap();
    let mut installed: Value = world.client.request(request).await.unwrap();
    installed["spec"]["matchConditions"][1] = condition.clone();
    let spec = json!({ "spec": installed["spec"] });
    let (code, message) = ask(&world.client, "PATCH", &path, &spec, "").await;
    assert_eq!(code, 200, "{message}");

    let policies = guarded.path("networking.k8s.io/v1", "networkpolicies");
    let former = format!("{policies}/deny-all-suspectpod");
    let opened = json!({ "spec": { "egress": [{}] } });
    let unmarked = json!({ "metadata": { "labels": { "impound.dev/deny-all": null } } });
    for (what, method, body) in [
        ("policy opened", "PATCH", opened),
        ("label off", "PATCH", unmarked),
        ("policy deleted", "DELETE", Value::Null),
    ] {
        guarded.refused(what, method, &former, body).await;
    }
    // Else a policy that allows could be made that nobody can delete.
    let allowing = |labels: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "allowing", "labels": labels },
            "spec": { "podSelector": {}, "egress": [{}], "policyTypes": ["Egress"] },
        })
    };
    let ours = json!({ "app.kubernetes.io/part-of": "impound" });
    let both = json!({ "app.kubernetes.io/part-of": "impound", "impound.dev/deny-all": "true" });
    let made = allowing(both.clone());
    guarded
        .refused("label on a new policy", "POST", &policies, made)
        .await;
    let (code, message) = guarded.mallory("POST", &policies, allowing(ours)).await;
    assert_eq!(code, 201, "{message}");
    let path = format!("{policies}/allowing");
    let labelled = json!({ "metadata": { "labels": both } });
    guarded
        .refused("label on a policy", "PATCH", &path, labelled)
        .await;
    let (code, message) = guarded.mallory("DELETE", &path, Value::Null).await;
    assert_eq!(code, 200, "{message}");
    world.release(&quarantine.name, false).await.unwrap();
    assert_eq!(world.settled(&quarantine.name).await.phase, "Released");
    guarded.end().await;
}

#[tokio::test]
async fn a_namespace_does_not_go_while_it_holds_a_quarantined_pod() {
    let guarded = Guarded::start().await;
    let world = &guarded.world;
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = name(pods.first().unwrap());
    let quarantine = world.quarantine(&suspect).await;
    let path = format!("/api/v1/namespaces/{}", world.namespace);
    assert_eq!(guarded.mallory("DELETE", &path, Value::Null).await.0, 200);
    eventually("the others of the namespace go", || async {
        match world.pods("app=nginx").await.len() {
            0 => Ok(()),
            left => Err(format!("{left} are left")),
        }
    })
    .await;
    let still = world.pod(&suspect).await;
    assert_eq!(still.metadata.uid, pods.first().unwrap().metadata.uid);
    assert!(still.metadata.deletion_timestamp.is_none());
    world.release(&quarantine.name, true).await.unwrap();
    guarded.end().await;
}

#[tokio::test]
async fn a_kubelet_ends_a_pod_whose_deletion_was_granted_before_and_no_other() {
    let guarded = Guarded::start().await;
    let world = &guarded.world;
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = pods.first().unwrap();
    let quarantine = world.quarantine(&name(suspect)).await;
    // Impersonated: a kubelet that would end what nobody has deleted.
    let path = guarded.path(
        "v1",
        &format!("pods/{}?gracePeriodSeconds=0", name(suspect)),
    );
    let request = http::Request::delete(&path)
        .header(
            "impersonate-user",
            format!("system:node:{}", node_of(suspect)),
        )
        .header("impersonate-group", "system:nodes")
        .header("impersonate-group", "system:masters");
    let request = request.body(Vec::new().into()).unwrap();
    let answer = world.client.send(request).await.unwrap();
    assert_eq!(answer.status(), 403);
    assert_eq!(
        world.pod(&name(suspect)).await.metadata.uid,
        suspect.metadata.uid
    );
    world.release(&quarantine.name, false).await.unwrap();
    world.settled(&quarantine.name).await;
    guarded.end().await;
}

#[tokio::test]
async fn a_suspect_that_was_terminating_already_is_let_go_by_its_kubelet() {
    let guarded = Guarded::start().await;
    let world = &guarded.world;
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "going", "labels": { "app": "going" }, "finalizers": ["impound.dev/test"] },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [super::world::container("c")] },
    });
    pod["metadata"]["labels"]["impound.dev/quarantine"] = json!("q");
    // Made by the controller's user, who alone may: this is the moment after a strip.
    let api = Api::<Pod>::namespaced(controller(&guarded.world).await, &world.namespace);
    let pod: Pod = serde_json::from_value(pod).unwrap();
    api.create(&PostParams::default(), &pod).await.unwrap();
    world.running("app=going", 1).await;
    api.delete("going", &Default::default()).await.unwrap();
    let finalizers = kube::api::Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    api.patch("going", &Default::default(), &finalizers)
        .await
        .unwrap();
    eventually("its kubelet ends it", || async {
        match api.get_opt("going").await.unwrap() {
            None => Ok(()),
            Some(pod) => Err(format!("{:?}", pod.metadata.deletion_timestamp)),
        }
    })
    .await;
    guarded.end().await;
}

/// A client with the controller's identity. Its calls are no calls of the controller, so they say that they are not.
async fn controller(world: &World) -> Client {
    let Some(memory) = &world.memory else {
        return world.client.clone();
    };
    let text = memory.kubeconfig_as(super::world::CONTROLLER);
    let parsed = kube::config::Kubeconfig::from_yaml(&text).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &options)
        .await
        .unwrap();
    let agent = http::HeaderValue::from_static("impound-test");
    config.headers.push((http::header::USER_AGENT, agent));
    Client::try_from(config).unwrap()
}

#[tokio::test]
async fn who_asked_is_who_the_api_server_knows_or_nobody() {
    let guarded = Guarded::start().await;
    let world = &guarded.world;
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = name(pods.first().unwrap());
    let path = guarded.path("impound.dev/v1alpha1", "quarantines");
    let quarantine = |name: &str, who: &str| {
        json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": name },
            "spec": { "pod": suspect, "case": "INC-1", "reason": "x", "skipCollection": true, "requestedBy": who },
        })
    };
    let somebody = "spiffe://impound.dev/responder/responder/alice";
    guarded
        .refused("another's name", "POST", &path, quarantine("q", somebody))
        .await;
    assert_eq!(
        guarded
            .mallory("POST", &path, quarantine("q", MALLORY))
            .await
            .0,
        201
    );
    world.settled("q").await;
    let path = format!("{path}/q");
    let release =
        |who: &str| json!({ "spec": { "release": { "reason": "x", "requestedBy": who } } });
    guarded
        .refused(
            "release in another's name",
            "PATCH",
            &path,
            release(somebody),
        )
        .await;
    assert_eq!(
        guarded.mallory("PATCH", &path, release(MALLORY)).await.0,
        200
    );
    assert_eq!(world.settled("q").await.phase, "Released");
    guarded.end().await;
}

#[tokio::test]
async fn a_sweep_is_asked_for_in_ones_own_name_and_its_list_and_status_are_the_controllers() {
    let guarded = Guarded::start().await;
    let namespace = guarded.world.namespace.clone();
    let all = "/apis/impound.dev/v1alpha1/sweeps";
    let sweep = |who: &str| {
        json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Sweep", "metadata": { "name": namespace },
            "spec": { "select": { "namespaces": [namespace] }, "case": "INC-1", "reason": "x", "requestedBy": who },
        })
    };
    let somebody = "spiffe://impound.dev/responder/responder/alice";
    guarded
        .refused("another's name", "POST", all, sweep(somebody))
        .await;
    assert_eq!(guarded.mallory("POST", all, sweep(MALLORY)).await.0, 201);
    let own = format!("{all}/{namespace}");
    guarded.world.made(own.clone());
    let status = json!({ "status": { "phase": "Complete" } });
    guarded
        .refused("its status", "PATCH", &format!("{own}/status"), status)
        .await;
    let roster = json!({
        "apiVersion": "impound.dev/v1alpha1", "kind": "SweepRoster", "metadata": { "name": namespace },
        "spec": { "sweep": namespace, "case": "INC-1", "first": 1, "targets": [] },
    });
    let rosters = "/apis/impound.dev/v1alpha1/sweeprosters";
    guarded.refused("its list", "POST", rosters, roster).await;
    guarded.end().await;
}

#[tokio::test]
async fn a_cluster_without_the_guard_or_with_a_weaker_one_is_said_to_be_unguarded() {
    let world = World::start_in_memory().await;
    let pods = world.deployment("nginx", 1, None).await;
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    let fact = |facts: &[impound_proto::controller::v1::Fact]| {
        facts
            .iter()
            .find(|fact| fact.name == "Guarded")
            .cloned()
            .unwrap()
    };
    let missing = fact(&done.facts);
    assert_eq!(missing.state, "Unverified");
    assert!(missing.message.contains("none is installed"), "{missing:?}");
    assert!(missing.message.contains("deploy/admission"), "{missing:?}");

    let mut policies = guard::guard(super::world::CONTROLLER, &Settings::default());
    policies[1]["spec"]["validationActions"] = json!(["Audit"]);
    install(&world.client, policies).await;
    let client = controller(&world).await;
    let known = guard::Known::default();
    let weak = known.standing(&client, &Settings::default()).await.fact();
    assert!(
        weak.message
            .contains("binding impound-suspects is another one"),
        "{weak:?}"
    );
}
