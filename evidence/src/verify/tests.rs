//! A good collection, and one broken collection for every way it can be broken, each with exactly
//! what is said about it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::custody::{CustodyLog, Entry, Event};
use crate::manifest::Missing;
use crate::manifest::tests::{record, sample};
use crate::sign::SigningKey;
use crate::sign::tests::mirrored;
use crate::source::{DirSource, OpenFile};
use crate::tar::Completeness;
use crate::{ArtifactRecord, LogHead, origin, sign_manifest};

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
    /// Appended after the seal.
    later: Vec<Entry>,
}

struct Collection {
    directory: tempfile::TempDir,
    key: SigningKey,
    log: CustodyLog,
}

impl Draft {
    fn new() -> Self {
        // One member, "hello", with 512 bytes of contents.
        let mut tar = vec![0; 512 + 512 + 1024];
        tar[..5].copy_from_slice(b"hello");
        tar[124..135].copy_from_slice(b"00000001000");
        tar[148..156].fill(b' ');
        tar[156] = b'0';
        tar[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = tar[..512].iter().map(|byte| u32::from(*byte)).sum();
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar[512..1024].fill(b'h');
        let files: Vec<(String, Vec<u8>)> = vec![
            (DIFF.to_owned(), b"A /tmp/x\n".to_vec()),
            (TAR.to_owned(), tar),
            (INSPECT.to_owned(), b"{\"Id\":\"0123\"}".to_vec()),
            (POD.to_owned(), b"{\"kind\":\"Pod\"}".to_vec()),
        ];
        let records = files
            .iter()
            .map(|(path, bytes)| record(path, bytes))
            .collect();
        Self {
            files,
            manifest: sample(records),
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

    /// Replaces a file's bytes before they are recorded.
    fn contents(&mut self, path: &str, bytes: &[u8]) {
        self.files
            .iter_mut()
            .find(|(known, _)| known == path)
            .unwrap()
            .1 = bytes.to_vec();
        let kept = self.artifact(path).completeness.clone();
        *self.artifact(path) = ArtifactRecord {
            completeness: kept,
            ..record(path, bytes)
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

    fn seal(mut self) -> Collection {
        let directory = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        for (path, bytes) in &self.files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let mut log = CustodyLog::new(origin(&self.manifest.case, &self.manifest.collection));
        let mut lines = log
            .append(Entry::new(Event::Requested, "ada", "web"))
            .unwrap();
        for record in self.manifest.artifacts.iter().filter(|_| self.logged) {
            for event in [Event::Read, Event::Stored] {
                let mut entry = Entry::new(event, "controller", record.path.as_str());
                entry.artifact = Some(record.clone());
                lines.extend(log.append(entry).unwrap());
            }
        }
        self.manifest.custody = log.head();
        let manifest = self.manifest.encode();
        fs::write(directory.path().join(MANIFEST), &manifest).unwrap();
        fs::write(
            directory.path().join(BUNDLE),
            sign_manifest(&manifest, &key),
        )
        .unwrap();
        self.later
            .insert(0, Entry::new(Event::Sealed, "controller", MANIFEST));
        for entry in self.later {
            lines.extend(log.append(entry).unwrap());
        }
        fs::write(directory.path().join(CUSTODY), lines).unwrap();
        fs::write(directory.path().join(CHECKPOINT), log.checkpoint(&key)).unwrap();
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
        verify(&self.copy(|_| ()), &[key.verifying_key().clone()])
    }

    /// The collection as a source in which, instead of time passing, `writer` is told how often it
    /// was waited for.
    fn copy<W: Fn(u32) + Sync>(&self, writer: W) -> Copied<W> {
        Copied {
            directory: DirSource::open(self.directory.path()).unwrap(),
            pauses: AtomicU32::new(0),
            writer,
        }
    }

    fn problems(&self) -> Vec<String> {
        problems(&self.verdict())
    }
}

struct Copied<W> {
    directory: DirSource,
    pauses: AtomicU32,
    writer: W,
}

impl<W: Fn(u32) + Sync> EvidenceSource for Copied<W> {
    fn list(&self) -> std::io::Result<Listing> {
        self.directory.list()
    }

    fn open(&self, path: &EvidencePath) -> std::io::Result<OpenFile> {
        self.directory.open(path)
    }

    fn pause(&self, _: Duration) {
        (self.writer)(self.pauses.fetch_add(1, Ordering::Relaxed) + 1);
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
    collection.put(BUNDLE, sign_manifest(&collection.bytes(MANIFEST), &mallory));
    collection.put(CHECKPOINT, collection.log.checkpoint(&mallory));
    let problems = collection.problems();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].starts_with(&format!(
        "manifest.sigstore.json: signed with key {}, expected one of the given keys: {}",
        mallory.verifying_key().key_id(),
        collection.key_id()
    )));
    assert!(
        problems[1].starts_with(
            "custody.checkpoint: signed for impound.dev/INC-1/web-5d4f-x7 with key id "
        )
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
    let whole = draft
        .files
        .iter()
        .find(|(path, _)| path == TAR)
        .unwrap()
        .1
        .clone();
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
    assert_eq!(lines.len(), 10, "requested, four read and stored, sealed");
    collection.put(CUSTODY, lines[..9].concat());
    assert_eq!(
        collection.problems(),
        ["custody.jsonl: the checkpoint covers 10 entries, and only 9 are there; the log was cut"]
    );
    collection.put(CUSTODY, lines[..4].concat());
    assert_eq!(
        collection.problems(),
        [
            "custody.jsonl: the checkpoint covers 10 entries, and only 4 are there; the log was cut",
            "custody.jsonl: the manifest was made over 9 entries, and only 4 are there; the log was cut"
        ]
    );
    collection.put(CUSTODY, &text[..text.len() - 5]);
    assert_eq!(
        collection.problems(),
        ["custody.jsonl: line 10: the file ends without a newline; the last line is cut"]
    );
    fs::remove_file(collection.at(CUSTODY)).unwrap();
    assert_eq!(collection.problems(), ["custody.jsonl: is not there"]);
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
    let expected = |size| {
        let head = |log: &CustodyLog| log.head_at(size).unwrap().root;
        (head(&collection.log), head(&log))
    };
    let ((all, all_got), (sealed, sealed_got)) = (expected(10), expected(9));
    assert_eq!(
        collection.problems(),
        [
            format!(
                "custody.jsonl: expected the first 10 entries to have root {all}, they have {all_got}; entries were changed"
            ),
            format!(
                "custody.jsonl: expected the first 9 entries to have root {sealed} as the manifest says, they have {sealed_got}; entries were changed"
            ),
        ]
    );
}

#[test]
fn a_rolled_back_checkpoint() {
    let collection = Collection::sealed();
    let text = collection.text(CUSTODY);
    let early: String = text.split_inclusive('\n').take(3).collect();
    let early = CustodyLog::read(collection.log.origin(), early.as_bytes(), |_| ()).unwrap();
    collection.put(CHECKPOINT, early.checkpoint(&collection.key));
    assert_eq!(
        collection.problems(),
        [
            "custody.checkpoint: covers 3 of 10 entries; either entries were added without a signature or an older checkpoint was put back"
        ]
    );
}

#[test]
fn a_log_and_checkpoint_rolled_back_together_to_before_the_seal() {
    let collection = Collection::sealed();
    let text = collection.text(CUSTODY);
    let early: String = text.split_inclusive('\n').take(3).collect();
    collection.put(CUSTODY, &early);
    let early = CustodyLog::read(collection.log.origin(), early.as_bytes(), |_| ()).unwrap();
    collection.put(CHECKPOINT, early.checkpoint(&collection.key));
    assert_eq!(
        collection.problems(),
        [
            "custody.jsonl: the manifest was made over 9 entries, and only 3 are there; the log was cut"
        ]
    );
}

#[test]
fn a_log_that_grows_while_it_is_checked_is_waited_for() {
    let collection = Collection::sealed();
    let mut log = collection.log.clone();
    let line = log.append(Entry::new(Event::Accessed, "ada", TAR)).unwrap();
    let whole = [collection.bytes(CUSTODY), line].concat();
    // Torn first, then whole and not signed yet, then signed.
    collection.put(CUSTODY, &whole[..whole.len() - 7]);
    let source = collection.copy(|pauses| match pauses {
        3 => collection.put(CUSTODY, &whole),
        5 => collection.put(CHECKPOINT, log.checkpoint(&collection.key)),
        _ => {}
    });
    let verdict = verify(&source, &[collection.key.verifying_key().clone()]);
    assert_eq!(verdict.problems, []);
    assert_eq!(verdict.custody, Some(log.head()));
    assert_eq!(source.pauses.into_inner(), 5);
    assert_eq!(verdict.files, 8);
}

#[test]
fn an_entry_that_nobody_signs_is_waited_for_only_so_long() {
    let collection = Collection::sealed();
    let line = collection
        .log
        .clone()
        .append(Entry::new(Event::Accessed, "eve", TAR));
    collection.put(CUSTODY, [collection.bytes(CUSTODY), line.unwrap()].concat());
    let source = collection.copy(|_| ());
    let verdict = verify(&source, &[collection.key.verifying_key().clone()]);
    assert_eq!(
        problems(&verdict),
        [
            "custody.checkpoint: covers 10 of 11 entries; either entries were added without a signature or an older checkpoint was put back"
        ]
    );
    assert_eq!(source.pauses.into_inner(), 19);
}

#[test]
fn a_checkpoint_of_another_collection() {
    let collection = Collection::sealed();
    let other = CustodyLog::new("impound.dev/INC-2/web");
    collection.put(CHECKPOINT, other.checkpoint(&collection.key));
    assert_eq!(
        collection.problems(),
        [
            "custody.jsonl: expected the checkpoint of impound.dev/INC-1/web-5d4f-x7, got that of impound.dev/INC-2/web"
        ]
    );
}

#[test]
fn an_edited_checkpoint() {
    let collection = Collection::sealed();
    collection.edit(CHECKPOINT, "\n10\n", "\n11\n");
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
fn an_artifact_that_was_stored_after_the_seal_or_is_unknown_to_the_manifest() {
    let mut draft = Draft::new();
    let mut late = Entry::new(Event::Stored, "controller", "late");
    late.artifact = Some(record("late.txt", b"late"));
    let mut nothing = Entry::new(Event::Stored, "controller", "nothing");
    nothing.artifact = None;
    draft.later = vec![late, nothing];
    assert_eq!(
        draft.seal().problems(),
        [
            "late.txt: entry 10 of custody.jsonl says it was stored after the manifest was made",
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
    collection.put(BUNDLE, sign_manifest(&manifest.encode(), &collection.key));
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
    collection.put(BUNDLE, sign_manifest(&manifest.encode(), &collection.key));
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
        collection.put(BUNDLE, sign_manifest(manifest.as_bytes(), &collection.key));
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
    collection.put(BUNDLE, sign_manifest(&manifest.encode(), &collection.key));
    assert_eq!(
        collection.problems(),
        [format!(
            "custody.jsonl: the manifest was made over {} entries, and only 10 are there; the log was cut",
            u64::MAX
        )]
    );
}

/// What `verify.sh`, which uses nothing of ours, says of the collection: exit code and last line.
fn script(collection: &Collection) -> (i32, String) {
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(key.path(), collection.key.verifying_key().to_pem().unwrap()).unwrap();
    let output = std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/verify.sh"))
        .arg(collection.directory.path())
        .arg(key.path())
        .output()
        .unwrap();
    let code = output.status.code().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_ne!(code, 2, "this test needs openssl, jq and coreutils: {text}");
    (code, text.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn a_script_without_our_program_comes_to_the_same_verdict() {
    assert_eq!(
        script(&Collection::sealed()),
        (
            0,
            "intact; the manifest calls the collection complete".to_owned()
        )
    );
    type Break = fn(&Collection);
    let broken: [(&str, Break); 15] = [
        ("a file is missing or was changed", |it| {
            it.put(DIFF, b"A /tmp/y\n")
        }),
        ("a file is missing or was changed", |it| {
            fs::remove_file(it.at(POD)).unwrap()
        }),
        ("other files than the manifest's: planted", |it| {
            it.put("planted", "x")
        }),
        ("manifest.json is not what was signed", |it| {
            it.edit(MANIFEST, "shell in", "smell in")
        }),
        (
            "the signature over the manifest does not fit the key",
            |it| {
                let other = SigningKey::generate().unwrap();
                it.put(BUNDLE, sign_manifest(&it.bytes(MANIFEST), &other));
            },
        ),
        (
            "the signature over the custody log's head does not fit the key",
            |it| {
                it.edit(CHECKPOINT, "\n10\n", "\n11\n");
            },
        ),
        (
            "the custody log has another number of entries than was signed",
            |it| {
                let text = it.text(CUSTODY);
                it.put(
                    CUSTODY,
                    text.split_inclusive('\n').take(9).collect::<String>(),
                );
            },
        ),
        (
            "the custody log's entries are not those that were signed",
            |it| it.edit(CUSTODY, "controller", "kontroller"),
        ),
        (
            "the custody log does not begin as the manifest says",
            |it| {
                it.edit(CUSTODY, "controller", "kontroller");
                let origin = it.text(CHECKPOINT).lines().next().unwrap().to_owned();
                let lines = it.bytes(CUSTODY);
                let log = CustodyLog::read(&origin, &lines[..], |_| ()).unwrap();
                it.put(CHECKPOINT, log.checkpoint(&it.key));
            },
        ),
        ("links or devices among the evidence: ./before/link", |it| {
            symlink("pod.json", it.at("before/link")).unwrap();
        }),
        (
            "the manifest names a path that no evidence can have",
            |it| {
                let manifest = it.text(MANIFEST).replace(POD, "../../../etc/passwd");
                it.put(MANIFEST, &manifest);
                it.put(BUNDLE, sign_manifest(manifest.as_bytes(), &it.key));
            },
        ),
        ("the bundle names another key", |it| {
            it.edit(BUNDLE, &it.key_id().to_string(), "evidence")
        }),
        (
            "the signature over the manifest is not the one with low s",
            |it| {
                let open = OpenBundle::decode(&it.bytes(BUNDLE)).unwrap();
                let old = STANDARD.encode(open.signature());
                let new = STANDARD.encode(mirrored(open.signature()));
                it.edit(BUNDLE, &old, &new);
            },
        ),
        (
            "the custody log's head has another form than text and one signature",
            |it| {
                let note = it.text(CHECKPOINT);
                it.put(
                    CHECKPOINT,
                    format!("{note}\u{2014} witness.example AAAAAAAA\n"),
                );
            },
        ),
        ("the custody log is of another collection", |it| {
            let lines = it.bytes(CUSTODY);
            let log = CustodyLog::read("impound.dev/INC-2/web", &lines[..], |_| ()).unwrap();
            it.put(CHECKPOINT, log.checkpoint(&it.key));
        }),
    ];
    let mut attempt = Draft::new();
    attempt.add_broken_attempt(TAR);
    assert_eq!(script(&attempt.seal()).0, 0);
    let mut alone = Draft::new();
    alone.add_broken_attempt("artifacts/elsewhere");
    let mut missing = Draft::new();
    missing.manifest.missing = vec![Missing {
        path: "artifacts/gone".parse().unwrap(),
        reason: "the agent did not answer".to_owned(),
    }];
    for draft in [alone, missing] {
        let collection = draft.seal();
        assert_eq!(
            script(&collection),
            (
                1,
                "NOT INTACT: the manifest calls the collection complete, and something is missing or incomplete".to_owned()
            )
        );
        assert!(!collection.verdict().intact());
    }
    for (said, break_it) in broken {
        let collection = Collection::sealed();
        break_it(&collection);
        assert_eq!(script(&collection), (1, format!("NOT INTACT: {said}")));
        assert!(!collection.verdict().intact(), "{said}");
    }
}
