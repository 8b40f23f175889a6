//! Object Lock, and what the store says of itself after it tried.

use std::sync::Arc;

use impound_controller::store::directory::DirectoryStore;
use impound_controller::store::s3::S3Store;
use impound_controller::store::{Content, Store, StoreError, WriteOnce};
use impound_evidence::LockMode;

use super::{LOCKING, MIB, PLAIN, at, bytes, config, id, lock, locking, open, put};

fn why(found: WriteOnce) -> String {
    match found {
        WriteOnce::Proven => "proven".into(),
        WriteOnce::NotProven(why) => why,
    }
}

#[tokio::test]
async fn a_bucket_that_refused_everything_is_called_write_once() {
    let store = open(locking(LockMode::Compliance)).await;
    assert_eq!(store.write_once(), WriteOnce::Proven);
}

#[tokio::test]
async fn what_was_not_tried_or_not_refused_is_not_called_write_once() {
    let unlocked = open(config(LOCKING)).await.write_once();
    assert!(why(unlocked).contains("no Object Lock was asked for"));
    // The identity of these tests may do everything, bypassing governance retention too.
    let governed = open(locking(LockMode::Governance)).await.write_once();
    assert!(why(governed).contains("s3:BypassGovernanceRetention"));
}

#[tokio::test]
async fn every_object_is_locked_and_the_receipt_says_until_when() {
    let mut config = locking(LockMode::Compliance);
    config.legal_hold = true;
    let store = open(config).await;
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    let now = impound_evidence::Timestamp::now().to_utc();
    for size in [9, 6 * MIB] {
        let receipt = put(&store, &lock, &format!("a/{size}"), &bytes(size))
            .await
            .unwrap();
        let storage = receipt.storage();
        assert!(storage.version.is_some(), "{storage:?}");
        assert!(
            storage
                .location
                .ends_with(&format!("/INC-1/web-1/a/{size}"))
        );
        let lock = storage.lock.as_ref().unwrap();
        assert!(lock.mode == LockMode::Compliance && lock.hold, "{lock:?}");
        let left = lock.until.to_utc() - now;
        assert!((55..=65).contains(&left.whole_minutes()), "{left}");
    }
}

#[tokio::test]
async fn a_hold_is_put_on_every_object_of_a_collection_and_lifted() {
    let store = open(locking(LockMode::Governance)).await;
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    let names = ["a/b", "manifest.json", "manifest.sigstore.json"];
    for name in names {
        put(&store, &lock, name, b"1").await.unwrap();
    }
    store.append_log(&id(), 0, b"{}\n".to_vec()).await.unwrap();
    let holdable = store.holdable(&id()).await.unwrap();
    assert_eq!(holdable.len(), names.len() + 1, "{holdable:?}");
    for on in [true, false] {
        for object in &holdable {
            store.hold(object, on).await.unwrap();
        }
        for name in names {
            let receipt = store
                .recheck(&lock, &at(name), Content::of(b"1"))
                .await
                .unwrap();
            assert_eq!(receipt.storage().lock.as_ref().unwrap().hold, on, "{name}");
        }
    }
    let mut gone = holdable[0].clone();
    gone.version = Some("0000".to_owned());
    assert!(store.hold(&gone, true).await.is_err());
}

#[tokio::test]
async fn where_nothing_can_be_held_the_reason_is_said() {
    let bucket = open(config(PLAIN)).await;
    let directory = tempfile::tempdir().unwrap();
    let directory: Arc<dyn Store> = Arc::new(DirectoryStore::open(directory.path()).unwrap());
    for (store, expected) in [
        (bucket, "--store-lock"),
        (directory, "a directory has no legal holds"),
    ] {
        match store.holdable(&id()).await {
            Err(error @ StoreError::NoHolds { .. }) => {
                assert!(error.to_string().contains(expected), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_bucket_that_can_not_be_used_is_refused_with_what_to_do() {
    let refused = |config| async {
        match S3Store::open(config).await {
            Err(error @ StoreError::Unusable { .. }) => error.to_string(),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it was opened"),
        }
    };
    let mut none = config(LOCKING);
    none.place.bucket = "no-such-bucket".into();
    let text = refused(none).await;
    assert!(text.contains("there is no such bucket"), "{text}");
    let mut nobody = config(LOCKING);
    nobody.endpoint = Some("http://127.0.0.1:9".into());
    nobody.timing.budget = std::time::Duration::from_millis(300);
    let text = refused(nobody).await;
    assert!(
        text.contains("127.0.0.1:9") && text.contains("gave up after"),
        "{text}"
    );
    let mut odd = config(LOCKING);
    odd.endpoint = Some("http://user:secret@127.0.0.1:9".into());
    assert!(refused(odd).await.contains("expected http://HOST:PORT"));
    let mut plain = locking(LockMode::Compliance);
    plain.place.bucket = PLAIN.into();
    let text = refused(plain).await;
    assert!(text.contains("Object Lock"), "{text}");
}
