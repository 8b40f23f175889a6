//! Evidence that is encrypted on its way into the store: whoever has a key reads and checks all of it, and nobody else,
//! the controller that comes after a crash among them, reads any.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use impound_controller::collect::{CollectError, SealedCollection};
use impound_controller::store::StoreError;
use impound_evidence::age::Identity;
use impound_evidence::{
    Completeness, DirSource, Event, Given, Manifest, Outcome, Verdict, open_artifact,
    verify_watched,
};

use super::agent::Fault;
use super::crashing::{lose_what_was_not_durable, run_again, run_until};
use super::fixture::{DIRECTORY, EXPORT_LISTINGS, Fixture, IMAGE_LISTINGS, names};
use super::interrupted::{Interrupted, Operation};

/// What stays readable: names and hashes, and what checks them.
pub(crate) const PLAIN: [&str; 5] = [
    "custody.checkpoint",
    "custody.jsonl",
    "manifest.json",
    "manifest.sigstore.json",
    "verify.sh",
];

/// A fixture whose controller encrypts, and the one key that reads it.
async fn encrypting(fixture: Fixture) -> (Fixture, Identity) {
    let ada = Identity::generate().unwrap();
    fixture.recipients.lock().unwrap().push(ada.recipient());
    (fixture, ada)
}

fn opened(fixture: &Fixture, identity: &Identity) -> Verdict {
    let given = Given {
        identities: vec![identity.clone()],
        ..Given::default()
    };
    let source = DirSource::open(fixture.collection()).unwrap();
    verify_watched(
        &source,
        &[fixture.key.verifying_key().clone()],
        &given,
        &|_| (),
    )
}

/// An artifact as its reader gets it.
fn read(fixture: &Fixture, manifest: &Manifest, path: &str, identity: &Identity) -> Vec<u8> {
    let source = DirSource::open(fixture.collection()).unwrap();
    let record = manifest.artifact(&path.parse().unwrap()).unwrap();
    let mut bytes = Vec::new();
    let mut file = open_artifact(&source, record, std::slice::from_ref(identity)).unwrap();
    std::io::copy(&mut file.reader, &mut bytes).unwrap();
    bytes
}

/// Nothing of the suspect is readable in the store, but for what names it.
fn assert_nothing_leaks(fixture: &Fixture) {
    for path in fixture.files() {
        let bytes = fixture.file(&path);
        if !PLAIN.contains(&path.as_str()) {
            assert!(
                bytes.starts_with(b"age-encryption.org/v1\n"),
                "{path} is not encrypted"
            );
            assert!(path.contains(".age"), "{path}");
        }
        for secret in ["dropped", "ustar"] {
            let is_there = bytes
                .windows(secret.len())
                .any(|at| at == secret.as_bytes());
            assert!(
                !is_there || path == "verify.sh",
                "{path} has {secret:?} in it"
            );
        }
    }
}

