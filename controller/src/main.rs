//! `impound-controller`: see the crate's documentation.

use std::process::ExitCode;

use clap::Parser;
use impound_controller::config::{Command, Config};
use impound_controller::{resources, run};

fn main() -> ExitCode {
    let config = Config::parse();
    let outcome = match config.command {
        Some(Command::Crds) => resources::print_definitions(&mut std::io::stdout().lock()),
        None => run::serve(config.serve),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped");
            eprintln!("impound-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}
