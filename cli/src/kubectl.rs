//! `kubectl-impound`: the same program as `impound`, under the name that lets kubectl find it as
//! `kubectl impound`.

use std::process::ExitCode;

fn main() -> ExitCode {
    impound_cli::main("kubectl impound")
}
