//! What `init` writes, and that it never touches what is there.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::tls::{Peers, TlsFiles, client_credentials, server_credentials};

#[test]
fn init_writes_the_whole_layout_with_private_keys() {
    let dir = tempfile::tempdir().unwrap();
    let written = init(dir.path(), &plan(&["k8s-worker1", "k8s-worker2"])).unwrap();
    assert!(written.iter().all(|file| file.outcome == Outcome::Created));
    let files = files(dir.path());
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "agents/k8s-worker1/controller-ca.crt",
            "agents/k8s-worker1/tls.crt",
            "agents/k8s-worker1/tls.key",
            "agents/k8s-worker2/controller-ca.crt",
            "agents/k8s-worker2/tls.crt",
            "agents/k8s-worker2/tls.key",
            "ca/agent-ca.crt",
            "ca/agent-ca.key",
            "ca/controller-ca.crt",
            "ca/controller-ca.key",
            "ca/responder-ca.crt",
            "ca/responder-ca.key",
            "controller/agent-ca.crt",
            "controller/responder-ca.crt",
            "controller/tls.crt",
            "controller/tls.key",
            "responders/alice@example.org/controller-ca.crt",
            "responders/alice@example.org/tls.crt",
            "responders/alice@example.org/tls.key",
            "signing/evidence.key",
            "signing/evidence.pub",
        ]
    );
    for (name, (mode, _)) in &files {
        let expected = if name.ends_with(".key") { 0o600 } else { 0o644 };
        assert_eq!(*mode, expected, "{name}");
    }
}

#[test]
fn what_init_wrote_is_what_each_end_loads() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &plan(&["k8s-worker1"])).unwrap();
    let agent = PeerId::agent("k8s-worker1").unwrap();
    let controller = dir.path().join("controller");
    let only_controller = Peers::Only(PeerId::Controller);
    server_credentials(
        TlsFiles::in_dir(&dir.path().join("agents/k8s-worker1"), "controller-ca.crt"),
        agent,
        only_controller.clone(),
    )
    .unwrap();
    server_credentials(
        TlsFiles::in_dir(&controller, "responder-ca.crt"),
        PeerId::Controller,
        Peers::AnyResponder,
    )
    .unwrap();
    client_credentials(
        TlsFiles::in_dir(&controller, "agent-ca.crt"),
        only_controller,
    )
    .unwrap();
    let responder = dir.path().join("responders/alice@example.org");
    let (credentials, _) = client_credentials(
        TlsFiles::in_dir(&responder, "controller-ca.crt"),
        Peers::AnyResponder,
    )
    .unwrap();
    assert_eq!(
        credentials.own().to_string(),
        "spiffe://impound.dev/responder/custodian/alice@example.org"
    );
}

#[test]
fn init_again_keeps_every_file_and_adds_the_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &plan(&["k8s-worker1"])).unwrap();
    let before = files(dir.path());
    let written = init(dir.path(), &plan(&["k8s-worker1", "k8s-worker2"])).unwrap();
    let after = files(dir.path());
    for (name, contents) in &before {
        assert_eq!(after.get(name), Some(contents), "{name} changed");
    }
    let created: Vec<_> = written
        .iter()
        .filter(|file| file.outcome == Outcome::Created)
        .map(|file| {
            file.path
                .strip_prefix(dir.path())
                .unwrap()
                .display()
                .to_string()
        })
        .collect();
    assert_eq!(
        created,
        [
            "agents/k8s-worker2/tls.key",
            "agents/k8s-worker2/tls.crt",
            "agents/k8s-worker2/controller-ca.crt",
        ]
    );
}

#[test]
fn half_a_pair_is_reported_and_never_completed() {
    for (removed, present) in [
        ("ca/agent-ca.key", "ca/agent-ca.crt"),
        ("signing/evidence.key", "signing/evidence.pub"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &plan(&[])).unwrap();
        std::fs::remove_file(dir.path().join(removed)).unwrap();
        let error = init(dir.path(), &plan(&[])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(removed) && text.contains(present), "{text}");
        assert!(!dir.path().join(removed).exists());
    }
}

#[test]
fn a_run_that_ended_between_key_and_certificate_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&["k8s-worker1"]);
    init(dir.path(), &plan).unwrap();
    let before = files(dir.path());
    for name in ["ca/agent-ca", "controller/tls", "agents/k8s-worker1/tls"] {
        let at = |extension: &str| dir.path().join(format!("{name}.{extension}"));
        std::fs::rename(at("crt"), at("crt.pending")).unwrap();
        init(dir.path(), &plan).unwrap();
        assert_eq!(files(dir.path()), before, "{name}");

        // A pending certificate of another key finishes nothing.
        std::fs::remove_file(at("crt")).unwrap();
        let other = dir.path().join("responders/alice@example.org/tls.crt");
        std::fs::copy(other, at("crt.pending")).unwrap();
        let half = init(dir.path(), &plan);
        assert!(matches!(half, Err(PkiError::HalfPair { .. })), "{half:?}");
        std::fs::remove_file(at("crt.pending")).unwrap();
        std::fs::write(at("crt"), &before[&format!("{name}.crt")].1).unwrap();
    }
    // Before the key had a name: both are made anew.
    let agent = dir.path().join("agents/k8s-worker1");
    std::fs::rename(agent.join("tls.crt"), agent.join("tls.crt.pending")).unwrap();
    std::fs::remove_file(agent.join("tls.key")).unwrap();
    init(dir.path(), &plan).unwrap();
    let after = files(dir.path());
    assert!(after.keys().eq(before.keys()));
    assert_ne!(
        after["agents/k8s-worker1/tls.crt"],
        before["agents/k8s-worker1/tls.crt"]
    );
}

