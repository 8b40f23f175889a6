//! What every store guarantees, tried on both.

use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use impound_controller::store::directory::DirectoryStore;
use impound_controller::store::{Content, Store, StoreError, partial_path};
use impound_evidence::{CHECKPOINT, CUSTODY, EvidenceSource as _, LockMode};
use tempfile::TempDir;

use super::{MIB, at, bytes, id, lock, locking, names, open, put, read};

macro_rules! both {
    ($($guarantee:ident)*) => {
        mod in_a_directory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $guarantee() {
                let root = super::TempDir::new().unwrap();
                let store = super::DirectoryStore::open(root.path()).unwrap();
                super::$guarantee(std::sync::Arc::new(store)).await;
            })*
        }
        mod in_a_bucket {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $guarantee() {
                super::$guarantee(super::open(super::locking(super::LockMode::Compliance)).await).await;
            })*
        }
    };
}

both! {
    what_was_written_is_what_is_read_whatever_its_size
    a_name_is_never_given_twice
    abort_leaves_nothing
    bytes_that_differ_from_what_arrived_get_no_name
    what_a_cut_off_writer_left_is_kept_under_a_name_of_its_own
    an_object_that_was_kept_gets_its_own_name_if_it_is_whole
    the_custody_log_grows_only_from_where_it_is
    the_checkpoint_never_goes_back
    listings_are_ordered_and_complete
    a_note_lies_beside_the_collection_and_is_replaced_whole
    the_verifier_sees_everything_that_is_there
    names_of_the_store_itself_are_refused
}

async fn what_was_written_is_what_is_read_whatever_its_size(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    for size in [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 23 * MIB + 17] {
        let content = bytes(size);
        let path = format!("artifacts/x/{size}+%=~&?#'\"<>.tar");
        let receipt = put(&store, &lock, &path, &content).await.unwrap();
        assert_eq!(receipt.content(), Content::of(&content));
        assert!(read(&store, &path, 0).await == content, "{size} bytes");
        let middle = (size / 2) as u64;
        assert!(
            read(&store, &path, middle).await == content[size / 2..],
            "{size} bytes"
        );
        assert!(read(&store, &path, size as u64).await.is_empty());
        let again = store
            .recheck(&lock, &at(&path), receipt.content())
            .await
            .unwrap();
        assert_eq!(again.content(), receipt.content());
        assert_eq!(again.storage().version, receipt.storage().version);
        let other = Content::of(b"another");
        let wrong = store.recheck(&lock, &at(&path), other).await;
        assert!(matches!(wrong, Err(StoreError::Mismatch { .. })));
    }
    assert!(store.leftovers(&lock).await.unwrap().is_empty());
}

async fn a_name_is_never_given_twice(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    let first = store.writer(&lock, &at("a")).await.unwrap();
    let second = store.writer(&lock, &at("a")).await;
    assert!(matches!(second, Err(StoreError::Leftover { .. })));
    first.finish(Content::of(b"")).await.unwrap();
    let third = store.writer(&lock, &at("a")).await;
    assert!(matches!(third, Err(StoreError::ObjectExists { .. })));
    let again = store.create_collection(&id()).await;
    assert!(matches!(again, Err(StoreError::CollectionExists { .. })));
    assert!(matches!(
        store.lock(&id()).await,
        Err(StoreError::Busy { .. })
    ));
}

async fn abort_leaves_nothing(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    for size in [3 * MIB, 12 * MIB] {
        let mut writer = store.writer(&lock, &at("a")).await.unwrap();
        for chunk in bytes(size).chunks(MIB) {
            writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        writer.abort().await.unwrap();
        assert!(names(&store).await.is_empty());
        assert!(store.leftovers(&lock).await.unwrap().is_empty());
    }
    put(&store, &lock, "a", b"again").await.unwrap();
}

async fn bytes_that_differ_from_what_arrived_get_no_name(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    for size in [3, 6 * MIB] {
        let content = bytes(size);
        let mut writer = store.writer(&lock, &at("a")).await.unwrap();
        for chunk in content.chunks(MIB) {
            writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        let refused = writer.finish(Content::of(b"others")).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Mismatch { found, .. } if **found == Content::of(&content)),
            "{refused}"
        );
        assert!(names(&store).await.is_empty());
        assert_eq!(store.size(&id(), &at("a")).await.unwrap(), None);
        if let Some(left) = store.leftover(&lock, &at("a")).await.unwrap() {
            assert_eq!(left.content(), Content::of(&content));
            left.discard().await.unwrap();
        }
    }
    put(&store, &lock, "a", b"right").await.unwrap();
}

