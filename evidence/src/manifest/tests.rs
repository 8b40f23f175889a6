//! The manifest's one encoding, and everything that is refused.

use super::*;
use crate::chunks::Digests;

/// A manifest of a realistic collection with the given artifacts.
pub(crate) fn sample(artifacts: Vec<ArtifactRecord>) -> Manifest {
    let pod = Pod {
        namespace: "default".to_owned(),
        name: "web-5d4f-x7".to_owned(),
        uid: "0b0c3c3e-5a0e-4b1e-9d5f-6a9f0d9a5a11".to_owned(),
    };
    Manifest {
        case: "INC-1".parse().unwrap(),
        collection: "web-5d4f-x7".parse().unwrap(),
        outcome: Outcome::Complete,
        requested_by: "spiffe://impound.dev/responder/responder/ada".to_owned(),
        claimed: false,
        requester_certificate_sha256: None,
        reason: "shell in a web container".to_owned(),
        created: "2026-01-31T03:04:05.678901Z".parse().unwrap(),
        controller: Build {
            name: "impound-controller".to_owned(),
            version: "0.1.0".to_owned(),
            executable_sha256: None,
        },
        cluster: "6f2b0f6a-0d5b-4c8e-8a55-0a3f1b7f6f10".to_owned(),
        node: Node {
            name: "worker2".to_owned(),
            uid: None,
            boot_id: Some("5c8f3c4e-9d41-4e3c-8d0f-0c5c1b1f2a3b".to_owned()),
        },
        pod: pod.clone(),
        quarantine: Some("default/web-5d4f-x7".to_owned()),
        agents: vec![Agent {
            identity: "spiffe://impound.dev/agent/worker2".to_owned(),
            certificate_sha256: Sha256::of(b"certificate"),
            version: "0.1.0".to_owned(),
            executable_sha256: Some(Sha256::of(b"agent")),
            runtime: "docker".to_owned(),
            runtime_version: "20.10.24".to_owned(),
            clock_offset_ms: Some(-12),
        }],
        containers: vec![Container {
            role: ContainerRole::Suspect,
            pod,
            name: "nginx".to_owned(),
            id: "0123456789abcdef".repeat(4),
            attempt: 0,
            image: "sha256:feed".to_owned(),
            image_id: "sha256:feed".to_owned(),
            image_digest: Some("docker-pullable://nginx@sha256:beef".to_owned()),
            state: "running".to_owned(),
            created: None,
        }],
        artifacts,
        missing: Vec::new(),
        alterations: Vec::new(),
        omissions: OMISSIONS.iter().map(|text| (*text).to_owned()).collect(),
        encrypted_to: Vec::new(),
        storage: Some(StorageClaim {
            write_once: WriteOnce::NotProven,
            reason: Some("it is a directory".into()),
        }),
        custody: LogHead {
            size: 2,
            root: Sha256::of(b"root"),
        },
        timestamp: None,
    }
}

/// A record of `contents` at `path`.
pub(crate) fn record(path: &str, contents: &[u8]) -> ArtifactRecord {
    ArtifactRecord {
        path: path.parse().unwrap(),
        size: contents.len() as u64,
        sha256: Sha256::of(contents),
        chunk_root: Some(Digests::of(contents).chunk_root),
        stored: None,
        media_type: "application/octet-stream".to_owned(),
        method: Method::Export,
        api_call: "GET /containers/0123/export".to_owned(),
        source_id: "0123456789abcdef".repeat(4),
        derived_from: Vec::new(),
        consistency: Consistency::Live,
        completeness: Completeness::Complete,
        omissions: Method::Export.omissions(),
        started: Some("2026-01-31T03:04:00.000000Z".parse().unwrap()),
        finished: Some("2026-01-31T03:04:01.000000Z".parse().unwrap()),
        received_started: "2026-01-31T03:04:00.000000Z".parse().unwrap(),
        clock_offset_ms: Some(-12),
        received_finished: "2026-01-31T03:04:01.000000Z".parse().unwrap(),
        receipt: Some(StorageReceipt {
            location: format!("file:///var/lib/impound/INC-1/web-5d4f-x7/{path}"),
            version: None,
            lock: None,
            verified: "2026-01-31T03:04:02.000000Z".parse().unwrap(),
        }),
    }
}

fn two() -> Manifest {
    sample(vec![record("a/1", b"one"), record("b/2", b"two")])
}

fn refusal(bytes: &[u8]) -> String {
    Manifest::decode(bytes).unwrap_err().to_string()
}

/// The encoding with `from` replaced by `to`, once.
fn edited(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(two().encode()).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    text.replacen(from, to, 1).into_bytes()
}

