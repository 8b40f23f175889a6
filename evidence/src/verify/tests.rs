//! A good collection, and one broken collection for every way it can be broken, each with exactly
//! what is said about it.

mod broken;
mod encrypted;
mod mutations;
mod script;
mod stamped;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::chunks::Digests;
use crate::custody::{CustodyLog, Entry, Event};
use crate::manifest::tests::{record, sample};
use crate::manifest::{Method, Missing};
use crate::sign::SigningKey;
use crate::sign::tests::mirrored;
use crate::source::DirSource;
use crate::tar::Completeness;
use crate::{ArtifactRecord, LogHead, SCRIPT, VERIFY_SH, origin, sign_manifest};

const TAR: &str = "artifacts/worker2/default_web/nginx/evidence-compromised-nginx-0123456789ab.tar";
const INSPECT: &str = "artifacts/worker2/default_web/nginx/inspect.json";
const DIFF: &str = "artifacts/worker2/default_web/nginx/diff.txt";
const POD: &str = "before/pod.json";

/// The last problem of a collection whose manifest no given key signed.
const UNSIGNED: &str = "nothing more was checked than which files are there and their sizes: the manifest is not signed by a given key";

/// A collection being built: what is broken before it is sealed is signed with the rest.
struct Draft {
    files: Vec<(String, Vec<u8>)>,
    manifest: Manifest,
    /// Whether the custody log has a `stored` for each artifact.
    logged: bool,
    /// Logged besides.
    later: Vec<Entry>,
}

/// A tar's header of ustar's form.
fn tar_header(flag: u8, size: usize) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..5].copy_from_slice(b"hello");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[148..156].fill(b' ');
    header[156] = flag;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// A member of a tar, "hello", with so many bytes of contents, a multiple of 512.
fn member(size: usize) -> Vec<u8> {
    [tar_header(b'0', size), vec![b'h'; size]].concat()
}

/// What the controller says of how it got it.
fn as_read(record: ArtifactRecord) -> ArtifactRecord {
    let (method, media_type, api_call) = match record.path.file_name() {
        "pod.json" | "node.json" => (
            Method::KubernetesObject,
            "application/json",
            "GET /api/v1/namespaces/default/pods/web-5d4f-x7",
        ),
        "inspect.json" => (
            Method::Inspect,
            "application/json",
            "GET /containers/0123456789ab/json",
        ),
        "diff.txt" => (
            Method::Diff,
            "text/plain; charset=utf-8",
            "GET /containers/0123456789ab/changes",
        ),
        SCRIPT => (Method::Program, "text/x-shellscript", "impound-controller"),
        _ => (
            Method::Export,
            "application/x-tar",
            "GET /containers/0123456789ab/export",
        ),
    };
    ArtifactRecord {
        omissions: method.omissions(),
        media_type: media_type.to_owned(),
        api_call: api_call.to_owned(),
        method,
        ..record
    }
}

struct Collection {
    directory: tempfile::TempDir,
    key: SigningKey,
    log: CustodyLog,
}

impl Draft {
    fn new() -> Self {
        let tar = [member(512), vec![0; 1024]].concat();
        let files: Vec<(String, Vec<u8>)> = vec![
            (DIFF.to_owned(), b"A /tmp/x\n".to_vec()),
            (TAR.to_owned(), tar),
            (INSPECT.to_owned(), b"{\"Id\":\"0123\"}".to_vec()),
            (POD.to_owned(), b"{\"kind\":\"Pod\"}".to_vec()),
        ];
        let records = files
            .iter()
            .map(|(path, bytes)| as_read(record(path, bytes)))
            .collect();
        let mut manifest = sample(records);
        manifest.node.uid = Some("a3c6f1de-7c54-4b1d-8a05-0d2a3f6b9c11".to_owned());
        manifest.controller.executable_sha256 = Some(Sha256::of(b"controller"));
        Self {
            files,
            manifest,
            logged: true,
            later: Vec::new(),
        }
    }

    fn artifact(&mut self, path: &str) -> &mut ArtifactRecord {
        self.manifest
            .artifacts
            .iter_mut()
            .find(|record| record.path.as_str() == path)
            .unwrap()
    }

    /// A file's bytes.
    fn file(&mut self, path: &str) -> &mut Vec<u8> {
        let mut files = self.files.iter_mut();
        &mut files.find(|(known, _)| known == path).unwrap().1
    }

