//! Known answers for RFC 6962, the signed note, and every way a log can be tampered with.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::merkle;
use super::*;
use crate::sign::{SigningKey, VerifyingKey};
use crate::{verify_consistency, verify_inclusion};

const ORIGIN: &str = "impound.dev/INC-1/web";

/// The leaves of the test vectors of Certificate Transparency's reference implementation.
const LEAVES: [&[u8]; 8] = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57",
    b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
];

/// Their roots, for 1 to 8 leaves.
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn reference() -> CustodyLog {
    let mut log = CustodyLog::new(ORIGIN);
    LEAVES.iter().for_each(|bytes| log.push(bytes));
    log
}

fn hex(text: &str) -> Sha256 {
    text.parse().unwrap()
}

/// A log of `n` entries, and its lines.
fn log(n: u64) -> (CustodyLog, Vec<u8>) {
    let mut log = CustodyLog::new(ORIGIN);
    let mut lines = Vec::new();
    for at in 0..n {
        let mut entry = Entry::new(
            Event::Accessed,
            "spiffe://impound.dev/responder/custodian/ada",
            "diff.txt",
        );
        entry.why = Some(format!("look {at}"));
        lines.extend(log.append(entry).unwrap());
    }
    (log, lines)
}

fn read(lines: &[u8]) -> Result<CustodyLog, CustodyError> {
    CustodyLog::read(ORIGIN, lines, |_| ())
}

fn refusal(lines: &[u8]) -> String {
    read(lines).unwrap_err().to_string()
}

fn key() -> (SigningKey, Vec<VerifyingKey>) {
    let key = SigningKey::generate().unwrap();
    let public = key.verifying_key().clone();
    (key, vec![public])
}

#[test]
fn roots_are_those_of_the_reference_implementation() {
    let log = reference();
    for (at, root) in ROOTS.iter().enumerate() {
        assert_eq!(
            log.head_at(at as u64 + 1).unwrap().root,
            hex(root),
            "{} leaves",
            at + 1
        );
    }
    assert_eq!(
        log.head_at(0).unwrap().root,
        hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    );
    assert_eq!(log.head_at(9), None);
}

#[test]
fn proofs_are_those_of_the_reference_implementation() {
    let log = reference();
    assert_eq!(
        log.inclusion_proof(0, 8).unwrap(),
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ]
        .map(hex)
    );
    assert_eq!(
        log.inclusion_proof(5, 8).unwrap(),
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
        .map(hex)
    );
    assert_eq!(log.consistency_proof(1, 1).unwrap(), []);
    assert_eq!(
        log.consistency_proof(6, 8).unwrap(),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
        .map(hex)
    );
    assert_eq!(
        log.consistency_proof(2, 5).unwrap(),
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ]
        .map(hex)
    );
}

#[test]
fn every_proof_verifies_and_no_changed_one_does() {
    let log = reference();
    let other = Sha256::of(b"other");
    for size in 1..=8 {
        let head = log.head_at(size).unwrap();
        for seq in 0..size {
            let line = LEAVES[seq as usize];
            let proof = log.inclusion_proof(seq, size).unwrap();
            assert!(verify_inclusion(line, seq, size, head.root, &proof));
            assert!(!verify_inclusion(b"changed", seq, size, head.root, &proof));
            assert!(!verify_inclusion(line, seq + 1, size, head.root, &proof) || size == 1);
            assert!(!verify_inclusion(line, seq, size, other, &proof));
            assert!(!verify_inclusion(
                line,
                seq,
                size,
                head.root,
                &[&proof[..], &[other]].concat()
            ));
        }
        for old in 1..=size {
            let old_root = log.head_at(old).unwrap().root;
            let proof = log.consistency_proof(old, size).unwrap();
            assert!(
                verify_consistency(old, old_root, size, head.root, &proof),
                "{old} {size}"
            );
            assert!(!verify_consistency(old, other, size, head.root, &proof));
            assert!(!verify_consistency(old, old_root, size, other, &proof));
            assert!(!verify_consistency(
                old,
                old_root,
                size,
                head.root,
                &[&proof[..], &[other]].concat()
            ));
        }
    }
    assert_eq!(log.inclusion_proof(8, 8), None);
    assert_eq!(log.consistency_proof(0, 8), None);
    assert!(!verify_inclusion(b"", 0, 0, other, &[]));
    assert!(!verify_consistency(0, other, 8, other, &[]));
}

