//! Captures of directories with everything in them, compared with what GNU tar makes of the tar.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use impound_evidence::index::{FileIndex, Kind, Limits};
use impound_evidence::{Completeness, TarEnd};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, getxattr, lgetxattr,
    llistxattr, makedev, mknodat, open, setxattr, utimensat,
};
use serde_json::Value;

use super::*;
use crate::confine::Confinement;

/// The tar of a directory, and the reasons.
async fn capture(dir: &Path) -> (Vec<u8>, Vec<String>) {
    let mut captured = begin(dir);
    let mut tar = Vec::new();
    while let Some(piece) = captured.bytes.next().await {
        tar.extend_from_slice(&piece.unwrap());
    }
    (tar, captured.reasons.told())
}

fn begin(dir: &Path) -> Captured {
    let root = open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    directory(root, "a test".to_owned(), Span::none()).unwrap()
}

/// As the controller lists it: by path.
fn listed(tar: &[u8]) -> BTreeMap<String, Value> {
    let mut index = FileIndex::new(Kind::Other, Limits::default());
    index.update(tar);
    let indexed = index.finish();
    assert_eq!(indexed.summary.completeness, Completeness::Complete);
    let lines = String::from_utf8(indexed.lines.files).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let by_path = |line: &Value| (line["path"].as_str().unwrap().to_owned(), line.clone());
    let all: BTreeMap<_, _> = lines.iter().map(by_path).collect();
    assert_eq!(all.len(), lines.len(), "a path is there twice");
    all
}

/// Extracts with GNU tar.
fn extract(tar: &[u8], to: &Path) {
    let mut child = Command::new("tar")
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--warning=no-unknown-keyword",
            "--warning=no-timestamp",
        ])
        .args(["--numeric-owner", "--same-owner", "-xpf", "-", "-C"])
        .arg(to)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(tar).unwrap());
        let output = child.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && words.is_empty(), "{words}");
    });
}

/// What is below a directory, without sockets: by path, all that a tar can keep.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(at) = waiting.pop() {
        let path = root.join(&at);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = FileType::from_raw_mode(meta.mode());
        if kind == FileType::Socket {
            continue;
        }
        let mut told = format!(
            "{:o} {}:{} {}.{:09}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        let contents = match kind {
            FileType::Directory => {
                let names = fs::read_dir(&path).unwrap();
                waiting.extend(names.map(|entry| at.join(entry.unwrap().file_name())));
                String::new()
            }
            FileType::RegularFile => {
                let digest = impound_evidence::Sha256::of(&fs::read(&path).unwrap());
                format!("{} {digest} links {}", meta.size(), meta.nlink())
            }
            FileType::Symlink => format!("{:?}", fs::read_link(&path).unwrap()),
            _ => format!("device {}", meta.rdev()),
        };
        told.push_str(&format!(" {contents}{}", attributes(&path)));
        found.insert(at, told);
    }
    found
}

