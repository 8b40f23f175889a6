//! What the reconcilers and the service write into a case's custody log: who asked, who allowed it, what
//! became of the containment.
//!
//! A request over gRPC is written as authorised, with the identity of the certificate, before its object
//! is made. An object for which there is no such entry was written by somebody through the Kubernetes
//! API: whoever it names as requester is recorded as claimed. Each entry is written once, however often
//! a step is repeated.

use impound_evidence::{CaseId, Entry, Event};
use impound_proto::PeerId;

use super::Context;
use crate::describe::describe;

/// What an entry is about: the kind of object, and its name.
#[must_use]
pub fn subject(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {namespace}/{name}")
}

/// Writes that `who`, known by certificate, may ask for `subject`.
///
/// # Errors
/// In words, if the log can't be written.
pub async fn authorised(
    context: &Context,
    case: &CaseId,
    who: &str,
    subject: &str,
    reason: &str,
) -> Result<(), String> {
    let entry = Entry::new(Event::Authorised, who, subject).because(reason);
    write(context, case, entry).await
}

/// Whether the log says that `who` was authorised to ask for `subject` for this reason.
#[must_use]
pub fn is_authorised(entries: &[Entry], who: &str, subject: &str, reason: &str) -> bool {
    entries.iter().any(|entry| {
        entry.event == Event::Authorised
            && entry.who == who
            && entry.what == subject
            && entry.why.as_deref() == Some(reason)
    })
}

/// Writes an entry of somebody who may be only claimed, unless it is there already. `subject` and
/// `reason` are those of the request.
///
/// # Errors
/// In words, if the case is none or its log can't be read or written.
pub async fn asked(
    context: &Context,
    case: &str,
    event: Event,
    who: &str,
    subject: &str,
    reason: &str,
) -> Result<(), String> {
    let case = parse(case)?;
    let entries = context.custody.case_entries(&case).await;
    let entries = entries.map_err(|error| describe(&error))?;
    let mut entry = Entry::new(event, who, subject).because(reason);
    entry.claimed = !is_authorised(&entries, who, subject, reason);
    if is_there(&entries, &entry) {
        return Ok(());
    }
    write(context, &case, entry).await
}

/// Writes an entry of the controller's own, unless it is there already.
///
/// # Errors
/// As [`asked`].
pub async fn done(
    context: &Context,
    case: &str,
    event: Event,
    what: &str,
    why: Option<String>,
) -> Result<(), String> {
    let case = parse(case)?;
    let entries = context.custody.case_entries(&case).await;
    let entries = entries.map_err(|error| describe(&error))?;
    let mut entry = Entry::new(event, PeerId::Controller.to_string(), what);
    entry.why = why;
    if is_there(&entries, &entry) {
        return Ok(());
    }
    write(context, &case, entry).await
}

fn is_there(entries: &[Entry], wanted: &Entry) -> bool {
    entries.iter().any(|entry| {
        entry.event == wanted.event
            && entry.who == wanted.who
            && entry.what == wanted.what
            && entry.why == wanted.why
    })
}

fn parse(case: &str) -> Result<CaseId, String> {
    case.parse()
        .map_err(|error: impound_evidence::NameError| error.to_string())
}

async fn write(context: &Context, case: &CaseId, entry: Entry) -> Result<(), String> {
    let event = entry.event;
    let written = context.custody.append_to_case(case, vec![entry]).await;
    written
        .map(drop)
        .map_err(|error| format!("custody entry {event:?} not written: {}", describe(&error)))
}
