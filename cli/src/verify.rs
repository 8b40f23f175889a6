//! `impound verify`: a copy of evidence, checked offline by the same code that the controller runs.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use impound_evidence::age::{IDENTITY_LIMIT, Identity, Recipient};
use impound_evidence::{
    ArtifactRecord, BUNDLE, Completeness, DirSource, Given, KEYRING_LIMIT, Keyring, LogHead,
    Manifest, Problem, Progress, SIGNATURES, Sha256, StampAuthority, Stamped, Verdict,
    VerifyingKey, verify_watched,
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::arguments::{Besides, Verify};
use crate::failure::{Exit, Failure};
use crate::human::{self, clean};
use crate::output::{Output, Table};
use crate::screen::Bytes;

/// A public key has 178 bytes, a list of keys some thousand; anything much longer is another file.
const KEY_LIMIT: u64 = KEYRING_LIMIT;

/// Longest file of certificates that is read, in bytes.
const CA_LIMIT: u64 = 1 << 20;

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(100);

pub(crate) async fn run(output: &mut Output, wanted: Verify) -> Result<Exit, Failure> {
    let started = Instant::now();
    let verdict = check(output, &wanted.dir, &wanted.keys, &wanted.besides).await?;
    let seconds = started.elapsed().as_secs_f64();
    output.document(view(&verdict, wanted.all), |_| {
        text(&verdict, &wanted, seconds)
    })?;
    Ok(exit(&verdict))
}

/// How a check ends. One of contents that nothing given opens was asked for and not made.
pub(crate) fn exit(verdict: &Verdict) -> Exit {
    match (verdict.intact(), verdict.unopened, verdict.complete()) {
        (false, ..) => Exit::Failed,
        (true, 1.., _) => Exit::Usage,
        (true, 0, true) => Exit::Ok,
        (true, 0, false) => Exit::Partial,
    }
}

/// Checks the collection in a directory: signed with one of the keys in these files, and vouched for by everybody who
/// was to besides.
pub(crate) async fn check(
    output: &Output,
    dir: &Path,
    keys: &[PathBuf],
    besides: &Besides,
) -> Result<Verdict, Failure> {
    let (source, mut keys) = (open(dir)?, self::keys(keys)?);
    let sealing: Vec<Sha256> = keys.iter().map(VerifyingKey::key_id).collect();
    let vouching = self::keys(&besides.countersigned_by)?;
    keys.extend(vouching.iter().cloned());
    let given = Given {
        authority: authority(besides.timestamp_ca.as_deref())?,
        identities: identities(&besides.identities)?,
    };
    let mut verdict = watch(output, source, keys, given).await?;
    if let Some(key) = verdict.key.filter(|key| !sealing.contains(key)) {
        let problem = Problem {
            path: BUNDLE.to_owned(),
            message: format!(
                "is signed with {key}, which was given as the key of somebody who vouches besides and not with --key"
            ),
        };
        verdict.problems.insert(0, problem);
    }
    for key in vouching.iter().map(VerifyingKey::key_id) {
        if !verdict.countersigned.contains(&key) {
            verdict.problems.push(Problem {
                path: format!("{SIGNATURES}/{key}.sigstore.json"),
                message: "is not there or not good, and its key was to have vouched for this"
                    .to_owned(),
            });
        }
    }
    Ok(verdict)
}

/// The collection in a directory.
pub(crate) fn open(dir: &Path) -> Result<DirSource, Failure> {
    DirSource::open(dir).map_err(|error| {
        Failure::Usage(format!(
            "{}: expected the directory of a collection, the one that holds manifest.json: {error}",
            dir.display()
        ))
    })
}

/// Public keys from PEM files and from lists of keys.
pub(crate) fn keys(files: &[PathBuf]) -> Result<Vec<VerifyingKey>, Failure> {
    let mut keys = Vec::new();
    for file in files {
        keys.extend(keys_of(file)?);
    }
    Ok(keys)
}

fn keys_of(file: &Path) -> Result<Vec<VerifyingKey>, Failure> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", file.display()));
    let mut pem = String::new();
    File::open(file)
        .and_then(|file| file.take(KEY_LIMIT).read_to_string(&mut pem))
        .map_err(|error| {
            let why = format!(
                "the public key can't be read: {error}; get it from who runs the controller"
            );
            wrong(&why)
        })?;
    let keys = match pem.starts_with('{') {
        true => Keyring::from_json(pem.as_bytes()).and_then(|ring| ring.keys()),
        false => VerifyingKey::from_pem(&pem).map(|key| vec![key]),
    };
    let keys = keys.map_err(|error| wrong(&error))?;
    match keys.is_empty() {
        true => Err(wrong(&"expected at least one key, and it lists none")),
        false => Ok(keys),
    }
}

