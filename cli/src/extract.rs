//! `impound evidence extract`: the file systems in a copy of evidence, unpacked for analysis.
//!
//! What is unpacked was made by an attacker. The only place in this project where contents of evidence
//! become files, and the order is always the same:
//!
//! ```text
//! verify the collection -> the walk that also listed it -> archive (what becomes of each member)
//!   -> name (can't lead out) -> tree (the kernel keeps it below the target) -> remarks
//! ```

mod archive;
#[cfg(test)]
mod fuzz;
mod image;
mod name;
mod pattern;
mod remarks;
mod section;
mod tree;

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::Seek as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use impound_evidence::age::{Identity, OpenError};
use impound_evidence::{
    ArtifactRecord, Completeness, Given, Manifest, Method, Sha256, open_artifact, short_id,
};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use serde::Serialize;

use crate::arguments::EvidenceExtract;
use crate::failure::{Exit, Failure};
use crate::human::{self, clean};
use crate::output::Output;
use crate::screen::{Bytes, Screen};
use crate::verify;
use archive::{Extraction, Limits, Made};
use image::{Image, Layer};
pub(crate) use pattern::Pattern;
use remarks::{Kind, Remark, Remarks};
use tree::Tree;

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(100);

pub(crate) async fn run(output: &mut Output, wanted: EvidenceExtract) -> Result<Exit, Failure> {
    let (sources, key) = sources(output, &wanted).await?;
    let limits = Limits {
        bytes: wanted.max_bytes,
        entries: wanted.max_entries,
        ratio: wanted.max_ratio,
    };
    let progress = Progress::new(output.screen(), &sources);
    let mut extracted = Vec::new();
    for source in sources {
        extracted.push(extract(source, &wanted, limits, &progress)?);
    }
    progress.end()?;
    let view = View {
        verified: key.is_some(),
        key,
        tars: extracted,
    };
    output.document(&view, |_| text(&view))?;
    if view
        .tars
        .iter()
        .all(|tar| tar.made.is_nothing() && tar.left_out == 0)
    {
        return Err(Failure::Missing(
            "no entry of the tar matches; --path is relative to the root of the file system"
                .to_owned(),
        ));
    }
    let whole = view
        .tars
        .iter()
        .all(|tar| tar.left_out == 0 && tar.incomplete.is_empty());
    Ok(if whole { Exit::Ok } else { Exit::Partial })
}

/// A tar to extract.
struct Source {
    /// Name of its directory below the target.
    name: String,
    file: File,
    size: u64,
    image: bool,
    /// What the manifest says of it.
    record: Option<ArtifactRecord>,
}

/// The tars that are asked for, and the key that vouches for them.
async fn sources(
    output: &Output,
    wanted: &EvidenceExtract,
) -> Result<(Vec<Source>, Option<Sha256>), Failure> {
    let at = &wanted.source;
    let open = |error: std::io::Error| Failure::Usage(format!("{}: {error}", at.display()));
    if std::fs::metadata(at).map_err(open)?.is_dir() {
        return collection(output, wanted).await;
    }
    if !wanted.unverified {
        return Err(Failure::Usage(format!(
            "{}: nothing vouches for a tar by itself; give the directory of its collection, or --unverified",
            at.display()
        )));
    }
    let file = File::open(at).map_err(open)?;
    let name = at.file_name().unwrap_or_default().to_string_lossy();
    let source = Source {
        size: file.metadata().map_err(open)?.len(),
        file,
        name: directory_name(&name),
        image: wanted.images,
        record: None,
    };
    Ok((vec![source], None))
}

/// The tars of a collection, which is verified first.
async fn collection(
    output: &Output,
    wanted: &EvidenceExtract,
) -> Result<(Vec<Source>, Option<Sha256>), Failure> {
    let at = wanted.source.display();
    let identities = verify::identities(&wanted.identities)?;
    let verdict = verify::watch(
        output,
        verify::open(&wanted.source)?,
        verify::keys(&wanted.keys)?,
        Given {
            identities: identities.clone(),
            ..Given::default()
        },
    )
    .await?;
    if !wanted.unverified && !verdict.intact() {
        let problem = verdict
            .problems
            .first()
            .map(|problem| clean(&problem.to_string()));
        return Err(Failure::Failed(format!(
            "{at} is NOT INTACT, and nothing was extracted: {}; `verify --all` names everything, --unverified extracts it nevertheless",
            problem.unwrap_or_default()
        )));
    }
    if verdict.unopened > 0 {
        return Err(Failure::Usage(format!(
            "{at}: nothing was extracted, not checked: {}",
            verify::closed(&verdict).unwrap_or_default()
        )));
    }
    let manifest = verdict.manifest.ok_or_else(|| {
        Failure::Failed(format!(
            "{at} has no manifest that can be read; name a tar in it instead"
        ))
    })?;
    let tars: Vec<_> = tars(&manifest, wanted.images).collect();
    if tars.is_empty() {
        return Err(Failure::Missing(format!(
            "there is no exported file system in {at}"
        )));
    }
    let root = std::fs::canonicalize(&wanted.source).map_err(Failure::Output)?;
    let sources = tars
        .into_iter()
        .map(|record| match record.stored {
            None => open_plain(&root, record),
            Some(_) => open_encoded(&wanted.source, record, &identities, &wanted.to),
        })
        .collect::<Result<_, _>>()?;
    Ok((sources, verdict.key.filter(|_| !wanted.unverified)))
}

