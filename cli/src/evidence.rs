//! `impound evidence ls`, `get`, `verify` and `hold`: the evidence in the store. `extract` works on a copy.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use impound_evidence::age::Identity;
use impound_evidence::{CHECKPOINT, CUSTODY, CaseId, CollectionName, EvidencePath};
use impound_proto::controller::v1 as wire;
use serde::Serialize;

use crate::arguments::{Connection, Evidence, EvidenceGet, EvidenceLs, EvidenceVerify};
use crate::client::{Client, LONG_CALL, answer, request, request_within};
use crate::download::{Download, State, Wanted, opened};
use crate::extract;
use crate::failure::{Exit, Failure};
use crate::follow::path_below_node;
use crate::hold;
use crate::human;
use crate::output::{Output, Table};
use crate::screen::{Bytes, Line};
use crate::sign;
use crate::verify::identities;
use crate::view;

pub(crate) async fn run(
    connection: &Connection,
    output: &mut Output,
    command: Evidence,
) -> Result<Exit, Failure> {
    match command {
        Evidence::Ls(wanted) => ls(&Client::new(connection)?, output, wanted).await,
        Evidence::Get(wanted) => get(&Client::new(connection)?, output, wanted).await,
        Evidence::Verify(wanted) => verify(&Client::new(connection)?, output, wanted).await,
        Evidence::Hold(wanted) => hold::run(&Client::new(connection)?, output, wanted, true).await,
        Evidence::Unhold(wanted) => {
            hold::run(&Client::new(connection)?, output, wanted, false).await
        }
        Evidence::Extract(wanted) => extract::run(output, wanted).await,
        Evidence::Sign(wanted) => sign::run(output, wanted).await,
    }
}

