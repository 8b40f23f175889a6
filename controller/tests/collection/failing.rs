//! A store that refuses single operations: what that may cost, and what not.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use impound_controller::collect::{CollectError, Limits, SealedCollection};
use impound_evidence::{ArtifactRecord, Event, Manifest, Outcome};

use super::agent::{Fault, tar};
use super::crashing::run_again;
use super::fixture::{DIRECTORY, EXPORT_LISTINGS, Fixture, IMAGE_LISTINGS, POD, names};
use super::interrupted::{Interrupted, Operation};

/// One run over a store that refuses what `refuses` says.
async fn run(
    fixture: &Fixture,
    refuses: impl Fn(Operation<'_>) -> bool + Send + Sync + 'static,
) -> Result<SealedCollection, CollectError> {
    let store = Interrupted::refusing(fixture.store(), refuses);
    let collector = fixture.collector(Arc::new(store));
    collector.run(fixture.job(), &fixture.progress).await
}

/// Refuses the `n`th of the operations that `is` takes, counted from 1.
fn only(
    n: usize,
    is: impl Fn(Operation<'_>) -> bool + Send + Sync,
) -> impl Fn(Operation<'_>) -> bool + Send + Sync {
    let seen = AtomicUsize::new(0);
    move |operation| is(operation) && seen.fetch_add(1, Ordering::SeqCst) + 1 == n
}

/// Path of the one container's export.
fn export(fixture: &Fixture) -> String {
    let id = fixture.agent.state.lock().unwrap().containers[0].id.clone();
    format!("{DIRECTORY}/app/{}", names("app", &id).0)
}

fn exports(fixture: &Fixture) -> usize {
    let calls = fixture.agent.calls();
    calls
        .iter()
        .filter(|call| call.starts_with("export"))
        .count()
}

/// The listings of the export and of the image are there, whole and once; nothing broke off.
fn assert_all_listed(fixture: &Fixture) -> Manifest {
    let manifest = fixture.manifest();
    assert!(fixture.verdict().complete(), "{:?}", manifest.missing);
    let files = fixture.files();
    let tar = export(fixture);
    for name in EXPORT_LISTINGS {
        assert!(files.contains(&format!("{tar}.{name}")), "no {name}");
    }
    let listings = files.iter().filter(|file| file.contains(".tar.")).count();
    let expected = EXPORT_LISTINGS.len() + IMAGE_LISTINGS.len();
    assert_eq!(listings, expected, "{files:#?}");
    manifest
}

#[tokio::test]
async fn a_listing_that_can_not_be_opened_costs_no_tar() {
    let fixture = Fixture::small().await;
    let refuses = |operation: Operation<'_>| matches!(operation, Operation::Open(path) if path.ends_with(".bodyfile"));
    let sealed = run(&fixture, only(1, refuses)).await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Complete, "{:?}", sealed.missing);
    assert_eq!(exports(&fixture), 1);
    assert_all_listed(&fixture);
    assert_eq!(fixture.events(Event::Failed), 1);
}

#[tokio::test]
async fn a_listing_that_can_not_be_ended_costs_no_tar_and_leaves_nothing_behind() {
    let fixture = Fixture::small().await;
    // Read once when the export begins, and once for what the tar does not have.
    let refuses = |operation: Operation<'_>| matches!(operation, Operation::Read(path, _) if path.ends_with("/diff.jsonl"));
    let sealed = run(&fixture, only(2, refuses)).await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Complete, "{:?}", sealed.missing);
    assert_eq!(exports(&fixture), 1);
    assert_all_listed(&fixture);
}

#[tokio::test]
async fn listings_that_a_disk_gave_back_otherwise_are_all_made_again() {
    let fixture = Fixture::small().await;
    let refuses = |operation: Operation<'_>| matches!(operation, Operation::Reread(path) if path.ends_with(".hashes.md5"));
    let sealed = run(&fixture, only(1, refuses)).await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Complete, "{:?}", sealed.missing);
    assert_all_listed(&fixture);
}

