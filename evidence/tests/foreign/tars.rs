//! Tars made byte by byte, as no honest program writes them, and what an index says of them.

use impound_evidence::Completeness;
use impound_evidence::index::{
    BodyIndex, BodyLines, Changes, FileIndex, FileLines, Indexed, Kind, Limits,
};
use serde_json::Value;

/// A header block with a right checksum.
pub(crate) fn header(name: &[u8], typeflag: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    let kept = name.len().min(100);
    block[..kept].copy_from_slice(&name[..kept]);
    put(&mut block, 100, b"0000644\0");
    put(&mut block, 108, b"0001750\0");
    put(&mut block, 116, b"0001750\0");
    put(&mut block, 124, format!("{size:011o}\0").as_bytes());
    put(&mut block, 136, b"14524770400\0");
    block[156] = typeflag;
    put(&mut block, 257, b"ustar\x0000");
    sum(&mut block);
    block
}

pub(crate) fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Puts the right checksum into a header.
pub(crate) fn sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub(crate) fn file(name: &[u8], contents: &[u8]) -> Vec<u8> {
    with(header(name, b'0', contents.len() as u64), contents)
}

pub(crate) fn with(mut head: Vec<u8>, contents: &[u8]) -> Vec<u8> {
    head.extend_from_slice(contents);
    head.resize(head.len().next_multiple_of(512), 0);
    head
}

pub(crate) fn link(name: &[u8], typeflag: u8, target: &[u8]) -> Vec<u8> {
    let mut block = header(name, typeflag, 0);
    put(&mut block, 157, target);
    sum(&mut block);
    block
}

/// A header with other bytes at one place.
pub(crate) fn changed(mut block: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    put(&mut block, at, bytes);
    sum(&mut block);
    block
}

/// A PAX header ("x" or "g") of such records.
pub(crate) fn pax(typeflag: u8, records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        text.extend(record(key, value));
    }
    with(header(b"PaxHeaders/x", typeflag, text.len() as u64), &text)
}

pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

pub(crate) fn gnu_long(typeflag: u8, text: &[u8]) -> Vec<u8> {
    let mut bytes = text.to_vec();
    bytes.push(0);
    with(
        header(b"././@LongLink", typeflag, bytes.len() as u64),
        &bytes,
    )
}

pub(crate) fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

/// What an index made of a tar.
pub(crate) struct Seen {
    pub(crate) lines: Vec<Value>,
    pub(crate) sha256: Vec<u8>,
    pub(crate) changes: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) md5: Vec<u8>,
    pub(crate) indexed: Indexed,
}

impl Seen {
    pub(crate) fn anomalies(&self) -> Vec<String> {
        let kinds = self.indexed.summary.anomalies.iter();
        let mut names: Vec<String> = kinds.map(|count| count.kind.to_owned()).collect();
        names.sort();
        names
    }

    pub(crate) fn reasons(&self) -> Vec<String> {
        match &self.indexed.summary.completeness {
            Completeness::Complete => Vec::new(),
            Completeness::Incomplete { reasons } => reasons.clone(),
        }
    }

    pub(crate) fn paths(&self) -> Vec<&str> {
        self.lines
            .iter()
            .map(|line| line["path"].as_str().unwrap())
            .collect()
    }
}

pub(crate) fn index(tar: &[u8]) -> Seen {
    let whole = index_in(tar, usize::MAX, Kind::Other, Limits::default());
    for chunk in [1, 511, 700, 4096] {
        // Byte by byte only what is short.
        if tar.len() / chunk < 100_000 {
            let again = index_in(tar, chunk, Kind::Other, Limits::default());
            assert_eq!(
                again.lines, whole.lines,
                "chunks of {chunk} bytes change the list"
            );
            assert_eq!(again.body, whole.body);
            assert_eq!(
                again.indexed.summary.encode(),
                whole.indexed.summary.encode()
            );
        }
    }
    whole
}

pub(crate) fn index_with(tar: &[u8], changes: Changes) -> Seen {
    index_in(tar, 1 << 20, Kind::FileSystem(changes), Limits::default())
}

pub(crate) fn index_in(tar: &[u8], chunk: usize, kind: Kind, limits: Limits) -> Seen {
    let mut files = FileIndex::new(kind, limits);
    let mut body = BodyIndex::new(limits);
    let (mut all, mut bodies) = (FileLines::default(), BodyLines::default());
    for chunk in tar.chunks(chunk) {
        files.update(chunk);
        join(&mut all, std::mem::take(files.lines()));
        body.update(chunk);
        join_body(&mut bodies, std::mem::take(body.lines()));
    }
    let mut indexed = files.finish();
    join(&mut all, std::mem::take(&mut indexed.lines));
    join_body(&mut bodies, body.finish());
    let lines = all
        .files
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    Seen {
        lines: lines
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect(),
        sha256: all.sha256,
        changes: all.changes,
        body: bodies.body,
        md5: bodies.md5,
        indexed,
    }
}

fn join(all: &mut FileLines, more: FileLines) {
    all.files.extend(more.files);
    all.sha256.extend(more.sha256);
    all.changes.extend(more.changes);
}

fn join_body(all: &mut BodyLines, more: BodyLines) {
    all.body.extend(more.body);
    all.md5.extend(more.md5);
}