#[test]
fn a_lost_public_signing_key_is_derived_again() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &plan(&[])).unwrap();
    let path = dir.path().join("signing/evidence.pub");
    let before = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    init(dir.path(), &plan(&[])).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

fn plan(nodes: &[&str]) -> Plan {
    Plan {
        nodes: nodes.iter().map(|node| node.parse().unwrap()).collect(),
        responders: vec![("alice@example.org".parse().unwrap(), crate::Role::Custodian).into()],
        controller_addresses: vec!["impound.example.org".to_owned(), "10.0.0.7".to_owned()],
        leaf_life: None,
    }
}

/// Every file below `dir`: mode and contents by relative path.
fn files(dir: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            found.insert(name, (mode, std::fs::read(&path).unwrap()));
        }
    }
    found
}

#[test]
fn fuzz_certificate_any_damage_has_an_identity_of_ours_or_none() {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &plan(&["k8s-worker1"])).unwrap();
    let seeds: Vec<Vec<u8>> = [
        "controller/tls.crt",
        "agents/k8s-worker1/tls.crt",
        "responders/alice@example.org/tls.crt",
    ]
    .iter()
    .map(|name| {
        CertificateDer::from_pem_file(dir.path().join(name))
            .unwrap()
            .to_vec()
    })
    .collect();
    impound_fuzz::run("certificate", &seeds, |_, der| {
        if let Ok(peer) = PeerId::from_certificate(&der) {
            assert_eq!(peer.to_string().parse::<PeerId>().unwrap(), peer);
        }
        let _ = PeerId::node_uid(&der);
    });
}

#[test]
fn fuzz_certificate_request_nothing_is_signed_but_for_a_key_that_signed() {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use x509_parser::prelude::{FromDer, X509Certificate};

    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &plan(&["k8s-worker1"])).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let ca = Ca::from_pem(&read("ca/agent-ca.crt"), &read("ca/agent-ca.key")).unwrap();
    let peer = PeerId::agent("k8s-worker1").unwrap();
    let good = KeyRequest::generate().unwrap().request;
    let key_of = |pem: String| {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        certificate.public_key().raw.to_vec()
    };
    let sign = |request: &[u8]| {
        let validity = Validity::from_now(time::Duration::hours(1));
        ca.certify(ProvenKey::Request(request), &peer, "uid", validity)
            .map(key_of)
    };
    let key = sign(&good).unwrap();
    impound_fuzz::run("certificate-request", &[good], |_, request| {
        // Damage outside of what is signed may remain, e.g. bytes behind the end.
        if let Ok(signed) = sign(&request) {
            assert!(signed == key, "a key was certified that did not sign");
        }
    });
}

#[test]
fn a_key_by_itself_is_certified_only_with_its_own_signature_over_what_is_expected() {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use x509_parser::prelude::{FromDer, X509Certificate};

    let ca = Ca::generate("test", Validity::from_now(CA_LIFE)).unwrap();
    let peer = PeerId::agent("k8s-worker2").unwrap();
    let signer = |pair: &KeyPair| {
        let random = SystemRandom::new();
        let der = pair.serialize_der();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der, &random).unwrap();
        move |message: &[u8]| pair.sign(&random, message).unwrap().as_ref().to_vec()
    };
    let (ours, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let key = ours.subject_public_key_info();
    let certify = |key: &[u8], signature: &[u8]| {
        let message = b"the pod's uid";
        let proven = ProvenKey::Signed {
            key,
            signature,
            message,
        };
        ca.certify(proven, &peer, "uid", Validity::from_now(LEAF_LIFE))
    };
    let good = signer(&ours)(b"the pod's uid");
    let issued = certify(&key, &good).unwrap();
    let der = CertificateDer::from_pem_slice(issued.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(certificate.public_key().raw, key);
    for wrong in [
        signer(&ours)(b"another pod's uid"),
        signer(&other)(b"the pod's uid"),
        Vec::new(),
    ] {
        certify(&key, &wrong).unwrap_err();
    }
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert_eq!(
        certify(&p384.subject_public_key_info(), &good).unwrap_err(),
        rcgen::Error::UnsupportedSignatureAlgorithm
    );
}
