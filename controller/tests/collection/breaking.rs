//! What breaks on the way: nothing of it may be claimed, lost or passed over in silence.

use impound_controller::collect::CollectError;
use impound_controller::progress::ArtifactState;
use impound_controller::store::StoreError;
use impound_evidence::{AlterationKind, Completeness, Entry, Event, Outcome};
use tonic::Code;

use super::agent::Fault;
use super::fixture::{DIRECTORY, EXPORT_LISTINGS, Fixture, IMAGE_LISTINGS, NODE, POD, names, pod};

/// Paths of the one container's export and image archive.
fn paths(fixture: &Fixture) -> (String, String) {
    let id = fixture.agent.state.lock().unwrap().containers[0].id.clone();
    let (export, image) = names("app", &id);
    (
        format!("{DIRECTORY}/app/{export}"),
        format!("{DIRECTORY}/app/{image}"),
    )
}

#[tokio::test]
async fn an_export_that_breaks_is_repeated_and_what_came_is_kept() {
    let faults = [
        (Fault::BreakAfter(20), Some(20_000)),
        (Fault::NoTrailer, Some(51_712)),
        (Fault::WrongDigest, Some(51_712)),
        (Fault::WrongSize, Some(51_712)),
        (Fault::Gap, Some(1_000)),
        (Fault::ErrorBehindTrailer, Some(51_712)),
        (Fault::Truncated, Some(25_856)),
        (Fault::TruncatedSilently, Some(25_856)),
        (Fault::BreakAfter(0), None),
        (Fault::Status(Code::Unavailable), None),
    ];
    for (fault, kept) in faults {
        let fixture = Fixture::new().await;
        let (export, _) = paths(&fixture);
        fixture.agent.fail("export", fault.clone());
        let sealed = fixture.run().await.unwrap();
        let manifest = fixture.manifest();
        assert_eq!(fixture.state(&export), ArtifactState::Stored, "{fault:?}");
        let partial = manifest
            .artifacts
            .iter()
            .find(|record| record.path.as_str() == format!("{export}.partial-1"));
        assert_eq!(partial.map(|record| record.size), kept, "{fault:?}");
        assert!(partial.is_none_or(|record| !record.completeness.is_complete()));
        // What broke is beside what is whole, and takes nothing from it.
        assert_eq!(sealed.outcome, Outcome::Complete, "{fault:?}");
        assert!(
            sealed.missing.is_empty() && fixture.verdict().complete(),
            "{fault:?}"
        );
        assert_eq!(fixture.events(Event::Failed), 1, "{fault:?}");
        let whole = manifest
            .artifacts
            .iter()
            .find(|record| record.path.as_str() == export)
            .unwrap();
        assert_eq!(whole.completeness, Completeness::Complete);
    }
}

#[tokio::test]
async fn after_the_last_attempt_the_artifact_is_missing_and_everything_else_is_there() {
    let fixture = Fixture::new().await;
    let (export, image) = paths(&fixture);
    for _ in 0..3 {
        fixture.agent.fail("export", Fault::Truncated);
    }
    let sealed = fixture.run().await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Partial);
    let manifest = fixture.manifest();
    assert_eq!(manifest.missing.len(), 1);
    assert_eq!(manifest.missing[0].path.as_str(), export);
    assert!(
        manifest.missing[0].reason.contains("middle of a member"),
        "{}",
        manifest.missing[0].reason
    );
    assert_eq!(fixture.state(&export), ArtifactState::Incomplete);
    assert_eq!(fixture.state(&image), ArtifactState::Stored);
    let partials = |of: &str| {
        let files = fixture.files();
        let begin = format!("{of}.partial-");
        files.iter().filter(|file| file.starts_with(&begin)).count()
    };
    assert_eq!(partials(&export), 3);
    // What was seen of each is listed, and the listing says of which. The one file broke off, so
    // there are no hashes.
    for name in EXPORT_LISTINGS
        .iter()
        .filter(|name| !name.starts_with("hashes"))
    {
        assert_eq!(partials(&format!("{export}.{name}")), 3, "{name}");
    }
    for n in 1..=3 {
        let path = format!("{export}.index.json.partial-{n}");
        let index: serde_json::Value = serde_json::from_slice(&fixture.file(&path)).unwrap();
        assert_eq!(index["completeness"]["state"], "incomplete");
        let record = manifest
            .artifacts
            .iter()
            .find(|record| record.path.as_str() == path);
        assert_eq!(
            record.unwrap().derived_from[0].as_str(),
            index["of"].as_str().unwrap()
        );
        assert_eq!(index["of"], format!("{export}.partial-{n}"));
    }
    assert_eq!(sealed.missing.len(), 4);
}

