//! A server that fails in every way it can: what is stored is intact, or visibly is not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use impound_controller::store::s3::S3Config;
use impound_controller::store::s3::config::Timing;
use impound_controller::store::{CollectionId, Content, Receipt, Store, StoreError};

use super::proxy::{Fault, Proxy};
use super::{MIB, PLAIN, at, bytes, config, endpoint, id, lock, open};

const RUNS: usize = 200;
/// Runs at the same time: most of a run is waiting for the next try.
const PARALLEL: usize = 16;
/// Of the patience of a real installation, a thirtieth and a fifteenth: a server that stalls for longer than the client
/// waits is the same to it in 2 s as in 60 s.
const TIMING: Timing = Timing {
    connect: Duration::from_secs(2),
    stall: Duration::from_secs(2),
    budget: Duration::from_secs(12),
};

/// The same bucket directly, and through a proxy.
async fn both(proxy: &Proxy) -> (Arc<dyn Store>, Arc<dyn Store>, S3Config) {
    let direct = config(PLAIN);
    let through = S3Config {
        endpoint: Some(proxy.endpoint.clone()),
        timing: TIMING,
        ..direct.clone()
    };
    (open(direct).await, open(through.clone()).await, through)
}

async fn put(
    store: &Arc<dyn Store>,
    at_collection: &CollectionId,
    path: &str,
    content: &[u8],
) -> Result<Receipt, StoreError> {
    let held = store.lock(at_collection).await?;
    let mut writer = store.writer(&held, &at(path)).await?;
    for chunk in content.chunks(MIB) {
        writer.write(Bytes::copy_from_slice(chunk)).await?;
    }
    writer.finish(Content::of(content)).await
}

fn collection(number: usize) -> CollectionId {
    CollectionId {
        case: "INC-1".parse().unwrap(),
        name: format!("run-{number}").parse().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_an_object_is_whole_or_visibly_not_there() {
    let proxy = Proxy::start(&endpoint()).await;
    let (direct, through, _) = both(&proxy).await;
    for number in 0..RUNS {
        direct.create_collection(&collection(number)).await.unwrap();
    }
    proxy.fail(0.3, 7, &Fault::ALL);
    let stored = AtomicUsize::new(0);
    let runs = futures::stream::iter(0..RUNS).map(|number| {
        let (direct, through, stored) = (&direct, &through, &stored);
        async move {
            // Most are small; some have parts.
            let size = if number.is_multiple_of(8) {
                11 * MIB + 1
            } else {
                10_000
            };
            let (content, of) = (bytes(size), collection(number));
            let result = put(through, &of, "a", &content).await;
            let lock = direct.lock(&of).await.unwrap();
            let expected = Content::of(&content);
            match result {
                Ok(receipt) => {
                    assert_eq!(receipt.content(), expected);
                    stored.fetch_add(1, Ordering::Relaxed);
                    direct.recheck(&lock, &at("a"), expected).await.unwrap();
                    assert!(direct.leftovers(&lock).await.unwrap().is_empty());
                }
                Err(error) => {
                    eprintln!(
                        "run {number}: {error}: {:?}",
                        std::error::Error::source(&error)
                    );
                    // What has its name after all is whole; what has none says so.
                    if let Some(left) = direct.leftover(&lock, &at("a")).await.unwrap() {
                        left.discard().await.unwrap();
                    }
                    if direct.size(&of, &at("a")).await.unwrap().is_some() {
                        direct.recheck(&lock, &at("a"), expected).await.unwrap();
                    } else {
                        put_again(direct, &lock, &content).await;
                    }
                }
            }
        }
    });
    runs.buffer_unordered(PARALLEL).collect::<Vec<_>>().await;
    let (stored, faults) = (stored.into_inner(), proxy.faults.load(Ordering::Relaxed));
    eprintln!("{stored} of {RUNS} stored, {faults} faults");
    assert!(faults > RUNS, "only {faults} requests failed");
    assert!(
        stored > RUNS * 9 / 10,
        "only {stored} of {RUNS} were stored"
    );
}

async fn put_again(
    store: &Arc<dyn Store>,
    lock: &impound_controller::store::CollectionLock,
    content: &[u8],
) {
    super::put(store, lock, "a", content).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_to_the_completing_call_is_found_out() {
    let proxy = Proxy::start(&endpoint()).await;
    let (direct, through, _) = both(&proxy).await;
    direct.create_collection(&id()).await.unwrap();
    for (number, fault) in [Fault::LostReply, Fault::Cut, Fault::DoneAndInternal]
        .into_iter()
        .enumerate()
    {
        for size in [100, 12 * MIB] {
            // The first reply to a call that gives a name, each time.
            let lost = AtomicUsize::new(0);
            proxy.choose(move |head| {
                let line = head.lines().next().unwrap_or_default();
                let names = line.starts_with("POST ") && line.contains("uploadId=")
                    || line.starts_with("PUT ")
                        && line.contains("/web-1/a/")
                        && !line.contains('?');
                (names && lost.fetch_add(1, Ordering::Relaxed) == 0).then_some(fault)
            });
            let path = format!("a/{number}-{size}");
            let content = bytes(size);
            let before = proxy.faults.load(Ordering::Relaxed);
            let receipt = put(&through, &id(), &path, &content).await.unwrap();
            assert_eq!(
                proxy.faults.load(Ordering::Relaxed),
                before + 1,
                "{path}: {fault:?}"
            );
            assert_eq!(receipt.content(), Content::of(&content));
            assert!(super::read(&direct, &path, 0).await == content);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_ends_a_write_within_its_budget() {
    let proxy = Proxy::start(&endpoint()).await;
    let direct = config(PLAIN);
    let through = S3Config {
        endpoint: Some(proxy.endpoint.clone()),
        timing: Timing {
            stall: Duration::from_millis(200),
            budget: Duration::from_secs(2),
            ..TIMING
        },
        ..direct.clone()
    };
    let (direct, through) = (open(direct).await, open(through).await);
    direct.create_collection(&id()).await.unwrap();
    let lock = lock(&through).await;
    let mut writer = through.writer(&lock, &at("a")).await.unwrap();
    writer.write(Bytes::from_static(b"a")).await.unwrap();
    proxy.choose(|_| Some(Fault::Stall));
    let start = std::time::Instant::now();
    let error = writer.finish(Content::of(b"a")).await.unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(
        matches!(error, StoreError::Remote { .. }) && error.is_transient(),
        "{error}"
    );
    assert_eq!(direct.size(&id(), &at("a")).await.unwrap(), None);
}
