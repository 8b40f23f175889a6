//! Errors as gRPC statuses: one place, so that the same failure always has the same code.

use tonic::{Code, Status};

use impound_evidence::NameError;

use crate::agents::AgentError;
use crate::contain::observe::ObserveError;
use crate::contain::refusal::Refusal;
use crate::describe::describe;
use crate::kubernetes::{ApiError, from_kube, is_object_name};
use crate::store::StoreError;

pub(super) fn of_observe(error: &ObserveError) -> Status {
    match error {
        ObserveError::Refused(refusal) => of_refusal(refusal),
        ObserveError::Api(error) => of_api(error),
        ObserveError::Shape { .. } | ObserveError::NotServed { .. } => {
            Status::internal(describe(error))
        }
    }
}

pub(super) fn of_refusal(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::NoSuchPod { .. } | Refusal::NoSuchNode { .. } => Code::NotFound,
        Refusal::AlreadyQuarantined { .. } => Code::AlreadyExists,
        _ => Code::FailedPrecondition,
    };
    Status::new(code, refusal.to_string())
}

/// Unavailable only if asking again can help.
pub(super) fn of_agent(error: &AgentError) -> Status {
    let code = match error {
        AgentError::NoSuchNode { .. } => Code::NotFound,
        error if error.is_transient() => Code::Unavailable,
        _ => Code::FailedPrecondition,
    };
    Status::new(code, describe(error))
}

pub(super) fn of_api(error: &ApiError) -> Status {
    let code = match error.code() {
        404 => Code::NotFound,
        400 | 422 => Code::InvalidArgument,
        401 | 403 => Code::PermissionDenied,
        409 => Code::Aborted,
        _ => Code::Unavailable,
    };
    Status::new(
        code,
        format!("the Kubernetes API refused: {}", describe(error)),
    )
}

pub(super) fn of_kube(method: &str, path: &str, error: kube::Error) -> Status {
    of_api(&from_kube(method, path, error))
}

pub(super) fn of_name(error: &NameError) -> Status {
    Status::invalid_argument(error.to_string())
}

pub(super) fn of_store(error: &StoreError) -> Status {
    let code = match error {
        StoreError::NoHolds { .. } => Code::FailedPrecondition,
        error if error.is_not_found() => Code::NotFound,
        _ => Code::Unavailable,
    };
    Status::new(code, describe(error))
}

/// Those who are to read the evidence.
pub(super) fn checked_recipients(recipients: &[String]) -> Result<(), Status> {
    let checked = crate::resources::recipients(recipients);
    checked
        .map(drop)
        .map_err(|error| Status::invalid_argument(format!("encrypt_to: {error}")))
}

/// A required text within its limit, in characters.
pub(super) fn checked_text(field: &str, value: &str, limit: usize) -> Result<(), Status> {
    let length = value.chars().count();
    if value.trim().is_empty() {
        return Err(Status::invalid_argument(format!(
            "{field} is missing: it is required"
        )));
    }
    if length > limit {
        return Err(Status::invalid_argument(format!(
            "{field} has {length} characters, at most {limit} are allowed"
        )));
    }
    Ok(())
}

/// A name that becomes part of an API path.
pub(super) fn checked_name(field: &str, value: &str) -> Result<(), Status> {
    if is_object_name(value) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{field} is {value:?}, expected a Kubernetes name: lower-case letters, digits, \"-\" and \
         \".\", first and last a letter or digit, at most 253"
    )))
}
