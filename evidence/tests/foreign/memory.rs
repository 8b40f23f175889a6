//! A million members need little memory: measured in a process of its own.

use std::process::Command;

use impound_evidence::index::{BodyIndex, Changes, FileIndex, Kind, Limits};

use super::tars::{file, header, link, pax, put, sum};

/// Set in the process that is measured.
const CHILD: &str = "IMPOUND_MEMORY_CHILD";
/// Above what the process has before it begins.
const LIMIT_KIB: u64 = 64 << 10;

#[test]
fn a_million_members_are_indexed_in_less_than_64_mib() {
    if let Ok(which) = std::env::var(CHILD) {
        return child(&which);
    }
    for which in [
        "members",
        "links",
        "pax",
        "global",
        "controls",
        "image names",
        "image documents",
    ] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "memory::a_million_members_are_indexed_in_less_than_64_mib",
                "--nocapture",
            ])
            .env(CHILD, which)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let peak: u64 = text
            .lines()
            .find_map(|line| line.split_once("peak KiB: ")?.1.trim().parse().ok())
            .unwrap_or_else(|| panic!("no figure in {text}"));
        println!("{which}: {peak} KiB");
        assert!(peak < LIMIT_KIB, "{which}: {peak} KiB");
    }
}

fn child(which: &str) {
    let before = peak();
    let mut changes = Changes::new();
    // One that names every member of "controls".
    let odd = [&[1; 99][..], b"z"].concat();
    let path = String::from_utf8(odd.clone()).unwrap();
    changes.add(
        &serde_json::to_vec(&serde_json::json!({"kind":"A","path":format!("/{path}")})).unwrap(),
    );
    for n in 0..1_000_000 {
        changes.add(format!("{{\"kind\":\"A\",\"path\":\"/f/{n:08}\"}}").as_bytes());
    }
    let kind = match which.starts_with("image") {
        true => Kind::Image,
        false => Kind::FileSystem(changes),
    };
    let mut files = FileIndex::new(kind, Limits::default());
    let mut body = BodyIndex::new(Limits::default());
    let mut largest = 0;
    let mut feed = |bytes: &[u8]| {
        files.update(bytes);
        let lines = std::mem::take(files.lines());
        largest = largest.max(lines.files.len() + lines.sha256.len() + lines.changes.len());
        body.update(bytes);
        let lines = std::mem::take(body.lines());
        largest = largest.max(lines.body.len() + lines.md5.len());
    };
    match which {
        // A PAX header of almost a mebibyte each.
        "pax" => {
            let value = vec![0xff; 200 << 10];
            let names: Vec<Vec<u8>> = (0..5)
                .map(|n| format!("SCHILY.xattr.user.{n}").into_bytes())
                .collect();
            let records: Vec<(&[u8], &[u8])> = names
                .iter()
                .map(|name| (name.as_slice(), value.as_slice()))
                .collect();
            let one = [pax(b'x', &records), header(b"x", b'0', 0)].concat();
            for _ in 0..60 {
                feed(&one);
            }
        }
        // One global header of almost a mebibyte, then chunks of nothing but members.
        "global" => {
            let long = vec![1; 200 << 10];
            let records: [(&[u8], &[u8]); 5] = [
                (b"SCHILY.xattr.user.a", &long),
                (b"path", &long),
                (b"linkpath", &long),
                (b"uname", &long),
                (b"gname", &long),
            ];
            feed(&pax(b'g', &records));
            let chunk = link(b"x", b'2', b"y").repeat(2048);
            for _ in 0..4 {
                feed(&chunk);
            }
        }
        // What may be a document or a layer, or lead to one, each with as long a name as a tar can have.
        "image names" => {
            for n in 0..10_000 {
                let long = [vec![b'd'; 12 << 10], format!("{n:08}.json").into_bytes()].concat();
                let records: [(&[u8], &[u8]); 2] = [(b"path", &long), (b"linkpath", &long)];
                let typeflag = if n % 2 == 0 { b'0' } else { b'2' };
                feed(&[pax(b'x', &records), header(b"x", typeflag, 0)].concat());
            }
            let mut block = header(b"00000000.json", b'0', 0);
            for n in 0..100_000 {
                put(&mut block, 0, format!("{n:08}").as_bytes());
                sum(&mut block);
                feed(&block);
            }
        }
        // Documents that are small, many values, and named again and again by the one that lists images.
        "image documents" => {
            let nested = [&b"["[..], &b"[],".repeat(349_000), b"[]]"].concat();
            for n in 0..2 {
                feed(&file(format!("{n}.json").as_bytes(), &nested));
            }
            let entry = br#"{"Config":"0.json","Layers":["a","a","a","a"]},"#;
            let entries = entry.repeat((1 << 20) / entry.len() - 1);
            let entries = entries.strip_suffix(b",").unwrap();
            feed(&file(b"manifest.json", &[b"[", entries, b"]"].concat()));
        }
        // As much as a header can hold, each byte six in JSON.
        "controls" => {
            let mut block = link(&odd, b'2', &[1; 100]);
            put(&mut block, 265, &[1; 32]);
            put(&mut block, 297, &[1; 32]);
            sum(&mut block);
            for _ in 0..4 {
                feed(&block.repeat(2048));
            }
        }
        _ => {
            let typeflag = if which == "links" { b'2' } else { b'0' };
            let mut block = header(b"f/00000000", typeflag, 0);
            // Links are kept in a smaller table, which is full long before.
            let count = if which == "links" { 200_000 } else { 1_000_000 };
            for n in 0..count {
                put(&mut block, 0, format!("f/{n:08}").as_bytes());
                sum(&mut block);
                feed(&block);
            }
        }
    }
    feed(&[0; 1024]);
    println!("largest: {largest}");
    assert!(largest < 24 << 20, "{largest} bytes of lines at once");
    let indexed = files.finish();
    let image = indexed.image.map(|image| image.encode());
    let summary = indexed.summary;
    assert!(summary.completeness.is_complete());
    if which == "members" {
        assert_eq!(summary.listed, 1_000_000);
        assert_eq!(summary.not_examined.len(), 1, "{:?}", summary.not_examined);
    }
    assert!(image.is_none_or(|image| image.len() < 16 << 20));
    println!("peak KiB: {}", peak() - before);
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
