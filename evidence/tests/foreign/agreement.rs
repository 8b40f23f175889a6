//! What the index says of real tars, beside what GNU tar, sha256sum, md5sum and mactime say of them:
//! a container of 100,000 files with everything odd that a file system takes, and GNU tar's formats.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use serde_json::Value;

use super::tars::{Seen, index_in};
use impound_evidence::index::{Kind, Limits};

fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("LC_ALL", "C").env("TZ", "UTC");
    command
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| {
        panic!(
            "{:?} is needed for this test: {error}",
            command.get_program()
        )
    });
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A tree with hard links, sparse files, attributes and odd names.
fn tree(root: &Path, files: usize) {
    let write = |name: &[u8], contents: &[u8]| {
        let path = root.join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    };
    write(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    write(b"new\nline/a\nb", b"newline");
    write(b"back\\slash\\", b"backslash");
    write(b"caf\xe9/\xff\xfe", b"no UTF-8");
    write("\u{1f980}/\u{e9}t\u{e9}".as_bytes(), b"UTF-8");
    write(b" spaces  and\ttabs ", b"spaces");
    write(b"-rf", b"an option");
    write(b"quote\"'`$(x)|%41", b"shell");
    write(&[&b"l"[..], &b"o".repeat(250)].concat(), b"long name");
    let deep = [
        vec![b'd'; 120],
        vec![b'/'],
        vec![b'e'; 120],
        vec![b'/'],
        vec![b'f'; 120],
    ]
    .concat();
    write(&deep, b"long path");
    write(b"empty", b"");
    write(b"set-id", b"#!/bin/sh\n");
    fs::set_permissions(root.join("set-id"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::create_dir_all(root.join("sticky")).unwrap();
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::hard_link(root.join("etc/passwd"), root.join("hard")).unwrap();
    fs::hard_link(root.join("hard"), root.join("new\nline/hard")).unwrap();
    symlink("/etc/passwd", root.join("absolute-link")).unwrap();
    symlink("etc/../empty", root.join("relative-link")).unwrap();
    symlink(OsStr::from_bytes(b"caf\xe9"), root.join("odd-link")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    for island in 0..30u64 {
        sparse.write_all_at(&[b'z'; 5000], island << 18).unwrap();
    }
    sparse.set_len(8 << 20).unwrap();
    let hole = fs::File::create(root.join("nothing-but-a-hole")).unwrap();
    hole.set_len(3 << 20).unwrap();
    // How somebody hides a file's hash from who takes the tar's bytes for the file's.
    let grown = write(b"implant", &b"\x7fELF".repeat(3000));
    fs::File::options()
        .write(true)
        .open(grown)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    output(program("mkfifo").arg(root.join("pipe")));
    // cap_net_bind_service, as the kernel keeps it: the one attribute that a runtime exports.
    let capable = write(b"capable", b"\x7fELF");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(
        &capable,
        "security.capability",
        &capability,
        rustix::fs::XattrFlags::empty(),
    )
    .expect("this test sets a file capability and needs root");
    for (name, value) in [
        ("user.note", &b"a=b\n\0\xff"[..]),
        ("user.odd=%3D%name", b"1"),
        ("trusted.overlay.opaque", b"y"),
    ] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join("etc/passwd"), name, value, flags).unwrap();
    }
    for n in 0..files {
        let directory = root.join(format!("many/{:03}", n / 1000));
        if n % 1000 == 0 {
            fs::create_dir_all(&directory).unwrap();
        }
        fs::write(directory.join(n.to_string()), n.to_string()).unwrap();
    }
}

fn index(tar: &Path) -> Seen {
    index_in(
        &fs::read(tar).unwrap(),
        1 << 20,
        Kind::Other,
        Limits::default(),
    )
}

/// The line that GNU tar prints for a member, out of ours.
fn as_tar_prints(line: &Value) -> String {
    let text = |field: &str| line[field].as_str().unwrap_or_default();
    let bytes = |field: &str| match line[format!("{field}_base64")].as_str() {
        Some(base64) => base64::engine::general_purpose::STANDARD
            .decode(base64)
            .unwrap(),
        None => text(field).as_bytes().to_vec(),
    };
    let mode = u32::from_str_radix(text("mode"), 8).unwrap();
    let kind = text("type");
    let letter = match kind {
        "dir" => 'd',
        "symlink" => 'l',
        "hardlink" => 'h',
        "fifo" => 'p',
        "char" => 'c',
        "block" => 'b',
        _ => '-',
    };
    let mut shown = String::from(letter);
    for (bits, special, sign) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let set = |bit: u32| mode >> bits & bit != 0;
        shown.push(if set(4) { 'r' } else { '-' });
        shown.push(if set(2) { 'w' } else { '-' });
        shown.push(match (mode & special != 0, set(1)) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => sign,
            (true, false) => sign.to_ascii_uppercase(),
        });
    }
    let time = text("mtime").trim_end_matches('Z').replace('T', " ");
    let mut path = bytes("path");
    if kind == "dir" && path != b"./" {
        path.push(b'/');
    }
    let link = match kind {
        "symlink" => format!(" -> {}", quoted(&bytes("link"))),
        "hardlink" => format!(" link to {}", quoted(&bytes("link"))),
        _ => String::new(),
    };
    let owner = format!("{}/{}", line["uid"], line["gid"]);
    let size = match line["device"].as_array() {
        Some(device) => format!("{},{}", device[0], device[1]),
        None => line["size"].to_string(),
    };
    format!("{shown} {owner} {size} {time} {}{link}", quoted(&path))
}

