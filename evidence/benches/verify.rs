//! How fast evidence is hashed, walked and verified: `cargo bench -p impound-evidence`.
//!
//! Needs 2 GiB of memory or disk below the temporary directory. The files are in the page cache, so
//! this is the processor's limit, not the disk's.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for developers"
)]

use std::fs;
use std::time::Instant;

use impound_evidence::*;

const MIB: usize = 1 << 20;

fn main() {
    let block = vec![7; MIB];
    rate("hash", 2048, |n| {
        let mut hasher = Sha256Hasher::new();
        (0..n).for_each(|_| hasher.update(&block));
        std::hint::black_box(hasher.finish());
    });
    let small = tar(600).repeat(64 << 10);
    // Members only: after an end there is nothing to walk.
    let members: Vec<u8> = small
        .chunks(2560)
        .flat_map(|one| one[..1536].to_vec())
        .collect();
    rate(
        "tar walk, members of 600 bytes",
        members.len() / MIB,
        |_| walk(&members),
    );
    for files in [1, 2, 8] {
        let (directory, key) = collection(files, 2048 / files);
        rate(&format!("verify, {files} tars"), 2048, |_| {
            let source = DirSource::open(directory.path()).unwrap();
            let verdict = verify(&source, &[key]);
            assert!(verdict.complete(), "{:?}", verdict.problems);
        });
    }
}

fn rate(what: &str, mib: usize, run: impl FnOnce(usize)) {
    let (started, worked) = (Instant::now(), processor());
    run(mib);
    let wall = started.elapsed().as_secs_f64();
    let processor = processor() - worked;
    let (wall, processor) = (mib as f64 / wall, mib as f64 / processor);
    println!("{what:32} {wall:6.0} MiB/s, {processor:6.0} MiB per second of processor time");
}

/// Seconds that this process has computed, on all processors: unlike the clock, not slowed down by
/// what else the machine does.
fn processor() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn walk(bytes: &[u8]) {
    let mut walk = TarEnd::new();
    bytes.chunks(MIB).for_each(|chunk| walk.update(chunk));
    std::hint::black_box(walk.finish());
}

/// A tar with one member of `size` bytes.
fn tar(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..4].copy_from_slice(b"name");
    bytes[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    bytes[148..156].fill(b' ');
    bytes[156] = b'0';
    bytes[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes.resize(512 + size.next_multiple_of(512) + 1024, 0);
    bytes
}

/// A signed collection of so many tars of so many MiB.
fn collection(files: usize, mib: usize) -> (tempfile::TempDir, VerifyingKey) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let bytes = tar(mib * MIB - 1536);
    let now = Timestamp::now();
    let artifacts: Vec<_> = (0..files)
        .map(|n| {
            fs::write(at(&format!("{n}.tar")), &bytes).unwrap();
            ArtifactRecord {
                path: format!("{n}.tar").parse().unwrap(),
                size: bytes.len() as u64,
                sha256: Sha256::of(&bytes),
                chunk_root: Some(Digests::of(&bytes).chunk_root),
                stored: None,
                media_type: "application/x-tar".to_owned(),
                method: Method::Export,
                api_call: "GET /containers/0123/export".to_owned(),
                source_id: "0123".repeat(16),
                derived_from: Vec::new(),
                consistency: Consistency::Live,
                completeness: Completeness::Complete,
                omissions: Method::Export.omissions(),
                clock_offset_ms: None,
                started: None,
                finished: None,
                received_started: now,
                received_finished: now,
                receipt: Some(StorageReceipt {
                    location: "file:///evidence".to_owned(),
                    version: None,
                    lock: None,
                    verified: now,
                }),
            }
        })
        .collect();
    let pod = Pod {
        namespace: "n".to_owned(),
        name: "p".to_owned(),
        uid: "u".to_owned(),
    };
    let mut manifest = Manifest {
        case: "bench".parse().unwrap(),
        collection: "bench".parse().unwrap(),
        outcome: Outcome::Complete,
        requested_by: "bench".to_owned(),
        claimed: false,
        requester_certificate_sha256: None,
        reason: "bench".to_owned(),
        created: now,
        controller: Build {
            name: "bench".to_owned(),
            version: "0".to_owned(),
            executable_sha256: None,
        },
        cluster: "bench".to_owned(),
        node: Node {
            name: "n".to_owned(),
            uid: None,
            boot_id: None,
        },
        pod,
        quarantine: None,
        agents: Vec::new(),
        containers: Vec::new(),
        artifacts,
        missing: Vec::new(),
        alterations: Vec::new(),
        omissions: Vec::new(),
        storage: None,
        encrypted_to: Vec::new(),
        custody: CustodyLog::new("bench").head(),
        timestamp: None,
    };
    let key = SigningKey::generate().unwrap();
    let mut log = CustodyLog::new(origin(&manifest.case));
    let mut lines = Vec::new();
    for record in &manifest.artifacts {
        let mut entry = Entry::new(Event::Stored, "bench", record.path.as_str());
        entry.artifact = Some(record.clone());
        lines.extend(log.append(entry).unwrap());
    }
    manifest.custody = log.head();
    let bytes = manifest.encode();
    fs::write(at(MANIFEST), &bytes).unwrap();
    fs::write(at(BUNDLE), sign_manifest(&bytes, &key).unwrap()).unwrap();
    fs::write(at(CUSTODY), lines).unwrap();
    fs::write(at(CHECKPOINT), log.checkpoint(&key).unwrap()).unwrap();
    (directory, key.verifying_key().clone())
}
