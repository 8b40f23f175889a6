//! `tests/broken/*`: small good collections, and one for each way to break one, each with exactly what is
//! said about it in `<name>.expected`, by `impound verify` and, last line, by `verify.sh`.
//!
//! They are made once (IMPOUND_REGENERATE=1) with keys that are thrown away, and then only read: what is
//! said of them must not change by accident. What git can't keep (a pipe, an empty directory) is made of
//! the good one when the test runs.

use std::os::unix::fs::symlink;

use super::script::script_by;
use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken")
}

/// What is said of the collection in `directory`.
fn said(directory: &Path, pems: &[PathBuf]) -> String {
    let key = |pem: &PathBuf| VerifyingKey::from_pem(&fs::read_to_string(pem).unwrap()).unwrap();
    let keys: Vec<_> = pems.iter().map(key).collect();
    let verdict = verify(&DirSource::open(directory).unwrap(), &keys);
    let mut text: String = match verdict.intact() {
        true => "intact\n".to_owned(),
        false => verdict
            .problems
            .iter()
            .map(|problem| format!("{}\n", without_fields(&problem.to_string())))
            .collect(),
    };
    let (code, line) = script_by(directory, pems);
    let expected = match (verdict.intact(), verdict.complete()) {
        (true, true) => 0,
        (true, false) => 3,
        (false, _) => 1,
    };
    assert_eq!(code, expected, "{}: {line}", directory.display());
    text.push_str(&line);
    text.push('\n');
    text
}

/// Without the list of fields that there could be, which grows.
fn without_fields(message: &str) -> String {
    match message.split_once(", expected one of `") {
        Some((before, _)) => before.to_owned(),
        None => message.to_owned(),
    }
}

#[test]
fn each_broken_collection_is_called_what_it_is() {
    let regenerate = std::env::var_os("IMPOUND_REGENERATE").is_some();
    if regenerate {
        generate();
    }
    // Who seals, and who vouches besides.
    let pems = ["evidence.pub", "ada.pub"].map(|name| root().join(name));
    let check = |name: &str, directory: &Path| {
        let said = said(directory, &pems);
        let expected = root().join(format!("{name}.expected"));
        if regenerate {
            fs::write(&expected, &said).unwrap();
        }
        assert_eq!(fs::read_to_string(&expected).unwrap(), said, "{name}");
    };
    let mut seen = 0;
    for entry in fs::read_dir(root()).unwrap() {
        let directory = entry.unwrap().path();
        if directory.is_dir() {
            seen += 1;
            check(directory.file_name().unwrap().to_str().unwrap(), &directory);
        }
    }
    assert_eq!(seen, cases().len());
    type Break = fn(&Path);
    let made: [(&str, Break); 2] = [
        ("pipe", |at| {
            fs::remove_file(at.join(POD)).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, at.join(POD), fifo, mode, 0).unwrap();
        }),
        ("empty-directory", |at| {
            fs::create_dir_all(at.join("artifacts/worker2/nothing")).unwrap();
        }),
    ];
    for (name, break_it) in made {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join(name);
        copied(&root().join("good"), &copy);
        break_it(&copy);
        check(name, &copy);
    }
}

fn copied(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status();
    assert!(copied.unwrap().success());
}

/// Changes what will be signed, or what was.
enum Break {
    Before(fn(&mut Draft)),
    After(fn(&Collection)),
}

use Break::{After, Before};

/// Signs a manifest's text again, as it is.
fn signed_again(it: &Collection, manifest: &str) {
    it.put(MANIFEST, manifest);
    it.put(BUNDLE, sign_manifest(manifest.as_bytes(), &it.key).unwrap());
}

fn ada(it: &Collection) -> SigningKey {
    SigningKey::from_pem(&it.text("ada.key")).unwrap()
}

