//! The cluster by way of kubectl, which knows the user's clusters and how to log in to them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::arguments::Cluster;
use crate::failure::Failure;

/// kubectl, as the user's shell would run it.
pub(crate) struct Kubectl<'a>(pub(crate) &'a Cluster);

impl Kubectl<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        if let Some(file) = &self.0.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        if let Some(context) = &self.0.context {
            command.arg("--context").arg(context);
        }
        command.args(arguments);
        command
    }

    /// Server-side: what others set stays theirs, and a conflict with them is an error.
    pub(crate) fn apply(&self, manifests: &str, manager: &str) -> Result<(), Failure> {
        self.applied(manifests, manager, Stdio::inherit())
    }

    /// The same, without a line about each object.
    pub(crate) fn apply_quietly(&self, manifests: &str, manager: &str) -> Result<(), Failure> {
        self.applied(manifests, manager, Stdio::null())
    }

    fn applied(&self, manifests: &str, manager: &str, lines: Stdio) -> Result<(), Failure> {
        let manager = format!("--field-manager={manager}");
        let arguments = ["apply", "--server-side", &manager, "-f", "-"];
        let mut child = self
            .command(&arguments)
            .stdin(Stdio::piped())
            .stdout(lines)
            .spawn()
            .map_err(missing)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(manifests.as_bytes())?;
        }
        let status = child.wait()?;
        succeeded(&arguments, status.success())
    }

    /// What it prints goes to ours.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<(), Failure> {
        let status = self
            .command(arguments)
            .stdin(Stdio::null())
            .status()
            .map_err(missing)?;
        succeeded(arguments, status.success())
    }

    /// What it prints; the rest of it goes to our standard error.
    pub(crate) fn read(&self, arguments: &[&str]) -> Result<String, Failure> {
        let output = self
            .command(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(missing)?;
        succeeded(arguments, output.status.success())?;
        String::from_utf8(output.stdout)
            .map_err(|error| Failure::failed("kubectl's answer is no text", &error))
    }
}

fn missing(error: std::io::Error) -> Failure {
    Failure::Usage(format!(
        "kubectl can't be run: {error}; install it (1.27 or later), or apply what `impound install --print` prints"
    ))
}

/// It said by itself what was wrong.
fn succeeded(arguments: &[&str], success: bool) -> Result<(), Failure> {
    match success {
        true => Ok(()),
        false => Err(Failure::Failed(format!(
            "`kubectl {}` failed",
            arguments.join(" ")
        ))),
    }
}