fn tars(manifest: &Manifest, images: bool) -> impl Iterator<Item = &ArtifactRecord> {
    manifest.artifacts.iter().filter(move |record| {
        let kind = match record.method {
            Method::Export | Method::Layer => true,
            Method::Commit => images,
            _ => false,
        };
        kind && record.path.as_str().ends_with(".tar")
    })
}

/// The artifact's file, through no link.
fn open_plain(root: &Path, record: &ArtifactRecord) -> Result<Source, Failure> {
    let wrong =
        |error: &dyn std::error::Error| Failure::Failed(format!("{}: {error}", record.path));
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::openat(CWD, root, directory, Mode::empty()).map_err(|error| wrong(&error))?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(root, record.path.as_str(), flags, Mode::empty(), resolve);
    let file = File::from(file.map_err(|error| wrong(&error))?);
    Ok(Source {
        name: name_of(record),
        size: file.metadata().map_err(|error| wrong(&error))?.len(),
        file,
        image: record.method == Method::Commit,
        record: Some(record.clone()),
    })
}

/// What is in an encrypted file: a copy below `to` that has no name and is gone when it is closed, as a tar is read in
/// more than one place.
fn open_encoded(
    collection: &Path,
    record: &ArtifactRecord,
    identities: &[Identity],
    to: &Path,
) -> Result<Source, Failure> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::Failed(format!("{}: {error}", record.path));
    let source = verify::open(collection)?;
    let mut artifact = open_artifact(&source, record, identities).map_err(|error| match error {
        OpenError::Closed | OpenError::NotForUs => {
            Failure::Usage(format!("{}: {error}", record.path))
        }
        OpenError::Io(_) => wrong(&error),
    })?;
    std::fs::create_dir_all(to).map_err(|error| wrong(&error))?;
    let name = to.join(format!(".{}.decrypted", name_of(record)));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&name)
        .map_err(|error| wrong(&format!("{}: {error}", name.display())))?;
    std::fs::remove_file(&name).map_err(|error| wrong(&error))?;
    std::io::copy(&mut artifact.reader, &mut file).map_err(|error| wrong(&error))?;
    file.rewind().map_err(|error| wrong(&error))?;
    Ok(Source {
        name: name_of(record),
        size: record.size,
        file,
        image: record.method == Method::Commit,
        record: Some(record.clone()),
    })
}

/// Name of an artifact's directory. An export's file has its container's name and id in its own; a layer gets
/// them, too.
fn name_of(record: &ArtifactRecord) -> String {
    let path = record.path.as_str();
    match (record.method, path.rsplit('/').nth(1)) {
        (Method::Layer, Some(container)) => match short_id(&record.source_id) {
            Ok(id) => format!("layer-{container}-{id}"),
            Err(_) => format!("layer-{container}"),
        },
        _ => directory_name(record.path.file_name()),
    }
}

