//! `impound report`: a collection as one HTML file, for people who decide and did not take part.
//!
//! ```text
//! verify -> case (what is read, each file against its signed hash) -> sections -> page -> FILE
//! ```
//! The same one check as `impound verify` says whether the collection may be believed; the report never
//! looks at anything that the check did not vouch for.

mod case;
mod changes;
mod containment;
mod page;
mod sections;
mod timeline;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use serde::Serialize;

use crate::arguments::Report;
use crate::failure::{Exit, Failure};
use crate::human;
use crate::output::Output;
use crate::verify;
use case::{Case, Contents};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    report: PathBuf,
    bytes: usize,
    intact: bool,
    /// As of `verify`: nothing is missing, and whatever was to be opened was.
    complete: bool,
    /// Artifacts that are encrypted, and those of them that no key given opens.
    closed: u64,
    unopened: u64,
}

pub(crate) async fn run(output: &mut Output, wanted: Report) -> Result<Exit, Failure> {
    let keyed = !wanted.keys.is_empty();
    let verdict = verify::check(output, &wanted.dir, &wanted.keys, &wanted.besides).await?;
    let identities = verify::identities(&wanted.besides.identities)?;
    let exit = verify::exit(&verdict);
    let case = Case::read(
        &Contents::new(verify::open(&wanted.dir)?, identities),
        verdict,
        keyed,
    );
    let page = page::page(&case);
    let to = &wanted.to;
    // It shows what is in evidence, which may be encrypted for everybody else.
    let mut options = OpenOptions::new();
    let written = options.write(true).create_new(true).mode(0o600).open(to);
    written
        .and_then(|mut file| {
            file.write_all(page.as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| {
            let what = match error.kind() {
                ErrorKind::AlreadyExists => {
                    "is there already: remove it, or choose another --to".to_owned()
                }
                _ => format!("the report can't be written: {error}"),
            };
            Failure::Usage(format!("{}: {what}", to.display()))
        })?;
    let view = View {
        report: to.clone(),
        bytes: page.len(),
        intact: case.verdict.intact(),
        complete: case.verdict.complete() && case.verdict.unopened == 0,
        closed: case.verdict.closed,
        unopened: case.verdict.unopened,
    };
    output.document(&view, |_| {
        let what = match (keyed, exit) {
            (_, Exit::Ok) => "evidence that is intact and complete",
            (_, Exit::Partial) => "evidence that is intact, but PARTIAL",
            (_, Exit::Usage) => {
                "evidence that is intact as it is stored, and whose contents were NOT CHECKED, as no --identity that was given opens them"
            }
            (false, _) => "evidence that was NOT VERIFIED, because no --key was given",
            (true, _) => "evidence that is NOT INTACT",
        };
        let size = human::bytes(page.len() as u64);
        format!(
            "{}: {size}, a report on {what}",
            human::clean(&to.display().to_string())
        )
    })?;
    Ok(exit)
}
