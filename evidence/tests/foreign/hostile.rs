//! What the index says of hostile tars.

use impound_evidence::index::{Changes, Kind, Limits};

use super::corpus::corpus;
use super::tars::*;

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
