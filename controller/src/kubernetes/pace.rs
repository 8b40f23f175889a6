//! Holds requests to the Kubernetes API back while it refuses them: all told fewer than five in any second.
//!
//! A containment sends what it has to send at once. What is tried again and again is spaced out instead, by the
//! object that it is for: a call that failed twice in a row, a reconciliation that only looks again because its
//! time has come, and one that comes a third time within seconds slow down the requests for that object until the
//! call succeeds or the step is over. Watches have a
//! gate of their own: kube-runtime begins one that has ended anew at once, so a server that ends them all would be
//! asked without a pause. In the path of every request, between the reconcilers and kube's client.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::locked::locked;
use http::{Request, Response};
use kube::client::Body;
use tokio::time::{Instant, sleep_until};
use tower::{Layer, Service};

/// Between two requests for an object that is in trouble: two in any second. With one watch and one renewal of
/// the lease that makes four.
const GAP: Duration = Duration::from_millis(510);

/// Between two requests of all watches together.
const WATCH_GAP: Duration = Duration::from_millis(1010);

/// Watch requests that are let through at once when the process begins: a list and a watch of each of nine resources,
/// and of the collections twice, for those who work on them and for those who wait for them.
pub const FIRST_WATCHES: usize = 20;

/// The watch that brings new quarantines goes before the others, but for every second time: a server that ends them all
/// would otherwise answer no other. Who went last waits so much longer.
const URGENT: &str = "/quarantines";
const COURTESY: Duration = Duration::from_millis(20);

/// Failures of one call in a row before what follows is slowed down: one may be tried again at once.
const FAILURES: u32 = 2;

/// A failed call that is not made again is forgotten. Longer than the longest pause before a retry.
const MEMORY: Duration = Duration::from_secs(90);

/// A reconciliation that begins so shortly before its time is that which was due. A pause that is shorter than the
/// other one is that of a first retry, which may come at once.
const EARLY: Duration = Duration::from_millis(100);
const SHORT: Duration = Duration::from_millis(400);

/// So many reconciliations of one object within this time, without an end of a step, are a loop.
const LOOP: (usize, Duration) = (3, Duration::from_secs(5));

tokio::task_local! {
    static WORK: Arc<Work>;
}

/// What is known of the requests for each object, by kind, namespace and name.
#[derive(Default)]
pub struct Works(Mutex<HashMap<String, Arc<Work>>>);

impl Works {
    /// Runs a reconciliation of an object: its requests are slowed down if those before it failed.
    pub async fn run<F: Future>(&self, key: String, reconciliation: F) -> F::Output {
        let work = locked(&self.0).entry(key).or_default().clone();
        work.begin();
        let output = WORK.scope(work, reconciliation).await;
        // Those that are under way are held elsewhere too.
        locked(&self.0).retain(|_, work| Arc::strong_count(work) > 1 || !work.is_idle());
        output
    }

    /// Something that the work for this object waited for has come: the reconciliation that follows is news, and none
    /// of a loop.
    pub fn came_on(&self, key: &str) {
        if let Some(work) = locked(&self.0).get(key) {
            locked(&work.state).begun.clear();
        }
    }

    /// How long the server still wants to be left alone with this object.
    #[must_use]
    pub fn left(&self, key: &str) -> Option<Duration> {
        let works = locked(&self.0);
        let until = locked(&works.get(key)?.state).not_before?;
        Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }
}

/// Requests for one object.
#[derive(Default)]
struct Work {
    gate: Gate,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Failures in a row, and the last one's time, by method and path.
    failing: HashMap<String, (u32, Instant)>,
    begun: VecDeque<Instant>,
    /// Steps that have ended.
    ended: HashSet<String>,
    /// When it is looked at again if nothing happens.
    due: Option<Instant>,
    not_before: Option<Instant>,
    slow: bool,
}

/// The current reconciliation waits for something that it asks about again and again.
pub fn slow_down() {
    with_state(|state| state.slow = true);
}

/// The current reconciliation came on: a step has ended, and the next one is nobody's retry. A step that ends
/// again, because its end could not be recorded, is one.
pub fn speed_up(step: &str) {
    with_state(|state| {
        if state.ended.insert(step.to_owned()) {
            state.failing.clear();
            state.begun.clear();
            state.slow = false;
        }
    });
}

