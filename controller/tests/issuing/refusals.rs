//! Who gets no certificate.

use impound_controller::issue::AUDIENCE;
use impound_controller::revoked::CONFIG_MAP;
use impound_proto::PeerId;
use impound_proto::pki::KeyRequest;
use serde_json::{Value, json};
use time::Duration;
use tonic::Code;

use crate::world::{NAMESPACE, NODE, World};

const LIFE: Duration = Duration::hours(12);

#[tokio::test]
async fn a_token_that_is_not_for_the_issuer_or_of_nobody_we_know_is_refused() {
    let world = World::start(LIFE).await;
    let pod = world.agent_pod().await;
    world
        .refuses("rubbish", Code::Unauthenticated, "invalid bearer token")
        .await;
    let api_token = world
        .token(
            "impound-agent",
            "https://kubernetes.default.svc",
            Some(&pod),
        )
        .await;
    world
        .refuses(&api_token, Code::Unauthenticated, "audience")
        .await;
    let other = world.token("other", AUDIENCE, Some(&pod)).await;
    world
        .refuses(
            &other,
            Code::PermissionDenied,
            "expected a token of system:serviceaccount:impound-system:impound-agent",
        )
        .await;
    let unbound = world.token("impound-agent", AUDIENCE, None).await;
    world
        .refuses(
            &unbound,
            Code::PermissionDenied,
            "does not say its pod-name",
        )
        .await;
}

#[tokio::test]
async fn a_pod_that_is_not_of_the_daemon_set_gets_no_certificate_though_its_token_is_genuine() {
    let world = World::start(LIFE).await;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let rogue = world
        .post(
            &path,
            json!({"metadata": {"name": "rogue"}, "spec": {"serviceAccountName": "impound-agent",
                "nodeName": NODE, "containers": [{"name": "c", "image": "busybox:1"}]}}),
        )
        .await;
    let token = world.token("impound-agent", AUDIENCE, Some(&rogue)).await;
    world
        .refuses(
            &token,
            Code::PermissionDenied,
            "does not belong to the DaemonSet impound-system/impound-agent",
        )
        .await;
}

#[tokio::test]
async fn a_token_of_a_deleted_pod_is_refused() {
    let world = World::start(LIFE).await;
    let pod = world.agent_pod().await;
    let token = world.token("impound-agent", AUDIENCE, Some(&pod)).await;
    let name = pod["metadata"]["name"].as_str().unwrap();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}?gracePeriodSeconds=0");
    world.ask("DELETE", &path, &Value::Null).await.unwrap();
    world
        .refuses(&token, Code::Unauthenticated, "invalidated")
        .await;
}

#[tokio::test]
async fn a_copied_token_is_of_no_use_with_another_key() {
    let world = World::start(LIFE).await;
    let token = world.good_token().await;
    let request = KeyRequest::generate().unwrap().request;
    world.issue(&token, request.clone()).await.unwrap();
    world
        .refuses(&token, Code::PermissionDenied, "was used before")
        .await;
    world
        .issue(&token, request)
        .await
        .expect("an answer that was lost can be had again");
}

#[tokio::test]
async fn a_revoked_node_gets_no_certificate_until_it_is_taken_off_the_list() {
    let world = World::start(LIFE).await;
    let path = format!("/api/v1/nodes/{NODE}");
    let node = world.ask("GET", &path, &Value::Null).await.unwrap();
    let uid = node["metadata"]["uid"].as_str().unwrap().to_owned();
    world.revoke(&uid, "rootkit found").await;
    let token = world.good_token().await;
    world
        .refuses(&token, Code::PermissionDenied, "is revoked: rootkit found")
        .await;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{CONFIG_MAP}");
    world.ask("DELETE", &path, &Value::Null).await.unwrap();
    world
        .until("the list without it", || async {
            world.revoked.reason(&uid).is_none().then_some(())
        })
        .await;
    world
        .issue(&token, KeyRequest::generate().unwrap().request)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_no_certificate_request_or_too_large_is_refused_before_anybody_is_asked() {
    let world = World::start(LIFE).await;
    let token = world.good_token().await;
    let reviews = || {
        let requests = world.cluster.requests();
        requests
            .iter()
            .filter(|request| request.path.contains("tokenreviews"))
            .count()
    };
    for (token, request, reason) in [
        ("", vec![1; 100], "token: expected 1 to"),
        (&*"t".repeat(17 << 10), vec![1; 100], "token: expected 1 to"),
        (&*token, Vec::new(), "certificate_request: expected 1 to"),
        (
            &*token,
            vec![0x30; 5 << 10],
            "certificate_request: expected 1 to",
        ),
    ] {
        let status = world.issue(token, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(reason), "{status}");
    }
    assert_eq!(reviews(), 0);
    let huge = world
        .issue(&"t".repeat(64 << 10), vec![1])
        .await
        .unwrap_err();
    assert!(
        matches!(huge.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{huge}"
    );
    let mut broken = KeyRequest::generate().unwrap().request;
    *broken.last_mut().unwrap() ^= 1;
    for request in [vec![0x30, 0x03, 1, 2, 3], broken] {
        let status = world.issue(&token, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("PKCS#10"), "{status}");
    }
}

#[tokio::test]
async fn names_in_the_request_are_ignored() {
    let world = World::start(LIFE).await;
    // A request that asks to be the controller: rcgen writes its names into it.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params =
        rcgen::CertificateParams::new(vec!["controller.impound.internal".into()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let request = params.serialize_request(&key).unwrap().der().to_vec();
    let issued = world
        .issue(&world.good_token().await, request)
        .await
        .unwrap();
    let der = pem(&issued.certificate);
    assert_eq!(
        PeerId::from_certificate(&der).unwrap(),
        PeerId::agent(NODE).unwrap()
    );
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
    let names = format!(
        "{:?}",
        parsed.subject_alternative_name().unwrap().unwrap().value
    );
    assert!(!names.contains("controller"), "{names}");
}

fn pem(text: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::from_pem_slice(text.as_bytes())
        .unwrap()
        .to_vec()
}
