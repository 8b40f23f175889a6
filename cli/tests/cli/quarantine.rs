//! Quarantines from request to evidence, as lines and as documents.

use crate::fake::{Fake, Ran};
use crate::snapshot::compare;

const WEB: [&str; 7] = [
    "quarantine",
    "web-5d4f-x7",
    "--case",
    "INC-7",
    "--reason",
    "shell in container",
    "--wait",
];

fn quarantine(fake: &Fake, pod: &str, more: &[&str]) -> Ran {
    let base = [
        "quarantine",
        pod,
        "--case",
        "INC-7",
        "--reason",
        "shell in container",
    ];
    fake.run(&[&base, more].concat())
}

#[test]
fn waiting_shows_each_step_and_ends_with_evidence_and_what_to_do_next() {
    let ran = Fake::start().run(&WEB);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    compare("quarantine-wait.txt", &ran.out);
}

#[test]
fn partial_evidence_says_what_is_missing_and_exits_with_3() {
    let ran = quarantine(&Fake::start(), "partial-1", &["--wait"]);
    assert_eq!((ran.code, ran.err.as_str()), (3, ""), "{ran:?}");
    compare("quarantine-partial.txt", &ran.out);
}

#[test]
fn a_refused_quarantine_says_why_and_exits_with_4() {
    let ran = quarantine(&Fake::start(), "refused-1", &["--wait"]);
    assert_eq!((ran.code, ran.err.as_str()), (4, ""), "{ran:?}");
    compare("quarantine-refused.txt", &ran.out);
}