/// The time-stamping authority that is trusted, if one is.
fn authority(file: Option<&Path>) -> Result<Option<Arc<StampAuthority>>, Failure> {
    let Some(file) = file else {
        return Ok(None);
    };
    let wrong =
        |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", file.display()));
    let mut pem = Vec::new();
    File::open(file)
        .and_then(|file| file.take(CA_LIMIT).read_to_end(&mut pem))
        .map_err(|error| wrong(&error))?;
    let authority = StampAuthority::from_pem(&pem).map_err(|error| wrong(&error))?;
    Ok(Some(Arc::new(authority)))
}

/// The secret keys in files as `age-keygen` writes them.
pub(crate) fn identities(files: &[PathBuf]) -> Result<Vec<Identity>, Failure> {
    let mut identities = Vec::new();
    for file in files {
        let wrong =
            |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", file.display()));
        let mut text = Zeroizing::new(String::new());
        File::open(file)
            .and_then(|file| file.take(IDENTITY_LIMIT).read_to_string(&mut text))
            .map_err(|error| wrong(&error))?;
        identities.extend(Identity::parse_file(&text).map_err(|error| wrong(&error))?);
    }
    Ok(identities)
}

/// Checks on threads of its own and shows how far it is.
pub(crate) async fn watch(
    output: &Output,
    source: DirSource,
    keys: Vec<VerifyingKey>,
    given: Given,
) -> Result<Verdict, Failure> {
    let (done, all) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (told_done, told_all) = (Arc::clone(&done), Arc::clone(&all));
    let mut check = tokio::task::spawn_blocking(move || {
        verify_watched(&source, &keys, &given, &|progress| match progress {
            Progress::Manifest(manifest) => {
                let sizes = manifest.artifacts.iter().map(ArtifactRecord::stored_size);
                told_all.store(sizes.fold(0, u64::saturating_add), Ordering::Relaxed);
            }
            Progress::Bytes(n) => {
                told_done.fetch_add(n, Ordering::Relaxed);
            }
        })
    });
    let mut screen = output.screen();
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            verdict = &mut check => {
                return verdict.map_err(|error| Failure::failed("the check failed", &error));
            }
            _ = ticks.tick() => {
                let bytes = Bytes { done: done.load(Ordering::Relaxed), all: all.load(Ordering::Relaxed) };
                // Most checks are over before anybody could read a bar.
                if bytes.all > 0 {
                    screen.transfer("verify", "Verify", "", bytes)?;
                }
            }
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    intact: bool,
    complete: bool,
    problems: &'a [Problem],
    /// Problems that are not listed without `--all`.
    more_problems: usize,
    /// What is odd and breaks nothing.
    warnings: &'a [Problem],
    files: u64,
    bytes: u64,
    /// Encrypted files of which nobody has looked what is in them.
    closed: u64,
    /// Those among them that no identity opens of those that were given.
    unopened: u64,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    encrypted_to: &'a [Recipient],
    #[serde(skip_serializing_if = "Option::is_none")]
    case: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collection: Option<String>,
    /// What is not here or not whole, as the manifest says.
    missing: Vec<Problem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest_sha256: Option<Sha256>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Sha256>,
    countersigned: &'a [Sha256],
    /// Keys that are said to have vouched for it and were not given.
    unchecked: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    custody: Option<LogHead>,
    /// What a time-stamping authority says.
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<&'a Stamped>,
}

fn view(verdict: &Verdict, all: bool) -> View<'_> {
    let manifest = verdict.manifest.as_ref();
    let shown = if all {
        verdict.problems.len()
    } else {
        verdict.problems.len().min(1)
    };
    View {
        intact: verdict.intact(),
        complete: verdict.complete() && verdict.unopened == 0,
        problems: verdict.problems.get(..shown).unwrap_or_default(),
        more_problems: verdict.problems.len() - shown,
        warnings: &verdict.warnings,
        files: verdict.files,
        bytes: verdict.bytes,
        closed: verdict.closed,
        unopened: verdict.unopened,
        encrypted_to: manifest
            .map(|manifest| manifest.encrypted_to.as_slice())
            .unwrap_or_default(),
        case: manifest.map(|manifest| manifest.case.to_string()),
        collection: manifest.map(|manifest| manifest.collection.to_string()),
        missing: manifest.map(missing).unwrap_or_default(),
        manifest_sha256: verdict.manifest_sha256,
        key: verdict.key,
        countersigned: &verdict.countersigned,
        unchecked: &verdict.unchecked,
        custody: verdict.custody,
        timestamp: verdict.timestamp.as_ref(),
    }
}