fn attributes(path: &Path) -> String {
    let mut names = vec![0; 4096];
    let length = llistxattr(path, names.as_mut_slice()).unwrap();
    names.truncate(length);
    let mut told: Vec<String> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = lgetxattr(path, name, value.as_mut_slice()).unwrap();
            format!(
                " {}={}",
                name.escape_ascii(),
                value[..length].escape_ascii()
            )
        })
        .collect();
    told.sort();
    told.concat()
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A directory with every kind of thing. Needs root, as the agent does.
fn everything(dir: &Path) {
    fs::write(dir.join("plain"), "plain\n").unwrap();
    fs::set_permissions(dir.join("plain"), fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(dir.join("plain"), Some(3_000_000), Some(5)).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(
        dir.join("large"),
        (0..3 << 20).map(|n| (n / 7) as u8).collect::<Vec<_>>(),
    )
    .unwrap();
    fs::hard_link(dir.join("large"), dir.join("one more name")).unwrap();
    let long = dir.join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("f".repeat(200)), "far down").unwrap();
    fs::hard_link(long.join("f".repeat(200)), dir.join("z link to far")).unwrap();
    symlink("t".repeat(300), dir.join("long target")).unwrap();
    symlink("/etc/passwd", dir.join("symlink")).unwrap();
    fs::write(dir.join(OsStr::from_bytes(b"not \xff\xfe text\n")), "x").unwrap();
    let node = |name: &str, kind, device| {
        mknodat(
            CWD,
            dir.join(name),
            kind,
            Mode::from_raw_mode(0o600),
            device,
        )
        .expect("run the tests as root");
    };
    node("fifo", FileType::Fifo, 0);
    node("gone", FileType::CharacterDevice, 0);
    fs::hard_link(dir.join("gone"), dir.join("gone too")).unwrap();
    node("device", FileType::BlockDevice, makedev(259, 70_000));
    drop(UnixListener::bind(dir.join("socket")).unwrap());
    let set = |name: &str, key: &str, value: &[u8]| {
        setxattr(dir.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    set("plain", "user.note", b"a=b\n\0\xff");
    set("plain", "user.odd=%name", b"1");
    set(
        "empty",
        "security.capability",
        b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    fs::create_dir(dir.join("opaque")).unwrap();
    set("opaque", "trusted.overlay.opaque", b"y");
    sparse(
        &dir.join("sparse"),
        &[(0, 100), (5 << 20, 70_000), ((1 << 26) + 3, 9)],
        (1 << 26) + 12,
    );
    sparse(
        &dir.join("sparse with a hole at its end"),
        &[(1 << 20, 1)],
        8 << 20,
    );
    sparse(&dir.join("nothing but a hole"), &[], 1 << 20);
    // How somebody keeps a file's hash off a list: truncate -s +1M.
    sparse(&dir.join("grown"), &[(0, 5000)], 5000 + (1 << 20));
    set_time(&dir.join("plain"), 1_600_000_000, 123_456_789);
    set_time(&dir.join("empty"), -2, 500_000_000);
    set_time(&dir.join("symlink"), 1_500_000_000, 1);
    set_time(&dir.join("opaque"), 0x3_0000_0000, 999_999_999);
}

fn sparse(path: &Path, islands: &[(u64, usize)], size: u64) {
    let file = File::create(path).unwrap();
    for (offset, length) in islands {
        file.write_all_at(&vec![7; *length], *offset).unwrap();
    }
    file.set_len(size).unwrap();
}

#[tokio::test]
async fn gnu_tar_makes_the_same_tree_of_it_times_attributes_and_holes_included() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    everything(from.path());
    let (tar, reasons) = capture(from.path()).await;
    assert_eq!(reasons, Vec::<String>::new());
    extract(&tar, to.path());
    // Tars have no sockets; GNU tar makes an empty file of it. Whiteouts each stand for themselves.
    fs::remove_file(to.path().join("socket")).unwrap();
    let time = fs::metadata(from.path()).unwrap();
    set_time(to.path(), time.mtime(), time.mtime_nsec());
    let (expected, found) = (tree(from.path()), tree(to.path()));
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (path, expected) in &expected {
        assert_eq!(&found[path], expected, "{}", path.display());
    }
    // 64 MiB that are all but empty is small, in the tar and where it is extracted.
    assert!(tar.len() < 8 << 20, "{} bytes", tar.len());
    for name in [
        "sparse",
        "sparse with a hole at its end",
        "nothing but a hole",
    ] {
        let blocks = |dir: &Path| fs::metadata(dir.join(name)).unwrap().blocks();
        assert_eq!(blocks(to.path()), blocks(from.path()), "{name}");
    }
    // What the tests of `impound evidence extract` take, without the bulk.
    if std::env::var_os("IMPOUND_REGENERATE").is_some() {
        let large = File::options().write(true).open(from.path().join("large"));
        large.unwrap().set_len(10_000).unwrap();
        let kept = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../cli/tests/layer/everything.tar"
        );
        fs::write(kept, capture(from.path()).await.0).unwrap();
    }
}

#[tokio::test]
async fn the_listing_hashes_what_gnu_tar_extracts_and_lists_the_attributes_that_it_sets() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    everything(from.path());
    let (tar, _) = capture(from.path()).await;
    extract(&tar, to.path());
    let mut compared = 0;
    for line in listed(&tar).values() {
        let bytes = |field: &str| match line[format!("{field}_base64")].as_str() {
            Some(base64) => STANDARD.decode(base64).unwrap(),
            None => line[field].as_str().unwrap().as_bytes().to_vec(),
        };
        let path = to.path().join(OsStr::from_bytes(&bytes("path")));
        let kind = line["type"].as_str().unwrap();
        if kind == "file" {
            let sum = Command::new("sha256sum")
                .arg("-z")
                .arg(&path)
                .output()
                .unwrap();
            let sum = String::from_utf8_lossy(&sum.stdout);
            assert_eq!(line["sha256"].as_str(), sum.get(..64), "{line}");
        }
        if kind == "hardlink" {
            continue;
        }
        let theirs = attributes(&path);
        let none = serde_json::Map::new();
        let ours = line["xattrs"].as_object().unwrap_or(&none);
        let mut told: Vec<String> = ours
            .iter()
            .map(|(name, value)| {
                let value = STANDARD.decode(value.as_str().unwrap()).unwrap();
                format!(" {name}={}", value.escape_ascii())
            })
            .collect();
        told.sort();
        assert_eq!(told.concat(), theirs, "{line}");
        compared += ours.len();
    }
    assert_eq!(compared, 4, "user.*, security.capability and trusted.*");
}

