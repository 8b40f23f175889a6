//! A freeze ends at its time, whatever happens, and leaves nothing paused behind.

use std::collections::HashMap;

use bytes::Bytes;
use futures::stream::BoxStream;

use super::*;
use crate::runtime::{ByteStream, Change, Commit, Done, Image, ImageReference, Reading};

/// Containers that can be paused, and an engine that can be told to fail.
struct Engine {
    states: Mutex<Vec<(ContainerId, State, &'static str)>>,
    /// Calls to `unpause` that fail first.
    stubborn: AtomicU64,
}

fn id(letter: char) -> ContainerId {
    ContainerId::parse(&letter.to_string().repeat(64)).unwrap()
}

fn engine(stubborn: u64) -> Arc<Engine> {
    Arc::new(Engine {
        states: Mutex::new(vec![
            (id('a'), State::Running, "one"),
            (id('b'), State::Running, "one"),
            (id('c'), State::Running, "two"),
            (id('d'), State::Paused, "one"),
        ]),
        stubborn: AtomicU64::new(stubborn),
    })
}

impl Engine {
    fn paused(&self) -> Vec<ContainerId> {
        let states = locked(&self.states);
        let paused = states
            .iter()
            .filter(|(_, state, _)| *state == State::Paused);
        paused
            .map(|(id, _, _)| id.clone())
            .filter(|one| *one != id('d'))
            .collect()
    }

    fn set(&self, id: &ContainerId, from: State, to: State) -> Result<(), RuntimeError> {
        let mut states = locked(&self.states);
        match states.iter_mut().find(|(known, _, _)| known == id) {
            Some((_, state, _)) if *state == from => *state = to,
            _ => {
                return Err(RuntimeError::Failed {
                    call: "POST".into(),
                    status: 500,
                    message: "not so".into(),
                });
            }
        }
        Ok(())
    }
}

fn refused<T>() -> Result<T, RuntimeError> {
    Err(RuntimeError::Refused {
        message: "not here".into(),
    })
}

#[tonic::async_trait]
impl ContainerRuntime for Engine {
    fn name(&self) -> &'static str {
        "engine"
    }
    async fn version(&self) -> Result<String, RuntimeError> {
        refused()
    }
    async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let states = locked(&self.states);
        Ok(states
            .iter()
            .map(|(id, state, pod)| Container {
                id: id.clone(),
                name: "c".into(),
                image: String::new(),
                image_id: String::new(),
                state: *state,
                created: SystemTime::UNIX_EPOCH,
                labels: HashMap::from([("io.kubernetes.pod.uid".into(), (*pod).to_owned())]),
            })
            .collect())
    }
    async fn pause(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.set(id, State::Running, State::Paused)
    }
    async fn unpause(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let left = self.stubborn.load(Ordering::SeqCst);
        if left > 0 {
            self.stubborn.store(left - 1, Ordering::SeqCst);
            return refused();
        }
        self.set(id, State::Paused, State::Running)
    }
    async fn inspect(&self, _: &ContainerId) -> Result<Reading<Bytes>, RuntimeError> {
        refused()
    }
    async fn writable_size(&self, _: &ContainerId) -> Result<u64, RuntimeError> {
        refused()
    }
    async fn changes(
        &self,
        _: &ContainerId,
    ) -> Result<BoxStream<'static, Result<Change, RuntimeError>>, RuntimeError> {
        refused()
    }
    async fn export(&self, _: &ContainerId) -> Result<Reading<ByteStream>, RuntimeError> {
        refused()
    }
    async fn commit(&self, _: &ContainerId, _: &Commit) -> Result<Done<String>, RuntimeError> {
        refused()
    }
    async fn image(&self, _: &ImageReference) -> Result<Option<Image>, RuntimeError> {
        refused()
    }
    async fn save(&self, _: &ImageReference) -> Result<Reading<ByteStream>, RuntimeError> {
        refused()
    }
    async fn remove_image(&self, _: &ImageReference) -> Result<Done<bool>, RuntimeError> {
        refused()
    }
}

const LONG: Duration = Duration::from_secs(3600);

fn freezer(engine: &Arc<Engine>, dir: &tempfile::TempDir) -> Freezer {
    Freezer::new(
        Arc::clone(engine) as Arc<dyn ContainerRuntime>,
        dir.path().join("frozen"),
    )
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_nobody_thaws_ends_at_its_time() {
    let (engine, dir) = (engine(0), tempfile::tempdir().unwrap());
    let freezer = freezer(&engine, &dir);
    let frozen = freezer
        .freeze(&[id('a'), id('b')], Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(engine.paused(), [id('a'), id('b')]);
    sleep(Duration::from_secs(9)).await;
    assert_eq!(engine.paused(), [id('a'), id('b')]);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(engine.paused(), []);
    assert!(freezer.thaw(&frozen.id).await.unwrap().by_deadline);
    assert_eq!(freezer.records.all().unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_thaw_lets_go_at_once_also_from_an_engine_that_refuses_at_first() {
    let (engine, dir) = (engine(3), tempfile::tempdir().unwrap());
    let freezer = freezer(&engine, &dir);
    let frozen = freezer.freeze(&[id('a')], LONG).await.unwrap();
    assert!(!freezer.thaw(&frozen.id).await.unwrap().by_deadline);
    assert_eq!(engine.paused(), []);
    assert!(freezer.thaw("another").await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_freeze_ends_with_the_freezer_and_what_a_killed_agent_left_goes_on_at_the_next_start() {
    let (engine, dir) = (engine(0), tempfile::tempdir().unwrap());
    let first = freezer(&engine, &dir);
    first.freeze(&[id('a'), id('b')], LONG).await.unwrap();
    // As after a kill: the record is there, and nobody holds the freeze.
    let record = first.records.all().unwrap().remove(0).1;
    drop(first);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(engine.paused(), []);
    engine.set(&id('a'), State::Running, State::Paused).unwrap();
    let second = Arc::new(freezer(&engine, &dir));
    second.records.write("left", &record).unwrap();
    let left = second.left().unwrap();
    Arc::clone(&second).let_go(left).await;
    assert_eq!(engine.paused(), []);
    assert_eq!(second.records.all().unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_frozen_whole_is_not_frozen_at_all() {
    let (engine, dir) = (engine(0), tempfile::tempdir().unwrap());
    let freezer = freezer(&engine, &dir);
    for ids in [
        vec![id('a'), id('c')],
        vec![id('a'), id('d')],
        vec![id('a'), id('e')],
        vec![],
    ] {
        assert!(freezer.freeze(&ids, LONG).await.is_err(), "{ids:?}");
        assert_eq!(engine.paused(), []);
    }
    let nowhere = Freezer::new(
        Arc::clone(&engine) as Arc<dyn ContainerRuntime>,
        PathBuf::from("/proc/no/such/place"),
    );
    let refused = nowhere.freeze(&[id('a')], LONG).await.unwrap_err();
    assert!(matches!(refused, FreezeError::Record { .. }), "{refused}");
    assert_eq!(engine.paused(), []);
}