#[tokio::test]
async fn listings_that_can_not_keep_up_are_given_the_rest_while_the_image_comes_and_nothing_twice()
{
    let fixture = Fixture::small().await;
    let file = tar(600, b"many");
    let mut many = file[..file.len() - 1024].repeat(8_000);
    many.resize(many.len() + 1024, 0);
    let state = &fixture.agent.state;
    for tar in state.lock().unwrap().exports.values_mut() {
        tar.clone_from(&many);
    }
    let path = export(&fixture);
    let listing = format!("{path}.files.jsonl");
    let (named, again) = (AtomicBool::new(false), AtomicBool::new(false));
    let begun = Arc::new(Mutex::new(Vec::new()));
    let reads = Arc::clone(&begun);
    let refuses = move |operation: Operation<'_>| match operation {
        Operation::Write(to) if to == listing => !named.load(Ordering::SeqCst),
        Operation::Write(to) if to.contains("/app/compromised-") => !again.load(Ordering::SeqCst),
        Operation::KeepAs(of) if of == path => {
            named.store(true, Ordering::SeqCst);
            false
        }
        Operation::Read(of, from) if of == path => {
            again.store(true, Ordering::SeqCst);
            reads.lock().unwrap().push(from);
            false
        }
        _ => false,
    };
    let sealed = run(&fixture, refuses).await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Complete, "{:?}", sealed.missing);
    assert_all_listed(&fixture);
    let begun = begun.lock().unwrap();
    assert!(
        matches!(begun[..], [from] if from > 0),
        "read from {begun:?}"
    );
    let listed = fixture.file(&format!("{}.files.jsonl", export(&fixture)));
    assert_eq!(listed.iter().filter(|byte| **byte == b'\n').count(), 8_000);
    assert_eq!(fixture.events(Event::Failed), 0);
}

#[tokio::test]
async fn a_set_of_listings_with_a_hole_does_not_pass_for_all_of_them() {
    let fixture = Fixture::small().await;
    let refuses = |operation: Operation<'_>| matches!(operation, Operation::KeepAs(path) if path.ends_with(".hashes.md5"));
    let stopped = run(&fixture, only(1, refuses)).await.unwrap_err();
    assert!(stopped.is_transient(), "{stopped}");
    // Some have their names, and what the others were is lost.
    let files = fixture.files();
    let left = files.iter().filter(|file| file.contains("/.tmp-"));
    let mut lost = 0;
    for path in left {
        std::fs::remove_file(fixture.collection().join(path)).unwrap();
        lost += 1;
    }
    assert!(lost > 0 && lost < EXPORT_LISTINGS.len(), "{files:#?}");
    let sealed = run_again(&fixture).await;
    assert_eq!(sealed.outcome, Outcome::Complete, "{:?}", sealed.missing);
    assert_all_listed(&fixture);
    assert_eq!(exports(&fixture), 1);
}

#[tokio::test]
async fn an_export_is_not_thrown_away_because_the_log_can_not_be_written_for_a_moment() {
    let fixture = Fixture::small().await;
    let refused = AtomicUsize::new(0);
    let refuses = move |operation: Operation<'_>| {
        matches!(operation, Operation::Append(lines)
            if lines.contains(r#""event":"read""#) && lines.contains(r#""method":"export""#))
            && refused.fetch_add(1, Ordering::SeqCst) < 3
    };
    let sealed = run(&fixture, refuses).await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Complete, "{:?}", sealed.missing);
    assert_eq!(exports(&fixture), 1);
    let read = |entry: &&impound_evidence::Entry| {
        let of = entry.artifact.as_ref();
        entry.event == Event::Read
            && of.is_some_and(|record| record.path.as_str() == export(&fixture))
    };
    assert_eq!(fixture.custody().iter().filter(read).count(), 1);
}

fn find<'m>(manifest: &'m Manifest, path: &str) -> Option<&'m ArtifactRecord> {
    let mut records = manifest.artifacts.iter();
    records.find(|record| record.path.as_str() == path)
}

