//! The layers of a saved image (`docker save`): where they are in its tar, and how they are read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use impound_evidence::{Completeness, Sha256};
use serde::Deserialize;
use tar::EntryType;

use super::input::{Bounds, Input, Section};
use super::name::{Name, shown};

/// Files of a saved image: a few for each layer, and an image has at most 127 layers.
const ENTRIES: u64 = 10_000;

/// `manifest.json` of a saved image names its layers.
const MANIFEST_LIMIT: u64 = 1 << 20;

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

enum Member {
    File(Place),
    /// An earlier layer with the same contents, under its name.
    Same(String),
}

impl Image {
    /// Finds the layers.
    ///
    /// # Errors
    /// In words, if this is no image that Docker saved.
    pub(super) fn read(file: &File, watch: &dyn Fn(u64)) -> Result<Self, String> {
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        let bounds = Bounds::new(u64::MAX);
        let whole = Section {
            file,
            at: 0,
            left: size,
        };
        let mut input = Input::new(whole, &bounds, watch);
        let (members, manifest) = members(&mut input, &bounds)?;
        let (sha256, completeness, _) = input.finish().map_err(|error| error.to_string())?;
        let manifest = manifest.ok_or("it has no manifest.json, so it is no saved image")?;
        let described: Vec<Described> = serde_json::from_slice(&manifest)
            .map_err(|error| format!("its manifest.json is not that of a saved image: {error}"))?;
        let names = described.into_iter().flat_map(|image| image.layers);
        let place = |name: &str| {
            let mut name = name.to_owned();
            // One step: what is named so is a file, or nothing.
            if let Some(Member::Same(other)) = members.get(&name) {
                name.clone_from(other);
            }
            match members.get(&name) {
                Some(Member::File(place)) => Ok(*place),
                _ => Err("its manifest.json names it, and it is not there".to_owned()),
            }
        };
        Ok(Self {
            layers: names.map(|name| (name.clone(), place(&name))).collect(),
            sha256,
            completeness,
        })
    }
}

type Members = (HashMap<String, Member>, Option<Vec<u8>>);

fn members<R: Read>(input: &mut Input<'_, R>, bounds: &Bounds) -> Result<Members, String> {
    let broken = |error: io::Error| format!("its tar is broken: {error}");
    let mut archive = tar::Archive::new(input);
    let (mut members, mut manifest) = (HashMap::new(), None);
    let mut number = 0;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        number += 1;
        if number > ENTRIES {
            return Err(format!("it has more than {ENTRIES} files"));
        }
        bounds.entry(entry.raw_file_position(), entry.size());
        let Ok(Some(name)) = Name::parse(&entry.path_bytes()) else {
            continue;
        };
        let path = shown(name.as_bytes());
        match entry.header().entry_type() {
            EntryType::Regular if path == "manifest.json" => {
                let mut bytes = Vec::new();
                let mut limited = entry.by_ref().take(MANIFEST_LIMIT + 1);
                limited.read_to_end(&mut bytes).map_err(broken)?;
                if bytes.len() as u64 > MANIFEST_LIMIT {
                    return Err("its manifest.json has more than 1 MiB".to_owned());
                }
                manifest = Some(bytes);
            }
            EntryType::Regular => {
                let place = Place {
                    at: entry.raw_file_position(),
                    size: entry.size(),
                };
                members.insert(path, Member::File(place));
            }
            EntryType::Symlink => {
                // `../<layer>/layer.tar`, from one layer's directory to another's.
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = target.strip_prefix(b"../").unwrap_or(&target);
                members.insert(path, Member::Same(shown(target)));
            }
            _ => {}
        }
    }
    Ok((members, manifest))
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