#[test]
fn a_log_reads_back_as_it_was_appended() {
    let (log, lines) = log(5);
    let mut seen = Vec::new();
    let again = CustodyLog::read(ORIGIN, &lines[..], |entry| seen.push(entry)).unwrap();
    assert_eq!(again.head(), log.head());
    assert_eq!(
        seen.iter().map(|entry| entry.seq).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    let first = lines.split(|byte| *byte == b'\n').next().unwrap();
    let proof = log.inclusion_proof(0, 5).unwrap();
    assert!(
        verify_inclusion(first, 0, 5, log.head().root, &proof),
        "the leaf is the line"
    );
}

#[test]
fn a_changed_log_is_named_for_what_is_wrong() {
    let (_, lines) = log(3);
    let text = String::from_utf8(lines.clone()).unwrap();
    let parts: Vec<&str> = text.split_inclusive('\n').collect();
    let turned = [parts[0], parts[2], parts[1]].concat();
    assert_eq!(
        refusal(turned.as_bytes()),
        "line 2: expected entry 1, got entry 2; lines were removed, added or moved"
    );
    assert_eq!(
        refusal(parts[1..].concat().as_bytes()),
        "line 1: expected entry 0, got entry 1; lines were removed, added or moved"
    );
    assert_eq!(
        refusal(&lines[..lines.len() - 1]),
        "line 3: the file ends without a newline; the last line is cut"
    );
    assert_eq!(
        refusal(text.replacen("\"seq\":1", "\"seq\": 1", 1).as_bytes()),
        "line 2: its bytes are not the canonical encoding of what they say; the line was edited"
    );
    assert!(refusal(b"\n").starts_with("line 1: expected a custody entry: EOF"));
    assert!(refusal(b"{}\n").starts_with("line 1: expected a custody entry: missing field"));
    assert_eq!(
        refusal(&vec![b'x'; LINE_LIMIT + 1]),
        "line 1: expected at most 1048576 bytes"
    );
    assert_eq!(
        refusal(&vec![b'x'; 3 * LINE_LIMIT]),
        "line 1: expected at most 1048576 bytes"
    );
}

#[test]
fn an_entry_too_long_to_be_read_is_not_written() {
    let mut log = CustodyLog::new(ORIGIN);
    let long = Entry::new(Event::Failed, "who", "x".repeat(LINE_LIMIT));
    assert_eq!(
        log.append(long).unwrap_err().to_string(),
        "line 1: expected at most 1048576 bytes"
    );
    assert_eq!(log.size(), 0);
}

#[test]
fn an_entry_is_one_line_whatever_it_says() {
    let mut log = CustodyLog::new(ORIGIN);
    let line = log
        .append(Entry::new(
            Event::Failed,
            "who",
            "two\nlines\r\u{2028}\u{0}",
        ))
        .unwrap();
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    read(&line).unwrap();
}

#[test]
fn a_checkpoint_opens_with_its_key_only() {
    let (log, _) = log(3);
    let (key, keys) = key();
    let note = log.checkpoint(&key).unwrap();
    let open = Checkpoint::open(&note, &keys).unwrap();
    assert_eq!(
        open,
        Checkpoint {
            origin: ORIGIN.to_owned(),
            head: log.head()
        }
    );
    let (_, others) = self::key();
    let id = keys[0].key_id().to_string();
    assert_eq!(
        Checkpoint::open(&note, &others).unwrap_err().to_string(),
        format!(
            "signed for {ORIGIN} with key id {}, expected this log and one of the given keys: {}",
            &id[..8],
            others[0].key_id()
        )
    );
}

#[test]
fn a_changed_checkpoint_is_refused() {
    let (log, _) = log(3);
    let (key, keys) = key();
    let note = String::from_utf8(log.checkpoint(&key).unwrap()).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(note.contains(from), "{from:?} is not in {note}");
        Checkpoint::open(note.replacen(from, to, 1).as_bytes(), &keys)
            .unwrap_err()
            .to_string()
    };
    let changed = format!(
        "the signature does not fit: key {} did not sign this checkpoint; it was changed",
        keys[0].key_id()
    );
    assert_eq!(refused("\n3\n", "\n2\n"), changed);
    assert_eq!(
        refused("\n3\n", "\n03\n"),
        "expected a checkpoint with the number of entries without sign and leading zeros in line 2"
    );
    assert_eq!(
        refused("\n3\n", "\n+3\n"),
        "expected a checkpoint with the number of entries without sign and leading zeros in line 2"
    );
    assert_eq!(
        refused("\n3\n", "\nx\n"),
        "expected a checkpoint with the number of entries in line 2"
    );
    assert_eq!(
        refused("\n\n", "\nextension\n\n"),
        "expected a checkpoint with three lines: origin, size, root"
    );
    assert_eq!(
        refused("\n\n", "\n"),
        "expected a checkpoint with an empty line after the text"
    );
    assert_eq!(
        refused("\u{2014} ", "-- "),
        "expected a checkpoint with a signature line \"\u{2014} <name> <base64>\""
    );
    assert_eq!(
        refused("\n3\n", "\n3\r\n"),
        "expected a checkpoint with text without control characters"
    );
    assert_eq!(
        Checkpoint::open(&vec![b'x'; CHECKPOINT_LIMIT as usize + 1], &keys)
            .unwrap_err()
            .to_string(),
        "expected a checkpoint of at most 4096 bytes, got 4097"
    );
    // Nor with a line more, a good one or one that nobody could check.
    let ours = note.lines().last().unwrap();
    for more in ["\u{2014} witness.example AAAAAAAA", ours, ""] {
        let two = format!("{note}{more}\n");
        assert!(
            Checkpoint::open(two.as_bytes(), &keys).is_err(),
            "{more:?} was taken"
        );
    }
    let (head, signature) = note.trim_end().rsplit_once(' ').unwrap();
    let signature = STANDARD.decode(signature).unwrap();
    let mirrored = [
        &signature[..4],
        &crate::sign::tests::mirrored(&signature[4..]),
    ]
    .concat();
    let mirrored = format!("{head} {}\n", STANDARD.encode(mirrored));
    assert!(matches!(
        Checkpoint::open(mirrored.as_bytes(), &keys),
        Err(CheckpointError::Signature(_))
    ));
}

