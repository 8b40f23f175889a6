//! The program as its users run it, against a controller with canned answers over real mutual TLS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

mod collection;
#[path = "../../../evidence/tests/foreign/corpus.rs"]
#[allow(
    dead_code,
    reason = "what an index makes of them is the evidence crate's to test"
)]
mod corpus;
mod custody;
mod doctor;
mod encrypted;
mod evidence;
mod extract;
mod fake;
mod hostile;
mod hostile_tar;
mod layer;
mod network;
mod quarantine;
mod refusals;
mod report;
mod snapshot;
mod story;
mod sweep;
#[path = "../../../evidence/tests/foreign/tars.rs"]
#[allow(dead_code, reason = "as above")]
mod tars;
mod verify;

/// To look at the program on a terminal:
/// `cargo test -p impound-cli --test cli -- --ignored serve --nocapture`
#[test]
#[ignore = "serves until it is killed"]
fn serve() {
    let fake = fake::Fake::paced(std::time::Duration::from_millis(700));
    let tls = fake.pki.path().join("responders/ada");
    println!(
        "export IMPOUND_CONTROLLER={} IMPOUND_TLS_DIR={}",
        fake.address,
        tls.display()
    );
    println!("key: {}", fake.public_key().display());
    loop {
        std::thread::park();
    }
}
