//! Ten thousand random single changes to a collection that the controller sealed, in a directory as it is in the
//! store: each is found, the first thing said names the file, and when it is undone the collection is intact again.
//!
//! What checks is what `impound verify DIR` runs on the directory; of two hundred more, what `verify.sh` says.
//!
//! The collection is `tests/real`, or with IMPOUND_MUTATE=DIR,KEY the one in that directory, whose secret
//! key is in that file: a demo's, for one.

use std::collections::{BTreeMap, BTreeSet};

use super::script::script;
use super::*;

/// How many, and how many of them `verify.sh` is asked about, too.
const MUTATIONS: u64 = 10_000;
const SCRIPTED: u64 = 200;

/// Each kind of change, every one of which must have been made.
const KINDS: [&str; 12] = [
    "add",
    "cut",
    "cut or lengthen",
    "drop",
    "edit a timestamp",
    "exchange for a link",
    "flip",
    "rename",
    "reorder",
    "replace the signature",
    "roll back",
    "swap",
];

/// A collection's files by their paths.
type Files = BTreeMap<String, Vec<u8>>;

fn read(directory: &Path) -> Files {
    let source = DirSource::open(directory).unwrap();
    let read = |path: EvidencePath| {
        let bytes = fs::read(directory.join(path.as_str())).unwrap();
        (path.to_string(), bytes)
    };
    source.list().unwrap().files.into_iter().map(read).collect()
}

/// What becomes of one file.
enum Fate {
    Bytes(Vec<u8>),
    Gone,
    /// A symbolic link to the same bytes elsewhere.
    Link,
}

/// One change: its kind, what becomes of which files, and the files one of which must be named.
struct Change {
    kind: &'static str,
    fates: Vec<(String, Fate)>,
    named: Vec<String>,
}

impl Change {
    /// Other bytes in one file, which is named.
    fn of(kind: &'static str, path: &str, bytes: Vec<u8>) -> Self {
        Self {
            kind,
            fates: vec![(path.to_owned(), Fate::Bytes(bytes))],
            named: vec![path.to_owned()],
        }
    }
}

/// A copy of the collection on disk.
struct Copy<'w> {
    world: &'w World,
    directory: tempfile::TempDir,
    elsewhere: tempfile::TempDir,
}

