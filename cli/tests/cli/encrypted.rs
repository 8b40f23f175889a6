//! Encrypted evidence: what can be done with a copy without the secret key, and that everything can with it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use impound_evidence::SigningKey;
use impound_evidence::age::Identity;

use crate::collection::{Collection, TAR};
use crate::fake::{Fake, Ran, impound};

/// An encrypted collection, the public key that it is signed with, and the secret key that opens it.
struct Encrypted {
    collection: Collection,
    scratch: tempfile::TempDir,
}

impl Encrypted {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let pair = SigningKey::generate().unwrap();
        let secret = scratch.path().join("signing");
        fs::write(&secret, pair.to_pem().unwrap().as_str()).unwrap();
        let public = pair.verifying_key().to_pem().unwrap();
        fs::write(scratch.path().join("evidence.pub"), public).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        header.set_mode(0o644);
        tar.append_data(&mut header, "tmp/dropped", &b"hello"[..])
            .unwrap();
        let mut collection = Collection::sealed_with(&secret, tar.into_inner().unwrap());
        let identity = identity(&scratch.path().join("key.txt"));
        collection.encrypt(identity.recipient());
        identity_of_somebody_else(&scratch.path().join("other.txt"));
        Self {
            collection,
            scratch,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A command about the directory with the public key, and the secret key in the file.
    fn run(&self, command: &[&str], identity: Option<&str>, more: &[&str]) -> Ran {
        let (directory, key) = (self.collection.directory.path(), self.path("evidence.pub"));
        let identity = identity.map(|name| self.path(name));
        let mut arguments = command.to_vec();
        arguments.extend([directory.to_str().unwrap(), "--key", key.to_str().unwrap()]);
        if let Some(identity) = &identity {
            arguments.extend(["--identity", identity.to_str().unwrap()]);
        }
        arguments.extend(more);
        Ran::from(impound(&arguments).output().unwrap())
    }
}

fn identity(at: &Path) -> Identity {
    let identity = Identity::generate().unwrap();
    fs::write(at, format!("# a comment\n{}\n", identity.reveal().as_str())).unwrap();
    identity
}

fn identity_of_somebody_else(at: &Path) {
    identity(at);
}

#[test]
fn without_the_secret_key_it_is_intact_and_said_what_was_not_checked() {
    let encrypted = Encrypted::new();
    let ran = encrypted.run(&["verify"], None, &[]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(
        ran.out.contains("what is in 3 encrypted files"),
        "{}",
        ran.out
    );
    let ran = encrypted.run(&["verify"], Some("key.txt"), &[]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(!ran.out.contains("encrypted"), "{}", ran.out);
}

#[test]
fn a_secret_key_that_does_not_open_it_is_no_check_passed_and_says_whose_is_wanted() {
    let encrypted = Encrypted::new();
    let wanted = Identity::parse_file(&fs::read_to_string(encrypted.path("key.txt")).unwrap());
    let wanted = wanted.unwrap()[0].recipient().to_string();
    let says = "what is in 3 encrypted files, only that they are those that were signed: no --identity that was given opens them, they are encrypted to ";
    let ran = encrypted.run(&["verify"], Some("other.txt"), &[]);
    assert_eq!((ran.code, ran.err.as_str()), (2, ""), "{ran:?}");
    assert!(!ran.out.contains("NOT INTACT"), "{}", ran.out);
    assert!(
        ran.out
            .contains("is intact as it is stored, and what is in it was NOT CHECKED: "),
        "{}",
        ran.out
    );
    assert!(ran.out.contains(&format!("{says}{wanted}")), "{}", ran.out);
    let ran = encrypted.run(&["verify"], Some("other.txt"), &["-o", "json"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&document["intact"], &document["complete"]),
        (&true.into(), &false.into())
    );
    assert_eq!(
        (&document["closed"], &document["unopened"]),
        (&3.into(), &3.into())
    );
    assert_eq!(document["encryptedTo"], serde_json::json!([wanted]));

    let page = encrypted.path("page.html");
    let ran = encrypted.run(
        &["report"],
        Some("other.txt"),
        &["--to", page.to_str().unwrap(), "-o", "json"],
    );
    assert_eq!(ran.code, 2, "{ran:?}");
    let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&document["complete"], &document["unopened"]),
        (&false.into(), &3.into())
    );
    assert_eq!(fs::metadata(&page).unwrap().mode() & 0o77, 0);
    assert!(fs::read_to_string(page).unwrap().contains(says));
    let to = encrypted.path("out");
    let ran = encrypted.run(
        &["evidence", "extract"],
        Some("other.txt"),
        &["--to", to.to_str().unwrap()],
    );
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains(says) && !to.exists(), "{}", ran.err);

    // What was changed is not called unchecked.
    let file = encrypted
        .collection
        .directory
        .path()
        .join(format!("{TAR}.age"));
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file, bytes).unwrap();
    let ran = encrypted.run(&["verify"], Some("other.txt"), &[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out.contains("is NOT INTACT") && ran.out.contains("it was changed"),
        "{}",
        ran.out
    );
}