async fn what_a_cut_off_writer_left_is_kept_under_a_name_of_its_own(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    let content = bytes(13 * MIB + 3);
    let held = lock(&store).await;
    let mut writer = store.writer(&held, &at("artifacts/a")).await.unwrap();
    for chunk in content.chunks(MIB) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    let left = writer.keep().await.unwrap();
    assert_eq!(
        (left.intended(), left.content()),
        (&at("artifacts/a"), Content::of(&content))
    );
    assert!(
        names(&store).await.is_empty(),
        "an unfinished object was listed"
    );
    assert!(left.keep_as(&at("elsewhere/a")).await.is_err());
    assert_eq!(store.leftovers(&held).await.unwrap(), [at("artifacts/a")]);
    let taken = store.writer(&held, &at("artifacts/a")).await;
    assert!(matches!(taken, Err(StoreError::Leftover { .. })));
    let left = store
        .leftover(&held, &at("artifacts/a"))
        .await
        .unwrap()
        .unwrap();
    let partial = partial_path(&at("artifacts/a"), 1).unwrap();
    let receipt = left.keep_as(&partial).await.unwrap();
    assert_eq!(receipt.content(), Content::of(&content));
    assert!(store.leftovers(&held).await.unwrap().is_empty());
    put(&store, &held, "artifacts/a", b"whole").await.unwrap();
    assert_eq!(
        names(&store).await,
        ["artifacts/a", "artifacts/a.partial-1"]
    );
    assert!(read(&store, partial.as_str(), 0).await == content);
}

async fn an_object_that_was_kept_gets_its_own_name_if_it_is_whole(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    for size in [7, 9 * MIB] {
        let (path, content) = (at(&format!("kept/{size}")), bytes(size));
        let mut writer = store.writer(&lock, &path).await.unwrap();
        for chunk in content.chunks(MIB) {
            writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        let mut left = writer.keep().await.unwrap();
        assert!(left.take_failure().is_none());
        assert_eq!(
            left.keep_as(&path).await.unwrap().content(),
            Content::of(&content)
        );
        assert!(read(&store, path.as_str(), 0).await == content);
    }
}

async fn the_custody_log_grows_only_from_where_it_is(store: Arc<dyn Store>) {
    let at_web = id();
    store.create_collection(&at_web).await.unwrap();
    let append = |size, lines: &'static [u8]| store.append_log(&at_web, size, lines.to_vec());
    assert_eq!(append(0, b"{1}\n").await.unwrap(), 4);
    let moved = append(0, b"{x}\n").await;
    assert!(matches!(
        moved,
        Err(StoreError::LogMoved {
            expected: 0,
            found: 4,
            ..
        })
    ));
    let moved = append(9, b"{x}\n").await;
    assert!(matches!(
        moved,
        Err(StoreError::LogMoved {
            expected: 9,
            found: 4,
            ..
        })
    ));
    assert!(append(4, b"{no line end}").await.is_err());
    assert_eq!(append(4, b"{2}\n{3}\n").await.unwrap(), 12);
    assert_eq!(read(&store, CUSTODY, 0).await, b"{1}\n{2}\n{3}\n");
    assert_eq!(read(&store, CUSTODY, 6).await, b"}\n{3}\n");
    assert_eq!(store.size(&id(), &at(CUSTODY)).await.unwrap(), Some(12));
    assert_eq!(names(&store).await, [CUSTODY]);
}

async fn the_checkpoint_never_goes_back(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    let put = |text: &str| {
        let (store, text) = (Arc::clone(&store), text.as_bytes().to_vec());
        async move { store.replace_checkpoint(&id(), text).await }
    };
    put("origin\n1\nroot\n\nsignature\n").await.unwrap();
    put("origin\n3\nroot\n\nsignature\n").await.unwrap();
    put("origin\n3\nroot\n\nanother\n").await.unwrap();
    assert!(matches!(
        put("origin\n2\nroot\n").await,
        Err(StoreError::CheckpointBackwards {
            new: 2,
            stored: 3,
            ..
        })
    ));
    assert!(matches!(
        put("none").await,
        Err(StoreError::NotACheckpoint { .. })
    ));
    let (at_web, path) = (id(), at(CHECKPOINT));
    let small = |limit| store.read_small(&at_web, &path, limit);
    assert_eq!(
        small(1000).await.unwrap().unwrap(),
        b"origin\n3\nroot\n\nanother\n"
    );
    assert!(matches!(small(3).await, Err(StoreError::TooLarge { .. })));
}

async fn listings_are_ordered_and_complete(store: Arc<dyn Store>) {
    assert!(store.list(&id()).await.unwrap_err().is_not_found());
    assert_eq!(store.collections(&id().case).await.unwrap(), []);
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    for path in ["b", "a/b/c", "a/a", "a.b"] {
        put(&store, &lock, path, path.as_bytes()).await.unwrap();
    }
    let listed = store.list(&id()).await.unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|file| (file.path.as_str(), file.size))
        .collect();
    assert_eq!(listed, [("a.b", 3), ("a/a", 3), ("a/b/c", 5), ("b", 1)]);
    assert_eq!(store.collections(&id().case).await.unwrap(), [id().name]);
    assert!(store.location(&id()).ends_with("/INC-1/web-1"));
    let none = store.read_small(&id(), &at("none"), 9).await.unwrap();
    assert_eq!(none, None);
}

