//! `impound verify`: offline, with nothing but a directory and a public key.

use std::fs;
use std::path::Path;

use impound_evidence::SigningKey;

use crate::collection::Collection;
use crate::fake::{Ran, impound};

struct Signed {
    collection: Collection,
    key: tempfile::NamedTempFile,
}

fn signed() -> Signed {
    let secret = tempfile::NamedTempFile::new().unwrap();
    let pair = SigningKey::generate().unwrap();
    fs::write(secret.path(), pair.to_pem().unwrap().as_str()).unwrap();
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(key.path(), pair.verifying_key().to_pem().unwrap()).unwrap();
    Signed {
        collection: Collection::sealed(secret.path()),
        key,
    }
}

fn verify(directory: &Path, key: &Path, more: &[&str]) -> Ran {
    let base = [
        "verify",
        directory.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
    ];
    Ran::from(impound(&[&base, more].concat()).output().unwrap())
}

impl Signed {
    fn directory(&self) -> &Path {
        self.collection.directory.path()
    }

    fn verify(&self, more: &[&str]) -> Ran {
        verify(self.directory(), self.key.path(), more)
    }
}

#[test]
fn intact_and_complete_exits_with_0_and_says_what_it_is() {
    let signed = signed();
    let ran = signed.verify(&[]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let head = format!(
        "{} is intact and complete: 7 files, ",
        signed.directory().display()
    );
    assert!(ran.out.starts_with(&head), "{}", ran.out);
    for said in [
        "INC-7, collection web-5d4f-x7",
        "default/web-5d4f-x7",
        "worker2",
        "3 entries until the seal, all signed for",
    ] {
        assert!(ran.out.contains(said), "{said} is not in {}", ran.out);
    }
}

#[test]
fn intact_but_partial_exits_with_3_and_says_what_is_not_here() {
    let mut signed = signed();
    signed.collection.make_partial();
    let ran = signed.verify(&[]);
    assert_eq!((ran.code, ran.err.as_str()), (3, ""), "{ran:?}");
    assert!(ran.out.contains("is intact, but PARTIAL"), "{}", ran.out);
    assert!(
        ran.out.contains("not here      artifacts/worker2/default_web-5d4f-x7/sidecar: missing: the container was gone"),
        "{}",
        ran.out
    );
}

#[test]
fn not_intact_exits_with_1_and_names_the_first_thing_wrong_or_all() {
    let signed = signed();
    fs::write(signed.directory().join("before/pod.json"), "{}").unwrap();
    fs::write(signed.directory().join("planted"), "x").unwrap();
    let dir = signed.directory().display();
    let ran = signed.verify(&[]);
    assert_eq!(
        (ran.code, ran.out, ran.err.as_str()),
        (
            1,
            format!(
                "{dir} is NOT INTACT\n  before/pod.json: expected 14 bytes, got 2\n  and 1 more; --all names them\n"
            ),
            ""
        )
    );
    let ran = signed.verify(&["--all"]);
    assert_eq!(
        (ran.code, ran.out),
        (
            1,
            format!(
                "{dir} is NOT INTACT\n  before/pod.json: expected 14 bytes, got 2\n  planted: is there and not in the manifest\n"
            )
        )
    );
    let ran = signed.verify(&["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (ran.code, &json["intact"], &json["moreProblems"]),
        (1, &false.into(), &1.into())
    );
    assert_eq!(json["problems"][0]["path"], "before/pod.json");
}

#[test]
fn a_secret_key_or_no_key_is_refused_without_being_repeated() {
    let signed = signed();
    let secret = tempfile::NamedTempFile::new().unwrap();
    let pem = SigningKey::generate().unwrap().to_pem().unwrap();
    fs::write(secret.path(), pem.as_str()).unwrap();
    let ran = verify(signed.directory(), secret.path(), &[]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err
            .contains("expected an EC P-256 public key in SPKI PEM"),
        "{}",
        ran.err
    );
    assert!(!ran.err.contains(pem.lines().nth(1).unwrap()));
    let ran = verify(signed.directory(), Path::new("/nonexistent"), &[]);
    assert_eq!(
        (ran.code, ran.err.contains("/nonexistent: ")),
        (2, true),
        "{}",
        ran.err
    );
}

#[test]
fn a_directory_that_is_none_is_refused() {
    let signed = signed();
    let ran = verify(Path::new("/nonexistent"), signed.key.path(), &[]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err
            .contains("expected the directory of a collection, the one that holds manifest.json"),
        "{}",
        ran.err
    );
    // The case's directory instead of the collection's.
    let case = tempfile::tempdir().unwrap();
    std::fs::create_dir(case.path().join("web-5d4f-x7")).unwrap();
    let ran = verify(case.path(), signed.key.path(), &[]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.out.contains("manifest.sigstore.json: is not there"),
        "{}",
        ran.out
    );
}

#[test]
fn what_the_authority_says_is_shown_with_its_certificate_and_called_unchecked_without() {
    let stamped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../evidence/tests/stamped");
    let (good, key) = (stamped.join("good"), stamped.join("evidence.pub"));
    let ca = [
        "--timestamp-ca",
        stamped.join("authority.pem").to_str().unwrap(),
    ]
    .map(str::to_owned);
    let ca = [ca[0].as_str(), ca[1].as_str()];
    let ran = verify(&good, &key, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.contains("timestamp     not checked: one of 20"),
        "{}",
        ran.out
    );
    let ran = verify(&good, &key, &ca);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out
            .contains("timestamp     the authority says that it existed at 20"),
        "{}",
        ran.out
    );
    let json = verify(&good, &key, &[&ca[..], &["-o", "json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["timestamp"]["state"], "good");
    let ran = verify(&stamped.join("signed-by-another-authority"), &key, &ca);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out
            .contains("the time-stamp's signer is not to be trusted"),
        "{}",
        ran.out
    );
    let ran = verify(&good, &key, &["--timestamp-ca", key.to_str().unwrap()]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .contains("expected certificates of a time-stamping authority"),
        "{ran:?}"
    );
}

#[test]
fn a_list_of_no_keys_is_no_verdict() {
    let signed = signed();
    let empty = tempfile::NamedTempFile::new().unwrap();
    fs::write(empty.path(), r#"{"keys": []}"#).unwrap();
    let ran = verify(signed.directory(), empty.path(), &[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .contains("expected at least one key, and it lists none"),
        "{ran:?}"
    );
}
