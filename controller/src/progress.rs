//! How far a running collection is: from `collect`, where bytes arrive, to whoever watches it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use impound_evidence::{ArtifactRecord, EvidencePath, Sha256, Timestamp};
use tokio::sync::watch;

use crate::locked::locked;

/// Shortest time between two reports of bytes that flow. Every change of a state is reported at
/// once. The wire contract promises watchers at most one message in 200 ms.
const BYTES_EVERY: Duration = Duration::from_millis(200);

/// Takes reports. Called from the collecting tasks, so it must not block.
pub trait ProgressSink: Send + Sync {
    /// The whole state as of now.
    fn report(&self, progress: &CollectionProgress);
}

/// A collection's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CollectionProgress {
    /// What is collected, in the order in which it became known.
    pub artifacts: Vec<ArtifactProgress>,
    /// Set once inspect and diff of every container on the node are stored or have failed: from
    /// then on neighbours may be evicted.
    pub quick: Option<QuickStage>,
}

/// The end of the quick stage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuickStage {
    /// What could not be had, one line each with the path and why. Empty: everything is stored.
    pub failures: Vec<String>,
}

/// One artifact's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactProgress {
    /// Where it is, or will be, below the collection.
    pub path: EvidencePath,
    /// How far it is.
    pub state: ArtifactState,
    /// Bytes received so far in this attempt.
    pub bytes: u64,
    /// Estimate of the final size in bytes; 0: not known.
    pub expected_bytes: u64,
    /// Once stored.
    pub sha256: Option<Sha256>,
    /// For people: why it failed, or which attempt this is.
    pub message: String,
    /// When it was first asked for.
    pub started: Option<Timestamp>,
    /// When it was stored or given up.
    pub finished: Option<Timestamp>,
}

/// How far an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArtifactState {
    /// Not begun.
    Pending,
    /// Bytes are arriving, or the last attempt is being repeated.
    Running,
    /// Stored, whole and re-read.
    Stored,
    /// Given up; what came is kept beside its name and marked.
    Incomplete,
    /// Given up; nothing is kept.
    Failed,
}

impl CollectionProgress {
    /// Whether the quick stage is over.
    #[must_use]
    pub fn quick_done(&self) -> bool {
        self.quick.is_some()
    }
}

impl ProgressSink for watch::Sender<CollectionProgress> {
    fn report(&self, progress: &CollectionProgress) {
        self.send_replace(progress.clone());
    }
}

/// Gathers the state from many tasks and reports it.
pub(crate) struct Board<'a> {
    sink: &'a dyn ProgressSink,
    state: Mutex<State>,
}

struct State {
    progress: CollectionProgress,
    places: HashMap<EvidencePath, usize>,
    reported: Option<Instant>,
}

impl<'a> Board<'a> {
    pub(crate) fn new(sink: &'a dyn ProgressSink) -> Self {
        let state = State {
            progress: CollectionProgress::default(),
            places: HashMap::new(),
            reported: None,
        };
        Self {
            sink,
            state: Mutex::new(state),
        }
    }

    /// Announces artifacts that are to come. Known ones stay as they are.
    pub(crate) fn expect(&self, paths: impl IntoIterator<Item = EvidencePath>) {
        self.change(true, |state| {
            for path in paths {
                state.artifact(&path);
            }
        });
    }

    pub(crate) fn running(&self, path: &EvidencePath, attempt: u32, expected_bytes: u64) {
        self.change(true, |state| {
            let artifact = state.artifact(path);
            artifact.state = ArtifactState::Running;
            artifact.bytes = 0;
            artifact.expected_bytes = expected_bytes;
            artifact.started.get_or_insert_with(Timestamp::now);
            if attempt > 1 {
                artifact.message = format!("attempt {attempt}; {}", artifact.message);
            }
        });
    }

    pub(crate) fn received(&self, path: &EvidencePath, bytes: u64) {
        self.change(false, |state| state.artifact(path).bytes = bytes);
    }

    /// An attempt has failed and another may follow.
    pub(crate) fn broke(&self, path: &EvidencePath, why: &str) {
        self.change(true, |state| state.artifact(path).message = why.to_owned());
    }

    pub(crate) fn stored(&self, record: &ArtifactRecord) {
        self.change(true, |state| {
            let artifact = state.artifact(&record.path);
            artifact.state = ArtifactState::Stored;
            artifact.bytes = record.size;
            artifact.expected_bytes = record.size;
            artifact.sha256 = Some(record.sha256);
            artifact.message = String::new();
            artifact.finished = Some(Timestamp::now());
        });
    }

    /// Given up. `kept`: some bytes of it are stored beside its name.
    pub(crate) fn given_up(&self, path: &EvidencePath, kept: bool, why: &str) {
        self.change(true, |state| {
            let artifact = state.artifact(path);
            artifact.state = if kept {
                ArtifactState::Incomplete
            } else {
                ArtifactState::Failed
            };
            artifact.message = why.to_owned();
            artifact.finished = Some(Timestamp::now());
        });
    }

    pub(crate) fn quick_done(&self, failures: Vec<String>) {
        self.change(true, |state| {
            state.progress.quick = Some(QuickStage { failures })
        });
    }

    fn change(&self, at_once: bool, change: impl FnOnce(&mut State)) {
        // A task that panicked while holding the lock has changed at most one artifact's numbers.
        let mut state = locked(&self.state);
        change(&mut state);
        if at_once
            || state
                .reported
                .is_none_or(|last| last.elapsed() >= BYTES_EVERY)
        {
            state.reported = Some(Instant::now());
            self.sink.report(&state.progress);
        }
    }
}

impl State {
    fn artifact(&mut self, path: &EvidencePath) -> &mut ArtifactProgress {
        let artifacts = &mut self.progress.artifacts;
        let known = self
            .places
            .get(path)
            .copied()
            .filter(|place| *place < artifacts.len());
        let place = known.unwrap_or_else(|| {
            artifacts.push(ArtifactProgress {
                path: path.clone(),
                state: ArtifactState::Pending,
                bytes: 0,
                expected_bytes: 0,
                sha256: None,
                message: String::new(),
                started: None,
                finished: None,
            });
            artifacts.len() - 1
        });
        self.places.insert(path.clone(), place);
        #[expect(
            clippy::indexing_slicing,
            reason = "the place was checked or made just above"
        )]
        &mut artifacts[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_state_is_reported_and_bytes_now_and_then() {
        let (sink, seen) = watch::channel(CollectionProgress::default());
        let board = Board::new(&sink);
        let path: EvidencePath = "artifacts/a".parse().unwrap();
        board.expect([path.clone()]);
        let state = || seen.borrow().artifacts[0].clone();
        assert_eq!(state().state, ArtifactState::Pending);
        board.running(&path, 1, 100);
        assert_eq!(
            (state().state, state().expected_bytes),
            (ArtifactState::Running, 100)
        );
        board.received(&path, 1);
        assert_eq!(state().bytes, 0, "bytes were reported sooner than promised");
        board.broke(&path, "gone");
        assert_eq!((state().bytes, state().message.as_str()), (1, "gone"));
        board.given_up(&path, true, "gone for good");
        assert_eq!(state().state, ArtifactState::Incomplete);
        assert!(state().finished.is_some());
        assert!(!seen.borrow().quick_done());
        board.quick_done(vec!["artifacts/a: gone".into()]);
        assert_eq!(seen.borrow().quick.as_ref().unwrap().failures.len(), 1);
    }
}
