//! `image.json`: configuration and history of a saved image, out of its archive as that passes.
//!
//! The archive is what `docker save` writes: `manifest.json` names the image's configuration and its
//! layers. Older engines put the configuration into `<id>.json` and layers into `<id>/layer.tar`;
//! newer ones put both below `blobs/sha256`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Sha256;
use crate::tar::{FileType, Member};

/// Longest document that is kept, in bytes. An image has at most 127 layers, so a configuration
/// has a few dozen KiB.
const DOCUMENT: u64 = 1 << 20;
/// Most bytes of documents that are kept in all: several images, or blobs that turn out to be others.
const DOCUMENTS: usize = 4 << 20;
/// Most documents: an image has two or three.
const DOCUMENT_COUNT: usize = 1024;
/// Most files whose hashes are kept, to be found as layers, and most links.
const FILES: usize = 4096;
/// Longest path that is kept, in bytes: those that engines give to configurations and layers have 80.
const PATH: usize = 256;
/// Most images that are described; we save one at a time.
const IMAGES: usize = 256;
/// Most layers that are described, over all images.
const LAYERS: usize = 4096;
/// Most bytes of configurations that are parsed, over all images: values need some 16 times as much memory.
const PARSED: usize = 1 << 20;
/// Longest description that is indented, in bytes: indentation can make a document a hundred times as long.
const INDENTED: usize = 8 << 20;

/// What an archive says of its images.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImageDescription {
    /// Path of the archive below its collection; set by whoever stores the description.
    pub of: String,
    /// The images, in the archive's order.
    pub images: Vec<Image>,
    /// What is missing or contradicts itself, one sentence each.
    pub problems: Vec<String>,
}

/// One image.
#[derive(Clone, Debug, Serialize)]
pub struct Image {
    /// SHA-256 of its configuration: the image's id.
    pub id: Sha256,
    /// Names with tags.
    pub tags: Vec<String>,
    /// Its layers, the base first.
    pub layers: Vec<Layer>,
    /// How it was built, the oldest step first.
    pub history: Vec<Step>,
    /// Its configuration, as the engine wrote it, without the history.
    pub config: Value,
}

/// A layer.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// Where it is in the archive.
    pub path: String,
    /// The configuration's word: SHA-256 of the layer's tar.
    pub diff_id: Option<String>,
    /// Bytes in the archive.
    pub size: Option<u64>,
    /// SHA-256 of those.
    pub sha256: Option<Sha256>,
}

/// A step of an image's history.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The layer that it made: a position in `layers`. None: it only changed the configuration.
    pub layer: Option<usize>,
    /// As in the configuration: created, created_by, author, comment.
    #[serde(flatten)]
    pub step: serde_json::Map<String, Value>,
}

impl ImageDescription {
    /// The file's bytes: JSON, indented unless that would be far too long, and a newline.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut indented = Short(Vec::new());
        let mut bytes = match serde_json::to_writer_pretty(&mut indented, self) {
            Ok(()) => indented.0,
            Err(_) => serde_json::to_vec(self).unwrap_or_default(),
        };
        bytes.push(b'\n');
        bytes
    }
}

/// At most [`INDENTED`] bytes.
struct Short(Vec<u8>);