#[tokio::test]
async fn a_diff_that_breaks_is_repeated() {
    for fault in [
        Fault::BreakAfter(1),
        Fault::NoTrailer,
        Fault::WrongDigest,
        Fault::WrongSize,
        Fault::Gap,
    ] {
        let fixture = Fixture::new().await;
        fixture.agent.fail("diff", fault.clone());
        fixture.run().await.unwrap();
        let manifest = fixture.manifest();
        let of = |name: &str| {
            manifest
                .artifacts
                .iter()
                .filter(|record| record.path.as_str().contains(name))
                .count()
        };
        assert_eq!((of("diff.txt"), of("diff.jsonl")), (2, 2), "{fault:?}");
        assert!(
            fixture
                .file(&format!("{DIRECTORY}/app/diff.txt"))
                .starts_with(b"C /tmp\nA /tmp/dropped")
        );
    }
}

#[tokio::test]
async fn a_broken_save_leaves_no_partial_because_the_image_stands_still() {
    let fixture = Fixture::new().await;
    fixture.agent.fail("save", Fault::BreakAfter(3));
    fixture.agent.fail("save", Fault::WrongDigest);
    assert_eq!(fixture.run().await.unwrap().outcome, Outcome::Complete);
    assert!(fixture.verdict().complete());
    assert!(fixture.agent.state.lock().unwrap().images.is_empty());
}

#[tokio::test]
async fn an_image_that_cannot_be_saved_is_not_left_behind_in_silence() {
    let fixture = Fixture::new().await;
    let (_, image) = paths(&fixture);
    for _ in 0..3 {
        fixture.agent.fail("save", Fault::BreakAfter(3));
    }
    let sealed = fixture.run().await.unwrap();
    assert_eq!(sealed.warnings.len(), 1);
    assert!(
        sealed.warnings[0].contains("may be on node worker2"),
        "{}",
        sealed.warnings[0]
    );
    let manifest = fixture.manifest();
    assert_eq!(manifest.missing[0].path.as_str(), image);
    assert_eq!(
        manifest
            .alterations
            .iter()
            .map(|done| done.kind)
            .collect::<Vec<_>>(),
        [AlterationKind::Commit]
    );
    assert!(
        fixture.files().contains(&format!("{image}.partial-1")),
        "the last attempt's bytes are kept"
    );
}

#[tokio::test]
async fn an_image_that_cannot_be_removed_is_reported() {
    let fixture = Fixture::new().await;
    for _ in 0..3 {
        fixture
            .agent
            .fail("remove", Fault::Status(Code::Unavailable));
    }
    let sealed = fixture.run().await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Complete);
    assert!(
        sealed.warnings[0].contains("could not be removed from node worker2"),
        "{:?}",
        sealed.warnings
    );
    assert_eq!(fixture.events(Event::Failed), 1);
}

#[tokio::test]
async fn the_image_of_another_collection_is_not_touched() {
    let fixture = Fixture::new().await;
    let id = fixture.agent.state.lock().unwrap().containers[0].id.clone();
    let other = format!("compromised-app-{}:another-collection", &id[..12]);
    let images = || fixture.agent.state.lock().unwrap().images.clone();
    fixture
        .agent
        .state
        .lock()
        .unwrap()
        .images
        .insert(other.clone(), b"theirs".to_vec());
    assert_eq!(fixture.run().await.unwrap().outcome, Outcome::Complete);
    assert_eq!(
        images().into_iter().collect::<Vec<_>>(),
        [(other, b"theirs".to_vec())]
    );
}

#[tokio::test]
async fn an_image_whose_commit_was_never_answered_is_saved() {
    let fixture = Fixture::new().await;
    fixture.agent.fail("commit", Fault::BreakAfter(0));
    assert_eq!(fixture.run().await.unwrap().outcome, Outcome::Complete);
    assert!(fixture.agent.state.lock().unwrap().images.is_empty());
    let made = &fixture.manifest().alterations[0];
    assert_eq!((made.kind, made.started), (AlterationKind::Commit, None));
    assert!(
        made.effect.contains("the answer was lost"),
        "{}",
        made.effect
    );
}

#[tokio::test]
async fn an_image_of_another_id_than_the_committed_one_is_refused() {
    let fixture = Fixture::new().await;
    let (_, image) = paths(&fixture);
    for _ in 0..3 {
        fixture.agent.fail("save", Fault::OtherSource);
    }
    let sealed = fixture.run().await.unwrap();
    assert_eq!(fixture.state(&image), ArtifactState::Failed);
    assert!(
        sealed.warnings[0].contains("may be on node worker2"),
        "{:?}",
        sealed.warnings
    );
    assert_eq!(
        fixture.agent.state.lock().unwrap().images.len(),
        1,
        "it may be the only copy"
    );
}

