//! Why an attempt at the agent failed, how long one may take, and how much of the agent's words is
//! believed to be text.

use std::time::Duration;

use impound_proto::tls::explain;
use tokio::time::{Instant, timeout};
use tonic::{Code, Response, Status};

use super::CollectError;
use super::receive::ReceiveError;
use crate::agents::AgentError;
use crate::describe::describe;
use crate::store::StoreError;

/// Longest text of the agent's that is recorded, in characters. Paths have up to 4096 bytes, but
/// what is recorded as text are names, calls and reasons.
const TEXT: usize = 1024;

/// Longest call that is recorded: the one of a commit has the case's reason and who asked, each letter of them as up to
/// nine.
const CALL: usize = 16 << 10;

/// Longest time for a call that only looks something up.
pub(super) const LOOK_UP: Duration = Duration::from_secs(60);
/// Longest silence of a call that makes the runtime read or write a whole file system: `docker save`
/// writes an image to the node's disk before its first byte. A dead connection is noticed much
/// sooner, by HTTP/2's keep-alive.
pub(super) const READ: Duration = Duration::from_secs(600);
/// Longest time for a commit: the runtime copies the container's writable layer.
pub(super) const COMMIT: Duration = Duration::from_secs(3600);

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing can be recorded any more: the run ends.
    Fatal(CollectError),
    /// Only this attempt failed.
    Attempt {
        why: String,
        /// Whether another one can help.
        again: bool,
        /// Whether the connection is to blame.
        channel: bool,
        /// The status, if the agent gave one.
        code: Option<Code>,
    },
}

impl Failure {
    pub(super) fn agent(error: &AgentError) -> Self {
        Self::Attempt {
            why: describe(error),
            again: error.is_transient(),
            channel: true,
            code: None,
        }
    }

    pub(super) fn status(status: &Status) -> Self {
        let settled = matches!(
            status.code(),
            Code::NotFound
                | Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::PermissionDenied
                | Code::Unimplemented
        );
        let channel = matches!(
            status.code(),
            // Unauthenticated: by the agent's clock our certificate has ended; the next connection has a newer one.
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Unauthenticated
        );
        Self::Attempt {
            why: format!("the agent answered: {}", cut(explain(status))),
            again: !settled,
            channel,
            code: Some(status.code()),
        }
    }

    pub(super) fn receive(error: &ReceiveError) -> Self {
        match error {
            ReceiveError::Status(status) => Self::status(status),
            ReceiveError::Store(error) => Self::store(error),
            // The container does not change its description for being asked again.
            ReceiveError::TooLong => Self::now(describe(error), false),
            error => Self::now(describe(error), true),
        }
    }

    pub(super) fn store(error: &StoreError) -> Self {
        Self::now(describe(error), !error.is_full())
    }

    /// `again`: whether another attempt can help.
    pub(super) fn now(why: impl Into<String>, again: bool) -> Self {
        Self::Attempt {
            why: why.into(),
            again,
            channel: false,
            code: None,
        }
    }

    /// The reason and whether another attempt can help; the error if there can't be one.
    pub(super) fn reason(self) -> Result<(String, bool), CollectError> {
        match self {
            Self::Fatal(error) => Err(error),
            Self::Attempt { why, again, .. } => Ok((why, again)),
        }
    }

    /// The reason, of something that nothing else depends on.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Fatal(error) => cut(describe(error)),
            Self::Attempt { why, .. } => why.clone(),
        }
    }

    /// The status, if the agent gave one.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Fatal(_) => None,
            Self::Attempt { code, .. } => *code,
        }
    }

    /// Whether the connection is to blame.
    pub(super) fn is_of_channel(&self) -> bool {
        matches!(self, Self::Attempt { channel: true, .. })
    }
}

impl From<CollectError> for Failure {
    fn from(error: CollectError) -> Self {
        Self::Fatal(error)
    }
}

/// The answer to a call, if it comes within `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Failure::status(&status)),
        Err(_) => Err(Failure::Attempt {
            why: format!("the agent did not answer within {} s", limit.as_secs()),
            again: true,
            channel: true,
            code: None,
        }),
    }
}

/// The part of `limit` that is left until `deadline`.
pub(super) fn until(deadline: Option<Instant>, limit: Duration) -> Duration {
    deadline.map_or(limit, |deadline| {
        limit.min(deadline.saturating_duration_since(Instant::now()))
    })
}

/// A text of the agent's, cut to what is recorded.
pub(super) fn cut(text: String) -> String {
    cut_behind(TEXT, text)
}

/// As [`cut`], of the call that an agent made.
pub(super) fn cut_call(text: String) -> String {
    cut_behind(CALL, text)
}

fn cut_behind(most: usize, mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push_str(" (cut)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("ä".repeat(TEXT)), "ä".repeat(TEXT));
        assert_eq!(
            cut("ä".repeat(TEXT + 1)),
            format!("{} (cut)", "ä".repeat(TEXT))
        );
    }

    #[tokio::test]
    async fn an_agent_that_does_not_answer_is_not_waited_for_without_end() {
        let silent = std::future::pending::<Result<Response<()>, Status>>();
        let failure = within(Duration::from_millis(1), silent).await.unwrap_err();
        assert!(failure.is_of_channel());
        assert!(matches!(failure, Failure::Attempt { again: true, .. }));
    }

    #[test]
    fn a_deadline_shortens_every_wait() {
        let soon = Instant::now() + Duration::from_secs(5);
        assert!(until(Some(soon), READ) <= Duration::from_secs(5));
        assert_eq!(until(None, READ), READ);
        assert_eq!(until(Some(Instant::now()), READ), Duration::ZERO);
    }
}
