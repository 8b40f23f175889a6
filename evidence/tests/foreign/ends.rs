//! `verify.sh` sees the end of a tar where our own walk does, and refuses what readers read differently.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use impound_evidence::{TarEnd, VERIFY_SH};

use super::corpus::corpus;
use super::fuzz::mend;
use super::tars::{changed, ended, file, gnu_long, header, pax, with};

/// Longest that all these walks may take together, in seconds: each is linear in what it walks over.
const PATIENCE: &str = "300";

/// What the script's walk says of each tar, a line each.
fn walked(tars: &[Vec<u8>]) -> Vec<String> {
    let scratch = tempfile::tempdir().unwrap();
    for (n, tar) in tars.iter().enumerate() {
        fs::write(scratch.path().join(format!("{n:04}.tar")), tar).unwrap();
    }
    let ends = VERIFY_SH.split_once("\nends() (\n").unwrap().1;
    let ends = ends.split_once("\n)\n").unwrap().0;
    let walk =
        format!("export LC_ALL=C; ends() (\n{ends}\n)\nfor tar in *.tar; do ends \"$tar\"; done");
    let output = Command::new("timeout")
        .args([PATIENCE, "bash", "-c", &walk])
        .current_dir(scratch.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), tars.len(), "{said}");
    said.lines().map(str::to_owned).collect()
}

/// How many of these tars are whole, which the script says of the same ones.
fn whole(tars: &[Vec<u8>]) -> usize {
    let mut complete = 0;
    for (n, (said, tar)) in walked(tars).iter().zip(tars).enumerate() {
        let mut end = TarEnd::new();
        end.update(tar);
        let ours = end.finish();
        assert_eq!(
            said == "ended",
            ours.is_complete(),
            "tar {n}: {said}; {ours:?}"
        );
        complete += usize::from(ours.is_complete());
    }
    complete
}

#[test]
fn a_script_comes_to_our_verdict_on_every_hostile_tar() {
    let (tars, complete): (Vec<_>, Vec<_>) = corpus()
        .into_iter()
        .map(|case| (case.tar, case.incomplete.is_none()))
        .unzip();
    let complete = complete.into_iter().filter(|complete| *complete).count();
    assert_eq!(whole(&tars), complete);
}

#[test]
fn fuzz_script_comes_to_our_verdict_on_any_damage() {
    let mut seeds: Vec<_> = corpus().into_iter().map(|case| case.tar).collect();
    seeds.retain(|tar| tar.len() < 8 << 10);
    impound_fuzz::run("script", &seeds, |random, mut tar| {
        // Most damage is to be found behind the checksum.
        if random.below(8) > 0 {
            mend(&mut tar);
        }
        whole(&[tar]);
    });
}

/// GNU tar lists a directory, and Python's reader finds in it what is contents to others, or the other way round.
#[test]
fn an_old_file_that_a_name_makes_a_directory_is_no_whole_tar_to_us_nor_to_a_script() {
    let plain = |name: &[u8]| header(name, 0, 512);
    let gnu = |name: &[u8]| changed(plain(name), 257, b"ustar  \0");
    let before = |extension: Vec<u8>, header: Vec<u8>| [extension, header].concat();
    let directories = [
        plain(b"d/"),
        plain(b"d/\0behind the name's end"),
        changed(plain(b"d/"), 257, &[0; 8]),
        gnu(b"d/"),
        changed(plain(b""), 345, b"d"),
        before(gnu_long(b'L', b"d/"), gnu(b"d")),
        before(pax(b'x', &[(b"path", b"d/")]), plain(b"d")),
        before(pax(b'g', &[(b"path", b"d/")]), plain(b"d")),
        before(pax(b'x', &[(b"GNU.sparse.name", b"d/")]), plain(b"d")),
        before(
            gnu_long(b'L', &[&[b'd'; 20_000][..], b"/"].concat()),
            gnu(b"d"),
        ),
    ];
    let contents = header(b"smuggled", b'0', 0);
    let tar = |header: &Vec<u8>| ended(&[header.clone(), contents.clone()]);
    let directories: Vec<_> = directories.iter().map(tar).collect();
    for tar in &directories {
        let listed = listed_by_gnu_tar(tar);
        assert!(
            listed.starts_with('d') && listed.lines().count() == 1,
            "{listed}"
        );
    }
    assert_eq!(whole(&directories), 0);
    let files = [
        plain(b"d"),
        gnu(b"d"),
        plain(b"d/x"),
        changed(plain(b"d"), 257, &[0; 8]),
        // The prefix is no part of GNU's headers, and another field's number may lie where it is.
        changed(gnu(b""), 345, b"14524770400\0"),
        // A slash across two bytes: 2f.
        plain(b"d\x32\xf0"),
        header(b"d/", b'0', 512),
    ];
    let files: Vec<_> = files.iter().map(tar).collect();
    assert_eq!(whole(&files), files.len());
    // Nothing follows that could be something else.
    assert_eq!(whole(&[ended(&[header(b"d/", 0, 0), file(b"x", b"x")])]), 1);
}

fn listed_by_gnu_tar(tar: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), tar).unwrap();
    let tar = Command::new("tar").arg("-tvf").arg(file.path()).output();
    String::from_utf8(tar.expect("GNU tar").stdout).unwrap()
}

/// A member of 512 bytes and the end.
fn end() -> Vec<u8> {
    ended(&[file(b"hello", &[b'h'; 512])])
}

