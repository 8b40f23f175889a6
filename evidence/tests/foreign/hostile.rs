//! The corpus of hostile tars: each with what must be seen in it, and whether it counts as complete.

use impound_evidence::PATH_LIMIT;
use impound_evidence::index::{Changes, Kind, Limits};

use super::tars::*;

/// One hostile tar.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) tar: Vec<u8>,
    /// Names of the anomalies that must be seen, and no others.
    anomalies: &'static [&'static str],
    /// Part of the reason for which it is incomplete; none if it is complete.
    incomplete: Option<&'static str>,
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

#[test]
fn each_hostile_tar_gets_its_verdict_and_its_anomalies() {
    for case in corpus() {
        let seen = index(&case.tar);
        assert_eq!(seen.anomalies(), case.anomalies, "{}", case.name);
        let reasons = seen.reasons();
        match case.incomplete {
            None => assert!(reasons.is_empty(), "{}: {reasons:?}", case.name),
            Some(part) => assert!(
                reasons.len() == 1 && reasons[0].contains(part),
                "{}: {reasons:?}",
                case.name
            ),
        }
        let summary = &seen.indexed.summary;
        assert_eq!(summary.listed, summary.members, "{}", case.name);
        assert_eq!(seen.lines.len() as u64, summary.listed, "{}", case.name);
        // One line of ten or more fields for each, whatever the name is.
        let body = String::from_utf8_lossy(&seen.body);
        assert_eq!(body.lines().count(), seen.lines.len(), "{}", case.name);
        for line in body.lines() {
            assert_eq!(line.split('|').count(), 11, "{}: {line}", case.name);
        }
    }
}

