//! The walk against tars that GNU tar made, tars that are broken in every way we know, and sizes
//! that no test disk could hold.

use std::path::Path;
use std::process::Command;

use super::*;

/// What the walk says about a tar that comes in chunks of `chunk` bytes.
fn walk_in(bytes: &[u8], chunk: usize) -> Completeness {
    let mut walk = TarEnd::new();
    bytes.chunks(chunk).for_each(|chunk| walk.update(chunk));
    walk.finish()
}

fn walk(bytes: &[u8]) -> Completeness {
    let whole = walk_in(bytes, usize::MAX);
    for chunk in [511, 512, 513, 4096] {
        assert_eq!(
            walk_in(bytes, chunk),
            whole,
            "chunks of {chunk} bytes change the verdict"
        );
    }
    whole
}

fn reason(bytes: &[u8]) -> String {
    match walk(bytes) {
        Completeness::Complete => panic!("taken as complete"),
        Completeness::Incomplete { reasons } => {
            assert_eq!(reasons.len(), 1, "{reasons:?}");
            reasons.concat()
        }
    }
}

/// GNU tar's archive of a small tree: plain, empty, long-named, linked, sparse, large.
fn gnu_tar(arguments: &[&str]) -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = tree.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    write("empty", b"");
    write("exactly-one-block", &[b'x'; 512]);
    write("large", &vec![b'y'; 70_001]);
    if !arguments.contains(&"--format=ustar") {
        write(
            &format!("{}/{}", "d".repeat(120), "f".repeat(200)),
            b"long name",
        );
    }
    std::os::unix::fs::symlink("etc/passwd", tree.path().join("link")).unwrap();
    std::fs::hard_link(tree.path().join("large"), tree.path().join("hard")).unwrap();
    sparse_file(&tree.path().join("sparse"));
    tar(tree.path(), arguments)
}

/// Thirty islands in a sea of holes: more than one GNU header holds, so its map continues.
fn sparse_file(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    for island in 0..30u64 {
        file.write_all_at(&[b'z'; 5000], island << 20).unwrap();
    }
    file.set_len(31 << 20).unwrap();
}