/// As GNU tar's `--quoting-style=c`.
fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            32..127 => text.push(char::from(*byte)),
            byte => text.push_str(&format!("\\{byte:03o}")),
        }
    }
    text + "\""
}

/// GNU tar's verbose list, with one space where it aligns columns.
fn listed(tar: &Path) -> Vec<String> {
    let text = output(
        program("tar")
            .args([
                "--full-time",
                "--numeric-owner",
                "--quoting-style=c",
                "-tvf",
            ])
            .arg(tar),
    );
    String::from_utf8(text)
        .unwrap()
        .lines()
        .map(|line| {
            let mut rest = line;
            let mut words = Vec::new();
            for _ in 0..5 {
                let (word, behind) = rest.trim_start().split_once(' ').unwrap();
                words.push(word);
                rest = behind;
            }
            format!("{} {}", words.join(" "), rest.trim_start())
        })
        .collect()
}

/// Compares every line with GNU tar's list, and every hash with that of an extracted file.
fn agrees(tar: &Path, scratch: &Path) -> Seen {
    let seen = index(tar);
    assert_eq!(seen.reasons(), Vec::<String>::new());
    let ours: Vec<String> = seen.lines.iter().map(as_tar_prints).collect();
    let theirs = listed(tar);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());

    let extracted = scratch.join("extracted");
    fs::create_dir(&extracted).unwrap();
    output(
        program("tar")
            .args(["--xattrs", "--xattrs-include=*", "-xf"])
            .arg(tar)
            .arg("-C")
            .arg(&extracted),
    );
    let sums = output(
        program("sh")
            .args(["-c", "find . -type f -print0 | xargs -0 sha256sum -z"])
            .current_dir(&extracted),
    );
    let sums: BTreeMap<Vec<u8>, String> = sums
        .split(|byte| *byte == 0)
        .filter(|line| !line.is_empty())
        .map(|line| {
            (
                line[68..].to_vec(),
                String::from_utf8(line[..64].to_vec()).unwrap(),
            )
        })
        .collect();
    let mut compared = 0;
    let mut attributes = 0;
    let mut by_path = BTreeMap::new();
    for line in &seen.lines {
        let bytes = |field: &str| match line[format!("{field}_base64")].as_str() {
            Some(base64) => base64::engine::general_purpose::STANDARD
                .decode(base64)
                .unwrap(),
            None => line[field].as_str().unwrap().as_bytes().to_vec(),
        };
        let plain = |path: Vec<u8>| {
            path.strip_prefix(b"./")
                .map_or(path.clone(), <[u8]>::to_vec)
        };
        let path = plain(bytes("path"));
        if line["type"] != "hardlink" {
            attributes += same_attributes(line, &extracted.join(OsStr::from_bytes(&path)));
        }
        let sha256 = match line["type"].as_str().unwrap() {
            "file" => line["sha256"].as_str().map(str::to_owned),
            "hardlink" => by_path.get(&plain(bytes("link"))).cloned(),
            _ => continue,
        };
        let sha256 = sha256.unwrap_or_else(|| panic!("no hash: {line}"));
        assert_eq!(sums.get(&path), Some(&sha256), "{line}");
        compared += 1;
        by_path.insert(path, sha256);
    }
    assert_eq!(compared, sums.len());
    // A runtime keeps one of them, GNU tar's own formats none unless asked.
    println!("{attributes} extended attributes compared");
    // The lists are what the usual tools take.
    for (tool, list) in [("sha256sum", &seen.sha256), ("md5sum", &seen.md5)] {
        let path = scratch.join("list");
        fs::write(&path, list).unwrap();
        output(
            program(tool)
                .args(["--check", "--strict", "--quiet"])
                .arg(&path)
                .current_dir(&extracted),
        );
    }
    fs::remove_dir_all(&extracted).unwrap();
    seen
}

/// Compares the attributes of a line with those of the extracted file; how many there are.
fn same_attributes(line: &Value, path: &Path) -> usize {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let theirs: BTreeMap<String, Vec<u8>> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
            value.truncate(length);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect();
    let ours: BTreeMap<String, Vec<u8>> = line["xattrs"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let value = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap());
            (name.clone(), value.unwrap())
        })
        .collect();
    assert_eq!(ours, theirs, "{line}");
    ours.len()
}