#[tokio::test]
async fn everything_is_encrypted_to_those_of_the_controller_and_of_the_request_and_is_all_there() {
    let (fixture, ada) = encrypting(Fixture::new().await).await;
    let bob = Identity::generate().unwrap();
    let mut job = fixture.job();
    job.encrypt_to = vec![bob.recipient(), ada.recipient()];
    let sealed = fixture.run_job(job).await.unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );
    let id = fixture.agent.state.lock().unwrap().containers[0].id.clone();
    let (export, image) = names("app", &id);
    let below = |name: &str| format!("{DIRECTORY}/app/{name}");
    let mut expected = vec!["before/pod.json".to_owned(), "timeline.jsonl".to_owned()];
    expected.extend(["inspect.json", "diff.txt", "diff.jsonl", &export, &image].map(below));
    expected.extend(EXPORT_LISTINGS.map(|name| below(&format!("{export}.{name}"))));
    expected.extend(IMAGE_LISTINGS.map(|name| below(&format!("{image}.{name}"))));
    let mut expected: Vec<_> = expected.iter().map(|path| format!("{path}.age")).collect();
    expected.extend(PLAIN.map(str::to_owned));
    expected.sort();
    assert_eq!(fixture.files(), expected);
    assert_nothing_leaks(&fixture);

    let manifest = fixture.manifest();
    assert_eq!(
        fixture.verdict().closed,
        manifest.artifacts.len() as u64 - 1
    );
    assert_eq!(manifest.encrypted_to.len(), 2);
    for identity in [&ada, &bob] {
        assert!(manifest.encrypted_to.contains(&identity.recipient()));
        let verdict = opened(&fixture, identity);
        assert!(verdict.complete(), "{:#?}", verdict.problems);
        assert_eq!(verdict.closed, 0);
    }
    let tar = read(&fixture, &manifest, &below(&export), &ada);
    assert!(tar == fixture.agent.state.lock().unwrap().exports[&id]);
    // Made of what was encrypted already.
    let timeline = read(&fixture, &manifest, "timeline.jsonl", &bob);
    assert!(!timeline.is_empty());
    let changes = read(
        &fixture,
        &manifest,
        &below(&format!("{export}.changes.jsonl")),
        &bob,
    );
    assert!(String::from_utf8_lossy(&changes).contains("dropped"));
}