fn tar(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(arguments)
        .args(["-cf", "-", "."])
        .current_dir(directory)
        .output()
        .expect("this test needs GNU tar: install the package tar");
    assert!(
        output.status.success(),
        "tar: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A header block as ustar has it, with a right checksum.
fn header(name: &str, kind: u8, size: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn pax(records: &[u8], kind: u8) -> Vec<u8> {
    let mut bytes = header(
        "PaxHeader",
        kind,
        format!("{:011o}", records.len()).as_bytes(),
    );
    bytes.extend_from_slice(records);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn ended(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

/// Feeds `size` bytes of contents without having them.
fn feed(walk: &mut TarEnd, mut size: u64) {
    let zeros = vec![0; 1 << 20];
    while size > 0 {
        let part = size.min(1 << 20);
        walk.update(&zeros[..part as usize]);
        size -= part;
    }
}

#[test]
fn a_tar_by_gnu_tar_is_complete_in_every_format() {
    for arguments in [
        &["--format=v7", "--exclude=d*"][..],
        &["--format=ustar"],
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &[
            "--format=pax",
            "--pax-option=globexthdr.name=g,comment=hello",
        ],
        &["--format=gnu", "--label=volume"],
        &["--format=gnu", "--blocking-factor=1"],
    ] {
        assert_eq!(
            walk(&gnu_tar(arguments)),
            Completeness::Complete,
            "{arguments:?}"
        );
    }
}

#[test]
fn a_tar_cut_at_any_block_is_incomplete() {
    for arguments in [
        &["--format=ustar", "--exclude=sparse"][..],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse"],
    ] {
        let whole = gnu_tar(arguments);
        // GNU tar pads with zeros to 10240 bytes: the end is where the two zero blocks are.
        let end = whole.len() - whole.iter().rev().take_while(|byte| **byte == 0).count();
        let end = end.next_multiple_of(512) + 1024;
        assert_eq!(
            walk_in(&whole[..end], 65536),
            Completeness::Complete,
            "{arguments:?}"
        );
        for cut in (0..end).step_by(512) {
            assert!(
                !walk_in(&whole[..cut], 65536).is_complete(),
                "{arguments:?} cut at {cut}"
            );
        }
        for cut in [1, 100, 511, end - 1, end - 511, end - 1023] {
            assert!(
                !walk_in(&whole[..cut], 65536).is_complete(),
                "{arguments:?} cut at {cut}"
            );
        }
    }
}

#[test]
fn zeros_after_the_end_are_padding_of_any_length() {
    for padding in [0, 1, 100, 512, 9216, 3 << 20] {
        let mut bytes = ended(header("empty", b'0', b"00000000000"));
        bytes.resize(bytes.len() + padding, 0);
        assert_eq!(walk(&bytes), Completeness::Complete, "{padding} zero bytes");
    }
}

#[test]
fn an_archive_of_nothing_is_complete_but_no_bytes_are_not() {
    assert_eq!(walk(&[0; 1024]), Completeness::Complete);
    assert_eq!(reason(&[]), "the tar is empty, not even its end is there");
}

#[test]
fn each_broken_tar_is_named_for_what_is_wrong() {
    let file = |name: &str, contents: &[u8]| {
        let mut bytes = header(name, b'0', format!("{:011o}", contents.len()).as_bytes());
        bytes.extend_from_slice(contents);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let one = file("var/log/app.log", &[b'l'; 700]);
    let mut base256_negative = header("x", b'0', &[0xff; 12]);
    seal(&mut base256_negative);
    let mut bad_sum = one.clone();
    bad_sum[0] ^= 1;
    let mut no_ustar = one.clone();
    no_ustar[257..262].copy_from_slice(b"utsar");
    seal(&mut no_ustar[..512]);
    let size = |text: &[u8]| pax(text, b'x');

    for (bytes, expected) in [
        (
            one[..0].to_vec(),
            "the tar is empty, not even its end is there",
        ),
        (
            one[..100].to_vec(),
            "the tar breaks off at byte 100, inside a header before the first member",
        ),
        (
            one[..612].to_vec(),
            "the tar breaks off at byte 612, inside \"var/log/app.log\" (member 1): 100 of 700 bytes came",
        ),
        (
            one[..1300].to_vec(),
            "the tar breaks off at byte 1300, in the padding after \"var/log/app.log\" (member 1)",
        ),
        (
            one.clone(),
            "the tar breaks off at byte 1536, after member 1, without the two zero blocks that end a tar",
        ),
        (
            [&one[..], &[0; 512]].concat(),
            "the tar breaks off at byte 2048: one zero block came where two end a tar",
        ),
        (
            [&one[..], &[0; 700]].concat(),
            "the tar breaks off at byte 2236: one zero block came where two end a tar",
        ),
        (
            [&one[..], &[0; 512], &one].concat(),
            "one zero block before byte 2048, where two end a tar, and then something else",
        ),
        (
            [&ended(one.clone())[..], &one].concat(),
            "the tar ends and then more bytes come, the first at byte 2560",
        ),
        (
            [&ended(one.clone())[..], &[0; 700], b"x"].concat(),
            "the tar ends and then more bytes come, the first at byte 3260",
        ),
        (
            b"{\"message\":\"no such container\"}".to_vec(),
            "the tar breaks off at byte 31, inside a header before the first member",
        ),
        (
            vec![b'g'; 2048],
            "no tar header at byte 0: expected a checksum, got \"gggggggg\"",
        ),
        (
            ended(bad_sum),
            "no tar header at byte 0: its checksum should be 2936, and 2935 stands there",
        ),
        (
            ended(no_ustar),
            "no tar header at byte 0: expected the magic \"ustar\", got \"utsar\\x0000\"",
        ),
        (
            ended(header("x", b'0', b"0000000008\0")),
            "no tar header at byte 0: expected a size, got \"0000000008\\x00\\x00\"",
        ),
        (
            ended(base256_negative),
            "no tar header at byte 0: expected a size, got \"\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\"",
        ),
        (
            ended(header("dir/", b'5', b"00000000010")),
            "\"dir\" (member 1) at byte 0 is a link, directory or device and yet has 8 bytes; readers disagree where the next member starts",
        ),
        (
            ended(size(b"10 size=5\n")),
            "the tar ends at byte 1024 after an extension header whose member is missing",
        ),
        (
            ended([size(b"10 size=5\n"), size(b"10 size=6\n")].concat()),
            "a second PAX header for one member at byte 1024",
        ),
        (
            ended([size(b"10 size=5\n10 size=6\n"), one.clone()].concat()),
            "the PAX header before byte 1024: it gives the size twice",
        ),
        (
            ended([size(b"11 size=-5\n"), one.clone()].concat()),
            "the PAX header before byte 1024: expected a size below 2^63, got \"-5\"",
        ),
        (
            ended([size(b"99 size=5\n"), one.clone()].concat()),
            "the PAX header before byte 1024: expected \"<length> <key>=<value>\" and a newline, got \"99 size=5\\n\"",
        ),
        (
            ended([size(b"0 "), one.clone()].concat()),
            "the PAX header before byte 1024: expected \"<length> <key>=<value>\" and a newline, got \"0 \"",
        ),
        (
            ended([pax(b"10 size=5\n", b'g'), one.clone()].concat()),
            "the global PAX header before byte 1024 sets a size; readers disagree for which members",
        ),
        (
            header("PaxHeader", b'x', b"00004000001"),
            "the PAX header at byte 0 has 1048577 bytes; up to 1048576 can be followed",
        ),
        (
            size(b"10 size=5\n")[..520].to_vec(),
            "the tar breaks off at byte 520, inside a PAX header before the first member",
        ),
    ] {
        assert_eq!(reason(&bytes), expected);
    }
}

#[test]
fn a_pax_size_wins_over_the_header() {
    // The smuggling case: the header says 0 bytes, the PAX record 1024, and the contents look
    // like another member.
    let mut bytes = pax(b"13 size=1024\n", b'x');
    bytes.extend(header("outer", b'0', b"00000000000"));
    bytes.extend(header("smuggled", b'0', b"00000000000"));
    bytes.extend([b'c'; 512]);
    assert_eq!(walk(&ended(bytes)), Completeness::Complete);
}

#[test]
fn a_pax_size_holds_for_one_member_only() {
    let mut bytes = pax(b"12 size=512\n", b'x');
    bytes.extend(header("first", b'0', b"00000000000"));
    bytes.extend([b'c'; 512]);
    bytes.extend(header("second", b'0', b"00000000000"));
    assert_eq!(walk(&ended(bytes)), Completeness::Complete);
}

#[test]
fn sizes_over_8_gib_are_followed() {
    // Only the agreed size makes the walk find the end; feeding 9 GiB takes a second or two.
    let size = (9 << 30) + 1;
    let mut base256 = [0u8; 12];
    base256[0] = 0x80;
    base256[4..].copy_from_slice(&u64::to_be_bytes(size));
    let gnu = header("large", b'0', &base256);
    let mut pax = pax(format!("19 size={size}\n").as_bytes(), b'x');
    pax.extend(header("large", b'0', b"00000000000"));

    for head in [gnu, pax] {
        let mut walk = TarEnd::new();
        walk.update(&head);
        feed(&mut walk, size + 511);
        walk.update(&header("last", b'0', b"00000000000"));
        walk.update(&[0; 1024]);
        assert_eq!(walk.finish(), Completeness::Complete);

        let mut cut = TarEnd::new();
        cut.update(&head);
        feed(&mut cut, 1 << 20);
        assert!(!cut.finish().is_complete());
    }
}

#[test]
fn random_damage_never_panics_and_cutting_never_completes() {
    // A fixed sequence of xorshift: a failure repeats.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut whole = pax(b"13 size=1024\n", b'x');
    whole.extend(header("outer", b'0', b"00000000000"));
    whole.extend([b'c'; 1024]);
    whole.extend(header("S", b'S', b"00000001000"));
    whole.extend([0; 512]);
    let whole = ended(whole);
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        let cut = random(bytes.len() + 1);
        walk_in(&bytes, 1 + random(1500));
        let cut = walk_in(&whole[..cut.min(whole.len() - 1)], 1 + random(1500));
        assert!(!cut.is_complete());
    }
    for _ in 0..2000 {
        let garbage: Vec<u8> = (0..random(3000)).map(|_| random(256) as u8).collect();
        assert!(!walk_in(&garbage, 700).is_complete());
    }
}

#[test]
fn completeness_serialises_with_its_reasons() {
    let incomplete = Completeness::incomplete("the stream broke");
    let json = serde_json::to_string(&incomplete).unwrap();
    assert_eq!(
        json,
        r#"{"state":"incomplete","reasons":["the stream broke"]}"#
    );
    assert_eq!(
        serde_json::from_str::<Completeness>(&json).unwrap(),
        incomplete
    );
    assert_eq!(
        serde_json::to_string(&Completeness::Complete).unwrap(),
        r#"{"state":"complete"}"#
    );
}