#[test]
fn a_hash_list_never_names_what_is_outside() {
    for case in corpus() {
        let seen = index(&case.tar);
        for list in [&seen.sha256, &seen.md5] {
            for line in String::from_utf8_lossy(list).lines() {
                let (digest, path) = line.split_once("  ").unwrap();
                assert!(digest.trim_start_matches('\\').len() >= 32, "{line}");
                assert!(
                    !path.starts_with('/') && !path.split('/').any(|part| part == ".."),
                    "{}: {line}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn a_name_that_is_no_utf8_can_be_had_back_exactly() {
    use base64::Engine as _;
    let name = b"caf\xe9\xff/\xf0\x9f\x92";
    let seen = index(&ended(&[file(name, b"x")]));
    let base64 = seen.lines[0]["path_base64"].as_str().unwrap();
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .unwrap();
    assert_eq!(decoded, name);
    assert_eq!(seen.lines[0]["path"], "caf\u{fffd}\u{fffd}/\u{fffd}");
}

#[test]
fn what_broke_off_is_listed_as_far_as_it_came() {
    let tar = ended(&[file(b"whole", b"1"), file(b"cut", &[b'c'; 3000])]);
    let seen = index(&tar[..1024 + 512 + 1000]);
    assert_eq!(seen.paths(), ["whole", "cut"]);
    assert!(seen.lines[0]["sha256"].is_string());
    assert_eq!(seen.lines[1]["broken_at"], 1000);
    assert!(seen.lines[1].get("sha256").is_none());
    assert_eq!(String::from_utf8_lossy(&seen.sha256).lines().count(), 1);
}

#[test]
fn over_a_limit_the_list_ends_and_says_so_and_the_verdict_goes_on() {
    let parts: Vec<Vec<u8>> = (0..20)
        .map(|n| file(format!("f{n}").as_bytes(), b"x"))
        .collect();
    let tar = ended(&parts);
    let few = Limits {
        members: 5,
        ..Limits::default()
    };
    let small = Limits {
        metadata: 11,
        ..Limits::default()
    };
    for (limits, listed) in [(few, 5), (small, 5)] {
        let seen = index_in(&tar, 700, Kind::Other, limits);
        let summary = &seen.indexed.summary;
        assert_eq!((summary.members, summary.listed), (20, listed));
        assert!(summary.completeness.is_complete());
        assert!(
            summary.not_examined[0].starts_with("Only the first 5 of 20 members"),
            "{:?}",
            summary.not_examined
        );
        let truncated = summary.truncated().unwrap();
        assert_eq!(truncated, "Only the first 5 of 20 members are listed.");
        assert_eq!(seen.lines.len(), 5);
        let lines = |list: &[u8]| String::from_utf8_lossy(list).lines().count();
        for list in [&seen.sha256, &seen.md5, &seen.body] {
            assert_eq!(lines(list), 5, "every list ends behind the same member");
        }
    }
    let forgetful = Limits {
        paths: 3,
        links: 0,
        ..Limits::default()
    };
    let twice = ended(&[parts.concat(), link(b"l", b'2', b"x"), parts.concat()]);
    let seen = index_in(&twice, 700, Kind::Other, forgetful);
    assert_eq!(seen.lines.len(), 41);
    assert_eq!(seen.indexed.summary.not_examined.len(), 2);
    assert_eq!(seen.indexed.summary.truncated(), None);
    let duplicates = seen
        .indexed
        .summary
        .anomalies
        .iter()
        .find(|count| count.kind == "duplicate_path");
    assert_eq!(
        duplicates.unwrap().count,
        3,
        "of the three paths that were kept in mind"
    );
}

#[test]
fn a_body_file_has_the_four_times_that_a_layer_has() {
    let records: [(&[u8], &[u8]); 4] = [
        (b"mtime", b"1700000002.5"),
        (b"atime", b"1700000001"),
        (b"ctime", b"1700000003"),
        (b"LIBARCHIVE.creationtime", b"1700000000.25"),
    ];
    let seen = index(&ended(&[
        pax(b'x', &records),
        file(b"f", b""),
        file(b"g", b""),
    ]));
    let body = String::from_utf8(seen.body).unwrap();
    let times: Vec<&str> = body
        .lines()
        .map(|line| line.splitn(8, '|').last().unwrap())
        .collect();
    assert_eq!(
        times,
        [
            "1700000001|1700000002|1700000003|1700000000",
            "0|1700000000|0|0"
        ]
    );
}

#[test]
fn holes_are_hashed_up_to_a_limit_and_what_is_not_is_counted() {
    let hole = |name: &str, size: u64| {
        let size = size.to_string();
        let records: [(&[u8], &[u8]); 4] = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name.as_bytes()),
            (b"GNU.sparse.realsize", size.as_bytes()),
        ];
        let map = format!("1\n{size}\n0\n");
        let made_up = format!("GNUSparseFile.0/{name}");
        [
            pax(b'x', &records),
            with(header(made_up.as_bytes(), b'0', 512), map.as_bytes()),
        ]
        .concat()
    };
    let tar = ended(&[
        hole("a", 600),
        hole("b", 500),
        hole("c", 400),
        file(b"d", b"x"),
    ]);
    let limits = Limits {
        holes: 1000,
        ..Limits::default()
    };
    let seen = index_in(&tar, 700, Kind::Other, limits);
    let hashed: Vec<bool> = seen
        .lines
        .iter()
        .map(|line| line["sha256"].is_string())
        .collect();
    assert_eq!(hashed, [true, false, true, true], "b alone has no room");
    assert_eq!(
        seen.lines[0]["sha256"],
        impound_evidence::Sha256::of(&[0; 600]).to_string()
    );
    assert_eq!(
        seen.lines[1]["anomalies"],
        serde_json::json!(["sparse", "not_hashed"])
    );
    assert_eq!(
        seen.indexed.summary.not_examined,
        ["1 sparse files have no hash: holes of up to 1000 bytes are hashed, over all files."]
    );
    let md5 = String::from_utf8(seen.md5).unwrap();
    assert_eq!(md5.lines().count(), 3);
}

#[test]
fn changes_are_joined_with_the_file_that_they_are_about() {
    let mut changes = Changes::new();
    let diff = [
        r#"{"kind":"C","path":"/tmp"}"#,
        r#"{"kind":"A","path":"/tmp/x"}"#,
        r#"{"kind":"A","path":"/tmp/caf\ufffd"}"#,
        r#"{"kind":"A","path":"/tmp/gone"}"#,
        r#"{"kind":"D","path":"/var/log/x"}"#,
        "no JSON",
    ];
    diff.iter().for_each(|line| changes.add(line.as_bytes()));
    let tar = ended(&[
        header(b"tmp/", b'5', 0),
        file(b"tmp/x", b"abc"),
        file(b"tmp/caf\xe9", b""),
        file(b"etc/passwd", b""),
    ]);
    let seen = index_with(&tar, changes);
    let text = String::from_utf8(seen.changes).unwrap();
    let joined: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(joined.len(), 3);
    assert_eq!(
        (joined[1]["kind"].as_str(), joined[1]["path"].as_str()),
        (Some("A"), Some("/tmp/x"))
    );
    assert_eq!(joined[1]["file"], seen.lines[1]);
    assert_eq!(
        joined[1]["file"]["sha256"],
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    let changes = seen.indexed.changes.unwrap();
    let rest: Vec<String> = diff
        .iter()
        .filter_map(|line| changes.rest(line.as_bytes()))
        .map(|line| String::from_utf8(line).unwrap())
        .collect();
    assert_eq!(
        rest,
        [
            "{\"kind\":\"A\",\"path\":\"/tmp/gone\",\"no_file\":\"it is not in the tar\"}\n",
            "{\"kind\":\"D\",\"path\":\"/var/log/x\"}\n",
        ]
    );
}

#[test]
fn every_list_ends_behind_the_same_member_whatever_its_limit_is_spent_on() {
    let heavy = |name: &[u8]| {
        let records: [(&[u8], &[u8]); 2] = [
            (b"uname", &[b'u'; 300]),
            (b"SCHILY.xattr.user.a", &[b'x'; 300]),
        ];
        [pax(b'x', &records), file(name, b"x")].concat()
    };
    let small = file(b"s", b"x");
    // The third has no room, and then there is none for small ones behind it either.
    let tar = ended(&[heavy(b"1"), heavy(b"2"), heavy(b"3"), small.clone(), small]);
    let limits = Limits {
        metadata: 1500,
        ..Limits::default()
    };
    let seen = index_in(&tar, 700, Kind::Other, limits);
    assert_eq!(seen.paths(), ["1", "2"]);
    for list in [&seen.sha256, &seen.md5, &seen.body] {
        assert_eq!(String::from_utf8_lossy(list).lines().count(), 2);
    }
}

#[test]
fn a_change_behind_the_end_of_the_list_is_not_said_to_be_missing_from_the_tar() {
    let diff = r#"{"kind":"A","path":"/z"}"#;
    let tar = ended(&[file(b"a", b""), file(b"z", b"")]);
    let limits = Limits {
        members: 1,
        ..Limits::default()
    };
    let mut changes = Changes::new();
    changes.add(diff.as_bytes());
    let seen = index_in(&tar, 700, Kind::FileSystem(changes), limits);
    let rest = seen.indexed.changes.unwrap().rest(diff.as_bytes()).unwrap();
    assert_eq!(
        String::from_utf8(rest).unwrap(),
        "{\"kind\":\"A\",\"path\":\"/z\",\"no_file\":\"it is not among the members that are listed, and not all of the tar's are\"}\n"
    );
}

#[test]
fn an_image_behind_the_end_of_the_list_is_said_to_be_unseen() {
    let tar = ended(&[file(b"a", b""), file(b"manifest.json", b"[]")]);
    let limits = Limits {
        members: 1,
        ..Limits::default()
    };
    let image = index_in(&tar, 700, Kind::Image, limits)
        .indexed
        .image
        .unwrap();
    assert_eq!(
        image.problems,
        [
            "Only the first 1 of 2 members are listed.",
            "the archive has no manifest.json"
        ]
    );
}
