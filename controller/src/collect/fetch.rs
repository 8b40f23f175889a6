//! Gets one artifact from the agent into the store: attempt after attempt, each recorded.

use std::time::Duration;

use impound_evidence::{ArtifactRecord, EvidencePath, without_suffixes};
use impound_proto::traces::TARGET;
use tokio::sync::SetOnce;
use tokio::time::Instant;
use tonic::Code;
use tracing::{Instrument, Span, field};

use super::CollectError;
use super::session::Session;

/// What to ask for, and where it goes.
pub(super) struct Wanted<'w> {
    /// Whose agent.
    pub(super) node: &'w str,
    /// diff.txt, and diff.jsonl beside it, for a diff; one path for everything else.
    pub(super) paths: Vec<EvidencePath>,
    pub(super) ask: Ask<'w>,
    /// Estimate in bytes; 0: not known.
    pub(super) expected_bytes: u64,
    /// No attempt goes on past it.
    pub(super) deadline: Option<Instant>,
}

/// The call.
#[derive(Clone, Copy)]
pub(super) enum Ask<'w> {
    Inspect {
        container: &'w str,
    },
    Diff {
        container: &'w str,
    },
    /// Not every node can give it, and the export has the files as well: it is left out where it can't be had.
    Layer {
        container: &'w str,
    },
    Export {
        container: &'w str,
        /// Told how many bytes an attempt brought when no more come: nobody reads the container then.
        read: &'w SetOnce<u64>,
    },
    Save {
        reference: &'w str,
        /// Full id of the image, if it is known.
        image: Option<&'w str>,
    },
}

/// What became of it.
pub(super) enum Fetched {
    /// It is stored.
    Stored,
    /// It was given up, which is recorded; the agent's last status, if it gave one.
    GivenUp(Option<Code>),
}

/// From the call until it is stored and recorded.
fn artifact(wanted: &Wanted<'_>, attempt: u32) -> Span {
    tracing::info_span!(
        target: TARGET,
        "artifact",
        otel.status_code = field::Empty,
        path = wanted.paths.first().map(field::display),
        node = wanted.node,
        attempt,
        bytes = field::Empty,
    )
}

/// Longest wait for a place among the streams that an agent gives at a time: other controllers' come first.
const BUSY: Duration = Duration::from_secs(30 * 60);

impl Session<'_> {
    /// Gets an artifact unless it is stored already.
    pub(super) async fn fetch(&self, wanted: &Wanted<'_>) -> Result<Fetched, CollectError> {
        if wanted.paths.iter().all(|path| self.stored(path).is_some()) {
            return Ok(Fetched::Stored);
        }
        let attempts = self.collector.retry.attempts.max(1);
        let mut attempt = 1;
        let (begun, mut refused) = (Instant::now(), 0);
        loop {
            for path in &wanted.paths {
                self.board.running(path, attempt, wanted.expected_bytes);
            }
            let span = artifact(wanted, attempt);
            // The largest state of all, of each of several at a time: not within that of whoever waits for it.
            let attempted = Box::pin(self.attempt(wanted, attempt == attempts));
            let failure = match attempted.instrument(span.clone()).await {
                Ok(()) => {
                    let first = wanted.paths.first().and_then(|path| self.stored(path));
                    span.record("bytes", first.map(|record| record.size));
                    return Ok(Fetched::Stored);
                }
                Err(failure) => failure,
            };
            span.record("otel.status_code", "ERROR");
            if failure.is_of_channel() {
                self.disconnect(wanted.node).await;
            }
            let code = failure.code();
            let waits = matches!(wanted.ask, Ask::Export { .. } | Ask::Save { .. });
            if waits && code == Some(Code::ResourceExhausted) && begun.elapsed() < BUSY {
                // Not an attempt: nothing was asked of the runtime.
                tracing::info!(case = %self.at.case, collection = %self.at.name, node = wanted.node, reason = failure.words(), "waiting for the agent");
                refused += 1;
                let pause = self.collector.retry.before(1 + refused);
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                continue;
            }
            let can_not = matches!(code, Some(Code::FailedPrecondition | Code::Unimplemented));
            let (why, again) = failure.reason()?;
            if let (Ask::Layer { .. }, [path], true) = (wanted.ask, &*wanted.paths, can_not) {
                self.forgo(path, why).await?;
                return Ok(Fetched::GivenUp(code));
            }
            let late = wanted
                .deadline
                .is_some_and(|deadline| deadline <= Instant::now());
            let last = !again || late || attempt >= attempts;
            for path in &wanted.paths {
                if self.stored(path).is_some() {
                    continue;
                }
                self.record_failed(&format!("{path}, attempt {attempt}"), &why)
                    .await?;
                self.board.broke(path, &why);
                if last {
                    let why = format!("{why} (after {attempt} of {attempts} attempts)");
                    match (wanted.ask, self.has_partial(path)) {
                        (Ask::Layer { .. }, false) => self.forgo(path, why).await?,
                        (_, kept) => self.miss(path, kept, why),
                    }
                }
            }
            if last {
                return Ok(Fetched::GivenUp(code));
            }
            attempt += 1;
            tokio::time::sleep(self.collector.retry.before(attempt)).await;
        }
    }

    /// Does without an artifact; the manifest says so and why, and nothing is missing for it.
    pub(super) async fn forgo(&self, path: &EvidencePath, why: String) -> Result<(), CollectError> {
        tracing::info!(case = %self.at.case, collection = %self.at.name, %path, reason = why, "left out");
        self.board.given_up(path, false, &why);
        self.note(|note| note.forgone.insert(path.clone(), why))
            .await?;
        Ok(())
    }

    fn has_partial(&self, path: &EvidencePath) -> bool {
        let is_of = |record: &ArtifactRecord| {
            let partial = record.path.as_str().rsplit_once(".partial-");
            partial.is_some_and(|(of, _)| without_suffixes(of) == path.as_str())
        };
        self.all_stored().iter().any(is_of)
    }
}