/// The same for work that has no steps: something that was waited for has come.
pub fn came_on() {
    with_state(|state| {
        state.failing.clear();
        state.begun.clear();
        state.slow = false;
    });
}

/// Makes what is spawned a part of the current reconciliation: its requests are slowed down like the others.
pub fn of_this_work<F: Future>(task: F) -> impl Future<Output = F::Output> {
    let work = WORK.try_with(Arc::clone).ok();
    async move {
        match work {
            Some(work) => WORK.scope(work, task).await,
            None => task.await,
        }
    }
}

/// The current object is looked at again after this pause.
pub fn due_in(pause: Duration) {
    with_state(|state| state.due = (pause >= SHORT).then(|| Instant::now() + pause));
}

/// The server wants to be left alone for so long: the current object is not reconciled before, also not for
/// what a watch shows meanwhile.
pub fn leave_alone(pause: Duration) {
    if !pause.is_zero() {
        with_state(|state| state.not_before = Some(Instant::now() + pause));
    }
}

/// A pause before what failed is tried again, doubled with each failure in a row of the current object's calls.
#[must_use]
pub fn pause(first: Duration, longest: Duration) -> Duration {
    let mut failures = 1;
    with_state(|state| failures = state.failures().max(1));
    first
        .saturating_mul(1 << (failures - 1).min(10))
        .min(longest)
}

fn with_state(change: impl FnOnce(&mut State)) {
    // What runs outside of a reconciliation is not paced.
    let _ = WORK.try_with(|work| change(&mut locked(&work.state)));
}

impl Work {
    fn begin(&self) {
        let now = Instant::now();
        let mut state = locked(&self.state);
        state
            .begun
            .retain(|begun| now.duration_since(*begun) < LOOP.1);
        state.begun.push_back(now);
        let due = state.due.take().is_some_and(|due| now + EARLY >= due);
        state.slow = due || state.begun.len() >= LOOP.0;
    }

    /// Nothing is to be remembered.
    fn is_idle(&self) -> bool {
        let mut state = locked(&self.state);
        let now = Instant::now();
        state
            .begun
            .retain(|begun| now.duration_since(*begun) < LOOP.1);
        let ahead = |time: Option<Instant>| time.is_some_and(|time| time + LOOP.1 > now);
        let waits = ahead(state.due) || ahead(state.not_before);
        state.failures() == 0 && state.begun.is_empty() && !waits
    }

    async fn pass(&self) {
        let slow = {
            let mut state = locked(&self.state);
            state.slow || state.failures() >= FAILURES
        };
        if slow {
            self.gate.pass(GAP).await;
        } else {
            self.gate.note();
        }
    }

    fn answered(&self, call: String, well: bool) {
        let mut state = locked(&self.state);
        if well {
            state.failing.remove(&call);
        } else {
            let (count, last) = state.failing.entry(call).or_insert((0, Instant::now()));
            *count = count.saturating_add(1);
            *last = Instant::now();
        }
    }
}

impl State {
    /// The most failures in a row of any call.
    fn failures(&mut self) -> u32 {
        let now = Instant::now();
        self.failing
            .retain(|_, (_, last)| now.duration_since(*last) < MEMORY);
        let counts = self.failing.values().map(|(count, _)| *count);
        counts.max().unwrap_or(0)
    }
}

/// One request after the other, with a gap between them.
#[derive(Default)]
struct Gate {
    passed: Mutex<Passed>,
    /// Those that are not urgent queue here, in the order in which they came.
    queue: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Passed {
    last: Option<Instant>,
    urgent: bool,
    count: usize,
}

impl Gate {
    async fn pass(&self, gap: Duration) {
        while let Some(at) = self.try_pass(gap, Duration::ZERO, false) {
            sleep_until(at).await;
        }
    }

    async fn pass_watch(&self, urgent: bool) {
        let _turn = if urgent {
            None
        } else {
            Some(self.queue.lock().await)
        };
        while let Some(at) = self.try_pass(WATCH_GAP, COURTESY, urgent) {
            sleep_until(at).await;
        }
    }

