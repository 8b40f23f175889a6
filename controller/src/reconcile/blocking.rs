//! A policy or a strip that the API refuses again and again (a right, a webhook, a quota): it is tried for as
//! long as the quarantine is in force, while isolation at the node, verification and collection go on
//! ([`next_step::blocked`]). Once it succeeds, verification is done again and the rest follows.

use std::time::Duration;

use super::containing::{self, backoff};
use super::next_step::{self, Next};
use super::record::Record;
use super::{Context, ReconcileError};
use crate::resources::StepName;

/// What the step is called where it is put off.
const BLOCKED: &str = "blocked step";

/// Whether the step that has just failed blocks from now on; then it is put off by this pause, and everything
/// else but the evictions goes on.
pub fn begins(record: &mut Record, context: &Context, pause: Duration) -> bool {
    let Some(step) = next_step::blocked(&record.status) else {
        return false;
    };
    let what = format!(
        "{}: {}; isolation at the node and collection go on meanwhile, evictions don't",
        step.name, step.message
    );
    record.alert("ContainmentBlocked", what);
    context.pace.put_off(&record.uid(), BLOCKED, pause);
    true
}

/// Whether the blocked step is to be tried before what comes next.
#[must_use]
pub fn is_due(record: &Record, context: &Context, next: Next) -> bool {
    let undoing = matches!(next, Next::Undo(_) | Next::FinishRelease);
    !undoing
        && next_step::blocked(&record.status).is_some()
        && context.pace.left(&record.uid(), BLOCKED).is_none()
}

/// When the blocked step is tried again; `None` if there is none.
#[must_use]
pub fn left(record: &Record, context: &Context) -> Option<Duration> {
    next_step::blocked(&record.status)?;
    let left = context.pace.left(&record.uid(), BLOCKED);
    Some(left.unwrap_or_default())
}

/// Tries it once. What was said of the pod before it succeeded is verified anew.
///
/// # Errors
/// Only if a read fails in a way that says nothing about the step.
pub async fn try_again(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    let Some(step) = next_step::blocked(&record.status).map(|step| step.name) else {
        return Ok(());
    };
    let pause = containing::carry_out(record, context, step, false).await?;
    let pause = pause.unwrap_or_else(|| backoff(1));
    context.pace.put_off(&record.uid(), BLOCKED, pause);
    if next_step::ended(&record.status, step)
        && next_step::state(&record.status, StepName::Verify).is_some()
    {
        let why = format!("{step} has ended only now: everything is verified again");
        record.reopen(StepName::Verify, why);
    }
    Ok(())
}
