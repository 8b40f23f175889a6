//! Makes a Collection that a quarantine asks for, the first one and the later ones alike.
//!
//! Its name may be somebody else's: in the namespace an object's, or in the case that of a collection that is stored,
//! as of a quarantine of the same name that was released and deleted. What is sealed there would pass for evidence of
//! this suspect. Another name is taken then, one that nobody can know before, and recorded before anything is made
//! under it. So it is when the store does not say what it has.

use impound_evidence::case_log;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use uuid::Uuid;

use super::Context;
use super::collection::collection_id;
use super::custody::AT_ONCE;
use super::guarding::note;
use super::record::Record;
use crate::contain::plan::NAME_LIMIT;
use crate::describe::describe;
use crate::kubernetes::{ApiError, from_kube};
use crate::resources::Collection;

/// Other names that are taken for one quarantine. Who finds each of them taken meets somebody who means it.
const NAMES: usize = 5;

/// Reason of a name that is somebody else's.
const NAME_TAKEN: &str = "NameTaken";

/// What came of making a collection.
pub(super) enum Made {
    /// It is there, made now or by an attempt that did not get as far as recording it.
    There(Box<Collection>),
    /// Its name is somebody else's, or may be.
    Taken(Taken),
}

/// How much is known of whose a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Another collection has it.
    Surely,
    /// The store does not say whether it has one.
    Perhaps,
}

/// Makes the collection. `chosen`: its name is one that [`another_name`] gave, so that no other collection has it even if
/// the store does not say so.
///
/// # Errors
/// If the API does not take it.
pub(super) async fn make(
    record: &Record,
    context: &Context,
    wanted: &Collection,
    chosen: bool,
) -> Result<Made, ApiError> {
    let mut conflict = None;
    let stored = is_stored(context, wanted).await;
    if !stored.unwrap_or(!chosen) {
        let api = api(record, context);
        let made = api.create(&PostParams::default(), wanted).await;
        match made.map_err(|error| from_kube("POST", "collections", error)) {
            Ok(made) => return Ok(Made::There(Box::new(made))),
            Err(error) if error.is_conflict() => conflict = Some(error),
            Err(error) => return Err(error),
        }
    }
    match (read(record, context, wanted).await?, conflict) {
        (Some(there), _) if record.owns(&there, wanted) => Ok(Made::There(Box::new(there))),
        (None, Some(conflict)) => Err(conflict),
        (None, None) if stored.is_none() => Ok(Made::Taken(Taken::Perhaps)),
        _ => Ok(Made::Taken(Taken::Surely)),
    }
}

/// The collection, if it is there; what else has its name is none.
///
/// # Errors
/// If the API can't be read.
pub async fn find(
    record: &Record,
    context: &Context,
    wanted: &Collection,
) -> Result<Option<Collection>, ApiError> {
    let there = read(record, context, wanted).await?;
    Ok(there.filter(|there| record.owns(there, wanted)))
}

/// Whatever has its name.
async fn read(
    record: &Record,
    context: &Context,
    wanted: &Collection,
) -> Result<Option<Collection>, ApiError> {
    let there = api(record, context).get_opt(&wanted.name_any()).await;
    there.map_err(|error| from_kube("GET", "collection", error))
}

/// Another name for a collection whose own is taken; `None` if one was chosen often enough. It is to be recorded, and
/// written down ([`write_down`]).
pub(super) fn another_name(record: &Record) -> Option<String> {
    let drift = record.status.drift.iter();
    let chosen = drift.filter(|drift| drift.reason == NAME_TAKEN).count();
    (chosen < NAMES).then(|| random_name(&record.name()))
}

/// Writes down that a collection is made under another name, and why.
pub(super) fn write_down(record: &mut Record, taken: &str, how: Taken, name: &str) {
    let why = match how {
        Taken::Surely => format!(
            "a collection named {taken} exists that is not this quarantine's: it was made before it, or is of another \
             pod, case or request. It is left as it is"
        ),
        Taken::Perhaps => format!(
            "the store does not say whether it has a collection named {taken} already, which would pass for this \
             quarantine's"
        ),
    };
    let what = format!("{why}, and this one's evidence is collected as {name}");
    note(record, NAME_TAKEN, what);
}

/// Whether the case has a stored collection of the name; `None` if the store does not say so soon. A store that is slow
/// keeps no evidence waiting, and the collection itself would not find out: of the same pod, by the same requester for
/// the same reason, what is stored is gone on with, and what is sealed is taken for it.
async fn is_stored(context: &Context, wanted: &Collection) -> Option<bool> {
    let Ok(at) = collection_id(&wanted.spec.case, &wanted.name_any()) else {
        return Some(false);
    };
    if case_log().is_ok_and(|log| log == at.name) {
        return Some(true);
    }
    match tokio::time::timeout(AT_ONCE, context.collector.is_stored(&at)).await {
        Ok(Ok(stored)) => Some(stored),
        Ok(Err(error)) => {
            tracing::warn!(collection = %at, error = describe(&error), "not known whether it is stored already");
            None
        }
        Err(_) => {
            tracing::warn!(collection = %at, "not known whether it is stored already: the store is slow");
            None
        }
    }
}

/// Begins as the quarantine's and ends as no other's, within [`NAME_LIMIT`].
fn random_name(quarantine: &str) -> String {
    const RANDOM: usize = 8;
    let random: String = Uuid::new_v4()
        .simple()
        .to_string()
        .chars()
        .take(RANDOM)
        .collect();
    let start: String = quarantine.chars().take(NAME_LIMIT - RANDOM - 1).collect();
    format!("{}-{random}", start.trim_end_matches(['-', '.']))
}

fn api(record: &Record, context: &Context) -> Api<Collection> {
    Api::namespaced(context.client.clone(), &record.namespace())
}

#[cfg(test)]
mod tests {
    use impound_evidence::CollectionName;

    use super::*;

    #[test]
    fn another_name_is_one_that_store_and_api_take_and_that_is_never_given_twice() {
        for quarantine in [
            "q",
            "web-1.5f3c2d1e",
            &"w".repeat(63),
            &format!("{}.-x", "w".repeat(52)),
        ] {
            let (one, other) = (random_name(quarantine), random_name(quarantine));
            assert_ne!(one, other);
            assert!(one.len() <= NAME_LIMIT, "{one}");
            assert!(one.parse::<CollectionName>().is_ok(), "{one}");
            assert!(one.starts_with(&quarantine[..1]), "{one}");
        }
    }
}
