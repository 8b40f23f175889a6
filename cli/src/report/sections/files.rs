//! The files of the collection, what is not among them, and what taking them did to the node.

use impound_evidence::{Completeness, Consistency, Manifest, Method};
use maud::{Markup, html};

use super::{count, table};
use crate::human;
use crate::report::timeline::{clock, length};

/// Files that are listed.
const FILES: usize = 400;

/// Missing things and alterations that are listed.
const ROWS: usize = 200;

pub(super) fn missing(manifest: &Manifest) -> Markup {
    let missing = crate::verify::missing(manifest);
    let rows = html! {
        @for missing in missing.iter().take(ROWS) {
            tr { th.mono scope="row" { (missing.path) } td.words { (missing.message) } }
        }
    };
    html! {
        h3 { "Asked for, and missing or incomplete" }
        @if missing.is_empty() { p { "Nothing: everything that was asked for is here, and complete." } } @else {
            (table("What is missing or incomplete", &["What", "Why"], rows))
            @if missing.len() > ROWS { p { "and " (missing.len() - ROWS) " more" } }
        }
        h3 { "What this way of collecting can't see" }
        ul { @for omission in &manifest.omissions { li { (omission) } } }
        h3 { "What collecting altered on the node" }
        (alterations(manifest))
    }
}

fn alterations(manifest: &Manifest) -> Markup {
    let rows = html! {
        @for alteration in manifest.alterations.iter().take(ROWS) {
            tr {
                td.time { @if let Some(at) = alteration.started { (clock(at.to_utc())) } }
                td.number { @if let (Some(from), Some(to)) = (alteration.started, alteration.finished) { (length(to.to_utc() - from.to_utc())) } }
                td.words { (alteration.effect) }
                td.path { code { (alteration.api_call) } }
            }
        }
    };
    html! {
        @if manifest.alterations.is_empty() { p { "Nothing." } } @else {
            (table("Alterations, by the node's clock", &["When (UTC)", "#Took", "What it changed", "Call"], rows))
            @if manifest.alterations.len() > ROWS { p { "and " (manifest.alterations.len() - ROWS) " more, see manifest.json" } }
        }
    }
}

pub(super) fn files(manifest: &Manifest) -> Markup {
    let rows = html! {
        @for record in manifest.artifacts.iter().take(FILES) {
            tr {
                th.mono scope="row" { (record.path) }
                td.number { (human::bytes(record.size)) }
                td.time { (clock(record.received_finished.to_utc())) }
                td { (method(record.method)) @if record.consistency == Consistency::Live && record.method != Method::Derived { ", live" } @if let Completeness::Incomplete { .. } = record.completeness { br; span.bad { "✗ incomplete" } } }
                td.hash { code { (record.sha256) } }
            }
        }
    };
    html! {
        p { (count(manifest.artifacts.len() as u64, "file", "files")) ", each with its SHA-256 in the signed manifest. The exact call that each came from, and both clocks, are in " code { "manifest.json" } ". "
            "“Live” means that it could change while it was read: what was read first may be older than what was read last." }
        (table("Evidence files", &["File", "#Size", "Received (UTC)", "What", "SHA-256"], rows))
        @if manifest.artifacts.len() > FILES { p { "and " (manifest.artifacts.len() - FILES) " more, see manifest.json" } }
    }
}

fn method(method: Method) -> &'static str {
    match method {
        Method::KubernetesObject => "Kubernetes object",
        Method::Inspect => "runtime's description",
        Method::Diff => "what changed",
        Method::Layer => "what it changed, with contents",
        Method::Export => "file system",
        Method::Commit => "image made of it",
        Method::Derived => "made from other files here",
        Method::Program => "checks this collection",
    }
}