#[test]
fn a_lost_connection_is_taken_up_again() {
    let ran = quarantine(&Fake::start(), "flaky-1", &["--wait"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let told = |word: &str| {
        ran.out
            .lines()
            .filter(|line| line.contains("Connection") && line.contains(word))
            .count()
    };
    assert!(told("lost") >= 1 && told("back") >= 1, "{}", ran.out);
    // Each result is told once, however often the stream starts anew.
    let done = |step: &str| {
        ran.out
            .lines()
            .filter(|line| line.contains(&format!("{step:12}done")))
            .count()
    };
    assert_eq!((done("Cordon"), done("Evict")), (1, 1), "{}", ran.out);
    assert!(
        ran.out.contains("EVIDENCE sealed and complete"),
        "{}",
        ran.out
    );
}

#[test]
fn a_document_has_the_whole_state_and_progress_goes_to_standard_error() {
    let ran = Fake::start().run(&[&WEB[..], &["-o", "json"]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["quarantine"]["phase"], "Complete");
    assert_eq!(json["quarantine"]["checks"][2]["state"], "Unverified");
    assert_eq!(
        json["quarantine"]["steps"][0]["started"],
        "2026-01-31T03:04:00.500000Z"
    );
    assert_eq!(json["collection"]["artifacts"][3]["bytes"], 187_904_000);
    assert!(ran.err.contains("Cordon      done"), "{}", ran.err);

    let ran = Fake::start().run(&[&WEB[..], &["-o", "yaml"]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    let yaml: serde_json::Value = serde_saphyr::from_str(&ran.out).unwrap();
    assert_eq!(yaml, json, "{}", ran.out);
}

#[test]
fn a_dry_run_prints_every_call_in_order_and_changes_nothing() {
    let fake = Fake::start();
    let ran = quarantine(&fake, "pod/web-5d4f-x7", &["--dry-run"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    compare("quarantine-dry-run.txt", &ran.out);
    assert!(fake.state.quarantines.lock().unwrap()[0].dry_run);

    let ran = quarantine(&fake, "web-5d4f-x7", &["--dry-run", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        json["calls"][1]["body"]["metadata"]["labels"]["status"],
        "suspectpod"
    );
}

#[test]
fn every_option_reaches_the_controller() {
    let fake = Fake::start();
    let options = [
        "-n",
        "shop",
        "--uid",
        "u-1",
        "--keep-neighbours",
        "--evict-unmanaged",
        "--delete-emptydir-data",
        "--no-collect",
        "--pause",
    ];
    let ran = quarantine(&fake, "po/web-5d4f-x7", &options);
    assert_eq!(ran.code, 0, "{ran:?}");
    let asked = fake.state.quarantines.lock().unwrap().remove(0);
    assert_eq!(
        (
            asked.namespace.as_str(),
            asked.pod.as_str(),
            asked.pod_uid.as_str()
        ),
        ("shop", "web-5d4f-x7", "u-1")
    );
    assert_eq!(
        (asked.case_id.as_str(), asked.reason.as_str()),
        ("INC-7", "shell in container")
    );
    assert!(asked.keep_neighbours && asked.evict_unmanaged && asked.delete_empty_dir_data);
    assert!(asked.skip_collection && asked.pause && !asked.dry_run);
    assert!(
        ran.out.contains("impound watch web-5d4f-x7 -n default"),
        "{}",
        ran.out
    );
}

#[test]
fn status_and_list_show_how_it_stands() {
    let fake = Fake::start();
    for (name, arguments) in [
        ("status.txt", &["status", "web-5d4f-x7"][..]),
        (
            "status-collection.txt",
            &["status", "collection/web-5d4f-x7"],
        ),
        ("list.txt", &["list"]),
        (
            "list-collections-wide.txt",
            &["list", "collections", "-o", "wide"],
        ),
        ("containers.txt", &["containers", "worker2"]),
    ] {
        let ran = fake.run(arguments);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        compare(name, &ran.out);
    }
    assert_eq!(
        fake.run(&["list", "--case", "INC-9"]).out,
        "no quarantines\n"
    );
}

#[test]
fn collect_and_watch_follow_a_collection() {
    let fake = Fake::start();
    let ran = fake.run(&[
        "collect",
        "web-5d4f-x7",
        "--case",
        "INC-7",
        "--reason",
        "r",
        "--name",
        "base-1",
        "--wait",
    ]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(fake.state.collections.lock().unwrap()[0].name, "base-1");
    assert!(
        ran.out
            .contains("EVIDENCE sealed and complete: 5 artifacts"),
        "{}",
        ran.out
    );
    let ran = fake.run(&["watch", "collection/partial-1"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let ran = fake.run(&["watch", "web-5d4f-x7"]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn release_is_refused_until_it_is_forced() {
    let fake = Fake::start();
    let base = ["release", "web-5d4f-x7", "--reason", "false alarm"];
    let ran = fake.run(&base);
    assert_eq!(ran.code, 4);
    assert_eq!(
        ran.err,
        "error: refused by the controller: the evidence of default/web-5d4f-x7 is not sealed; wait for it, or release with force\n"
    );
    let ran = fake.run(&[&base[..], &["--force", "--yes"]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out
            .starts_with("The release of quarantine default/web-5d4f-x7 is recorded.\n"),
        "{}",
        ran.out
    );
    assert_eq!(fake.state.releases.lock().unwrap()[0].reason, "false alarm");
}

#[test]
fn a_release_that_is_waited_for_shows_each_step_and_ends_with_what_came_of_it() {
    let fake = Fake::start();
    let release = |pod| {
        fake.run(&[
            "release",
            pod,
            "--reason",
            "false alarm",
            "--force",
            "--yes",
            "--wait",
        ])
    };
    let ran = release("web-5d4f-x7");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    compare("release-wait.txt", &ran.out);
    // Through a connection that breaks off, too.
    let ran = release("flaky-1");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.contains("RELEASED: pod default/flaky-1"),
        "{}",
        ran.out
    );
    // What a forced release gives up is no success.
    let ran = release("partial-1");
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.out.contains("RELEASED, not all is undone: ")
            && ran.out.contains("step failed  UndoIsolate: NOT lifted"),
        "{}",
        ran.out
    );
    let ran = fake.run(&["release", "web-5d4f-x7", "--dry-run", "--wait"]);
    assert_eq!(ran.code, 2, "{ran:?}");
}

#[test]
fn what_a_release_leads_to_is_said_before_it_happens() {
    let fake = Fake::start();
    let base = ["release", "web-5d4f-x7", "--force"];
    let ran = fake.run(&[&base[..], &["--dry-run"]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out
            .contains("Release of default/web-5d4f-x7 would make 1 call:")
            && ran
                .out
                .contains("PATCH /api/v1/namespaces/default/pods/web-5d4f-x7")
            && ran.out.contains("deletes one of its pods")
            && ran.out.ends_with("Nothing was changed.\n"),
        "{}",
        ran.out
    );
    // Nobody can be asked in a test: no answer is no consent.
    let ran = fake.run(&[&base[..], &["--reason", "false alarm"]].concat());
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err.contains("deletes one of its pods") && ran.err.contains("say --yes"),
        "{}",
        ran.err
    );
    assert!(fake.state.releases.lock().unwrap().is_empty());
}

#[test]
fn an_interrupt_leaves_the_quarantine_and_says_how_to_go_on() {
    let fake = Fake::paced(std::time::Duration::from_secs(60));
    let mut command = fake.command(&WEB);
    let child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line is there once it follows.
    let mut child = child;
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut String::new()).unwrap();
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let ran = child.wait_with_output().unwrap();
    assert_eq!(ran.status.code(), Some(130));
    assert_eq!(
        String::from_utf8(ran.stderr).unwrap(),
        "error: interrupted; nothing was stopped in the cluster; go on watching with: impound watch web-5d4f-x7 -n default\n"
    );
}

/// What a terminal receives: `script` gives the program one.
#[test]
fn a_terminal_shows_bars_with_bytes_rate_and_time_left_and_a_pipe_only_lines() {
    let arguments = ["watch", "collection/web-5d4f-x7"];
    let piped = Fake::start().run(&arguments);
    // Slow enough that a rate is known.
    let fake = Fake::paced(std::time::Duration::from_millis(200));
    assert!(!piped.out.contains('\u{1b}'), "{}", piped.out);
    let program = fake.command(&arguments);
    let mut script = std::process::Command::new("script");
    let words: Vec<_> = std::iter::once(program.get_program())
        .chain(program.get_args())
        .map(|word| word.to_str().unwrap())
        .collect();
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let shown = script
        .env_remove("NO_COLOR")
        .env("TERM", "xterm-256color")
        .args(["-qec", &words.join(" "), "/dev/null"])
        .output()
        .expect("script, of Debian's package bsdutils");
    let shown = String::from_utf8_lossy(&shown.stdout);
    let bar =
        |text: &&str| text.contains("iB of ") && text.contains("/s, ") && text.contains(" left");
    assert!(shown.split('\r').any(|text| bar(&text)), "{shown}");
    assert!(shown.contains('\u{1b}'), "{shown}");
    // What is over stays as a line, in the same words as in a pipe.
    for line in piped.out.lines().filter(|line| line.contains("  stored  ")) {
        let words: Vec<_> = line.split_whitespace().skip(3).collect();
        assert!(
            words.iter().all(|word| shown.contains(word)),
            "{line}\n{shown}"
        );
    }
}