async fn ls(client: &Client, output: &mut Output, wanted: EvidenceLs) -> Result<Exit, Failure> {
    let files = files(client, &wanted.case, wanted.collection.as_ref()).await?;
    let views: Vec<_> = files.iter().map(view::EvidenceFile::from).collect();
    output.document(&views, |wide| {
        if files.is_empty() {
            return format!("no evidence of case {}", wanted.case);
        }
        // A sweep of many pods has more cases than the one that it was asked for.
        let cases = files
            .iter()
            .any(|file| file.case_id != wanted.case.as_str());
        let mut head = vec!["COLLECTION", "SIZE", "STATE", "PATH"];
        if wide {
            head.insert(3, "SHA-256");
        }
        if cases {
            head.insert(0, "CASE");
        }
        let mut table = Table::new(&head);
        for file in &files {
            let state = if file.completeness.is_empty() {
                "-"
            } else {
                &file.completeness
            };
            let mut row = vec![
                file.collection.clone(),
                human::bytes(file.size),
                state.to_owned(),
            ];
            if wide {
                row.push(file.sha256.clone());
            }
            row.push(file.path.clone());
            if cases {
                row.insert(0, file.case_id.clone());
            }
            table.row(row);
        }
        table.to_string()
    })?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Got {
    directory: String,
    files: Vec<GotFile>,
    bytes: u64,
    /// How many files were compared with their SHA-256 in the manifest.
    compared: usize,
    /// Where what was encrypted is, decrypted, and how many files that are.
    #[serde(skip_serializing_if = "Option::is_none")]
    decrypted: Option<Decrypted>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Decrypted {
    directory: String,
    files: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GotFile {
    path: String,
    bytes: u64,
    state: State,
}

async fn get(client: &Client, output: &mut Output, wanted: EvidenceGet) -> Result<Exit, Failure> {
    // A wrong file is said before hours of copying.
    let identities = identities(&wanted.identities)?;
    let program = output.program().to_owned();
    let Some(collection) = &wanted.collection else {
        let (mut got, mut closed) = (Vec::new(), None);
        let below = wanted.to.clone().unwrap_or_default();
        let all = collections(client, &wanted.case).await?;
        let root = |(case, collection): &(CaseId, CollectionName)| {
            below.join(case.as_str()).join(collection.as_str())
        };
        if !identities.is_empty() {
            let roots: BTreeSet<_> = all.iter().map(root).collect();
            for from in &roots {
                let plain = opened::directory(from)?;
                if roots.contains(&plain) {
                    return Err(Failure::Usage(format!(
                        "what is decrypted of {} would go to {}, which is of another collection: get each by its name, with another --to",
                        from.display(),
                        plain.display()
                    )));
                }
            }
        }
        for of in &all {
            let (case, collection) = of;
            let root = root(of);
            let (copied, problem) =
                copy(client, output, (case, collection), &[], root, &identities).await?;
            got.push(copied);
            // The others are copied nevertheless.
            closed = closed.or(problem);
        }
        output.document(&got, |_| {
            got.iter().map(|got| got.text(Some(&program))).collect()
        })?;
        return closed.map_or(Ok(Exit::Ok), Err);
    };
    let root = wanted
        .to
        .unwrap_or_else(|| PathBuf::from(wanted.case.as_str()).join(collection.as_str()));
    let of = (&wanted.case, collection);
    let (got, closed) = copy(client, output, of, &wanted.paths, root, &identities).await?;
    let whole = wanted.paths.is_empty();
    output.document(&got, |_| got.text(whole.then_some(&program)))?;
    closed.map_or(Ok(Exit::Ok), Err)
}

/// The collections of a case, and of the further cases of a large sweep.
async fn collections(
    client: &Client,
    case: &CaseId,
) -> Result<BTreeSet<(CaseId, CollectionName)>, Failure> {
    let listed = files(client, case, None).await?;
    let names = listed.iter().map(|file| {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::Failed(format!("the controller lists a name that is none: {error}"))
        };
        let case = file.case_id.parse().map_err(|error| wrong(&error))?;
        let collection = file.collection.parse().map_err(|error| wrong(&error))?;
        Ok((case, collection))
    });
    let names = names.collect::<Result<BTreeSet<_>, Failure>>()?;
    match names.is_empty() {
        true => Err(Failure::Missing(format!(
            "there is no evidence of case {case}"
        ))),
        false => Ok(names),
    }
}

/// Copies a collection, or some of its files, to the directory `root`. With it why nothing of a whole copy was decrypted.
async fn copy(
    client: &Client,
    output: &mut Output,
    (case, collection): (&CaseId, &CollectionName),
    paths: &[EvidencePath],
    root: PathBuf,
    identities: &[Identity],
) -> Result<(Got, Option<Failure>), Failure> {
    // As a wrong file, said before hours of copying.
    let plain = match identities.is_empty() {
        true => None,
        false => Some(opened::directory(&root)?),
    };
    let listed = files(client, case, Some(collection)).await?;
    let wanted_files = choose(&listed, paths, case, collection)?;
    let all = wanted_files
        .iter()
        .map(|file| file.size)
        .fold(0, u64::saturating_add);
    let mut download = Download::new(client, case, collection, &root);
    let mut screen = output.screen();
    let mut got = Got {
        directory: root.display().to_string(),
        files: Vec::new(),
        bytes: 0,
        compared: 0,
        decrypted: None,
    };
    for file in &wanted_files {
        let before = got.bytes;
        let name = path_below_node(file.path.as_str());
        let started = std::time::Instant::now();
        let result = download
            .file(file, &mut |done| {
                screen.transfer(
                    "get",
                    "Evidence",
                    name,
                    Bytes {
                        done: before + done,
                        all,
                    },
                )
            })
            .await;
        let (state, bytes) = result?;
        got.bytes = got.bytes.saturating_add(bytes);
        got.compared += usize::from(file.sha256.is_some());
        screen.line(&Line {
            label: "Evidence".to_owned(),
            state: state.word().to_owned(),
            took: match state {
                State::Kept => String::new(),
                _ => human::span(started.elapsed().as_secs_f64()),
            },
            message: format!("{name}, {}", human::bytes(bytes)),
            ..Line::default()
        })?;
        got.files.push(GotFile {
            path: file.path.to_string(),
            bytes,
            state,
        });
    }
    download.finish()?;
    drop(screen);
    if let Some(plain) = plain {
        let (from, to, identities) = (root.clone(), plain.clone(), identities.to_vec());
        let decrypting =
            tokio::task::spawn_blocking(move || opened::decrypt(&from, &to, &identities));
        let decrypted = decrypting
            .await
            .map_err(|error| Failure::failed("decrypting failed", &error))?;
        match decrypted {
            Ok(files) => {
                got.decrypted = Some(Decrypted {
                    directory: plain.display().to_string(),
                    files,
                });
            }
            Err(problem) => return Ok((got, Some(problem))),
        }
    }
    Ok((got, None))
}

impl Got {
    /// What was copied, and how a whole collection is verified with the program `verify_by`.
    fn text(&self, verify_by: Option<&String>) -> String {
        let n = match self.files.len() {
            1 => "1 file".to_owned(),
            n => format!("{n} files"),
        };
        let done = format!(
            "\n{n}, {} in {}; {} of {} compared with the manifest\n",
            human::bytes(self.bytes),
            self.directory,
            self.compared,
            self.files.len()
        );
        let decrypted = self.decrypted.as_ref().map(|decrypted| {
            format!(
                "{} files decrypted to {}, each compared with the manifest\n",
                decrypted.files, decrypted.directory
            )
        });
        let done = format!("{done}{}", decrypted.unwrap_or_default());
        match verify_by {
            Some(program) => format!(
                "{done}\nNext\n  {program} verify {} --key evidence.pub\n",
                self.directory
            ),
            None => done,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified<'a> {
    case: &'a CaseId,
    collection: &'a CollectionName,
    intact: bool,
    complete: bool,
    problems: &'a [String],
    files: u64,
    bytes: u64,
    closed: u64,
}

async fn verify(
    client: &Client,
    output: &mut Output,
    wanted: EvidenceVerify,
) -> Result<Exit, Failure> {
    let asked = wire::VerifyEvidenceRequest {
        case_id: wanted.case.to_string(),
        collection: wanted.collection.to_string(),
    };
    let verdict = answer(
        client
            .grpc()
            .verify_evidence(request_within(asked, LONG_CALL))
            .await,
    )?;
    let view = Verified {
        case: &wanted.case,
        collection: &wanted.collection,
        intact: verdict.intact,
        complete: verdict.complete,
        problems: &verdict.problems,
        files: verdict.files,
        bytes: verdict.bytes,
        closed: verdict.closed,
    };
    output.document(&view, |_| {
        let name = format!("{}/{}", wanted.case, wanted.collection);
        let read = format!(
            "{} files, {} read in the store",
            verdict.files,
            human::bytes(verdict.bytes)
        );
        let read = match verdict.closed {
            0 => read,
            n => format!("{read}; what is in {n} encrypted files is not checked, `impound verify --identity` does that"),
        };
        match (verdict.intact, verdict.complete) {
            (true, true) => format!("{name} is intact and complete: {read}"),
            (true, false) => format!("{name} is intact, but partial: {read}"),
            (false, _) => {
                let problems: String = verdict
                    .problems
                    .iter()
                    .map(|line| format!("  {}\n", human::clean(line)))
                    .collect();
                format!("{name} is NOT INTACT: {read}\n{problems}")
            }
        }
    })?;
    Ok(match (verdict.intact, verdict.complete) {
        (true, true) => Exit::Ok,
        (true, false) => Exit::Partial,
        (false, _) => Exit::Failed,
    })
}

async fn files(
    client: &Client,
    case: &CaseId,
    collection: Option<&CollectionName>,
) -> Result<Vec<wire::EvidenceFile>, Failure> {
    let asked = wire::ListEvidenceRequest {
        case_id: case.to_string(),
        collection: collection.map(ToString::to_string).unwrap_or_default(),
    };
    Ok(answer(client.grpc().list_evidence(request(asked)).await)?.files)
}

/// The files to copy, in the order to copy them: what signs the others comes after them, and the
/// custody log, which grows with every read, last.
fn choose(
    listed: &[wire::EvidenceFile],
    paths: &[EvidencePath],
    case: &CaseId,
    collection: &CollectionName,
) -> Result<Vec<Wanted>, Failure> {
    let mut known = HashMap::new();
    let mut order = Vec::new();
    for file in listed {
        let wanted = Wanted::parse(file)?;
        order.push(wanted.path.clone());
        known.insert(wanted.path.clone(), wanted);
    }
    if known.is_empty() {
        return Err(Failure::Missing(format!(
            "there is no evidence of collection {collection} in case {case}"
        )));
    }
    let paths = if paths.is_empty() { &order } else { paths };
    let mut chosen = Vec::new();
    for path in paths {
        match known.remove(path) {
            Some(file) => chosen.push(file),
            // Named twice.
            None if chosen.iter().any(|file: &Wanted| file.path == *path) => {}
            None => {
                return Err(Failure::Missing(format!(
                    "there is no {path} in collection {collection} of case {case}; `evidence ls {case} {collection}` lists what there is"
                )));
            }
        }
    }
    chosen.sort_by_key(|file| match file.path.as_str() {
        CUSTODY => 3,
        CHECKPOINT => 2,
        _ => u8::from(file.sha256.is_none()),
    });
    Ok(chosen)
}
