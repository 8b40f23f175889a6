//! The controller is killed at every single operation on the store, and started again.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use impound_controller::collect::CollectError;
use impound_controller::store::StoreError;
use impound_evidence::{ArtifactRecord, Event, Method, Outcome};

use super::agent::Fault;
use super::fixture::{Fixture, POD};
use super::interrupted::Interrupted;

/// Runs until the store stands still after `allowed` operations; whether it ended by itself.
pub(crate) async fn run_until(fixture: &Fixture, allowed: usize, after: bool) -> bool {
    let store = Interrupted::new(fixture.store(), allowed, after);
    let gate = store.gate();
    let collector = fixture.collector(Arc::new(store));
    let run = collector.run(fixture.job(), &fixture.progress);
    tokio::select! {
        ended = run => {
            ended.unwrap();
            true
        }
        () = gate.reached() => false,
    }
}

/// What a killed process has not written yet is lost: of objects that were still being written, which
/// are those that their owner may write to, only the first half is there.
pub(crate) async fn lose_what_was_not_durable(fixture: &Fixture) {
    while matches!(
        fixture.store().lock(&fixture.id()).await,
        Err(StoreError::Busy { .. })
    ) {
        tokio::task::yield_now().await;
    }
    if !fixture.collection().exists() {
        return;
    }
    for path in fixture
        .files()
        .into_iter()
        .filter(|path| path.contains(".tmp-"))
    {
        let path = fixture.collection().join(path);
        if std::fs::metadata(&path).unwrap().permissions().mode() & 0o200 != 0 {
            let half = std::fs::metadata(&path).unwrap().len() / 2;
            std::fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(half)
                .unwrap();
        }
    }
}

/// A dead process's lock ends with it; here its threads may need a moment more.
pub(crate) async fn run_again(fixture: &Fixture) -> impound_controller::collect::SealedCollection {
    loop {
        match fixture.run().await {
            Err(CollectError::Store {
                source: StoreError::Busy { .. },
                ..
            }) => tokio::task::yield_now().await,
            ended => return ended.unwrap(),
        }
    }
}