#[tokio::test]
async fn what_came_of_a_broken_export_is_kept_encrypted_and_can_be_read() {
    for (fault, size) in [
        (Fault::BreakAfter(20), 20_000),
        (Fault::WrongDigest, 51_712),
        (Fault::Truncated, 25_856),
    ] {
        let (fixture, ada) = encrypting(Fixture::new().await).await;
        fixture.agent.fail("export", fault.clone());
        let sealed = fixture.run().await.unwrap();
        assert_eq!(sealed.outcome, Outcome::Complete, "{fault:?}");
        let manifest = fixture.manifest();
        let partial = manifest
            .artifacts
            .iter()
            .find(|record| record.path.as_str().ends_with(".tar.partial-1"))
            .unwrap();
        assert!(!partial.completeness.is_complete());
        assert_eq!(partial.size, size, "{fault:?}");
        let bytes = read(&fixture, &manifest, partial.path.as_str(), &ada);
        let exports = fixture.agent.state.lock().unwrap().exports.clone();
        assert!(exports.values().any(|tar| tar.starts_with(&bytes)));
        let verdict = opened(&fixture, &ada);
        assert!(verdict.complete(), "{fault:?}: {:#?}", verdict.problems);
        assert_nothing_leaks(&fixture);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_operation_a_second_run_seals_and_names_what_it_could_not_make() {
    let (whole, _) = encrypting(Fixture::small().await).await;
    whole.run().await.unwrap();
    let expected = whole.manifest();
    // Every third, either before or after it was carried out: all of them are tried without encryption.
    for allowed in (0..).step_by(3) {
        let (fixture, ada) = encrypting(Fixture::small().await).await;
        let ended = run_until(&fixture, allowed, allowed % 2 == 0).await;
        lose_what_was_not_durable(&fixture).await;
        let sealed = run_again(&fixture).await;
        let verdict = opened(&fixture, &ada);
        assert!(
            verdict.intact(),
            "killed at {allowed}: {:#?}",
            verdict.problems
        );
        assert_nothing_leaks(&fixture);
        let manifest = verdict.manifest.unwrap();
        for record in &expected.artifacts {
            let there = manifest.artifact(&record.path);
            let is_named =
                |named: &String| named.contains(record.path.as_str().rsplit_once('.').unwrap().0);
            match there.map(|record| &record.completeness) {
                Some(Completeness::Complete) => {}
                Some(Completeness::Incomplete { reasons }) => assert!(!reasons.is_empty()),
                // A set of listings is named by its first.
                None => assert!(
                    sealed
                        .missing
                        .iter()
                        .any(|named| is_named(named) || named.contains("could not be listed")),
                    "killed at {allowed}: {} is not there and not named: {:?}",
                    record.path,
                    sealed.missing
                ),
            }
        }
        // What the node said is there in any case; only what is made of it may be missing.
        for name in ["inspect.json", "diff.txt", "diff.jsonl"] {
            let path = format!("{DIRECTORY}/app/{name}").parse().unwrap();
            assert!(
                manifest.artifact(&path).unwrap().completeness.is_complete(),
                "{allowed}: {name}"
            );
        }
        assert_eq!(fixture.events(Event::Sealed), 1, "{allowed}");
        if ended {
            assert_eq!(sealed.outcome, Outcome::Complete);
            assert!(allowed > 50, "only {allowed} operations were counted");
            return;
        }
    }
}

/// A collection whose `n`th write to the custody log fails, and that is gone on with until it is sealed: by the same
/// controller, or by one that is another process. Nothing if there is no such write.
async fn fails_and_comes_again(
    n: usize,
    is_another_process: bool,
) -> Option<(Fixture, Identity, SealedCollection)> {
    let (fixture, ada) = encrypting(Fixture::small().await).await;
    let writes = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&writes);
    let store = Interrupted::refusing(fixture.store(), move |operation| {
        matches!(operation, Operation::Append(_)) && seen.fetch_add(1, Ordering::SeqCst) + 1 == n
    });
    let collector = fixture.collector(Arc::new(store));
    match collector.run(fixture.job(), &fixture.progress).await {
        Ok(_) if writes.load(Ordering::SeqCst) < n => return None,
        // A tar's entry is tried again by itself.
        Ok(sealed) => return Some((fixture, ada, sealed)),
        Err(error) => assert!(error.is_transient(), "{n}: {error}"),
    }
    if is_another_process {
        lose_what_was_not_durable(&fixture).await;
        let sealed = run_again(&fixture).await;
        return Some((fixture, ada, sealed));
    }
    loop {
        match collector.run(fixture.job(), &fixture.progress).await {
            Err(CollectError::Store {
                source: StoreError::Busy { .. },
                ..
            }) => tokio::task::yield_now().await,
            ended => return Some((fixture, ada, ended.unwrap())),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failure_that_passes_the_same_controller_goes_on_and_nothing_is_missing() {
    let mut lost = 0;
    for n in (1..).step_by(3) {
        let Some((fixture, ada, sealed)) = fails_and_comes_again(n, false).await else {
            assert!(n > 20, "only {n} entries were written");
            break;
        };
        assert_eq!(
            (sealed.outcome, sealed.missing),
            (Outcome::Complete, vec![]),
            "entry {n}"
        );
        let verdict = opened(&fixture, &ada);
        assert!(verdict.complete(), "entry {n}: {:#?}", verdict.problems);
        assert_nothing_leaks(&fixture);
        // The key is nowhere but in that controller.
        if let Some((_, _, sealed)) = fails_and_comes_again(n, true).await {
            lost += usize::from(sealed.outcome == Outcome::Partial);
        }
    }
    assert!(lost > 0, "another process could read all of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_is_encrypted_to_those_it_began_with_whatever_is_configured_later() {
    for allowed in [20, 45, 70] {
        for later in [Vec::new(), vec![Identity::generate().unwrap().recipient()]] {
            let (fixture, ada) = encrypting(Fixture::small().await).await;
            assert!(!run_until(&fixture, allowed, true).await);
            lose_what_was_not_durable(&fixture).await;
            *fixture.recipients.lock().unwrap() = later;
            run_again(&fixture).await;
            let manifest = fixture.manifest();
            assert_eq!(manifest.encrypted_to, [ada.recipient()], "{allowed}");
            assert_nothing_leaks(&fixture);
            let verdict = opened(&fixture, &ada);
            assert!(verdict.intact(), "{allowed}: {:#?}", verdict.problems);
        }
    }
}
