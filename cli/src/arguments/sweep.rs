//! `impound sweep …`: the evidence of many pods.

use clap::{Args, Subcommand};
use impound_evidence::CaseId;

use super::{Cause, reason};

/// `sweep …`
#[derive(Debug, Subcommand)]
pub(crate) enum Sweep {
    /// Collect the evidence of many pods, without containing them
    #[command(after_help = "\
Examples:
  impound sweep start -n shop -l app=web --case INC-7 --reason \"same image as the suspect\" --dry-run
  impound sweep start --all-namespaces --image sha256:… --case INC-7 --reason \"…\" --expires 8h --wait
  impound sweep start -n shop -n pay --owner Deployment/api --case INC-7 --reason \"…\" --at-once 40

The pods are listed once, when the sweep begins: those that everything given applies to. Each gets a
collection of its own, the small and fleeting parts of its evidence first; pods that are about to be gone come
before others, and nodes take turns. None is contained. A pod that is gone before its turn, and whatever else is
not collected, is named. Interrupting --wait does not stop the sweep. With --wait the exit code is 0 only
if every pod's evidence is sealed and complete, 3 if some is not.")]
    Start(Box<SweepStart>),
    /// List sweeps
    #[command(
        after_help = "Examples:\n  impound sweep list\n  impound sweep list --case INC-7 -o wide"
    )]
    List(SweepList),
    /// Show a sweep: how far it is, and what could not be collected
    #[command(after_help = "Examples:\n  impound sweep status sweep-1764170000")]
    Status(SweepName),
    /// List every pod of a sweep, with what became of it and where its evidence is
    #[command(after_help = "\
Examples:
  impound sweep targets sweep-1764170000
  impound sweep targets sweep-1764170000 --state Failed --state Absent -o json")]
    Targets(SweepTargets),
    /// Follow a sweep until it has ended
    #[command(after_help = "Examples:\n  impound sweep watch sweep-1764170000")]
    Watch(SweepName),
    /// Begin nothing more until it is resumed; what is under way goes on to its end
    #[command(
        after_help = "Examples:\n  impound sweep pause sweep-1764170000 --reason \"peak hours\""
    )]
    Pause(SweepChange),
    /// Go on with a sweep that is paused
    #[command(
        after_help = "Examples:\n  impound sweep resume sweep-1764170000 --reason \"peak hours are over\""
    )]
    Resume(SweepChange),
    /// Begin nothing more at all; what is under way goes on to its end, the rest is named
    #[command(
        after_help = "Examples:\n  impound sweep cancel sweep-1764170000 --reason \"false alarm\""
    )]
    Cancel(SweepChange),
}

#[derive(Debug, Args)]
pub(crate) struct SweepStart {
    #[command(flatten)]
    pub(crate) select: Select,
    #[command(flatten)]
    pub(crate) cause: Cause,
    /// The sweep's name [default: sweep- and the time]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) name: String,
    /// Show what would be taken, by node and namespace, and change nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Follow until the sweep has ended
    #[arg(long, short)]
    pub(crate) wait: bool,
    /// Collections under way at the same time, 1 to 256
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) at_once: u32,
    /// Of these, on one node, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) per_node: u32,
    /// Begin nothing any more after this time, e.g. 90m, 8h or 2d [default: never]
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) expires: Option<u64>,
    /// Pause each container while its image is made, unless a probe of the pod restarts what stands still
    #[arg(long)]
    pub(crate) pause: bool,
    /// Pause each pod's containers while they are exported, for no longer than their probes stand
    #[arg(long)]
    pub(crate) freeze: bool,
    /// Encrypt the evidence to this age recipient (age1…, a public key), besides those of the controller's
    /// configuration; may be given several times
    #[arg(long, value_name = "RECIPIENT")]
    pub(crate) encrypt_to: Vec<String>,
}

/// Which pods.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which pods")]
pub(crate) struct Select {
    /// In this namespace; may be given several times
    #[arg(
        long = "namespace",
        short,
        value_name = "NS",
        required_unless_present = "all_namespaces"
    )]
    pub(crate) namespaces: Vec<String>,
    /// In every namespace, without Impound's own pods
    #[arg(long, short = 'A', conflicts_with = "namespaces")]
    pub(crate) all_namespaces: bool,
    /// With these labels, as kubectl takes them, e.g. app=web,tier!=test
    #[arg(
        long = "selector",
        short = 'l',
        value_name = "LABELS",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) labels: String,
    /// On nodes with these labels
    #[arg(
        long = "node-selector",
        value_name = "LABELS",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) node_labels: String,
    /// With a container of this image, by its digest (sha256:…) or its name as the pod has it; may be given several
    /// times
    #[arg(long = "image", value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Of this owner, e.g. Deployment/web or CronJob/nightly
    #[arg(
        long,
        value_name = "KIND/NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) owner: String,
}

#[derive(Debug, Args)]
pub(crate) struct SweepList {
    /// Only of this case
    #[arg(long, value_name = "ID")]
    pub(crate) case: Option<CaseId>,
}

#[derive(Debug, Args)]
pub(crate) struct SweepName {
    /// The sweep
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct SweepTargets {
    #[command(flatten)]
    pub(crate) sweep: SweepName,
    /// Only in this state: Waiting, Running, Sealed, Partial, Failed, Absent, Expired or Cancelled; may be given
    /// several times
    #[arg(long = "state", value_name = "STATE", value_parser = ["Waiting", "Running", "Sealed", "Partial", "Failed", "Absent", "Expired", "Cancelled"], ignore_case = true)]
    pub(crate) states: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SweepChange {
    #[command(flatten)]
    pub(crate) sweep: SweepName,
    /// Why, for the custody log
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(crate) reason: String,
}

/// Seconds, minutes, hours or days, in seconds.
fn span(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a time like 90m, 8h or 2d, got {text:?}");
    let (at, unit) = text.char_indices().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(wrong()),
    };
    let number = text.get(..at).and_then(|number| number.parse::<u32>().ok());
    let number = number.filter(|number| *number > 0).ok_or_else(wrong)?;
    Ok(u64::from(number) * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_number_and_a_unit() {
        assert_eq!(span("90m"), Ok(5400));
        assert_eq!(span("2d"), Ok(172_800));
        for wrong in ["", "m", "90", "0h", "-1h", "1.5h", "8 h", "8h30m"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }
}
