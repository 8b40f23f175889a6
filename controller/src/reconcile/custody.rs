//! What the reconcilers and the service write into a case's custody log: who asked, who allowed it, what
//! became of the containment.
//!
//! A request over gRPC is written as authorised, with the identity of the certificate, before its object
//! is made. Entry and object hold the same random id, which nobody can know before the object is there; the
//! entry says which pod it is about, and counts for the first object only: another that repeats name,
//! requester, reason and id is another one, and so is the first one if it is about another pod. An object for which there is no such entry was written by somebody through the
//! Kubernetes API: whoever it names as requester is recorded as claimed. Each entry is written once for
//! each object, by its uid, however often a step is repeated.

use std::collections::HashSet;
use std::time::Duration;

use impound_evidence::{CaseId, Entry, Event, Sha256};
use impound_proto::PeerId;

use kube::Resource;
use uuid::Uuid;

use super::Context;
use crate::describe::describe;

/// How long what must not wait for the store (containment, and what is still to come) waits for an entry.
/// It is written again later.
pub const AT_ONCE: Duration = Duration::from_secs(2);

/// How long an entry is waited for where nothing is urgent.
pub const AT_LEISURE: Duration = Duration::from_secs(30);

/// Waits for entries no longer than `limit`: a store that hangs must not hold up what people wait for.
///
/// # Errors
/// In words, if they could not be written in time. They may be written all the same, and are not written
/// twice.
pub async fn within(
    limit: Duration,
    writing: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    tokio::time::timeout(limit, writing)
        .await
        .unwrap_or_else(|_| {
            Err(format!(
                "the custody log could not be written within {limit:?}"
            ))
        })
}

/// Annotation of an object that was asked for over gRPC: the id of that request, a random UUID. Whoever
/// takes it away or changes it makes the requester a claimed one.
pub const REQUEST: &str = "impound.dev/request";

/// What an entry is about: the kind of object, its name and its uid.
#[must_use]
pub fn subject(kind: &str, namespace: &str, name: &str, uid: &str) -> String {
    format!("{kind} {namespace}/{name} (uid {uid})")
}

/// What the entry of an authorised request for a new object is about: it has no uid yet, and the
/// request's id stands for it. `pod`: the name and uid of the pod, so that an object that takes the place of the
/// one that was asked for can be about no other.
#[must_use]
pub fn request(
    kind: &str,
    namespace: &str,
    name: &str,
    (pod, uid): (&str, Option<&str>),
    id: Uuid,
) -> String {
    let uid = uid.unwrap_or("not known");
    format!(
        "{kind} {namespace}/{name} of pod {pod} (uid {uid}){}",
        suffix(id)
    )
}

/// The same of a sweep: which pods it is about is what it selects, in words.
#[must_use]
pub fn request_of_sweep(name: &str, selection: &str, id: Uuid) -> String {
    format!("sweep {name} of {selection}{}", suffix(id))
}

/// What is wished of a sweep that is there: `pause`, `resume`, `cancel` or `delete`.
#[must_use]
pub fn wish_of_sweep(wish: &str, name: &str, uid: &str) -> String {
    format!("{wish} sweep {name} (uid {uid})")
}

/// The id of the request that an object says it was made for; none if it says nothing of the kind.
#[must_use]
pub fn request_id(object: &impl Resource) -> Option<Uuid> {
    let annotations = object.meta().annotations.as_ref()?;
    Uuid::try_parse(annotations.get(REQUEST)?).ok()
}

/// How what is written of a request ends: no name has a space, so nothing else ends so.
fn suffix(id: Uuid) -> String {
    format!(", request {id}")
}

/// Writes that `who`, known by the certificate with this SHA-256 or by a token, may ask for `subject`.
///
/// # Errors
/// In words, if the log can't be written.
pub async fn authorised(
    context: &Context,
    case: &CaseId,
    (who, certificate): (&str, Option<Sha256>),
    subject: &str,
    reason: &str,
) -> Result<(), String> {
    let mut entry = Entry::new(Event::Authorised, who, subject).because(reason);
    entry.certificate_sha256 = certificate;
    write(context, case, entry).await
}

/// Writes that the object of an authorised request was not made: nobody else's may pass for it.
///
/// # Errors
/// As [`authorised`].
pub async fn withdrawn(
    context: &Context,
    case: &CaseId,
    subject: &str,
    why: &str,
) -> Result<(), String> {
    let who = PeerId::Controller.to_string();
    write(
        context,
        case,
        Entry::new(Event::Failed, who, subject).because(why),
    )
    .await
}

/// The entry that says that `who` was authorised to ask for `subject` for this reason; none if there is none,
/// or another says that nothing came of it.
#[must_use]
pub fn authorisation<'e>(
    entries: &'e [Entry],
    who: &str,
    subject: &str,
    reason: &str,
) -> Option<&'e Entry> {
    let of = |event| entries.iter().filter(move |entry| entry.event == event);
    let withdrawn = of(Event::Failed).any(|entry| entry.what == subject);
    let mut authorised = of(Event::Authorised).filter(|entry| {
        entry.who == who && entry.what == subject && entry.why.as_deref() == Some(reason)
    });
    authorised.next().filter(|_| !withdrawn)
}

/// A wish that an object holds.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What was asked for.
    pub event: Event,
    /// By whom, as the object says.
    pub who: &'a str,
    /// What it is about: [`subject`].
    pub subject: &'a str,
    /// What it is about in the entry that authorises it; none: nothing can authorise it.
    pub authorised: Option<&'a str>,
    /// The id of the request, if it made the object.
    pub request: Option<Uuid>,
    /// Why, as the object says.
    pub reason: &'a str,
}

