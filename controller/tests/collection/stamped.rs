//! Collections that a time-stamping authority dates, or would not: openssl behind a small HTTP server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use impound_controller::timestamp::TimestampAuthority;
use impound_evidence::{
    CHECKPOINT_STAMP, CheckpointStamp, DirSource, Event, Given, Outcome, Stamped, verify_watched,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::crashing::{lose_what_was_not_durable, run_again, run_until};
use super::fixture::Fixture;

/// Where the hash and the nonce are in a question.
const IMPRINT: usize = 30;
const NONCE: usize = 60;

/// Operations on the store from the end of collecting on, and some more.
const SEALING: usize = 18;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Good,
    /// Answers a question with this byte changed.
    Changed(usize),
    Garbage,
    Status,
    Silent,
    Endless,
}

struct Authority {
    dir: TempDir,
    url: String,
    mode: Arc<Mutex<Mode>>,
    asked: Arc<AtomicU32>,
}

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/authority.sh");
    let output = Command::new(script).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output.stdout
}

impl Authority {
    async fn new(arguments: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        openssl(&[&["make", dir.path().to_str().unwrap()], arguments].concat());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let authority = Self {
            url: format!("http://{}/tsa", listener.local_addr().unwrap()),
            mode: Arc::new(Mutex::new(Mode::Good)),
            asked: Arc::default(),
            dir,
        };
        let (path, mode) = (authority.dir.path().to_owned(), authority.mode.clone());
        let asked = authority.asked.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                asked.fetch_add(1, Relaxed);
                let mode = *mode.lock().unwrap();
                tokio::spawn(answer(stream, path.clone(), mode));
            }
        });
        authority
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn client(&self) -> TimestampAuthority {
        TimestampAuthority::new(&self.url, &self.root()).unwrap()
    }

    fn ask_for(&self, fixture: &Fixture) {
        *fixture.timestamps.lock().unwrap() = Some(Arc::new(self.client()));
    }
}

async fn answer(mut stream: TcpStream, authority: PathBuf, mode: Mode) {
    let mut request = Vec::new();
    let question = loop {
        let mut part = [0; 4096];
        let n = stream.read(&mut part).await.unwrap();
        assert!(n > 0, "the question breaks off");
        request.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&request).to_lowercase();
        let Some(head) = text.find("\r\n\r\n") else {
            continue;
        };
        assert!(text.starts_with("post /tsa http/1.1\r\n"), "{text}");
        assert!(text.contains("content-type: application/timestamp-query\r\n"));
        // Every question has the same length: version, imprint, nonce, certificates wanted.
        if text.contains("content-length: 69\r\n") && request.len() >= head + 4 + 69 {
            break request.split_off(request.len() - 69);
        }
    };
    let send = async |stream: &mut TcpStream, status: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/timestamp-reply\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).await
    };
    let sent = match mode {
        Mode::Good => {
            let body = reply(&authority, question).await;
            send(&mut stream, "200 OK", &body).await
        }
        Mode::Changed(at) => {
            let mut other = question;
            other[at] ^= 1;
            let body = reply(&authority, other).await;
            send(&mut stream, "200 OK", &body).await
        }
        Mode::Garbage => send(&mut stream, "200 OK", b"<html>It works!</html>").await,
        Mode::Status => send(&mut stream, "503 Service Unavailable", b"").await,
        Mode::Silent => std::future::pending().await,
        Mode::Endless => send(&mut stream, "200 OK", &vec![b'x'; 1 << 20]).await,
    };
    // Whoever asked may have hung up.
    drop(sent);
}

async fn reply(authority: &Path, question: Vec<u8>) -> Vec<u8> {
    let authority = authority.to_owned();
    let run = move || {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), question).unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        openssl(&["reply", &path(&authority), &path(file.path())])
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn stamped(fixture: &Fixture, authority: &Authority) -> Option<Stamped> {
    let source = DirSource::open(fixture.collection()).unwrap();
    let keys = [fixture.key.verifying_key().clone()];
    let trusted = authority.client().trusted();
    let verdict = verify_watched(
        &source,
        &keys,
        &Given {
            authority: Some(trusted),
            ..Given::default()
        },
        &|_| (),
    );
    assert!(verdict.intact(), "{:?}", verdict.problems);
    verdict.timestamp
}

#[tokio::test]
async fn an_authority_dates_what_is_sealed_and_openssl_agrees() {
    for kind in ["rsa", "ec"] {
        let (fixture, authority) = (Fixture::small().await, Authority::new(&[kind]).await);
        authority.ask_for(&fixture);
        let sealed = fixture.run().await.unwrap();
        assert_eq!(
            (sealed.outcome, sealed.missing),
            (Outcome::Complete, vec![])
        );
        let Some(Stamped::Good { time }) = stamped(&fixture, &authority) else {
            panic!("{kind}: {:?}", stamped(&fixture, &authority));
        };
        let manifest = fixture.manifest();
        let late = time.to_utc() - manifest.created.to_utc();
        assert!(late.whole_seconds().abs() < 60, "{kind}: {late}");
        let Some(CheckpointStamp::Token { authority: url, .. }) = manifest.timestamp else {
            panic!("{:?}", manifest.timestamp);
        };
        assert_eq!(url, authority.url);
        assert_eq!(authority.asked.load(Relaxed), 1);
        assert_eq!(fixture.events(Event::Failed), 0);

        let key = fixture.dir.path().join("evidence.pub");
        std::fs::write(&key, fixture.key.verifying_key().to_pem().unwrap()).unwrap();
        let script = Command::new("bash")
            .arg(fixture.collection().join("verify.sh"))
            .arg("--timestamp-ca")
            .args([&authority.root(), &fixture.collection(), &key])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&script.stdout);
        assert!(
            script.status.success() && said.contains("; dated 20"),
            "{said}{}",
            String::from_utf8_lossy(&script.stderr)
        );

        // Sealed is sealed: nobody is asked again.
        let token = fixture.file(CHECKPOINT_STAMP);
        fixture.run().await.unwrap();
        assert_eq!(fixture.file(CHECKPOINT_STAMP), token);
        assert_eq!(authority.asked.load(Relaxed), 1);
    }
}

