//! `tests/broken/*`: a small good collection, and one for each way to break it, each with exactly what is
//! said about it in `<name>.expected`, by `impound verify` and, last line, by `verify.sh`.
//!
//! They are made once (IMPOUND_REGENERATE=1) with a key that is thrown away, and then only read: what is
//! said of them must not change by accident.

use std::os::unix::fs::symlink;

use super::script::script_by;
use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken")
}

/// What is said of the collection in `directory`.
fn said(directory: &Path, key: &VerifyingKey, pem: &Path) -> String {
    let verdict = verify(
        &DirSource::open(directory).unwrap(),
        std::slice::from_ref(key),
    );
    let mut text: String = match verdict.intact() {
        true => "intact\n".to_owned(),
        false => verdict
            .problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect(),
    };
    let (code, line) = script_by(directory, &[pem.to_owned()]);
    assert_eq!(
        code == 0,
        verdict.intact(),
        "{}: {line}",
        directory.display()
    );
    text.push_str(&line);
    text.push('\n');
    text
}

#[test]
fn each_broken_collection_is_called_what_it_is() {
    if std::env::var_os("IMPOUND_REGENERATE").is_some() {
        generate();
    }
    let pem = root().join("evidence.pub");
    let key = VerifyingKey::from_pem(&fs::read_to_string(&pem).unwrap()).unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(root()).unwrap() {
        let directory = entry.unwrap().path();
        if !directory.is_dir() {
            continue;
        }
        seen += 1;
        let said = said(&directory, &key, &pem);
        let expected = directory.with_extension("expected");
        if std::env::var_os("IMPOUND_REGENERATE").is_some() {
            fs::write(&expected, &said).unwrap();
        }
        assert_eq!(
            fs::read_to_string(&expected).unwrap(),
            said,
            "{}",
            directory.display()
        );
    }
    assert!(seen > 20, "only {seen} collections are there");
}

fn generate() {
    type Break = fn(&Collection);
    let broken: [(&str, Break); 26] = [
        ("good", |_| ()),
        ("changed-byte", |it| it.put(DIFF, b"A /tmp/y\n")),
        ("shorter", |it| it.put(DIFF, b"A /tmp/")),
        ("missing", |it| fs::remove_file(it.at(POD)).unwrap()),
        ("added", |it| it.put("before/node.json", "{}")),
        ("renamed", |it| {
            fs::rename(it.at(POD), it.at("before/p.json")).unwrap()
        }),
        ("swapped", |it| {
            let (one, two) = (it.bytes(INSPECT), it.bytes(POD));
            it.put(INSPECT, two);
            it.put(POD, one);
        }),
        ("link", |it| {
            fs::remove_file(it.at(POD)).unwrap();
            symlink("../manifest.json", it.at(POD)).unwrap();
        }),
        ("manifest-edited", |it| {
            it.edit(MANIFEST, "shell in", "smell in")
        }),
        ("manifest-timestamp", |it| {
            it.edit(MANIFEST, "03:04:05.678901Z", "03:04:06.678901Z")
        }),
        ("manifest-missing", |it| {
            fs::remove_file(it.at(MANIFEST)).unwrap()
        }),
        ("signature-missing", |it| {
            fs::remove_file(it.at(BUNDLE)).unwrap()
        }),
        ("signature-of-another-key", |it| {
            let other = SigningKey::generate().unwrap();
            it.put(BUNDLE, sign_manifest(&it.bytes(MANIFEST), &other).unwrap());
        }),
        ("signature-of-another-manifest", |it| {
            let other = sign_manifest(&sample(Vec::new()).encode(), &it.key).unwrap();
            it.put(BUNDLE, other);
        }),
        ("signature-mirrored", |it| {
            let open = OpenBundle::decode(&it.bytes(BUNDLE)).unwrap();
            let new = STANDARD.encode(mirrored(open.signature()));
            it.edit(BUNDLE, &STANDARD.encode(open.signature()), &new);
        }),
        ("bundle-reformatted", |it| {
            it.edit(BUNDLE, "  \"mediaType\"", "   \"mediaType\"")
        }),
        ("log-cut", |it| {
            let text = it.text(CUSTODY);
            it.put(
                CUSTODY,
                text.split_inclusive('\n').take(8).collect::<String>(),
            );
        }),
        ("log-torn", |it| {
            let text = it.text(CUSTODY);
            it.put(CUSTODY, &text[..text.len() - 9]);
        }),
        ("log-reordered", |it| {
            let text = it.text(CUSTODY);
            let mut lines: Vec<_> = text.split_inclusive('\n').collect();
            lines.swap(2, 3);
            it.put(CUSTODY, lines.concat());
        }),
        ("log-edited", |it| {
            it.edit(CUSTODY, "\"who\":\"ada\"", "\"who\":\"eve\"")
        }),
        ("log-missing", |it| fs::remove_file(it.at(CUSTODY)).unwrap()),
        ("rolled-back", |it| {
            let (lines, early, _) = rolled_back(it);
            it.put(CUSTODY, lines);
            it.put(CHECKPOINT, early.checkpoint(&it.key).unwrap());
        }),
        ("checkpoint-rolled-back", |it| {
            let (_, early, _) = rolled_back(it);
            it.put(CHECKPOINT, early.checkpoint(&it.key).unwrap());
        }),
        ("checkpoint-edited", |it| {
            it.edit(CHECKPOINT, "\n9\n", "\n8\n")
        }),
        ("checkpoint-of-another-case", |it| {
            let lines = it.bytes(CUSTODY);
            let log = CustodyLog::read("impound.dev/INC-2", &lines[..], |_| ()).unwrap();
            it.put(CHECKPOINT, log.checkpoint(&it.key).unwrap());
        }),
        ("record-differs", |it| {
            let mut manifest = Manifest::decode(&it.bytes(MANIFEST)).unwrap();
            manifest.artifacts[0].api_call = "GET /elsewhere".to_owned();
            it.put(MANIFEST, manifest.encode());
            it.put(BUNDLE, sign_manifest(&manifest.encode(), &it.key).unwrap());
        }),
    ];
    let _ = fs::remove_dir_all(root());
    fs::create_dir_all(root()).unwrap();
    let key = SigningKey::generate().unwrap();
    fs::write(
        root().join("evidence.pub"),
        key.verifying_key().to_pem().unwrap(),
    )
    .unwrap();
    for (name, break_it) in broken {
        let secret = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
        let collection = Draft::new().seal_with(secret);
        break_it(&collection);
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(collection.directory.path())
            .arg(root().join(name))
            .status();
        assert!(copied.unwrap().success());
    }
}