#[test]
fn a_log_that_did_not_grow_from_its_checkpoint_is_refused() {
    let (three, lines) = log(3);
    let (five, _) = log(5);
    let check = |log: &CustodyLog, origin: &str, head| {
        log.check(&Checkpoint {
            origin: origin.to_owned(),
            head,
        })
        .map_err(|error| error.to_string())
    };
    let grown = {
        let mut grown = read(&lines).unwrap();
        grown
            .append(Entry::new(Event::Sealed, "who", "what"))
            .unwrap();
        grown
    };
    assert_eq!(check(&grown, ORIGIN, three.head()), Ok(()));
    assert_eq!(
        check(&three, ORIGIN, five.head()).unwrap_err(),
        "the checkpoint covers 5 entries, and only 3 are there; the log was cut"
    );
    let other = LogHead {
        size: 2,
        root: Sha256::of(b"other"),
    };
    assert_eq!(
        check(&three, ORIGIN, other).unwrap_err(),
        format!(
            "expected the first 2 entries to have root {}, they have {}; entries were changed",
            other.root,
            three.head_at(2).unwrap().root
        )
    );
    assert_eq!(
        check(&three, "impound.dev/INC-2/web", three.head()).unwrap_err(),
        "expected the checkpoint of impound.dev/INC-1/web, got that of impound.dev/INC-2/web"
    );
}

#[test]
fn openssl_checks_a_checkpoint_by_the_documented_commands() {
    let (log, _) = log(3);
    let (key, keys) = key();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("evidence.pub"),
        keys[0].to_pem().unwrap(),
    )
    .unwrap();
    let run = |note: &[u8]| {
        std::fs::write(directory.path().join("custody.checkpoint"), note).unwrap();
        Command::new("sh")
            .args([
                "-euc",
                "command -v openssl > /dev/null || exit 99
                sed '/^$/,$d' custody.checkpoint > text
                tail -n 1 custody.checkpoint | cut -d ' ' -f 3 | base64 -d | tail -c +5 > sig
                openssl dgst -sha256 -verify evidence.pub -signature sig text",
            ])
            .current_dir(directory.path())
            .output()
            .unwrap()
    };
    let note = log.checkpoint(&key).unwrap();
    let good = run(&note);
    assert_ne!(
        good.status.code(),
        Some(99),
        "this test needs the openssl command: install the package openssl"
    );
    assert!(
        good.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&good.stderr)
    );
    let text = String::from_utf8(note).unwrap();
    assert!(
        !run(text.replacen("\n3\n", "\n2\n", 1).as_bytes())
            .status
            .success()
    );
}

#[test]
fn a_log_that_grows_has_the_head_of_one_that_is_read() {
    let mut grown = CustodyLog::new("impound.dev/INC-1");
    let mut lines = Vec::new();
    let mut tail = CustodyLog::new("impound.dev/INC-1");
    for n in 0..70u64 {
        let line = grown.append(Entry::new(Event::Accessed, "ada", format!("{n}")));
        let line = line.unwrap();
        lines.extend_from_slice(&line);
        tail.extend(&line[..], |entry| assert_eq!(entry.seq, n))
            .unwrap();
        let leaves: Vec<_> = lines
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| merkle::leaf(line.strip_suffix(b"\n").unwrap()))
            .collect();
        assert_eq!(grown.head().root, merkle::root(&leaves), "{n}");
        assert_eq!(tail.head(), grown.head());
        assert_eq!(grown.head_at(n + 1), Some(grown.head()));
    }
}
