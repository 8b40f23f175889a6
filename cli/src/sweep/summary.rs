//! Sweeps in words: what would be taken, how one stands, how it ended, what to type next.

use std::fmt::Write as _;

use impound_proto::controller::v1 as wire;

use crate::human::{self, clean};
use crate::output::Table;

/// Nodes and namespaces of a plan that are listed, those with most pods first.
const LISTED: usize = 20;

/// How many targets have ended without being sealed and complete.
pub(crate) fn exceptions(counts: &wire::SweepCounts) -> u32 {
    counts.partial + counts.failed + counts.absent + counts.expired + counts.cancelled
}

/// What would be taken.
pub(super) fn plan(plan: &wire::SweepPlan) -> String {
    let counted = |many: usize, what: &str| match many {
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    };
    let nodes = plan.nodes.iter().filter(|node| !node.name.is_empty());
    let mut text = format!(
        "Evidence of {} would be taken, on {}, in {}. Nothing was changed.\n",
        counted(plan.targets as usize, "pod"),
        counted(nodes.count(), "node"),
        counted(plan.namespaces.len(), "namespace")
    );
    for (what, shares) in [("node", &plan.nodes), ("namespace", &plan.namespaces)] {
        let mut shares: Vec<_> = shares.iter().collect();
        shares.sort_by(|a, b| b.targets.cmp(&a.targets).then(a.name.cmp(&b.name)));
        let _ = writeln!(text, "\nBy {what}");
        let mut table = Table::inset();
        for share in shares.iter().take(LISTED) {
            let name = match share.name.as_str() {
                "" => "(on no node: nothing to collect)",
                name => name,
            };
            table.row([share.targets.to_string(), name.to_owned()]);
        }
        text.push_str(&table.to_string());
        if let Some(more) = shares.len().checked_sub(LISTED).filter(|more| *more > 0) {
            let _ = writeln!(text, "  and {more} more");
        }
    }
    if plan.cases.len() > 1 {
        let cases: Vec<_> = plan.cases.iter().map(|case| clean(case)).collect();
        let _ = writeln!(text, "\nIn the cases {}", cases.join(", "));
    }
    if !plan.left_out.is_empty() {
        let _ = writeln!(text, "\nLeft out: {}", clean(&plan.left_out));
    }
    text
}

/// How a sweep stands.
pub(super) fn status(sweep: &wire::Sweep, program: &str) -> String {
    let select = sweep.select.clone().unwrap_or_default();
    let expires = human::date(sweep.expires.as_ref());
    let mut head = Table::inset();
    for (name, value) in [
        ("Phase", sweep.phase.clone()),
        ("So far", sweep.message.clone()),
        ("Case", sweep.case_id.clone()),
        ("Reason", sweep.reason.clone()),
        ("Requested by", sweep.requested_by.clone()),
        (
            "Namespaces",
            match select.all_namespaces {
                true => "all".to_owned(),
                false => select.namespaces.join(", "),
            },
        ),
        ("Labels", select.labels),
        ("Node labels", select.node_labels),
        ("Images", select.images.join(", ")),
        ("Owner", select.owner),
        (
            "At once",
            format!("{}, {} on a node", sweep.at_once, sweep.per_node),
        ),
        ("Expires", expires),
        ("Created", human::date(sweep.created.as_ref())),
        ("Listed", human::date(sweep.expanded.as_ref())),
        ("Left out", sweep.left_out.clone()),
        ("Finished", human::date(sweep.finished.as_ref())),
        ("Stored", human::bytes(sweep.bytes)),
    ] {
        if !value.is_empty() {
            head.row([name.to_owned(), value]);
        }
    }
    let mut text = format!("Sweep {}\n{head}", clean(&sweep.name));
    text.push_str(&missing(sweep, program));
    text
}

/// How a sweep ended.
pub(super) fn end(sweep: &wire::Sweep, program: &str) -> String {
    let head = match sweep.phase.as_str() {
        "Complete" => "EVIDENCE of every pod sealed and complete",
        "Partial" => "EVIDENCE of some pods MISSING or incomplete",
        "Cancelled" => "CANCELLED",
        _ => "NOTHING COLLECTED",
    };
    let mut text = format!(
        "\n{head}: {} (sweep {}, case {}, {})\n",
        clean(&sweep.message),
        clean(&sweep.name),
        clean(&sweep.case_id),
        human::bytes(sweep.bytes)
    );
    text.push_str(&missing(sweep, program));
    let stored = |counts: wire::SweepCounts| counts.sealed + counts.partial > 0;
    if sweep.counts.is_some_and(stored) {
        let _ = writeln!(
            text,
            "\nNext\n  {program} sweep targets {}\n  {program} evidence ls {}",
            clean(&sweep.name),
            clean(&sweep.case_id)
        );
    }
    text
}

/// What is not sealed and complete, as far as the sweep itself names it.
fn missing(sweep: &wire::Sweep, program: &str) -> String {
    if sweep.exceptions.is_empty() {
        return String::new();
    }
    let mut table = Table::inset();
    for one in &sweep.exceptions {
        table.row([
            one.state.clone(),
            format!("{}/{}", one.namespace, one.pod),
            one.node.clone(),
            one.message.clone(),
        ]);
    }
    let mut text = format!("\nNot sealed and complete\n{table}");
    if sweep.more_exceptions > 0 {
        let _ = writeln!(
            text,
            "  and {} more: {program} sweep targets {}",
            sweep.more_exceptions,
            clean(&sweep.name)
        );
    }
    text
}

/// What a change leads to.
pub(super) fn changed(sweep: &wire::Sweep) -> String {
    let counts = sweep.counts.unwrap_or_default();
    let name = clean(&sweep.name);
    match sweep.state.as_str() {
        "Paused" => format!(
            "Sweep {name} is paused: {} wait, {} that are under way go on to their end.",
            counts.waiting, counts.running
        ),
        "Cancelled" => format!(
            "Sweep {name} is cancelled: {} are not collected, {} that are under way go on to their end.",
            counts.waiting, counts.running
        ),
        _ => format!("Sweep {name} goes on: {} wait.", counts.waiting),
    }
}
