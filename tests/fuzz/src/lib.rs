//! Random damage for the parsers of foreign bytes: each of them has a test that ends in [`run`].
//!
//! It mutates seeds, real inputs, for a second; `tests/run.sh` sets `IMPOUND_FUZZ_SECONDS` to a minute.
//! It needs no compiler but the stable one. It is blind to coverage, so what makes it reach deep is
//! that seeds are whole and that a target may mend what mutation breaks, e.g. checksums.
//!
//! Besides the seeds that a target gives, all files are taken from `tests/fuzz/<name>` of its crate and
//! from `<IMPOUND_FUZZ_SEEDS>/<name>`, if there are such directories.
//!
//! An input that makes a target panic is written to `IMPOUND_FUZZ_FAILURES` (default: the temporary
//! directory), and the test's failure says where; put it into the crate's directory of seeds when it is
//! understood.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest input, in bytes: everything that has a limit is tested against it by tests of its own.
const LONGEST: usize = 64 << 10;

/// Numbers at which programs break.
const NUMBERS: [&[u8]; 10] = [
    b"0",
    b"-1",
    b"7777777",
    b"77777777777",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\0\0\0\0\0\0\0",
];

/// Names and values of what may be the head of an HTTP message: `name: value`, one a line.
pub fn fields(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    head.split(|byte| *byte == b'\n').map(|line| {
        let at = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(at.unwrap_or(line.len()));
        (name, value.strip_prefix(b": ").unwrap_or(value))
    })
}

/// Calls `target` with mutated `seeds` until the time is over; at least with each seed as it is. Says
/// how many inputs there were. Panics as the target does, after having kept the input.
pub fn run(name: &str, seeds: &[Vec<u8>], mut target: impl FnMut(&mut Random, Vec<u8>)) {
    let seconds = std::env::var("IMPOUND_FUZZ_SECONDS");
    let seconds = seconds.ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    // Another sequence each minute of a year would find more, and no failure would come again.
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seconds);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut inputs = 0u64;
    let mut tried = |random: &mut Random, input: Vec<u8>| {
        let kept = input.clone();
        inputs += 1;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(random, input))) {
            let path = failure(name, inputs);
            let written = std::fs::write(&path, &kept);
            eprintln!(
                "fuzz {name}: input {inputs} ({} bytes) fails, kept as {}: {written:?}",
                kept.len(),
                path.display()
            );
            resume_unwind(panic);
        }
    };
    let seeds = &[seeds, &kept_seeds(name)].concat();
    for seed in seeds {
        tried(&mut random, seed.clone());
    }
    while Instant::now() < deadline {
        // The clock costs more than many a target.
        for _ in 0..16 {
            let input = random.mutated(seeds);
            tried(&mut random, input);
        }
    }
    eprintln!("fuzz {name}: {inputs} inputs in {seconds} s");
}

/// Seeds in files, in the order of their names.
fn kept_seeds(name: &str) -> Vec<Vec<u8>> {
    // Cargo says where the crate is whose test runs.
    let own = std::env::var_os("CARGO_MANIFEST_DIR").map(|at| PathBuf::from(at).join("tests/fuzz"));
    let given = std::env::var_os("IMPOUND_FUZZ_SEEDS").map(PathBuf::from);
    let directories = own.into_iter().chain(given).map(|at| at.join(name));
    directories.flat_map(|at| files(&at)).collect()
}

fn files(directory: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .filter(|path| path.is_file())
        .filter_map(|path| std::fs::read(path).ok())
        .collect()
}

fn failure(name: &str, inputs: u64) -> PathBuf {
    let directory = std::env::var_os("IMPOUND_FUZZ_FAILURES");
    let directory = directory.map_or_else(std::env::temp_dir, PathBuf::from);
    directory.join(format!("fuzz-{name}-{inputs}"))
}

/// A sequence of random numbers that is the same each time.
pub struct Random(u64);

impl Random {
    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11).checked_rem(limit as u64).unwrap_or(0) as usize
    }

    fn mutated(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let empty = Vec::new();
        let seed = |random: &mut Self| seeds.get(random.below(seeds.len())).unwrap_or(&empty);
        let mut input = seed(self).clone();
        for _ in 0..=self.below(4) {
            let (from, to) = self.range(input.len());
            match self.below(8) {
                0 | 1 => {
                    let at = self.below(input.len());
                    let value = self.below(256) as u8;
                    input.get_mut(at).into_iter().for_each(|byte| *byte = value);
                }
                2 => {
                    let (at, bit) = (self.below(input.len()), self.below(8));
                    input
                        .get_mut(at)
                        .into_iter()
                        .for_each(|byte| *byte ^= 1 << bit);
                }
                3 => drop(input.drain(from..to)),
                4 => {
                    let part = input.get(from..to).unwrap_or_default().to_vec();
                    self.insert(&mut input, &part);
                }
                5 => {
                    let other = seed(self);
                    let (from, to) = self.range(other.len());
                    let part = other.get(from..to).unwrap_or_default();
                    self.insert(&mut input, part);
                }
                6 => {
                    let number = NUMBERS
                        .get(self.below(NUMBERS.len()))
                        .copied()
                        .unwrap_or_default();
                    let at = self.below(input.len());
                    for (place, byte) in input.iter_mut().skip(at).zip(number) {
                        *place = *byte;
                    }
                }
                _ => input.truncate(to),
            }
            input.truncate(LONGEST);
        }
        input
    }

    fn range(&mut self, length: usize) -> (usize, usize) {
        let from = self.below(length);
        // Mostly short ones; now and then whole blocks.
        let longest = if self.below(4) == 0 { 1024 } else { 16 };
        (from, (from + 1 + self.below(longest)).min(length))
    }

    fn insert(&mut self, input: &mut Vec<u8>, part: &[u8]) {
        let at = self.below(input.len() + 1).min(input.len());
        let rest = input.split_off(at);
        input.extend_from_slice(part);
        input.extend_from_slice(&rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_fault_is_found() {
        let found = catch_unwind(|| {
            run(
                "planted",
                &[b"{\"length\": 12, \"text\": \"abc\"}".to_vec()],
                |_, input| {
                    assert!(!input.windows(2).any(|pair| pair == b"::"), "planted");
                },
            );
        });
        assert!(
            found.is_err(),
            "a second of mutations never wrote two colons"
        );
    }

    #[test]
    fn seeds_in_files_are_tried_as_they_are() {
        let mut tried = Vec::new();
        run("kept", &[b"given".to_vec()], |_, input| tried.push(input));
        assert_eq!(
            tried.get(..2),
            Some(&[b"given".to_vec(), b"in a file".to_vec()][..])
        );
    }
}