    /// Replaces a file's bytes before they are recorded.
    fn contents(&mut self, path: &str, bytes: &[u8]) {
        *self.file(path) = bytes.to_vec();
        let kept = self.artifact(path).completeness.clone();
        *self.artifact(path) = ArtifactRecord {
            completeness: kept,
            ..as_read(record(path, bytes))
        };
    }

    /// Half of an artifact, kept beside where the whole one would be.
    fn add_broken_attempt(&mut self, at: &str) {
        let (path, bytes) = (format!("{at}.partial-1"), b"half".to_vec());
        self.manifest.artifacts.push(ArtifactRecord {
            completeness: Completeness::incomplete("the connection broke off"),
            ..record(&path, &bytes)
        });
        self.files.push((path, bytes));
    }

    fn seal(self) -> Collection {
        self.seal_with(SigningKey::generate().unwrap())
    }

    fn seal_with(mut self, key: SigningKey) -> Collection {
        let directory = tempfile::tempdir().unwrap();
        for (path, bytes) in &self.files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let mut log = CustodyLog::new(origin(&self.manifest.case));
        let mut lines = log
            .append(Entry::new(Event::Requested, "ada", "web"))
            .unwrap();
        for record in self.manifest.artifacts.iter().filter(|_| self.logged) {
            for event in [Event::Read, Event::Stored] {
                let mut entry = Entry::new(event, "controller", record.path.as_str())
                    .of(&self.manifest.collection);
                entry.artifact = Some(record.clone());
                lines.extend(log.append(entry).unwrap());
            }
        }
        for entry in self.later {
            lines.extend(log.append(entry).unwrap());
        }
        self.manifest.custody = log.head();
        let manifest = self.manifest.encode();
        fs::write(directory.path().join(MANIFEST), &manifest).unwrap();
        fs::write(
            directory.path().join(BUNDLE),
            sign_manifest(&manifest, &key).unwrap(),
        )
        .unwrap();
        fs::write(directory.path().join(CUSTODY), lines).unwrap();
        fs::write(
            directory.path().join(CHECKPOINT),
            log.checkpoint(&key).unwrap(),
        )
        .unwrap();
        Collection {
            directory,
            key,
            log,
        }
    }
}

impl Collection {
    fn sealed() -> Self {
        Draft::new().seal()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn bytes(&self, path: &str) -> Vec<u8> {
        fs::read(self.at(path)).unwrap()
    }

    fn text(&self, path: &str) -> String {
        String::from_utf8(self.bytes(path)).unwrap()
    }

    fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.at(path), bytes).unwrap();
    }

    fn edit(&self, path: &str, from: &str, to: &str) {
        let text = self.text(path);
        assert!(text.contains(from), "{from:?} is not in {text}");
        self.put(path, text.replacen(from, to, 1));
    }

    fn key_id(&self) -> Sha256 {
        self.key.verifying_key().key_id()
    }

    fn verdict(&self) -> Verdict {
        self.verdict_by(&self.key)
    }

    fn verdict_by(&self, key: &SigningKey) -> Verdict {
        verify(
            &DirSource::open(self.directory.path()).unwrap(),
            &[key.verifying_key().clone()],
        )
    }

    fn problems(&self) -> Vec<String> {
        problems(&self.verdict())
    }
}

