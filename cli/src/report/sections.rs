//! The sections of a report, in the order in which they are read: the verdict first, the method last.

mod contents;
mod custody;
mod files;
mod story;

use impound_evidence::{Manifest, Verdict};
use maud::{Markup, html};

use super::case::Case;
use super::timeline::clock;

/// Problems that are listed.
const PROBLEMS: usize = 100;

/// Everything below the head.
pub(super) fn body(case: &Case, name: &str) -> Markup {
    let manifest = case.verdict.manifest.as_ref();
    let sections: Vec<(&str, &str, Markup)> = manifest
        .map(|manifest| {
            vec![
                ("summary", "Summary", summary(case, manifest)),
                ("when", "What happened when", story::when(case, manifest)),
                (
                    "containment",
                    "What is contained, and what could not be proved",
                    story::containment(case),
                ),
                (
                    "changes",
                    "What was changed in the containers",
                    contents::changes(case),
                ),
                (
                    "missing",
                    "What is not here, and what collecting altered",
                    files::missing(manifest),
                ),
                ("files", "The evidence files", files::files(manifest)),
                ("custody", "Custody: who did what", custody::custody(case)),
                (
                    "check",
                    "How to check this without us",
                    custody::check(case, manifest),
                ),
                ("words", "What the words mean", custody::words()),
            ]
        })
        .unwrap_or_default();
    html! {
        body {
            a.skip href="#content" { "To the content" }
            header {
                h1 { "Evidence report: " (name) }
                p.lead {
                    "Made by impound " (env!("CARGO_PKG_VERSION")) " on " (clock(case.made)) " UTC. "
                    "This page is an aid to reading; the evidence is the signed collection that it describes."
                }
                (verdict(case))
            }
            nav aria-label="Contents" {
                ol { @for (id, title, _) in &sections { li { a href={ "#" (id) } { (title) } } } }
            }
            main id="content" {
                @for (id, title, section) in &sections {
                    section id=(id) aria-labelledby={ (id) "-title" } {
                        h2 id={ (id) "-title" } { (title) }
                        (section)
                    }
                }
            }
            footer { p { "End of the report on " (name) "." } }
        }
    }
}

fn verdict(case: &Case) -> Markup {
    let verdict = &case.verdict;
    let how = html! {
        "Checked on " (clock(case.made)) " UTC, offline, by the same code as " code { "impound verify" } ": "
        (verdict.files) " files, " (crate::human::bytes(verdict.bytes)) " read."
    };
    html! {
        @match (verdict.intact(), verdict.complete()) {
            (true, true) => {
                section.verdict.good aria-label="Verdict" {
                    p.word { "✓ Intact and complete" }
                    p { "Every file is exactly what was signed. None is missing, none was added, and everything that was asked for is here." }
                    (signer(verdict))
                    p { (how) }
                }
            }
            (true, false) => {
                section.verdict.warn aria-label="Verdict" {
                    p.word { "✓ Intact, ! but not complete" }
                    p {
                        "Every file is exactly what was signed, none is missing of them and none was added. But something that was asked for could not be had: see "
                        a href="#missing" { "what is not here" } "."
                    }
                    (signer(verdict))
                    p { (how) }
                }
            }
            _ if !case.keyed => {
                section.verdict.warn aria-label="Verdict" {
                    p.word { "? Not verified" }
                    p { "No public key was given, so nobody vouches for anything on this page. Make the report again with --key." }
                    (problems(verdict))
                }
            }
            _ => {
                section.verdict.bad aria-label="Verdict" {
                    p.word { "✗ NOT INTACT" }
                    p { "The collection is not what was signed, or was not signed with the key that was given. What follows is what it says of itself; contents that differ from what was signed are not shown." }
                    (problems(verdict))
                    p { (how) }
                }
            }
        }
    }
}