#[tokio::test]
async fn a_full_store_costs_the_large_artifacts_and_still_seals() {
    let mut fixture = Fixture::new().await;
    fixture.agent.add(POD, "large", 0, 40 << 20);
    let _mount = fixture.mount_store("size=24m");
    let sealed = fixture.run().await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Partial);
    let manifest = fixture.manifest();
    assert_eq!(manifest.missing.len(), 2, "{:?}", manifest.missing);
    for missing in &manifest.missing {
        assert!(
            missing.path.as_str().contains("/large/"),
            "{}",
            missing.path
        );
        assert!(
            missing.reason.contains("the store has no room"),
            "{}",
            missing.reason
        );
    }
    assert!(
        fixture
            .files()
            .iter()
            .all(|file| !file.contains(".tmp-") && !file.contains(".partial-"))
    );
    assert!(
        sealed.warnings[0].contains("compromised-large"),
        "{:?}",
        sealed.warnings
    );
}

#[tokio::test]
async fn an_agent_that_has_no_place_for_another_stream_is_waited_for() {
    let fixture = Fixture::small().await;
    for call in ["export", "save_image"] {
        for _ in 0..7 {
            fixture
                .agent
                .fail(call, Fault::Status(Code::ResourceExhausted));
        }
    }
    let sealed = fixture.run().await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Complete, "{:?}", sealed.missing);
    assert_eq!(fixture.events(Event::Failed), 0);
}

#[tokio::test]
async fn a_node_without_room_for_an_image_costs_only_the_image() {
    let fixture = Fixture::new().await;
    let (export, image) = paths(&fixture);
    fixture
        .agent
        .fail("commit", Fault::Status(Code::ResourceExhausted));
    fixture.run().await.unwrap();
    assert_eq!(
        (fixture.state(&export), fixture.state(&image)),
        (ArtifactState::Stored, ArtifactState::Failed)
    );
    assert_eq!(fixture.manifest().missing[0].path.as_str(), image);
    assert_eq!(
        fixture
            .agent
            .calls()
            .iter()
            .filter(|call| call.starts_with("commit"))
            .count(),
        1
    );
}

#[tokio::test]
async fn a_container_that_is_gone_is_missing_and_asked_for_once() {
    let fixture = Fixture::new().await;
    let gone = fixture.agent.add(POD, "gone", 0, 100);
    fixture.agent.lose(&gone);
    let sealed = fixture.run().await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Partial);
    let manifest = fixture.manifest();
    assert_eq!(manifest.missing.len(), 5, "{:#?}", manifest.missing);
    assert!(
        manifest
            .missing
            .iter()
            .all(|missing| missing.reason.contains(&format!("no container {gone}")))
    );
    // And the timeline.
    let listings = EXPORT_LISTINGS.len() + IMAGE_LISTINGS.len() + 1;
    let there = manifest.artifacts.len() - listings;
    assert_eq!(there, 7, "the other container is there");
    // A failure of the quick stage is tried again in the full stage.
    assert_eq!(
        fixture
            .agent
            .calls()
            .iter()
            .filter(|call| **call == format!("export {gone}"))
            .count(),
        1
    );
    assert_eq!(
        fixture
            .progress
            .borrow()
            .quick
            .as_ref()
            .unwrap()
            .failures
            .len(),
        3
    );
}

#[tokio::test]
async fn an_answer_about_another_container_is_refused() {
    let fixture = Fixture::new().await;
    for _ in 0..4 {
        fixture.agent.fail("export", Fault::OtherSource);
    }
    fixture.run().await.unwrap();
    assert!(
        fixture.manifest().missing[0]
            .reason
            .contains("the agent answered with \"other\"")
    );
}

#[tokio::test]
async fn an_agent_that_is_down_makes_the_collection_partial_and_says_which_node() {
    let fixture = Fixture::new().await;
    fixture.server.lock().unwrap().abort();
    *fixture.nodes.0.lock().unwrap() = 1;
    let mut job = fixture.job();
    job.neighbours.push(pod(("data", "db", "uid-db")));
    let sealed = fixture.run_job(job).await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Partial);
    let manifest = fixture.manifest();
    assert_eq!(manifest.missing.len(), 2);
    for missing in &manifest.missing {
        assert!(
            missing.reason.contains(NODE) && missing.reason.contains("127.0.0.1:1"),
            "{}",
            missing.reason
        );
        assert!(
            missing.reason.contains("Connection refused"),
            "{}",
            missing.reason
        );
    }
    assert_eq!(
        manifest.artifacts.len(),
        3,
        "the timeline, the script and the Kubernetes objects are kept all the same"
    );
    assert_eq!(
        fixture
            .progress
            .borrow()
            .quick
            .as_ref()
            .unwrap()
            .failures
            .len(),
        2
    );
}

