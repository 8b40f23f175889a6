//! Collections in words: how one stands, how it ended, what to type next.

use std::fmt::Write as _;

use impound_proto::controller::v1 as wire;

use crate::follow::path_below_node;
use crate::human::{self, clean};
use crate::output::Table;

/// Bytes stored.
pub(crate) fn size(collection: &wire::Collection) -> u64 {
    collection
        .artifacts
        .iter()
        .map(|artifact| artifact.bytes)
        .fold(0, u64::saturating_add)
}

/// How a collection ended: whether it is whole, where it is, what is missing and why.
pub(crate) fn end(c: &wire::Collection) -> String {
    let stored = c
        .artifacts
        .iter()
        .filter(|one| ["Stored", "Incomplete"].contains(&one.state.as_str()));
    let head = match c.phase.as_str() {
        "Sealed" => "EVIDENCE sealed and complete",
        "Partial" => "EVIDENCE sealed, but PARTIAL",
        _ => "EVIDENCE NOT SEALED",
    };
    let mut text = format!(
        "\n{head}: {} artifacts, {} (collection {}, case {})\n",
        stored.count(),
        human::bytes(size(c)),
        clean(&c.name),
        clean(&c.case_id)
    );
    if !c.message.is_empty() {
        let _ = writeln!(text, "  {}", clean(&c.message));
    }
    let mut table = Table::inset();
    for artifact in &c.artifacts {
        let word = match artifact.state.as_str() {
            "Stored" => continue,
            "Incomplete" => "incomplete",
            "Failed" => "missing",
            _ => "not collected",
        };
        let why = match artifact.message.as_str() {
            "" => path_below_node(&artifact.path).to_owned(),
            message => format!("{}: {message}", path_below_node(&artifact.path)),
        };
        table.row([word.to_owned(), why]);
    }
    for (name, value) in [("at", &c.location), ("manifest", &c.manifest_sha256)] {
        if !value.is_empty() {
            table.row([name.to_owned(), value.clone()]);
        }
    }
    text.push_str(&table.to_string());
    text
}

/// The commands that copy and check a sealed collection.
pub(crate) fn next(c: &wire::Collection, program: &str) -> Vec<String> {
    if !["Sealed", "Partial"].contains(&c.phase.as_str()) {
        return Vec::new();
    }
    let (case, name) = (clean(&c.case_id), clean(&c.name));
    vec![
        format!("{program} evidence get {case} {name}"),
        format!("{program} verify {case}/{name} --key evidence.pub"),
    ]
}

/// How a collection stands.
pub(crate) fn status(c: &wire::Collection, wide: bool, program: &str) -> String {
    let mut head = Table::inset();
    let phase = [c.phase.as_str(), c.message.as_str()];
    let phase: Vec<_> = phase.into_iter().filter(|text| !text.is_empty()).collect();
    for (name, value) in [
        (
            "Pod",
            format!("{}/{} (uid {})", c.namespace, c.pod, c.pod_uid),
        ),
        ("Node", c.node.clone()),
        ("Case", c.case_id.clone()),
        ("Reason", c.reason.clone()),
        ("Requested by", c.requested_by.clone()),
        ("Created", human::date(c.created.as_ref())),
        ("Finished", human::date(c.finished.as_ref())),
        ("Phase", phase.join(": ")),
        ("At", c.location.clone()),
        ("Manifest", c.manifest_sha256.clone()),
    ] {
        if !value.is_empty() {
            head.row([name.to_owned(), value]);
        }
    }
    let mut text = format!(
        "Collection {}/{}\n{head}",
        clean(&c.namespace),
        clean(&c.name)
    );
    if !c.artifacts.is_empty() {
        let mut table = Table::inset();
        for artifact in &c.artifacts {
            let path = if wide {
                &artifact.path
            } else {
                path_below_node(&artifact.path)
            };
            let mut row = vec![artifact.state.clone(), human::bytes(artifact.bytes)];
            row.push(human::between(
                artifact.started.as_ref(),
                artifact.finished.as_ref(),
            ));
            if wide {
                row.push(artifact.sha256.clone());
            }
            row.extend([path.to_owned(), artifact.message.clone()]);
            table.row(row);
        }
        let _ = write!(text, "\nArtifacts\n{table}");
    }
    let next = next(c, program);
    if !next.is_empty() {
        text.push_str("\nNext\n");
        for command in next {
            let _ = writeln!(text, "  {command}");
        }
    }
    text
}