/// Ends with the image and container that a test made.
struct Docker(&'static str);

impl Drop for Docker {
    fn drop(&mut self) {
        for arguments in [["rm", "--force", self.0], ["rmi", "--force", self.0]] {
            let _ = program("docker")
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl Docker {
    /// A container, never started, whose file system is this tree.
    fn create(name: &'static str, root: &Path) -> Self {
        let docker = Self(name);
        let packing = "tar --xattrs --xattrs-include=security.capability -C \"$1\" -c . | docker import - \"$2\"";
        output(program("sh").args(["-c", packing, "-"]).arg(root).arg(name));
        output(program("docker").args(["create", "--name", name, name, "/none"]));
        docker
    }

    fn export(&self, to: &Path) {
        output(
            program("docker")
                .args(["export", self.0, "--output"])
                .arg(to),
        );
    }
}

#[test]
fn a_real_container_of_100_000_files_is_listed_as_gnu_tar_and_sha256sum_see_it() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    tree(&root, 100_000);
    let container = Docker::create("impound-agreement", &root);
    fs::remove_dir_all(&root).unwrap();
    let tar = scratch.path().join("export.tar");
    container.export(&tar);
    let seen = agrees(&tar, scratch.path());
    assert!(seen.lines.len() > 100_100, "{}", seen.lines.len());
    let find = |path: &str| seen.lines.iter().find(|line| line["path"] == path).unwrap();
    assert_eq!(
        find("capable")["xattrs"]["security.capability"],
        "AQAAAgAEAAAAAAAAAAAAAAAAAAA="
    );
    assert_eq!(find("set-id")["mode"], "6755");
    assert_eq!(find("new\nline/a\nb")["sha256"].as_str().unwrap().len(), 64);
    let links = seen
        .lines
        .iter()
        .filter(|line| line["type"] == "hardlink")
        .count();
    assert_eq!(links, 2);
    // Nothing is odd but the names that are.
    assert_eq!(seen.anomalies(), ["control_characters", "not_utf8"]);
    mactime_reads(&seen, scratch.path());
}

/// The Sleuth Kit's timeline has every file, at its time, and nothing that a name has made up.
fn mactime_reads(seen: &Seen, scratch: &Path) {
    let body = scratch.join("bodyfile");
    fs::write(&body, &seen.body).unwrap();
    let timeline = output(
        program("mactime")
            .args(["-d", "-y", "-z", "UTC", "-b"])
            .arg(&body),
    );
    let timeline = String::from_utf8_lossy(&timeline);
    // Date,Size,Type,Mode,UID,GID,Meta,File Name
    let find = |name: &str| {
        let line = timeline
            .lines()
            .find(|line| line.contains(name) && line.contains("m..."));
        line.unwrap_or_else(|| panic!("mactime has no {name}"))
    };
    let passwd = find("\"/etc/passwd\"");
    let ours = seen
        .lines
        .iter()
        .find(|line| line["path"] == "etc/passwd")
        .unwrap();
    assert!(
        passwd.starts_with(&ours["mtime"].as_str().unwrap()[..19]),
        "{passwd}"
    );
    assert!(passwd.contains(&format!(",{},", ours["size"])), "{passwd}");
    assert!(find("/set-id").contains("r/rrwsr-sr-x"));
    assert!(find("/absolute-link -> /etc/passwd").contains("l/l"));
    find("/new^line/a^b");
    // Its CSV doubles quotes.
    find("/quote\"\"'`$(x)|%41");
    let modified = timeline.lines().filter(|line| {
        line.split(',')
            .nth(2)
            .is_some_and(|what| what.starts_with('m'))
    });
    assert_eq!(modified.count(), seen.lines.len());
}

#[test]
fn every_format_of_gnu_tar_is_listed_as_gnu_tar_lists_it() {
    for arguments in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--xattrs", "--xattrs-include=*"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &[
            "--format=pax",
            "--pax-option=delete=atime,delete=ctime",
            "--mtime=1961-04-12 06:07:00 UTC",
        ],
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir(&root).unwrap();
        tree(&root, 50);
        let owner = fs::metadata(root.join("empty")).unwrap().uid();
        assert_eq!(
            owner, 0,
            "this test makes devices' neighbours and needs root"
        );
        let tar = scratch.path().join("tree.tar");
        output(
            program("tar")
                .args(arguments)
                .arg("-C")
                .arg(&root)
                .arg("-cf")
                .arg(&tar)
                .arg("."),
        );
        let seen = agrees(&tar, scratch.path());
        let attributes = seen
            .lines
            .iter()
            .filter_map(|line| line["xattrs"].as_object());
        let attributes: usize = attributes.map(serde_json::Map::len).sum();
        let all = arguments.contains(&"--xattrs-include=*");
        assert_eq!(attributes, if all { 4 } else { 0 }, "{arguments:?}");
        let expected: &[&str] = match arguments {
            [_, "--sparse", ..] => &["sparse"],
            [.., "--mtime=1961-04-12 06:07:00 UTC"] => &["negative_time"],
            _ => &[],
        };
        let mut all = vec!["control_characters", "not_utf8"];
        if arguments[0] == "--format=gnu" {
            all.push("gnu_long_name");
        }
        all.extend(expected);
        all.sort_unstable();
        assert_eq!(seen.anomalies(), all, "{arguments:?}");
    }
}