/// What is stored, by path.
fn tree(fixture: &Fixture) -> BTreeMap<String, Vec<u8>> {
    fixture
        .files()
        .into_iter()
        .map(|path| (path.clone(), fixture.file(&path)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_operation_a_second_run_ends_with_the_same_evidence() {
    let whole = Fixture::small().await;
    whole.run().await.unwrap();
    let expected = whole.files();
    for after in [false, true] {
        let mut allowed = 0;
        loop {
            let fixture = Fixture::small().await;
            let ended = run_until(&fixture, allowed, after).await;
            lose_what_was_not_durable(&fixture).await;
            let before = tree_if_any(&fixture);
            let sealed = run_again(&fixture).await;
            let manifest = fixture.manifest();
            let broken = |record: &&ArtifactRecord| {
                record.method != Method::Derived && !record.completeness.is_complete()
            };
            let partials = manifest.artifacts.iter().filter(broken).count();
            let place = format!(
                "killed {} operation {allowed}",
                if after { "after" } else { "before" }
            );
            let names: Vec<String> = fixture
                .files()
                .into_iter()
                .filter(|path| !path.contains(".partial-"))
                .collect();
            assert_eq!(names, expected, "{place}");
            assert_eq!(sealed.outcome, Outcome::Complete, "{place}");
            assert!(
                manifest.missing.is_empty(),
                "{place}: {:?}",
                manifest.missing
            );
            // What was on its way: at most the description of the container and both forms of its diff.
            assert!(partials <= 3, "{place}: {:?}", fixture.files());
            assert_eq!(fixture.events(Event::Sealed), 1, "{place}");
            assert!(
                fixture.agent.state.lock().unwrap().images.is_empty(),
                "{place}: an image was left on the node"
            );
            let now = tree(&fixture);
            for (path, bytes) in before {
                let growing = path.starts_with("custody.");
                assert!(
                    growing || now.get(&path) == Some(&bytes),
                    "{place}: {path} was changed"
                );
            }
            if ended {
                break;
            }
            allowed += 1;
        }
        assert!(allowed > 50, "only {allowed} operations were counted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_it_still_ends() {
    let fixture = Fixture::small().await;
    let mut runs = 0;
    // Each run gets a little further, some not at all.
    while !run_until_free(&fixture, 40 + runs % 7).await {
        runs += 1;
        assert!(runs < 200, "no progress is made");
    }
    assert!(fixture.verdict().intact());
    assert!(fixture.manifest().missing.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_a_broken_attempt_is_kept_nothing_of_it_is_lost() {
    for allowed in 0.. {
        let fixture = Fixture::small().await;
        fixture.agent.fail("export", Fault::BreakAfter(3));
        let ended = run_until(&fixture, allowed, true).await;
        run_again(&fixture).await;
        let manifest = fixture.manifest();
        assert!(
            manifest.missing.is_empty(),
            "operation {allowed}: {:?}",
            manifest.missing
        );
        let broken = fixture
            .agent
            .calls()
            .iter()
            .filter(|call| call.starts_with("export"))
            .count();
        let partials = manifest
            .artifacts
            .iter()
            .filter(|record| record.method == Method::Export && !record.completeness.is_complete());
        assert!(
            partials.count() < broken,
            "operation {allowed}: {:?}",
            fixture.files()
        );
        if ended {
            break;
        }
    }
}

#[tokio::test]
async fn a_manifest_that_somebody_else_wrote_is_never_signed() {
    let other = Fixture::small().await;
    other.run().await.unwrap();
    let mut refused = 0;
    for allowed in (1..).step_by(4) {
        let fixture = Fixture::small().await;
        let ended = run_until_free(&fixture, allowed).await;
        if ended {
            break;
        }
        if fixture
            .files()
            .contains(&"manifest.sigstore.json".to_owned())
        {
            continue;
        }
        let manifest = fixture.collection().join("manifest.json");
        if manifest.exists() {
            std::fs::remove_file(&manifest).unwrap();
        }
        std::fs::write(&manifest, other.file("manifest.json")).unwrap();
        let error = loop {
            match fixture.run().await {
                Err(CollectError::Store {
                    source: StoreError::Busy { .. },
                    ..
                }) => tokio::task::yield_now().await,
                ended => break ended.unwrap_err(),
            }
        };
        assert!(
            matches!(
                error,
                CollectError::NotOurs {
                    file: "manifest.json",
                    ..
                }
            ),
            "{error}"
        );
        assert!(!fixture.collection().join("manifest.sigstore.json").exists());
        refused += 1;
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn a_note_that_somebody_changed_after_collecting_is_never_signed() {
    let mut refused = 0;
    for allowed in (1..).step_by(2) {
        let fixture = Fixture::small().await;
        if run_until_free(&fixture, allowed).await {
            break;
        }
        let at = fixture.id();
        let store = fixture.store();
        let Some(note) = store.note(&at).await.unwrap() else {
            continue;
        };
        let mut note: serde_json::Value = serde_json::from_slice(&note).unwrap();
        if note["sealing"].is_null()
            || fixture
                .files()
                .contains(&"manifest.sigstore.json".to_owned())
        {
            continue;
        }
        note["containers"] = serde_json::json!([]);
        let lock = loop {
            match store.lock(&at).await {
                Err(StoreError::Busy { .. }) => tokio::task::yield_now().await,
                lock => break lock.unwrap(),
            }
        };
        let changed = serde_json::to_vec(&note).unwrap();
        store.save_note(&lock, changed).await.unwrap();
        drop(lock);
        let error = loop {
            match fixture.run().await {
                Err(CollectError::Store {
                    source: StoreError::Busy { .. },
                    ..
                }) => tokio::task::yield_now().await,
                ended => break ended.unwrap_err(),
            }
        };
        assert!(matches!(error, CollectError::Note { .. }), "{error}");
        assert!(!fixture.collection().join("manifest.sigstore.json").exists());
        refused += 1;
    }
    assert!(refused > 0);
}

/// As `run_until`, when the process before has left its lock.
async fn run_until_free(fixture: &Fixture, allowed: usize) -> bool {
    while matches!(
        fixture.store().lock(&fixture.id()).await,
        Err(StoreError::Busy { .. })
    ) {
        tokio::task::yield_now().await;
    }
    run_until(fixture, allowed, true).await
}

/// What has its final name now.
fn tree_if_any(fixture: &Fixture) -> BTreeMap<String, Vec<u8>> {
    if !fixture.collection().exists() {
        return BTreeMap::new();
    }
    tree(fixture)
        .into_iter()
        .filter(|(path, _)| !path.contains(".tmp-"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_of_a_container_that_is_gone_is_saved_by_the_next_run() {
    let mut saved = 0;
    for allowed in 0.. {
        let fixture = Fixture::small().await;
        let ended = run_until(&fixture, allowed, true).await;
        let id = fixture.agent.state.lock().unwrap().containers[0].id.clone();
        let on_node = !fixture.agent.state.lock().unwrap().images.is_empty();
        fixture.agent.lose(&id);
        lose_what_was_not_durable(&fixture).await;
        run_again(&fixture).await;
        let manifest = fixture.manifest();
        if on_node {
            let image = manifest
                .artifacts
                .iter()
                .find(|record| record.path.as_str().contains("/compromised-app-"));
            assert!(
                image.is_some_and(|record| record.completeness.is_complete()),
                "killed after operation {allowed}: the only copy was lost"
            );
            assert!(fixture.agent.state.lock().unwrap().images.is_empty());
            saved += 1;
        }
        if ended {
            break;
        }
    }
    assert!(
        saved > 5,
        "only {saved} runs ended with an image on the node"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_image_that_is_on_its_node_when_a_collection_is_given_up_is_named_in_answer_and_log()
{
    let mut named = 0;
    for allowed in 0.. {
        let fixture = Fixture::small().await;
        let ended = run_until(&fixture, allowed, true).await;
        lose_what_was_not_durable(&fixture).await;
        let images: Vec<String> = {
            let state = fixture.agent.state.lock().unwrap();
            state.images.keys().cloned().collect()
        };
        let collector = fixture.collector(fixture.store());
        let left = collector
            .give_up(&fixture.begun(), "its disk is full")
            .await;
        for image in images {
            let said = |text: &str| text.contains(&image) && text.contains("worker2");
            assert!(
                left.iter()
                    .any(|sentence| said(sentence) && sentence.contains("docker image rm")),
                "killed after operation {allowed}: {left:#?}"
            );
            let log = fixture.custody();
            let failed = |what: &dyn Fn(&str) -> bool| {
                let mut log = log.iter();
                log.any(|entry| entry.event == Event::Failed && what(&entry.what))
            };
            assert!(failed(&said), "{log:#?}");
            assert!(failed(&|what| what == "the collection"), "{log:#?}");
            named += 1;
        }
        if ended {
            break;
        }
    }
    assert!(
        named > 5,
        "only {named} runs ended with an image on the node"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_of_the_whole_collection_is_true_of_all_that_is_collected() {
    let whole = Fixture::small().await;
    whole.run().await.unwrap();
    let (mut closed, mut again) = (0, 0);
    for allowed in (60..).step_by(2) {
        let fixture = Fixture::small().await;
        let ended = run_until(&fixture, allowed, true).await;
        lose_what_was_not_durable(&fixture).await;
        // While no controller is there, the container is restarted.
        fixture.agent.add(POD, "app", 1, 3_000);
        run_again(&fixture).await;
        if ended {
            break;
        }
        let manifest = fixture.manifest();
        let of = |path: &str| path.ends_with("/inspect.json") || path.ends_with(".changes.jsonl");
        let sources: Vec<_> = manifest
            .artifacts
            .iter()
            .filter(|record| of(record.path.as_str()))
            .collect();
        let timeline = manifest.artifact(&"timeline.jsonl".parse().unwrap());
        let timeline = timeline.unwrap();
        for source in &sources {
            assert!(
                timeline.derived_from.contains(&source.path),
                "killed after operation {allowed}: {} is not in the timeline",
                source.path
            );
        }
        match sources.len() {
            2 => closed += 1,
            _ => again += 1,
        }
    }
    assert!(closed > 3 && again > 3, "{closed} and {again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_up_can_not_be_taken_out_of_the_note() {
    let mut refused = 0;
    for allowed in (60..).step_by(3) {
        let fixture = Fixture::small().await;
        fixture
            .agent
            .fail("commit", Fault::Status(tonic::Code::ResourceExhausted));
        let ended = run_until(&fixture, allowed, true).await;
        if ended {
            break;
        }
        let store = fixture.store();
        let note = store.note(&fixture.id()).await.unwrap();
        let Some(note) = note else { continue };
        let mut note: serde_json::Value = serde_json::from_slice(&note).unwrap();
        if note["closed"].is_null() || !note["sealing"].is_null() {
            continue;
        }
        assert_eq!(note["closed"].as_array().unwrap().len(), 1);
        note["closed"] = serde_json::json!([]);
        let lock = loop {
            match store.lock(&fixture.id()).await {
                Err(StoreError::Busy { .. }) => tokio::task::yield_now().await,
                lock => break lock.unwrap(),
            }
        };
        let changed = serde_json::to_vec(&note).unwrap();
        store.save_note(&lock, changed).await.unwrap();
        drop(lock);
        let error = fixture.run().await.unwrap_err();
        assert!(matches!(error, CollectError::Note { .. }), "{error}");
        refused += 1;
    }
    assert!(refused > 0);
}
