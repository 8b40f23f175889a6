//! `kubectl-impound`: the same program as `impound`, under the name that lets kubectl find it as
//! `kubectl impound`; and what completes that, under the name of a link, `kubectl_complete-impound`.

use std::process::ExitCode;

fn main() -> ExitCode {
    impound_cli::plugin()
}