#[test]
fn is_an_in_toto_statement() {
    let json: serde_json::Value = serde_json::from_slice(&two().encode()).unwrap();
    assert_eq!(json["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(json["predicateType"], "https://impound.dev/evidence/v1");
    assert_eq!(json["subject"][1]["name"], "b/2");
    assert_eq!(
        json["subject"][1]["digest"]["sha256"],
        Sha256::of(b"two").to_string()
    );
    assert_eq!(json["predicate"]["artifacts"][1]["method"], "export");
    assert_eq!(json["predicate"]["outcome"], "complete");
}

#[test]
fn decodes_to_what_was_encoded_whatever_order_it_came_in() {
    let manifest = two();
    assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    let mut turned = manifest.clone();
    turned.artifacts.reverse();
    assert_eq!(turned.encode(), manifest.encode());
    assert_eq!(manifest.artifact(&"b/2".parse().unwrap()).unwrap().size, 3);
    assert_eq!(manifest.artifact(&"b/3".parse().unwrap()), None);
}

#[test]
fn another_kind_of_statement_is_called_that() {
    assert_eq!(
        refusal(&edited(
            "https://impound.dev/evidence/v1",
            "https://slsa.dev/provenance/v1"
        )),
        "expected predicateType \"https://impound.dev/evidence/v1\", got \"https://slsa.dev/provenance/v1\""
    );
    assert_eq!(
        refusal(&edited(
            "in-toto.io/Statement/v1",
            "in-toto.io/Statement/v2"
        )),
        "expected _type \"https://in-toto.io/Statement/v1\", got \"https://in-toto.io/Statement/v2\""
    );
}

#[test]
fn subjects_and_artifacts_are_the_same_files() {
    let other = Sha256::of(b"other");
    assert_eq!(
        refusal(&edited(&Sha256::of(b"two").to_string(), &other.to_string())),
        format!(
            "subject 1 is b/2 with SHA-256 {other}, and artifact 1 is b/2 with SHA-256 {}; they must be the same files in the same order",
            Sha256::of(b"two")
        )
    );
    let mut json: serde_json::Value = serde_json::from_slice(&two().encode()).unwrap();
    json["subject"].as_array_mut().unwrap().pop();
    assert!(
        refusal(json.to_string().as_bytes())
            .starts_with("subject 1 is not there, and artifact 1 is b/2")
    );
}

#[test]
fn no_path_trick_gets_in() {
    for trick in [
        "../b",
        "/b/2",
        "b//2",
        "b/./2",
        "b/../../2",
        "b\\\\2",
        "b/2\\u0000",
        "b/\\u202e2",
    ] {
        let refused = refusal(&edited(
            "\"name\": \"b/2\"",
            &format!("\"name\": \"{trick}\""),
        ));
        assert!(
            refused.contains("evidence path: expected a relative path"),
            "{trick}: {refused}"
        );
    }
}

#[test]
fn a_path_stands_once_and_in_order() {
    let mut twice = two();
    twice.artifacts[1].path = "a/1".parse().unwrap();
    assert_eq!(
        refusal(&twice.encode()),
        "artifact 1, a/1, does not come after the one before it; artifacts are ordered by path and each stands once"
    );
}

#[test]
fn any_other_spelling_is_refused() {
    let manifest = two();
    let compact: serde_json::Value = serde_json::from_slice(&manifest.encode()).unwrap();
    for bytes in [
        compact.to_string().into_bytes(),
        [&manifest.encode()[..], b"\n"].concat(),
        edited("\"size\": 3", "\"size\":  3"),
        edited("\"reason\": \"shell", "\"reason\": \"\\u0073hell"),
        edited("\"uid\": \"0b", "\"uid\": \"0b\", \"uid\": \"0b"),
    ] {
        assert!(Manifest::decode(&bytes).is_err());
    }
    assert_eq!(
        refusal(&edited("\"size\": 3", "\"size\":  3")),
        format!(
            "its bytes are not the canonical encoding of what they say; the first difference is at byte {}",
            String::from_utf8(manifest.encode())
                .unwrap()
                .find("\"size\": 3")
                .unwrap()
                + 8
        )
    );
    assert!(refusal(&edited("\"reason\"", "\"raison\"")).contains("unknown field `raison`"));
    assert!(
        refusal(b"").starts_with("expected an in-toto Statement with an Impound manifest: EOF")
    );
    assert_eq!(
        refusal(&vec![b' '; MANIFEST_LIMIT as usize + 1]),
        "expected a manifest of at most 67108864 bytes, got 67108865"
    );
}

#[test]
fn deep_nesting_is_refused_without_overflow() {
    assert!(Manifest::decode(&vec![b'['; 1 << 20]).is_err());
    assert!(Manifest::decode("{\"_type\":".repeat(100_000).as_bytes()).is_err());
}

#[test]
fn complete_with_something_missing_is_a_contradiction() {
    let mut manifest = two();
    assert_eq!(manifest.contradictions(), []);
    manifest.artifacts[0].completeness = Completeness::incomplete("the tar breaks off");
    manifest.missing.push(Missing {
        path: "c".parse().unwrap(),
        reason: "the container is gone".to_owned(),
    });
    let found: Vec<_> = manifest
        .contradictions()
        .into_iter()
        .map(|(path, text)| format!("{} {text}", path.unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            "a/1 is incomplete, and yet the manifest says the collection is complete",
            "c is missing, and yet the manifest says the collection is complete"
        ]
    );
    manifest.outcome = Outcome::Partial;
    assert_eq!(manifest.contradictions(), []);
}

#[test]
fn a_broken_attempt_beside_the_whole_artifact_leaves_the_collection_complete() {
    let broken = |path: &str| ArtifactRecord {
        completeness: Completeness::incomplete("the tar breaks off"),
        ..record(path, b"o")
    };
    let complaints = |artifacts| {
        let mut manifest = sample(artifacts);
        manifest.artifacts.sort_by(|a, b| a.path.cmp(&b.path));
        manifest.contradictions().len()
    };
    let whole = || record("a/1", b"one");
    assert_eq!(complaints(vec![whole(), broken("a/1.partial-1")]), 0);
    assert_eq!(
        complaints(vec![
            whole(),
            broken("a/1.partial-2"),
            broken("a/1.partial-10")
        ]),
        0
    );
    assert_eq!(complaints(vec![broken("a/1.partial-1")]), 1);
    assert_eq!(complaints(vec![broken("a/1"), broken("a/1.partial-1")]), 2);
    for other in [
        "a/1.partial-0",
        "a/1.partial-01",
        "a/1.partial-",
        "a/1.partial-1x",
        "b/1.partial-1",
        "a/1.partial-1.partial-1",
    ] {
        assert_eq!(complaints(vec![whole(), broken(other)]), 1, "{other}");
    }
}
