//! `impound custody`, `evidence sign` and `pki rotate-signing-key`: offline, on a real collection.

use std::path::Path;
use std::process::Command;

use impound_evidence::{BUNDLE, CHECKPOINT, CUSTODY, MANIFEST, SigningKey, sign_manifest};

use crate::collection::Collection;

fn impound(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_impound"))
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A collection, its directory, and its public key's file.
fn sealed() -> (Collection, String, String, tempfile::TempDir) {
    let keys = tempfile::tempdir().unwrap();
    let (secret, key) = (
        keys.path().join("evidence.key"),
        keys.path().join("evidence.pub"),
    );
    let signing = SigningKey::generate().unwrap();
    std::fs::write(&secret, signing.to_pem().unwrap().as_bytes()).unwrap();
    std::fs::write(&key, signing.verifying_key().to_pem().unwrap()).unwrap();
    let collection = Collection::sealed(&secret);
    let dir = collection.directory.path().display().to_string();
    (collection, dir, key.display().to_string(), keys)
}

fn at(dir: &str, name: &str) -> String {
    Path::new(dir).join(name).display().to_string()
}

#[test]
fn a_log_is_shown_checked_and_proved_to_go_on() {
    let (mut collection, dir, key, keys) = sealed();
    let old = keys.path().join("old");
    std::fs::copy(at(&dir, CHECKPOINT), &old).unwrap();
    collection.go_on();
    let (code, shown, _) = impound(&["custody", "show", &dir]);
    assert_eq!(code, 0);
    assert_eq!(shown.matches("stored").count(), 3, "{shown}");
    assert!(shown.contains("exported"), "{shown}");
    let old = old.display().to_string();
    let proofs = ["--inclusion", "2", "--consistency", &old];
    let verify = ["custody", "verify", &dir, "--key", &key];
    let (code, said, err) = impound(&[&verify[..], &proofs].concat());
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        said.contains("impound.dev/INC-7 is intact: 4 entries"),
        "{said}"
    );
    assert!(said.contains("entry 2 is in it"), "{said}");
    assert!(
        said.contains("it only grew since it had 3 entries"),
        "{said}"
    );
    let (code, _, err) = impound(&[&verify[..], &["--inclusion", "4"]].concat());
    assert_eq!(code, 6);
    assert!(err.contains("there is no entry 4; the log has 4"), "{err}");

    collection.cut_log();
    let (code, _, err) = impound(&[&verify[..], &["--consistency", &old]].concat());
    assert_eq!(code, 1);
    assert!(
        err.contains(
            "NOT CONTINUED: custody.jsonl: the checkpoint covers 3 entries, and only 1 are there"
        ),
        "{err}"
    );
    let log = collection.read(CUSTODY).unwrap();
    collection.write(CUSTODY, &[&log[..], b"{}\n"].concat());
    let (code, _, err) = impound(&verify);
    assert_eq!(code, 1);
    assert!(err.contains("NOT INTACT: custody.jsonl: line 2"), "{err}");
}

#[test]
fn somebody_vouches_for_a_collection_with_a_key_of_their_own() {
    let (collection, dir, key, keys) = sealed();
    let ada = SigningKey::generate().unwrap();
    let (secret, public) = (keys.path().join("ada.key"), keys.path().join("ada.pub"));
    std::fs::write(&secret, ada.to_pem().unwrap().as_bytes()).unwrap();
    std::fs::write(&public, ada.verifying_key().to_pem().unwrap()).unwrap();
    let (secret, public) = (secret.display().to_string(), public.display().to_string());
    let verify = ["verify", &dir, "--key", &key];
    let wanted = [&verify[..], &["--countersigned-by", &public]].concat();
    assert_eq!(impound(&wanted).0, 1, "nobody has vouched for it yet");
    let sign = ["evidence", "sign", &dir, "--key", &key, "--with", &secret];
    let (code, said, err) = impound(&sign);
    assert_eq!((code, err.as_str()), (0, ""), "{said}");
    let asked = format!("\n  impound verify {dir} --key {key} --countersigned-by {public}\n");
    assert!(said.ends_with(&asked), "{said}");
    let id = ada.verifying_key().key_id();
    let (code, said, _) = impound(&wanted);
    assert_eq!(code, 0);
    assert!(said.contains(&format!("with {id}")), "{said}");
    let (code, said, _) = impound(&verify);
    assert_eq!(code, 0);
    assert!(said.contains("its key was not given"), "{said}");
    let (code, _, err) = impound(&sign);
    assert_eq!(code, 2);
    assert!(err.contains("this key has signed it already"), "{err}");
    // Who vouches can't stand for the controller.
    let bundle = collection.read(BUNDLE).unwrap();
    let by_ada = sign_manifest(&collection.read(MANIFEST).unwrap(), &ada).unwrap();
    collection.write(BUNDLE, &by_ada);
    let (code, said, _) = impound(&wanted);
    assert_eq!(code, 1);
    assert!(
        said.contains("was given as the key of somebody who vouches"),
        "{said}"
    );
    collection.write(BUNDLE, &bundle);

    collection.write("before/pod.json", b"{}");
    let other = keys.path().join("other.key");
    std::fs::write(
        &other,
        SigningKey::generate().unwrap().to_pem().unwrap().as_bytes(),
    )
    .unwrap();
    let other = other.display().to_string();
    let (code, _, err) = impound(&["evidence", "sign", &dir, "--key", &key, "--with", &other]);
    assert_eq!(code, 1);
    assert!(err.contains("NOT INTACT and was not signed"), "{err}");
}

#[test]
fn evidence_is_still_verified_after_its_key_was_replaced() {
    let (_collection, dir, key, keys) = sealed();
    let signing = keys.path().join("signing");
    std::fs::create_dir(&signing).unwrap();
    let file = |name: &str| signing.join(name);
    std::fs::copy(keys.path().join("evidence.key"), file("evidence.key")).unwrap();
    std::fs::copy(&key, file("evidence.pub")).unwrap();
    let public = std::fs::read_to_string(&key).unwrap();
    let pki = keys.path().display().to_string();
    for _ in 0..2 {
        let (code, _, err) = impound(&["pki", "rotate-signing-key", &pki]);
        assert_eq!((code, err.as_str()), (0, ""));
    }
    let new = std::fs::read_to_string(file("evidence.pub")).unwrap();
    assert_ne!(new, public);
    let secret = std::fs::read_to_string(file("evidence.key")).unwrap();
    let secret = SigningKey::from_pem(&secret).unwrap();
    assert_eq!(secret.verifying_key().to_pem().unwrap(), new);
    let path = |name: &str| file(name).display().to_string();
    let ring = path("evidence-keys.json");
    assert_eq!(impound(&["verify", &dir, "--key", &ring]).0, 0);
    assert_eq!(
        impound(&["verify", &dir, "--key", &path("evidence.pub")]).0,
        1
    );
    let listed = std::fs::read_to_string(&ring).unwrap();
    assert_eq!(listed.matches("key_id").count(), 3, "{listed}");
    assert_eq!(listed.matches("valid_until").count(), 1, "{listed}");
    let said = impound(&["verify", &dir, "--key", &ring]).1;
    assert!(!said.contains("warning"), "{said}");
    let told: String = listed.replace("\"valid_until\": \"2", "\"valid_until\": \"1");
    std::fs::write(&ring, told).unwrap();
    let (code, said, _) = impound(&["verify", &dir, "--key", &ring]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("was out of use from 1"), "{said}");
}
