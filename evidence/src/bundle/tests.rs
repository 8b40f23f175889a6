//! Known answers for DSSE, the bundle's form, and everything that is refused.

use super::*;
use crate::SigningKey;

fn key() -> SigningKey {
    SigningKey::generate().unwrap()
}

fn public(key: &SigningKey) -> Vec<VerifyingKey> {
    vec![key.verifying_key().clone()]
}

#[test]
fn pre_authentication_is_as_dsse_says() {
    // The example of the DSSE protocol document.
    assert_eq!(
        pre_authentication("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
    assert_eq!(pre_authentication("", b""), b"DSSEv1 0  0 ");
    assert_eq!(
        PAYLOAD_TYPE.len(),
        28,
        "the recipe in the module's documentation says 28"
    );
}

#[test]
fn has_the_form_of_a_sigstore_bundle() {
    let key = key();
    let json: serde_json::Value =
        serde_json::from_slice(&sign_manifest(b"{}", &key).unwrap()).unwrap();
    assert_eq!(
        json["mediaType"],
        "application/vnd.dev.sigstore.bundle.v0.3+json"
    );
    assert_eq!(
        json["verificationMaterial"]["publicKey"]["hint"],
        key.verifying_key().key_id().to_string()
    );
    assert_eq!(json["dsseEnvelope"]["payload"], "e30=");
    assert_eq!(
        json["dsseEnvelope"]["payloadType"],
        "application/vnd.in-toto+json"
    );
    assert!(json["dsseEnvelope"]["signatures"][0]["sig"].is_string());
}

#[test]
fn a_signed_manifest_verifies_with_its_key_among_others() {
    let key = key();
    let open = OpenBundle::decode(&sign_manifest(b"manifest", &key).unwrap()).unwrap();
    assert_eq!(open.payload, b"manifest");
    let keys = [public(&self::key()), public(&key)].concat();
    assert_eq!(open.verify(&keys).unwrap(), key.verifying_key());
}

#[test]
fn another_key_is_named() {
    let (key, other) = (key(), key());
    let open = OpenBundle::decode(&sign_manifest(b"manifest", &key).unwrap()).unwrap();
    assert_eq!(
        open.verify(&public(&other)).unwrap_err().to_string(),
        format!(
            "signed with key {}, expected one of the given keys: {}; get the right public key from who runs the controller, not from where the evidence came from",
            key.verifying_key().key_id(),
            other.verifying_key().key_id()
        )
    );
}

#[test]
fn a_changed_payload_does_not_verify() {
    let key = key();
    let bundle = String::from_utf8(sign_manifest(b"manifest", &key).unwrap()).unwrap();
    let changed = bundle.replace(&STANDARD.encode(b"manifest"), &STANDARD.encode(b"manifes!"));
    let open = OpenBundle::decode(changed.as_bytes()).unwrap();
    assert_eq!(
        open.verify(&public(&key)).unwrap_err().to_string(),
        format!(
            "the signature does not fit: key {} did not sign this manifest; the manifest in the bundle, the signature or the hint was changed",
            key.verifying_key().key_id()
        )
    );
}

#[test]
fn a_good_signature_with_another_hint_or_a_high_s_is_refused() {
    let (key, other) = (key(), key());
    let bundle = String::from_utf8(sign_manifest(b"manifest", &key).unwrap()).unwrap();
    let keys = [public(&key), public(&other)].concat();
    let refused = |from: &str, to: &str| {
        assert!(bundle.contains(from));
        let open = OpenBundle::decode(bundle.replace(from, to).as_bytes()).unwrap();
        open.verify(&keys).unwrap_err().to_string()
    };
    let id = |key: &SigningKey| key.verifying_key().key_id().to_string();
    let unfit = "the signature does not fit: key";
    assert!(refused(&id(&key), &id(&other)).starts_with(unfit));
    assert!(refused(&id(&key), "evidence").starts_with("signed with key evidence, expected"));
    let signature = OpenBundle::decode(bundle.as_bytes()).unwrap().signature;
    let mirrored = crate::sign::tests::mirrored(&signature);
    assert!(refused(&STANDARD.encode(signature), &STANDARD.encode(mirrored)).starts_with(unfit));
}

#[test]
fn any_other_form_is_refused() {
    let key = key();
    let bundle = String::from_utf8(sign_manifest(b"manifest", &key).unwrap()).unwrap();
    let signature = {
        let from = bundle.find("\"sig\"").unwrap();
        bundle[from..].lines().next().unwrap().to_owned()
    };
    let refused = |from: &str, to: &str| {
        assert!(bundle.contains(from), "{from:?} is not in {bundle}");
        OpenBundle::decode(bundle.replacen(from, to, 1).as_bytes())
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        refused("bundle.v0.3", "bundle.v0.1"),
        "expected mediaType \"application/vnd.dev.sigstore.bundle.v0.3+json\", got \"application/vnd.dev.sigstore.bundle.v0.1+json\""
    );
    assert_eq!(
        refused("vnd.in-toto+json", "octet-stream"),
        "expected payloadType \"application/vnd.in-toto+json\", got \"application/octet-stream\""
    );
    assert_eq!(
        refused(&signature, &format!("{signature}}},{{{signature}")),
        "expected one signature, got 2"
    );
    assert!(refused("\"payload\": \"", "\"payload\": \"!").starts_with("payload: expected base64"));
    assert!(refused("\"hint\"", "\"hind\"").contains("unknown field `hind`"));
    assert!(refused("{\n", "{\n\n").starts_with("its bytes are not the canonical encoding"));
    // Spare bits at the end of base64 would let two texts mean one signature.
    assert!(OpenBundle::decode(b"").is_err());
}

#[test]
fn openssl_finds_our_signature_good_and_a_changed_one_bad() {
    let key = key();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let bundle: serde_json::Value =
        serde_json::from_slice(&sign_manifest(b"manifest", &key).unwrap()).unwrap();
    let signature = bundle["dsseEnvelope"]["signatures"][0]["sig"]
        .as_str()
        .unwrap();
    std::fs::write(at("evidence.pub"), key.verifying_key().to_pem().unwrap()).unwrap();
    std::fs::write(at("sig"), STANDARD.decode(signature).unwrap()).unwrap();
    std::fs::write(
        at("good"),
        b"DSSEv1 28 application/vnd.in-toto+json 8 manifest",
    )
    .unwrap();
    std::fs::write(
        at("bad"),
        b"DSSEv1 28 application/vnd.in-toto+json 8 manifes!",
    )
    .unwrap();
    let openssl = |signed: &str| {
        std::process::Command::new("openssl")
            .args([
                "dgst",
                "-sha256",
                "-verify",
                "evidence.pub",
                "-signature",
                "sig",
                signed,
            ])
            .current_dir(directory.path())
            .output()
            .expect("this test needs the openssl command: install the package openssl")
    };
    let good = openssl("good");
    assert!(
        good.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&good.stderr)
    );
    assert!(!openssl("bad").status.success());
}