fn problems(verdict: &Verdict) -> Vec<String> {
    assert!(!verdict.intact());
    verdict.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn an_untouched_collection_is_intact_and_complete() {
    let collection = Collection::sealed();
    let verdict = collection.verdict();
    assert_eq!(verdict.problems, []);
    assert!(verdict.intact() && verdict.complete());
    assert_eq!(verdict.key, Some(collection.key_id()));
    assert_eq!(
        verdict.manifest_sha256,
        Some(Sha256::of(&collection.bytes(MANIFEST)))
    );
    assert_eq!(verdict.custody, Some(collection.log.head()));
    let on_disk = |path: &Path| fs::metadata(path).unwrap().len();
    let all = [
        TAR, INSPECT, DIFF, POD, MANIFEST, BUNDLE, CUSTODY, CHECKPOINT,
    ];
    assert_eq!(verdict.files, all.len() as u64);
    assert_eq!(
        verdict.bytes,
        all.iter()
            .map(|path| on_disk(&collection.at(path)))
            .sum::<u64>()
    );
}

#[test]
fn a_partial_collection_is_intact_and_not_complete() {
    let mut draft = Draft::new();
    draft.contents(TAR, &[0; 512]);
    draft.artifact(TAR).completeness = Completeness::incomplete("the runtime broke off");
    draft.manifest.outcome = Outcome::Partial;
    let verdict = draft.seal().verdict();
    assert_eq!(verdict.problems, []);
    assert!(verdict.intact() && !verdict.complete());
}

#[test]
fn a_broken_attempt_beside_the_whole_artifact_leaves_the_collection_complete() {
    let mut draft = Draft::new();
    draft.add_broken_attempt(TAR);
    let verdict = draft.seal().verdict();
    assert_eq!(verdict.problems, []);
    assert!(verdict.complete());
}

#[test]
fn a_changed_byte() {
    let collection = Collection::sealed();
    let mut tar = collection.bytes(TAR);
    let before = Sha256::of(&tar);
    tar[600] ^= 1;
    collection.put(TAR, &tar);
    assert_eq!(
        collection.problems(),
        [format!(
            "{TAR}: expected SHA-256 {before}, got {}; it was changed",
            Sha256::of(&tar)
        )]
    );
}

#[test]
fn a_shortened_and_a_lengthened_file() {
    let collection = Collection::sealed();
    collection.put(DIFF, b"A /tmp/");
    collection.put(INSPECT, b"{\"Id\":\"0123\"} ");
    assert_eq!(
        collection.problems(),
        [
            format!("{DIFF}: expected 9 bytes, got 7"),
            format!("{INSPECT}: expected 13 bytes, got 14")
        ]
    );
}

#[test]
fn a_missing_file() {
    let collection = Collection::sealed();
    fs::remove_file(collection.at(INSPECT)).unwrap();
    assert_eq!(
        collection.problems(),
        [format!("{INSPECT}: is in the manifest and not there")]
    );
}

#[test]
fn an_added_file() {
    let collection = Collection::sealed();
    collection.put("artifacts/worker2/planted.txt", "planted");
    assert_eq!(
        collection.problems(),
        ["artifacts/worker2/planted.txt: is there and not in the manifest"]
    );
}

#[test]
fn swapped_artifacts() {
    let mut draft = Draft::new();
    draft.contents(INSPECT, b"{\"kind\":\"Abc\"}");
    let collection = draft.seal();
    let (one, two) = (collection.bytes(INSPECT), collection.bytes(POD));
    collection.put(INSPECT, &two);
    collection.put(POD, &one);
    let (one, two) = (Sha256::of(&one), Sha256::of(&two));
    assert_eq!(
        collection.problems(),
        [
            format!("{INSPECT}: expected SHA-256 {one}, got {two}; these are the bytes of {POD}"),
            format!("{POD}: expected SHA-256 {two}, got {one}; these are the bytes of {INSPECT}"),
        ]
    );
}

#[test]
fn an_edited_manifest() {
    let collection = Collection::sealed();
    let at = collection.text(MANIFEST).find("shell in").unwrap();
    collection.edit(MANIFEST, "shell in", "smell in");
    assert_eq!(
        collection.problems(),
        [format!(
            "manifest.json: is not the manifest that was signed, from byte {} on; what follows is checked against the signed one",
            at + 1
        )]
    );
}

#[test]
fn an_edited_manifest_that_hides_an_added_file_does_not_hide_it() {
    let collection = Collection::sealed();
    let mut manifest = Manifest::decode(&collection.bytes(MANIFEST)).unwrap();
    manifest
        .artifacts
        .push(record("artifacts/planted.txt", b"planted"));
    collection.put("artifacts/planted.txt", b"planted");
    collection.put(MANIFEST, manifest.encode());
    let problems = collection.problems();
    assert!(problems[0].starts_with("manifest.json: is not the manifest that was signed"));
    assert_eq!(
        problems[1..],
        ["artifacts/planted.txt: is there and not in the manifest"]
    );
}

#[test]
fn a_manifest_that_is_not_there() {
    let collection = Collection::sealed();
    fs::remove_file(collection.at(MANIFEST)).unwrap();
    assert_eq!(collection.problems(), ["manifest.json: is not there"]);
}

#[test]
fn a_signature_that_is_not_there() {
    let collection = Collection::sealed();
    fs::remove_file(collection.at(BUNDLE)).unwrap();
    assert_eq!(
        collection.problems(),
        ["manifest.sigstore.json: is not there", UNSIGNED]
    );
}

#[test]
fn the_wrong_key() {
    let collection = Collection::sealed();
    let other = SigningKey::generate().unwrap();
    let id = collection.key_id().to_string();
    let given = other.verifying_key().key_id();
    assert_eq!(
        problems(&collection.verdict_by(&other)),
        [
            format!(
                "manifest.sigstore.json: signed with key {id}, expected one of the given keys: {given}; get the right public key from who runs the controller, not from where the evidence came from"
            ),
            format!(
                "custody.checkpoint: signed for {} with key id {}, expected this log and one of the given keys: {given}",
                collection.log.origin(),
                &id[..8]
            ),
            UNSIGNED.to_owned(),
        ]
    );
}

#[test]
fn no_key() {
    let collection = Collection::sealed();
    let verdict = verify(&DirSource::open(collection.directory.path()).unwrap(), &[]);
    assert_eq!(
        problems(&verdict)[0],
        "no public key was given to check the signatures with"
    );
}

#[test]
fn everything_signed_again_with_another_key() {
    let collection = Collection::sealed();
    let mallory = SigningKey::generate().unwrap();
    collection.edit(MANIFEST, "shell in", "smell in");
    collection.put(
        BUNDLE,
        sign_manifest(&collection.bytes(MANIFEST), &mallory).unwrap(),
    );
    collection.put(CHECKPOINT, collection.log.checkpoint(&mallory).unwrap());
    let problems = collection.problems();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].starts_with(&format!(
        "manifest.sigstore.json: signed with key {}, expected one of the given keys: {}",
        mallory.verifying_key().key_id(),
        collection.key_id()
    )));
    assert!(
        problems[1].starts_with("custody.checkpoint: signed for impound.dev/INC-1 with key id ")
    );
}

