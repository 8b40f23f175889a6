//! `impound evidence extract` of writable layers: one of a real container, and what the agent's own capture
//! makes of a directory with everything in it (`tests/layer/everything.tar`, which the agent's tests write with
//! IMPOUND_REGENERATE=1), beside what GNU tar extracts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::fake::{Ran, impound};
use crate::tars::{ended, file, header, pax};

const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../evidence/tests/real");
const EVERYTHING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/layer/everything.tar");

/// Remarks of one kind, by path.
fn remarks(file: &Path, kind: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(file).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    lines
        .filter(|line| line["kind"] == kind)
        .map(|line| (text(&line, "path"), text(&line, "why")))
        .collect()
}

#[test]
fn a_layer_of_a_real_container_comes_out_beside_its_export() {
    let out = tempfile::tempdir().unwrap();
    let ran = Ran::from(
        impound(&["evidence", "extract", &format!("{REAL}/collection")])
            .args(["--key", &format!("{REAL}/evidence.pub"), "--to"])
            .arg(out.path())
            .output()
            .unwrap(),
    );
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let layer = out.path().join("layer-app-d846ad48743c");
    let export = out.path().join("evidence-compromised-app-d846ad48743c");
    for changed in ["tmp/implant", "etc/passwd"] {
        let bytes = fs::read(layer.join(changed)).unwrap();
        assert_eq!(bytes, fs::read(export.join(changed)).unwrap(), "{changed}");
    }
    // 4 KiB and a hole of 60.
    let implant = fs::metadata(layer.join("tmp/implant")).unwrap();
    assert_eq!((implant.len(), implant.blocks()), (65536, 8));
    assert_ne!(
        implant.mtime_nsec(),
        0,
        "a layer has more than whole seconds"
    );
    let noted = remarks(&layer.with_extension("extraction.jsonl"), "noted");
    let deleted = "the container deleted the file of this name that its image has";
    assert_eq!(
        noted,
        BTreeMap::from([("etc/motd".to_owned(), deleted.to_owned())])
    );
    assert!(!layer.join("etc/motd").exists());
    assert!(!export.join("etc/motd").exists());
}

#[derive(PartialEq)]
struct Made {
    size: u64,
    time: (i64, i64),
    links: u64,
    blocks: u64,
    contents: Vec<u8>,
}

/// Every file below a directory, by path.
fn files(root: &Path) -> BTreeMap<PathBuf, Made> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(at) = waiting.pop() {
        let path = root.join(&at);
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            let names = fs::read_dir(&path).unwrap();
            waiting.extend(names.map(|entry| at.join(entry.unwrap().file_name())));
        } else if meta.is_file() {
            let made = Made {
                size: meta.len(),
                time: (meta.mtime(), meta.mtime_nsec()),
                links: meta.nlink(),
                blocks: meta.blocks(),
                contents: fs::read(&path).unwrap(),
            };
            found.insert(at, made);
        }
    }
    found
}

#[test]
fn the_files_of_a_layer_with_everything_are_those_that_gnu_tar_extracts() {
    let scratch = tempfile::tempdir().unwrap();
    let theirs = scratch.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let tar = Command::new("tar")
        .args([
            "--warning=no-unknown-keyword",
            "--warning=no-timestamp",
            "-xpf",
            EVERYTHING,
            "-C",
        ])
        .arg(&theirs)
        .output()
        .unwrap();
    assert!(tar.status.success(), "{tar:?}");
    let to = scratch.path().join("ours");
    let ran = Ran::from(
        impound(&["evidence", "extract", EVERYTHING, "--unverified", "--to"])
            .arg(&to)
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 3, "devices and a pipe are left out: {ran:?}");
    let (ours, theirs) = (files(&to.join("everything")), files(&theirs));
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    for (path, theirs) in &theirs {
        assert!(ours[path] == *theirs, "{} differs", path.display());
    }
    let file = to.join("everything.extraction.jsonl");
    let left_out = remarks(&file, "leftOut");
    assert_eq!(left_out.keys().collect::<Vec<_>>(), ["device", "fifo"]);
    let noted = remarks(&file, "noted");
    for (path, why) in [
        ("gone", "the container deleted"),
        ("gone too", "the container deleted"),
        ("opaque", "it takes the place of the image's directory"),
    ] {
        assert!(noted[path].starts_with(why), "{path}: {}", noted[path]);
    }
    let changed = remarks(&file, "changed");
    assert!(
        changed["empty"].ends_with("not kept: security.capability"),
        "{changed:?}"
    );
}

#[test]
fn a_sparse_file_is_made_as_its_map_says_or_is_left_out() {
    let sparse = |name: &str, size: &str, map: &str, data: &[u8]| {
        let mut contents = map.as_bytes().to_vec();
        contents.resize(contents.len().next_multiple_of(512), 0);
        contents.extend_from_slice(data);
        let records: [(&[u8], &[u8]); 4] = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name.as_bytes()),
            (b"GNU.sparse.realsize", size.as_bytes()),
        ];
        let made_up = format!("GNUSparseFile.0/{name}");
        [pax(b'x', &records), file(made_up.as_bytes(), &contents)].concat()
    };
    let scratch = tempfile::tempdir().unwrap();
    let tar = scratch.path().join("x.tar");
    let good = sparse("good", "8193", "2\n4096\n512\n8193\n0\n", &[1; 512]);
    let bad = sparse("bad", "8193", "2\n4096\n512\n1024\n512\n", &[1; 1024]);
    let after = header(b"after", b'0', 0);
    fs::write(&tar, ended(&[good, bad, after])).unwrap();
    let ran = Ran::from(
        impound(&["evidence", "extract", "--unverified", "--to"])
            .arg(scratch.path())
            .arg(&tar)
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 3, "{ran:?}");
    let good = fs::File::open(scratch.path().join("x/good")).unwrap();
    let mut island = [0; 514];
    good.read_exact_at(&mut island, 4095).unwrap();
    assert_eq!(
        (island[0], island[1], island[512], island[513]),
        (0, 1, 1, 0)
    );
    assert_eq!(good.metadata().unwrap().len(), 8193);
    let left_out = remarks(&scratch.path().join("x.extraction.jsonl"), "leftOut");
    assert!(
        left_out["bad"].contains("whose map can't be followed"),
        "{left_out:?}"
    );
    assert!(!scratch.path().join("x/bad").exists());
    assert!(scratch.path().join("x/after").exists());
}
