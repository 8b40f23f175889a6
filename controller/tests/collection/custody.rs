//! A case's custody log between several replicas: each knows it, reads only what is new, and none can fill it.

use std::sync::{Arc, Mutex};

use impound_controller::seal::{CustodyAppender, SealError, log_of};
use impound_evidence::{CaseId, CustodyError, ENTRY_LIMIT, Entry, Event};

use impound_proto::PeerId;

use super::fixture::Fixture;
use super::interrupted::{Interrupted, Operation};

fn case() -> CaseId {
    "INC-1".parse().unwrap()
}

fn entry(event: Event, who: &str, what: &str) -> Entry {
    Entry::new(event, who, what)
}

/// A replica, and from which bytes on it read the log.
fn replica(fixture: &Fixture) -> (CustodyAppender, Arc<Mutex<Vec<u64>>>) {
    let reads = Arc::<Mutex<Vec<u64>>>::default();
    let seen = Arc::clone(&reads);
    let store = Interrupted::refusing(fixture.store(), move |operation| {
        if let Operation::Read("custody.jsonl", from) = operation {
            seen.lock().unwrap().push(from);
        }
        false
    });
    (fixture.appender(Arc::new(store)), reads)
}

#[tokio::test]
async fn of_what_another_replica_wrote_only_that_is_read() {
    let fixture = Fixture::empty().await;
    let ((ours, reads), (theirs, _)) = (replica(&fixture), replica(&fixture));
    for n in 0..20 {
        let entries = vec![entry(Event::Accessed, "ada", &format!("file {n}"))];
        ours.append_to_case(&case(), entries).await.unwrap();
    }
    assert_eq!(*reads.lock().unwrap(), [0], "once, when there was nothing");
    let known = fixture.log().len() as u64;
    let theirs_is = entry(Event::Contained, "controller", "theirs");
    theirs
        .append_to_case(&case(), vec![theirs_is])
        .await
        .unwrap();
    let last = entry(Event::Released, "controller", "ours");
    let head = ours.append_to_case(&case(), vec![last]).await.unwrap();
    assert_eq!(head.size, 22);
    assert_eq!(*reads.lock().unwrap(), [0, known]);
    let of_case = ours.of_case(&case()).await.unwrap();
    assert_eq!(of_case.len(), 22);
    assert_eq!(of_case[20].what, "theirs");
    assert_eq!(ours.settle(&case()).await.unwrap(), head);
    let from: Vec<u64> = reads.lock().unwrap().split_off(2);
    assert!(from.iter().all(|from| *from > known), "{from:?}");
}

#[tokio::test]
async fn a_log_that_is_shorter_than_it_was_known_to_be_is_not_continued() {
    let fixture = Fixture::empty().await;
    let (ours, _) = replica(&fixture);
    for n in 0..4 {
        let entries = vec![entry(Event::Accessed, "ada", &format!("file {n}"))];
        ours.append_to_case(&case(), entries).await.unwrap();
    }
    let at = log_of(&case()).unwrap();
    let directory = fixture.dir.path().join("store").join(at.to_string());
    let log = fixture.log();
    let half = log.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    std::fs::write(directory.join("custody.jsonl"), &log[..half]).unwrap();
    std::fs::remove_file(directory.join("custody.checkpoint")).unwrap();
    let refused = ours
        .append_to_case(&case(), vec![entry(Event::Accessed, "ada", "more")])
        .await
        .unwrap_err();
    let cut = |error: &SealError| {
        matches!(
            error,
            SealError::Log {
                source: CustodyError::Cut {
                    entries: 1,
                    covered: 4
                },
                ..
            }
        )
    };
    assert!(cut(&refused), "{refused}");
    assert_eq!(fixture.log(), log[..half]);
}

#[tokio::test]
async fn whoever_reads_evidence_can_not_fill_the_log_so_that_nothing_can_be_sealed() {
    let fixture = Fixture::empty().await;
    // What is kept for collections that are begun, and 2000 bytes.
    let appender = fixture
        .appender(fixture.store())
        .with_limit((32 << 20) + 2000, ENTRY_LIMIT);
    let mut read = 0;
    let refused = loop {
        let entries = vec![entry(Event::Accessed, "ada", "export.tar")];
        match appender.append_to_case(&case(), entries).await {
            Ok(_) => read += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SealError::Full { .. }), "{refused}");
    assert!(refused.to_string().contains("go on with another case"));
    assert!(read > 3);
    for event in [Event::Read, Event::Stored, Event::Verified, Event::Sealed] {
        let of = vec![entry(event, &PeerId::Controller.to_string(), "export.tar")];
        let of = appender.append_all(&fixture.id(), of).await;
        assert_eq!(of.unwrap().size, {
            read += 1;
            read
        });
    }
}
