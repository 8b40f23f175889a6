//! What a report is made of: the verdict, and what is read from the collection afterwards.
//!
//! Contents are shown only if they are what the signed manifest says: each file is hashed while it is
//! read for the report, so that nothing slips in between the check and the report.

use std::io::{self, BufReader, Read};

use impound_evidence::age::Identity;
use impound_evidence::{
    ArtifactRecord, CUSTODY, CustodyLog, DirSource, Entry, EvidencePath, EvidenceSource as _,
    Manifest, Method, Sha256Hasher, Verdict, open_artifact, origin,
};
use serde::Deserialize;
use time::OffsetDateTime;

use super::changes::Changes;
use super::containment::{self, Containment};

/// Custody entries that are shown from each end of a long log.
const ENTRIES: usize = 150;

/// Longest text of a custody entry that is shown, in characters.
const TEXT: usize = 600;

/// Longest verdict on a tar that is read: it has counts only.
const INDEX_LIMIT: u64 = 1 << 20;

/// Longest list of changes that is read: 10 million of them.
const CHANGES_LIMIT: u64 = 4 << 30;

/// A collection, and what opens what is encrypted in it.
pub(super) struct Contents {
    source: DirSource,
    identities: Vec<Identity>,
}

impl Contents {
    pub(super) fn new(source: DirSource, identities: Vec<Identity>) -> Self {
        Self { source, identities }
    }
}

/// Everything that a report shows.
pub(super) struct Case {
    pub(super) verdict: Verdict,
    /// Whether any key was given.
    pub(super) keyed: bool,
    pub(super) made: OffsetDateTime,
    pub(super) custody: Result<Custody, String>,
    /// None: the collection has no such record.
    pub(super) containment: Option<Result<Containment, String>>,
    /// One for each container whose changes were listed, the suspect's first.
    pub(super) containers: Vec<Container>,
    /// What was odd in the tars, by the listings that were made of them.
    pub(super) tars: Vec<(EvidencePath, Result<TarIndex, String>)>,
    /// Whether the collection brings its own script to be checked with.
    pub(super) has_script: bool,
}

/// As much of `<tar>.index.json` as a report shows, see `evidence/FORMATS.md`.
#[derive(Deserialize)]
pub(super) struct TarIndex {
    pub(super) members: u64,
    pub(super) anomalies: Vec<AnomalyCount>,
    pub(super) not_examined: Vec<String>,
}

/// How often something odd was seen in a tar.
#[derive(Deserialize)]
pub(super) struct AnomalyCount {
    pub(super) meaning: String,
    pub(super) count: u64,
}

/// A custody log, its middle left out if it is long.
pub(super) struct Custody {
    pub(super) entries: u64,
    pub(super) first: Vec<Entry>,
    pub(super) last: Vec<Entry>,
}

/// A container's changes.
pub(super) struct Container {
    pub(super) suspect: bool,
    /// `<namespace>/<pod>` and the container's name.
    pub(super) pod: String,
    pub(super) name: String,
    /// The list that was read.
    pub(super) list: EvidencePath,
    pub(super) changes: Result<Changes, String>,
}

impl Case {
    pub(super) fn read(source: &Contents, verdict: Verdict, keyed: bool) -> Self {
        let mut case = Self {
            keyed,
            made: OffsetDateTime::now_utc(),
            custody: Err("the collection has no manifest that can be read".to_owned()),
            containment: None,
            containers: Vec::new(),
            tars: Vec::new(),
            has_script: false,
            verdict,
        };
        if let Some(manifest) = &case.verdict.manifest {
            case.custody = custody(source, manifest);
            let requested = requested(&case.custody).unwrap_or_else(|| manifest.created.to_utc());
            case.containment = containment(source, manifest);
            case.containers = containers(source, manifest, requested);
            case.tars = tars(source, manifest);
            case.has_script = artifact(manifest, "verify.sh").is_some();
        }
        case
    }

    /// When the pod was asked for.
    pub(super) fn requested(&self) -> Option<OffsetDateTime> {
        requested(&self.custody)
    }
}

fn requested(custody: &Result<Custody, String>) -> Option<OffsetDateTime> {
    let first = custody.as_ref().ok()?.first.first()?;
    Some(first.time.to_utc())
}

/// The listings' verdicts on exports and images; of a broken one there is none.
fn tars(source: &Contents, manifest: &Manifest) -> Vec<(EvidencePath, Result<TarIndex, String>)> {
    let indexes = manifest.artifacts.iter().filter(|record| {
        record.method == Method::Derived && record.path.as_str().ends_with(".tar.index.json")
    });
    indexes
        .map(|record| {
            let index = signed(source, record, INDEX_LIMIT, |reader| {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes)?;
                serde_json::from_slice(&bytes).map_err(io::Error::other)
            });
            (record.path.clone(), index)
        })
        .collect()
}

