//! What listing a tar costs beside hashing it: `cargo bench -p impound-evidence --bench index`.
//!
//! Each line is one thread's work over the same bytes in memory. The controller gives every one a
//! thread of its own, so that an export is held up only by the slowest, and only if that is slower
//! than the runtime exports (some 300 MiB/s).

#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for developers"
)]

use impound_evidence::index::{BodyIndex, Changes, FileIndex, Kind, Limits};
use impound_evidence::{Sha256Hasher, TarEnd};

const MIB: usize = 1 << 20;
/// As chunks come from an agent.
const CHUNK: usize = MIB;

fn main() {
    for (what, members, size) in [
        ("1 KiB files", 200_000, 1 << 10),
        ("16 KiB files", 32_000, 16 << 10),
        ("1 MiB files", 512, MIB),
    ] {
        let tar = tar(members, size);
        println!("{members} members, {what}, {} MiB", tar.len() / MIB);
        let each = |name: &str, work: &mut dyn FnMut(&[u8])| {
            // The least of three: what else the machine does only adds.
            let best = (0..3)
                .map(|_| {
                    let started = processor();
                    tar.chunks(CHUNK).for_each(&mut *work);
                    processor() - started
                })
                .fold(f64::MAX, f64::min);
            let rate = tar.len() as f64 / MIB as f64 / best;
            println!("  {name:36} {rate:6.0} MiB per second of processor time");
        };
        let mut hasher = Sha256Hasher::new();
        each("SHA-256 of the stream", &mut |chunk| hasher.update(chunk));
        std::hint::black_box(hasher.finish());
        let (mut at, mut walk) = (0, TarEnd::new());
        each("walk to the end only", &mut |chunk| {
            restart(&mut at, tar.len(), chunk, || walk = TarEnd::new());
            walk.update(chunk);
        });
        let new = || FileIndex::new(Kind::FileSystem(Changes::new()), Limits::default());
        let (mut at, mut index) = (0, new());
        each("files.jsonl with SHA-256", &mut |chunk| {
            restart(&mut at, tar.len(), chunk, || index = new());
            index.update(chunk);
            *index.lines() = Default::default();
        });
        let new = || BodyIndex::new(Limits::default());
        let (mut at, mut index) = (0, new());
        each("bodyfile with MD5", &mut |chunk| {
            restart(&mut at, tar.len(), chunk, || index = new());
            index.update(chunk);
            *index.lines() = Default::default();
        });
    }
}

/// Begins anew with each round over the tar.
fn restart(at: &mut usize, length: usize, chunk: &[u8], new: impl FnOnce()) {
    if *at == 0 {
        new();
    }
    *at = (*at + chunk.len()) % length;
}

fn tar(members: usize, size: usize) -> Vec<u8> {
    let mut tar = Vec::with_capacity(members * (512 + size.next_multiple_of(512)) + 1024);
    for n in 0..members {
        let mut header = [0; 512];
        let name = format!("usr/share/doc/package-{}/file-{n}", n / 100);
        header[..name.len()].copy_from_slice(name.as_bytes());
        for (at, text) in [
            (100, "0000644\0".to_owned()),
            (108, "0000000\0".to_owned()),
            (116, "0000000\0".to_owned()),
            (124, format!("{size:011o}\0")),
            (136, format!("{:011o}\0", 1_700_000_000 + n)),
            (148, "        ".to_owned()),
            (156, "0".to_owned()),
            (257, "ustar\x0000".to_owned()),
        ] {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        let length = tar.len() + size;
        tar.resize(length, n as u8);
        tar.resize(length.next_multiple_of(512), 0);
    }
    tar.extend_from_slice(&[0; 1024]);
    tar
}

/// Seconds that this process has computed: unlike the clock, not slowed down by what else the
/// machine does.
fn processor() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