#[test]
fn a_signature_of_another_manifest() {
    let (one, two) = (Collection::sealed(), Collection::sealed());
    let signature = |bundle: &str| {
        bundle
            .lines()
            .find(|line| line.contains("\"sig\""))
            .unwrap()
            .to_owned()
    };
    one.edit(
        BUNDLE,
        &signature(&one.text(BUNDLE)),
        &signature(&two.text(BUNDLE)),
    );
    assert_eq!(
        one.problems(),
        [
            format!(
                "manifest.sigstore.json: the signature does not fit: key {} did not sign this manifest; the manifest in the bundle, the signature or the hint was changed",
                one.key_id()
            ),
            UNSIGNED.to_owned(),
        ]
    );
}

#[test]
fn nothing_large_is_read_on_the_word_of_an_unsigned_manifest() {
    let collection = Collection::sealed();
    let mut manifest = Manifest::decode(&collection.bytes(MANIFEST)).unwrap();
    // More than could be read while this test runs, and no byte of it on the disk.
    let huge = 4 << 40;
    manifest.artifacts[0].size = huge;
    fs::File::create(collection.at(DIFF))
        .and_then(|file| file.set_len(huge))
        .unwrap();
    collection.put(MANIFEST, manifest.encode());
    fs::remove_file(collection.at(BUNDLE)).unwrap();
    collection.put(INSPECT, "short");
    fs::remove_file(collection.at(POD)).unwrap();
    collection.put("planted", "x");
    let verdict = collection.verdict();
    assert_eq!(
        problems(&verdict),
        [
            "manifest.sigstore.json: is not there".to_owned(),
            format!("{INSPECT}: expected 13 bytes, got 5"),
            format!("{POD}: is in the manifest and not there"),
            "planted: is there and not in the manifest".to_owned(),
            UNSIGNED.to_owned(),
        ]
    );
    assert_eq!(verdict.files, 2, "manifest and checkpoint");
}

#[test]
fn a_bundle_of_garbage() {
    let collection = Collection::sealed();
    collection.put(BUNDLE, "garbage");
    assert_eq!(
        collection.problems(),
        [
            "manifest.sigstore.json: expected a Sigstore bundle with a public key's hint and a DSSE envelope: expected value at line 1 column 1",
            UNSIGNED
        ]
    );
}

#[test]
fn an_incomplete_tar_claimed_complete() {
    let mut draft = Draft::new();
    let whole = draft.file(TAR).clone();
    draft.contents(TAR, &whole[..1024]);
    assert_eq!(
        draft.seal().problems(),
        [format!(
            "{TAR}: is recorded as complete and is not: the tar breaks off at byte 1024, after member 1, without the two zero blocks that end a tar"
        )]
    );
}

