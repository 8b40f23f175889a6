//! What a collection that is given up leaves behind on its node: images of its containers, of which, without a
//! manifest, nothing but its note knows.

use impound_evidence::{Entry, Event};

use super::note::Note;
use super::session::{is_of, is_request};
use super::{Collector, TargetPod};
use crate::describe::describe;
use crate::store::CollectionId;

/// A collection that may have been begun.
#[derive(Debug, Clone)]
pub struct Begun {
    /// The collection.
    pub at: CollectionId,
    /// Its pod.
    pub target: TargetPod,
    /// Who asked for it.
    pub requested_by: String,
    /// Why.
    pub reason: String,
}

impl Collector {
    /// Writes into the custody log that a collection is given up, and why, and which images may still be on its node:
    /// each may be the only copy of a container that is gone, so none is removed. What the log says already is not
    /// written again, and of a collection that is another request's nothing is written, nor said. What somebody should
    /// look after, a sentence each; also if the log can't be written.
    pub async fn give_up(&self, begun: &Begun, why: &str) -> Vec<String> {
        let (at, node) = (&begun.at, begun.target.node.as_str());
        let asked = (begun.requested_by.as_str(), begun.reason.as_str());
        let logged = self.custody.entries(at).await;
        if let Ok(logged) = &logged
            && let Some(first) = logged.iter().find(is_request)
            && !is_of(first, &begun.target, asked)
        {
            return Vec::new();
        }
        let (known, left) = match self.noted(at).await {
            Ok(note) => {
                let images = note.images.into_keys();
                // What was tried in vain with some of them is said, and in the log, already.
                let unsaid =
                    images.filter(|image| !note.warnings.iter().any(|said| said.contains(image)));
                let left: Vec<(String, String)> =
                    unsaid.map(|image| on_node(&image, node)).collect();
                (note.warnings, left)
            }
            Err(problem) => {
                let unknown = format!("{} ({problem})", look(at, node));
                (
                    Vec::new(),
                    vec![(format!("images on node {node}"), unknown)],
                )
            }
        };
        let given_up = ("the collection".to_owned(), why.to_owned());
        let sayings = std::iter::once(&given_up).chain(&left);
        let written = match logged {
            Ok(logged) => {
                let unsaid = sayings.filter(|saying| !says(&logged, saying));
                let entries = unsaid.map(|(what, why)| {
                    Entry::new(Event::Failed, Self::who(), what.clone()).because(why.clone())
                });
                match entries.collect::<Vec<_>>() {
                    // The entries may be there, and only their signature not.
                    none if none.is_empty() => self.custody.settle(&at.case).await,
                    entries => self.custody.append_all(at, entries).await,
                }
            }
            // Whose the collection is can't be known then.
            Err(error) => Err(error),
        };
        let unwritten = written
            .map(drop)
            .err()
            .map(|error| format!("this is not in the custody log: {}", describe(&error)));
        let left = left.into_iter().map(|(_, sentence)| sentence);
        known.into_iter().chain(left).chain(unwritten).collect()
    }

    async fn noted(&self, at: &CollectionId) -> Result<Note, String> {
        let note = self.store.note(at).await;
        let note = note.map_err(|error| describe(&error))?.unwrap_or_default();
        match note.is_empty() {
            true => Ok(Note::default()),
            false => serde_json::from_slice(&note).map_err(|error| error.to_string()),
        }
    }
}

/// Whether it was written before, by a process that ended before it could say so elsewhere.
fn says(log: &[Entry], (what, why): &(String, String)) -> bool {
    let mut failed = log.iter().filter(|entry| entry.event == Event::Failed);
    failed.any(|entry| entry.what == *what && entry.why.as_ref() == Some(why))
}

/// An image that nobody has seen gone: what the log calls it, and what to do.
fn on_node(reference: &str, node: &str) -> (String, String) {
    (
        format!("image {reference} on node {node}"),
        format!(
            "image {reference} may be on node {node}: save it there with `docker save`, then remove it with `docker image \
             rm {reference}`"
        ),
    )
}

/// Where to look if it is not known what was left on a node.
#[must_use]
pub fn look(at: &CollectionId, node: &str) -> String {
    format!(
        "which images it left on node {node} is not known: look there with `docker images --filter \
         label=dev.impound.collection={}`",
        at.name
    )
}
