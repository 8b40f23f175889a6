//! Ten thousand random single changes to a collection that the controller sealed: each is found, and the
//! first thing said names the file.
//!
//! The collection is `tests/real`, or with IMPOUND_MUTATE=DIR,KEY the one in that directory, whose secret
//! key is in that file: a demo's, for one.

use std::collections::BTreeMap;
use std::io::Cursor;

use super::script::script;
use super::*;
use crate::source::OpenFile;

/// How many, and how many of them `verify.sh` is asked about, too.
const MUTATIONS: u64 = 10_000;
const SCRIPTED: u64 = 200;

/// A collection in memory.
#[derive(Clone)]
struct Files(BTreeMap<String, Vec<u8>>);

impl EvidenceSource for Files {
    fn list(&self) -> std::io::Result<Listing> {
        let mut listing = Listing::default();
        for path in self.0.keys() {
            match path.parse() {
                Ok(path) => listing.files.push(path),
                Err(_) => listing
                    .refused
                    .push((path.clone(), "is no name".to_owned())),
            }
        }
        Ok(listing)
    }

    fn open(&self, path: &EvidencePath) -> std::io::Result<OpenFile> {
        let bytes = self.0.get(path.as_str());
        let bytes = bytes.ok_or(std::io::ErrorKind::NotFound)?.clone();
        Ok(OpenFile {
            size: bytes.len() as u64,
            reader: Box::new(Cursor::new(bytes)),
        })
    }
}

impl Files {
    fn of(directory: &Path) -> Self {
        let source = DirSource::open(directory).unwrap();
        let read = |path: EvidencePath| {
            let bytes = fs::read(directory.join(path.as_str())).unwrap();
            (path.to_string(), bytes)
        };
        Self(source.list().unwrap().files.into_iter().map(read).collect())
    }

    fn write(&self, directory: &Path) {
        for (path, bytes) in &self.0 {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

/// Xorshift: the same changes in every run.
struct Random(u64);

impl Random {
    /// Below `n`.
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    fn one<'a>(&mut self, of: &'a [String]) -> &'a str {
        &of[self.below(of.len())]
    }
}

/// What there is to change, with the keys that a thief of old checkpoints and signatures has the
/// products of.
struct World {
    good: Files,
    artifacts: Vec<String>,
    all: Vec<String>,
    log: CustodyLog,
    key: SigningKey,
    ada: SigningKey,
    eve: SigningKey,
}

impl World {
    fn new() -> Self {
        let (directory, key) = match std::env::var("IMPOUND_MUTATE") {
            Ok(given) => {
                let (directory, key) = given
                    .split_once(',')
                    .expect("expected IMPOUND_MUTATE=DIRECTORY,SECRET-KEY.pem");
                (PathBuf::from(directory), PathBuf::from(key))
            }
            Err(_) => {
                let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real");
                (real.join("collection"), real.join("evidence.key"))
            }
        };
        let key = SigningKey::from_pem(&fs::read_to_string(key).unwrap()).unwrap();
        let mut good = Files::of(&directory);
        let ada = SigningKey::generate().unwrap();
        let manifest = Manifest::decode(&good.0[MANIFEST]).unwrap();
        good.0.insert(
            format!("signatures/{}.sigstore.json", ada.verifying_key().key_id()),
            sign_manifest(&good.0[MANIFEST], &ada).unwrap(),
        );
        let log = CustodyLog::read(origin(&manifest.case), &good.0[CUSTODY][..], |_| ()).unwrap();
        Self {
            artifacts: manifest
                .artifacts
                .iter()
                .map(|record| record.path.to_string())
                .collect(),
            all: good.0.keys().cloned().collect(),
            good,
            log,
            key,
            ada,
            eve: SigningKey::generate().unwrap(),
        }
    }

    fn keys(&self) -> [VerifyingKey; 2] {
        [&self.key, &self.ada].map(|key| key.verifying_key().clone())
    }

    fn lines(&self) -> Vec<&str> {
        let text = std::str::from_utf8(&self.good.0[CUSTODY]).unwrap();
        text.split_inclusive('\n').collect()
    }