#[test]
fn a_collection_claimed_complete_that_is_not() {
    let mut draft = Draft::new();
    draft.artifact(TAR).completeness = Completeness::incomplete("the runtime broke off");
    draft.manifest.missing = vec![Missing {
        path: "artifacts/worker2/default_web/sidecar".parse().unwrap(),
        reason: "the agent did not answer".to_owned(),
    }];
    assert_eq!(
        draft.seal().problems(),
        [
            format!("{TAR}: is incomplete, and yet the manifest says the collection is complete"),
            "artifacts/worker2/default_web/sidecar: is missing, and yet the manifest says the collection is complete".to_owned(),
        ]
    );
}

#[test]
fn a_custody_log_that_was_cut() {
    let collection = Collection::sealed();
    let text = collection.text(CUSTODY);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    assert_eq!(lines.len(), 9, "requested, four read and stored");
    collection.put(CUSTODY, lines[..4].concat());
    assert_eq!(
        collection.problems(),
        [
            "custody.jsonl: the manifest was made over 9 entries, and only 4 are there; the log was cut"
        ]
    );
    collection.put(CUSTODY, &text[..text.len() - 5]);
    assert_eq!(
        collection.problems(),
        ["custody.jsonl: line 9: the file ends without a newline; the last line is cut"]
    );
    fs::remove_file(collection.at(CUSTODY)).unwrap();
    assert_eq!(collection.problems(), ["custody.jsonl: is not there"]);
}

#[test]
fn a_custody_log_that_goes_on_after_the_seal() {
    let collection = Collection::sealed();
    let mut log = collection.log.clone();
    let line = log.append(Entry::new(Event::Accessed, "eve", TAR)).unwrap();
    collection.put(CUSTODY, [collection.bytes(CUSTODY), line].concat());
    assert_eq!(
        collection.problems(),
        [
            "custody.jsonl: the manifest was made over 9 entries, and 10 are there; entries were added"
        ]
    );
    collection.put(CHECKPOINT, log.checkpoint(&collection.key).unwrap());
    assert_eq!(collection.problems().len(), 2);
}

#[test]
fn reordered_entries() {
    let collection = Collection::sealed();
    let text = collection.text(CUSTODY);
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    lines.swap(2, 3);
    collection.put(CUSTODY, lines.concat());
    assert_eq!(
        collection.problems(),
        [
            "custody.jsonl: line 3: expected entry 2, got entry 3; lines were removed, added or moved"
        ]
    );
}

#[test]
fn a_changed_entry() {
    let collection = Collection::sealed();
    collection.edit(CUSTODY, "\"who\":\"ada\"", "\"who\":\"eve\"");
    let log = CustodyLog::read(
        collection.log.origin(),
        &collection.bytes(CUSTODY)[..],
        |_| (),
    )
    .unwrap();
    let (sealed, got) = (collection.log.head().root, log.head().root);
    assert_eq!(
        collection.problems(),
        [format!(
            "custody.jsonl: expected the first 9 entries to have root {sealed} as the manifest says, they have {got}; entries were changed"
        )]
    );
}

/// The first three entries, with what says so of a checkpoint over them.
fn rolled_back(collection: &Collection) -> (String, CustodyLog, String) {
    let text = collection.text(CUSTODY);
    let early: String = text.split_inclusive('\n').take(3).collect();
    let log = CustodyLog::read(collection.log.origin(), early.as_bytes(), |_| ()).unwrap();
    let (now, then) = (collection.log.head(), log.head());
    let said = format!(
        "custody.checkpoint: covers 3 entries with root {}, and the manifest was made over 9 with root {}; another checkpoint was put in its place",
        then.root, now.root
    );
    (early, log, said)
}

#[test]
fn a_rolled_back_checkpoint() {
    let collection = Collection::sealed();
    let (_, early, said) = rolled_back(&collection);
    collection.put(CHECKPOINT, early.checkpoint(&collection.key).unwrap());
    assert_eq!(collection.problems(), [said]);
}

#[test]
fn a_log_and_checkpoint_rolled_back_together() {
    let collection = Collection::sealed();
    let (lines, early, said) = rolled_back(&collection);
    collection.put(CUSTODY, lines);
    collection.put(CHECKPOINT, early.checkpoint(&collection.key).unwrap());
    assert_eq!(
        collection.problems(),
        [
            said.as_str(),
            "custody.jsonl: the manifest was made over 9 entries, and only 3 are there; the log was cut"
        ]
    );
}

