//! Crashes of a writer in a bucket, at the points where one leaves something.

use bytes::Bytes;
use impound_controller::store::s3::S3Store;
use impound_controller::store::{Content, StoreError};
use impound_evidence::LockMode;

use super::{MIB, PLAIN, at, bytes, config, id, lock, locking, names, open, put, read};

/// A process that writes and dies: the store is dropped with everything it knew.
async fn die_after(config: super::S3Config, written: usize) {
    let store = open(config).await;
    match store.create_collection(&id()).await {
        Ok(()) | Err(StoreError::CollectionExists { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    let lock = lock(&store).await;
    let mut writer = store.writer(&lock, &at("artifacts/a")).await.unwrap();
    for chunk in bytes(written).chunks(MIB) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_dead_process_has_uploaded_is_found_by_the_next() {
    let config = locking(LockMode::Compliance);
    die_after(config.clone(), 3 * MIB).await;
    let store = open(config.clone()).await;
    let held = lock(&store).await;
    assert!(
        store.leftovers(&held).await.unwrap().is_empty(),
        "nothing was uploaded"
    );
    drop((held, store));

    die_after(config.clone(), 40 * MIB).await;
    let store = open(config).await;
    let held = lock(&store).await;
    assert_eq!(store.leftovers(&held).await.unwrap(), [at("artifacts/a")]);
    assert!(names(&store).await.is_empty());
    let left = store
        .leftover(&held, &at("artifacts/a"))
        .await
        .unwrap()
        .unwrap();
    let size = usize::try_from(left.content().size).unwrap();
    // The parts without a gap: one that is slow holds back those behind it.
    assert!(size >= 5 * MIB && size % (5 * MIB) == 0, "{size}");
    let content = bytes(40 * MIB);
    assert_eq!(left.content(), Content::of(&content[..size]));
    left.keep_as(&at("artifacts/a.partial-1")).await.unwrap();
    put(&store, &held, "artifacts/a", &content).await.unwrap();
    assert!(read(&store, "artifacts/a", 0).await == content);
    assert_eq!(
        names(&store).await,
        ["artifacts/a", "artifacts/a.partial-1"]
    );
}

#[tokio::test]
async fn an_abandoned_upload_is_removed_and_one_of_a_collection_is_not() {
    let config = config(PLAIN);
    die_after(config.clone(), 11 * MIB).await;
    let store = S3Store::open(config).await.unwrap();
    let none = store.collect_garbage(std::time::Duration::ZERO).await;
    assert_eq!(none.unwrap(), 0, "its record keeps it");
}

#[tokio::test]
async fn a_bucket_without_versions_works_too() {
    let store = open(config(PLAIN)).await;
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    for size in [4, 12 * MIB] {
        let (path, content) = (format!("a/{size}"), bytes(size));
        let receipt = put(&store, &lock, &path, &content).await.unwrap();
        assert_eq!(receipt.storage().version, None);
        assert_eq!(receipt.storage().lock, None);
        assert!(read(&store, &path, 0).await == content);
    }
    let mut writer = store.writer(&lock, &at("a/b")).await.unwrap();
    for chunk in bytes(7 * MIB).chunks(MIB) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    let left = writer.keep().await.unwrap();
    left.keep_as(&at("a/b.partial-1")).await.unwrap();
    put(&store, &lock, "a/b", b"b").await.unwrap();
    store.save_note(&lock, b"note".to_vec()).await.unwrap();
    store.save_note(&lock, Vec::new()).await.unwrap();
    assert!(store.leftovers(&lock).await.unwrap().is_empty());
}
