//! The custody log in a bucket, when it gets long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use impound_evidence::LockMode;

use super::proxy::Proxy;
use super::{endpoint, id, locking, names, open, read};

const ENTRIES: usize = 600;

fn line(entry: usize) -> Vec<u8> {
    format!("{{\"entry\":{entry}}}\n").into_bytes()
}

#[tokio::test]
async fn a_log_of_many_entries_is_read_in_few_requests_and_by_whoever_knows_it_in_one_or_two() {
    let config = locking(LockMode::Compliance);
    let (writer, other) = (open(config.clone()).await, open(config.clone()).await);
    writer.create_collection(&id()).await.unwrap();
    let mut all = Vec::new();
    for entry in 0..ENTRIES {
        let size = all.len() as u64;
        writer.append_log(&id(), size, line(entry)).await.unwrap();
        all.extend(line(entry));
    }
    let proxy = Proxy::start(&endpoint()).await;
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    let mut through = config;
    through.endpoint = Some(proxy.endpoint.clone());
    let reader = open(through).await;
    proxy.choose(move |head| {
        if head.starts_with("GET ") || head.starts_with("HEAD ") {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        None
    });
    assert_eq!(read(&reader, "custody.jsonl", 0).await, all);
    let asked = requests.swap(0, Ordering::SeqCst);
    assert!(asked < ENTRIES / 4, "{asked} requests");

    // The copies are no evidence of their own.
    assert_eq!(names(&reader).await, ["custody.jsonl"]);
    requests.store(0, Ordering::SeqCst);
    let known = all.len() as u64;
    assert!(read(&reader, "custody.jsonl", known).await.is_empty());
    assert!(requests.swap(0, Ordering::SeqCst) <= 2);
    // Another replica goes on from the same end, and so does this one.
    let end = other.append_log(&id(), known, line(1)).await.unwrap();
    assert_eq!(read(&reader, "custody.jsonl", known).await, line(1));
    assert!(requests.load(Ordering::SeqCst) <= 3);
    reader.append_log(&id(), end, line(2)).await.unwrap();
    let whole = [all, line(1), line(2)].concat();
    for store in [&writer, &reader, &other] {
        for offset in [0, 1, 4000, known, end] {
            let expected = &whole[usize::try_from(offset).unwrap()..];
            assert_eq!(read(store, "custody.jsonl", offset).await, expected);
        }
    }
}
