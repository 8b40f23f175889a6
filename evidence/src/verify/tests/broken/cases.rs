//! Each way to break a collection, and how that is done to a good one.

use super::super::encrypted::{encrypted, plain_again, stored_as};
use super::*;
use crate::Encoding;
use crate::age::Identity;

/// Changes what will be signed, or what was.
pub(super) enum Break {
    Before(fn(&mut Draft)),
    After(fn(&Collection)),
}

pub(super) use Break::{After, Before};

/// Signs a manifest's text again, as it is.
fn signed_again(it: &Collection, manifest: &str) {
    it.put(MANIFEST, manifest);
    it.put(BUNDLE, sign_manifest(manifest.as_bytes(), &it.key).unwrap());
}

fn ada(it: &Collection) -> SigningKey {
    SigningKey::from_pem(&it.text("ada.key")).unwrap()
}

/// Each by its name.
pub(super) fn cases() -> Vec<(&'static str, Break)> {
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
                let whole = it.file(TAR).clone();
                it.contents(TAR, &whole[..1024]);
            }),
        ),
        (
            "tar-cut-in-a-store-with-spaces",
            Before(|it| {
                it.contents(TAR, &[0; 512]);
                let receipt = it.artifact(TAR).receipt.as_mut().unwrap();
                receipt.location = "file:///mnt/evidence disk of ours/x".to_owned();
            }),
        ),
        (
            "tar-with-a-record-beyond-counting",
            Before(|it| {
                let mut record = b"9223372036854775808 x=".to_vec();
                record.resize(511, b'y');
                record.push(b'\n');
                let header = [tar_header(b'x', record.len()), record].concat();
                it.contents(TAR, &[header, member(512), vec![0; 1024]].concat());
            }),
        ),
        (
            "tar-cut-inside-a-member",
            Before(|it| {
                let whole = it.file(TAR).clone();
                it.contents(TAR, &whole[..1000]);
            }),
        ),
        (
            "tar-goes-on",
            Before(|it| {
                let whole = it.file(TAR).clone();
                it.contents(TAR, &[&whole[..], &whole[..]].concat());
            }),
        ),
        (
            "tar-with-a-solaris-header",
            Before(|it| {
                let records = b"30 mtime=1700000000.123456789\n";
                let mut header = [tar_header(b'X', records.len()), records.to_vec()].concat();
                header.resize(1024, 0);
                it.contents(TAR, &[header, member(512), vec![0; 1024]].concat());
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
            "path-with-spaces",
            After(|it| {
                let path = format!("{POD} 14 - + complete plain");
                signed_again(it, &it.text(MANIFEST).replace(POD, &path));
            }),
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
            "name-that-no-evidence-has",
            After(|it| it.put("before/pod copy.json", "{}")),
        ),
        (
            "link-to-a-directory",
            After(|it| {
                fs::rename(it.at("before"), it.at("artifacts/before")).unwrap();
                symlink("artifacts/before", it.at("before")).unwrap();
            }),
        ),
        (
            "statement-of-another-version",
            After(|it| {
                let (ours, other) = ("in-toto.io/Statement/v1", "in-toto.io/Statement/v0.1");
                signed_again(it, &it.text(MANIFEST).replace(ours, other));
            }),
        ),
        (
            "subject-of-something-else",
            After(|it| {
                let (ours, other) = (Sha256::of(&it.bytes(DIFF)), Sha256::of(b"other"));
                let text = it.text(MANIFEST);
                signed_again(it, &text.replacen(&ours.to_string(), &other.to_string(), 1));
            }),
        ),
        (
            "artifacts-in-another-order",
            After(|it| {
                let exchanged = it.text(MANIFEST).replace(POD, "\0").replace(INSPECT, POD);
                signed_again(it, &exchanged.replace('\0', INSPECT));
            }),
        ),
        (
            "artifact-twice",
            After(|it| {
                let mut manifest = Manifest::decode(&it.bytes(MANIFEST)).unwrap();
                manifest.artifacts.insert(1, manifest.artifacts[0].clone());
                signed_again(it, std::str::from_utf8(&manifest.encode()).unwrap());
            }),
        ),
        (
            "missing-and-there",
            Before(|it| {
                let path = DIFF.parse().unwrap();
                it.manifest.missing = vec![Missing { path, ..missing() }];
                it.manifest.outcome = Outcome::Partial;
            }),
        ),
        (
            "bundle-of-another-version",
            After(|it| it.edit(BUNDLE, "bundle.v0.3", "bundle.v0.2")),
        ),
        ("bundle-that-is-none", After(|it| it.put(BUNDLE, "{}\n"))),
        (
            "countersignature-that-is-none",
            After(|it| {
                let (path, _) = countersignature(it, &ada(it));
                it.put(&path, "{}\n");
            }),
        ),
        (
            "file-among-the-countersignatures",
            After(|it| {
                let (path, bundle) = countersignature(it, &ada(it));
                it.put(&path, &bundle);
                it.put("signatures/ada.sigstore.json", bundle);
            }),
        ),
        (
            "checkpoint-signed-with-another-key",
            After(|it| {
                let other = SigningKey::generate().unwrap();
                it.put(CHECKPOINT, it.log.checkpoint(&other).unwrap());
            }),
        ),
        (
            "checkpoint-with-another-signature",
            After(|it| {
                let note = it.text(CHECKPOINT);
                it.put(
                    CHECKPOINT,
                    format!("{note}\u{2014} witness.example AAAAAAAA\n"),
                );
            }),
        ),
        (
            "log-says-that-nothing-was-stored",
            Before(|it| {
                let entry = Entry::new(Event::Stored, "controller", DIFF);
                it.later.push(entry.of(&it.manifest.collection));
            }),
        ),
        (
            "tar-with-one-zero-block",
            Before(|it| it.contents(TAR, &[member(512), vec![0; 512]].concat())),
        ),
        ("tar-of-nothing", Before(|it| it.contents(TAR, b""))),
        (
            "tar-that-readers-read-differently",
            Before(|it| {
                let mut directory = tar_header(b'5', 512);
                directory.extend(tar_header(b'0', 0));
                directory.extend([0; 1024]);
                it.contents(TAR, &directory);
            }),
        ),
        ("good-encrypted", Before(encrypt)),
        (
            "encrypted-changed",
            Before(|it| {
                encrypt(it);
                let (_, file) = it
                    .files
                    .iter_mut()
                    .find(|(path, _)| path.ends_with(".tar.age"))
                    .unwrap();
                let last = file.len() - 1;
                file[last] ^= 1;
            }),
        ),
        (
            "encrypted-under-another-name",
            Before(|it| {
                encrypt(it);
                let stored = it.artifact(DIFF).stored.as_mut().unwrap();
                stored.path = format!("{POD}.diff.age").parse().unwrap();
                let renamed = stored.path.to_string();
                let (path, _) = it
                    .files
                    .iter_mut()
                    .find(|(path, _)| *path == format!("{DIFF}.age"))
                    .unwrap();
                *path = renamed;
            }),
        ),
        (
            "encrypted-and-no-age-file",
            Before(|it| {
                encrypt(it);
                stored_as(it, DIFF, b"A /tmp/x\n");
            }),
        ),
        (
            "encrypted-and-one-is-plain",
            Before(|it| {
                encrypt(it);
                plain_again(it, DIFF, b"A /tmp/x\n");
            }),
        ),
        (
            "encrypted-to-nobody",
            Before(|it| {
                encrypt(it);
                it.manifest.encrypted_to.clear();
            }),
        ),
        (
            "encrypted-twice",
            Before(|it| {
                encrypt(it);
                let form = it.artifact(DIFF).stored.as_mut().unwrap();
                let (once, twice) = (form.path.to_string(), format!("{}.age", form.path));
                form.path = twice.parse().unwrap();
                form.encoding = vec![Encoding::Age; 2];
                let file = it.files.iter_mut().find(|(path, _)| *path == once);
                file.unwrap().0 = twice;
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

/// To somebody who is never asked: what can be said without a secret key is.
fn encrypt(it: &mut Draft) {
    let recipient = Identity::generate().unwrap().recipient();
    *it = encrypted(std::mem::replace(it, Draft::new()), &[recipient]);
}

fn missing() -> Missing {
    Missing {
        path: "artifacts/worker2/default_web/sidecar".parse().unwrap(),
        reason: "the agent did not answer".to_owned(),
    }
}
