//! Everything that is refused, here or by the controller: what is said, and with which exit code.

use crate::fake::{Fake, Ran, impound};

fn locally(arguments: &[&str]) -> Ran {
    Ran::from(impound(arguments).output().unwrap())
}

#[test]
fn errors_of_the_controller_are_told_with_their_exit_code() {
    let fake = Fake::start();
    let quarantine = |pod| fake.run(&["quarantine", pod, "--case", "INC-7", "--reason", "r"]);
    for (pod, code, said) in [
        (
            "denied-1",
            4,
            "error: not permitted: quarantine needs the role responder, and your certificate has the role viewer\n",
        ),
        (
            "twice-1",
            4,
            "error: exists already: pod default/twice-1 is quarantined already by default/twice-1 (case INC-2)\n",
        ),
        (
            "gone-1",
            6,
            "error: not found: there is no pod default/gone-1\n",
        ),
    ] {
        let ran = quarantine(pod);
        assert_eq!(
            (ran.code, ran.err.as_str(), ran.out.as_str()),
            (code, said, "")
        );
    }
    let ran = fake.run(&["watch", "gone-1"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (6, "error: not found: there is no pod default/gone-1\n")
    );
    let ran = fake.run(&["containers", "worker9"]);
    assert_eq!(ran.code, 5);
    assert!(
        ran.err.starts_with(
            "error: the agent of node worker9 does not answer: connection refused; check"
        ),
        "{}",
        ran.err
    );
}

#[test]
fn a_controller_that_is_not_there_is_told_with_its_address() {
    let fake = Fake::start();
    let mut command = fake.command(&["list"]);
    // Port 1 is nobody's.
    let ran = Ran::from(
        command
            .env("IMPOUND_CONTROLLER", "127.0.0.1:1")
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(
        ran.err
            .starts_with("error: the controller could not be reached: ")
            && ran
                .err
                .contains("could not connect to spiffe://impound.dev/controller at 127.0.0.1:1")
            && ran.err.contains("refused"),
        "{}",
        ran.err
    );
}

#[test]
fn a_controller_of_another_installation_is_not_talked_to() {
    let (ours, theirs) = (Fake::start(), Fake::start());
    let mut command = ours.command(&["list"]);
    let ran = Ran::from(
        command
            .env("IMPOUND_CONTROLLER", &theirs.address)
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(
        ran.err
            .contains("no TLS connection to spiffe://impound.dev/controller"),
        "{}",
        ran.err
    );
}

#[test]
fn what_is_missing_for_a_connection_is_named() {
    let ran = locally(&["list"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (
            2,
            "error: the controller's address is not known: give --controller HOST:PORT or set IMPOUND_CONTROLLER\n"
        )
    );
    let ran = locally(&["list", "--controller", "127.0.0.1:1"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (
            2,
            "error: the directory with your certificate is not known: give --tls-dir DIR or set IMPOUND_TLS_DIR\n"
        )
    );
    let ran = locally(&[
        "list",
        "--controller",
        "127.0.0.1:1",
        "--tls-dir",
        "/nonexistent",
    ]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("your certificate can't be used") && ran.err.contains("/nonexistent"),
        "{}",
        ran.err
    );
}

#[test]
fn a_wrong_command_line_exits_with_2_and_says_what_was_expected() {
    for (arguments, said) in [
        (
            &["quarantine", "web", "--case", "../x", "--reason", "r"][..],
            "case id: expected 1 to 63 letters",
        ),
        (
            &[
                "quarantine",
                "deployment/web",
                "--case",
                "c",
                "--reason",
                "r",
            ],
            "expected a pod, got a \"deployment\"",
        ),
        (
            &["quarantine", "web", "--case", "c", "--reason", " "],
            "expected 1 to 1024 characters, got 0",
        ),
        (&["quarantine", "web", "--case", "c"], "--reason <TEXT>"),
        (
            &[
                "quarantine",
                "web",
                "--case",
                "c",
                "--reason",
                "r",
                "--dry-run",
                "--wait",
            ],
            "cannot be used with",
        ),
        (
            &["evidence", "get", "c", "x", "../../etc/passwd"],
            "evidence path: expected a relative path",
        ),
        (&["pki", "init", "x", "--responder", "ada:root"], "role"),
        (
            &["status", "node/x"],
            "expected NAME, pod/NAME, quarantine/NAME or collection/NAME",
        ),
    ] {
        let ran = locally(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}");
        assert!(ran.err.contains(said), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn help_names_every_exit_code_and_the_plugin_its_own_name() {
    let ran = locally(&["--help"]);
    assert_eq!(ran.code, 0);
    for code in ["0", "1", "2", "3", "4", "5", "6", "130"] {
        let line = format!("{code:>3}  ");
        assert!(
            ran.out.lines().any(|text| text.starts_with(&line)),
            "{code} is not in {}",
            ran.out
        );
    }
    let asked = locally(&["help", "quarantine"]);
    assert_eq!(asked.code, 0, "{asked:?}");
    assert!(asked.out.contains("--dry-run"), "{asked:?}");
    // kubectl finds it by its name in PATH.
    let plugin = std::path::Path::new(env!("CARGO_BIN_EXE_kubectl-impound"));
    let path = format!(
        "{}:{}",
        plugin.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let run = std::process::Command::new("kubectl")
        .env("PATH", path)
        .args(["impound", "watch", "--help"])
        .output()
        .expect("kubectl, of Debian's package kubernetes-client");
    let out = String::from_utf8(run.stdout).unwrap();
    assert!(out.contains("Usage: kubectl impound watch"), "{out}");
}

#[test]
fn completion_scripts_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = locally(&["completion", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains("quarantine"), "{shell}");
    }
}

/// As kubectl runs it: by its name in PATH, which is a link's, with the words behind `impound`.
#[test]
fn under_the_name_that_kubectl_looks_for_the_plugin_completes_its_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("kubectl_complete-impound");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kubectl-impound"), &link).unwrap();
    let completed = |words: &[&str]| {
        let run = std::process::Command::new(&link).args(words).output();
        let ran = Ran::from(run.unwrap());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{words:?}");
        ran.out
    };
    assert_eq!(
        completed(&["evidence", "get", "--t"]),
        "--to\tWhere to [default: CASE/COLLECTION in the working directory]; without a collection DIR/CASE/COLLECTION\n\
         --tls-dir\tDirectory with your tls.crt, tls.key and controller-ca.crt\n\
         --token-file\tInstead of a certificate: file with a Kubernetes token of the audience impound.dev/controller. The TLS directory then needs controller-ca.crt only\n:4\n"
    );
    assert_eq!(
        completed(&["-o", "y"]),
        "yaml\tOne YAML document; progress goes to standard error\n:4\n"
    );
    assert_eq!(completed(&["verify", "INC-7"]), ":16\n");
    assert_eq!(completed(&["verify", "--key", "evidence"]), ":0\n");
    let first = "quarantine\tContain a pod, move its neighbours away, collect its evidence\n";
    assert!(completed(&[""]).starts_with(first));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = impound(&["completion", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn pki_init_writes_once_and_keeps() {
    let directory = tempfile::tempdir().unwrap();
    let pki = directory.path().to_str().unwrap();
    let arguments = [
        "pki",
        "init",
        pki,
        "--node",
        "worker1",
        "--responder",
        "ada:responder",
        "--responder",
        "lab:custodian",
        "--controller-address",
        "impound.example.com",
        "--days",
        "30",
    ];
    let first = locally(&arguments);
    assert_eq!((first.code, first.err.as_str()), (0, ""), "{first:?}");
    assert!(
        first
            .out
            .lines()
            .skip(1)
            .all(|line| line.ends_with("created")),
        "{}",
        first.out
    );
    for file in [
        "agents/worker1/tls.key",
        "responders/lab/tls.crt",
        "signing/evidence.pub",
        "ca/agent-ca.key",
    ] {
        assert!(directory.path().join(file).is_file(), "{file}");
    }
    let again = locally(&arguments);
    assert!(
        again.out.lines().skip(1).all(|line| line.ends_with("kept")),
        "{}",
        again.out
    );
}