#[tokio::test]
async fn without_a_diff_nothing_is_said_about_changes() {
    let fixture = Fixture::small().await;
    for _ in 0..6 {
        fixture.agent.fail("diff", Fault::NoTrailer);
    }
    let sealed = fixture.run().await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Partial);
    let files = fixture.files();
    assert!(
        !files.iter().any(|file| file.ends_with(".changes.jsonl")),
        "{files:#?}"
    );
    assert!(files.contains(&format!("{}.files.jsonl", export(&fixture))));
}

#[tokio::test]
async fn the_changes_of_a_tar_name_the_diff_that_they_are_made_from() {
    let fixture = Fixture::small().await;
    fixture.run().await.unwrap();
    let (manifest, tar) = (fixture.manifest(), export(&fixture));
    let made_from = |name: &str| {
        let record = find(&manifest, &format!("{tar}.{name}")).unwrap();
        let paths = record.derived_from.iter();
        paths.map(ToString::to_string).collect::<Vec<_>>()
    };
    let diff = format!("{DIRECTORY}/app/diff.jsonl");
    let both = [tar.clone(), diff];
    assert_eq!(made_from("changes.jsonl"), both);
    assert_eq!(made_from("files.jsonl"), [tar]);
}

#[tokio::test]
async fn a_description_without_end_is_refused_and_costs_nothing_else() {
    let fixture = Fixture::small().await;
    let id = fixture.agent.state.lock().unwrap().containers[0].id.clone();
    let endless = vec![b' '; (16 << 20) + 1];
    let say = |said| {
        fixture
            .agent
            .state
            .lock()
            .unwrap()
            .inspects
            .insert(id, said)
    };
    assert!(say(endless).is_none());
    let sealed = fixture.run().await.unwrap();
    assert_eq!(sealed.outcome, Outcome::Partial);
    let missing = &fixture.manifest().missing;
    assert_eq!(missing.len(), 1, "{missing:#?}");
    let why = &missing[0].reason;
    assert!(
        why.contains("expected a document of at most 16777216 bytes"),
        "{why}"
    );
    assert!(fixture.files().contains(&export(&fixture)));
    let asked = fixture.agent.calls();
    let asked = asked.iter().filter(|call| call.starts_with("inspect"));
    assert!(asked.count() <= 2, "once in each stage");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_tars_come_no_faster_and_no_more_at_a_time_than_its_budget_allows() {
    let fixture = Fixture::empty().await;
    fixture.agent.add(POD, "app", 0, 2_000_000);
    let collector = fixture.collector(fixture.store()).with_limits(Limits {
        streams_per_node: NonZeroUsize::new(1),
        node_bytes_per_second: NonZeroU64::new(2 << 20),
        ..Limits::default()
    });
    let jobs = ["web-1", "web-2"].map(|name| {
        let mut job = fixture.job();
        job.name = name.parse().unwrap();
        job
    });
    let begun = Instant::now();
    let runs = jobs.map(|job| collector.run(job, &fixture.progress));
    for sealed in futures::future::join_all(runs).await {
        assert_eq!(sealed.unwrap().outcome, Outcome::Complete);
    }
    // Each has an export and an image of two megabytes.
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(3), "it took {took:?}");
    let sending = Arc::clone(&fixture.agent.state.lock().unwrap().sending);
    assert_eq!(sending.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_tars_are_received_at_the_same_time_than_there_is_room_for() {
    let fixture = Fixture::empty().await;
    fixture.agent.add(POD, "app", 0, 2_000_000);
    let collector = fixture.collector(fixture.store()).with_room_for(1, 1);
    let jobs = ["web-1", "web-2", "web-3"].map(|name| {
        let mut job = fixture.job();
        job.name = name.parse().unwrap();
        job
    });
    let runs = jobs.map(|job| collector.run(job, &fixture.progress));
    for sealed in futures::future::join_all(runs).await {
        assert_eq!(sealed.unwrap().outcome, Outcome::Complete);
    }
    let sending = Arc::clone(&fixture.agent.state.lock().unwrap().sending);
    assert_eq!(sending.most.load(Ordering::SeqCst), 1);
}
