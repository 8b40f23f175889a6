//! `impound custody`: who did what to a case's evidence, and proofs of it.
//!
//! The log comes out of a directory (a collection's copy, or the case's log as `evidence get CASE
//! custody` brings it) or from the controller, which is not trusted with it: the same check follows.

use std::path::Path;

use impound_evidence::{
    CHECKPOINT, CHECKPOINT_LIMIT, CUSTODY, CaseId, Checkpoint, CustodyLog, Entry, LogHead, Sha256,
    VerifyingKey, case_log, verify_consistency, verify_inclusion,
};
use impound_proto::controller::v1 as wire;
use impound_proto::controller::v1::read_evidence_response::Message;
use serde::Serialize;

use crate::arguments::{Connection, Custody, CustodyShow, CustodyVerify};
use crate::client::{Client, LONG_CALL, answer, request_within};
use crate::failure::{Exit, Failure};
use crate::human::clean;
use crate::output::{Output, Table};
use crate::verify;

/// Longest log that is read, in bytes; the controller has the same limit.
const LOG_LIMIT: u64 = 256 << 20;

pub(crate) async fn run(
    connection: &Connection,
    output: &mut Output,
    command: Custody,
) -> Result<Exit, Failure> {
    match command {
        Custody::Show(wanted) => show(connection, output, wanted).await,
        Custody::Verify(wanted) => check(connection, output, wanted).await,
    }
}

/// A log and its signed head, as they came.
struct Files {
    log: Vec<u8>,
    checkpoint: Vec<u8>,
}

async fn show(
    connection: &Connection,
    output: &mut Output,
    wanted: CustodyShow,
) -> Result<Exit, Failure> {
    let files = files(connection, &wanted.of).await?;
    let (_, entries) = read(&files)?;
    output.document(&entries, |wide| {
        let mut head = vec!["NO.", "TIME", "EVENT", "WHO", "WHAT"];
        if wide {
            head.extend(["CERTIFICATE SHA-256", "ARTIFACT SHA-256"]);
        }
        let mut table = Table::new(&head);
        for entry in &entries {
            let mut row = cells(entry).to_vec();
            if wide {
                let artifact = entry.artifact.as_ref().map(|record| record.sha256);
                let hashes = [entry.certificate_sha256, artifact];
                row.extend(hashes.map(|hash| hash.map_or("-".to_owned(), |hash| hash.to_string())));
            }
            table.row(row);
        }
        format!("{table}\nNothing of this was checked; `custody verify` does that.\n")
    })?;
    Ok(Exit::Ok)
}

fn cells(entry: &Entry) -> [String; 5] {
    let event = serde_json::to_value(entry.event).unwrap_or_default();
    let mut what = entry.what.clone();
    if let Some(collection) = &entry.collection {
        what = format!("{collection}: {what}");
    }
    if let Some(why) = &entry.why {
        what = format!("{what} ({why})");
    }
    let claimed = if entry.claimed { " (claimed)" } else { "" };
    [
        entry.seq.to_string(),
        entry.time.to_string(),
        event.as_str().unwrap_or_default().to_owned(),
        clean(&format!("{}{claimed}", entry.who)),
        clean(&what),
    ]
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    origin: String,
    head: LogHead,
    #[serde(skip_serializing_if = "Option::is_none")]
    inclusion: Option<Inclusion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consistency: Option<Consistency>,
}

/// Proof that `entry` is in the log with the head.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inclusion {
    entry: Entry,
    proof: Vec<Sha256>,
}

/// Proof that the log with the head begins with the log that had `old`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Consistency {
    old: LogHead,
    proof: Vec<Sha256>,
}

async fn check(
    connection: &Connection,
    output: &mut Output,
    wanted: CustodyVerify,
) -> Result<Exit, Failure> {
    let keys = verify::keys(&wanted.keys)?;
    let files = files(connection, &wanted.of).await?;
    let wrong = |what: &str, error: &dyn std::fmt::Display| {
        Failure::Failed(format!("NOT INTACT: {what}: {error}"))
    };
    let checkpoint =
        Checkpoint::open(&files.checkpoint, &keys).map_err(|error| wrong(CHECKPOINT, &error))?;
    let (log, entries) = read(&files)?;
    log.check(&checkpoint)
        .map_err(|error| wrong(CUSTODY, &error))?;
    if log.size() != checkpoint.head.size {
        // The controller appends, then signs: ask again.
        let error = format!(
            "the checkpoint covers {} of {} entries; if the log is being written just now, try again",
            checkpoint.head.size,
            log.size()
        );
        return Err(wrong(CHECKPOINT, &error));
    }
    let inclusion = wanted
        .inclusion
        .map(|seq| include(&files, &log, &entries, seq));
    let old = wanted.consistency.as_deref();
    let consistency = old.map(|file| continued(file, &keys, &log));
    let view = Checked {
        origin: log.origin().to_owned(),
        head: log.head(),
        inclusion: inclusion.transpose()?,
        consistency: consistency.transpose()?,
    };
    output.document(&view, |_| {
        let mut text = format!(
            "{} is intact: {} entries, all signed for; root {}\n",
            clean(&view.origin),
            view.head.size,
            view.head.root
        );
        if let Some(Inclusion { entry, proof }) = &view.inclusion {
            text.push_str(&format!(
                "entry {} is in it: {}\n",
                entry.seq,
                cells(entry).join("  ")
            ));
            text.push_str(&lines(proof));
        }
        if let Some(Consistency { old, proof }) = &view.consistency {
            text.push_str(&format!(
                "it only grew since it had {} entries with root {}\n",
                old.size, old.root
            ));
            text.push_str(&lines(proof));
        }
        text
    })?;
    Ok(Exit::Ok)
}

