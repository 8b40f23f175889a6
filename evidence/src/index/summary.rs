//! `index.json`: the verdict on a tar, and what was odd in it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::tar::{Anomaly, Completeness, Member};

/// What an index knows at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Path of the tar below its collection; set by whoever stores the summary.
    pub of: String,
    /// Whether the tar has really ended.
    pub completeness: Completeness,
    /// Bytes of the tar.
    pub bytes: u64,
    /// Members in it, extension headers not counted.
    pub members: u64,
    /// Members that are listed.
    pub listed: u64,
    /// Listed members by type.
    pub types: BTreeMap<&'static str, u64>,
    /// Bytes of the listed members' contents, as far as they came.
    pub contents: u64,
    /// What was odd, by kind.
    pub anomalies: Vec<AnomalyCount>,
    /// What was not looked at, as a limit was reached; one sentence each.
    pub not_examined: Vec<String>,
}

/// How often something odd was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnomalyCount {
    /// Its name.
    pub kind: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// How many members, or 1 if it is about the tar as a whole.
    pub count: u64,
    /// Byte offset of the first member's header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            of: String::new(),
            completeness: Completeness::Complete,
            bytes: 0,
            members: 0,
            listed: 0,
            types: BTreeMap::new(),
            contents: 0,
            anomalies: Vec::new(),
            not_examined: Vec::new(),
        }
    }
}

impl Summary {
    /// The file's bytes: indented JSON and a newline.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Why no listing of this tar (`files.jsonl`, `hashes.*`, `bodyfile`, `changes.jsonl`,
    /// `image.json`) has all of it: a sentence, for their records. None if they do, as far as the
    /// tar goes.
    #[must_use]
    pub fn truncated(&self) -> Option<String> {
        (self.listed < self.members).then(|| {
            format!(
                "Only the first {} of {} members are listed.",
                self.listed, self.members
            )
        })
    }

    /// How often something odd was seen.
    #[must_use]
    pub fn count_of(&self, anomaly: Anomaly) -> u64 {
        let is = |count: &&AnomalyCount| count.kind == anomaly.name();
        self.anomalies
            .iter()
            .find(is)
            .map_or(0, |count| count.count)
    }

    pub(super) fn list(&mut self, member: &Member, came: u64) {
        self.listed += 1;
        self.contents += came;
        *self.types.entry(member.kind.name()).or_default() += 1;
        for anomaly in member.anomalies.iter() {
            self.count(anomaly, Some(member.offset));
        }
    }

    pub(super) fn count(&mut self, anomaly: Anomaly, first: Option<u64>) {
        let (kind, meaning) = (anomaly.name(), anomaly.meaning());
        match self.anomalies.iter_mut().find(|known| known.kind == kind) {
            Some(known) => known.count += 1,
            None => self.anomalies.push(AnomalyCount {
                kind,
                meaning,
                count: 1,
                first,
            }),
        }
    }
}