fn directory_name(file: &str) -> String {
    match file.strip_suffix(".tar") {
        Some(stem) if !stem.is_empty() => stem.to_owned(),
        _ => format!("{file}.extracted"),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    /// Whether the collection was verified before.
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Sha256>,
    tars: Vec<Extracted>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Extracted {
    tar: String,
    directory: PathBuf,
    #[serde(flatten)]
    made: Made,
    /// Over the whole tar, while it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256>,
    /// Why the tar is not complete, by its own format or by the manifest.
    incomplete: Vec<String>,
    left_out: u64,
    changed: u64,
    noted: u64,
    /// The first of them; all are in `remarks_file`.
    remarks: Vec<Remark>,
    remarks_file: PathBuf,
}

fn extract(
    source: Source,
    wanted: &EvidenceExtract,
    limits: Limits,
    progress: &Progress,
) -> Result<Extracted, Failure> {
    let directory = wanted.to.join(&source.name);
    let at = |path: &Path, error: &std::io::Error| {
        Failure::Failed(format!(
            "{}: nothing can be extracted here: {error}",
            path.display()
        ))
    };
    let tree = Tree::create(&directory).map_err(|error| at(&directory, &error))?;
    let remarks_file = wanted.to.join(format!("{}.extraction.jsonl", source.name));
    let mut remarks = Remarks::create(&remarks_file).map_err(|error| at(&remarks_file, &error))?;
    let mut made = Made::default();
    let failed = |error: std::io::Error| {
        Failure::Failed(format!("{} was not extracted whole: {error}", source.name))
    };
    let watch = |n| progress.tell(&source.name, n);
    let (sha256, completeness) = match source.image {
        false => {
            let extraction = Extraction::new(
                tree,
                source.size,
                &wanted.paths,
                limits,
                &mut made,
                &mut remarks,
            );
            let ended = extraction
                .run(&source.file, u64::MAX, &watch)
                .map_err(failed)?;
            (ended.sha256, ended.completeness)
        }
        true => {
            let image = Image::read(&source.file, &watch).map_err(|why| {
                Failure::Failed(format!("{} is no saved image: {why}", source.name))
            })?;
            for (number, (name, place)) in (1..).zip(image.layers) {
                let layer = format!("layer-{number:02}");
                let opened = place.and_then(|place| Ok((place, Layer::open(&source.file, place)?)));
                let (place, reader) = match opened {
                    Ok(opened) => opened,
                    Err(why) => {
                        remarks
                            .add(Kind::LeftOut, layer, format!("{name}: {why}"))
                            .map_err(failed)?;
                        continue;
                    }
                };
                remarks
                    .add(Kind::Noted, layer.clone(), format!("this is {name}"))
                    .map_err(failed)?;
                let below = directory.join(&layer);
                let tree = Tree::create(&below).map_err(|error| at(&below, &error))?;
                let extraction = Extraction::new(
                    tree,
                    place.size,
                    &wanted.paths,
                    limits,
                    &mut made,
                    &mut remarks,
                )
                .within(&layer);
                let all = extraction.decompressed();
                extraction.run(reader, all, &|_| ()).map_err(failed)?;
            }
            (Some(image.sha256), image.completeness)
        }
    };
    remarks.finish().map_err(failed)?;
    if let Some(record) = &source.record
        && wanted.keys.is_empty() == wanted.unverified
        && !wanted.unverified
        && sha256 != Some(record.sha256)
    {
        return Err(Failure::Failed(format!(
            "{} changed while it was extracted: expected SHA-256 {}, got {}; remove {} and verify the collection again",
            record.path,
            record.sha256,
            sha256.map_or_else(|| "none".to_owned(), |sha256| sha256.to_string()),
            directory.display()
        )));
    }
    let incomplete = source
        .record
        .map_or(completeness, |record| record.completeness);
    let first = remarks.first_left_out.drain(..).collect::<Vec<_>>();
    Ok(Extracted {
        tar: source.name,
        directory,
        made,
        sha256,
        incomplete: match incomplete {
            Completeness::Complete => Vec::new(),
            Completeness::Incomplete { reasons } => reasons,
        },
        left_out: remarks.left_out,
        changed: remarks.changed,
        noted: remarks.noted,
        remarks: first
            .into_iter()
            .chain(remarks.first_others.drain(..))
            .collect(),
        remarks_file: remarks.at().to_owned(),
    })
}

fn text(view: &View) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    for tar in &view.tars {
        let made = &tar.made;
        line(format!(
            "{}: {} files, {} directories, {} links, {}",
            clean(&tar.directory.display().to_string()),
            made.files,
            made.directories,
            made.links,
            human::bytes(made.bytes)
        ));
        let sha256 = tar
            .sha256
            .map_or_else(|| "unknown".to_owned(), |sha256| sha256.to_string());
        line(match view.key {
            Some(key) => {
                format!("  SHA-256 of the tar {sha256}, as in the manifest that key {key} signed")
            }
            None => format!("  SHA-256 of the tar {sha256}, compared with NOTHING"),
        });
        for reason in &tar.incomplete {
            line(format!("  the tar is INCOMPLETE: {}", clean(reason)));
        }
        line(format!(
            "  {} left out, {} changed, {} noted: {}",
            tar.left_out,
            tar.changed,
            tar.noted,
            clean(&tar.remarks_file.display().to_string())
        ));
        let left_out = tar
            .remarks
            .iter()
            .filter(|remark| remark.kind == Kind::LeftOut);
        let mut shown = 0;
        for remark in left_out {
            line(format!(
                "    left out  {}: {}",
                clean(&remark.path),
                clean(&remark.why)
            ));
            shown += 1;
        }
        if tar.left_out > shown {
            line(format!("    and {} more", tar.left_out - shown));
        }
    }
    text
}

/// Progress over all tars, on the screen now and then.
struct Progress {
    screen: RefCell<Screen>,
    all: u64,
    done: Cell<u64>,
    told: Cell<Instant>,
    failed: RefCell<Option<Failure>>,
}

impl Progress {
    fn new(screen: Screen, sources: &[Source]) -> Self {
        Self {
            screen: RefCell::new(screen),
            all: sources.iter().map(|source| source.size).sum(),
            done: Cell::new(0),
            told: Cell::new(Instant::now()),
            failed: RefCell::new(None),
        }
    }

    fn tell(&self, name: &str, n: u64) {
        self.done.set(self.done.get() + n);
        if self.told.get().elapsed() < TICK {
            return;
        }
        self.told.set(Instant::now());
        let bytes = Bytes {
            done: self.done.get(),
            all: self.all,
        };
        let told = self
            .screen
            .borrow_mut()
            .transfer("extract", "Extract", name, bytes);
        if let Err(failure) = told {
            self.failed.borrow_mut().get_or_insert(failure);
        }
    }

    fn end(self) -> Result<(), Failure> {
        match self.failed.into_inner() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}
