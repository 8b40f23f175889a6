//! The whole corpus of hostile tars, in collections that are signed: `impound verify` and `impound evidence
//! extract` come to the right verdict, write nothing elsewhere, and take little memory.

use std::fs;
use std::path::Path;
use std::process::Command;

use impound_evidence::{Completeness, SigningKey};
use tempfile::{NamedTempFile, TempDir};

use crate::collection::Collection;
use crate::corpus::corpus;
use crate::fake::{Ran, impound};
use crate::tars::{ended, header, link, pax, put, sum};

/// What each of the two commands may need at most, all of the program included.
const LIMIT_KIB: u64 = 64 << 10;

/// A signed collection with one tar.
struct Signed {
    collection: Collection,
    key: NamedTempFile,
    to: TempDir,
}

impl Signed {
    fn with(tar: Vec<u8>, complete: bool) -> Self {
        let pair = SigningKey::generate().unwrap();
        let [secret, key] = [(); 2].map(|()| NamedTempFile::new().unwrap());
        fs::write(secret.path(), pair.to_pem().unwrap().as_str()).unwrap();
        fs::write(key.path(), pair.verifying_key().to_pem().unwrap()).unwrap();
        let collection = match complete {
            true => Collection::sealed_with(secret.path(), tar),
            false => {
                let completeness = Completeness::incomplete("the controller saw no end");
                Collection::sealed_partial(secret.path(), tar, completeness)
            }
        };
        Self {
            collection,
            key,
            to: tempfile::tempdir().unwrap(),
        }
    }

    fn run(&self, arguments: &[&str]) -> (Ran, u64) {
        let from = self.collection.directory.path().to_str().unwrap();
        let key = ["--key", self.key.path().to_str().unwrap()];
        let (verb, more) = arguments.split_at(arguments.len() - usize::from(arguments.len() > 1));
        measured(&impound(&[verb, &[from], &key, more].concat()))
    }

    fn verify(&self) -> (Ran, u64) {
        self.run(&["verify"])
    }

    fn extract(&self) -> (Ran, u64) {
        let to = format!("--to={}", self.to.path().join("out").display());
        self.run(&["evidence", "extract", &to])
    }
}

/// Runs it; the most memory in KiB that it had, as the kernel counted.
fn measured(command: &Command) -> (Ran, u64) {
    let program = "import resource, subprocess, sys\ncode = subprocess.call(sys.argv[1:])\n\
        print('peak KiB:', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\nsys.exit(code)";
    let mut python = Command::new("python3");
    python.args(["-c", program]);
    python.arg(command.get_program()).args(command.get_args());
    let ran = Ran::from(python.output().unwrap_or_else(|error| {
        panic!("python3 (Debian package python3) measures memory here: {error}")
    }));
    let peak = ran
        .out
        .lines()
        .last()
        .and_then(|line| line.strip_prefix("peak KiB: "));
    let peak = peak.unwrap_or_else(|| panic!("no figure in {ran:?}"));
    let peak = peak.parse().unwrap();
    (ran, peak)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_hostile_corpus_is_verified_and_extracted_with_the_right_verdict_in_less_than_64_mib() {
    let mut most = 0;
    for case in corpus() {
        let signed = Signed::with(case.tar, case.incomplete.is_none());
        let (ran, peak) = signed.verify();
        let expected = if case.incomplete.is_some() { 3 } else { 0 };
        assert_eq!(ran.code, expected, "{}: {ran:?}", case.name);
        most = most.max(peak);
        let (ran, peak) = signed.extract();
        most = most.max(peak);
        assert!(matches!(ran.code, 0 | 3 | 6), "{}: {ran:?}", case.name);
        let incomplete = ran
            .out
            .contains("the tar is INCOMPLETE: the controller saw no end");
        assert_eq!(
            incomplete,
            case.incomplete.is_some(),
            "{}: {ran:?}",
            case.name
        );
        let out = signed.to.path().join("out");
        let stem = "evidence-compromised-nginx-0123456789ab";
        let remarks = format!("{stem}.extraction.jsonl");
        let said = fs::read_to_string(out.join(&remarks)).unwrap();
        let rest = said.matches("everything from here on is left out").count();
        assert_eq!(rest, usize::from(incomplete), "{}: {said}", case.name);
        if let Some(part) = case.incomplete {
            let part = serde_json::to_string(part).unwrap();
            assert!(
                said.contains(part.trim_matches('"')),
                "{}: {said}",
                case.name
            );
        }
        assert_eq!(names(signed.to.path()), ["out"], "{}", case.name);
        assert_eq!(names(&out), [stem, &remarks], "{}", case.name);
    }
    println!("most of all: {most} KiB");
    assert!(most < LIMIT_KIB, "{most} KiB");
}

/// Files, directories, links, pipes and, every so often, headers as large as they may be.
#[test]
fn a_million_entries_are_verified_and_extracted_in_less_than_64_mib() {
    let mut parts = vec![header(b"0.file", b'0', 0)];
    let long = vec![0xff; 1000 << 10];
    for n in 1..1_000_000_u32 {
        let name = format!("{}/{n}.{}", n % 1000, "x".repeat(80));
        let mut block = match n % 16 {
            0 => link(b"x", b'2', &[b't'; 100]),
            1 => link(b"x", b'1', b"0.file"),
            2 | 3 => header(b"x", b'5', 0),
            4 => header(b"x", b'0', 0),
            _ => header(b"x", b'6', 0),
        };
        put(&mut block, 0, name.as_bytes());
        sum(&mut block);
        if n % 100_000 == 0 {
            block = [pax(b'x', &[(b"SCHILY.xattr.user.x", &long)]), block].concat();
        }
        parts.push(block);
    }
    let signed = Signed::with(ended(&parts), true);
    drop(parts);
    let (ran, verified) = signed.verify();
    assert_eq!(ran.code, 0, "{ran:?}");
    let (ran, extracted) = signed.extract();
    assert_eq!(ran.code, 3, "pipes are left out: {ran:?}");
    assert!(ran.out.contains("125000 directories"), "{ran:?}");
    println!("verified with {verified} KiB, extracted with {extracted} KiB");
    assert!(
        verified.max(extracted) < LIMIT_KIB,
        "{verified} and {extracted} KiB"
    );
}
