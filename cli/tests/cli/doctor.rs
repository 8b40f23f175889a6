//! `impound doctor`: what is found, what to do, and the exit code.

use crate::fake::Fake;
use crate::snapshot;

#[test]
fn a_doctor_says_what_to_do_and_ends_with_1_if_something_failed() {
    let fake = Fake::start();
    let ran = fake.run(&["doctor"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    snapshot::compare("doctor.txt", &ran.out);
    let ran = fake.run(&["doctor", "-o", "json"]);
    assert_eq!(ran.code, 1);
    let found: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let failed = found.as_array().unwrap().iter();
    assert_eq!(failed.filter(|check| check["state"] == "failed").count(), 1);
}

#[test]
fn a_token_takes_the_place_of_a_certificate_and_a_file_without_one_is_told_of() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let ca = fake.pki.path().join("ca/controller-ca.crt");
    std::fs::copy(ca, dir.path().join("controller-ca.crt")).unwrap();
    let run = || {
        let mut command = fake.command(&["list", "--token-file", token.to_str().unwrap()]);
        let output = command.env("IMPOUND_TLS_DIR", dir.path()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    };
    let (code, said) = run();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("No such file"), "{said}");
    std::fs::write(&token, "two tokens\n").unwrap();
    let (code, said) = run();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("expected one token"), "{said}");
    // This controller wants certificates only: the connection is refused, not the command line.
    std::fs::write(&token, "good\n").unwrap();
    let (code, said) = run();
    assert_eq!(code, 5, "{said}");
    assert!(!said.contains("good"), "no token in a message: {said}");
}