fn cases() -> Vec<(&'static str, Break)> {
    vec![
        ("good", After(|_| ())),
        (
            "good-partial",
            Before(|it| {
                it.artifact(TAR).completeness = Completeness::incomplete("the runtime broke off");
                it.manifest.missing = vec![missing()];
                it.manifest.outcome = Outcome::Partial;
            }),
        ),
        (
            "good-countersigned",
            After(|it| {
                let (path, bundle) = countersignature(it, &ada(it));
                it.put(&path, bundle);
            }),
        ),
        ("changed-byte", After(|it| it.put(DIFF, b"A /tmp/y\n"))),
        ("shorter", After(|it| it.put(DIFF, b"A /tmp/"))),
        ("missing", After(|it| fs::remove_file(it.at(POD)).unwrap())),
        ("added", After(|it| it.put("before/node.json", "{}"))),
        (
            "renamed",
            After(|it| fs::rename(it.at(POD), it.at("before/p.json")).unwrap()),
        ),
        (
            "swapped",
            After(|it| {
                let (one, two) = (it.bytes(INSPECT), it.bytes(POD));
                it.put(INSPECT, two);
                it.put(POD, one);
            }),
        ),
        (
            "link",
            After(|it| {
                fs::remove_file(it.at(POD)).unwrap();
                symlink("../manifest.json", it.at(POD)).unwrap();
            }),
        ),
        (
            "manifest-edited",
            After(|it| it.edit(MANIFEST, "shell in", "smell in")),
        ),
        (
            "manifest-timestamp",
            After(|it| it.edit(MANIFEST, "03:04:05.678901Z", "03:04:06.678901Z")),
        ),
        (
            "manifest-missing",
            After(|it| fs::remove_file(it.at(MANIFEST)).unwrap()),
        ),
        (
            "signature-missing",
            After(|it| fs::remove_file(it.at(BUNDLE)).unwrap()),
        ),
        (
            "signature-of-another-key",
            After(|it| {
                let other = SigningKey::generate().unwrap();
                it.put(BUNDLE, sign_manifest(&it.bytes(MANIFEST), &other).unwrap());
            }),
        ),
        (
            "signature-of-another-manifest",
            After(|it| {
                let other = sign_manifest(&sample(Vec::new()).encode(), &it.key).unwrap();
                it.put(BUNDLE, other);
            }),
        ),
        (
            "signature-mirrored",
            After(|it| {
                let open = OpenBundle::decode(&it.bytes(BUNDLE)).unwrap();
                let new = STANDARD.encode(mirrored(open.signature()));
                it.edit(BUNDLE, &STANDARD.encode(open.signature()), &new);
            }),
        ),
        (
            "bundle-reformatted",
            After(|it| it.edit(BUNDLE, "  \"mediaType\"", "   \"mediaType\"")),
        ),
        (
            "log-cut",
            After(|it| {
                let text = it.text(CUSTODY);
                it.put(
                    CUSTODY,
                    text.split_inclusive('\n').take(8).collect::<String>(),
                );
            }),
        ),
        (
            "log-torn",
            After(|it| {
                let text = it.text(CUSTODY);
                it.put(CUSTODY, &text[..text.len() - 9]);
            }),
        ),
        (
            "log-reordered",
            After(|it| {
                let text = it.text(CUSTODY);
                let mut lines: Vec<_> = text.split_inclusive('\n').collect();
                lines.swap(2, 3);
                it.put(CUSTODY, lines.concat());
            }),
        ),
        (
            "log-edited",
            After(|it| it.edit(CUSTODY, "\"who\":\"ada\"", "\"who\":\"eve\"")),
        ),
        (
            "log-missing",
            After(|it| fs::remove_file(it.at(CUSTODY)).unwrap()),
        ),
        (
            "rolled-back",
            After(|it| {
                let (lines, early, _) = rolled_back(it);
                it.put(CUSTODY, lines);
                it.put(CHECKPOINT, early.checkpoint(&it.key).unwrap());
            }),
        ),
        (
            "checkpoint-rolled-back",
            After(|it| {
                let (_, early, _) = rolled_back(it);
                it.put(CHECKPOINT, early.checkpoint(&it.key).unwrap());
            }),
        ),
        (
            "checkpoint-edited",
            After(|it| it.edit(CHECKPOINT, "\n9\n", "\n8\n")),
        ),
        (
            "checkpoint-of-another-case",
            After(|it| {
                let lines = it.bytes(CUSTODY);
                let log = CustodyLog::read("impound.dev/INC-2", &lines[..], |_| ()).unwrap();
                it.put(CHECKPOINT, log.checkpoint(&it.key).unwrap());
            }),
        ),
        (
            "record-differs",
            After(|it| {
                let mut manifest = Manifest::decode(&it.bytes(MANIFEST)).unwrap();
                manifest.artifacts[0].api_call = "GET /elsewhere".to_owned();
                it.put(MANIFEST, manifest.encode());
                it.put(BUNDLE, sign_manifest(&manifest.encode(), &it.key).unwrap());
            }),
        ),
        ("longer", After(|it| it.put(DIFF, b"A /tmp/x\nA /tmp/y\n"))),
        (
            "tar-cut",
            Before(|it| {
                let whole = it
                    .files
                    .iter()
                    .find(|(path, _)| path == TAR)
                    .unwrap()
                    .1
                    .clone();
                it.contents(TAR, &whole[..1024]);
            }),
        ),
        (
            "tar-cut-inside-a-member",
            Before(|it| {
                let whole = it
                    .files
                    .iter()
                    .find(|(path, _)| path == TAR)
                    .unwrap()
                    .1
                    .clone();
                it.contents(TAR, &whole[..1000]);
            }),
        ),
        (
            "tar-goes-on",
            Before(|it| {
                let whole = it
                    .files
                    .iter()
                    .find(|(path, _)| path == TAR)
                    .unwrap()
                    .1
                    .clone();
                it.contents(TAR, &[&whole[..], &whole[..]].concat());
            }),
        ),
        (
            "missing-and-called-complete",
            Before(|it| it.manifest.missing = vec![missing()]),
        ),
        (
            "incomplete-and-called-complete",
            Before(|it| {
                it.artifact(TAR).completeness = Completeness::incomplete("the runtime broke off");
            }),
        ),
        (
            "incomplete-without-a-reason",
            Before(|it| {
                it.manifest.outcome = Outcome::Partial;
                it.artifact(TAR).completeness = Completeness::Incomplete {
                    reasons: Vec::new(),
                };
            }),
        ),
        (
            "chunk-tree-of-something-else",
            Before(|it| it.artifact(DIFF).chunk_root = Some(Sha256::of(b"other"))),
        ),
        ("no-receipt", Before(|it| it.artifact(DIFF).receipt = None)),
        (
            "log-lengthened",
            After(|it| {
                let mut log = it.log.clone();
                let line = log.append(Entry::new(Event::Accessed, "eve", TAR)).unwrap();
                it.put(CUSTODY, [it.bytes(CUSTODY), line].concat());
            }),
        ),
        ("never-logged", Before(|it| it.logged = false)),
        (
            "logged-and-left-out",
            After(|it| {
                let mut manifest = Manifest::decode(&it.bytes(MANIFEST)).unwrap();
                manifest
                    .artifacts
                    .retain(|record| record.path.as_str() != DIFF);
                signed_again(it, std::str::from_utf8(&manifest.encode()).unwrap());
                fs::remove_file(it.at(DIFF)).unwrap();
            }),
        ),
        (
            "checkpoint-missing",
            After(|it| fs::remove_file(it.at(CHECKPOINT)).unwrap()),
        ),
        (
            "log-and-checkpoint-of-another-case",
            After(|it| {
                let mut log = CustodyLog::new("impound.dev/INC-2");
                let line = log
                    .append(Entry::new(Event::Requested, "ada", "db"))
                    .unwrap();
                it.put(CUSTODY, line);
                it.put(CHECKPOINT, log.checkpoint(&it.key).unwrap());
            }),
        ),
        (
            "countersignature-bad",
            After(|it| {
                let (path, bundle) = countersignature(it, &ada(it));
                let other = sign_manifest(b"other", &ada(it)).unwrap();
                it.put(&path, &bundle);
                let [ours, theirs] = [bundle, other].map(|bytes| {
                    let open = OpenBundle::decode(&bytes).unwrap();
                    STANDARD.encode(open.signature())
                });
                it.edit(&path, &ours, &theirs);
            }),
        ),
        (
            "countersignature-of-another-manifest",
            After(|it| {
                let (path, _) = countersignature(it, &ada(it));
                let other = sample(Vec::new()).encode();
                it.put(&path, sign_manifest(&other, &ada(it)).unwrap());
            }),
        ),
        (
            "countersignature-under-another-name",
            After(|it| {
                let (_, bundle) = countersignature(it, &ada(it));
                it.put(&format!("signatures/{}.sigstore.json", it.key_id()), bundle);
            }),
        ),
        (
            "path-trick",
            After(|it| signed_again(it, &it.text(MANIFEST).replace(POD, "../../../etc/passwd"))),
        ),
        (
            "other-predicate-type",
            After(|it| {
                let text = it.text(MANIFEST);
                let (ours, other) = (
                    "https://impound.dev/evidence/v1",
                    "https://slsa.dev/provenance/v1",
                );
                signed_again(it, &text.replace(ours, other));
            }),
        ),
        (
            "manifest-reformatted-and-signed",
            After(|it| {
                let value: serde_json::Value = serde_json::from_str(&it.text(MANIFEST)).unwrap();
                signed_again(it, &format!("{value}\n"));
            }),
        ),
        (
            "manifest-with-a-field-of-its-own",
            After(|it| {
                let text = it.text(MANIFEST);
                signed_again(
                    it,
                    &text.replacen(
                        "    \"reason\":",
                        "    \"note\": \"x\",\n    \"reason\":",
                        1,
                    ),
                );
            }),
        ),
        (
            "manifest-with-fields-in-another-order",
            After(|it| {
                let text = it.text(MANIFEST);
                let (one, two) = (
                    "    \"case\": \"INC-1\",\n",
                    "    \"collection\": \"web-5d4f-x7\",\n",
                );
                let (then, now) = (format!("{one}{two}"), format!("{two}{one}"));
                assert!(text.contains(&then));
                signed_again(it, &text.replacen(&then, &now, 1));
            }),
        ),
        (
            "script-changed",
            Before(|it| {
                it.files
                    .push((SCRIPT.to_owned(), b"#!/bin/sh\necho intact\n".to_vec()));
                let of_script = record(SCRIPT, VERIFY_SH.as_bytes());
                it.manifest.artifacts.push(as_read(of_script));
            }),
        ),
    ]
}

fn missing() -> Missing {
    Missing {
        path: "artifacts/worker2/default_web/sidecar".parse().unwrap(),
        reason: "the agent did not answer".to_owned(),
    }
}

fn generate() {
    let _ = fs::remove_dir_all(root());
    fs::create_dir_all(root()).unwrap();
    let (key, ada) = (
        SigningKey::generate().unwrap(),
        SigningKey::generate().unwrap(),
    );
    for (key, name) in [(&key, "evidence.pub"), (&ada, "ada.pub")] {
        fs::write(root().join(name), key.verifying_key().to_pem().unwrap()).unwrap();
    }
    for (name, break_it) in cases() {
        let mut draft = Draft::new();
        if let Before(change) = break_it {
            change(&mut draft);
        }
        let collection = draft.seal_with(SigningKey::from_pem(&key.to_pem().unwrap()).unwrap());
        if let After(change) = break_it {
            // Where the changes find it.
            collection.put("ada.key", ada.to_pem().unwrap().as_bytes());
            change(&collection);
            fs::remove_file(collection.at("ada.key")).unwrap();
        }
        copied(collection.directory.path(), &root().join(name));
    }
}
