//! What the API server said lately, and what it is being asked: the same question is on its way once, however many
//! calls wait for the answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::time::Instant;
use tonic::Status;

use crate::locked::locked;

/// How long an answer of the API server is believed: it believes its own for about ten seconds, too.
pub(super) const BELIEVED: Duration = Duration::from_secs(10);

/// Answers that are kept, of each kind.
const KEPT: usize = 4096;

/// Answers to questions of one kind, by question.
pub(super) struct Answers<K, V> {
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    recent: Recent<K, V>,
    /// Questions without an answer yet.
    asked: HashMap<K, Asked<V>>,
}

/// An answer on its way. That nobody waits for it any more does not end it: the next call asks the same.
type Asked<V> = Shared<BoxFuture<'static, Result<V, Status>>>;

impl<K, V> Answers<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            recent: Recent(HashMap::new()),
            asked: HashMap::new(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    /// The answer to `key`: a recent one, the one that is on its way, or else what `begin` asks. A failure goes to
    /// all who wait for it, and is not kept.
    ///
    /// # Errors
    /// Those of `begin` and of what it begins.
    pub(super) async fn of<F>(
        self: &Arc<Self>,
        key: K,
        begin: impl FnOnce() -> Result<F, Status>,
    ) -> Result<V, Status>
    where
        F: Future<Output = Result<V, Status>> + Send + 'static,
    {
        self.recent_or_asked(key, begin)?.await
    }

    fn recent_or_asked<F>(
        self: &Arc<Self>,
        key: K,
        begin: impl FnOnce() -> Result<F, Status>,
    ) -> Result<Asked<V>, Status>
    where
        F: Future<Output = Result<V, Status>> + Send + 'static,
    {
        let mut state = locked(&self.state);
        if let Some(value) = state.recent.get(&key) {
            return Ok(std::future::ready(Ok(value)).boxed().shared());
        }
        // One that has ended and is still there has taken no leave: its task was lost.
        let asked = state.asked.get(&key).filter(|asked| asked.peek().is_none());
        if let Some(asked) = asked {
            return Ok(asked.clone());
        }
        let asking = begin()?;
        let (answers, question) = (Arc::clone(self), key.clone());
        let task = tokio::spawn(async move {
            let answer = asking.await;
            let mut state = locked(&answers.state);
            state.asked.remove(&question);
            if let Ok(value) = &answer {
                state.recent.put(question, value.clone());
            }
            answer
        });
        let lost = |error: tokio::task::JoinError| Err(Status::internal(error.to_string()));
        let asked = task
            .map(move |ended| ended.unwrap_or_else(lost))
            .boxed()
            .shared();
        state.asked.insert(key, asked.clone());
        Ok(asked)
    }
}

/// What was said lately.
struct Recent<K, V>(HashMap<K, (Instant, V)>);

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let (then, value) = self.0.get(key)?;
        (then.elapsed() < BELIEVED).then(|| value.clone())
    }

    fn put(&mut self, key: K, value: V) {
        // Also long before that, or what nobody asks about again would stay.
        if self.0.len().is_power_of_two() || self.0.len() >= KEPT {
            self.0.retain(|_, (then, _)| then.elapsed() < BELIEVED);
        }
        if self.0.len() >= KEPT {
            self.0.clear();
        }
        self.0.insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    /// Counts how often it is asked, and answers when it is let.
    struct Asking {
        times: AtomicUsize,
        go: Semaphore,
    }

    impl Asking {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                times: AtomicUsize::new(0),
                go: Semaphore::new(0),
            })
        }

        fn ask<F>(self: &Arc<Self>, answer: F) -> impl Future<Output = F> + Send + use<F>
        where
            F: Send,
        {
            self.times.fetch_add(1, Ordering::Relaxed);
            let this = Arc::clone(self);
            async move {
                this.go.acquire().await.unwrap().forget();
                answer
            }
        }

        fn times(&self) -> usize {
            self.times.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_believed_for_some_seconds_only() {
        let mut recent = Recent(HashMap::new());
        recent.put("ada", true);
        assert_eq!(recent.get(&"ada"), Some(true));
        tokio::time::advance(BELIEVED).await;
        assert_eq!(recent.get(&"ada"), None);
    }

    #[tokio::test]
    async fn the_same_question_is_asked_once_for_all_who_wait_and_another_by_itself() {
        let (answers, asking) = (Answers::new(), Asking::new());
        let waiting = join_all((0..20).map(|n| {
            let (key, asking) = (if n == 0 { "bob" } else { "ada" }, &asking);
            answers.of(key, move || Ok(asking.ask(Ok(n))))
        }));
        asking.go.add_permits(2);
        let said: Vec<i32> = waiting.await.into_iter().map(Result::unwrap).collect();
        assert_eq!(asking.times(), 2);
        assert_eq!(said[0], 0);
        assert_eq!(said[1..], [1; 19]);
        // And from then on it is remembered.
        assert_eq!(
            answers.of("ada", || Ok(asking.ask(Ok(7)))).await.unwrap(),
            1
        );
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_takes_nobodys_answer_along() {
        let (answers, asking) = (Answers::new(), Asking::new());
        let first = answers.of("ada", || Ok(asking.ask(Ok(1))));
        let mut first = Box::pin(first);
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(answers.of("ada", || Ok(asking.ask(Ok(2)))));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        asking.go.add_permits(1);
        assert_eq!(second.await.unwrap(), 1);
        assert_eq!(asking.times(), 1);
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_who_wait_and_then_forgotten() {
        let (answers, asking) = (Answers::new(), Asking::new());
        let fails = || Ok(asking.ask(Err::<i32, _>(Status::unavailable("away"))));
        let waiting = futures::future::join(answers.of("ada", fails), answers.of("ada", fails));
        asking.go.add_permits(1);
        let (first, second) = waiting.await;
        assert_eq!(first.unwrap_err().message(), "away");
        assert_eq!(second.unwrap_err().message(), "away");
        asking.go.add_permits(1);
        assert_eq!(
            answers.of("ada", || Ok(asking.ask(Ok(3)))).await.unwrap(),
            3
        );
        // Whoever may not ask is told so, and keeps nobody else from asking.
        let much = || Err::<std::future::Ready<_>, _>(Status::resource_exhausted("too much"));
        assert!(answers.of("bob", much).await.is_err());
        asking.go.add_permits(1);
        assert_eq!(
            answers.of("bob", || Ok(asking.ask(Ok(4)))).await.unwrap(),
            4
        );
    }
}
