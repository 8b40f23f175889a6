//! Everybody who must not get in or through, tried over real TLS at all three ports: the controller's, the
//! issuer's, and an agent's. Each is refused, is logged once, and causes no call to the Kubernetes API (but the
//! reviews of its token) and none to the runtime.

mod scene;
mod stranger;
mod tokens;

use std::time::Duration;

use impound_controller::issue;
use impound_controller::service::AUDIENCE;
use impound_proto::controller::v1 as wire;
use impound_proto::pki::KeyRequest;
use impound_proto::{PeerId, Role};
use serde_json::json;
use tokio::net::TcpStream;
use tonic::Code;

use scene::{Ending, NODE, Port, Scene};
use stranger::{Shown, two_names};

#[tokio::test]
async fn whoever_must_not_get_in_is_refused_logged_once_and_costs_no_call() {
    let mut scene = Scene::start().await;
    let ending = scene.connected_for_a_while().await;
    handshakes_with_an_agent(&mut scene).await;
    handshakes_with_the_controller(&mut scene).await;
    calls_without_an_identity(&mut scene).await;
    calls_of_too_low_a_role(&mut scene).await;
    calls_outside_of_what_was_granted(&mut scene).await;
    calls_that_are_too_much(&mut scene).await;
    certificates_from_the_issuer(&mut scene).await;
    floods(&mut scene).await;
    calls_after_the_certificates_end(&mut scene, ending).await;
    let (refused, lines) = (scene.refused, scene.refusals_logged());
    scene.everybody_else_is_let_in().await;
    println!("refused access: {refused} cases, {refused} refused, {lines} lines in the logs");
    assert!(refused >= 30, "{refused} cases");
    assert_eq!(lines, refused, "each is logged once");
}

async fn handshakes_with_an_agent(scene: &mut Scene) {
    let (controller, node) = (PeerId::Controller, PeerId::agent(NODE).unwrap());
    let alice = PeerId::responder("alice", Role::Custodian).unwrap();
    let other = PeerId::agent("k8s-worker3").unwrap();
    let signed = |ca: &str, peer: &PeerId| Shown::certificate(scene.issue(ca, peer));
    let cases = [
        (
            "no certificate",
            "presented no certificate",
            Shown::nothing(),
        ),
        (
            "an expired certificate",
            "certificate expired",
            Shown::certificate(scene.expired("controller-ca", &controller)),
        ),
        (
            "a certificate that is not valid yet",
            "not valid yet",
            Shown::certificate(scene.early("controller-ca", &controller)),
        ),
        (
            "a self-signed certificate",
            "UnknownIssuer",
            Shown::certificate(stranger::self_signed(&controller)),
        ),
        (
            "a certificate of the responder CA",
            "UnknownIssuer",
            signed("responder-ca", &controller),
        ),
        (
            "a certificate of the agent CA",
            "UnknownIssuer",
            signed("agent-ca", &controller),
        ),
        (
            "a responder's name",
            "found spiffe://impound.dev/responder/custodian/alice",
            signed("controller-ca", &alice),
        ),
        (
            "the agent's own certificate as client",
            "extended key usage",
            signed("agent-ca", &node),
        ),
        (
            "another node's agent as client",
            "extended key usage",
            signed("agent-ca", &other),
        ),
        (
            "an agent's name of the controller CA",
            "extended key usage",
            signed("controller-ca", &node),
        ),
        (
            "two names",
            "exactly one URI",
            Shown::certificate(two_names(&scene.ca("controller-ca"))),
        ),
        (
            "TLS 1.2",
            "incompatible",
            signed("controller-ca", &controller).with_tls12(),
        ),
        (
            "no HTTP/2",
            "application protocol h2",
            signed("controller-ca", &controller).without_h2(),
        ),
    ];
    for (what, why, shown) in cases {
        let at = scene.address(Port::Agent);
        let dns = node.dns_name().unwrap();
        let attempt = stranger::knock(at, &dns, scene.root("agent-ca"), shown);
        scene.refuses(Port::Agent, what, why, attempt).await;
    }
    // A session that was opened with a good certificate is of no use without it.
    let at = scene.address(Port::Agent);
    let dns = node.dns_name().unwrap();
    let good = scene.issue("controller-ca", &controller);
    let resumed = stranger::resume(at, &dns, scene.root("agent-ca"), good).await;
    scene
        .refuses(
            Port::Agent,
            "a resumed session",
            "presented no certificate",
            resumed,
        )
        .await;
    // The other way round: the controller wants another node's agent, and gets this one.
    let attempt = scene.controller_wants(&other, at);
    scene
        .refuses(Port::Agent, "an agent of another node", "alert", attempt)
        .await;
    let plain = stranger::plain(at);
    scene
        .refuses(Port::Agent, "no TLS at all", "corrupt message", plain)
        .await;
}

