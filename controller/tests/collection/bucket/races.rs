//! Two controllers that both believe to be the only one.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use impound_controller::store::s3::S3Store;
use impound_controller::store::{Content, Receipt, Store, StoreError};
use impound_evidence::LockMode;

use super::{MIB, at, bytes, id, lock, locking, open, read};

const RACES: usize = 200;
/// One in so many has parts; the others are one request each.
const LARGE: usize = 10;

fn content(race: usize, writer: usize) -> Vec<u8> {
    let mut content = bytes(if race.is_multiple_of(LARGE) {
        5 * MIB + 5
    } else {
        500
    });
    content[..2].copy_from_slice(&[race as u8, writer as u8]);
    content
}

async fn race(store: &Arc<dyn Store>, race: usize, writer: usize) -> Result<Receipt, StoreError> {
    let held = store.lock(&id()).await?;
    let mut object = store.writer(&held, &at(&format!("race/{race}"))).await?;
    let content = content(race, writer);
    for chunk in content.chunks(MIB) {
        object.write(Bytes::copy_from_slice(chunk)).await?;
    }
    object.finish(Content::of(&content)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_of_a_name_one_wins_and_nothing_is_left_of_the_other() {
    let config = locking(LockMode::Compliance);
    let stores = [open(config.clone()).await, open(config.clone()).await];
    stores[0].create_collection(&id()).await.unwrap();
    let mut winners = [0, 0];
    for number in 0..RACES {
        let (first, second) =
            tokio::join!(race(&stores[0], number, 0), race(&stores[1], number, 1));
        let results = [first, second];
        let won: Vec<usize> = (0..2).filter(|writer| results[*writer].is_ok()).collect();
        assert!(won.len() <= 1, "both got race/{number}");
        for result in &results {
            match result {
                Ok(_) | Err(StoreError::ObjectExists { .. } | StoreError::Leftover { .. }) => {}
                Err(error) => panic!(
                    "race {number}: {error}: {:?}",
                    std::error::Error::source(error)
                ),
            }
        }
        let [winner] = won[..] else {
            panic!("nobody got race/{number}: {results:?}")
        };
        winners[winner] += 1;
        let found = read(&stores[0], &format!("race/{number}"), 0).await;
        assert!(
            found == content(number, winner),
            "race/{number} is not the winner's"
        );
    }
    eprintln!("won: {winners:?}");
    let store = S3Store::open(config).await.unwrap();
    store
        .collect_garbage(std::time::Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(
        store
            .collect_garbage(std::time::Duration::ZERO)
            .await
            .unwrap(),
        0
    );
    let store: Arc<dyn Store> = Arc::new(store);
    let lock = lock(&store).await;
    assert!(store.leftovers(&lock).await.unwrap().is_empty());
    assert_eq!(store.list(&id()).await.unwrap().len(), RACES);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_appends_at_one_offset_one_is_the_log() {
    let config = locking(LockMode::Compliance);
    let stores = [open(config.clone()).await, open(config).await];
    stores[0].create_collection(&id()).await.unwrap();
    let mut size = 0;
    for line in 0..25 {
        let append = |writer: usize| {
            let store = Arc::clone(&stores[writer % 2]);
            let text = format!("{{\"line\":{line},\"by\":{writer}}}\n");
            async move { store.append_log(&id(), size, text.into_bytes()).await }
        };
        let all = futures::stream::iter(0..4).map(append).buffer_unordered(4);
        let results: Vec<_> = all.collect().await;
        let won: Vec<u64> = results.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1, "line {line}");
        size = won[0];
    }
    let log = read(&stores[1], "custody.jsonl", 0).await;
    assert_eq!(log.iter().filter(|byte| **byte == b'\n').count(), 25);
}
