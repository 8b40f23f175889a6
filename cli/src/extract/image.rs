//! The layers of a saved image (`docker save`): where they are in its tar, and how they are read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use impound_evidence::{Completeness, FileType, Member, Sha256, Sha256Hasher, TarVisitor, TarWalk};
use serde::Deserialize;

use super::name::{Name, shown};
use super::section::Section;

/// Files of a saved image: a few for each layer.
const ENTRIES: usize = 10_000;

/// Layers of a saved image: Docker's storage takes 127 for each image.
const LAYERS: usize = 1000;

/// `manifest.json` of a saved image names its layers.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// Longest name of a layer, bytes: `blobs/sha256/<64 hex>` has 77.
const NAME_LIMIT: usize = 256;

/// Where the contents of a tar's member begin, from its header.
const HEADER: u64 = 512;

/// A saved image, read once from end to end.
pub(super) struct Image {
    /// Lowest first. With a reason instead of a place: what can't be extracted.
    pub(super) layers: Vec<(String, Result<Place, String>)>,
    pub(super) sha256: Sha256,
    pub(super) completeness: Completeness,
}

/// A layer's bytes in the image's tar.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) at: u64,
    pub(super) size: u64,
}

#[derive(Deserialize)]
struct Described {
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

/// What is in the tar.
#[derive(Default)]
struct Found {
    members: HashMap<String, Place>,
    /// Earlier layers with the same contents, by the name of the later one.
    same: HashMap<String, String>,
    manifest: Option<Vec<u8>>,
    /// Whether the contents that come are the manifest's.
    reading: bool,
    problem: Option<String>,
}

impl Image {
    /// Finds the layers.
    ///
    /// # Errors
    /// In words, if this is no image that Docker saved.
    pub(super) fn read(file: &File, watch: &dyn Fn(u64)) -> Result<Self, String> {
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        let mut whole = Section {
            file,
            at: 0,
            left: size,
        };
        let (mut walk, mut hasher, mut found) =
            (TarWalk::default(), Sha256Hasher::new(), Found::default());
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = whole.read(&mut buffer).map_err(|error| error.to_string())?;
            let bytes = buffer.get(..n).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            hasher.update(bytes);
            walk.update(bytes, &mut found);
            watch(n as u64);
        }
        if let Some(problem) = found.problem {
            return Err(problem);
        }
        let manifest = found
            .manifest
            .ok_or("it has no manifest.json, so it is no saved image")?;
        let described: Vec<Described> = serde_json::from_slice(&manifest)
            .map_err(|error| format!("its manifest.json is not that of a saved image: {error}"))?;
        let names = described.into_iter().flat_map(|image| image.layers);
        let place = |name: &str| {
            // One step: what is named so is a file, or nothing.
            let name = found.same.get(name).map_or(name, String::as_str);
            let place = found.members.get(name).copied();
            place.ok_or_else(|| "its manifest.json names it, and it is not there".to_owned())
        };
        let layers: Vec<_> = names
            .take(LAYERS + 1)
            .map(|name| (shown(name.as_bytes()), place(&name)))
            .collect();
        if layers.len() > LAYERS {
            return Err(format!("its manifest.json names more than {LAYERS} layers"));
        }
        Ok(Self {
            layers,
            sha256: hasher.finish(),
            completeness: walk.finish(),
        })
    }
}

impl TarVisitor for Found {
    fn member(&mut self, member: Member) {
        if self.members.len() + self.same.len() >= ENTRIES {
            let problem = format!("it has more than {ENTRIES} files");
            self.problem.get_or_insert(problem);
            return;
        }
        let link = member.link.unwrap_or_default();
        let Ok(Some(name)) = Name::parse(&member.path) else {
            return;
        };
        if name.as_bytes().len().max(link.len()) > NAME_LIMIT {
            return;
        }
        let path = shown(name.as_bytes());
        match member.kind {
            FileType::File if path == "manifest.json" => {
                if member.stored > MANIFEST_LIMIT {
                    let problem = "its manifest.json has more than 1 MiB".to_owned();
                    self.problem.get_or_insert(problem);
                    return;
                }
                (self.manifest, self.reading) = (Some(Vec::new()), true);
            }
            FileType::File if member.sparse.is_none() => {
                let place = Place {
                    at: member.offset + HEADER,
                    size: member.stored,
                };
                self.members.insert(path, place);
            }
            FileType::Symlink => {
                // `../<layer>/layer.tar`, from one layer's directory to another's.
                let target = link.strip_prefix(b"../").unwrap_or(&link);
                self.same.insert(path, shown(target));
            }
            _ => {}
        }
    }

    fn contents(&mut self, bytes: &[u8]) {
        if let Some(manifest) = self.manifest.as_mut().filter(|_| self.reading) {
            manifest.extend_from_slice(bytes);
        }
    }

    fn end(&mut self) {
        self.reading = false;
    }
}

/// A layer's tar, decompressed.
pub(super) enum Layer<'a> {
    Plain(Section<'a>),
    Gzip(Box<MultiGzDecoder<Section<'a>>>),
}

impl<'a> Layer<'a> {
    /// # Errors
    /// In words, if it is compressed in a way that is not known here, or can't be read.
    pub(super) fn open(file: &'a File, place: Place) -> Result<Self, String> {
        let section = || Section {
            file,
            at: place.at,
            left: place.size,
        };
        let mut magic = [0; 4];
        let n = section()
            .read(&mut magic)
            .map_err(|error| error.to_string())?;
        match magic.get(..n).unwrap_or_default() {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(section())))),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                Err("it is compressed with zstd, which is not read here".to_owned())
            }
            _ => Ok(Self::Plain(section())),
        }
    }
}

impl Read for Layer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(section) => section.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
        }
    }
}