async fn handshakes_with_the_controller(scene: &mut Scene) {
    let alice = PeerId::responder("alice", Role::Custodian).unwrap();
    let (controller, node) = (PeerId::Controller, PeerId::agent(NODE).unwrap());
    let signed = |ca: &str, peer: &PeerId| Shown::certificate(scene.issue(ca, peer));
    let named = |name: &str| Shown::certificate(stranger::named(&scene.ca("responder-ca"), name));
    let cases = [
        (
            "an expired certificate",
            "certificate expired",
            Shown::certificate(scene.expired("responder-ca", &alice)),
        ),
        (
            "a certificate that is not valid yet",
            "not valid yet",
            Shown::certificate(scene.early("responder-ca", &alice)),
        ),
        (
            "a self-signed certificate",
            "UnknownIssuer",
            Shown::certificate(stranger::self_signed(&alice)),
        ),
        (
            "a certificate of the controller CA",
            "UnknownIssuer",
            signed("controller-ca", &alice),
        ),
        (
            "an agent's certificate as client",
            "extended key usage",
            signed("agent-ca", &node),
        ),
        (
            "the controller's name of the responder CA",
            "found spiffe://impound.dev/controller",
            signed("responder-ca", &controller),
        ),
        (
            "a role that there is not",
            "expected the role",
            named("spiffe://impound.dev/responder/admin/eve"),
        ),
        (
            "a grant of every namespace by a star",
            "names of namespaces",
            named("spiffe://impound.dev/responder/viewer/eve/namespaces/*"),
        ),
        (
            "two names",
            "exactly one URI",
            Shown::certificate(two_names(&scene.ca("responder-ca"))),
        ),
        (
            "no HTTP/2",
            "application protocol h2",
            signed("responder-ca", &alice).without_h2(),
        ),
    ];
    let dns = controller.dns_name().unwrap();
    for (what, why, shown) in cases {
        let at = scene.address(Port::Controller);
        let attempt = stranger::knock(at, &dns, scene.root("controller-ca"), shown);
        scene.refuses(Port::Controller, what, why, attempt).await;
    }
}

async fn calls_without_an_identity(scene: &mut Scene) {
    let api = scene.token_of("kubernetes", "https://kubernetes.default.svc");
    let issuers = scene.token_of("kubernetes", issue::AUDIENCE);
    let gone = scene.token_of_a_deleted_pod().await;
    let huge = "t".repeat((15 << 10) + 1);
    let cases = [
        ("neither certificate nor token", "no token", String::new()),
        (
            "a token of nobody",
            "invalid bearer token",
            "Bearer rubbish".to_owned(),
        ),
        (
            "a token for the API server",
            "audience",
            format!("Bearer {api}"),
        ),
        (
            "a token for the issuer",
            "audience",
            format!("Bearer {issuers}"),
        ),
        (
            "a token of a deleted pod",
            "invalidated",
            format!("Bearer {gone}"),
        ),
        (
            "a token that is too large",
            "bytes",
            format!("Bearer {huge}"),
        ),
        (
            "a password",
            "authorization: Bearer TOKEN",
            "Basic YWRhOmFkYQ==".to_owned(),
        ),
    ];
    for (what, why, header) in cases {
        let caller = scene.stranger(&header).await;
        let attempt = caller.list_quarantines("");
        scene
            .denies(what, Code::Unauthenticated, why, attempt)
            .await;
    }
    let token = scene.token_of("soar", AUDIENCE);
    let both = scene
        .responder("alice")
        .await
        .with(&format!("Bearer {token}"));
    scene
        .denies(
            "certificate and token",
            Code::Unauthenticated,
            "one of them",
            both.list_quarantines(""),
        )
        .await;
}