#[test]
fn a_checkpoint_of_another_case() {
    let collection = Collection::sealed();
    let other = CustodyLog::new("impound.dev/INC-2");
    collection.put(CHECKPOINT, other.checkpoint(&collection.key).unwrap());
    assert_eq!(
        collection.problems(),
        [
            "custody.checkpoint: expected the checkpoint of impound.dev/INC-1, got that of impound.dev/INC-2"
        ]
    );
}

/// A counter-signature of the manifest by `key`, and where it belongs.
fn countersignature(collection: &Collection, key: &SigningKey) -> (String, Vec<u8>) {
    let path = format!("signatures/{}.sigstore.json", key.verifying_key().key_id());
    let bundle = sign_manifest(&collection.bytes(MANIFEST), key).unwrap();
    fs::create_dir_all(collection.at("signatures")).unwrap();
    (path, bundle)
}

#[test]
fn somebody_vouches_for_a_collection_besides() {
    let collection = Collection::sealed();
    let ada = SigningKey::generate().unwrap();
    let (path, bundle) = countersignature(&collection, &ada);
    collection.put(&path, bundle);
    let verdict = collection.verdict();
    assert_eq!(verdict.problems, []);
    assert_eq!(verdict.countersigned, []);
    let id = ada.verifying_key().key_id();
    assert_eq!(verdict.unchecked, [id.to_string()]);
    let keys = [&collection.key, &ada].map(|key| key.verifying_key().clone());
    let source = DirSource::open(collection.directory.path()).unwrap();
    let verdict = verify(&source, &keys);
    assert_eq!(verdict.problems, []);
    assert_eq!(verdict.countersigned, [id]);
    assert_eq!(verdict.key, Some(collection.key_id()));
}

#[test]
fn a_counter_signature_of_something_else() {
    let collection = Collection::sealed();
    let (ada, eve) = (
        SigningKey::generate().unwrap(),
        SigningKey::generate().unwrap(),
    );
    let (path, _) = countersignature(&collection, &ada);
    let (_, by_eve) = countersignature(&collection, &eve);
    collection.put(&path, by_eve);
    assert_eq!(
        collection.problems(),
        [format!(
            "{path}: is named after key {} and says it is signed with {}",
            ada.verifying_key().key_id(),
            eve.verifying_key().key_id()
        )]
    );
    collection.put(&path, sign_manifest(b"other", &ada).unwrap());
    assert_eq!(
        collection.problems(),
        [format!(
            "{path}: vouches for another manifest than the one that manifest.sigstore.json signs"
        )]
    );
    collection.put(&path, "{}");
    assert_eq!(collection.problems().len(), 1);
    fs::remove_file(collection.at(&path)).unwrap();
    collection.put("signatures/note.txt", "I saw it");
    assert_eq!(
        collection.problems(),
        ["signatures/note.txt: is there and not in the manifest"]
    );
}

#[test]
fn a_time_when_its_key_was_not_in_use_is_warned_of_and_breaks_nothing() {
    let collection = Collection::sealed();
    let key = collection.key.verifying_key().clone();
    let source = DirSource::open(collection.directory.path()).unwrap();
    let at = |text: &str| Some(text.parse().unwrap());
    let (before, after) = ("2026-01-01T00:00:00.000000Z", "2026-02-01T00:00:00.000000Z");
    let warned = |from: Option<&str>, until: Option<&str>, expected: &str| {
        let key = key.clone().valid(from.and_then(at), until.and_then(at));
        let verdict = verify(&source, &[key]);
        assert!(verdict.complete(), "{:?}", verdict.problems);
        let said: Vec<_> = verdict.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(said.join("\n"), expected);
        let ring = tempfile::NamedTempFile::new().unwrap();
        let listed = serde_json::json!({ "keys": [{
            "key_id": collection.key_id(),
            "public_key": collection.key.verifying_key().to_pem().unwrap(),
            "valid_from": from,
            "valid_until": until,
        }] });
        fs::write(ring.path(), listed.to_string()).unwrap();
        let (code, said) = script::all_by(collection.directory.path(), &[ring.path().to_owned()]);
        assert_eq!(code, 0, "{said}");
        let said = said
            .lines()
            .filter_map(|line| line.strip_prefix("WARNING: "));
        assert_eq!(said.collect::<Vec<_>>().join("\n"), expected);
    };
    let id = key.key_id();
    warned(Some(before), Some(after), "");
    warned(
        None,
        Some(before),
        &format!(
            "manifest.json: says it was made at 2026-01-31T03:04:05.678901Z, and key {id} was out of use from {before} on"
        ),
    );
    warned(
        Some(after),
        None,
        &format!(
            "manifest.json: says it was made at 2026-01-31T03:04:05.678901Z, and key {id} was not in use before {after}"
        ),
    );
}

