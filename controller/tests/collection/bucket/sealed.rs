//! Whole collections into a server that fails, in each way by itself and in all of them: what is called sealed is
//! intact, as somebody reads it who talks to the server itself; what is not sealed says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use impound_controller::collect::{CollectError, CollectionJob, SealedCollection};
use impound_controller::progress::CollectionProgress;
use impound_controller::store::s3::S3Config;
use impound_controller::store::s3::config::Timing;
use impound_controller::store::{CollectionId, Store};
use impound_evidence::{BUNDLE, Outcome, Sha256, Verdict, verify};

use super::proxy::{Fault, Proxy};
use super::{MIB, PLAIN, at, config, endpoint, open};
use crate::fixture::{Fixture, POD};

/// Collections, if `IMPOUND_FAULT_RUNS` says no other number: one with each kind of fault, and one with all together.
const RUNS: usize = Fault::ALL.len() + 1;
/// Collections at the same time: nearly all of their time is waiting for the next try.
const PARALLEL: usize = 28;
/// Half as patient as for single writes: each collection meets dozens of stalls, one after the other.
const TIMING: Timing = Timing {
    connect: Duration::from_secs(2),
    stall: Duration::from_secs(1),
    budget: Duration::from_secs(8),
};
/// Requests of a hundred that fail.
const RATE: f64 = 0.3;

/// How a collection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Complete,
    Partial,
    Failed,
}

/// One collection, its server's faults, and its store without them.
struct Run {
    number: usize,
    kind: String,
    fixture: Fixture,
    direct: Arc<dyn Store>,
    through: Arc<dyn Store>,
    proxy: Proxy,
    /// SHA-256 of what the agent has.
    exports: Vec<Sha256>,
}

impl Run {
    async fn prepare(number: usize) -> Self {
        let fixture = Fixture::empty().await;
        // Most are small; some have parts, and a call that completes them.
        let size = if number.is_multiple_of(3) {
            6 * MIB
        } else {
            3_000
        };
        fixture.agent.add(POD, "app", 0, size);
        let exports = {
            let state = fixture.agent.state.lock().unwrap();
            let exports = state.exports.values();
            exports.map(|bytes| Sha256::of(bytes)).collect()
        };
        let proxy = Proxy::start(&endpoint()).await;
        let direct = config(PLAIN);
        let through = S3Config {
            endpoint: Some(proxy.endpoint.clone()),
            timing: TIMING,
            ..direct.clone()
        };
        let (direct, through) = (open(direct).await, open(through).await);
        let (kind, faults) = match Fault::ALL.get(number % (Fault::ALL.len() + 1)) {
            Some(fault) => (format!("{fault:?}"), std::slice::from_ref(fault)),
            None => ("of all kinds".to_owned(), &Fault::OF_A_SERVER[..]),
        };
        let seed = u64::try_from(number).unwrap();
        proxy.fail(RATE, seed, faults);
        Self {
            number,
            kind,
            fixture,
            direct,
            through,
            proxy,
            exports,
        }
    }

    fn job(&self) -> CollectionJob {
        let mut job = self.fixture.job();
        job.name = format!("run-{}", self.number).parse().unwrap();
        job
    }

    async fn collect(&self, store: &Arc<dyn Store>) -> Result<SealedCollection, CollectError> {
        let collector = self.fixture.collector(Arc::clone(store));
        let progress = tokio::sync::watch::Sender::new(CollectionProgress::default());
        collector.run(self.job(), &progress).await
    }

    /// What is stored, read without the proxy.
    async fn verdict(&self) -> Verdict {
        let key = self.fixture.key.verifying_key().clone();
        let source = self.direct.evidence(&self.id());
        let verdict = tokio::task::spawn_blocking(move || verify(&source, &[key]));
        verdict.await.unwrap()
    }

    fn id(&self) -> CollectionId {
        let CollectionJob { case, name, .. } = self.job();
        CollectionId { case, name }
    }

    /// What is sealed is intact, says truly whether it is complete, and has the agent's bytes.
    async fn sealed(&self, sealed: &SealedCollection) -> End {
        let about = format!("run {}, {}", self.number, self.kind);
        let verdict = self.verdict().await;
        assert!(verdict.intact(), "{about}: {:#?}", verdict.problems);
        assert_eq!(verdict.outcome, Some(sealed.outcome), "{about}");
        let manifest = verdict.manifest.unwrap();
        if sealed.outcome == Outcome::Partial {
            assert!(!manifest.missing.is_empty(), "{about}");
            return End::Partial;
        }
        let stored: Vec<_> = manifest.artifacts.iter().map(|one| one.sha256).collect();
        let there = self.exports.iter().all(|export| stored.contains(export));
        assert!(there, "{about}: the agent's export is not in it");
        End::Complete
    }

    /// Whatever came of it, nothing says that it is sealed unless it is, and intact.
    async fn ended(&self) -> End {
        match self.collect(&self.through).await {
            Ok(sealed) => self.sealed(&sealed).await,
            Err(error) => {
                let why = std::error::Error::source(&error);
                eprintln!("run {}, {}: {error}: {why:?}", self.number, self.kind);
                let signed = self.direct.size(&self.id(), &at(BUNDLE)).await.unwrap();
                if signed.is_some() {
                    let verdict = self.verdict().await;
                    assert!(
                        verdict.intact(),
                        "run {}: {:#?}",
                        self.number,
                        verdict.problems
                    );
                }
                End::Failed
            }
        }
    }

    /// What failed is taken up by the next attempt, once the server is well.
    async fn taken_up(&self) -> bool {
        match self.collect(&self.direct).await {
            Ok(sealed) => {
                self.sealed(&sealed).await;
                true
            }
            Err(error) => {
                let why = std::error::Error::source(&error);
                eprintln!("run {} again, {}: {error}: {why:?}", self.number, self.kind);
                false
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_a_collection_is_sealed_intact_or_visibly_not_sealed() {
    let runs = std::env::var("IMPOUND_FAULT_RUNS");
    let runs = runs.map_or(RUNS, |runs| runs.parse().unwrap());
    let faults = AtomicUsize::new(0);
    let each = futures::stream::iter(0..runs).map(|number| {
        let faults = &faults;
        async move {
            let run = Run::prepare(number).await;
            let end = run.ended().await;
            faults.fetch_add(run.proxy.faults.load(Ordering::Relaxed), Ordering::Relaxed);
            let taken_up = end != End::Failed || run.taken_up().await;
            (run.kind, end, taken_up)
        }
    });
    let all: Vec<_> = each.buffer_unordered(PARALLEL).collect().await;
    let mut table: BTreeMap<_, BTreeMap<End, usize>> = BTreeMap::new();
    for (kind, end, _) in &all {
        *table.entry(kind).or_default().entry(*end).or_default() += 1;
    }
    let faults = faults.into_inner();
    eprintln!("{runs} collections, {faults} faults: {table:#?}");
    let lost: Vec<_> = all.iter().filter(|(.., taken_up)| !taken_up).collect();
    eprintln!("not taken up: {lost:?}");
    assert!(faults > 10 * runs, "only {faults} requests failed");
    // How many get through depends on the machine; that none is sealed wrongly does not.
    assert!(all.iter().any(|(_, end, _)| *end == End::Complete));
}