    /// One change: its name, the collection with it, and the files one of which must be named.
    fn mutation(&self, random: &mut Random) -> (&'static str, Files, Vec<String>) {
        let mut files = self.good.clone();
        let only = |path: &str| vec![path.to_owned()];
        let has_bytes = |path: &&String| !self.good.0[*path].is_empty();
        let full: Vec<String> = self.all.iter().filter(has_bytes).cloned().collect();
        match random.below(13) {
            0..=2 => {
                let path = random.one(&full);
                let bytes = files.0.get_mut(path).unwrap();
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
                ("flip", files, only(path))
            }
            3 => {
                // A counter-signature that goes leaves no trace: it came after the seal.
                let droppable = random.below(self.all.len() - 1);
                let path = self
                    .all
                    .iter()
                    .filter(|path| !path.starts_with(crate::SIGNATURES));
                let path = path.cycle().nth(droppable).unwrap();
                files.0.remove(path);
                ("drop", files, only(path))
            }
            4 => {
                let names = [
                    "planted",
                    "artifacts/x.json",
                    "before/a",
                    "signatures/x",
                    ".tmp-a",
                ];
                let path = names[random.below(names.len())];
                files.0.insert(path.to_owned(), vec![b'x'; random.below(9)]);
                ("add", files, only(path))
            }
            5 => {
                let from = random.one(&self.all).to_owned();
                let to = format!("{from}.{}", random.below(100));
                let bytes = files.0.remove(&from).unwrap();
                files.0.insert(to.clone(), bytes);
                ("rename", files, vec![from, to])
            }
            6 => {
                let (one, two) = loop {
                    let one = random.one(&self.artifacts);
                    let two = random.one(&self.artifacts);
                    if self.good.0[one] != self.good.0[two] {
                        break (one.to_owned(), two.to_owned());
                    }
                };
                files.0.insert(one.clone(), self.good.0[&two].clone());
                files.0.insert(two.clone(), self.good.0[&one].clone());
                ("swap", files, vec![one, two])
            }
            7 => {
                let mut lines = self.lines();
                let one = random.below(lines.len());
                let two = (one + 1 + random.below(lines.len() - 1)) % lines.len();
                lines.swap(one, two);
                files.0.insert(CUSTODY.to_owned(), lines.concat().into());
                ("reorder", files, only(CUSTODY))
            }
            8 => {
                let mut lines = self.lines();
                match random.below(3) {
                    0 => lines.truncate(random.below(lines.len())),
                    1 => drop(lines.remove(random.below(lines.len()))),
                    _ => lines.insert(random.below(lines.len()), lines[0]),
                }
                files.0.insert(CUSTODY.to_owned(), lines.concat().into());
                ("cut", files, only(CUSTODY))
            }
            9 => {
                let mut lines = self.lines();
                lines.truncate(random.below(lines.len()));
                let cut = lines.concat().into_bytes();
                let log = CustodyLog::read(self.log.origin(), &cut[..], |_| ());
                let old = log.unwrap().checkpoint(&self.key).unwrap();
                files.0.insert(CHECKPOINT.to_owned(), old);
                if random.below(2) == 0 {
                    files.0.insert(CUSTODY.to_owned(), cut);
                }
                ("roll back", files, only(CHECKPOINT))
            }
            10 => {
                let path = [MANIFEST, CUSTODY][random.below(2)];
                let bytes = files.0.get_mut(path).unwrap();
                let stamps: Vec<usize> = (26..bytes.len())
                    .filter(|end| bytes[*end] == b'Z' && bytes[*end - 7] == b'.')
                    .collect();
                let digit = stamps[random.below(stamps.len())] - 1 - random.below(6);
                bytes[digit] = b'0' + (bytes[digit] - b'0' + 1 + random.below(9) as u8) % 10;
                ("edit a timestamp", files, only(path))
            }
            11 => {
                let manifest = &self.good.0[MANIFEST];
                let (path, bytes) = match random.below(4) {
                    0 => (BUNDLE, sign_manifest(manifest, &self.eve).unwrap()),
                    1 => (BUNDLE, sign_manifest(b"other", &self.key).unwrap()),
                    2 => (CHECKPOINT, self.log.checkpoint(&self.eve).unwrap()),
                    _ => {
                        let open = OpenBundle::decode(&self.good.0[BUNDLE]).unwrap();
                        let text = std::str::from_utf8(&self.good.0[BUNDLE]).unwrap();
                        let (old, new) = (open.signature(), mirrored(open.signature()));
                        let text = text.replace(&STANDARD.encode(old), &STANDARD.encode(new));
                        (BUNDLE, text.into_bytes())
                    }
                };
                files.0.insert(path.to_owned(), bytes);
                (
                    "replace the signature",
                    files,
                    vec![path.to_owned(), MANIFEST.to_owned()],
                )
            }
            _ => {
                let path = random.one(&full);
                let bytes = files.0.get_mut(path).unwrap();
                match random.below(2) {
                    0 => bytes.truncate(random.below(bytes.len())),
                    _ => bytes.push(b"\n\0 x"[random.below(4)]),
                }
                ("cut or lengthen", files, only(path))
            }
        }
    }
}

#[test]
fn ten_thousand_random_changes_are_all_found_and_the_file_is_named() {
    let world = World::new();
    let keys = world.keys();
    assert_eq!(verify(&world.good, &keys).problems, []);
    let work = |part: u64| {
        let mut random = Random(0x1234_5678_9abc_def1 + part);
        for n in 0..MUTATIONS / 2 {
            let (kind, files, expected) = world.mutation(&mut random);
            let verdict = verify(&files, &keys);
            // What `impound verify` prints without --all.
            let first = verdict.problems.first().map(|problem| &problem.path);
            assert!(
                !verdict.intact() && first.is_some_and(|path| expected.contains(path)),
                "{part}/{n}: {kind} {expected:?}: {:?}",
                verdict.problems
            );
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(0));
        work(1);
    });
}

#[test]
fn two_hundred_random_changes_are_all_found_by_the_script_and_the_file_is_named() {
    let world = World::new();
    let work = |part: u64| {
        let mut random = Random(0xfedc_ba98_7654_3211 + part);
        for n in 0..SCRIPTED / 2 {
            let (kind, files, expected) = world.mutation(&mut random);
            let directory = tempfile::tempdir().unwrap();
            files.write(directory.path());
            let keys = [&world.key, &world.ada];
            let (code, said) = script(directory.path(), &keys);
            assert!(
                code == 1 && expected.iter().any(|path| said.contains(path.as_str())),
                "{part}/{n}: {kind} {expected:?}: {said}"
            );
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(0));
        work(1);
    });
}
