//! `verify.sh`, which uses nothing of ours, comes to the same verdict.

use std::os::unix::fs::symlink;

use super::*;

/// Exit code and last line.
pub(super) fn script(directory: &Path, keys: &[&SigningKey]) -> (i32, String) {
    let files: Vec<_> = keys
        .iter()
        .map(|key| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), key.verifying_key().to_pem().unwrap()).unwrap();
            file
        })
        .collect();
    let paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
    script_by(directory, &paths)
}

/// As [`script`], with keys in files.
pub(super) fn script_by(directory: &Path, keys: &[PathBuf]) -> (i32, String) {
    let (code, text) = all_by(directory, keys);
    (code, text.lines().last().unwrap_or_default().to_owned())
}

/// As [`script_by`], with all lines.
pub(super) fn all_by(directory: &Path, keys: &[PathBuf]) -> (i32, String) {
    all_with(&[&[directory.to_owned()], keys].concat())
}

/// As [`all_by`], with any arguments.
pub(super) fn all_with(arguments: &[PathBuf]) -> (i32, String) {
    let output = std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/verify.sh"))
        .args(arguments)
        .output()
        .unwrap();
    let code = output.status.code().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_ne!(
        code, 2,
        "this test needs bash, openssl, jq and coreutils: {text}"
    );
    (code, text)
}

fn said(collection: &Collection) -> (i32, String) {
    script(collection.directory.path(), &[&collection.key])
}

#[test]
fn a_script_without_our_program_finds_a_good_collection_intact() {
    let collection = Collection::sealed();
    let id = collection.key_id();
    let intact = format!("intact; the manifest calls the collection complete, signed with {id}");
    assert_eq!(said(&collection), (0, intact.clone()));
    let ada = SigningKey::generate().unwrap();
    let (path, bundle) = countersignature(&collection, &ada);
    collection.put(&path, bundle);
    let by = ada.verifying_key().key_id();
    assert_eq!(
        said(&collection),
        (
            0,
            format!("{intact}; NOT CHECKED: a signature with {by}, whose key was not given")
        )
    );
    assert_eq!(
        script(collection.directory.path(), &[&ada, &collection.key]),
        (0, format!("{intact}; countersigned with {by}"))
    );
    let mut attempt = Draft::new();
    attempt.add_broken_attempt(TAR);
    assert_eq!(said(&attempt.seal()).0, 0);
    // Chunks, whole and not: three levels of a tree.
    let mut large = Draft::new();
    large.contents(INSPECT, &vec![7; (5 << 20) + 3]);
    large.contents(POD, b"");
    assert_eq!(said(&large.seal()).0, 0);
}

