//! What can go wrong, in words with what to do about it, and the exit code that says it to scripts.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use impound_proto::tls::explain;
use tonic::Code;

/// Exit codes; the table in `--help` says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    Partial = 3,
    Refused = 4,
    Unreachable = 5,
    NotFound = 6,
    /// 128 + SIGINT, as a shell would say.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended without its result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line or a local file is wrong.
    #[error("{0}")]
    Usage(String),
    /// The controller answered with an error.
    #[error("{0}")]
    Answer(Answer),
    /// Something that was named is not in the answer.
    #[error("not found: {0}")]
    Missing(String),
    /// The controller did not answer.
    #[error("{0}")]
    Unreachable(String),
    /// Something failed here or there.
    #[error("{0}")]
    Failed(String),
    /// Standard output can't be written.
    #[error("the output can't be written: {0}")]
    Output(#[from] io::Error),
    /// Interrupted by the user.
    #[error("{0}")]
    Interrupted(String),
}

/// A gRPC status that the controller sent.
#[derive(Debug)]
pub(crate) struct Answer {
    code: Code,
    message: String,
}

impl Failure {
    pub(crate) fn failed(what: &str, error: &(dyn Error + 'static)) -> Self {
        Self::Failed(format!("{what}: {}", explain(error)))
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Answer(answer) => match answer.code {
                Code::NotFound => Exit::NotFound,
                Code::InvalidArgument
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented
                | Code::ResourceExhausted => Exit::Refused,
                _ => Exit::Failed,
            },
            Self::Missing(_) => Exit::NotFound,
            Self::Unreachable(_) => Exit::Unreachable,
            Self::Failed(_) | Self::Output(_) => Exit::Failed,
            Self::Interrupted(_) => Exit::Interrupted,
        }
    }

    /// Whether the reader of our output went away (`impound list | head -1`): no error.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// From a call's status: of the controller, or of the connection to it.
    pub(crate) fn of_call(status: &tonic::Status) -> Self {
        // Only statuses made on this side carry an error they come from.
        if status.source().is_some() {
            return Self::Unreachable(format!(
                "the controller could not be reached: {}",
                explain(status)
            ));
        }
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => Self::Unreachable(format!(
                "{}; check that the controller and what it needs are up, then try again",
                status.message()
            )),
            code => Self::Answer(Answer {
                code,
                message: status.message().to_owned(),
            }),
        }
    }

    /// Whether trying again can help, because the connection or the controller was lost.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.code {
            Code::NotFound => "not found",
            Code::InvalidArgument => "the controller does not accept this",
            Code::AlreadyExists => "exists already",
            Code::FailedPrecondition => "refused by the controller",
            Code::PermissionDenied => "not permitted",
            Code::Unauthenticated => "not let in",
            Code::Unimplemented => {
                "the controller does not know this call; it may be older than this program"
            }
            Code::ResourceExhausted => "the controller has no room for this now",
            Code::DataLoss => "data was lost",
            _ => "the controller failed",
        };
        match self.message.as_str() {
            "" => write!(f, "{what} ({:?})", self.code),
            message => write!(f, "{what}: {message}"),
        }
    }
}
