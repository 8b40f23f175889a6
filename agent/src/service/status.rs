//! Errors as gRPC statuses, as `agent.proto` promises them.

use impound_proto::tls::explain;
use tonic::Status;

use crate::capture::CaptureError;
use crate::disk::DiskError;
use crate::freeze::FreezeError;
use crate::isolate::IsolateError;
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

/// No layer is read.
pub(crate) fn capture(error: &CaptureError) -> Status {
    let text = explain(error);
    match error {
        CaptureError::Runtime(error) => of(error),
        CaptureError::Changed { .. } => Status::aborted(text),
        CaptureError::Thread(_) => Status::internal(text),
        _ => Status::failed_precondition(text),
    }
}

/// Nothing stands still.
pub(crate) fn freeze(error: &FreezeError) -> Status {
    let text = explain(error);
    match error {
        FreezeError::Runtime(error) => of(error),
        FreezeError::Unknown { .. } => Status::not_found(text),
        FreezeError::NotRunning { .. } | FreezeError::SeveralPods => {
            Status::failed_precondition(text)
        }
        FreezeError::TooSlow | FreezeError::Busy { .. } | FreezeError::Ended => {
            Status::unavailable(text)
        }
        FreezeError::Record { .. } => Status::internal(text),
    }
}

/// Nothing was done, or what was done did not hold; the text says which.
pub(crate) fn isolation(error: &IsolateError) -> Status {
    let text = explain(error);
    match error {
        IsolateError::Runtime(error) => of(error),
        IsolateError::UnknownPod { .. } => Status::not_found(text),
        IsolateError::Closed => Status::unavailable(text),
        IsolateError::OtherUid { .. }
        | IsolateError::NoSandbox { .. }
        | IsolateError::SeveralSandboxes { .. }
        | IsolateError::Changed { .. }
        | IsolateError::NotItsProcess { .. }
        | IsolateError::HostNetwork { .. }
        | IsolateError::NoHost { .. }
        | IsolateError::NoWayToPod { .. }
        | IsolateError::HeldByOther { .. } => Status::failed_precondition(text),
        IsolateError::Namespace(error) if error.not_permitted() => {
            Status::failed_precondition(text)
        }
        IsolateError::NotInForce { .. }
        | IsolateError::StillThere
        | IsolateError::Namespace(_)
        | IsolateError::Nft(_) => Status::internal(text),
    }
}
