//! The responder's hands: `impound`, also installed as `kubectl-impound`.
//!
//! It asks the controller by gRPC over mutual TLS and shows what happens; it decides nothing. What is
//! done with a copy of evidence works without a controller: `verify`, by the same code as the
//! controller, `report` and `evidence extract`; and so does `pki init`.
//!
//! - `arguments`: the command line.
//! - `client`: the connection, and what is asked over it.
//! - `follow`: a quarantine and its collection as they happen, on `screen` (terminal or lines).
//! - `quarantine`, `collection`, `sweep`, `evidence`, `custody`, `sign`, `extract`, `verify`, `report`, `pki`: the commands.
//! - `install`, `doctor`: an installation made or taken away, and a live one looked at.
//! - `complete`: what kubectl asks to complete `kubectl impound`.
//! - `view`: what is shown, as tables and as JSON or YAML.
//! - `failure`: errors and exit codes.

mod arguments;
mod client;
mod cluster;
mod collection;
mod complete;
mod containers;
mod custody;
mod doctor;
mod download;
mod evidence;
mod extract;
mod failure;
mod follow;
mod hold;
mod human;
mod install;
mod output;
mod pki;
mod quarantine;
mod report;
mod screen;
mod sign;
mod sweep;
mod verify;
mod view;

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use arguments::{Command, Impound};
use client::Client;
use failure::{Exit, Failure};
use output::Output;

/// The name under which kubectl looks for what completes `kubectl impound`.
const COMPLETER: &str = "kubectl_complete-impound";

/// Runs the program under `name` with the process's arguments.
pub fn main(name: &'static str) -> ExitCode {
    let command = Impound::command().name(name).bin_name(name);
    let parsed = command
        .try_get_matches()
        .and_then(|matches| Impound::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            let help = !error.use_stderr();
            // Nobody is left to tell if this fails.
            let _ = error.print();
            return if help {
                Exit::Ok.into()
            } else {
                Exit::Usage.into()
            };
        }
    };
    // It holds a responder's key.
    if let Err(error) = impound_proto::hardening::protect_memory() {
        let failure = Failure::failed("memory can't be kept out of core dumps", &error);
        let _ = writeln!(std::io::stderr(), "error: {failure}");
        return failure.exit().into();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Err(error) => Err(Failure::failed("the program can't start", &error)),
        Ok(runtime) => runtime.block_on(run(name, arguments)),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) if failure.is_closed_pipe() => Exit::Ok.into(),
        Err(failure) => {
            // As above: standard error is the last place to tell.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            failure.exit().into()
        }
    }
}

/// Runs kubectl's plugin: the program, or under the name of a link to it what completes its command line.
pub fn plugin() -> ExitCode {
    let mut given = std::env::args_os();
    let called = given.next().map(PathBuf::from).unwrap_or_default();
    if called.file_name() != Some(OsStr::new(COMPLETER)) {
        return main("kubectl impound");
    }
    let words: Vec<_> = given
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match complete::write(Impound::command(), &words, &mut std::io::stdout().lock()) {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            let failure = Failure::from(error);
            if failure.is_closed_pipe() {
                return Exit::Ok.into();
            }
            // As above: standard error is the last place to tell.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            failure.exit().into()
        }
    }
}

async fn run(name: &str, arguments: Impound) -> Result<Exit, Failure> {
    let mut output = Output::new(arguments.connection.output, name);
    let connection = &arguments.connection;
    match arguments.command {
        Command::Quarantine(wanted) => {
            quarantine::create(&Client::new(connection)?, &mut output, wanted).await
        }
        Command::Release(wanted) => {
            quarantine::release(&Client::new(connection)?, &mut output, wanted).await
        }
        Command::Collect(wanted) => {
            collection::create(&Client::new(connection)?, &mut output, wanted).await
        }
        Command::Sweep(wanted) => sweep::run(connection, &mut output, wanted).await,
        Command::Status(wanted) => {
            quarantine::status(&Client::new(connection)?, &mut output, wanted).await
        }
        Command::List(wanted) => {
            quarantine::list(&Client::new(connection)?, &mut output, wanted).await
        }
        Command::Watch(wanted) => {
            quarantine::watch(&Client::new(connection)?, &mut output, wanted).await
        }
        Command::Evidence(wanted) => evidence::run(connection, &mut output, wanted).await,
        Command::Custody(wanted) => custody::run(connection, &mut output, wanted).await,
        Command::Containers(wanted) => {
            containers::list(&Client::new(connection)?, &mut output, wanted).await
        }
        Command::Install(wanted) => install::install(&wanted),
        Command::Uninstall(wanted) => install::uninstall(&wanted),
        Command::Doctor(wanted) => {
            doctor::run(&Client::new(connection)?, &mut output, wanted).await
        }
        Command::Verify(wanted) => verify::run(&mut output, wanted).await,
        Command::Report(wanted) => report::run(&mut output, wanted).await,
        Command::Pki(wanted) => pki::run(&mut output, wanted),
        Command::Completion(wanted) => {
            let mut command = Impound::command();
            // A plugin's completion goes through kubectl, see `plugin`; scripts are for the program itself.
            let mut script = Vec::new();
            clap_complete::generate(wanted.shell, &mut command, "impound", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(Exit::Ok)
        }
    }
}
