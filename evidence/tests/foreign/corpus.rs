//! The corpus of hostile tars: each with what must be seen in it, and whether it counts as complete. The tests
//! of `impound evidence extract` take them from here, too.

use impound_evidence::PATH_LIMIT;

use super::tars::*;

/// One hostile tar.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) tar: Vec<u8>,
    /// Names of the anomalies that must be seen, and no others.
    pub(crate) anomalies: &'static [&'static str],
    /// Part of the reason for which it is incomplete; none if it is complete.
    pub(crate) incomplete: Option<&'static str>,
}

fn case(
    name: &'static str,
    tar: Vec<u8>,
    anomalies: &'static [&'static str],
    incomplete: Option<&'static str>,
) -> Case {
    Case {
        name,
        tar,
        anomalies,
        incomplete,
    }
}

/// The corpus; its tars are also what the fuzzer starts from.
pub(crate) fn corpus() -> Vec<Case> {
    let good = file(b"etc/hostname", b"victim\n");
    let plain = |bytes: &[u8]| ended(&[file(bytes, b"x"), good.clone()]);
    let long = vec![b'n'; 200];
    let too_long = vec![b'n'; PATH_LIMIT + 1];
    let pax_file = |records: &[(&[u8], &[u8])], name: &[u8]| {
        ended(&[pax(b'x', records), file(name, b"x"), good.clone()])
    };
    let sparse_1_0 = |size: &str, map: &str, data: &[u8]| {
        let mut contents = map.as_bytes().to_vec();
        contents.resize(map.len().next_multiple_of(512), 0);
        contents.extend_from_slice(data);
        let records: [(&[u8], &[u8]); 4] = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"holes"),
            (b"GNU.sparse.realsize", size.as_bytes()),
        ];
        ended(&[
            pax(b'x', &records),
            file(b"GNUSparseFile.0/holes", &contents),
            good.clone(),
        ])
    };
    let base256 = |value: i64| {
        let mut field = [0u8; 12];
        field[4..].copy_from_slice(&value.to_be_bytes());
        if value < 0 {
            field[..4].fill(0xff);
        } else {
            field[0] = 0x80;
        }
        field
    };
    let many: Vec<(Vec<u8>, Vec<u8>)> = (0..300)
        .map(|n| {
            (
                format!("SCHILY.xattr.user.x{n}").into_bytes(),
                b"v".to_vec(),
            )
        })
        .collect();
    let many: Vec<(&[u8], &[u8])> = many
        .iter()
        .map(|(k, v)| (k.as_slice(), v.as_slice()))
        .collect();
    let old_sparse = changed(
        changed(header(b"holes", b'S', 512), 386, b"00000000000\0"),
        483,
        b"00100000000\0",
    );
    let mut continued = changed(old_sparse.clone(), 482, b"\x01");
    continued.extend([0; 512]);

    vec![
        case("nothing odd", plain(b"etc/passwd"), &[], None),
        case(
            "absolute path",
            plain(b"/etc/passwd"),
            &["absolute_path"],
            None,
        ),
        case(
            "traversal",
            plain(b"../../etc/passwd"),
            &["parent_traversal"],
            None,
        ),
        case(
            "traversal in the middle",
            plain(b"a/../../b"),
            &["parent_traversal"],
            None,
        ),
        case("empty path", plain(b""), &["empty_path"], None),
        case(
            "newline and escape in a name",
            plain(b"a\n\x1b[2Jb"),
            &["control_characters"],
            None,
        ),
        case("no UTF-8", plain(b"caf\xe9"), &["not_utf8"], None),
        case(
            "slash behind a file",
            plain(b"dir/"),
            &["trailing_slash"],
            None,
        ),
        case(
            "the same path twice, spelled differently",
            ended(&[file(b"a/b", b"1"), file(b"./a//b", b"2")]),
            &["duplicate_path"],
            None,
        ),
        case(
            "link out",
            ended(&[link(b"a/b", b'2', b"../../etc/shadow")]),
            &["link_outside"],
            None,
        ),
        case(
            "absolute link inside, as every image has them",
            ended(&[link(b"a/b", b'2', b"/etc/shadow")]),
            &[],
            None,
        ),
        case(
            "hard link out",
            ended(&[link(b"a", b'1', b"/etc/shadow"), link(b"b", b'1', b"../x")]),
            &["link_outside"],
            None,
        ),
        case(
            "written through a link",
            ended(&[
                link(b"out", b'2', b"/etc"),
                file(b"out/cron.d/x", b"* * * * *"),
            ]),
            &["through_link"],
            None,
        ),
        case(
            "link over a link",
            ended(&[link(b"a", b'2', b"b"), link(b"a", b'2', b"/etc")]),
            &["duplicate_path"],
            None,
        ),
        case(
            "unknown type",
            ended(&[header(b"x", b'Z', 0)]),
            &["unknown_type"],
            None,
        ),
        case(
            "GNU volume label",
            ended(&[header(b"label", b'V', 0)]),
            &["unknown_type"],
            None,
        ),
        case(
            "absurd size",
            changed(header(b"x", b'0', 0), 124, &base256(i64::MAX)),
            &["absurd_size", "base256"],
            Some("inside \"x\" (member 1)"),
        ),
        case(
            "negative time",
            ended(&[changed(header(b"x", b'0', 0), 136, &base256(-86400))]),
            &["base256", "negative_time"],
            None,
        ),
        case(
            "absurd time",
            ended(&[changed(header(b"x", b'0', 0), 136, &base256(i64::MAX))]),
            &["absurd_time", "base256"],
            None,
        ),
        case(
            "an owner that is no number",
            ended(&[changed(header(b"x", b'0', 0), 108, b"99zz99\0\0")]),
            &["bad_number"],
            None,
        ),
        case(
            "a size that is no number",
            ended(&[changed(header(b"x", b'0', 0), 124, b"99zz99\0\0\0\0\0\0")]),
            &[],
            Some("expected a size"),
        ),
        case(
            "PAX path against the header's",
            pax_file(&[(b"path", b"etc/cron.d/evil")], b"harmless"),
            &["path_conflict"],
            None,
        ),
        case(
            "PAX link target against the header's",
            ended(&[
                pax(b'x', &[(b"linkpath", b"/etc/shadow")]),
                link(b"a", b'2', b"b"),
            ]),
            &["link_conflict"],
            None,
        ),
        case(
            "PAX size smuggles a member",
            ended(&[
                pax(b'x', &[(b"size", b"512")]),
                header(b"outer", b'0', 0),
                header(b"smuggled", b'0', 0),
            ]),
            &["size_conflict"],
            None,
        ),
        case(
            "PAX size twice",
            pax_file(&[(b"size", b"1"), (b"size", b"2")], b"x"),
            &[],
            Some("gives the size twice"),
        ),
        case(
            "PAX path twice",
            pax_file(&[(b"path", b"x"), (b"path", b"x")], b"x"),
            &["duplicate_record"],
            None,
        ),
        case(
            "NUL in a PAX path",
            pax_file(&[(b"path", b"etc/passwd\0.txt")], b"etc/passwd"),
            &["control_characters", "nul_in_record", "path_conflict"],
            None,
        ),
        case(
            "malformed PAX time",
            pax_file(&[(b"mtime", b"yesterday")], b"x"),
            &["malformed_record"],
            None,
        ),
        case(
            "PAX bomb: a header of 4 GiB",
            header(b"PaxHeaders", b'x', 1 << 32),
            &[],
            Some("can be followed"),
        ),
        case(
            "PAX bomb: a path of 512 KiB",
            pax_file(&[(b"path", &vec![b'p'; 512 << 10])], &[b'p'; 100]),
            &["path_too_long"],
            None,
        ),
        case(
            "PAX bomb: attributes without end",
            pax_file(&many, b"x"),
            &["too_many_xattrs"],
            None,
        ),
        case(
            "PAX record longer than its header",
            ended(&[with(header(b"p", b'x', 9), b"99 a=b\n\n\n"), good.clone()]),
            &[],
            Some("the PAX header before byte 1024"),
        ),
        case(
            "two PAX headers for one member",
            ended(&[
                pax(b'x', &[(b"path", b"a")]),
                pax(b'x', &[(b"path", b"b")]),
                good.clone(),
            ]),
            &[],
            Some("a second PAX header for one member"),
        ),
        case(
            "a global path",
            ended(&[
                pax(b'g', &[(b"path", b"all/are/me")]),
                good.clone(),
                file(b"b", b""),
            ]),
            &["duplicate_path", "global_record"],
            None,
        ),
        case(
            "a global size",
            ended(&[pax(b'g', &[(b"size", b"1")]), good.clone()]),
            &[],
            Some("readers disagree for which members"),
        ),
        case(
            "a global comment, as git archive writes it",
            ended(&[pax(b'g', &[(b"comment", b"3f2a")]), good.clone()]),
            &[],
            None,
        ),
        case(
            "GNU long name",
            ended(&[gnu_long(b'L', &long), file(&long[..100], b"x")]),
            &["gnu_long_name"],
            None,
        ),
        case(
            "GNU long name against the header's",
            ended(&[gnu_long(b'L', &long), file(b"short", b"x")]),
            &["gnu_long_name", "path_conflict"],
            None,
        ),
        case(
            "GNU long name against PAX",
            ended(&[
                gnu_long(b'L', &long),
                pax(b'x', &[(b"path", b"other")]),
                file(&long[..100], b"x"),
            ]),
            &["gnu_long_name", "path_conflict"],
            None,
        ),
        case(
            "GNU long name over the limit",
            ended(&[gnu_long(b'L', &too_long), file(&too_long[..100], b"x")]),
            &["gnu_long_name", "path_too_long"],
            None,
        ),
        case(
            "GNU long name of 4 GiB",
            header(b"././@LongLink", b'L', 1 << 32),
            &[],
            Some("inside a long name"),
        ),
        case(
            "GNU sparse file whose map has not its bytes",
            ended(&[with(old_sparse, &[b'd'; 512])]),
            &["sparse", "sparse_map"],
            None,
        ),
        case(
            "GNU sparse file whose map goes on and ends too early",
            ended(&[with(continued, &[b'd'; 512])]),
            &["sparse", "sparse_map"],
            None,
        ),
        case(
            "PAX sparse 0.0",
            pax_file(
                &[
                    (b"GNU.sparse.size", b"1048576"),
                    (b"GNU.sparse.offset", b"0"),
                    (b"GNU.sparse.numbytes", b"1"),
                ],
                b"x",
            ),
            &["sparse", "sparse_map"],
            None,
        ),
        case(
            "PAX sparse 0.1",
            pax_file(
                &[
                    (b"GNU.sparse.size", b"1048576"),
                    (b"GNU.sparse.map", b"0,1"),
                ],
                b"x",
            ),
            &["sparse", "sparse_map"],
            None,
        ),
        case(
            "PAX sparse 1.0 of 8 EiB",
            pax_file(
                &[
                    (b"GNU.sparse.major", b"1"),
                    (b"GNU.sparse.minor", b"0"),
                    (b"GNU.sparse.name", b"real/name"),
                    (b"GNU.sparse.realsize", b"9223372036854775807"),
                ],
                b"real/GNUSparseFile.1/name",
            ),
            &["absurd_size", "sparse", "sparse_map"],
            None,
        ),
        case(
            "PAX sparse 1.0 of 8 EiB of hole",
            sparse_1_0("9223372036854775807", "1\n9223372036854775807\n0\n", b""),
            &["absurd_size", "not_hashed", "sparse"],
            None,
        ),
        case(
            "a sparse map of islands that overlap",
            sparse_1_0("1536", "3\n0\n512\n0\n512\n1536\n0\n", &[b'd'; 1024]),
            &["sparse", "sparse_map"],
            None,
        ),
        case(
            "a sparse map of islands that readers put elsewhere, as they are no whole blocks",
            sparse_1_0("4096", "2\n0\n100\n3584\n512\n", &[b'd'; 612]),
            &["sparse", "sparse_map"],
            None,
        ),
        case(
            "a sparse map that ends before its file, which GNU tar makes shorter",
            sparse_1_0("4096", "1\n0\n512\n", &[b'd'; 512]),
            &["sparse", "sparse_map"],
            None,
        ),
        case(
            "a sparse map whose numbers overflow",
            sparse_1_0(
                "4096",
                "2\n18446744073709551615\n512\n4096\n99999999999999999999999\n",
                &[b'd'; 512],
            ),
            &["sparse", "sparse_map"],
            None,
        ),
        case(
            "a sparse map of a quintillion islands",
            sparse_1_0("4096", "1000000000000000000\n", &[b'1'; 2048]),
            &["sparse", "sparse_map"],
            None,
        ),
        case(
            "a sparse name without a sparse form, which some readers don't take",
            pax_file(&[(b"GNU.sparse.name", b"real")], b"shown"),
            &["path_conflict", "sparse", "sparse_map"],
            None,
        ),
        case(
            "a sparse name that takes the place of another path, to readers of it only",
            ended(&[
                pax(
                    b'x',
                    &[(b"path", b"etc/shadow"), (b"GNU.sparse.name", b"tmp/x")],
                ),
                file(b"etc/shadow", b"x"),
            ]),
            &["path_conflict", "sparse", "sparse_map"],
            None,
        ),
        case(
            "a sparse name against the header's",
            ended(&[
                pax(b'x', &[(b"GNU.sparse.name", b"tmp/x")]),
                file(b"etc/shadow", b"x"),
            ]),
            &["path_conflict", "sparse", "sparse_map"],
            None,
        ),
        case(
            "a directory with contents",
            ended(&[with(header(b"d", b'5', 512), &[b'x'; 512])]),
            &[],
            Some("readers disagree where the next member starts"),
        ),
        case(
            "an old file with a slash and contents, a directory to Python and Go",
            ended(&[with(header(b"d/", 0, 512), &header(b"smuggled", b'0', 0))]),
            &["trailing_slash"],
            Some("readers disagree where the next member starts"),
        ),
        case(
            "an old file that only its GNU long name makes a directory",
            ended(&[
                gnu_long(b'L', b"d/"),
                with(header(b"d", 0, 512), &header(b"smuggled", b'0', 0)),
            ]),
            &["gnu_long_name", "path_conflict", "trailing_slash"],
            Some("readers disagree where the next member starts"),
        ),
        case(
            "an old file that only its PAX path makes a directory",
            ended(&[
                pax(b'x', &[(b"path", b"d/")]),
                with(header(b"d", 0, 512), &header(b"smuggled", b'0', 0)),
            ]),
            &["path_conflict", "trailing_slash"],
            Some("readers disagree where the next member starts"),
        ),
        case(
            "an old file that a global path may make a directory",
            ended(&[
                pax(b'g', &[(b"path", b"d/")]),
                with(header(b"d", 0, 512), &header(b"smuggled", b'0', 0)),
            ]),
            &["global_record", "trailing_slash"],
            Some("readers disagree where the next member starts"),
        ),
        case(
            "an old file without a name that ustar's prefix makes a directory",
            ended(&[with(
                changed(header(b"", 0, 512), 345, b"d"),
                &header(b"smuggled", b'0', 0),
            )]),
            &["trailing_slash"],
            Some("readers disagree where the next member starts"),
        ),
        case(
            "Solaris's extended header with a size",
            ended(&[
                pax(b'X', &[(b"size", b"512")]),
                header(b"x", b'0', 0),
                good.clone(),
            ]),
            &[],
            Some("Solaris extended header"),
        ),
        case(
            "a global header behind an extension, which Go then drops",
            ended(&[
                pax(b'x', &[(b"size", b"512")]),
                pax(b'g', &[(b"comment", b"c")]),
                header(b"x", b'0', 0),
                good.clone(),
            ]),
            &[],
            Some("between a member and its extension header"),
        ),
        case(
            "truncated in a header",
            plain(b"x")[..700].to_vec(),
            &[],
            Some("in the padding"),
        ),
        case(
            "truncated in contents",
            good[..515].to_vec(),
            &[],
            Some("3 of 7 bytes came"),
        ),
        case(
            "truncated before its end",
            good.clone(),
            &[],
            Some("without the two zero blocks"),
        ),
        case(
            "one zero block",
            [good.clone(), vec![0; 512]].concat(),
            &[],
            Some("one zero block"),
        ),
        case(
            "concatenated",
            [plain(b"a"), plain(b"b")].concat(),
            &["concatenated", "trailing_bytes"],
            Some("the tar ends and then more bytes come"),
        ),
        case(
            "rubbish behind the end",
            [plain(b"a"), b"rubbish".to_vec()].concat(),
            &["trailing_bytes"],
            Some("the tar ends and then more bytes come"),
        ),
        case(
            "a wrong checksum",
            ended(&[{
                let mut bad = good.clone();
                bad[0] ^= 1;
                bad
            }]),
            &[],
            Some("its checksum should be"),
        ),
        case(
            "no tar at all",
            b"{\"message\":\"no such container\"}".repeat(40),
            &[],
            Some("no tar header"),
        ),
    ]
}