#[test]
fn an_edited_checkpoint() {
    let collection = Collection::sealed();
    collection.edit(CHECKPOINT, "\n9\n", "\n10\n");
    assert_eq!(
        collection.problems(),
        [format!(
            "custody.checkpoint: the signature does not fit: key {} did not sign this checkpoint; it was changed",
            collection.key_id()
        )]
    );
}

#[test]
fn an_artifact_that_was_never_logged() {
    let mut draft = Draft::new();
    draft.logged = false;
    assert_eq!(
        draft.seal().problems(),
        [DIFF, TAR, INSPECT, POD]
            .map(|path| format!("{path}: no entry of custody.jsonl says it was stored"))
    );
}

#[test]
fn an_artifact_that_is_unknown_to_the_manifest() {
    let mut draft = Draft::new();
    let other = "other".parse().unwrap();
    let mut elsewhere = Entry::new(Event::Stored, "controller", "elsewhere").of(&other);
    elsewhere.artifact = Some(record("elsewhere.txt", b"of another collection"));
    let mut late = Entry::new(Event::Stored, "controller", "late");
    late.artifact = Some(record("late.txt", b"late"));
    let nothing = Entry::new(Event::Stored, "controller", "nothing");
    draft.later = vec![elsewhere, late, nothing];
    assert_eq!(
        draft.seal().problems(),
        [
            "late.txt: entry 10 of custody.jsonl says it was stored, and the manifest does not know it",
            "custody.jsonl: entry 11 says something was stored and not what",
        ]
    );
}

#[test]
fn an_artifact_left_out_of_the_manifest() {
    // The controller logged four artifacts, and the signed manifest has three of them.
    let collection = Collection::sealed();
    let mut manifest = Manifest::decode(&collection.bytes(MANIFEST)).unwrap();
    manifest
        .artifacts
        .retain(|record| record.path.as_str() != DIFF);
    collection.put(MANIFEST, manifest.encode());
    collection.put(
        BUNDLE,
        sign_manifest(&manifest.encode(), &collection.key).unwrap(),
    );
    fs::remove_file(collection.at(DIFF)).unwrap();
    assert_eq!(
        collection.problems(),
        [format!(
            "{DIFF}: entry 2 of custody.jsonl says it was stored, and the manifest does not know it"
        )]
    );
}

#[test]
fn a_record_that_differs_between_log_and_manifest() {
    let collection = Collection::sealed();
    let mut manifest = Manifest::decode(&collection.bytes(MANIFEST)).unwrap();
    manifest.artifacts[0].api_call = "GET /elsewhere".to_owned();
    collection.put(MANIFEST, manifest.encode());
    collection.put(
        BUNDLE,
        sign_manifest(&manifest.encode(), &collection.key).unwrap(),
    );
    assert_eq!(
        collection.problems(),
        [format!(
            "{DIFF}: entry 2 of custody.jsonl records it otherwise than the manifest"
        )]
    );
}

#[test]
fn a_symlink_in_place_of_a_file() {
    let collection = Collection::sealed();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), collection.bytes(INSPECT)).unwrap();
    fs::remove_file(collection.at(INSPECT)).unwrap();
    symlink(elsewhere.path(), collection.at(INSPECT)).unwrap();
    assert_eq!(
        collection.problems(),
        [format!(
            "{INSPECT}: is a symbolic link, evidence is plain files only"
        )]
    );
}

#[test]
fn a_symlink_in_place_of_a_directory() {
    let collection = Collection::sealed();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(collection.at("before"), elsewhere.path().join("before")).unwrap();
    symlink(elsewhere.path().join("before"), collection.at("before")).unwrap();
    assert_eq!(
        collection.problems(),
        ["before: is a symbolic link, evidence is plain files only"]
    );
}

#[test]
fn a_symlink_in_place_of_the_manifest() {
    let collection = Collection::sealed();
    fs::rename(collection.at(MANIFEST), collection.at("artifacts/m")).unwrap();
    symlink("artifacts/m", collection.at(MANIFEST)).unwrap();
    assert_eq!(
        collection.problems(),
        [
            "manifest.json: can't be read: is a symbolic link, evidence is plain files only",
            "manifest.json: is a symbolic link, evidence is plain files only",
            "artifacts/m: is there and not in the manifest"
        ]
    );
}