#[test]
fn a_script_without_our_program_comes_to_the_same_verdict() {
    type Break = fn(&Collection);
    let broken: Vec<(String, Break)> = vec![
        (
            format!("{DIFF}: was changed: it has not the SHA-256 of the manifest"),
            |it| it.put(DIFF, b"A /tmp/y\n"),
        ),
        (format!("{POD}: is in the manifest and not there"), |it| {
            fs::remove_file(it.at(POD)).unwrap();
        }),
        ("planted: is there and not in the manifest".into(), |it| {
            it.put("planted", "x")
        }),
        ("manifest.json: is not what was signed".into(), |it| {
            it.edit(MANIFEST, "shell in", "smell in")
        }),
        (
            "custody.jsonl: has 8 entries, and 9 were signed".into(),
            |it| {
                let text = it.text(CUSTODY);
                let cut: String = text.split_inclusive('\n').take(8).collect();
                it.put(CUSTODY, cut);
            },
        ),
        (
            "custody.jsonl: its entries are not those that were signed".into(),
            |it| it.edit(CUSTODY, "controller", "kontroller"),
        ),
        (
            "custody.checkpoint: its signature does not fit the key".into(),
            |it| it.edit(CHECKPOINT, "\n9\n", "\n10\n"),
        ),
        (
            "custody.checkpoint: is not the head that the manifest was made over".into(),
            |it| {
                it.edit(CUSTODY, "controller", "kontroller");
                let lines = it.bytes(CUSTODY);
                let log = CustodyLog::read(it.log.origin(), &lines[..], |_| ()).unwrap();
                it.put(CHECKPOINT, log.checkpoint(&it.key).unwrap());
            },
        ),
        (
            "before/link: links, pipes and devices are no evidence".into(),
            |it| {
                symlink("pod.json", it.at("before/link")).unwrap();
            },
        ),
        (
            "manifest.json: names a path that no evidence can have".into(),
            |it| {
                let manifest = it.text(MANIFEST).replace(POD, "../../../etc/passwd");
                it.put(MANIFEST, &manifest);
                it.put(BUNDLE, sign_manifest(manifest.as_bytes(), &it.key).unwrap());
            },
        ),
        ("manifest.sigstore.json: names no key".into(), |it| {
            it.edit(BUNDLE, &it.key_id().to_string(), "Evidence")
        }),
        (
            "custody.checkpoint: has another form than text and one signature".into(),
            |it| {
                let note = it.text(CHECKPOINT);
                it.put(
                    CHECKPOINT,
                    format!("{note}\u{2014} witness.example AAAAAAAA\n"),
                );
            },
        ),
        ("custody.checkpoint: is of another case".into(), |it| {
            let lines = it.bytes(CUSTODY);
            let log = CustodyLog::read("impound.dev/INC-2", &lines[..], |_| ()).unwrap();
            it.put(CHECKPOINT, log.checkpoint(&it.key).unwrap());
        }),
        (
            format!("{DIFF}: has not the chunk tree of the manifest"),
            |it| {
                let mut manifest = Manifest::decode(&it.bytes(MANIFEST)).unwrap();
                manifest.artifacts[0].chunk_root = Some(Sha256::of(b"other"));
                it.put(MANIFEST, manifest.encode());
                it.put(BUNDLE, sign_manifest(&manifest.encode(), &it.key).unwrap());
            },
        ),
        (
            "custody.jsonl: does not record what was stored as the manifest does".into(),
            |it| {
                let mut manifest = Manifest::decode(&it.bytes(MANIFEST)).unwrap();
                manifest.artifacts[0].api_call = "GET /elsewhere".to_owned();
                it.put(MANIFEST, manifest.encode());
                it.put(BUNDLE, sign_manifest(&manifest.encode(), &it.key).unwrap());
            },
        ),
    ];
    for (expected, break_it) in broken {
        let collection = Collection::sealed();
        break_it(&collection);
        assert_eq!(said(&collection), (1, format!("NOT INTACT: {expected}")));
        assert!(!collection.verdict().intact(), "{expected}");
    }
    let mut alone = Draft::new();
    alone.add_broken_attempt("artifacts/elsewhere");
    let mut missing = Draft::new();
    missing.manifest.missing = vec![Missing {
        path: "artifacts/gone".parse().unwrap(),
        reason: "the agent did not answer".to_owned(),
    }];
    for draft in [alone, missing] {
        let collection = draft.seal();
        let expected = "NOT INTACT: manifest.json: calls the collection complete, and something is missing or incomplete";
        assert_eq!(said(&collection), (1, expected.to_owned()));
        assert!(!collection.verdict().intact());
    }
}

#[test]
fn a_script_takes_no_signature_but_the_given_keys_one() {
    let collection = Collection::sealed();
    let other = SigningKey::generate().unwrap();
    let id = collection.key_id();
    let refused = |expected: String| {
        assert_eq!(said(&collection), (1, format!("NOT INTACT: {expected}")));
        assert!(!collection.verdict().intact(), "{expected}");
    };
    let good = collection.bytes(BUNDLE);
    collection.put(
        BUNDLE,
        sign_manifest(&collection.bytes(MANIFEST), &other).unwrap(),
    );
    refused(format!(
        "manifest.sigstore.json: is signed with key {}, which is none of those given",
        other.verifying_key().key_id()
    ));
    let theirs = OpenBundle::decode(&collection.bytes(BUNDLE)).unwrap();
    let ours = OpenBundle::decode(&good).unwrap();
    for signature in [theirs.signature(), &mirrored(ours.signature())[..]] {
        collection.put(BUNDLE, &good);
        let (old, new) = (
            STANDARD.encode(ours.signature()),
            STANDARD.encode(signature),
        );
        collection.edit(BUNDLE, &old, &new);
        refused(format!(
            "manifest.sigstore.json: its signature does not fit key {id}"
        ));
    }
}

#[test]
fn a_script_misses_whoever_was_to_vouch_and_takes_nobody_who_vouches_for_the_controller() {
    let (collection, ada) = (Collection::sealed(), SigningKey::generate().unwrap());
    let pem = |key: &SigningKey| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), key.verifying_key().to_pem().unwrap()).unwrap();
        file
    };
    let (controller, vouching) = (pem(&collection.key), pem(&ada));
    let said = || {
        let option = PathBuf::from("--countersigned-by");
        let paths = [
            vouching.path(),
            collection.directory.path(),
            controller.path(),
        ];
        let (code, text) = all_with(&[&[option], &paths.map(Path::to_owned)[..]].concat());
        (code, text.lines().last().unwrap().to_owned())
    };
    let id = ada.verifying_key().key_id();
    let gone = format!(
        "NOT INTACT: signatures/{id}.sigstore.json: is not there, and its key was to have vouched for this"
    );
    assert_eq!(said(), (1, gone));
    let (path, bundle) = countersignature(&collection, &ada);
    collection.put(&path, &bundle);
    let (code, text) = said();
    assert!(
        code == 0 && text.ends_with(&format!("; countersigned with {id}")),
        "{text}"
    );
    collection.put(BUNDLE, bundle);
    let (code, text) = said();
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains(&format!(
            "is signed with key {id}, which is none of those given"
        )),
        "{text}"
    );
}

