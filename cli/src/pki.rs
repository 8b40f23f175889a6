//! `impound pki init`: the files of an installation.

use impound_proto::pki::{self, Outcome, Plan};
use impound_proto::tls::explain;
use serde::Serialize;

use crate::arguments::{Pki, PkiInit};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Table};

pub(crate) fn run(output: &mut Output, command: Pki) -> Result<Exit, Failure> {
    let Pki::Init(wanted) = command;
    init(output, wanted)
}

#[derive(Serialize)]
struct File {
    path: String,
    created: bool,
}

fn init(output: &mut Output, wanted: PkiInit) -> Result<Exit, Failure> {
    let plan = Plan {
        nodes: wanted.nodes,
        responders: wanted
            .responders
            .into_iter()
            .map(|one| (one.name, one.role))
            .collect(),
        controller_addresses: wanted.controller_addresses,
        leaf_life: wanted.days.map(|days| time::Duration::days(days.into())),
    };
    let written = pki::init(&wanted.dir, &plan).map_err(|error| Failure::Usage(explain(&error)))?;
    let files: Vec<File> = written
        .into_iter()
        .map(|file| File {
            path: file.path.display().to_string(),
            created: file.outcome == Outcome::Created,
        })
        .collect();
    output.document(&files, |_| {
        let mut table = Table::new(&["FILE", "STATE"]);
        for file in &files {
            let state = if file.created { "created" } else { "kept" };
            table.row([file.path.clone(), state.to_owned()]);
        }
        table.to_string()
    })?;
    Ok(Exit::Ok)
}