#[tokio::test]
async fn an_agent_with_another_nodes_certificate_gets_no_call() {
    let fixture = Fixture::new().await;
    let (port, _server) = fixture.agent.serve(&fixture.pki("agents/other")).await;
    *fixture.nodes.0.lock().unwrap() = port;
    assert_eq!(fixture.run().await.unwrap().outcome, Outcome::Partial);
    let reason = &fixture.manifest().missing[0].reason;
    assert!(
        reason.contains("worker2.agent.impound.internal"),
        "{reason}"
    );
    assert!(fixture.agent.calls().is_empty());
}

#[tokio::test]
async fn an_agent_that_comes_back_is_reached_again() {
    let fixture = Fixture::new().await;
    fixture
        .agent
        .fail("export", Fault::Status(Code::Unavailable));
    fixture.agent.fail("info", Fault::Status(Code::Unavailable));
    assert_eq!(fixture.run().await.unwrap().outcome, Outcome::Complete);
}

#[tokio::test]
async fn a_file_that_somebody_put_there_stops_the_seal() {
    let fixture = Fixture::new().await;
    let planted = fixture.collection().join("artifacts");
    std::fs::create_dir_all(&planted).unwrap();
    std::fs::write(planted.join("planted.json"), b"{}").unwrap();
    let refused = fixture.run().await.unwrap_err();
    assert!(matches!(refused, CollectError::Foreign { .. }), "{refused}");
    assert!(!refused.is_transient());
    assert!(!fixture.files().contains(&"manifest.json".to_owned()));
}

#[tokio::test]
async fn a_collection_of_that_name_of_somebody_else_is_left_alone() {
    let fixture = Fixture::new().await;
    fixture.run().await.unwrap();
    let before = fixture.log();
    let mut job = fixture.job();
    job.reason = "another reason".into();
    let refused = fixture.run_job(job).await.unwrap_err();
    assert!(
        matches!(refused, CollectError::OtherRequest { .. }),
        "{refused}"
    );
    assert_eq!(fixture.log(), before);
}

#[tokio::test]
async fn who_gives_up_on_a_name_that_is_somebody_elses_writes_nothing_into_their_log() {
    let fixture = Fixture::new().await;
    fixture.run().await.unwrap();
    let before = fixture.log();
    let collector = fixture.collector(fixture.store());
    let mut others = [fixture.begun(), fixture.begun(), fixture.begun()];
    others[0].reason = "another reason".into();
    others[1].requested_by = "spiffe://impound.dev/responder/responder/eve".into();
    others[2].target.uid = "another".into();
    for other in &others {
        let said = collector.give_up(other, "it was held for ever").await;
        assert_eq!(said, Vec::<String>::new(), "{other:?}");
        assert_eq!(fixture.log(), before, "{other:?}");
    }
    collector.give_up(&fixture.begun(), "it is full").await;
    assert_ne!(fixture.log(), before);
}

#[tokio::test]
async fn a_collection_that_is_given_up_a_second_time_is_so_in_its_log_once() {
    let fixture = Fixture::new().await;
    let planted = fixture.collection().join("artifacts");
    std::fs::create_dir_all(&planted).unwrap();
    std::fs::write(planted.join("planted.json"), b"{}").unwrap();
    fixture.run().await.unwrap_err();
    let given_up = || async {
        // As a new process, after one that ended before it could write the status.
        let collector = fixture.collector(fixture.store());
        collector.give_up(&fixture.begun(), "it is full").await
    };
    let said = given_up().await;
    let log = fixture.log();
    assert_eq!(given_up().await, said);
    assert_eq!(fixture.log(), log);
    let entries = fixture.custody();
    let ends = |entry: &&Entry| entry.why.as_deref() == Some("it is full");
    assert_eq!(entries.iter().filter(ends).count(), 1, "{entries:#?}");
}

#[tokio::test]
async fn two_runs_at_a_time_do_not_write_the_same_collection() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    store.create_collection(&fixture.id()).await.unwrap();
    let _held = store.lock(&fixture.id()).await.unwrap();
    let refused = fixture.run().await.unwrap_err();
    assert!(
        matches!(
            &refused,
            CollectError::Store {
                source: StoreError::Busy { .. },
                ..
            }
        ),
        "{refused}"
    );
    assert!(refused.is_transient());
}
