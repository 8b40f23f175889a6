//! `impound`: everything is in the library, see [`impound_cli::main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    impound_cli::main("impound")
}