async fn a_note_lies_beside_the_collection_and_is_replaced_whole(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    assert_eq!(store.note(&id()).await.unwrap(), None);
    let lock = lock(&store).await;
    for note in [&b"first"[..], b"second"] {
        store.save_note(&lock, note.to_vec()).await.unwrap();
        assert_eq!(store.note(&id()).await.unwrap().unwrap(), note);
    }
    assert!(names(&store).await.is_empty());
    store.save_note(&lock, Vec::new()).await.unwrap();
    store.save_note(&lock, Vec::new()).await.unwrap();
    assert_eq!(store.note(&id()).await.unwrap(), None);
}

async fn the_verifier_sees_everything_that_is_there(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    let content = bytes(6 * MIB);
    put(&store, &lock, "artifacts/a", &content).await.unwrap();
    store.append_log(&id(), 0, b"{1}\n".to_vec()).await.unwrap();
    store.append_log(&id(), 4, b"{2}\n".to_vec()).await.unwrap();
    let source = store.evidence(&id());
    let check = move || {
        let mut files = source.list().unwrap().files;
        files.sort();
        assert_eq!(files, [at("artifacts/a"), at(CUSTODY)]);
        let whole = |path: &str| {
            let mut whole = Vec::new();
            let file = source.open(&at(path)).unwrap();
            let size = file.size;
            { file.reader }.read_to_end(&mut whole).unwrap();
            assert_eq!(whole.len() as u64, size);
            whole
        };
        assert!(whole("artifacts/a") == content);
        assert_eq!(whole(CUSTODY), b"{1}\n{2}\n");
        let none = source.open(&at("artifacts/none")).err().unwrap();
        assert_eq!(none.kind(), std::io::ErrorKind::NotFound);
    };
    tokio::task::spawn_blocking(check).await.unwrap();
}

async fn names_of_the_store_itself_are_refused(store: Arc<dyn Store>) {
    store.create_collection(&id()).await.unwrap();
    let lock = lock(&store).await;
    let long = "x".repeat(236);
    for path in [CUSTODY, CHECKPOINT, "a/.tmp-b", long.as_str()] {
        let refused = store.writer(&lock, &at(path)).await.err().unwrap();
        assert!(matches!(refused, StoreError::Reserved { .. }), "{refused}");
    }
}
