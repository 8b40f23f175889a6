//! `impound-controller`: see the crate's documentation.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use impound_controller::config::{Command, Config};
use impound_controller::contain::guard;
use impound_controller::{resources, run};

mod lean;

fn main() -> ExitCode {
    lean::allocate();
    let config = Config::parse();
    let outcome = match config.command {
        Some(Command::Crds) => resources::print_definitions(&mut std::io::stdout().lock()),
        Some(Command::Admission { user, no_access }) => {
            let policies = if no_access {
                guard::access(&user)
            } else {
                guard::guard(&user, &config.serve.settings())
            };
            resources::documents(&policies).and_then(|text| {
                std::io::stdout()
                    .write_all(text.as_bytes())
                    .map_err(Into::into)
            })
        }
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
