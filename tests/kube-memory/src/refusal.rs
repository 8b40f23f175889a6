//! Answers that aren't a success: the `Status` object with the code, reason, details and words of a real server.

use std::fmt::{self, Display};

use serde_json::{Value, json};

use crate::registry::Resource;

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// The `StatusCause` reason, e.g. `FieldValueInvalid`.
    pub(crate) reason: &'static str,
    /// Go-style path, e.g. `spec.containers[0].name`.
    pub(crate) field: String,
    /// Starts with the kind of error, e.g. `Invalid value: …`.
    pub(crate) message: String,
}

impl FieldError {
    fn new(reason: &'static str, field: impl Into<String>, message: String) -> Self {
        Self {
            reason,
            field: field.into(),
            message,
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, value: &Value, why: impl Display) -> Self {
        Self::new(
            "FieldValueInvalid",
            field,
            format!("Invalid value: {value}: {why}"),
        )
    }

    pub(crate) fn invalid_text(field: impl Into<String>, value: &str, why: impl Display) -> Self {
        Self::invalid(field, &Value::from(value), why)
    }

    pub(crate) fn type_invalid(field: impl Into<String>, message: String) -> Self {
        Self::new("FieldValueTypeInvalid", field, message)
    }

    pub(crate) fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {why}")
        };
        Self::new("FieldValueRequired", field, message)
    }

    pub(crate) fn not_supported(
        field: impl Into<String>,
        value: &Value,
        allowed: &[Value],
    ) -> Self {
        let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        let allowed = allowed.join(", ");
        Self::new(
            "FieldValueNotSupported",
            field,
            format!("Unsupported value: {value}: supported values: {allowed}"),
        )
    }

    pub(crate) fn forbidden(field: impl Into<String>, why: impl Display) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {why}"))
    }

    pub(crate) fn duplicate(field: impl Into<String>, what: impl Display) -> Self {
        Self::new(
            "FieldValueDuplicate",
            field,
            format!("Duplicate value: {what}"),
        )
    }

    /// An error whose value isn't printed, as CEL rules give.
    pub(crate) fn rule(field: impl Into<String>, why: impl Display) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {why}"))
    }
}

/// An answer that is not a success.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) details: Option<Value>,
    /// Seconds for the Retry-After header, also shown in the details.
    pub(crate) retry_after: Option<u32>,
    /// Text instead of a Status: what the router of a real server answers.
    pub(crate) plain: bool,
}

impl Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for Refusal {}

/// Result of an API operation.
pub(crate) type Outcome<T> = Result<T, Refusal>;

fn details(name: &str, group: &str, kind: &str) -> Value {
    let mut details = json!({});
    for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            crate::json::put(&mut details, &[key], value);
        }
    }
    details
}

impl Refusal {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            retry_after: None,
            plain: false,
        }
    }

    fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// What isn't served at all: plain text, no Status.
    pub(crate) fn not_served() -> Self {
        Self {
            plain: true,
            ..Self::new(404, "", "404 page not found\n")
        }
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} \"{name}\" not found", resource.table),
        )
        .with_details(details(name, &resource.group, &resource.plural))
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(
            409,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", resource.table),
        )
        .with_details(details(name, &resource.group, &resource.plural))
    }

    pub(crate) fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            &resource.table,
            details(name, &resource.group, &resource.plural),
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    fn conflict(what: &str, details: Value, name: &str, why: impl Display) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {what} \"{name}\": {why}"),
        )
        .with_details(details)
    }

    /// A conflict that names the resource, as storage gives.
    pub(crate) fn storage_conflict(resource: &Resource, name: &str, why: impl Display) -> Self {
        let details = details(name, &resource.group, &resource.plural);
        Self::conflict(&resource.table, details, name, why)
    }

    /// A failed precondition of a delete or an eviction: it names the kind, not the resource.
    pub(crate) fn precondition(resource: &Resource, name: &str, why: impl Display) -> Self {
        let details = details(name, &resource.group, &resource.kind);
        Self::conflict(
            &qualified(&resource.kind, &resource.group),
            details,
            name,
            why,
        )
    }

    pub(crate) fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Self {
        Self::invalid_kind(&resource.kind, &resource.group, name, errors)
    }

    /// 422; `kind` is usually the Kind, sometimes (as on a real server) the resource.
    pub(crate) fn invalid_kind(kind: &str, group: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for error in errors {
            let text = format!("{}: {}", error.field, error.message);
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let all = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| {
                json!({"reason": error.reason, "message": error.message, "field": error.field})
            })
            .collect();
        let mut details = details(name, group, kind);
        crate::json::put(&mut details, &["causes"], causes);
        let kind = qualified(kind, group);
        Self::new(
            422,
            "Invalid",
            format!("{kind} \"{name}\" is invalid: {all}"),
        )
        .with_details(details)
    }

    /// A json patch that doesn't apply: the real answer says no more than this.
    pub(crate) fn unprocessable() -> Self {
        Self::new(
            422,
            "Invalid",
            "the server rejected our request due to an error in our request",
        )
        .with_details(json!({}))
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with_details(json!({}))
    }

    pub(crate) fn unsupported_media(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn forbidden(resource: &Resource, name: &str, why: impl Display) -> Self {
        Self::new(
            403,
            "Forbidden",
            format!("{} \"{name}\" is forbidden: {why}", resource.table),
        )
        .with_details(details(name, &resource.group, &resource.plural))
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn too_large_version(asked: u64, current: u64) -> Self {
        let mut refusal = Self::new(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        )
        .with_details(json!({"causes": [
            {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}));
        refusal.retry_after = Some(1);
        refusal
    }

    /// 429 of the eviction API. Only an unprocessed budget tells when to come again.
    pub(crate) fn disruption_budget(cause: String, retry_after: Option<u32>) -> Self {
        let mut refusal = Self::new(
            429,
            "TooManyRequests",
            "Cannot evict pod as it would violate the pod's disruption budget.",
        )
        .with_details(json!({"causes": [{"reason": "DisruptionBudget", "message": cause}]}));
        refusal.retry_after = retry_after;
        refusal
    }

    pub(crate) fn apply_conflict(message: String, causes: Vec<Value>) -> Self {
        Self::new(409, "Conflict", message).with_details(json!({"causes": causes}))
    }

    /// The Status object of this answer.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            crate::json::put(&mut status, &["reason"], self.reason);
        }
        if let Some(details) = &self.details {
            crate::json::put(&mut status, &["details"], details.clone());
        }
        if let Some(seconds) = self.retry_after {
            crate::json::put(&mut status, &["details", "retryAfterSeconds"], seconds);
        }
        status
    }
}

/// `Kind` or `Kind.group`, as error texts name it.
fn qualified(kind: &str, group: &str) -> String {
    if group.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind}.{group}")
    }
}
