//! What a collection must remember across a crash and the custody log doesn't say: kept beside the
//! collection, see [`crate::store::Store::save_note`]. No evidence, and gone once it is sealed.

use std::collections::{BTreeMap, BTreeSet};

use impound_evidence::age::Recipient;
use impound_evidence::{
    Agent, Alteration, ArtifactRecord, Build, Completeness, Consistency, Container, EvidencePath,
    LogHead, Method, Missing, Sha256, StorageClaim, Timestamp, export_name,
};
use serde::{Deserialize, Serialize};

use crate::store::Content;

/// Notes of a running collection.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    /// Containers that were listed, with the directory each was given.
    pub(super) containers: Vec<Known>,
    /// Agents as they were met.
    pub(super) agents: Vec<Agent>,
    /// metadata.uid of the Node object.
    pub(super) node_uid: Option<String>,
    /// Its status.nodeInfo.bootID.
    pub(super) node_boot_id: Option<String>,
    /// What was changed on the node.
    pub(super) alterations: Vec<Alteration>,
    /// Where the attempts that were begun come from, by the name they are for.
    pub(super) begun: BTreeMap<EvidencePath, Begun>,
    /// Images that were made and may still be on the node, by reference.
    pub(super) images: BTreeMap<String, Image>,
    /// Containers that were paused while they were exported, and for how many ms at most.
    #[serde(default)]
    pub(super) frozen: BTreeMap<String, u64>,
    /// What was left out because the node can't give it, and why.
    #[serde(default)]
    pub(super) forgone: BTreeMap<EvidencePath, String>,
    /// What somebody should look after.
    pub(super) warnings: Vec<String>,
    /// Set when collecting is over: what was given up. From then on no node is asked for anything, by no
    /// run, so that what is made of the whole collection stays true of it.
    #[serde(default)]
    pub(super) closed: Option<Vec<Missing>>,
    /// Set when everything is stored: from then on nothing but the seal changes.
    pub(super) sealing: Option<Sealing>,
}

/// A container and its directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    pub(super) container: Container,
    pub(super) directory: EvidencePath,
}

impl Known {
    /// The container's name as part of a file name: the agent's word may be no name.
    pub(super) fn file_name(&self) -> &str {
        let container = &self.container;
        if export_name(&container.name, &container.id).is_ok() {
            &container.name
        } else {
            "unnamed"
        }
    }
}

/// An attempt at an artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begun {
    pub(super) media_type: String,
    pub(super) method: Method,
    pub(super) api_call: String,
    pub(super) source_id: String,
    pub(super) consistency: Consistency,
    /// What it is made from, if it is made here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) derived_from: Vec<EvidencePath>,
    /// The agent's clock.
    pub(super) started: Option<Timestamp>,
    /// The agent's clock minus ours, milliseconds.
    pub(super) clock_offset_ms: Option<i64>,
    /// Ours.
    pub(super) received_started: Timestamp,
}

impl Begun {
    /// The record of what came of it. What the store says of it is still missing.
    pub(super) fn record(
        &self,
        path: &EvidencePath,
        content: Content,
        completeness: Completeness,
        finished: Option<Timestamp>,
    ) -> ArtifactRecord {
        ArtifactRecord {
            path: path.clone(),
            size: content.size,
            sha256: content.sha256,
            chunk_root: None,
            stored: None,
            media_type: self.media_type.clone(),
            method: self.method,
            api_call: self.api_call.clone(),
            source_id: self.source_id.clone(),
            derived_from: self.derived_from.clone(),
            consistency: self.consistency,
            completeness,
            omissions: self.method.omissions(),
            started: self.started,
            finished,
            clock_offset_ms: self.clock_offset_ms,
            received_started: self.received_started,
            received_finished: Timestamp::now(),
            receipt: None,
        }
    }
}

/// An image on the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Image {
    /// Full id, once the agent has said that it was made.
    pub(super) id: Option<String>,
}

impl Note {
    /// SHA-256 of all that goes from here into the manifest, but for the log's head. The log says it
    /// before anything is signed: the note itself lies unsigned in the store while a controller is away.
    pub(super) fn settled(&self, settled: &Settled) -> Sha256 {
        let node = (&self.node_uid, &self.node_boot_id);
        let all = (
            settled,
            &self.agents,
            &self.containers,
            (&self.alterations, &self.forgone),
            node,
        );
        // Serialising to memory fails only for maps with keys that are no strings; there are none.
        Sha256::of(&serde_json::to_vec(&all).unwrap_or_default())
    }
}

/// What a manifest needs so that a second attempt makes the same bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sealing {
    pub(super) settled: Settled,
    /// The log's head; its last entry has [`Note::settled`].
    pub(super) custody: LogHead,
}

/// What is settled before the log's last entry is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settled {
    pub(super) created: Timestamp,
    /// Whether the requester is only claimed.
    pub(super) claimed: bool,
    /// SHA-256 of the requester's certificate, if it was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<Sha256>,
    pub(super) missing: Vec<Missing>,
    /// What the store was found to be at this controller's start.
    #[serde(default)]
    pub(super) storage: Option<StorageClaim>,
    /// To whom artifacts are encrypted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) encrypted_to: BTreeSet<Recipient>,
    /// What is mounted into the suspect's containers, a sentence each, for the manifest's omissions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) mounts: Vec<String>,
    /// URL of the time-stamping authority that is to be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) authority: Option<String>,
    /// The controller that ended collecting; another build may write the signature.
    pub(super) controller: Build,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_note_what_is_taken_is_settled_alike_when_it_is_read_again() {
        let at: Timestamp = "2026-01-31T03:04:05.678901Z".parse().unwrap();
        let settled = Settled {
            created: at,
            claimed: true,
            certificate: None,
            authority: None,
            encrypted_to: BTreeSet::new(),
            mounts: vec!["/data is a volume".to_owned()],
            missing: vec![Missing {
                path: "artifacts/x".parse().unwrap(),
                reason: "gone".to_owned(),
            }],
            storage: None,
            controller: Build {
                name: "impound-controller".to_owned(),
                version: "0.1.0".to_owned(),
                executable_sha256: None,
            },
        };
        let mut note = Note {
            node_uid: Some("uid-node".to_owned()),
            warnings: vec!["look".to_owned()],
            ..Note::default()
        };
        note.images.insert("a:b".to_owned(), Image { id: None });
        note.sealing = Some(Sealing {
            custody: LogHead {
                size: 3,
                root: note.settled(&settled),
            },
            settled,
        });
        let seed = serde_json::to_vec(&note).unwrap();
        impound_fuzz::run("note", &[seed], |_, bytes| {
            let Ok(note) = serde_json::from_slice::<Note>(&bytes) else {
                return;
            };
            let again: Note = serde_json::from_slice(&serde_json::to_vec(&note).unwrap()).unwrap();
            if let (Some(one), Some(two)) = (&note.sealing, &again.sealing) {
                assert_eq!(note.settled(&one.settled), again.settled(&two.settled));
            }
        });
    }
}
