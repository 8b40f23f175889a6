//! Random damage to everything that this crate parses and did not write itself.

use std::path::{Component, Path};

use impound_evidence::age::{Identity, Recipient};
use impound_evidence::index::{BodyIndex, Changes, FileIndex, Kind, Limits};
use impound_evidence::{
    CaseId, Checkpoint, CollectionName, CustodyLog, Entry, EvidencePath, Keyring, Manifest, Moment,
    OpenBundle, Sha256, SigningKey, StampAuthority, StampRequest, TarEnd, Timestamp, VerifyingKey,
    sign_manifest, stamp_time,
};
use impound_fuzz::{Random, run};

use super::corpus::corpus;
use super::tars::{ended, file, header, record, sum, with};

/// Real ones, of a collection of a test.
const MANIFEST: &[u8] = include_bytes!("seeds/manifest.json");
const BUNDLE: &[u8] = include_bytes!("seeds/manifest.sigstore.json");
const CUSTODY: &[u8] = include_bytes!("seeds/custody.jsonl");
const CHECKPOINT: &[u8] = include_bytes!("seeds/custody.checkpoint");
/// Of authorities made with `tests/authority.sh`, over [`STAMPED`].
const TOKEN_RSA: &[u8] = include_bytes!("seeds/rsa.tst");
const TOKEN_EC: &[u8] = include_bytes!("seeds/ec.tst");
const ANSWER: &[u8] = include_bytes!("seeds/ec.tsr");
const ROOTS: &[u8] = include_bytes!("seeds/tsa-roots.pem");
const STAMPED: &[u8] = b"hi\n";
const DIFF: &[u8] = include_bytes!("seeds/diff.jsonl");
const CONFIG: &[u8] = include_bytes!("seeds/config.json");

#[test]
fn fuzz_tar_any_damage_is_listed_and_judged_alike_in_any_chunks() {
    let seeds: Vec<Vec<u8>> = corpus()
        .into_iter()
        .map(|case| case.tar)
        .filter(|tar| tar.len() < 64 << 10)
        .collect();
    run("tar", &seeds, |random, mut tar| {
        // Most damage is to be found behind the checksum.
        if random.below(4) > 0 {
            mend(&mut tar);
        }
        check(random, &tar);
    });
}

