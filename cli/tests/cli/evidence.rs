//! Evidence out of the store: listed, copied, resumed, never overwritten, and what is copied verifies.

use std::fs;
use std::path::Path;

use impound_evidence::{CHECKPOINT, CUSTODY, MANIFEST};

use crate::collection::TAR;
use crate::fake::{Fake, Ran, impound};
use crate::snapshot::compare;

fn get(fake: &Fake, to: &Path, paths: &[&str]) -> Ran {
    let to = ["--to", to.to_str().unwrap()];
    fake.run(&[&["evidence", "get", "INC-7", "web-5d4f-x7"], paths, &to].concat())
}

fn verify(fake: &Fake, directory: &Path) -> Ran {
    let key = fake.public_key();
    let arguments = [
        "verify",
        directory.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
        "--all",
    ];
    Ran::from(impound(&arguments).output().unwrap())
}

/// Every line with a file's state.
fn states(ran: &Ran) -> Vec<String> {
    let lines = ran.out.lines().filter(|line| line.contains("Evidence"));
    lines
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_whole_collection_is_copied_and_the_copy_verifies() {
    let fake = Fake::start();
    let to = tempfile::tempdir().unwrap();
    let ran = get(&fake, to.path(), &[]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(states(&ran), ["copied"; 7]);
    // Not the four that sign the others.
    assert!(
        ran.out.contains("; 3 of 7 compared with the manifest\n"),
        "{ran:?}"
    );
    let verified = verify(&fake, to.path());
    assert_eq!(
        (verified.code, verified.err.as_str()),
        (0, ""),
        "{verified:?}"
    );
    let reads = fake.state.reads.lock().unwrap().clone();
    assert_eq!(
        reads[reads.len() - 2..],
        [format!("{CHECKPOINT}@0"), format!("{CUSTODY}@0")]
    );
    let left: Vec<_> = fs::read_dir(to.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_str().unwrap().ends_with(".part")),
        "{left:?}"
    );
}

#[test]
fn the_default_place_is_named_after_case_and_collection() {
    let fake = Fake::start();
    let directory = tempfile::tempdir().unwrap();
    let mut command = fake.command(&[
        "evidence",
        "get",
        "INC-7",
        "web-5d4f-x7",
        "before/pod.json",
        "-o",
        "json",
    ]);
    let ran = Ran::from(command.current_dir(directory.path()).output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["files"][0]["state"], "copied");
    assert!(
        directory
            .path()
            .join("INC-7/web-5d4f-x7/before/pod.json")
            .is_file()
    );
}

#[test]
fn a_whole_case_is_copied_each_collection_to_a_directory_of_its_own() {
    let fake = Fake::start();
    let to = tempfile::tempdir().unwrap();
    let ran = fake.run(&[
        "evidence",
        "get",
        "INC-7",
        "--to",
        to.path().to_str().unwrap(),
    ]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let copy = to.path().join("INC-7/web-5d4f-x7");
    assert!(
        ran.out
            .contains(&format!("verify {} --key", copy.display())),
        "{ran:?}"
    );
    assert_eq!(verify(&fake, &copy).code, 0);
    let ran = fake.run(&["evidence", "get", "INC-8"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (6, "error: not found: there is no evidence of case INC-8\n")
    );
}

#[test]
fn a_second_copy_keeps_what_is_there_and_a_log_may_grow() {
    let fake = Fake::start();
    let to = tempfile::tempdir().unwrap();
    get(&fake, to.path(), &[]);
    let before = fs::read(to.path().join(CUSTODY)).unwrap();
    assert_eq!(states(&get(&fake, to.path(), &[])), ["kept"; 7]);
    fake.state.evidence.lock().unwrap().go_on();
    let ran = get(&fake, to.path(), &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        states(&ran),
        [
            "kept", "kept", "kept", "kept", "kept", "extended", "extended"
        ]
    );
    assert!(
        fs::read(to.path().join(CUSTODY))
            .unwrap()
            .starts_with(&before)
    );
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let fake = Fake::start();
    let to = tempfile::tempdir().unwrap();
    fake.state
        .break_off
        .lock()
        .unwrap()
        .insert(TAR.to_owned(), 512 << 10);
    let ran = get(&fake, to.path(), &[TAR]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(
        *fake.state.reads.lock().unwrap(),
        [format!("{TAR}@0"), format!("{TAR}@524288")]
    );
    assert_eq!(fs::read(to.path().join(TAR)).unwrap(), vec![0; 1 << 20]);
}

#[test]
fn an_interrupted_copy_is_resumed_by_the_next_one() {
    let fake = Fake::start();
    let to = tempfile::tempdir().unwrap();
    let part = to
        .path()
        .join(Path::new(TAR).with_file_name(".evidence-compromised-nginx-0123456789ab.tar.part"));
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, vec![0; 300_000]).unwrap();
    assert_eq!(get(&fake, to.path(), &[TAR]).code, 0);
    assert_eq!(*fake.state.reads.lock().unwrap(), [format!("{TAR}@300000")]);
    assert!(!part.exists());
}

#[test]
fn what_has_no_digest_in_the_manifest_is_never_resumed() {
    let fake = Fake::start();
    let to = tempfile::tempdir().unwrap();
    let part = to.path().join(".manifest.json.part");
    fs::write(&part, "{").unwrap();
    fake.state
        .break_off
        .lock()
        .unwrap()
        .insert(MANIFEST.to_owned(), 0);
    let ran = get(&fake, to.path(), &[MANIFEST]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(
        *fake.state.reads.lock().unwrap(),
        [format!("{MANIFEST}@0"), format!("{MANIFEST}@0")]
    );
    assert!(!part.exists());
}

#[test]
fn a_damaged_or_too_long_leftover_is_copied_anew() {
    for (leftover, reads) in [
        (vec![1; 300_000], &[300_000, 0][..]),
        (vec![0; 2 << 20], &[0]),
    ] {
        let fake = Fake::start();
        let to = tempfile::tempdir().unwrap();
        let part = ".evidence-compromised-nginx-0123456789ab.tar.part";
        let part = to.path().join(Path::new(TAR).with_file_name(part));
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, &leftover).unwrap();
        let ran = get(&fake, to.path(), &[TAR]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let reads: Vec<_> = reads
            .iter()
            .map(|offset| format!("{TAR}@{offset}"))
            .collect();
        assert_eq!(*fake.state.reads.lock().unwrap(), reads);
        assert_eq!(fs::read(to.path().join(TAR)).unwrap(), vec![0; 1 << 20]);
    }
}

#[test]
fn a_changed_file_in_the_store_is_not_kept() {
    let fake = Fake::start();
    let to = tempfile::tempdir().unwrap();
    fake.state
        .evidence
        .lock()
        .unwrap()
        .write("before/pod.json", b"{\"kind\":\"Cat\"}");
    let ran = get(&fake, to.path(), &["before/pod.json"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .starts_with("error: before/pod.json: expected SHA-256 ")
            && ran
                .err
                .contains("the file in the store was changed. Nothing was kept"),
        "{}",
        ran.err
    );
    assert_eq!(fs::read_dir(to.path().join("before")).unwrap().count(), 0);
}

#[test]
fn a_file_that_is_there_with_other_contents_is_never_overwritten() {
    let fake = Fake::start();
    for name in ["before/pod.json", MANIFEST] {
        let to = tempfile::tempdir().unwrap();
        fs::create_dir_all(to.path().join("before")).unwrap();
        fs::write(to.path().join(name), "mine").unwrap();
        let ran = get(&fake, to.path(), &[name]);
        assert_eq!(ran.code, 1, "{name}");
        assert!(
            ran.err
                .contains("is there with other contents and was not overwritten"),
            "{}",
            ran.err
        );
        assert_eq!(fs::read(to.path().join(name)).unwrap(), b"mine");
    }
}

#[test]
fn a_log_that_was_cut_in_the_store_is_noticed_against_an_earlier_copy() {
    let fake = Fake::start();
    let to = tempfile::tempdir().unwrap();
    get(&fake, to.path(), &[]);
    let before = fs::read(to.path().join(CUSTODY)).unwrap();
    fake.state.evidence.lock().unwrap().cut_log();
    let ran = get(&fake, to.path(), &[CHECKPOINT, CUSTODY]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains(
            "the log in the store does not continue this copy; one of them was cut or changed"
        ),
        "{}",
        ran.err
    );
    assert_eq!(fs::read(to.path().join(CUSTODY)).unwrap(), before);
}

#[test]
fn a_copy_never_lands_behind_a_link() {
    let fake = Fake::start();
    let (to, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(elsewhere.path(), to.path().join("before")).unwrap();
    let ran = get(&fake, to.path(), &["before/pod.json"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("it is no directory"), "{}", ran.err);
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);

    std::os::unix::fs::symlink(elsewhere.path().join("x"), to.path().join(MANIFEST)).unwrap();
    let ran = get(&fake, to.path(), &[MANIFEST]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("is there and is no plain file"),
        "{}",
        ran.err
    );
}

#[test]
fn what_is_not_there_is_named_and_exits_with_6() {
    let fake = Fake::start();
    let to = tempfile::tempdir().unwrap();
    let ran = get(&fake, to.path(), &["before/cat.json"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (
            6,
            "error: not found: there is no before/cat.json in collection web-5d4f-x7 of case INC-7; `evidence ls INC-7 web-5d4f-x7` lists what there is\n"
        )
    );
    let ran = fake.run(&["evidence", "get", "INC-8", "x"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (
            6,
            "error: not found: there is no evidence of collection x in case INC-8\n"
        )
    );
}

#[test]
fn evidence_is_listed() {
    let fake = Fake::start();
    let ran = fake.run(&["evidence", "ls", "INC-7"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // The sizes of what is signed differ: signatures are of no fixed length.
    let stable: String = ran
        .out
        .lines()
        .filter(|line| !line.contains("custody") && !line.contains("manifest"))
        .map(|line| format!("{line}\n"))
        .collect();
    compare("evidence-ls.txt", &stable);
    // Further cases of a sweep's come behind it, and then the case is told.
    let ran = fake.run(&["evidence", "ls", "INC-9"]);
    let column = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let cases: std::collections::BTreeSet<_> = ran.out.lines().filter_map(column).collect();
    assert_eq!(
        cases,
        ["CASE", "INC-9", "INC-9.part-2"].map(String::from).into()
    );
    assert_eq!(
        fake.run(&["evidence", "ls", "INC-8"]).out,
        "no evidence of case INC-8\n"
    );
}

#[test]
fn the_controller_can_be_asked_to_verify() {
    let fake = Fake::start();
    for (name, code, said) in [
        (
            "web-5d4f-x7",
            0,
            "INC-7/web-5d4f-x7 is intact and complete: 8 files, 4.00 KiB read in the store\n",
        ),
        (
            "partial-1",
            3,
            "INC-7/partial-1 is intact, but partial: 8 files, 4.00 KiB read in the store\n",
        ),
        (
            "broken-1",
            1,
            "INC-7/broken-1 is NOT INTACT: 8 files, 4.00 KiB read in the store\n  before/pod.json: expected 14 bytes, got 13\n",
        ),
    ] {
        let ran = fake.run(&["evidence", "verify", "INC-7", name]);
        assert_eq!((ran.code, ran.out.as_str()), (code, said));
    }
}

#[test]
fn a_hold_says_on_how_many_objects_it_was_put_and_fails_if_not_on_all() {
    let fake = Fake::start();
    let ran = |command: &str, collection: &str| {
        fake.run(&[
            "evidence",
            command,
            "INC-7",
            collection,
            "--reason",
            "court order",
        ])
    };
    let held = ran("hold", "web-5d4f-x7");
    assert_eq!(
        (held.code, held.out.as_str(), held.err.as_str()),
        (0, "legal hold put on 8 objects of INC-7/web-5d4f-x7\n", "")
    );
    let lifted = ran("unhold", "web-5d4f-x7");
    assert_eq!(
        (lifted.code, lifted.out.as_str()),
        (0, "legal hold lifted from 9 objects of INC-7/web-5d4f-x7\n")
    );
    let partly = ran("hold", "partial-1");
    assert_eq!(
        (partly.code, partly.out.as_str()),
        (
            1,
            "legal hold put on 8 objects of INC-7/partial-1\nNOT put on 1 of them\n  INC-7/partial-1/a: court order\n"
        )
    );
    let refused = ran("hold", "in-a-directory");
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(
        refused.err.contains("a directory has no legal holds"),
        "{refused:?}"
    );
}