#[test]
fn what_is_no_secret_key_is_a_wrong_file() {
    let encrypted = Encrypted::new();
    let ran = encrypted.run(&["verify"], Some("evidence.pub"), &[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("AGE-SECRET-KEY-1"), "{}", ran.err);
}

#[test]
fn a_file_system_is_extracted_with_the_secret_key_and_not_without() {
    let encrypted = Encrypted::new();
    let to = encrypted.path("out");
    let to_text = to.to_str().unwrap();
    let ran = encrypted.run(&["evidence", "extract"], None, &["--to", to_text]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("no identity was given"), "{}", ran.err);
    let ran = encrypted.run(
        &["evidence", "extract"],
        Some("key.txt"),
        &["--to", to_text],
    );
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let file = to.join("evidence-compromised-nginx-0123456789ab/tmp/dropped");
    assert_eq!(fs::read(file).unwrap(), b"hello");
    let mut left = fs::read_dir(&to).unwrap();
    assert!(left.all(|entry| {
        !entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with('.')
    }));
}

#[test]
fn a_report_shows_what_the_secret_key_opens_and_says_what_was_not_looked_at_without() {
    let encrypted = Encrypted::new();
    for (identity, told) in [(None, true), (Some("key.txt"), false)] {
        let to = encrypted.path(&format!("{}.html", identity.unwrap_or("none")));
        let ran = encrypted.run(&["report"], identity, &["--to", to.to_str().unwrap()]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let page = fs::read_to_string(to).unwrap();
        assert!(page.contains("Encrypted to"));
        assert_eq!(page.contains("what is in 3 encrypted files"), told);
    }
}

#[test]
fn a_copy_is_of_the_encrypted_files_and_the_secret_key_gives_the_others_beside_it() {
    let fake = Fake::start();
    let scratch = tempfile::tempdir().unwrap();
    let key = scratch.path().join("key.txt");
    let plain = fake.state.evidence.lock().unwrap().read(TAR).unwrap();
    let recipient = identity(&key).recipient();
    fake.state.evidence.lock().unwrap().encrypt(recipient);
    let to = scratch.path().join("copy");
    let arguments = |identity: &Path| {
        [
            "evidence",
            "get",
            "INC-7",
            "web-5d4f-x7",
            "--to",
            to.to_str().unwrap(),
            "--identity",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain([identity.to_str().unwrap().to_owned()])
        .collect::<Vec<_>>()
    };
    let get = |identity: &Path| {
        let arguments = arguments(identity);
        fake.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for _ in 0..2 {
        let ran = get(&key);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        assert!(ran.out.contains("3 files decrypted to "), "{}", ran.out);
        assert!(to.join(format!("{TAR}.age")).is_file() && !to.join(TAR).exists());
        let opened = scratch.path().join("copy.plain").join(TAR);
        assert!(fs::read(&opened).unwrap() == plain);
        for at in [opened.as_path(), opened.parent().unwrap()] {
            assert_eq!(
                fs::metadata(at).unwrap().mode() & 0o77,
                0,
                "{}",
                at.display()
            );
        }
    }
    let other = scratch.path().join("other.txt");
    identity_of_somebody_else(&other);
    let ran = get(&other);
    assert_eq!(ran.code, 2, "{ran:?}");
    let says = "is not encrypted to any identity that was given; they are encrypted to age1";
    assert!(ran.err.contains(says), "{}", ran.err);
    // Of all collections of the case, too, after what was copied of them is said.
    let (below, other) = (scratch.path().join("all"), other.to_str().unwrap());
    let below_text = below.to_str().unwrap();
    let ran = fake.run(&[
        "evidence",
        "get",
        "INC-7",
        "--to",
        below_text,
        "--identity",
        other,
    ]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains(says), "{}", ran.err);
    assert!(
        ran.out.contains("compared with the manifest"),
        "{}",
        ran.out
    );
}

#[test]
fn what_is_decrypted_never_lies_in_the_copy_that_was_signed() {
    let fake = Fake::start();
    let scratch = tempfile::tempdir().unwrap();
    let key = scratch.path().join("key.txt");
    let recipient = identity(&key).recipient();
    fake.state.evidence.lock().unwrap().encrypt(recipient);
    let copy = scratch.path().join("copy");
    fs::create_dir(&copy).unwrap();
    let get = |to: &str| {
        let of = ["evidence", "get", "INC-7", "web-5d4f-x7", "--to", to];
        let mut command = fake.command(&of);
        command.arg("--identity").arg(&key).current_dir(&copy);
        Ran::from(command.output().unwrap())
    };
    let verified = || {
        let public = fake.public_key();
        let public = public.to_str().unwrap();
        Ran::from(
            impound(&["verify", copy.to_str().unwrap(), "--key", public])
                .output()
                .unwrap(),
        )
    };
    // The directory that one is in: its name is nowhere in the path that was given.
    let ran = get(".");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(scratch.path().join("copy.plain").join(TAR).is_file());
    assert_eq!(verified().code, 0, "{:?}", verified());
    // Below it, or with a copy of another collection where the decrypted files were to be.
    fs::create_dir(copy.join("x")).unwrap();
    let ran = get("x");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err.contains("lies in a copy of evidence"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("choose another --to"), "{}", ran.err);
    fs::remove_dir(copy.join("x")).unwrap();
    assert_eq!(verified().code, 0, "{:?}", verified());
    let ran = get("/");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("it has no name"), "{}", ran.err);
    let other = scratch.path().join("other.plain");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("manifest.sigstore.json"), "{}").unwrap();
    let ran = get("../other");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err.contains("other.plain lies in a copy of evidence"),
        "{}",
        ran.err
    );
    assert!(!scratch.path().join("other").exists());
}
