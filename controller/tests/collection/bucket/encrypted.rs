//! An encrypted collection in a bucket: every object but what checks it is an age file, also one of several parts, and
//! whoever has a key reads and checks all of it there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use impound_controller::collect::CollectError;
use impound_controller::store::{Store, StoreError};
use impound_evidence::age::Identity;
use impound_evidence::{Given, LockMode, Outcome, Verdict, open_artifact, verify_watched};

use super::{MIB, PLAIN as PLAIN_BUCKET, config, locking, open};
use crate::encrypted::PLAIN;
use crate::fixture::{DIRECTORY, Fixture, POD, names};
use crate::interrupted::{Interrupted, Operation};

/// A node with a container of so many bytes, and the one key that reads what is collected of it.
async fn encrypting(bytes: usize) -> (Fixture, Identity) {
    let fixture = Fixture::empty().await;
    fixture.agent.add(POD, "app", 0, bytes);
    let ada = Identity::generate().unwrap();
    fixture.recipients.lock().unwrap().push(ada.recipient());
    (fixture, ada)
}

/// What is in the bucket, for who has these keys.
async fn verdict(fixture: &Fixture, store: &Arc<dyn Store>, identities: &[&Identity]) -> Verdict {
    let given = Given {
        identities: identities.iter().map(|one| (*one).clone()).collect(),
        ..Given::default()
    };
    let (source, key) = (
        store.evidence(&fixture.id()),
        fixture.key.verifying_key().clone(),
    );
    let checking =
        tokio::task::spawn_blocking(move || verify_watched(&source, &[key], &given, &|_| ()));
    checking.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_encrypted_is_all_there_in_a_bucket_for_who_has_the_key_and_for_nobody_else() {
    let (fixture, ada) = encrypting(12 * MIB).await;
    let store = open(locking(LockMode::Compliance)).await;
    let collector = fixture.collector(Arc::clone(&store));
    let sealed = collector
        .run(fixture.job(), &fixture.progress)
        .await
        .unwrap();
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );

    let without = verdict(&fixture, &store, &[]).await;
    assert!(without.complete(), "{:#?}", without.problems);
    let manifest = without.manifest.unwrap();
    assert_eq!(without.closed, manifest.artifacts.len() as u64 - 1);
    let eve = Identity::generate().unwrap();
    let others = verdict(&fixture, &store, &[&eve]).await;
    assert!(others.intact() && others.unopened == without.closed);
    let with = verdict(&fixture, &store, &[&eve, &ada]).await;
    assert!(with.complete(), "{:#?}", with.problems);
    assert_eq!(with.closed, 0);

    let mut objects = 0;
    for file in store.list(&fixture.id()).await.unwrap() {
        let plain = PLAIN.contains(&file.path.as_str());
        assert!(
            plain || file.path.as_str().ends_with(".age"),
            "{}",
            file.path
        );
        let bytes = store.read_small(&fixture.id(), &file.path, 32 << 20).await;
        let bytes = bytes.unwrap().unwrap();
        let is_age = bytes.starts_with(b"age-encryption.org/v1\n");
        assert_eq!(is_age, !plain, "{}", file.path);
        objects += usize::from(is_age);
    }
    assert_eq!(objects as u64, without.closed);

    let (id, export) = {
        let state = fixture.agent.state.lock().unwrap();
        let id = state.containers[0].id.clone();
        (id.clone(), state.exports[&id].clone())
    };
    let path = format!("{DIRECTORY}/app/{}", names("app", &id).0);
    let record = manifest.artifact(&path.parse().unwrap()).unwrap().clone();
    assert!(record.stored_size() > 10 * MIB as u64);
    let source = store.evidence(&fixture.id());
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        let mut file = open_artifact(&source, &record, &[ada]).unwrap();
        std::io::copy(&mut file.reader, &mut bytes).unwrap();
        bytes
    });
    assert!(reading.await.unwrap() == export);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failure_that_passes_what_lies_encrypted_in_a_bucket_is_gone_on_with() {
    let (fixture, ada) = encrypting(3_000).await;
    let store = open(config(PLAIN_BUCKET)).await;
    // The tar and what describes the container are stored by then.
    let named = AtomicUsize::new(0);
    let flaky = Interrupted::refusing(Arc::clone(&store), move |operation| {
        matches!(operation, Operation::Append(lines)
            if lines.contains("\"event\":\"stored\"") && lines.contains("/compromised-app-"))
            && named.fetch_add(1, Ordering::SeqCst) < 1
    });
    let collector = fixture.collector(Arc::new(flaky));
    let mut failures = 0;
    let sealed = loop {
        match collector.run(fixture.job(), &fixture.progress).await {
            Err(CollectError::Store {
                source: StoreError::Busy { .. },
                ..
            }) => tokio::task::yield_now().await,
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                failures += 1;
                assert!(failures < 3, "{error}");
            }
            Ok(sealed) => break sealed,
        }
    };
    assert!(failures > 0, "nothing failed");
    assert_eq!(
        (sealed.outcome, sealed.missing),
        (Outcome::Complete, vec![])
    );
    let verdict = verdict(&fixture, &store, &[&ada]).await;
    assert!(verdict.complete(), "{:#?}", verdict.problems);
    assert_eq!(verdict.closed, 0);
}