#[tokio::test]
async fn the_listing_says_what_is_there_and_finds_nothing_odd() {
    let from = tempfile::tempdir().unwrap();
    everything(from.path());
    let access = fs::metadata(from.path().join("plain")).unwrap();
    let (tar, _) = capture(from.path()).await;
    let all = listed(&tar);
    for (path, line) in &all {
        let expected: &[&str] = match path.as_str() {
            "sparse" | "sparse with a hole at its end" | "nothing but a hole" | "grown" => {
                &["sparse"]
            }
            path if path.starts_with("not ") => &["control_characters", "not_utf8"],
            "empty" => &["negative_time"],
            _ => &[],
        };
        // Absolute ones are odd for a listing, not for a container.
        let odd: Vec<&str> = line["anomalies"]
            .as_array()
            .map(|odd| odd.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let odd: Vec<&str> = odd
            .into_iter()
            .filter(|one| *one != "link_outside")
            .collect();
        assert_eq!(odd, expected, "{path}: {line}");
    }
    assert_eq!(all["gone"]["type"], "char");
    assert_eq!(all["gone"]["whiteout"], true);
    assert_eq!(
        all["gone too"]["type"], "char",
        "each whiteout marks a file"
    );
    assert_eq!(all["device"]["device"], serde_json::json!([259, 70_000]));
    assert_eq!(all["plain"]["mtime"], "2020-09-13T12:26:40.123456789Z");
    assert_eq!(all["plain"]["uid"], 3_000_000);
    assert_eq!(all["one more name"]["link"], "large");
    assert_eq!(all["sparse"]["size"], (1 << 26) + 12);
    assert!(all["opaque"]["xattrs"]["trusted.overlay.opaque"].is_string());
    let paths: Vec<&str> = all.keys().map(String::as_str).collect();
    assert!(paths.contains(&"socket"));
    // Reading leaves no trace, for who may ask for that.
    let after = fs::metadata(from.path().join("plain")).unwrap();
    assert_eq!(after.atime_nsec(), access.atime_nsec());
    // Only the reading of a link's target does, once, for the kernel has no such wish there.
    let ((second, _), (third, _)) = (capture(from.path()).await, capture(from.path()).await);
    assert!(second == third, "the same directory gives the same bytes");
}

#[tokio::test]
async fn a_file_that_becomes_shorter_while_it_is_read_is_padded_and_named() {
    let from = tempfile::tempdir().unwrap();
    let path = from.path().join("shrinks");
    fs::write(&path, vec![1; 6 << 20]).unwrap();
    fs::write(from.path().join("then"), "the next").unwrap();
    let mut captured = begin(from.path());
    // The thread is at most three pieces ahead of us.
    let mut tar = captured.bytes.next().await.unwrap().unwrap().to_vec();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    while let Some(piece) = captured.bytes.next().await {
        tar.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(
        captured.reasons.told(),
        [
            "\"shrinks\" became shorter while it was read: it ended at byte 4194304; the rest is zeros here"
        ]
    );
    let all = listed(&tar);
    assert_eq!(all["shrinks"]["size"], 6 << 20);
    assert_eq!(all["then"]["size"], 8, "the tar goes on");
}

#[tokio::test]
async fn a_file_that_grows_while_it_is_read_is_there_as_it_was() {
    let from = tempfile::tempdir().unwrap();
    let path = from.path().join("grows");
    fs::write(&path, vec![1; 3 << 20]).unwrap();
    let mut captured = begin(from.path());
    let mut tar = captured.bytes.next().await.unwrap().unwrap().to_vec();
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(&vec![2; 1 << 20]).unwrap();
    while let Some(piece) = captured.bytes.next().await {
        tar.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(captured.reasons.told(), Vec::<String>::new());
    let as_it_was = impound_evidence::Sha256::of(&vec![1; 3 << 20]).to_string();
    assert_eq!(listed(&tar)["grows"]["sha256"], as_it_was);
}

#[tokio::test]
async fn a_mount_inside_is_named_and_not_entered() {
    let from = tempfile::tempdir().unwrap();
    fs::create_dir(from.path().join("mounted")).unwrap();
    let mounted = from.path().join("mounted");
    let run = |program: &str, args: &[&OsStr]| {
        let done = Command::new(program).args(args).status().unwrap();
        assert!(done.success(), "run the tests as root");
    };
    let bind = OsStr::new("--bind");
    run("mount", &[bind, OsStr::new("/usr"), mounted.as_os_str()]);
    let (tar, reasons) = capture(from.path()).await;
    run("umount", &[mounted.as_os_str()]);
    assert_eq!(
        reasons,
        ["\"mounted\" is a mount inside of the layer: what is in it is not here"]
    );
    assert_eq!(listed(&tar).len(), 1);
}

#[tokio::test]
async fn a_bottomless_directory_ends_with_a_reason_and_the_rest_is_read() {
    let from = tempfile::tempdir().unwrap();
    let deep: PathBuf = std::iter::repeat_n("d", 300).collect();
    fs::create_dir_all(from.path().join(deep)).unwrap();
    fs::write(from.path().join("e"), "the rest").unwrap();
    let (tar, reasons) = capture(from.path()).await;
    assert_eq!(reasons.len(), 1);
    assert!(reasons[0].contains("deeper than 256"), "{reasons:?}");
    assert_eq!(listed(&tar)["e"]["size"], 8);
}

#[tokio::test]
async fn who_leaves_ends_the_capture() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("large"), vec![1; 8 << 20]).unwrap();
    let mut captured = begin(from.path());
    captured.bytes.next().await.unwrap().unwrap();
    let held = captured.reasons.clone();
    drop(captured);
    // The thread holds the other half of it until it ends.
    while held.held_by() > 1 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_confined_collector_can_read_all_of_it() {
    let from = tempfile::tempdir().unwrap();
    everything(from.path());
    let dir = from.path().to_owned();
    let confined = std::thread::spawn(move || {
        Confinement::COLLECTOR.apply().unwrap();
        futures::executor::block_on(capture(&dir))
    });
    let (tar, reasons) = confined.join().unwrap();
    assert_eq!(reasons, Vec::<String>::new());
    let mut end = TarEnd::new();
    end.update(&tar);
    assert_eq!(end.finish(), Completeness::Complete);
    let mut value = [0; 8];
    let opaque = getxattr(
        from.path().join("opaque"),
        "trusted.overlay.opaque",
        &mut value[..],
    );
    assert_eq!(opaque, Ok(1));
}