    /// When to try again. Courtesy is what one waits longer after its like.
    fn try_pass(&self, gap: Duration, courtesy: Duration, urgent: bool) -> Option<Instant> {
        let mut passed = locked(&self.passed);
        let now = Instant::now();
        let courtesy = if passed.urgent == urgent {
            courtesy
        } else {
            Duration::ZERO
        };
        match passed.last.map(|last| last + gap + courtesy) {
            Some(at) if at > now => Some(at),
            _ => {
                passed.last = Some(now);
                passed.urgent = urgent;
                None
            }
        }
    }

    fn note(&self) {
        locked(&self.passed).last = Some(Instant::now());
    }

    /// Counts, and tells how many were before.
    fn count(&self) -> usize {
        let mut passed = locked(&self.passed);
        passed.count = passed.count.saturating_add(1);
        passed.count - 1
    }
}

/// Puts the pace into a client.
#[derive(Clone, Default)]
pub struct PaceLayer {
    watches: Option<Arc<Gate>>,
}

impl PaceLayer {
    /// For a client that only watches.
    #[must_use]
    pub fn for_watches() -> Self {
        Self {
            watches: Some(Arc::default()),
        }
    }
}

impl<S> Layer<S> for PaceLayer {
    type Service = Paced<S>;

    fn layer(&self, inner: S) -> Paced<S> {
        Paced {
            inner,
            watches: self.watches.clone(),
        }
    }
}

/// A client's service that lets requests through at the pace of what they are for.
pub struct Paced<S> {
    inner: S,
    watches: Option<Arc<Gate>>,
}

impl<S, B> Service<Request<Body>> for Paced<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let watches = self.watches.clone();
        let path = request.uri().path();
        let urgent = path.ends_with(URGENT);
        // A blocked eviction is waited for at its own, slow pace, and must not slow down the rest; a dry run is
        // a question whose answer may well be a refusal.
        let counts = !path.ends_with("/eviction")
            && !request
                .uri()
                .query()
                .is_some_and(|query| query.contains("dryRun"));
        let call = format!("{} {path}", request.method());
        // Nothing is sent before it is polled, which is done by the task that asks: the work is its own.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if let Some(gate) = watches {
                if gate.count() >= FIRST_WATCHES {
                    gate.pass_watch(urgent).await;
                }
                return answer.await;
            }
            let work = WORK.try_with(Arc::clone).ok();
            if let Some(work) = &work {
                work.pass().await;
            }
            let answer = answer.await;
            if let Some(work) = work.filter(|_| counts) {
                let well = answer.as_ref().is_ok_and(|answer| {
                    !answer.status().is_server_error() && !answer.status().is_client_error()
                        || answer.status() == http::StatusCode::NOT_FOUND
                });
                work.answered(call, well);
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the second request of a reconciliation had to wait.
    async fn waited(works: &Works) -> Duration {
        let requests = async {
            let work = WORK.with(Arc::clone);
            work.pass().await;
            let first = Instant::now();
            work.pass().await;
            first.elapsed()
        };
        works.run("it".to_owned(), requests).await
    }

    #[tokio::test(start_paused = true)]
    async fn no_watch_starves_while_the_urgent_one_comes_again_and_again() {
        let gate = Arc::new(Gate::default());
        let shown: Arc<Mutex<Vec<&str>>> = Arc::default();
        for name in ["quarantines", "pods", "nodes", "policies"] {
            let (gate, shown) = (gate.clone(), shown.clone());
            tokio::spawn(async move {
                loop {
                    gate.pass_watch(name == "quarantines").await;
                    locked(&shown).push(name);
                }
            });
        }
        tokio::time::sleep(8 * (WATCH_GAP + COURTESY)).await;
        let shown = locked(&shown);
        for pair in shown.windows(2) {
            assert!(pair.contains(&"quarantines"), "{shown:?}");
        }
        for name in ["pods", "nodes", "policies"] {
            assert!(shown.contains(&name), "{shown:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_is_slowed_down_and_news_is_no_loop() {
        let works = Works::default();
        assert_eq!(waited(&works).await, Duration::ZERO);
        assert_eq!(waited(&works).await, Duration::ZERO);
        works.came_on("it");
        assert_eq!(waited(&works).await, Duration::ZERO);
        assert_eq!(waited(&works).await, Duration::ZERO);
        works.came_on("something else");
        assert_eq!(waited(&works).await, GAP);
    }
}
