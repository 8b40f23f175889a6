//! A stream goes on for only as long as its caller may have it: the right behind it is looked at again while it runs.
//!
//! A call is admitted when it begins, and a stream may then be open for hours. So a token is reviewed again, and the
//! right that a binding gives, at intervals; a certificate counts until it expires. Where nobody can be asked, a stream
//! goes on for [`UNANSWERED`] and then ends, too: the API server being away must not keep a right alive.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Status};

use super::authorise::{Caller, Need, Scope};
use super::refused::Refusal;
use super::{Answers, Refusals, Service};

/// How long a stream goes on while the Kubernetes API does not say whether it may.
const UNANSWERED: Duration = Duration::from_secs(60);

/// Whose stream it is, and by what right.
pub(super) struct Standing {
    caller: Caller,
    call: &'static str,
    need: Need,
    /// Empty for all.
    namespace: String,
    /// Empty if it belongs to none.
    case: String,
    refusals: Arc<Refusals>,
    every: Duration,
}

impl Service {
    /// By what right the caller of an admitted `request` has its stream: `need` in `namespace`, of which an empty one
    /// stands for all. `case` is whose custody log is told if it ends.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if the request did not come through the door.
    pub(super) fn standing<T>(
        &self,
        request: &Request<T>,
        call: &'static str,
        need: Need,
        namespace: &str,
        case: &str,
    ) -> Result<Standing, Status> {
        Ok(Standing {
            caller: Caller::of(request)?.clone(),
            call,
            need,
            namespace: namespace.to_owned(),
            case: case.to_owned(),
            refusals: self.refusals.clone(),
            every: self.recheck,
        })
    }
}

impl Standing {
    /// `answers`, until the caller may not have them any more: then the last one says so.
    pub(super) fn over<T: Send + 'static>(self, answers: Answers<T>) -> Answers<T> {
        let (caller, need, namespace) = (self.caller.clone(), self.need, self.namespace.clone());
        let ask = move || {
            let (caller, namespace) = (caller.clone(), namespace.clone());
            async move { caller.still_may(need, Scope::of(&namespace)).await }
        };
        until(answers, async move {
            let status = lost(self.every, ask).await;
            self.told(status).await
        })
    }

    /// What the caller is told; the logs are told, too.
    async fn told(&self, why: Status) -> Status {
        let identity = &*self.caller.who.id;
        let outcome = format!("{:?}", why.code());
        tracing::warn!(
            identity,
            call = self.call,
            outcome,
            why = why.message(),
            "a stream ends: its caller may not have it any more"
        );
        if why.code() == Code::PermissionDenied {
            let refusal = Refusal {
                who: identity,
                certificate: self.caller.who.certificate,
                call: self.call,
                case: &self.case,
                why: why.message(),
            };
            self.refusals.note(refusal).await;
        }
        Status::new(why.code(), format!("the stream ends: {}", why.message()))
    }
}

/// Waits until `ask`, every so often, says no, or has said nothing for too long.
async fn lost<F>(every: Duration, ask: impl Fn() -> F) -> Status
where
    F: Future<Output = Result<(), Status>>,
{
    let mut allowed = Instant::now();
    loop {
        tokio::time::sleep(every).await;
        match ask().await {
            Ok(()) => allowed = Instant::now(),
            Err(status) if is_no(&status) || allowed.elapsed() >= UNANSWERED => return status,
            Err(_) => {}
        }
    }
}

/// Whether that is an answer. Anything else only says that there is none now.
fn is_no(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied | Code::Unauthenticated
    )
}

/// `answers` until `end`, and that as the last one. `end` is waited for also while nobody reads.
fn until<T: Send + 'static>(
    answers: Answers<T>,
    end: impl Future<Output = Status> + Send + 'static,
) -> Answers<T> {
    let end = AbortOnDropHandle::new(tokio::spawn(end));
    stream::unfold(Some((answers, end)), |state| async move {
        let (mut answers, mut end) = state?;
        tokio::select! {
            biased;
            ended = &mut end => {
                let why = ended.unwrap_or_else(|error| Status::internal(error.to_string()));
                Some((Err(why), None))
            }
            answer = answers.next() => answer.map(|answer| (answer, Some((answers, end)))),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const EVERY: Duration = Duration::from_secs(20);

    /// When a stream ends that is asked about with these answers, one after the other, and with which of them.
    async fn ends_after(says: &[Result<(), Code>]) -> (Duration, Code) {
        let (began, said) = (Instant::now(), Mutex::new(says.iter().copied()));
        let ask = || {
            let next = said.lock().unwrap().next().expect("asked once too often");
            async move { next.map_err(|code| Status::new(code, "no")) }
        };
        let code = lost(EVERY, ask).await.code();
        assert_eq!(said.lock().unwrap().len(), 0, "asked too seldom");
        (began.elapsed(), code)
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_that_was_taken_away_ends_a_stream_at_the_next_look() {
        for no in [Code::PermissionDenied, Code::Unauthenticated] {
            assert_eq!(
                ends_after(&[Ok(()), Ok(()), Err(no)]).await,
                (EVERY * 3, no)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_away_keeps_no_right_alive_and_ends_no_stream_at_once() {
        let away = Err(Code::Unavailable);
        let ended = ends_after(&[Ok(()), away, Ok(()), away, away, away]).await;
        assert_eq!(ended, (EVERY * 6, Code::Unavailable));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_come_until_the_end_and_none_after_it() {
        let forever = || -> Answers<u32> {
            let ticks = stream::unfold(0, |n| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Some((Ok(n), n + 1))
            });
            ticks.boxed()
        };
        let end = async {
            tokio::time::sleep(Duration::from_millis(3_500)).await;
            Status::permission_denied("gone")
        };
        let got: Vec<_> = until(forever(), end).collect().await;
        assert_eq!(got.len(), 4);
        assert_eq!(got[3].as_ref().unwrap_err().code(), Code::PermissionDenied);
        // And a stream that ends by itself ends as it is.
        let whole: Vec<_> = until(forever().take(2).boxed(), std::future::pending())
            .collect()
            .await;
        assert!(whole.len() == 2 && whole.iter().all(Result::is_ok));
    }
}
