//! A runtime that misbehaves on purpose, for what a real one does only rarely.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use impound_agent::runtime::{
    ByteStream, Change, ChangeKind, Commit, Container, ContainerId, ContainerRuntime, Done, Image,
    ImageReference, Reading, RuntimeError, State,
};

/// What an export of the fake gives.
#[derive(Clone)]
pub enum Export {
    /// These bytes, then a clean end.
    Bytes(Bytes),
    /// These bytes, then an error.
    Breaks(Bytes),
    /// Zeros without end.
    Endless,
    /// A clean end once told so.
    Waits(Arc<tokio::sync::Notify>),
}

#[derive(Clone)]
pub struct Fake {
    pub ids: Vec<String>,
    pub export: Export,
    pub observed: Arc<Observed>,
}

#[derive(Default)]
pub struct Observed {
    /// Calls of every kind but `version`, which readiness makes all the time.
    pub calls: AtomicU32,
    /// Bytes taken out of exports.
    pub pulled: AtomicU64,
    /// Exports whose stream was dropped.
    pub dropped: AtomicU32,
    /// Commits running now, and the most there were.
    pub commits: Mutex<(u32, u32)>,
}

impl Fake {
    pub fn new(export: Export) -> Self {
        Self {
            ids: vec!["ab".repeat(32)],
            export,
            observed: Arc::default(),
        }
    }

    pub fn id(&self) -> &str {
        &self.ids[0]
    }

    fn called(&self) {
        self.observed.calls.fetch_add(1, Ordering::SeqCst);
    }
}

struct Dropped(Arc<Observed>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

fn broken() -> RuntimeError {
    RuntimeError::Broken {
        call: "GET /fake".into(),
        source: "connection reset".into(),
    }
}

#[tonic::async_trait]
impl ContainerRuntime for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn version(&self) -> Result<String, RuntimeError> {
        Ok("1".into())
    }

    async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        self.called();
        let container = |id: &String| Container {
            id: ContainerId::parse(id).unwrap(),
            name: "fake".into(),
            image: String::new(),
            image_id: String::new(),
            state: State::Running,
            created: SystemTime::UNIX_EPOCH,
            labels: [].into(),
        };
        Ok(self.ids.iter().map(container).collect())
    }

    async fn inspect(&self, _: &ContainerId) -> Result<Reading<Bytes>, RuntimeError> {
        self.called();
        Ok(Reading {
            api_call: "GET /fake".into(),
            bytes: Bytes::from_static(b"{\"Id\":"),
        })
    }

    async fn writable_size(&self, _: &ContainerId) -> Result<u64, RuntimeError> {
        self.called();
        Ok(0)
    }

    async fn changes(
        &self,
        _: &ContainerId,
    ) -> Result<BoxStream<'static, Result<Change, RuntimeError>>, RuntimeError> {
        self.called();
        let change = |number| {
            Ok(Change {
                kind: ChangeKind::Added,
                path: format!("/{number}"),
            })
        };
        let changes = (0..5000).map(change).chain([Err(broken())]);
        Ok(futures::stream::iter(changes).boxed())
    }

    async fn export(&self, _: &ContainerId) -> Result<Reading<ByteStream>, RuntimeError> {
        self.called();
        let bytes: ByteStream = match self.export.clone() {
            Export::Bytes(bytes) => futures::stream::iter([Ok(bytes)]).boxed(),
            Export::Breaks(bytes) => futures::stream::iter([Ok(bytes), Err(broken())]).boxed(),
            Export::Endless => {
                let piece = Bytes::from(vec![0; 32 << 10]);
                futures::stream::repeat_with(move || Ok(piece.clone())).boxed()
            }
            Export::Waits(told) => {
                let end = async move {
                    told.notified().await;
                    Ok(Bytes::from(vec![0; 1024]))
                };
                futures::stream::once(end).boxed()
            }
        };
        let dropped = Dropped(Arc::clone(&self.observed));
        let counted = bytes.inspect(move |item| {
            let size = item.as_ref().map_or(0, Bytes::len);
            dropped.0.pulled.fetch_add(size as u64, Ordering::SeqCst);
        });
        Ok(Reading {
            api_call: "GET /fake".into(),
            bytes: counted.boxed(),
        })
    }

    async fn commit(&self, _: &ContainerId, _: &Commit) -> Result<Done<String>, RuntimeError> {
        self.called();
        {
            let mut commits = self.observed.commits.lock().unwrap();
            commits.0 += 1;
            commits.1 = commits.1.max(commits.0);
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        self.observed.commits.lock().unwrap().0 -= 1;
        Ok(Done {
            api_call: "POST /fake".into(),
            answer: format!("sha256:{}", "0".repeat(64)),
        })
    }

    async fn image(&self, _: &ImageReference) -> Result<Option<Image>, RuntimeError> {
        self.called();
        Ok(None)
    }

    async fn save(&self, _: &ImageReference) -> Result<Reading<ByteStream>, RuntimeError> {
        self.called();
        Err(broken())
    }

    async fn remove_image(&self, _: &ImageReference) -> Result<Done<bool>, RuntimeError> {
        self.called();
        Ok(Done {
            api_call: "DELETE /fake".into(),
            answer: true,
        })
    }
}