#[test]
fn a_pipe_and_a_socket_do_not_stop_the_check() {
    let collection = Collection::sealed();
    fs::remove_file(collection.at(INSPECT)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        collection.at(INSPECT),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(collection.at("socket")).unwrap();
    assert_eq!(
        collection.problems(),
        [
            format!("{INSPECT}: is a pipe, evidence is plain files only"),
            "socket: is a socket, evidence is plain files only".to_owned()
        ]
    );
    // Also when it is opened without having been listed.
    let source = DirSource::open(collection.directory.path()).unwrap();
    let error = source.open(&INSPECT.parse().unwrap()).err().unwrap();
    assert_eq!(error.to_string(), "is no plain file");
}

#[test]
fn names_that_no_evidence_can_have() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let collection = Collection::sealed();
    let bad = |name: &[u8]| {
        fs::write(
            collection.directory.path().join(OsStr::from_bytes(name)),
            "x",
        )
        .unwrap()
    };
    bad(b"with space");
    bad(b"new\nline");
    bad(b"latin1-\xe4");
    assert_eq!(
        collection.problems(),
        [
            "latin1-\\xe4: has a name that no evidence can have",
            "new\\nline: has a name that no evidence can have",
            "with space: has a name that no evidence can have",
        ]
    );
}

#[test]
fn a_path_trick_in_a_signed_manifest_opens_nothing() {
    // Even with the right key: such a manifest is not one.
    for trick in [
        "../../../../etc/passwd",
        "/etc/passwd",
        "before/../before/pod.json",
    ] {
        let collection = Collection::sealed();
        let manifest = collection.text(MANIFEST).replace(POD, trick);
        collection.put(MANIFEST, &manifest);
        collection.put(
            BUNDLE,
            sign_manifest(manifest.as_bytes(), &collection.key).unwrap(),
        );
        let problems = collection.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with("manifest.json: expected an in-toto Statement with an Impound manifest: evidence path: expected a relative path")
                && problems[0].contains(&format!("got {trick:?}")),
            "{problems:?}"
        );
    }
}

#[test]
fn an_empty_directory_and_no_directory() {
    let empty = tempfile::tempdir().unwrap();
    let key = SigningKey::generate().unwrap();
    let verdict = verify(
        &DirSource::open(empty.path()).unwrap(),
        &[key.verifying_key().clone()],
    );
    assert_eq!(
        problems(&verdict),
        [
            "manifest.sigstore.json: is not there",
            "manifest.json: is not there"
        ]
    );
    assert!(DirSource::open(empty.path().join("none")).is_err());
}

#[test]
fn the_root_itself_may_be_named_by_a_link() {
    let collection = Collection::sealed();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(collection.directory.path(), elsewhere.path().join("link")).unwrap();
    let source = DirSource::open(elsewhere.path().join("link")).unwrap();
    assert!(verify(&source, &[collection.key.verifying_key().clone()]).intact());
}

#[test]
fn progress_adds_up_to_the_artifacts() {
    let collection = Collection::sealed();
    let bytes = std::sync::atomic::AtomicU64::new(0);
    let verdict = verify_watched(
        &DirSource::open(collection.directory.path()).unwrap(),
        &[collection.key.verifying_key().clone()],
        &Given::default(),
        &|progress| {
            if let Progress::Bytes(n) = progress {
                bytes.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
            }
        },
    );
    let expected: u64 = verdict
        .manifest
        .unwrap()
        .artifacts
        .iter()
        .map(|record| record.size)
        .sum();
    assert_eq!(bytes.into_inner(), expected);
}

#[test]
fn a_log_head_of_nothing_is_still_checked() {
    let collection = Collection::sealed();
    let mut manifest = Manifest::decode(&collection.bytes(MANIFEST)).unwrap();
    manifest.custody = LogHead {
        size: u64::MAX,
        root: manifest.custody.root,
    };
    collection.put(MANIFEST, manifest.encode());
    collection.put(
        BUNDLE,
        sign_manifest(&manifest.encode(), &collection.key).unwrap(),
    );
    assert_eq!(
        collection.problems(),
        [
            format!(
                "custody.checkpoint: covers 9 entries with root {root}, and the manifest was made over {size} with root {root}; another checkpoint was put in its place",
                size = u64::MAX,
                root = manifest.custody.root
            ),
            format!(
                "custody.jsonl: the manifest was made over {} entries, and only 9 are there; the log was cut",
                u64::MAX
            )
        ]
    );
}