impl<'w> Copy<'w> {
    fn new(world: &'w World) -> Self {
        let copy = Self {
            world,
            directory: tempfile::tempdir().unwrap(),
            elsewhere: tempfile::tempdir().unwrap(),
        };
        for (path, bytes) in &world.good {
            copy.put(path, bytes);
        }
        copy
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.directory.path().join(path)).unwrap();
    }

    fn make(&self, change: &Change) {
        for (path, fate) in &change.fates {
            match fate {
                Fate::Bytes(bytes) => self.put(path, bytes),
                Fate::Gone => self.remove(path),
                Fate::Link => {
                    let at = self.directory.path().join(path);
                    let target = self.elsewhere.path().join("target");
                    fs::rename(&at, &target).unwrap();
                    symlink(target, at).unwrap();
                }
            }
        }
    }

    fn undo(&self, change: &Change) {
        for (path, fate) in &change.fates {
            if matches!(fate, Fate::Link) || !self.world.good.contains_key(path) {
                self.remove(path);
            }
        }
        for (path, _) in &change.fates {
            if let Some(bytes) = self.world.good.get(path) {
                self.put(path, bytes);
            }
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
        let mut good = read(&directory);
        let ada = SigningKey::generate().unwrap();
        let manifest = Manifest::decode(&good[MANIFEST]).unwrap();
        good.insert(
            format!("signatures/{}.sigstore.json", ada.verifying_key().key_id()),
            sign_manifest(&good[MANIFEST], &ada).unwrap(),
        );
        let log = CustodyLog::read(origin(&manifest.case), &good[CUSTODY][..], |_| ()).unwrap();
        Self {
            artifacts: manifest
                .artifacts
                .iter()
                .map(|record| record.path.to_string())
                .collect(),
            all: good.keys().cloned().collect(),
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
        let text = std::str::from_utf8(&self.good[CUSTODY]).unwrap();
        text.split_inclusive('\n').collect()
    }

    fn mutation(&self, random: &mut Random) -> Change {
        let has_bytes = |path: &&String| !self.good[*path].is_empty();
        let full: Vec<String> = self.all.iter().filter(has_bytes).cloned().collect();
        let log = |kind, lines: Vec<&str>| Change::of(kind, CUSTODY, lines.concat().into());
        match random.below(14) {
            0..=2 => {
                let path = random.one(&full);
                let mut bytes = self.good[path].clone();
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
                Change::of("flip", path, bytes)
            }
            3 => {
                // A counter-signature that goes leaves no trace: it came after the seal.
                let droppable = random.below(self.all.len() - 1);
                let path = self
                    .all
                    .iter()
                    .filter(|path| !path.starts_with(crate::SIGNATURES));
                let path = path.cycle().nth(droppable).unwrap();
                Change {
                    kind: "drop",
                    fates: vec![(path.clone(), Fate::Gone)],
                    named: vec![path.clone()],
                }
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
                Change::of("add", path, vec![b'x'; random.below(9)])
            }
            5 => {
                let from = random.one(&self.all).to_owned();
                let to = format!("{from}.{}", random.below(100));
                Change {
                    kind: "rename",
                    fates: vec![
                        (to.clone(), Fate::Bytes(self.good[&from].clone())),
                        (from.clone(), Fate::Gone),
                    ],
                    named: vec![from, to],
                }
            }
            6 => {
                let (one, two) = loop {
                    let one = random.one(&self.artifacts);
                    let two = random.one(&self.artifacts);
                    if self.good[one] != self.good[two] {
                        break (one.to_owned(), two.to_owned());
                    }
                };
                Change {
                    kind: "swap",
                    fates: vec![
                        (one.clone(), Fate::Bytes(self.good[&two].clone())),
                        (two.clone(), Fate::Bytes(self.good[&one].clone())),
                    ],
                    named: vec![one, two],
                }
            }
            7 => {
                let mut lines = self.lines();
                let one = random.below(lines.len());
                let two = (one + 1 + random.below(lines.len() - 1)) % lines.len();
                lines.swap(one, two);
                log("reorder", lines)
            }
            8 => {
                let mut lines = self.lines();
                match random.below(3) {
                    0 => lines.truncate(random.below(lines.len())),
                    1 => drop(lines.remove(random.below(lines.len()))),
                    _ => lines.insert(random.below(lines.len()), lines[0]),
                }
                log("cut", lines)
            }
            9 => {
                let mut lines = self.lines();
                lines.truncate(random.below(lines.len()));
                let cut = lines.concat().into_bytes();
                let log = CustodyLog::read(self.log.origin(), &cut[..], |_| ());
                let old = log.unwrap().checkpoint(&self.key).unwrap();
                let mut change = Change::of("roll back", CHECKPOINT, old);
                if random.below(2) == 0 {
                    change.fates.push((CUSTODY.to_owned(), Fate::Bytes(cut)));
                }
                change
            }
            10 => {
                let path = [MANIFEST, CUSTODY][random.below(2)];
                let mut bytes = self.good[path].clone();
                let stamps: Vec<usize> = (26..bytes.len())
                    .filter(|end| bytes[*end] == b'Z' && bytes[*end - 7] == b'.')
                    .collect();
                let digit = stamps[random.below(stamps.len())] - 1 - random.below(6);
                bytes[digit] = b'0' + (bytes[digit] - b'0' + 1 + random.below(9) as u8) % 10;
                Change::of("edit a timestamp", path, bytes)
            }
            11 => {
                let manifest = &self.good[MANIFEST];
                let (path, bytes) = match random.below(4) {
                    0 => (BUNDLE, sign_manifest(manifest, &self.eve).unwrap()),
                    1 => (BUNDLE, sign_manifest(b"other", &self.key).unwrap()),
                    2 => (CHECKPOINT, self.log.checkpoint(&self.eve).unwrap()),
                    _ => {
                        let open = OpenBundle::decode(&self.good[BUNDLE]).unwrap();
                        let text = std::str::from_utf8(&self.good[BUNDLE]).unwrap();
                        let (old, new) = (open.signature(), mirrored(open.signature()));
                        let text = text.replace(&STANDARD.encode(old), &STANDARD.encode(new));
                        (BUNDLE, text.into_bytes())
                    }
                };
                let mut change = Change::of("replace the signature", path, bytes);
                change.named.push(MANIFEST.to_owned());
                change
            }
            12 => {
                let path = random.one(&self.all);
                Change {
                    kind: "exchange for a link",
                    fates: vec![(path.to_owned(), Fate::Link)],
                    named: vec![path.to_owned()],
                }
            }
            _ => {
                let path = random.one(&full);
                let mut bytes = self.good[path].clone();
                match random.below(2) {
                    0 => bytes.truncate(random.below(bytes.len())),
                    _ => bytes.push(b"\n\0 x"[random.below(4)]),
                }
                Change::of("cut or lengthen", path, bytes)
            }
        }
    }

    /// Makes so many changes, each in one of two copies, and undoes it; `found` says what was made of it, and whether one of
    /// these files was named.
    fn change(
        &self,
        changes: u64,
        seed: u64,
        found: impl Fn(&Path, &[String]) -> (bool, String) + Sync,
    ) {
        let work = |part: u64| {
            let copy = Copy::new(self);
            let mut random = Random(seed + part);
            let mut made = BTreeSet::new();
            for n in 0..changes / 2 {
                let change = self.mutation(&mut random);
                made.insert(change.kind);
                copy.make(&change);
                let (named, said) = found(copy.directory.path(), &change.named);
                let Change {
                    kind, named: files, ..
                } = &change;
                assert!(named, "{part}/{n}: {kind} {files:?}: {said}");
                copy.undo(&change);
            }
            assert_eq!(made, KINDS.into());
            // Each change was one to the same collection.
            assert!(read(copy.directory.path()) == self.good);
            assert_eq!(self.problems(copy.directory.path()), []);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| work(0));
            work(1);
        });
    }

    /// As `impound verify DIR` finds them.
    fn problems(&self, directory: &Path) -> Vec<Problem> {
        let source = DirSource::open(directory).unwrap();
        let verdict = verify_watched(&source, &self.keys(), &Given::default(), &|_| ());
        assert_eq!(verdict.intact(), verdict.problems.is_empty());
        verdict.problems
    }
}

#[test]
fn ten_thousand_random_changes_are_all_found_and_the_file_is_named() {
    let world = World::new();
    world.change(MUTATIONS, 0x1234_5678_9abc_def1, |directory, files| {
        let problems = world.problems(directory);
        // What `impound verify` prints without --all.
        let first = problems.first();
        let named = first.is_some_and(|problem| files.contains(&problem.path));
        (named, format!("{problems:?}"))
    });
}

#[test]
fn two_hundred_random_changes_are_all_found_by_the_script_and_the_file_is_named() {
    let world = World::new();
    world.change(SCRIPTED, 0xfedc_ba98_7654_3211, |directory, files| {
        let (code, said) = script(directory, &[&world.key, &world.ada]);
        let about = |file: &String| said.starts_with(&format!("NOT INTACT: {file}: "));
        (code == 1 && files.iter().any(about), said)
    });
}