impl std::io::Write for Short {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > INDENTED {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps what may be a document, and the hash of what may be a layer.
#[derive(Default)]
pub(super) struct Capture {
    documents: BTreeMap<String, Vec<u8>>,
    files: BTreeMap<String, (u64, Sha256)>,
    /// Where a link leads: an engine links a layer that two images share.
    links: BTreeMap<String, String>,
    bytes: usize,
    open: Option<Vec<u8>>,
    problems: Vec<String>,
    /// Bytes of configurations, and layers, that were described.
    parsed: usize,
    layers: usize,
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Capture {
    pub(super) fn begin(&mut self, member: &Member) {
        self.open = None;
        let Some(path) = kept(&member.path) else {
            return;
        };
        let may_be =
            (path.ends_with(".json") && !path.contains('/')) || path.starts_with("blobs/sha256/");
        let room = self.documents.len() < DOCUMENT_COUNT;
        if member.kind == FileType::File && may_be && room && member.stored <= DOCUMENT {
            self.open = Some(Vec::new());
        }
        if let (FileType::Symlink, Some(link)) = (member.kind, &member.link)
            && let (true, Some(link)) = (self.links.len() < FILES, kept(link))
        {
            let link = link.strip_prefix("../").unwrap_or(link);
            self.links.insert(path.to_owned(), link.to_owned());
        }
    }

    pub(super) fn contents(&mut self, bytes: &[u8]) {
        let Some(open) = &mut self.open else { return };
        let room = self.bytes + open.len() + bytes.len() <= DOCUMENTS;
        // All documents are JSON; a small layer is not.
        let begins = open.first().or(bytes.first());
        if room && matches!(begins, Some(b'{' | b'[')) {
            open.extend_from_slice(bytes);
        } else {
            self.open = None;
        }
    }

    pub(super) fn end(&mut self, member: &Member, sha256: Option<Sha256>) {
        let document = self.open.take().filter(|document| !document.is_empty());
        let Some(path) = kept(&member.path) else {
            return;
        };
        if let (Some(document), Some(_)) = (document, sha256) {
            self.bytes += document.len();
            self.documents.insert(path.to_owned(), document);
        }
        if let (Some(sha256), true) = (sha256, self.files.len() < FILES) {
            self.files.insert(path.to_owned(), (member.size, sha256));
        }
    }

    /// Not every member was seen, as `why` says: what is said to be missing may be there.
    pub(super) fn truncate(&mut self, why: &str) {
        self.problems.push(why.to_owned());
    }

    pub(super) fn finish(mut self) -> ImageDescription {
        let entries: Vec<Entry> = match self.documents.get("manifest.json") {
            None => {
                self.problems
                    .push("the archive has no manifest.json".to_owned());
                Vec::new()
            }
            Some(bytes) => serde_json::from_slice(bytes).unwrap_or_else(|error| {
                self.problems
                    .push(format!("manifest.json can't be read: {error}"));
                Vec::new()
            }),
        };
        if entries.len() > IMAGES {
            let count = entries.len();
            self.problems.push(format!(
                "only the first {IMAGES} of {count} images are described"
            ));
        }
        let images = entries
            .into_iter()
            .take(IMAGES)
            .filter_map(|entry| self.image(entry))
            .collect();
        ImageDescription {
            of: String::new(),
            images,
            problems: self.problems,
        }
    }

    fn image(&mut self, mut entry: Entry) -> Option<Image> {
        // Taken out: no engine lists an image twice, and every time would cost its memory again.
        let Some(bytes) = self.documents.remove(&entry.config) else {
            let problem = format!(
                "the configuration {:?} is not in the archive (or of an image above)",
                entry.config
            );
            self.problems.push(problem);
            return None;
        };
        self.parsed += bytes.len();
        if self.parsed > PARSED {
            let problem = format!(
                "the configuration {:?} is one of more than are described",
                entry.config
            );
            self.problems.push(problem);
            return None;
        }
        let id = Sha256::of(&bytes);
        let mut config: Value = match serde_json::from_slice(&bytes) {
            Ok(config) => config,
            Err(error) => {
                let problem = format!(
                    "the configuration {:?} can't be read: {error}",
                    entry.config
                );
                self.problems.push(problem);
                return None;
            }
        };
        if !entry.config.contains(&id.to_string()) {
            let problem = format!(
                "the configuration {:?} has SHA-256 {id}, which is not its name",
                entry.config
            );
            self.problems.push(problem);
        }
        let diff_ids: Vec<String> = config
            .pointer("/rootfs/diff_ids")
            .and_then(|ids| serde_json::from_value(ids.clone()).ok())
            .unwrap_or_default();
        if diff_ids.len() != entry.layers.len() {
            self.problems.push(format!(
                "the configuration has {} layers and the archive's manifest {}",
                diff_ids.len(),
                entry.layers.len()
            ));
        }
        let room = LAYERS.saturating_sub(self.layers);
        if entry.layers.len() > room {
            let problem = format!("only the first {room} of its layers are described");
            self.problems.push(problem);
            entry.layers.truncate(room);
        }
        self.layers += entry.layers.len();
        let mut diff_ids = diff_ids.into_iter();
        let layers: Vec<Layer> = entry
            .layers
            .iter()
            .map(|path| self.layer(path, diff_ids.next()))
            .collect();
        let history = history(&mut config, layers.len());
        Some(Image {
            id,
            tags: entry.repo_tags.unwrap_or_default(),
            layers,
            history,
            config,
        })
    }

    fn layer(&mut self, path: &str, diff_id: Option<String>) -> Layer {
        let target = self.links.get(path).map_or(path, String::as_str);
        let found = self.files.get(target).copied();
        match (&diff_id, found) {
            (_, None) => self
                .problems
                .push(format!("layer {path:?} is not in the archive")),
            // A layer that newer engines keep compressed has another digest than its tar.
            (Some(expected), Some((_, sha256)))
                if expected.strip_prefix("sha256:") != Some(sha256.to_string().as_str())
                    && !target.ends_with(&sha256.to_string()) =>
            {
                self.problems.push(format!(
                    "layer {path:?} has SHA-256 {sha256}, the configuration says {expected}"
                ));
            }
            _ => {}
        }
        Layer {
            path: path.to_owned(),
            diff_id,
            size: found.map(|(size, _)| size),
            sha256: found.map(|(_, sha256)| sha256),
        }
    }
}

/// A path or link target that may be one of an engine's.
fn kept(path: &[u8]) -> Option<&str> {
    let short = Some(path).filter(|path| path.len() <= PATH);
    short.and_then(|path| str::from_utf8(path).ok())
}

/// Takes the history out of a configuration; each step with the layer that it made.
fn history(config: &mut Value, layers: usize) -> Vec<Step> {
    let taken = config
        .as_object_mut()
        .and_then(|config| config.remove("history"));
    let Some(Value::Array(steps)) = taken else {
        return Vec::new();
    };
    let mut next = 0;
    let mut history = Vec::new();
    for step in steps {
        let Value::Object(mut step) = step else {
            continue;
        };
        let empty = step.remove("empty_layer") == Some(Value::Bool(true));
        let layer = (!empty && next < layers).then_some(next);
        next += usize::from(layer.is_some());
        history.push(Step { layer, step });
    }
    history
}
