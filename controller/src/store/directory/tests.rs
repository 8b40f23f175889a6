//! Guarantees of the directory store. The tests that mount a small file system need root.

use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use futures::StreamExt as _;
use tempfile::TempDir;

use super::*;
use impound_evidence::{CHECKPOINT, CUSTODY, EvidenceSource as _};

use crate::store::partial_path;

const MIB: usize = 1024 * 1024;

struct Fixture {
    store: DirectoryStore,
    at: CollectionId,
    collection: PathBuf,
    _root: Option<TempDir>,
}

impl Fixture {
    async fn new() -> Self {
        let root = TempDir::new().unwrap();
        let mut fixture = Self::at(root.path()).await;
        fixture._root = Some(root);
        fixture
    }

    async fn at(root: &Path) -> Self {
        let store = DirectoryStore::open(root).unwrap();
        let at = CollectionId {
            case: "INC-1".parse().unwrap(),
            name: "web-1".parse().unwrap(),
        };
        store.create_collection(&at).await.unwrap();
        Self {
            store,
            at,
            collection: root.join("INC-1/web-1"),
            _root: None,
        }
    }

    /// The lock, as soon as writers that were dropped have ended.
    async fn lock(&self) -> CollectionLock {
        loop {
            match self.store.lock(&self.at).await {
                Ok(lock) => return lock,
                Err(StoreError::Busy { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn put(&self, path: &str, bytes: &[u8]) -> Result<Receipt, StoreError> {
        let mut writer = self.store.writer(&self.lock().await, &at(path)).await?;
        for chunk in bytes.chunks(MIB / 4) {
            writer.write(Bytes::copy_from_slice(chunk)).await?;
        }
        writer.finish(Content::of(bytes)).await
    }

    /// Every name on disk, also those that `list` leaves out.
    fn names(&self) -> Vec<String> {
        fn walk(directory: &Path, below: &str, names: &mut Vec<String>) {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{below}{}", entry.file_name().to_str().unwrap());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), &format!("{name}/"), names);
                } else {
                    names.push(name);
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.collection, "", &mut names);
        names.sort();
        names
    }
}

fn at(path: &str) -> EvidencePath {
    path.parse().unwrap()
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// A file system of its own for one test, unmounted at its end.
struct Mount(TempDir);

impl Mount {
    fn new(kind: &str, options: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", kind, "-o", options, kind])
            .arg(directory.path())
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "mounting a {kind} needs root; run this test as root"
        );
        Self(directory)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test]
async fn what_was_written_is_what_is_read_whatever_its_size() {
    let fixture = Fixture::new().await;
    for size in [
        0,
        1,
        4095,
        4096,
        4097,
        4 * MIB - 1,
        4 * MIB,
        4 * MIB + 1,
        9 * MIB + 17,
        64 * MIB,
        65 * MIB + 1,
    ] {
        let content = bytes(size);
        let receipt = fixture
            .put(&format!("artifacts/x/{size}"), &content)
            .await
            .unwrap();
        assert_eq!(receipt.content(), Content::of(&content));
        let path = fixture.collection.join(format!("artifacts/x/{size}"));
        assert!(std::fs::read(path).unwrap() == content, "{size} bytes");
        let mut reader = fixture
            .store
            .read(&fixture.at, receipt.at(), (size / 2) as u64)
            .await
            .unwrap();
        let mut read = Vec::new();
        while let Some(chunk) = reader.chunks.next().await {
            read.extend_from_slice(&chunk.unwrap());
        }
        assert!(
            reader.size == size as u64 && read == content[size / 2..],
            "{size} bytes"
        );
    }
}

#[tokio::test]
async fn a_name_is_never_given_twice() {
    let fixture = Fixture::new().await;
    let lock = fixture.lock().await;
    let first = fixture.store.writer(&lock, &at("a")).await.unwrap();
    assert!(matches!(
        fixture.store.writer(&lock, &at("a")).await,
        Err(StoreError::Leftover { .. })
    ));
    first.finish(Content::of(b"")).await.unwrap();
    assert!(matches!(
        fixture.store.writer(&lock, &at("a")).await,
        Err(StoreError::ObjectExists { .. })
    ));
    let again = fixture.store.create_collection(&fixture.at).await;
    assert!(matches!(again, Err(StoreError::CollectionExists { .. })));
}

#[tokio::test]
async fn a_name_that_is_taken_meanwhile_is_not_replaced() {
    let fixture = Fixture::new().await;
    let mut writer = fixture
        .store
        .writer(&fixture.lock().await, &at("a"))
        .await
        .unwrap();
    writer.write(Bytes::from_static(b"ours")).await.unwrap();
    std::fs::write(fixture.collection.join("a"), b"theirs").unwrap();
    assert!(matches!(
        writer.finish(Content::of(b"ours")).await,
        Err(StoreError::ObjectExists { .. })
    ));
    assert_eq!(
        std::fs::read(fixture.collection.join("a")).unwrap(),
        b"theirs"
    );
}

#[tokio::test]
async fn abort_leaves_nothing() {
    let fixture = Fixture::new().await;
    let mut writer = fixture
        .store
        .writer(&fixture.lock().await, &at("a"))
        .await
        .unwrap();
    writer.write(bytes(3 * MIB).into()).await.unwrap();
    writer.abort().await.unwrap();
    assert!(fixture.names().is_empty());
    fixture.put("a", b"again").await.unwrap();
}

#[tokio::test]
async fn bytes_that_differ_from_what_arrived_get_no_name() {
    let fixture = Fixture::new().await;
    let lock = fixture.lock().await;
    for (name, expected) in [
        (
            "digest",
            Content {
                size: 3,
                ..Content::of(b"abd")
            },
        ),
        ("size", Content::of(b"abcd")),
    ] {
        let mut writer = fixture.store.writer(&lock, &at(name)).await.unwrap();
        writer.write(Bytes::from_static(b"abc")).await.unwrap();
        let refused = writer.finish(expected).await.unwrap_err();
        assert!(
            matches!(refused, StoreError::Mismatch { found, .. } if *found == Content::of(b"abc"))
        );
    }
    assert!(fixture.store.list(&fixture.at).await.unwrap().is_empty());
    assert_eq!(fixture.store.leftovers(&lock).await.unwrap().len(), 2);
}

#[tokio::test]
async fn bytes_that_changed_in_the_store_are_found() {
    let fixture = Fixture::new().await;
    let content = bytes(2 * MIB);
    let receipt = fixture.put("a", &content).await.unwrap();
    let lock = fixture.lock().await;
    let again = fixture
        .store
        .recheck(&lock, &at("a"), receipt.content())
        .await
        .unwrap();
    assert_eq!(
        (again.content(), again.chunk_root()),
        (receipt.content(), receipt.chunk_root())
    );
    assert!(again.storage().verified > receipt.storage().verified);
    let mut changed = content.clone();
    changed[MIB] ^= 1;
    std::fs::write(fixture.collection.join("a"), changed).unwrap();
    let found = fixture
        .store
        .recheck(&lock, &at("a"), receipt.content())
        .await;
    assert!(matches!(found, Err(StoreError::Mismatch { .. })));
    std::fs::write(fixture.collection.join("a"), [content, vec![0]].concat()).unwrap();
    let found = fixture
        .store
        .recheck(&lock, &at("a"), receipt.content())
        .await;
    assert!(matches!(found, Err(StoreError::Mismatch { .. })));
}

#[tokio::test]
async fn a_cut_off_writer_leaves_its_bytes_and_holds_the_lock_until_they_are_safe() {
    let fixture = Fixture::new().await;
    let content = bytes(5 * MIB + 3);
    let mut writer = fixture
        .store
        .writer(&fixture.lock().await, &at("artifacts/a"))
        .await
        .unwrap();
    for chunk in content.chunks(MIB) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    drop(writer);
    let lock = fixture.lock().await;
    assert_eq!(fixture.names(), ["artifacts/.tmp-a"]);
    assert!(
        fixture.store.list(&fixture.at).await.unwrap().is_empty(),
        "an unfinished object was listed"
    );
    assert!(matches!(
        fixture.store.writer(&lock, &at("artifacts/a")).await,
        Err(StoreError::Leftover { .. })
    ));

    let left = fixture.left(&lock).await.unwrap();
    assert_eq!(
        (left.intended(), left.content()),
        (&at("artifacts/a"), Content::of(&content))
    );
    assert!(left.keep_as(&at("elsewhere/a")).await.is_err());
    let left = fixture.left(&lock).await.unwrap();
    left.keep_as(&partial_path(&at("artifacts/a"), 1).unwrap())
        .await
        .unwrap();
    fixture.put_with(&lock, "artifacts/a", b"whole").await;
    assert_eq!(fixture.names(), ["artifacts/a", "artifacts/a.partial-1"]);
}

impl Fixture {
    /// The first leftover.
    async fn left(&self, lock: &CollectionLock) -> Option<Box<dyn Unfinished>> {
        let first = self
            .store
            .leftovers(lock)
            .await
            .unwrap()
            .into_iter()
            .next()?;
        self.store.leftover(lock, &first).await.unwrap()
    }

    async fn put_with(&self, lock: &CollectionLock, path: &str, bytes: &[u8]) {
        let mut writer = self.store.writer(lock, &at(path)).await.unwrap();
        writer.write(Bytes::copy_from_slice(bytes)).await.unwrap();
        writer.finish(Content::of(bytes)).await.unwrap();
    }
}

#[tokio::test]
async fn a_crash_between_any_two_steps_leaves_the_object_whole_or_nameless() {
    let fixture = Fixture::new().await;
    let lock = fixture.lock().await;
    let whole = Content::of(b"content");
    // After creation, after some bytes, after all bytes: the name is free, the bytes are there.
    for written in [&b""[..], b"con", b"content"] {
        std::fs::write(fixture.collection.join(".tmp-a"), written).unwrap();
        let left = fixture.left(&lock).await.unwrap();
        assert_eq!(left.content(), Content::of(written));
        if left.content() == whole {
            left.keep_as(&at("a")).await.unwrap();
        } else {
            left.discard().await.unwrap();
        }
    }
    fixture.store.recheck(&lock, &at("a"), whole).await.unwrap();
    // Between hard link and removal, where rename can't refuse to replace.
    std::fs::hard_link(
        fixture.collection.join("a"),
        fixture.collection.join(".tmp-a"),
    )
    .unwrap();
    assert!(fixture.left(&lock).await.is_none());
    assert_eq!(fixture.names(), ["a"]);
    // A leftover beside another object of that name stays apart from it.
    std::fs::write(fixture.collection.join(".tmp-a"), b"other").unwrap();
    let left = fixture.left(&lock).await.unwrap();
    assert!(matches!(
        left.keep_as(&at("a")).await,
        Err(StoreError::ObjectExists { .. })
    ));
    fixture.store.recheck(&lock, &at("a"), whole).await.unwrap();
}

#[tokio::test]
async fn a_full_volume_is_reported_with_what_is_free_and_keeps_no_false_claim() {
    let mount = Mount::new("tmpfs", "size=8m");
    let fixture = Fixture::at(mount.0.path()).await;
    let lock = fixture.lock().await;
    // Far more than the volume takes and the writer's queue holds.
    let content = bytes(64 * MIB);
    for keep in [false, true] {
        let mut writer = fixture.store.writer(&lock, &at("a")).await.unwrap();
        let mut error = None;
        for chunk in content.chunks(MIB) {
            if let Err(full) = writer.write(Bytes::copy_from_slice(chunk)).await {
                error = Some(full);
                break;
            }
        }
        let error = match error {
            Some(error) if keep => {
                let left = writer.keep().await.unwrap();
                assert!(left.content().size < 9 * MIB as u64);
                assert_eq!(
                    left.content(),
                    Content::of(&content[..left.content().size as usize])
                );
                left.discard().await.unwrap();
                error
            }
            Some(error) => {
                writer.abort().await.unwrap();
                error
            }
            None => writer.finish(Content::of(&content)).await.unwrap_err(),
        };
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        assert!(error.to_string().contains("bytes are free in"), "{error}");
        assert!(fixture.store.list(&fixture.at).await.unwrap().is_empty());
    }
    assert!(fixture.names().is_empty());
    fixture.put_with(&lock, "a", b"small").await;
}

#[tokio::test]
async fn a_file_system_without_direct_io_works_too() {
    let mount = Mount::new("ramfs", "mode=0700");
    let fixture = Fixture::at(mount.0.path()).await;
    let content = bytes(65 * MIB + 1);
    fixture.put("a", &content).await.unwrap();
    assert!(std::fs::read(fixture.collection.join("a")).unwrap() == content);
}

#[tokio::test]
async fn planted_links_and_special_files_are_refused() {
    let fixture = Fixture::new().await;
    let outside = TempDir::new().unwrap();
    let lock = fixture.lock().await;
    symlink(outside.path(), fixture.collection.join("artifacts")).unwrap();
    let refused = fixture
        .store
        .writer(&lock, &at("artifacts/a"))
        .await
        .err()
        .unwrap();
    assert!(matches!(refused, StoreError::Planted { .. }), "{refused}");
    assert!(fixture.store.list(&fixture.at).await.is_err());
    std::fs::remove_file(fixture.collection.join("artifacts")).unwrap();

    for name in ["a", ".tmp-a", CUSTODY, CHECKPOINT] {
        symlink(outside.path().join("target"), fixture.collection.join(name)).unwrap();
        let tried = match name {
            CUSTODY => fixture
                .store
                .append_log(&fixture.at, 0, b"{}\n".to_vec())
                .await
                .err(),
            CHECKPOINT => fixture
                .store
                .replace_checkpoint(&fixture.at, b"o\n1\nr\n".to_vec())
                .await
                .err(),
            _ => fixture.store.writer(&lock, &at("a")).await.err(),
        };
        assert!(tried.is_some(), "{name} was followed");
        assert!(
            fixture.store.list(&fixture.at).await.is_err(),
            "{name} was listed"
        );
        std::fs::remove_file(fixture.collection.join(name)).unwrap();
    }
    assert!(
        std::fs::read_dir(outside.path()).unwrap().next().is_none(),
        "something was written outside"
    );

    let fifo = fixture.collection.join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    assert!(std::fs::metadata(&fifo).unwrap().file_type().is_fifo());
    assert!(matches!(
        fixture.store.size(&fixture.at, &at("fifo")).await,
        Err(StoreError::Planted { .. })
    ));
}

#[tokio::test]
async fn a_temporary_file_that_was_exchanged_is_not_taken_for_ours() {
    let fixture = Fixture::new().await;
    let lock = fixture.lock().await;
    let mut writer = fixture.store.writer(&lock, &at("a")).await.unwrap();
    writer.write(bytes(MIB).into()).await.unwrap();
    let temporary = fixture.collection.join(".tmp-a");
    std::fs::remove_file(&temporary).unwrap();
    std::fs::write(&temporary, b"other").unwrap();
    assert!(writer.finish(Content::of(b"other")).await.is_err());
    assert!(fixture.store.list(&fixture.at).await.unwrap().is_empty());
}

#[tokio::test]
async fn names_of_the_store_itself_are_refused() {
    let fixture = Fixture::new().await;
    let lock = fixture.lock().await;
    let long = "a".repeat(236);
    for name in [".tmp-a", "x/.tmp-a/b", CUSTODY, CHECKPOINT, &long] {
        let refused = fixture.store.writer(&lock, &at(name)).await.err().unwrap();
        assert!(
            matches!(refused, StoreError::Reserved { .. }),
            "{name}: {refused}"
        );
    }
}

#[tokio::test]
async fn only_one_task_writes_to_a_collection() {
    let fixture = Fixture::new().await;
    let lock = fixture.lock().await;
    let again =
        DirectoryStore::open(fixture.collection.parent().unwrap().parent().unwrap()).unwrap();
    assert!(matches!(
        again.lock(&fixture.at).await,
        Err(StoreError::Busy { .. })
    ));
    let writer = fixture.store.writer(&lock, &at("a")).await.unwrap();
    drop(lock);
    assert!(
        matches!(again.lock(&fixture.at).await, Err(StoreError::Busy { .. })),
        "a writer is still at work"
    );
    writer.finish(Content::of(b"")).await.unwrap();
    fixture.lock().await;
    let other = CollectionId {
        name: "other".parse().unwrap(),
        ..fixture.at.clone()
    };
    assert!(matches!(
        again.lock(&other).await,
        Err(StoreError::NoCollection { .. })
    ));
}

#[tokio::test]
async fn the_log_only_grows_from_where_the_writer_knew_it() {
    let fixture = Fixture::new().await;
    let append = |size, lines: &[u8]| {
        let (store, at, lines) = (fixture.store.clone(), fixture.at.clone(), lines.to_vec());
        async move { store.append_log(&at, size, lines).await }
    };
    assert_eq!(append(0, b"{1}\n").await.unwrap(), 4);
    assert!(matches!(
        append(0, b"{x}\n").await,
        Err(StoreError::LogMoved {
            expected: 0,
            found: 4,
            ..
        })
    ));
    assert!(matches!(
        append(9, b"{x}\n").await,
        Err(StoreError::LogMoved { .. })
    ));
    assert!(append(4, b"{no line end}").await.is_err());
    let log = fixture.collection.join(CUSTODY);
    // A crash in the middle of a line that was never acknowledged.
    std::fs::write(&log, b"{1}\n{to").unwrap();
    assert_eq!(append(4, b"{2}\n").await.unwrap(), 8);
    assert_eq!(std::fs::read(&log).unwrap(), b"{1}\n{2}\n");
}

#[tokio::test]
async fn the_checkpoint_never_goes_back() {
    let fixture = Fixture::new().await;
    let put = |text: &str| {
        let (store, at, text) = (
            fixture.store.clone(),
            fixture.at.clone(),
            text.as_bytes().to_vec(),
        );
        async move { store.replace_checkpoint(&at, text).await }
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
        put("no checkpoint").await,
        Err(StoreError::NotACheckpoint { .. })
    ));
    let path = at(CHECKPOINT);
    let read = fixture
        .store
        .read_small(&fixture.at, &path, 1000)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read, b"origin\n3\nroot\n\nanother\n");
    assert!(matches!(
        fixture.store.read_small(&fixture.at, &path, 3).await,
        Err(StoreError::TooLarge { .. })
    ));
    assert_eq!(fixture.names(), [CHECKPOINT, CUSTODY]);
}

#[tokio::test]
async fn files_are_the_owners_and_final_ones_read_only() {
    let fixture = Fixture::new().await;
    fixture.put("artifacts/a", b"x").await.unwrap();
    fixture
        .store
        .append_log(&fixture.at, 0, b"{}\n".to_vec())
        .await
        .unwrap();
    let mode = |path: &str| {
        std::fs::metadata(fixture.collection.join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!((mode("."), mode("artifacts")), (0o700, 0o700));
    assert_eq!((mode("artifacts/a"), mode(CUSTODY)), (0o400, 0o600));
}

#[tokio::test]
async fn listings_are_ordered_and_complete() {
    let fixture = Fixture::new().await;
    for path in ["b", "a/b/c", "a/a"] {
        fixture.put(path, path.as_bytes()).await.unwrap();
    }
    let listed = fixture.store.list(&fixture.at).await.unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|file| (file.path.as_str(), file.size))
        .collect();
    assert_eq!(listed, [("a/a", 3), ("a/b/c", 5), ("b", 1)]);
    assert_eq!(
        fixture.store.collections(&fixture.at.case).await.unwrap(),
        std::slice::from_ref(&fixture.at.name)
    );
    assert_eq!(
        fixture
            .store
            .collections(&"none".parse().unwrap())
            .await
            .unwrap(),
        []
    );
    assert!(
        fixture
            .store
            .location(&fixture.at)
            .ends_with("/INC-1/web-1")
    );
}

#[tokio::test]
async fn a_note_lies_beside_the_collection_and_is_replaced_whole() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.store.note(&fixture.at).await.unwrap(), None);
    let lock = fixture.lock().await;
    for note in [&b"first"[..], b"second"] {
        fixture.store.save_note(&lock, note.to_vec()).await.unwrap();
        assert_eq!(
            fixture.store.note(&fixture.at).await.unwrap().unwrap(),
            note
        );
    }
    assert!(fixture.names().is_empty());
    assert_eq!(
        fixture
            .store
            .collections(&fixture.at.case)
            .await
            .unwrap()
            .len(),
        1
    );
    fixture.store.save_note(&lock, Vec::new()).await.unwrap();
    assert_eq!(fixture.store.note(&fixture.at).await.unwrap(), None);
}

#[tokio::test]
async fn the_verifier_sees_everything_that_is_there() {
    let fixture = Fixture::new().await;
    fixture.put("artifacts/a", b"x").await.unwrap();
    std::fs::write(fixture.collection.join(".tmp-b"), b"").unwrap();
    symlink("/etc/passwd", fixture.collection.join("link")).unwrap();
    std::fs::write(fixture.collection.join("two words"), b"").unwrap();
    let source = fixture.store.evidence(&fixture.at);
    let listing = source.list().unwrap();
    assert_eq!(listing.files, [at(".tmp-b"), at("artifacts/a")]);
    assert_eq!(listing.refused.len(), 2, "{:?}", listing.refused);
    assert!(source.open(&at("link")).is_err());
    assert_eq!(
        source.open(&at("artifacts/none")).err().unwrap().kind(),
        std::io::ErrorKind::NotFound
    );
    let mut read = String::new();
    source
        .open(&at("artifacts/a"))
        .unwrap()
        .reader
        .read_to_string(&mut read)
        .unwrap();
    assert_eq!(read, "x");
}