#[test]
fn what_a_script_can_not_check_is_named_and_no_verdict() {
    let collection = Collection::sealed();
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = scratch.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let good = file("good", collection.key.verifying_key().to_pem().unwrap());
    let secret = file("secret", collection.key.to_pem().unwrap().to_string());
    let empty = file("empty.json", r#"{"keys": []}"#.to_owned());
    let other = file("other.json", r#"{"keys": [{"key_id": "x"}]}"#.to_owned());
    let (gone, here) = (scratch.path().join("gone"), collection.directory.path());
    let run = |arguments: &[&Path], temporary: Option<&Path>| {
        let mut script =
            std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/verify.sh"));
        if let Some(directory) = temporary {
            script.env("TMPDIR", directory);
        }
        let output = script.args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said, output.stdout)
    };
    let option = Path::new("--timestamp-ca");
    let vouching = Path::new("--countersigned-by");
    for (arguments, named, words) in [
        (vec![here, &gone], "gone", "is no file that can be read"),
        (
            vec![here, scratch.path()],
            "",
            "is no file that can be read",
        ),
        (vec![here, &secret], "secret", "is no public key in PEM"),
        (vec![here, &empty], "empty.json", "lists no key"),
        (vec![here, &other], "a key in", "is no public key in PEM"),
        (
            vec![&gone, &good],
            "gone",
            "is no directory that can be read",
        ),
        (
            vec![&good, &good],
            "good",
            "is no directory that can be read",
        ),
        (
            vec![option, &gone, here, &good],
            "gone",
            "is no file that can be read",
        ),
        (
            vec![option, &good, here, &good],
            "good",
            "is no certificate in PEM",
        ),
        (
            vec![vouching, &secret, here, &good],
            "secret",
            "is no public key in PEM",
        ),
        (vec![here], "usage", "DIRECTORY PUBLIC-KEY.pem"),
    ] {
        let (code, said, printed) = run(&arguments, None);
        assert!(
            code == Some(2) && said.contains(named) && said.contains(words),
            "{arguments:?}: {code:?} {said}"
        );
        assert_eq!((said.lines().count(), printed.len()), (1, 0), "{said}");
    }
    let (code, said, _) = run(&[here, &good], Some(&gone));
    assert!(
        code == Some(2) && said.contains("NOT CHECKED: ") && said.contains("is there room in "),
        "{code:?} {said}"
    );
}

#[test]
fn a_script_needs_bash_openssl_jq_and_coreutils_alone() {
    let output = std::process::Command::new("dpkg")
        .args(["-L", "coreutils", "openssl", "jq"])
        .output()
        .expect("this needs dpkg, which knows what coreutils are: run it on Debian");
    assert!(
        output.status.success(),
        "apt-get install coreutils openssl jq"
    );
    let installed = String::from_utf8(output.stdout).unwrap();
    for tool in tools() {
        let is_tool = |path: &str| path.ends_with(&format!("bin/{tool}"));
        assert!(installed.lines().any(is_tool), "{tool}");
    }
}

/// The programs that the script says it needs.
fn tools() -> Vec<String> {
    let listed = VERIFY_SH.split_once("for tool in ").unwrap().1;
    let listed = listed.split_once("; do").unwrap().0.replace("\\\n", " ");
    listed.split_whitespace().map(str::to_owned).collect()
}

/// Every program that the script runs, with as many as it needs of what is there.
#[test]
fn a_script_without_one_of_its_tools_says_which_and_checks_nothing() {
    let collection = Collection::sealed();
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(key.path(), collection.key.verifying_key().to_pem().unwrap()).unwrap();
    // Behind chunks and a tree of more than one level, too.
    let mut large = Draft::new();
    large.contents(INSPECT, &vec![7; (2 << 20) + 3]);
    let collection = large.seal_with(collection.key);
    let tools = tools();
    let output = |without: Option<&str>| {
        let path = tempfile::tempdir().unwrap();
        for tool in tools.iter().filter(|tool| Some(tool.as_str()) != without) {
            let found = std::process::Command::new("sh")
                .args(["-c", "command -v \"$1\"", "-", tool.as_str()])
                .output()
                .unwrap();
            let found = String::from_utf8(found.stdout).unwrap();
            symlink(found.trim(), path.path().join(tool)).unwrap();
        }
        let output = std::process::Command::new("/bin/bash")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/verify.sh"))
            .args([collection.directory.path(), key.path()])
            .env_clear()
            .env("PATH", path.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    assert_eq!(
        output(None),
        (Some(0), String::new()),
        "the list has all that is run"
    );
    for tool in &tools {
        let needs = format!("this needs {tool}: install it\n");
        assert_eq!(output(Some(tool)), (Some(2), needs));
    }
}