fn custody(source: &Contents, manifest: &Manifest) -> Result<Custody, String> {
    let path = CUSTODY
        .parse::<EvidencePath>()
        .map_err(|error| error.to_string())?;
    let file = source
        .source
        .open(&path)
        .map_err(|error| format!("{CUSTODY}: {error}"))?;
    let mut custody = Custody {
        entries: 0,
        first: Vec::new(),
        last: Vec::new(),
    };
    let reader = BufReader::new(file.reader);
    let read = CustodyLog::read(origin(&manifest.case), reader, |entry| {
        custody.entries += 1;
        let entry = short(entry);
        if custody.first.len() < ENTRIES {
            custody.first.push(entry);
        } else {
            custody.last.push(entry);
            if custody.last.len() > ENTRIES * 2 {
                custody.last.drain(..ENTRIES);
            }
        }
    });
    read.map_err(|error| format!("{CUSTODY}: {error}"))?;
    let surplus = custody.last.len().saturating_sub(ENTRIES);
    custody.last.drain(..surplus);
    Ok(custody)
}

/// Without what a report does not show.
fn short(mut entry: Entry) -> Entry {
    entry.artifact = None;
    entry.what = cut(entry.what);
    entry.why = entry.why.map(cut);
    entry
}

fn cut(text: String) -> String {
    match text.chars().count() > TEXT {
        true => text.chars().take(TEXT).chain(['…']).collect(),
        false => text,
    }
}

fn artifact<'m>(manifest: &'m Manifest, path: &str) -> Option<&'m ArtifactRecord> {
    manifest.artifact(&path.parse().ok()?)
}

fn containment(source: &Contents, manifest: &Manifest) -> Option<Result<Containment, String>> {
    let record = artifact(manifest, containment::CONTAINMENT)?;
    Some(signed(source, record, containment::LIMIT, |reader| {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }))
}

/// The containers' changes: the list with the files' attributes where there is one.
fn containers(source: &Contents, manifest: &Manifest, requested: OffsetDateTime) -> Vec<Container> {
    let lists = manifest
        .artifacts
        .iter()
        .filter(|record| record.method == Method::Diff && record.path.file_name() == "diff.jsonl");
    let mut containers: Vec<_> = lists
        .map(|diff| {
            let described = manifest
                .artifacts
                .iter()
                .find(|record| describes(record, diff));
            let list = described.unwrap_or(diff);
            let known = manifest
                .containers
                .iter()
                .find(|known| known.id == diff.source_id);
            let changes = signed(source, list, CHANGES_LIMIT, |reader| {
                Changes::read(reader, Some(requested))
            });
            Container {
                suspect: known.is_none_or(|known| known.pod == manifest.pod),
                pod: known.map_or_else(String::new, |known| {
                    format!("{}/{}", known.pod.namespace, known.pod.name)
                }),
                name: known.map_or_else(|| diff.source_id.clone(), |known| known.name.clone()),
                list: list.path.clone(),
                changes,
            }
        })
        .collect();
    containers.sort_by_key(|container| !container.suspect);
    containers
}

/// Whether `record` is a list of the changes in `diff` with the files' attributes, and whole. It lies beside the
/// diff; not every version named that in `derived_from`.
fn describes(record: &ArtifactRecord, diff: &ArtifactRecord) -> bool {
    let directory = |record: &ArtifactRecord| {
        let path = record.path.as_str().rsplit_once('/');
        path.map(|(directory, _)| directory.to_owned())
    };
    record.method == Method::Derived
        && record.path.as_str().ends_with(".changes.jsonl")
        && directory(record) == directory(diff)
        && record.completeness.is_complete()
}

/// What `read` makes of an artifact, if its bytes are those of the manifest.
fn signed<T>(
    source: &Contents,
    record: &ArtifactRecord,
    limit: u64,
    read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> Result<T, String> {
    let path = &record.path;
    if record.size > limit {
        return Err(format!(
            "{path} has {} bytes, more than a report reads",
            record.size
        ));
    }
    let file = open_artifact(&source.source, record, &source.identities)
        .map_err(|error| format!("{path}: {error}"))?;
    let mut hashing = Hashing {
        inner: file.reader,
        hasher: Sha256Hasher::new(),
    };
    let result = read(&mut hashing.by_ref().take(limit));
    // Whatever was not read belongs to the hash as well.
    io::copy(&mut hashing.by_ref().take(limit), &mut io::sink())
        .map_err(|error| format!("{path}: {error}"))?;
    let got = hashing.hasher.finish();
    if got != record.sha256 {
        return Err(format!(
            "{path} is not what was signed, so it is not shown: expected SHA-256 {}, got {got}",
            record.sha256
        ));
    }
    result.map_err(|error| format!("{path}: {error}"))
}

struct Hashing {
    inner: Box<dyn Read + Send>,
    hasher: Sha256Hasher,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_index_any_verdict_on_a_tar_is_read_or_refused() {
        let seed = br#"{"members":3,"listed":3,"completeness":{"state":"complete"},"anomalies":[{"kind":"sparse","meaning":"m","count":1}],"not_examined":["x"]}"#;
        impound_fuzz::run("index", &[seed.to_vec()], |_, bytes| {
            if let Ok(index) = serde_json::from_slice::<TarIndex>(&bytes) {
                assert!(index.anomalies.len() + index.not_examined.len() <= bytes.len());
            }
        });
    }
}
