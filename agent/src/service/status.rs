//! Errors as gRPC statuses, as `agent.proto` promises them.

use impound_proto::tls::explain;
use tonic::Status;

use crate::disk::DiskError;
use crate::runtime::RuntimeError;

/// An error before the first byte of an answer.
pub(crate) fn of(error: &RuntimeError) -> Status {
    let text = explain(error);
    match error {
        RuntimeError::Unreachable { .. } | RuntimeError::Timeout { .. } => {
            Status::unavailable(text)
        }
        RuntimeError::NotFound { .. } => Status::not_found(text),
        RuntimeError::Refused { .. } => Status::failed_precondition(text),
        RuntimeError::Broken { .. } => Status::data_loss(text),
        RuntimeError::Failed { .. } | RuntimeError::Malformed { .. } => Status::internal(text),
    }
}

/// An error after bytes (or changes) were sent: whatever it is, something is missing.
pub(crate) fn broken(error: &RuntimeError, sent: u64) -> Status {
    Status::data_loss(format!(
        "{}; {sent} were read before and are not complete",
        explain(error)
    ))
}

/// No room.
pub(crate) fn disk(error: &DiskError) -> Status {
    Status::resource_exhausted(error.to_string())
}