async fn calls_of_too_low_a_role(scene: &mut Scene) {
    let denied = Code::PermissionDenied;
    let namespace = scene.namespace();
    let viewer = scene.responder("eve").await;
    for (what, attempt) in [
        ("a viewer quarantines", viewer.quarantine(&namespace)),
        ("a viewer tries it out", viewer.quarantine_dry(&namespace)),
        ("a viewer releases", viewer.release(&namespace)),
        ("a viewer plans a release", viewer.plan_release(&namespace)),
        ("a viewer collects", viewer.collect(&namespace)),
        ("a viewer has evidence verified", viewer.verify_evidence()),
        ("a viewer reads evidence", viewer.read_evidence()),
    ] {
        scene
            .denies(what, denied, "the certificate has viewer", attempt)
            .await;
    }
    let responder = scene.responder("alice").await;
    for (what, attempt) in [
        ("a responder reads evidence", responder.read_evidence()),
        ("a responder puts a hold on evidence", responder.hold(false)),
        ("a responder lifts a hold", responder.hold(true)),
    ] {
        scene
            .denies(what, denied, "the certificate has responder", attempt)
            .await;
    }
}

async fn calls_outside_of_what_was_granted(scene: &mut Scene) {
    let denied = Code::PermissionDenied;
    let namespace = scene.namespace();
    let limited = |role| {
        let shop = impound_proto::Namespaces::only(["shop"]).unwrap();
        PeerId::responder_in("bob", role, shop).unwrap()
    };
    let bob = scene.caller(&limited(Role::Custodian)).await;
    for (what, attempt) in [
        (
            "quarantine in a namespace that is not granted",
            bob.quarantine(&namespace),
        ),
        ("collect there", bob.collect(&namespace)),
        ("release there", bob.release(&namespace)),
        ("look there", bob.get_quarantine(&namespace)),
        (
            "follow what happens there",
            bob.watch_collection(&namespace),
        ),
        ("list all namespaces", bob.list_quarantines("")),
        ("list a node's containers", bob.list_containers()),
        (
            "read evidence, which is of several namespaces",
            bob.read_evidence(),
        ),
        ("list evidence", bob.list_evidence()),
        ("have evidence verified", bob.verify_evidence()),
        ("put a hold on evidence", bob.hold(false)),
        ("lift a hold", bob.hold(true)),
        ("begin a sweep of the granted namespace", bob.sweep("shop")),
        ("list sweeps", bob.list_sweeps()),
        ("see a sweep", bob.get_sweep()),
        ("follow a sweep", bob.watch_sweep()),
        ("list a sweep's pods", bob.list_sweep_targets()),
        ("cancel a sweep", bob.set_sweep()),
        (
            "quarantine in the granted namespace, and end others' pods for good",
            bob.quarantine_and_evict_unmanaged("shop"),
        ),
        (
            "quarantine there, and let others' data go",
            bob.quarantine_and_delete_data("shop"),
        ),
    ] {
        scene.denies(what, denied, "granted are", attempt).await;
    }
    let nobody = scene
        .stranger(&format!("Bearer {}", scene.token_of("nobody", AUDIENCE)))
        .await;
    let viewer = scene
        .stranger(&format!("Bearer {}", scene.token_of("looker", AUDIENCE)))
        .await;
    let soar = scene
        .stranger(&format!("Bearer {}", scene.token_of("soar", AUDIENCE)))
        .await;
    let warden = scene
        .stranger(&format!("Bearer {}", scene.token_of("warden", AUDIENCE)))
        .await;
    for (what, attempt) in [
        (
            "a token whose user was granted nothing",
            nobody.list_quarantines(&namespace),
        ),
        (
            "a token of a viewer quarantines",
            viewer.quarantine(&namespace),
        ),
        (
            "a token of a responder in another namespace",
            soar.quarantine("kube-system"),
        ),
        (
            "a token of a responder in one namespace lists all",
            soar.list_quarantines(""),
        ),
        (
            "a token of a responder reads evidence",
            soar.read_evidence(),
        ),
        (
            "a token of a custodian in one namespace reads evidence",
            warden.read_evidence(),
        ),
        ("and lists it", warden.list_evidence()),
        ("and puts a hold on it", warden.hold(false)),
        ("and lists a node's containers", warden.list_containers()),
    ] {
        scene
            .denies(what, denied, "roles.impound.dev", attempt)
            .await;
    }
}

async fn calls_that_are_too_much(scene: &mut Scene) {
    let namespace = scene.namespace();
    let alice = scene.responder("alice").await;
    let large = alice.quarantine_with_reason(&namespace, "r".repeat(300 << 10));
    scene
        .denies(
            "a message that is too large",
            Code::OutOfRange,
            "too large",
            large,
        )
        .await;
    let fast = scene
        .caller(&PeerId::responder("fast", Role::Viewer).unwrap())
        .await;
    scene
        .denies(
            "too many calls a second",
            Code::ResourceExhausted,
            "calls a second",
            fast.calls_without_pause(),
        )
        .await;
    let busy = scene
        .caller(&PeerId::responder("busy", Role::Viewer).unwrap())
        .await;
    scene
        .denies(
            "too many calls at the same time",
            Code::ResourceExhausted,
            "at the same time",
            busy.streams_that_stay_open(),
        )
        .await;
}