fn lines(proof: &[Sha256]) -> String {
    proof.iter().map(|hash| format!("  {hash}\n")).collect()
}

fn include(
    files: &Files,
    log: &CustodyLog,
    entries: &[Entry],
    seq: u64,
) -> Result<Inclusion, Failure> {
    let at = usize::try_from(seq).unwrap_or(usize::MAX);
    let line = files.log.split(|byte| *byte == b'\n').nth(at);
    let found = line
        .zip(entries.get(at))
        .zip(log.inclusion_proof(seq, log.size()));
    let Some(((line, entry), proof)) = found else {
        return Err(Failure::Missing(format!(
            "there is no entry {seq}; the log has {}, counted from 0",
            log.size()
        )));
    };
    let head = log.head();
    match verify_inclusion(line, seq, head.size, head.root, &proof) {
        true => Ok(Inclusion {
            entry: entry.clone(),
            proof,
        }),
        false => Err(Failure::Failed(format!(
            "the proof that entry {seq} is in the log does not hold"
        ))),
    }
}

fn continued(file: &Path, keys: &[VerifyingKey], log: &CustodyLog) -> Result<Consistency, Failure> {
    let bytes = small(file, CHECKPOINT_LIMIT)?;
    let old = Checkpoint::open(&bytes, keys)
        .map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?;
    log.check(&old)
        .map_err(|error| Failure::Failed(format!("NOT CONTINUED: {CUSTODY}: {error}")))?;
    let head = log.head();
    let proof = log
        .consistency_proof(old.head.size, head.size)
        .filter(|proof| {
            verify_consistency(old.head.size, old.head.root, head.size, head.root, proof)
        });
    match proof {
        Some(proof) => Ok(Consistency {
            old: old.head,
            proof,
        }),
        None => Err(Failure::Failed(format!(
            "there is no proof that a log begins with {} entries",
            old.head.size
        ))),
    }
}

fn read(files: &Files) -> Result<(CustodyLog, Vec<Entry>), Failure> {
    // The origin is the checkpoint's first line; whether it is the right one is checked with it.
    let origin = String::from_utf8_lossy(&files.checkpoint);
    let origin = origin.lines().next().unwrap_or_default();
    let mut entries = Vec::new();
    CustodyLog::read(origin, files.log.as_slice(), |entry| entries.push(entry))
        .map(|log| (log, entries))
        .map_err(|error| Failure::Failed(format!("NOT INTACT: {CUSTODY}: {error}")))
}

async fn files(connection: &Connection, of: &str) -> Result<Files, Failure> {
    let dir = Path::new(of);
    if dir.is_dir() {
        return Ok(Files {
            checkpoint: small(&dir.join(CHECKPOINT), CHECKPOINT_LIMIT)?,
            log: small(&dir.join(CUSTODY), LOG_LIMIT)?,
        });
    }
    let case: CaseId = of.parse().map_err(|error| {
        Failure::Usage(format!("{of}: expected a directory or a case: {error}"))
    })?;
    let client = Client::new(connection)?;
    // The checkpoint last, so that it covers the whole log unless somebody reads evidence meanwhile.
    let log = stored(&client, &case, CUSTODY, LOG_LIMIT).await?;
    let checkpoint = stored(&client, &case, CHECKPOINT, CHECKPOINT_LIMIT).await?;
    Ok(Files { log, checkpoint })
}

fn small(file: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let wrong =
        |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", file.display()));
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|error| wrong(&error))?;
    match bytes.len() as u64 <= limit {
        true => Ok(bytes),
        false => Err(wrong(&format!("expected at most {limit} bytes"))),
    }
}

/// A file of the case's log in the store.
async fn stored(
    client: &Client,
    case: &CaseId,
    file: &str,
    limit: u64,
) -> Result<Vec<u8>, Failure> {
    let asked = wire::ReadEvidenceRequest {
        case_id: case.to_string(),
        collection: case_log()
            .map(|name| name.to_string())
            .map_err(|error| Failure::failed("the log's name", &error))?,
        path: file.to_owned(),
        offset: 0,
    };
    let mut stream = answer(
        client
            .grpc()
            .read_evidence(request_within(asked, LONG_CALL))
            .await,
    )?;
    let mut bytes = Vec::new();
    let mut whole = false;
    while let Some(response) = stream
        .message()
        .await
        .map_err(|status| Failure::of_call(&status))?
    {
        match response.message {
            Some(Message::Chunk(chunk)) => bytes.extend_from_slice(&chunk.data),
            Some(Message::Trailer(trailer)) => {
                whole = trailer.sha256 == Sha256::of(&bytes).to_string();
            }
            _ => {}
        }
        if bytes.len() as u64 > limit {
            return Err(Failure::Failed(format!(
                "{file}: expected at most {limit} bytes"
            )));
        }
    }
    match whole {
        true => Ok(bytes),
        false => Err(Failure::Unreachable(format!(
            "{file}: the transfer broke off"
        ))),
    }
}