/// Such an extension header, whatever it holds.
fn extension(flag: u8, records: &[u8]) -> Vec<u8> {
    with(header(b"extension", flag, records.len() as u64), records)
}

/// Such an extension header, a member and the end.
fn with_records(flag: u8, records: &[u8]) -> Vec<u8> {
    [extension(flag, records), end()].concat()
}

#[test]
fn a_script_sees_the_end_of_a_tar_where_we_do() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    fs::create_dir_all(root.join("d".repeat(120))).unwrap();
    fs::write(root.join("small"), "x").unwrap();
    fs::write(root.join("zeros"), vec![0; 3000]).unwrap();
    fs::write(root.join("large"), vec![b'l'; 60_000]).unwrap();
    fs::write(root.join("d".repeat(120)).join("f".repeat(120)), "long").unwrap();
    symlink("small", root.join("link")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    for island in 0..30u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", island << 16).unwrap();
    }
    let mut tars = Vec::new();
    for arguments in [
        &["--format=gnu"][..],
        &["--format=gnu", "-S"],
        &["--format=pax", "-S"],
    ] {
        let tar = Command::new("tar")
            .args(arguments)
            .args(["--blocking-factor=1", "-C"])
            .arg(&root)
            .args(["-c", "."])
            .output()
            .unwrap()
            .stdout;
        let blocks = tar.len() / 512;
        let cuts = (0..=blocks).filter(|block| block % 13 == 0 || blocks - block < 12);
        tars.extend(cuts.map(|block| tar[..block * 512].to_vec()));
        for (end, more) in [
            (tar.len() - 5, &b""[..]),
            (tar.len(), b"x"),
            (tar.len(), &[0; 700]),
        ] {
            tars.push([&tar[..end], more].concat());
        }
        let mut changed = tar.clone();
        changed[512 + 130] ^= 1;
        tars.push(changed);
    }
    assert!(
        (6..12).contains(&whole(&tars)),
        "each whole, and with zeros behind, and few besides"
    );
}

#[test]
fn a_script_follows_no_extension_header_that_we_do_not() {
    let records = b"13 size=1024\n";
    let (own, all) = (extension(b'x', b"5 a=\n"), extension(b'g', b"5 a=\n"));
    let end = end();
    let refused = [
        with_records(b'X', records),
        with_records(b'X', b""),
        with_records(b'g', records),
        [&own[..], &own, &end].concat(),
        [&own[..], &all, &end].concat(),
        [&own[..], &[0; 1024]].concat(),
    ];
    assert_eq!(whole(&refused), 0);
    assert_eq!(whole(&[[&all[..], &own, &end].concat()]), 1);
}

/// `<length> <text>\n`
fn record_of(text: &[u8]) -> Vec<u8> {
    let mut length = text.len() + 3;
    while length != length.to_string().len() + 1 + text.len() + 1 {
        length += 1;
    }
    [format!("{length} ").as_bytes(), text, b"\n"].concat()
}

#[test]
fn a_script_reads_the_records_of_an_extension_header_as_we_do() {
    let size = record_of(b"size=512");
    let long = |length: usize| vec![b'v'; length];
    let own = |records: &[u8]| with_records(b'x', records);
    let lengths = (0..700).flat_map(|length| record_of(&[b"a=", &long(length)[..]].concat()));
    let keys = (480..560).flat_map(|length| record_of(&[&long(length)[..], b"=v"].concat()));
    let followed = [
        own(b""),
        own(&[&record_of(b"mtime=1.5")[..], &size].concat()),
        own(&record_of(b"size=0000000000000000512")),
        own(&[
            record_of(&[b"user.a=", &long(70_000)[..]].concat()),
            size.clone(),
        ]
        .concat()),
        own(&[record_of(&[&long(70_000)[..], b"="].concat()), size.clone()].concat()),
        own(&[lengths.collect(), size.clone()].concat()),
        own(&[keys.collect(), size.clone()].concat()),
    ];
    assert_eq!(whole(&followed), followed.len());
    let cut = own(&record_of(&[b"user.a=", &long(70_000)[..]].concat()));
    let refused = [
        own(b"5 ab\n"),
        own(&record_of(&long(70_000))),
        // "=", 3d, across two bytes.
        own(&record_of(b"c\xd3\xd5")),
        own(b"5 a=\n5 a=\n9223372036854775800 a=\n"),
        // Beyond what a script counts to.
        own(b"9223372036854775808 a=\n"),
        own(b"9223372036854775827 a=\n"),
        own(b"5 a=\n9999999999999999999 a=\n"),
        own(b"0000000000000000000005 a=\n"),
        own(b"5 a=x"),
        own(b"6 a=\n"),
        own(b"6 size=\n"),
        own(b" a=\n"),
        own(b"3 \n"),
        own(&[&size[..], &size].concat()),
        own(&record_of(b"size=")),
        own(&record_of(b"size=512x")),
        own(&record_of(b"size=00000000000000000512")),
        cut[..30_000].to_vec(),
    ];
    assert_eq!(whole(&refused), 0);
}

#[test]
fn a_script_follows_the_longest_extension_header_in_time_that_grows_with_it_and_no_faster() {
    let records = b"5 a=\n".repeat((1 << 20) / 5);
    assert_eq!(whole(&[with_records(b'x', &records)]), 1);
}