impl Asked<'_> {
    /// The entry, given those that are there.
    fn entry(&self, entries: &[Entry]) -> Entry {
        let ending = self.request.map(suffix).unwrap_or_default();
        let what = format!("{}{ending}", self.subject);
        let taken = self.request.is_some()
            && entries.iter().any(|entry| {
                entry.event == self.event && entry.what.ends_with(&ending) && entry.what != what
            });
        let authorised = self.authorised.filter(|_| !taken);
        let authorised =
            authorised.and_then(|subject| authorisation(entries, self.who, subject, self.reason));
        let mut entry = Entry::new(self.event, self.who, what).because(self.reason);
        entry.claimed = authorised.is_none();
        entry.certificate_sha256 = authorised.and_then(|entry| entry.certificate_sha256);
        entry
    }
}

/// Writes an entry of somebody who may be only claimed, unless it is there already.
///
/// # Errors
/// In words, if the case is none or its log can't be read or written.
pub async fn asked(context: &Context, case: &str, asked: Asked<'_>) -> Result<(), String> {
    let case = parse(case)?;
    let entries = context.custody.of_case(&case).await;
    let entries = entries.map_err(|error| describe(&error))?;
    let entry = asked.entry(&entries);
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
    let entries = context.custody.of_case(&case).await;
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
    append(context, case, vec![entry]).await
}

/// Writes entries as they are, all or none of them.
///
/// # Errors
/// As [`authorised`].
pub async fn append(context: &Context, case: &CaseId, entries: Vec<Entry>) -> Result<(), String> {
    let Some(event) = entries.first().map(|entry| entry.event) else {
        return Ok(());
    };
    let written = context.custody.append_to_case(case, entries).await;
    written
        .map(drop)
        .map_err(|error| format!("custody entry {event:?} not written: {}", describe(&error)))
}

/// Writes those of these entries that are not there yet.
///
/// # Errors
/// As [`asked`].
pub async fn once(context: &Context, case: &str, entries: Vec<Entry>) -> Result<(), String> {
    let case = parse(case)?;
    let there = context.custody.of_case(&case).await;
    let there = there.map_err(|error| describe(&error))?;
    let key = |entry: &Entry| {
        let Entry {
            event,
            who,
            what,
            why,
            ..
        } = entry.clone();
        (event, who, what, why)
    };
    let known: HashSet<_> = there.iter().map(key).collect();
    let missing = entries
        .into_iter()
        .filter(|entry| !known.contains(&key(entry)));
    append(context, &case, missing.collect()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_that_hangs_holds_nothing_up() {
        let limit = Duration::from_millis(20);
        let told = within(limit, std::future::pending()).await.unwrap_err();
        assert_eq!(told, "the custody log could not be written within 20ms");
    }

    const WHO: &str = "responder/alice";
    const POD: (&str, Option<&str>) = ("web", Some("uid-pod"));

    fn asked<'a>(subject: &'a str, authorised: &'a str, id: Uuid) -> Asked<'a> {
        Asked {
            event: Event::Requested,
            who: WHO,
            subject,
            authorised: Some(authorised),
            request: Some(id),
            reason: "shell in it",
        }
    }

    #[test]
    fn an_authorised_request_counts_for_one_object_only() {
        let id = Uuid::new_v4();
        let authorised = request("quarantine", "shop", "web-1", POD, id);
        let mut entries =
            vec![Entry::new(Event::Authorised, WHO, &*authorised).because("shell in it")];
        let (first, second) = (
            subject("quarantine", "shop", "web-1", "uid-1"),
            subject("quarantine", "shop", "web-1", "uid-2"),
        );
        let own = asked(&first, &authorised, id).entry(&entries);
        assert!(!own.claimed);
        entries.push(own);
        assert!(
            !asked(&first, &authorised, id).entry(&entries).claimed,
            "the same object again"
        );
        let forged = asked(&second, &authorised, id).entry(&entries);
        assert!(
            forged.claimed,
            "the same name, requester, reason and id again"
        );
        assert!(!is_there(&entries, &forged), "it is told of by itself");
        let guessed = Uuid::new_v4();
        let other = request("quarantine", "shop", "web-1", POD, guessed);
        assert!(asked(&first, &other, guessed).entry(&entries).claimed);
    }

    #[test]
    fn an_object_that_takes_the_place_of_the_authorised_one_is_about_no_other_pod() {
        let id = Uuid::new_v4();
        let authorised = request("quarantine", "shop", "web-1", POD, id);
        let entries = [Entry::new(Event::Authorised, WHO, authorised).because("shell in it")];
        let object = subject("quarantine", "shop", "web-1", "uid-2");
        for (pod, claimed) in [
            (POD, false),
            (("db", Some("uid-pod")), true),
            (("web", Some("uid-other")), true),
            (("web", None), true),
        ] {
            let of = request("quarantine", "shop", "web-1", pod, id);
            let entry = asked(&object, &of, id).entry(&entries);
            assert_eq!(entry.claimed, claimed, "{of}");
        }
    }

    #[test]
    fn a_request_whose_object_was_not_made_authorises_nothing() {
        let id = Uuid::new_v4();
        let authorised = request("quarantine", "shop", "web-1", POD, id);
        let entries = [
            Entry::new(Event::Authorised, WHO, &*authorised).because("shell in it"),
            Entry::new(Event::Failed, "controller", &*authorised).because("409"),
        ];
        let object = subject("quarantine", "shop", "web-1", "uid-1");
        assert!(asked(&object, &authorised, id).entry(&entries).claimed);
    }
}