#[tokio::test]
async fn without_a_good_answer_the_manifest_and_the_log_say_why_there_is_no_timestamp() {
    let authority = Authority::new(&["ec"]).await;
    let expired = Authority::new(&["ec", "20240101000000Z", "20240201000000Z"]).await;
    let other = Authority::new(&["rsa"]).await;
    let good = |patience: u64| {
        let client = authority.client();
        client.with_patience(Duration::from_millis(patience))
    };
    let down = format!("http://127.0.0.1:{}/tsa", free_port().await);
    let cases = [
        (
            Mode::Garbage,
            good(9000),
            "expected an answer of a time-stamping authority in DER",
        ),
        (
            Mode::Changed(NONCE),
            good(9000),
            "has not the nonce of the question",
        ),
        (
            Mode::Changed(IMPRINT),
            good(9000),
            "expected a time-stamp of SHA-256",
        ),
        (
            Mode::Status,
            good(9000),
            "got HTTP status 503 Service Unavailable",
        ),
        (
            Mode::Endless,
            good(9000),
            "its answer breaks off: length limit exceeded",
        ),
        (Mode::Silent, good(300), "did not answer within 0.3 s"),
        (Mode::Good, expired.client(), "a certificate had expired at"),
        (
            Mode::Good,
            TimestampAuthority::new(&authority.url, &other.root()).unwrap(),
            "no way leads to a given certificate",
        ),
        (
            Mode::Good,
            TimestampAuthority::new(&down, &authority.root()).unwrap(),
            "tcp connect error",
        ),
    ];
    for (mode, client, expected) in cases {
        let fixture = Fixture::small().await;
        authority.set(mode);
        let before = authority.asked.load(Relaxed);
        *fixture.timestamps.lock().unwrap() = Some(Arc::new(client));
        let begun = Instant::now();
        let sealed = fixture.run().await.unwrap();
        assert_eq!(sealed.outcome, Outcome::Complete, "{mode:?}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{mode:?}");
        assert!(
            authority.asked.load(Relaxed) <= before + 1,
            "{mode:?}: asked again"
        );
        let Some(CheckpointStamp::None { reason }) = fixture.manifest().timestamp else {
            panic!("{mode:?}: {:?}", fixture.manifest().timestamp);
        };
        assert!(reason.contains(expected), "{mode:?}: {reason}");
        assert!(!fixture.files().contains(&CHECKPOINT_STAMP.to_owned()));
        let log = fixture.custody();
        let failed: Vec<_> = log
            .iter()
            .filter(|entry| entry.event == Event::Failed)
            .collect();
        assert_eq!(failed.len(), 1, "{mode:?}");
        assert_eq!(failed[0].what, "the timestamp of the checkpoint");
        assert_eq!(failed[0].why.as_ref(), Some(&reason));
        assert_eq!(
            stamped(&fixture, &authority),
            Some(Stamped::None { reason })
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_operation_while_it_seals_the_answer_that_came_first_counts() {
    let authority = Authority::new(&["ec"]).await;
    let (mut dated, mut not) = (0, 0);
    let all = operations(&authority).await;
    for (first, after) in [(Mode::Good, true), (Mode::Garbage, true)] {
        // What comes before the seal is killed elsewhere.
        for allowed in all - SEALING..all {
            let fixture = Fixture::small().await;
            authority.ask_for(&fixture);
            authority.set(first);
            run_until(&fixture, allowed, after).await;
            lose_what_was_not_durable(&fixture).await;
            let before = std::fs::read(fixture.collection().join(CHECKPOINT_STAMP)).ok();
            // Another answer than the first time; it must make no difference to what is there.
            authority.set(match first {
                Mode::Good => Mode::Garbage,
                _ => Mode::Good,
            });
            run_again(&fixture).await;
            let place = format!("{first:?}, killed at operation {allowed}, after: {after}");
            match stamped(&fixture, &authority) {
                Some(Stamped::Good { .. }) => dated += 1,
                Some(Stamped::None { .. }) => {
                    assert_eq!(before, None, "{place}");
                    not += 1;
                }
                other => panic!("{place}: {other:?}"),
            }
            if let Some(token) = before {
                assert_eq!(fixture.file(CHECKPOINT_STAMP), token, "{place}");
            }
        }
    }
    assert!(dated > 10 && not > 10, "dated {dated}, not {not}");
}

/// Operations on the store of a whole collection.
async fn operations(authority: &Authority) -> usize {
    let (mut few, mut enough) = (0, 1024);
    while enough - few > 1 {
        let middle = (few + enough) / 2;
        let fixture = Fixture::small().await;
        authority.ask_for(&fixture);
        match run_until(&fixture, middle, false).await {
            true => enough = middle,
            false => few = middle,
        }
    }
    enough
}

/// Nobody listens there.
async fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}