fn signer(verdict: &Verdict) -> Markup {
    html! {
        @if let Some(key) = verdict.key {
            p {
                "Signed with the key whose SHA-256 is " code { (key) } ". "
                "Compare it with what whoever runs the controller has published, not with anything that came along with the evidence."
            }
        }
        @for warning in &verdict.warnings { p { "Odd: " (warning.to_string()) } }
    }
}

fn problems(verdict: &Verdict) -> Markup {
    html! {
        ul {
            @for problem in verdict.problems.iter().take(PROBLEMS) { li { (problem.to_string()) } }
            @if verdict.problems.len() > PROBLEMS { li { "and " (verdict.problems.len() - PROBLEMS) " more" } }
        }
    }
}

fn summary(case: &Case, manifest: &Manifest) -> Markup {
    let bytes = manifest
        .artifacts
        .iter()
        .map(|record| record.size)
        .fold(0, u64::saturating_add);
    html! {
        dl {
            dt { "Case" } dd { (manifest.case) ", collection " (manifest.collection) }
            dt { "Suspect pod" } dd { (manifest.pod.namespace) "/" (manifest.pod.name) ", uid " code { (manifest.pod.uid) } }
            dt { "Node" } dd { (manifest.node.name) @if let Some(uid) = &manifest.node.uid { ", uid " code { (uid) } } }
            dt { "Cluster" } dd { code { (manifest.cluster) } " (uid of its kube-system namespace)" }
            dt { "Requested by" }
            dd {
                (manifest.requested_by)
                @if manifest.claimed { " (claimed by a Kubernetes object, shown by no certificate)" }
                @if let Some(sha256) = manifest.requester_certificate_sha256 { ", certificate SHA-256 " code { (sha256) } }
            }
            dt { "Reason given" } dd { (manifest.reason) }
            @if let Some(at) = case.requested() { dt { "Evidence requested" } dd.time { (clock(at)) " UTC" } }
            dt { "Sealed" } dd.time { (clock(manifest.created.to_utc())) " UTC" }
            @if let Some(stamped) = &case.verdict.timestamp {
                dt { "Timestamp" } dd { (crate::verify::said(stamped)) }
            }
            @if !manifest.encrypted_to.is_empty() {
                dt { "Encrypted to" } dd { @for recipient in &manifest.encrypted_to { code { (recipient) } " " } }
            }
            @if let Some(closed) = crate::verify::closed(&case.verdict) {
                dt { "Not checked" } dd { (closed) }
            }
            @for agent in &manifest.agents {
                dt { "Read by" }
                dd {
                    (agent.identity) ", " (agent.runtime) " " (agent.runtime_version)
                    @if let Some(offset) = agent.clock_offset_ms {
                        "; its clock was " (offset.unsigned_abs()) " ms " (if offset < 0 { "behind" } else { "ahead of" }) " the controller's"
                    }
                }
            }
            dt { "Evidence" } dd { (manifest.artifacts.len()) " files, " (crate::human::bytes(bytes)) }
            @if let Some(sha256) = verdict_sha256(&case.verdict) { dt { "SHA-256 of the manifest" } dd { code { (sha256) } } }
        }
    }
}

fn verdict_sha256(verdict: &Verdict) -> Option<String> {
    verdict.manifest_sha256.map(|sha256| sha256.to_string())
}

/// A table that may be wider than its page, which can then be scrolled with the keyboard too. A head
/// that begins with `#` is over numbers.
fn table(label: &str, heads: &[&str], rows: Markup) -> Markup {
    html! {
        div.scroll role="region" aria-label=(label) tabindex="0" {
            table {
                caption { (label) }
                thead { tr { @for head in heads {
                    @match head.strip_prefix('#') {
                        Some(head) => th.number scope="col" { (head) },
                        None => th scope="col" { (head) },
                    }
                } } }
                tbody { (rows) }
            }
        }
    }
}

/// `1 file`, `2 files`.
fn count(n: u64, one: &str, many: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}