/// What the manifest says is not here or not whole.
pub(crate) fn missing(manifest: &Manifest) -> Vec<Problem> {
    let absent = manifest.missing.iter().map(|missing| Problem {
        path: missing.path.to_string(),
        message: format!("missing: {}", missing.reason),
    });
    let broken = manifest
        .artifacts
        .iter()
        .filter_map(|record| match &record.completeness {
            Completeness::Complete => None,
            Completeness::Incomplete { reasons } => Some(Problem {
                path: record.path.to_string(),
                message: format!("incomplete: {}", reasons.join("; ")),
            }),
        });
    absent.chain(broken).collect()
}

/// What was not looked at for want of a secret key, in a sentence; nothing if all was.
pub(crate) fn closed(verdict: &Verdict) -> Option<String> {
    let what = format!(
        "what is in {} encrypted files, only that they are those that were signed",
        verdict.closed
    );
    match (verdict.closed, verdict.unopened) {
        (0, _) => None,
        (_, 0) => Some(format!("{what}: give an --identity")),
        _ => {
            let manifest = verdict.manifest.as_ref();
            let readers = manifest.map(|manifest| manifest.encrypted_to.as_slice());
            let readers = encrypted_to(readers.unwrap_or_default());
            Some(format!(
                "{what}: no --identity that was given opens them, {readers}"
            ))
        }
    }
}

/// Whose secret key is wanted.
pub(crate) fn encrypted_to(readers: &[Recipient]) -> String {
    let readers: Vec<_> = readers.iter().map(ToString::to_string).collect();
    format!("they are encrypted to {}", readers.join(", "))
}

/// What is known of the time-stamping authority's word, in a sentence.
pub(crate) fn said(stamped: &Stamped) -> String {
    match stamped {
        Stamped::Good { time } => {
            format!("the authority says that it existed at {time}, by its own clock")
        }
        Stamped::NotChecked { time } => {
            format!("not checked: one of {time}; give the authority's --timestamp-ca")
        }
        Stamped::None { reason } => format!("none: {reason}"),
    }
}

fn text(verdict: &Verdict, wanted: &Verify, seconds: f64) -> String {
    let dir = wanted.dir.display();
    let read = format!(
        "{} files, {} in {}",
        verdict.files,
        human::bytes(verdict.bytes),
        human::span(seconds)
    );
    if !verdict.intact() {
        let mut text = format!("{dir} is NOT INTACT\n");
        let shown = if wanted.all { usize::MAX } else { 1 };
        for problem in verdict.problems.iter().take(shown) {
            let _ = writeln!(text, "  {}", clean(&problem.to_string()));
        }
        match verdict.problems.len().saturating_sub(shown) {
            0 => {}
            n => {
                let _ = writeln!(text, "  and {n} more; --all names them");
            }
        }
        return text;
    }
    let how = match (verdict.unopened, verdict.complete()) {
        (0, true) => "intact and complete",
        (0, false) => "intact, but PARTIAL",
        (_, true) => "intact as it is stored, and what is in it was NOT CHECKED",
        (_, false) => "intact as it is stored, but PARTIAL, and what is in it was NOT CHECKED",
    };
    let mut text = format!("{dir} is {how}: {read}\n");
    let Some(manifest) = &verdict.manifest else {
        return text;
    };
    let mut table = Table::inset();
    let row = |name: &str, value: String| [name.to_owned(), value];
    table.row(row(
        "case",
        format!("{}, collection {}", manifest.case, manifest.collection),
    ));
    table.row(row(
        "pod",
        format!(
            "{}/{} (uid {})",
            manifest.pod.namespace, manifest.pod.name, manifest.pod.uid
        ),
    ));
    table.row(row("node", manifest.node.name.clone()));
    table.row(row(
        "requested by",
        format!(
            "{}{}: {}",
            manifest.requested_by,
            if manifest.claimed { " (claimed)" } else { "" },
            manifest.reason
        ),
    ));
    table.row(row("sealed", manifest.created.to_string()));
    if let Some(custody) = verdict.custody {
        table.row(row(
            "custody",
            format!("{} entries until the seal, all signed for", custody.size),
        ));
    }
    if let Some(stamped) = &verdict.timestamp {
        table.row(row("timestamp", clean(&said(stamped))));
    }
    if let Some(key) = verdict.key {
        table.row(row("signed with", key.to_string()));
    }
    for key in &verdict.countersigned {
        table.row(row("vouched for", format!("with {key}")));
    }
    for key in &verdict.unchecked {
        table.row(row(
            "not checked",
            format!("a signature with {}: its key was not given", clean(key)),
        ));
    }
    if let Some(closed) = closed(verdict) {
        table.row(row("not checked", closed));
    }
    for warning in &verdict.warnings {
        table.row(row("warning", warning.to_string()));
    }
    for problem in missing(manifest) {
        table.row(row("not here", problem.to_string()));
    }
    text.push_str(&table.to_string());
    text
}
