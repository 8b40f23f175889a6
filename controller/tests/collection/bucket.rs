//! The object store, on a real S3 server (SeaweedFS): what it guarantees, alone and under a whole
//! collection, also when the server fails.
//!
//! `deploy/object-store.sh` starts the server; `tests/run.sh` does it by itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use impound_controller::store::s3::config::{AddressStyle, Encryption, LockPolicy, Timing};
use impound_controller::store::s3::{S3Config, S3Store};
use impound_controller::store::{
    CollectionId, CollectionLock, Content, Receipt, Store, StoreError,
};
use impound_evidence::{EvidencePath, LockMode};

mod contract;
mod encrypted;
mod faults;
mod lock;
mod log;
mod objects;
mod proxy;
mod races;
mod sealed;

const MIB: usize = 1 << 20;
/// A bucket that was made with Object Lock, and one without.
const LOCKING: &str = "evidence";
const PLAIN: &str = "plain";

/// The server that the environment names.
fn endpoint() -> String {
    std::env::var("IMPOUND_TEST_S3").unwrap_or_else(|_| {
        panic!(
            "these tests need an S3 server: deploy/object-store.sh start DIR, then deploy/object-store.sh bucket DIR {LOCKING} and bucket DIR {PLAIN} plain, then eval \"$(deploy/object-store.sh env DIR)\""
        )
    })
}

/// Below a prefix that no other test has.
fn config(bucket: &str) -> S3Config {
    S3Config {
        place: format!("s3://{bucket}/{}", uuid::Uuid::new_v4())
            .parse()
            .unwrap(),
        endpoint: Some(endpoint()),
        region: "us-east-1".into(),
        style: AddressStyle::Path,
        ca: None,
        lock: None,
        legal_hold: false,
        encryption: Encryption::OfBucket,
        timing: Timing {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(30),
            budget: Duration::from_secs(60),
        },
    }
}

/// As `config`, with Object Lock.
fn locking(mode: LockMode) -> S3Config {
    S3Config {
        lock: Some(LockPolicy {
            mode,
            retain: Duration::from_secs(3600),
        }),
        ..config(LOCKING)
    }
}

async fn open(config: S3Config) -> Arc<dyn Store> {
    Arc::new(S3Store::open(config).await.unwrap())
}

fn id() -> CollectionId {
    CollectionId {
        case: "INC-1".parse().unwrap(),
        name: "web-1".parse().unwrap(),
    }
}

fn at(path: &str) -> EvidencePath {
    path.parse().unwrap()
}

/// Bytes in which no two MiB are the same.
fn bytes(size: usize) -> Vec<u8> {
    (0..size)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// The lock, as soon as writers that were dropped have ended.
async fn lock(store: &Arc<dyn Store>) -> CollectionLock {
    loop {
        match store.lock(&id()).await {
            Ok(lock) => return lock,
            Err(StoreError::Busy { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn put(
    store: &Arc<dyn Store>,
    lock: &CollectionLock,
    path: &str,
    content: &[u8],
) -> Result<Receipt, StoreError> {
    let mut writer = store.writer(lock, &at(path)).await?;
    for chunk in content.chunks(MIB / 2) {
        writer.write(Bytes::copy_from_slice(chunk)).await?;
    }
    writer.finish(Content::of(content)).await
}

async fn read(store: &Arc<dyn Store>, path: &str, offset: u64) -> Vec<u8> {
    let reader = store.read(&id(), &at(path), offset).await.unwrap();
    let chunks: Vec<Bytes> = reader.chunks.try_collect().await.unwrap();
    assert!(chunks.iter().all(|chunk| chunk.len() <= MIB));
    chunks.concat()
}

async fn names(store: &Arc<dyn Store>) -> Vec<String> {
    let listed = store.list(&id()).await.unwrap();
    listed.iter().map(|file| file.path.to_string()).collect()
}