#[test]
fn fuzz_pax_any_records_are_read_or_refused() {
    let mut seeds: Vec<Vec<u8>> = vec![
        record(b"path", "caf\u{e9}".as_bytes()),
        record(b"size", b"7"),
        record(b"mtime", b"-1.5"),
        [
            record(b"SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
            record(b"uid", b"4294967296"),
        ]
        .concat(),
        [
            record(b"GNU.sparse.major", b"1"),
            record(b"GNU.sparse.realsize", b"9"),
            record(b"GNU.sparse.name", b"x"),
        ]
        .concat(),
    ];
    seeds.push(seeds.concat());
    run("pax", &seeds, |random, records| {
        let kind = if random.below(4) == 0 { b'g' } else { b'x' };
        let extension = with(header(b"p", kind, records.len() as u64), &records);
        check(
            random,
            &ended(&[extension, file(b"x", b"contents"), file(b"y", b"")]),
        );
    });
}

#[test]
fn fuzz_image_any_description_is_read_or_reported() {
    let manifest = br#"[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l/layer.tar"]}]"#.to_vec();
    run("image", &[manifest.clone(), CONFIG.to_vec()], |_, input| {
        let parts = match input.first() {
            Some(b'[') => [file(b"manifest.json", &input), file(b"c.json", CONFIG)],
            _ => [file(b"manifest.json", &manifest), file(b"c.json", &input)],
        };
        let mut index = FileIndex::new(Kind::Image, Limits::default());
        index.update(&ended(&parts));
        let image = index.finish().image.unwrap();
        assert!(!image.images.is_empty() || !image.problems.is_empty());
        serde_json::from_slice::<serde_json::Value>(&image.encode()).unwrap();
    });
}

#[test]
fn fuzz_diff_any_line_is_a_change_or_left_out() {
    run("diff", &lines(DIFF), |_, line| {
        let mut changes = Changes::with_limit(10);
        changes.add(&line);
        if let Some(text) = changes.rest(&line) {
            serde_json::from_slice::<serde_json::Value>(&text).unwrap();
        }
    });
}

#[test]
fn fuzz_custody_a_line_that_is_taken_is_one_that_we_write() {
    run("custody", &lines(CUSTODY), |_, line| {
        // What the decoder takes it must write alike, or two texts would be one entry.
        let _ = Entry::decode(&line);
    });
}

#[test]
fn fuzz_log_what_is_taken_whole_is_what_we_would_have_written() {
    run("log", &[CUSTODY.to_vec()], |_, bytes| {
        let mut entries = Vec::new();
        let read = CustodyLog::read("impound.dev/INC-1", &bytes[..], |entry| entries.push(entry));
        let Ok(log) = read else { return };
        assert_eq!(log.size(), entries.len() as u64);
        assert_eq!(
            bytes.iter().filter(|byte| **byte == b'\n').count(),
            entries.len()
        );
        for (entry, seq) in entries.iter().zip(0..) {
            assert_eq!(entry.seq, seq);
            serde_json::from_slice::<serde_json::Value>(&Moment::of_entry(entry).encode()).unwrap();
        }
    });
}

#[test]
fn fuzz_keyring_what_is_taken_has_the_keys_that_it_names() {
    let mut ring = Keyring::default();
    for from in [None, Some("2026-01-31T03:04:05.678901Z".parse().unwrap())] {
        let key = SigningKey::generate().unwrap();
        ring.turn_to(key.verifying_key(), from).unwrap();
    }
    run("keyring", &[ring.to_json()], |_, bytes| {
        if let Ok(ring) = Keyring::from_json(&bytes) {
            let again = Keyring::from_json(&ring.to_json()).unwrap();
            let ids = |ring: &Keyring| -> Vec<_> {
                ring.keys()
                    .unwrap()
                    .iter()
                    .map(VerifyingKey::key_id)
                    .collect()
            };
            assert_eq!(ids(&ring), ids(&again));
        }
    });
}

#[test]
fn fuzz_public_key_what_is_taken_is_written_and_read_again() {
    let pem = |_| {
        SigningKey::generate()
            .unwrap()
            .verifying_key()
            .to_pem()
            .unwrap()
    };
    let seeds: Vec<Vec<u8>> = (0..4).map(pem).map(String::into_bytes).collect();
    run("public-key", &seeds, |_, bytes| {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(key) = VerifyingKey::from_pem(&text) {
            let again = VerifyingKey::from_pem(&key.to_pem().unwrap()).unwrap();
            assert_eq!(again.key_id(), key.key_id());
        }
    });
}

#[test]
fn fuzz_moments_any_description_is_a_line_or_left_out() {
    let seeds = [
        br#"{"kind":"A","path":"/tmp/x","file":{"path":"tmp/x","type":"symlink","mode":"0777","uid":0,"gid":0,"size":5,"mtime":"2026-01-31T03:04:05.5Z","link":"/etc"}}"#.to_vec(),
        br#"{"Created":"2026-01-31T03:04:05.678901234Z","State":{"StartedAt":"2026-01-31T03:04:06Z","FinishedAt":"0001-01-01T00:00:00Z"}}"#.to_vec(),
        br#"{"status":{"steps":[{"name":"Cordon","state":"Done","started":"2026-01-31T03:04:05Z","finished":"2026-01-31T03:04:06Z","message":"x"},{"name":"Evict","state":"Running","started":"2026-01-31T03:04:05+02:00"}]}}"#.to_vec(),
    ];
    run("moments", &seeds, |_, bytes| {
        let moments = Moment::of_change("app", &bytes)
            .into_iter()
            .chain(Moment::of_container("app", &bytes))
            .chain(Moment::of_containment(&bytes));
        for moment in moments {
            let line = moment.encode();
            assert_eq!(
                line.iter().position(|byte| *byte == b'\n'),
                Some(line.len() - 1)
            );
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            // Four digits of a year, as Timesketch's importer reads them.
            let date = line["datetime"].as_str().unwrap();
            assert_eq!(date.len(), "2026-01-31T03:04:05.678901Z".len(), "{date}");
        }
    });
}

#[test]
fn fuzz_checkpoint_no_damage_opens_with_another_key() {
    let key = SigningKey::generate().unwrap();
    let keys = [key.verifying_key().clone()];
    run("checkpoint", &[CHECKPOINT.to_vec()], |_, bytes| {
        assert!(Checkpoint::open(&bytes, &keys).is_err());
    });
}

#[test]
fn fuzz_manifest_what_is_taken_is_exactly_what_we_write() {
    run("manifest", &[MANIFEST.to_vec()], |_, bytes| {
        if let Ok(manifest) = Manifest::decode(&bytes) {
            assert!(manifest.encode() == bytes, "two encodings of one manifest");
        }
    });
}

#[test]
fn fuzz_bundle_no_damage_verifies_with_another_key() {
    let key = SigningKey::generate().unwrap();
    let keys = [key.verifying_key().clone()];
    run("bundle", &[BUNDLE.to_vec()], |_, bytes| {
        if let Ok(bundle) = OpenBundle::decode(&bytes) {
            assert!(bundle.verify(&keys).is_err());
        }
    });
}

#[test]
fn fuzz_signed_what_opens_with_its_key_is_byte_for_byte_what_was_signed() {
    let key = SigningKey::generate().unwrap();
    let keys = [key.verifying_key().clone()];
    let log = CustodyLog::read("impound.dev/INC-1", CUSTODY, |_| ()).unwrap();
    let checkpoint = log.checkpoint(&key).unwrap();
    let bundle = sign_manifest(MANIFEST, &key).unwrap();
    let seeds = [checkpoint.clone(), bundle.clone()];
    run("signed", &seeds, |_, bytes| {
        if Checkpoint::open(&bytes, &keys).is_ok() {
            assert!(bytes == checkpoint, "another checkpoint");
        }
        if OpenBundle::decode(&bytes).is_ok_and(|bundle| bundle.verify(&keys).is_ok()) {
            assert!(bytes == bundle, "another bundle");
        }
    });
}

#[test]
fn fuzz_names_what_is_taken_stays_below_and_has_one_spelling() {
    let digest = Sha256::of(b"").to_string();
    let seeds = [
        "artifacts/worker2/default_web-5d4f/app/diff.jsonl",
        "../a/./b//c",
        "INC-7.part_2",
        "web-5d4f-x7",
        "2026-01-31T03:04:05.678901Z",
        &digest,
    ];
    run("names", &seeds.map(|text| text.into()), |_, bytes| {
        let Ok(text) = std::str::from_utf8(&bytes) else {
            return;
        };
        let mut names = Vec::new();
        if let Ok(path) = text.parse::<EvidencePath>() {
            names.push(path.to_string());
        }
        if let Ok(case) = text.parse::<CaseId>() {
            assert!(!text.contains('/') && !text.starts_with('.'));
            names.push(case.to_string());
        }
        if let Ok(collection) = text.parse::<CollectionName>() {
            assert!(!text.contains('/') && !text.starts_with('.'));
            names.push(collection.to_string());
        }
        for name in names {
            assert_eq!(name, text);
            let below = |part| matches!(part, Component::Normal(_));
            assert!(Path::new(text).components().all(below), "{text:?}");
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            assert_eq!(time.to_string(), text);
        }
        if let Ok(digest) = text.parse::<Sha256>() {
            assert_eq!(digest.to_string(), text);
        }
    });
}

#[test]
fn fuzz_age_keys_are_what_they_say_or_are_refused_and_no_secret_is_repeated() {
    let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let secrets = [&one, &other].map(|identity| identity.reveal().to_string());
    let seeds = [
        one.recipient().to_string(),
        secrets[0].clone(),
        format!("# created\n{}\n\n{}\n", secrets[0], secrets[1]),
    ];
    run("age-keys", &seeds.map(String::into_bytes), |_, bytes| {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(recipient) = text.parse::<Recipient>() {
            assert_eq!(recipient.to_string(), text);
        }
        match Identity::parse_file(&text) {
            Ok(identities) => {
                for identity in identities {
                    let again = Identity::parse_file(&identity.reveal()).unwrap();
                    assert_eq!(again[0].recipient(), identity.recipient());
                }
            }
            Err(error) => {
                let said = error.to_string();
                for secret in &secrets {
                    assert!(!said.contains(&secret[20..40]), "{said}");
                }
            }
        }
    });
}

#[test]
fn fuzz_certificates_no_damage_makes_an_authority_say_another_time() {
    let said = stamp_time(TOKEN_EC).unwrap();
    run("certificates", &[ROOTS.to_vec()], |_, pem| {
        let roots = StampAuthority::from_pem(&pem);
        if let Ok(time) = roots.and_then(|roots| roots.check(TOKEN_EC, Sha256::of(STAMPED))) {
            assert_eq!(time, said);
        }
    });
}

#[test]
fn fuzz_stamp_no_damage_gives_another_time() {
    let roots = StampAuthority::from_pem(ROOTS).unwrap();
    let request = StampRequest::new(Sha256::of(STAMPED), [7; 8]);
    let seeds = [TOKEN_RSA, TOKEN_EC, ANSWER].map(<[u8]>::to_vec);
    let times = [TOKEN_RSA, TOKEN_EC].map(|token| stamp_time(token).unwrap());
    run("stamp", &seeds, |_, bytes| {
        // What is not signed, e.g. a certificate that is not needed, may be anything.
        if let Ok(time) = roots.check(&bytes, Sha256::of(STAMPED)) {
            assert!(times.contains(&time), "{time}");
        }
        assert!(request.token(&bytes, &roots).is_err(), "another nonce");
    });
}

#[test]
fn the_seeds_are_whole() {
    let roots = StampAuthority::from_pem(ROOTS).unwrap();
    for token in [TOKEN_RSA, TOKEN_EC] {
        assert!(roots.check(token, Sha256::of(STAMPED)).is_ok());
    }
    let asked = StampRequest::new(Sha256::of(STAMPED), [7; 8]);
    assert_eq!(
        asked.token(ANSWER, &roots).unwrap_err().to_string(),
        "the answer has not the nonce of the question: it is an answer to another one"
    );
    assert!(Manifest::decode(MANIFEST).is_ok());
    assert!(OpenBundle::decode(BUNDLE).is_ok());
    for line in lines(CUSTODY) {
        assert!(
            Entry::decode(&line).is_ok(),
            "{}",
            String::from_utf8_lossy(&line)
        );
    }
}

/// Right checksums for all blocks that look like headers.
pub(crate) fn mend(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512) {
        if block[257..].starts_with(b"ustar") {
            sum(block);
        }
    }
}

fn check(random: &mut Random, tar: &[u8]) {
    let mut end = TarEnd::new();
    end.update(tar);
    let (whole, lines) = indexed(tar, usize::MAX);
    assert_eq!(end.finish(), whole.completeness);
    let (parts, again) = indexed(tar, 1 + random.below(1500));
    assert_eq!(whole.encode(), parts.encode());
    assert!(lines == again, "chunks change the list");
    let text = lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let mut count = 0;
    for line in text {
        serde_json::from_slice::<serde_json::Value>(line).unwrap();
        count += 1;
    }
    assert_eq!(count, whole.listed);
    let mut body = BodyIndex::new(Limits::default());
    body.update(tar);
    let body = body.finish().body;
    for line in body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        assert_eq!(line.iter().filter(|byte| **byte == b'|').count(), 10);
    }
}

fn indexed(tar: &[u8], chunk: usize) -> (impound_evidence::index::Summary, Vec<u8>) {
    let mut index = FileIndex::new(Kind::Other, Limits::default());
    tar.chunks(chunk).for_each(|chunk| index.update(chunk));
    let indexed = index.finish();
    (indexed.summary, indexed.lines.files)
}

fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}
