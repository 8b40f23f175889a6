//! `timeline.jsonl`: what happened when, out of what the collection has by then: the containment,
//! the custody log, the containers, and every changed file at its time.
//!
//! First what was done, by time, then the files of each container in the order of their tar: a
//! timeline of a million files is not sorted in memory, and Timesketch sorts.

use impound_evidence::{ContainerRole, EvidencePath, Method, Moment, Timestamp};

use super::CollectError;
use super::derive::Output;
use super::failure::{Failure, cut};
use super::note::Begun;
use super::receive::DOCUMENT;
use super::session::Session;
use crate::describe::describe;

/// File name in a collection.
const NAME: &str = "timeline.jsonl";
/// Bytes of lines that are gathered before they are written.
const PIECE: usize = 64 << 10;

/// What the layer's listing calls the changes that it found.
const LAYER_CHANGES: &str = "layer.tar.changes.jsonl";

impl Session<'_> {
    /// Stores it, once. Without it the collection is partial and says why.
    pub(super) async fn store_timeline(&self) -> Result<(), CollectError> {
        let path = self.path(NAME, "the timeline")?;
        if self.stored(&path).is_some() {
            return Ok(());
        }
        let Err(failure) = self.write_timeline(&path).await else {
            return Ok(());
        };
        let (why, _) = failure.reason()?;
        self.record_failed(NAME, &why).await?;
        self.miss(&path, false, why);
        Ok(())
    }

    async fn write_timeline(&self, path: &EvidencePath) -> Result<(), Failure> {
        let stored = self.all_stored();
        let suspects = self
            .noted(|note| {
                let suspect = note.containers.iter();
                suspect
                    .filter(|known| known.container.role == ContainerRole::Suspect)
                    .map(|known| {
                        (
                            known.container.name.clone(),
                            format!("{}/", known.directory),
                        )
                    })
                    .collect::<Vec<_>>()
            })
            .await;
        let whose = |path: &EvidencePath| {
            let is_of = |(_, directory): &&(String, String)| path.as_str().starts_with(directory);
            suspects.iter().find(is_of).map(|(name, _)| name.as_str())
        };
        let mut sources = Vec::new();
        let mut moments = Vec::new();
        let mut changes = Vec::new();
        let mut closed = 0;
        for record in &stored {
            let name = record.path.file_name();
            let told_of = matches!(name, "inspect.json" | "containment.json")
                || name.ends_with(".changes.jsonl");
            if told_of && self.is_sealed_off(record) {
                closed += 1;
                continue;
            }
            let found = match (whose(&record.path), name) {
                (None, _) if record.path.as_str() == "containment.json" => {
                    Moment::of_containment(&self.source(&record.path).await?)
                }
                (Some(container), "inspect.json") => {
                    Moment::of_container(container, &self.source(&record.path).await?)
                }
                // The layer has the same files as the export, with times that are not cut.
                (Some(_), name)
                    if name.ends_with(".changes.jsonl")
                        && name != LAYER_CHANGES
                        && self.stored_beside(&record.path, LAYER_CHANGES) =>
                {
                    continue;
                }
                (Some(container), name) if name.ends_with(".changes.jsonl") => {
                    changes.push((container, &record.path));
                    Vec::new()
                }
                _ => continue,
            };
            sources.push(record.path.clone());
            moments.extend(found);
        }
        // Also what happened to the case, as the containment; not to its other collections.
        let log = self.collector.custody.entries_around(&self.at).await;
        let log = log.map_err(|error| self.seal_error(error))?;
        let entries = log.iter().filter(|entry| Moment::is_of_interest(entry));
        moments.extend(entries.map(Moment::of_entry));
        moments.sort_by_key(|moment| moment.datetime);

        let mut output = self.begin_timeline(path, sources).await?;
        output.truncated = (closed > 0).then(|| {
            format!(
                "lacks what is in {closed} files that a controller which has stopped meanwhile has encrypted"
            )
        });
        let mut lines: Vec<u8> = moments.iter().flat_map(Moment::encode).collect();
        for (container, path) in changes {
            let mut reader = match self.lines(path).await {
                Ok(reader) => reader,
                Err(error) => return self.give_up(output, describe(&error)).await,
            };
            loop {
                let line = match reader.next().await {
                    Ok(Some(line)) => line,
                    Ok(None) => break,
                    Err(error) => return self.give_up(output, describe(&error)).await,
                };
                let moment = Moment::of_change(container, &line);
                lines.extend(moment.iter().flat_map(Moment::encode));
                if lines.len() >= PIECE {
                    output.write(std::mem::take(&mut lines)).await;
                }
            }
        }
        output.write(lines).await;
        self.finish_outputs(vec![output]).await
    }

    /// A document that the timeline is made of. That it can't be read costs the timeline, not the collection.
    async fn source(&self, path: &EvidencePath) -> Result<Vec<u8>, Failure> {
        let read = self.document(path, DOCUMENT).await;
        read.map_err(|error| Failure::now(cut(describe(&error)), false))
    }

    /// Leaves nothing of a timeline that can't be finished.
    async fn give_up(&self, output: Output, why: String) -> Result<(), Failure> {
        self.drop_outputs(vec![output]).await;
        Err(Failure::now(cut(why), false))
    }

    /// Whether there is a file of that name in the directory of another.
    fn stored_beside(&self, path: &EvidencePath, name: &str) -> bool {
        let directory = path
            .as_str()
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        let beside = format!("{directory}/{name}").parse();
        beside.is_ok_and(|beside| self.stored(&beside).is_some())
    }

    async fn begin_timeline(
        &self,
        path: &EvidencePath,
        derived_from: Vec<EvidencePath>,
    ) -> Result<Output, Failure> {
        let begun = Begun {
            media_type: "application/jsonl".to_owned(),
            method: Method::Derived,
            api_call: String::new(),
            source_id: self.job.target.uid.clone(),
            derived_from,
            consistency: impound_evidence::Consistency::Live,
            started: None,
            clock_offset_ms: None,
            received_started: Timestamp::now(),
        };
        self.note(|note| note.begun.insert(path.clone(), begun.clone()))
            .await?;
        self.open_output(None, path.clone(), begun).await
    }
}