async fn certificates_from_the_issuer(scene: &mut Scene) {
    let pod = scene.agent_pod().await;
    let good = scene
        .service_account_token("impound-agent", issue::AUDIENCE, Some(&pod))
        .await;
    let key = KeyRequest::generate().unwrap().request;
    scene.issuer_gives(&good, key).await.unwrap();
    let rogue = scene.rogue_pod().await;
    let api = "https://kubernetes.default.svc";
    let cases = [
        ("a replayed token", "was used before", good),
        (
            "a token of nobody",
            "invalid bearer token",
            "rubbish".to_owned(),
        ),
        (
            "a token for the API server",
            "audience",
            scene
                .service_account_token("impound-agent", api, Some(&pod))
                .await,
        ),
        (
            "a token of another service account",
            "expected a token of",
            scene
                .service_account_token("other", issue::AUDIENCE, Some(&pod))
                .await,
        ),
        (
            "a token of no pod",
            "does not say its pod-name",
            scene
                .service_account_token("impound-agent", issue::AUDIENCE, None)
                .await,
        ),
        (
            "a token of a pod that is none of ours",
            "does not belong to the DaemonSet",
            scene
                .service_account_token("impound-agent", issue::AUDIENCE, Some(&rogue))
                .await,
        ),
    ];
    for (what, why, token) in cases {
        let attempt = scene.issuer_gives(&token, KeyRequest::generate().unwrap().request);
        scene.refuses(Port::Issuer, what, why, attempt).await;
    }
    let attempt = scene.issuer_gives("t", vec![0x30; 5 << 10]);
    scene
        .refuses(
            Port::Issuer,
            "a request that is too large",
            "certificate_request",
            attempt,
        )
        .await;
}

/// As many from one address that say nothing as are let wait, and one: it is one too many, and the others are not
/// waited for without end.
async fn floods(scene: &mut Scene) {
    const ENOUGH: usize = 16;
    let at = scene.address(Port::Controller);
    let mut silent = Vec::new();
    for _ in 0..ENOUGH {
        silent.push(TcpStream::connect(at).await.unwrap());
    }
    // Somebody else may have had one of the places for a moment, so that it is not the first that is too many.
    let attempt = async {
        for _ in 0..4 {
            let mut stream = TcpStream::connect(at).await.unwrap();
            let cut = tokio::time::timeout(Duration::from_secs(1), stranger::silent(&mut stream));
            match cut.await {
                Ok(cut) => return cut,
                Err(_) => silent.push(stream),
            }
        }
        Ok(())
    };
    scene
        .refuses(
            Port::Controller,
            "one handshake too many",
            "too many unfinished handshakes",
            attempt,
        )
        .await;
    let cut = async move {
        let all = futures::future::join_all(silent.iter_mut().map(stranger::silent)).await;
        all.into_iter()
            .collect::<Result<Vec<()>, String>>()
            .map(drop)
    };
    scene
        .refuse(
            ENOUGH,
            Port::Controller,
            "handshakes that nobody finishes",
            "no complete handshake",
            cut,
        )
        .await;
}

/// The connections stay open: what ends is the right to call.
async fn calls_after_the_certificates_end(scene: &mut Scene, ending: Ending) {
    tokio::time::sleep_until(ending.over).await;
    let attempt = ending.list_the_agents_containers();
    let what = "the controller's certificate has ended since the handshake";
    let why = "connect again with a new one";
    scene.refuses(Port::Agent, what, why, attempt).await;
    let attempt = ending.caller.list_quarantines("");
    let what = "a responder's certificate has ended since the handshake";
    let code = Code::Unauthenticated;
    scene.denies(what, code, "certificate", attempt).await;
}

/// Objects of the roles and bindings that the callers with tokens have.
fn binding(kind: &str, name: &str, role: &str, user: &str) -> serde_json::Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user }],
    })
}

/// A request to contain a pod that there is not.
fn quarantine(namespace: &str, reason: String, dry_run: bool) -> wire::CreateQuarantineRequest {
    wire::CreateQuarantineRequest {
        namespace: namespace.into(),
        pod: "nginx".into(),
        case_id: "INC-1".into(),
        reason,
        dry_run,
        ..Default::default()
    }
}
