//! `verify.sh` sees the end of a tar where the walk of `tar` does.

use std::process::Command;

use super::*;

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
    let output = Command::new("bash")
        .args(["-c", &walk])
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
        let mut end = crate::TarEnd::new();
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

/// Such an extension header, a member and the end.
fn with_records(flag: u8, records: &[u8]) -> Vec<u8> {
    [extension(flag, records), member(512), vec![0; 1024]].concat()
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
    let end = [member(512), vec![0; 1024]].concat();
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
