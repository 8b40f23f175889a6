//! `tests/broken/*`: small good collections, and one for each way to break one, each with exactly what is
//! said about it in `<name>.expected`, by `impound verify` and, last line, by `verify.sh`.
//!
//! They are made once (IMPOUND_REGENERATE=1) with keys that are thrown away, and then only read: what is
//! said of them must not change by accident. What git can't keep (a pipe, an empty directory) is made of
//! the good one when the test runs.

mod cases;

use super::script::script_by;
use super::*;
use cases::{After, Before, cases};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken")
}

/// What is said of the collection in `directory`.
fn said(directory: &Path, pems: &[PathBuf]) -> String {
    let key = |pem: &PathBuf| VerifyingKey::from_pem(&fs::read_to_string(pem).unwrap()).unwrap();
    let keys: Vec<_> = pems.iter().map(key).collect();
    let verdict = verify(&DirSource::open(directory).unwrap(), &keys);
    let mut text: String = match verdict.intact() {
        true => "intact\n".to_owned(),
        false => verdict
            .problems
            .iter()
            .map(|problem| format!("{}\n", without_fields(&problem.to_string())))
            .collect(),
    };
    let (code, line) = script_by(directory, pems);
    let expected = match (verdict.intact(), verdict.complete()) {
        (true, true) => 0,
        (true, false) => 3,
        (false, _) => 1,
    };
    assert_eq!(code, expected, "{}: {line}", directory.display());
    text.push_str(&line);
    text.push('\n');
    text
}

/// Without the list of fields that there could be, which grows.
fn without_fields(message: &str) -> String {
    match message.split_once(", expected one of `") {
        Some((before, _)) => before.to_owned(),
        None => message.to_owned(),
    }
}

#[test]
fn each_broken_collection_is_called_what_it_is() {
    let regenerate = std::env::var_os("IMPOUND_REGENERATE").is_some();
    if regenerate {
        generate();
    }
    // Who seals, and who vouches besides.
    let pems = ["evidence.pub", "ada.pub"].map(|name| root().join(name));
    let check = |name: &str, directory: &Path| {
        let said = said(directory, &pems);
        let expected = root().join(format!("{name}.expected"));
        if regenerate {
            fs::write(&expected, &said).unwrap();
        }
        assert_eq!(fs::read_to_string(&expected).unwrap(), said, "{name}");
    };
    let mut seen = 0;
    for entry in fs::read_dir(root()).unwrap() {
        let directory = entry.unwrap().path();
        if directory.is_dir() {
            seen += 1;
            check(directory.file_name().unwrap().to_str().unwrap(), &directory);
        }
    }
    assert_eq!(seen, cases().len());
    type Break = fn(&Path);
    let made: [(&str, Break); 2] = [
        ("pipe", |at| {
            fs::remove_file(at.join(POD)).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, at.join(POD), fifo, mode, 0).unwrap();
        }),
        ("empty-directory", |at| {
            fs::create_dir_all(at.join("artifacts/worker2/nothing")).unwrap();
        }),
    ];
    for (name, break_it) in made {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join(name);
        copied(&root().join("good"), &copy);
        break_it(&copy);
        check(name, &copy);
    }
}

fn copied(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status();
    assert!(copied.unwrap().success());
}

fn generate() {
    let _ = fs::remove_dir_all(root());
    fs::create_dir_all(root()).unwrap();
    let (key, ada) = (
        SigningKey::generate().unwrap(),
        SigningKey::generate().unwrap(),
    );
    for (key, name) in [(&key, "evidence.pub"), (&ada, "ada.pub")] {
        fs::write(root().join(name), key.verifying_key().to_pem().unwrap()).unwrap();
    }
    for (name, break_it) in cases() {
        let mut draft = Draft::new();
        if let Before(change) = break_it {
            change(&mut draft);
        }
        let collection = draft.seal_with(SigningKey::from_pem(&key.to_pem().unwrap()).unwrap());
        if let After(change) = break_it {
            // Where the changes find it.
            collection.put("ada.key", ada.to_pem().unwrap().as_bytes());
            change(&collection);
            fs::remove_file(collection.at("ada.key")).unwrap();
        }
        copied(collection.directory.path(), &root().join(name));
    }
}
