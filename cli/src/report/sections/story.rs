//! What happened when, and what the containment came to.

use std::collections::BTreeMap;

use impound_evidence::{ArtifactRecord, Event, Manifest, Method};
use maud::{Markup, html};
use time::OffsetDateTime;

use super::table;
use crate::report::case::Case;
use crate::report::containment::{CONTAINMENT, Containment, Status};
use crate::report::timeline::{Group, Row, clock, length, picture};

/// Rows of evictions and of drift in a table.
const ROWS: usize = 200;

pub(super) fn when(case: &Case, manifest: &Manifest) -> Markup {
    let mut rows = Vec::new();
    if let Some(Ok(containment)) = &case.containment {
        rows.extend(steps(&containment.status));
    }
    rows.extend(evidence(manifest));
    if let Some(Ok(containment)) = &case.containment {
        rows.extend(around(&containment.status));
    }
    html! {
        @match picture(&rows) {
            Some(picture) => (picture),
            None => p { "The collection says of nothing when it happened." },
        }
        (moments(case, manifest))
    }
}

/// The steps of the containment; the collection has rows of its own.
fn steps(status: &Status) -> impl Iterator<Item = Row> {
    status
        .steps
        .iter()
        .filter(|step| !step.name.starts_with("Collect"))
        .filter_map(|step| {
            Some(Row {
                group: Group::Containment,
                label: step_name(&step.name).to_owned(),
                from: step.started?,
                to: step.finished.or(step.started)?,
            })
        })
}

/// One row for each container and kind of reading; the neighbours' together.
fn evidence(manifest: &Manifest) -> Vec<Row> {
    let mut spans: BTreeMap<String, (OffsetDateTime, OffsetDateTime)> = BTreeMap::new();
    for record in &manifest.artifacts {
        let (from, to) = (
            record.received_started.to_utc(),
            record.received_finished.to_utc(),
        );
        spans
            .entry(reading(manifest, record))
            .and_modify(|(first, last)| {
                *first = from.min(*first);
                *last = to.max(*last);
            })
            .or_insert((from, to));
    }
    let mut rows: Vec<_> = spans
        .into_iter()
        .map(|(label, (from, to))| Row {
            group: Group::Evidence,
            label,
            from,
            to,
        })
        .collect();
    rows.sort_by_key(|row| row.from);
    rows
}

fn reading(manifest: &Manifest, record: &ArtifactRecord) -> String {
    let container = manifest
        .containers
        .iter()
        .find(|known| known.id == record.source_id);
    let of = match container {
        Some(container) if container.pod == manifest.pod => container.name.clone(),
        Some(_) => "other pods' containers".to_owned(),
        None => match record.path.as_str().rsplit('/').nth(1) {
            Some(directory) => directory.to_owned(),
            None => String::new(),
        },
    };
    match record.method {
        Method::KubernetesObject if record.path.as_str() == CONTAINMENT => {
            "record of the containment".to_owned()
        }
        Method::KubernetesObject => "Kubernetes objects".to_owned(),
        Method::Inspect | Method::Diff => format!("{of}: description, diff"),
        Method::Layer => format!("{of}: writable layer"),
        Method::Export => format!("{of}: file system"),
        Method::Commit => format!("{of}: image"),
        Method::Derived if of.is_empty() => "the timeline".to_owned(),
        Method::Derived => format!("{of}: listings"),
        Method::Program => "the script that checks it".to_owned(),
    }
}

/// Evictions, and what was lost or put back.
fn around(status: &Status) -> impl Iterator<Item = Row> {
    let evictions = status.evictions.iter().filter_map(|eviction| {
        let at = eviction.tried?;
        Some(Row {
            group: Group::Around,
            label: format!("{}: {}", eviction.state, eviction.pod),
            from: at,
            to: at,
        })
    });
    let drift = status.drift.iter().filter_map(|drift| {
        let at = drift.time?;
        Some(Row {
            group: Group::Around,
            label: drift.reason.clone(),
            from: at,
            to: at,
        })
    });
    evictions.chain(drift)
}

/// The moments that are asked for first, as figures.
fn moments(case: &Case, manifest: &Manifest) -> Markup {
    let mut moments: Vec<(OffsetDateTime, String)> = Vec::new();
    if let Ok(custody) = &case.custody {
        for entry in custody.first.iter().chain(&custody.last) {
            let what = match entry.event {
                Event::Requested => format!("evidence requested for {}", entry.who),
                Event::Sealed => "evidence sealed: manifest signed and stored".to_owned(),
                Event::Released => format!("released by {}", entry.who),
                _ => continue,
            };
            moments.push((entry.time.to_utc(), what));
        }
    }
    if let Some(Ok(containment)) = &case.containment {
        let asked = containment.metadata.creation_timestamp;
        moments.extend(asked.map(|at| {
            (
                at,
                "quarantine requested (this time is cut to a whole second)".to_owned(),
            )
        }));
        let done = |name: &str| {
            let step = containment
                .status
                .steps
                .iter()
                .find(|step| step.name == name && step.state == "Done")?;
            step.finished
        };
        let steps = [
            ("Policy", "policy that denies all traffic in place"),
            (
                "Strip",
                "labels changed: owner and Services let go of the pod, the policy selects it",
            ),
            ("Verify", "containment checked"),
            ("Evict", "other pods evicted from the node"),
        ];
        moments.extend(
            steps
                .iter()
                .filter_map(|(name, what)| Some((done(name)?, (*what).to_owned()))),
        );
    }
    let received = manifest
        .artifacts
        .iter()
        .map(|record| record.received_finished.to_utc());
    moments.extend(
        received
            .clone()
            .min()
            .map(|at| (at, "first evidence received by the controller".to_owned())),
    );
    moments.extend(
        received
            .max()
            .map(|at| (at, "last evidence received by the controller".to_owned())),
    );
    moments.sort();
    let begin = moments.first().map(|(at, _)| *at);
    table(
        "The main moments, by the controller's clock",
        &["Time (UTC)", "#After the first", "What"],
        html! {
            @for (at, what) in &moments {
                tr {
                    td.time { (clock(*at)) }
                    td.number { @if let Some(begin) = begin { (length(*at - begin)) } }
                    td.words { (what) }
                }
            }
        },
    )
}

pub(super) fn containment(case: &Case) -> Markup {
    match &case.containment {
        None => html! {
            p { "This collection has no record of a containment: evidence was taken without one, or by a version that did not store it. Whether the pod was contained can't be told from here." }
        },
        Some(Err(why)) => html! { p.bad { "The record of the containment is not shown: " (why) } },
        Some(Ok(Containment { status, .. })) => html! {
            p { strong { (status.phase) } @if !status.message.is_empty() { ": " (status.message) } }
            @if let Some(owner) = &status.owner { p { "The pod belonged to " (owner) "." } }
            p.note { "As it stood when the evidence had been stored, just before the seal; what came later is not in the collection." }
            (facts(status))
            (steps_table(status))
            (warnings(status))
            (drift(status))
            (evictions(status))
            (credentials(status))
        },
    }
}

fn facts(status: &Status) -> Markup {
    let rows = html! {
        @for fact in &status.facts {
            tr {
                @match fact.state.as_str() {
                    "True" => td.good { "✓ seen to be so" },
                    "False" => td.bad { "✗ seen NOT to be so" },
                    _ => td.warn { "? not proved" },
                }
                th scope="row" { (fact.name) }
                td.words { (fact.message) }
            }
        }
    };
    html! {
        h3 { "What was checked" }
        @if status.facts.is_empty() { p { "Nothing was checked." } } @else {
            (table("Facts about the containment", &["Result", "Fact", "What was seen"], rows))
        }
    }
}

fn steps_table(status: &Status) -> Markup {
    let rows = html! {
        @for step in &status.steps {
            tr {
                th scope="row" { (step_name(&step.name)) }
                @match step.state.as_str() {
                    "Done" => td.good { "✓ done" },
                    "Failed" => td.bad { "✗ failed" },
                    "Skipped" => td { "– skipped" },
                    "Running" => td { "… under way" },
                    other => td.warn { "! " (other.to_lowercase()) },
                }
                td.time { @if let Some(at) = step.started { (clock(at)) } }
                td.number { @if let (Some(from), Some(to)) = (step.started, step.finished) { (length(to - from)) } }
                td.words { (step.message) }
            }
        }
    };
    html! {
        h3 { "The steps" }
        (table("Steps of the containment", &["Step", "State", "Begun (UTC)", "#Took", "Result"], rows))
    }
}

fn warnings(status: &Status) -> Markup {
    html! {
        @if !status.warnings.is_empty() {
            h3 { "Limits and consequences" }
            ul { @for warning in status.warnings.iter().take(ROWS) { li { (warning) } } }
        }
    }
}

fn drift(status: &Status) -> Markup {
    let rows = html! {
        @for drift in status.drift.iter().take(ROWS) {
            tr {
                td.time { @if let Some(at) = drift.time { (clock(at)) } }
                th scope="row" { (drift.reason) }
                td.words { (drift.what) }
            }
        }
    };
    html! {
        h3 { "What others changed meanwhile, and what was lost" }
        @if status.drift.is_empty() { p { "Nothing was seen to change." } } @else {
            (table("Changes by others since containment", &["Seen (UTC)", "What came of it", "What it was"], rows))
        }
    }
}

fn evictions(status: &Status) -> Markup {
    let rows = html! {
        @for eviction in status.evictions.iter().take(ROWS) {
            tr {
                th scope="row" { (eviction.namespace) "/" (eviction.pod) }
                td { (eviction.state) }
                td.time { @if let Some(at) = eviction.tried { (clock(at)) } }
                td.words { (eviction.message) }
            }
        }
    };
    html! {
        @if !status.evictions.is_empty() {
            h3 { "The other pods of the node" }
            (table("Evictions", &["Pod", "State", "Asked (UTC)", "Why"], rows))
            @if status.evictions.len() > ROWS { p { "and " (status.evictions.len() - ROWS) " more, see containment.json" } }
        }
    }
}

fn credentials(status: &Status) -> Markup {
    let rows = html! {
        @for credential in status.credentials.iter().take(ROWS) {
            tr {
                th scope="row" { (credential.kind) " " (credential.name) }
                td.words { (credential.grants) }
            }
        }
    };
    html! {
        @if !status.credentials.is_empty() {
            h3 { "What the suspect could act with" }
            p { "Containment takes none of these away; how to is in containment.json." }
            (table("Credentials within the suspect's reach", &["What", "What it allows"], rows))
        }
    }
}

fn step_name(name: &str) -> &str {
    match name {
        "Cordon" => "Node closed to new pods",
        "Protect" => "Suspect kept from eviction",
        "Policy" => "Deny-all policy",
        "Strip" => "Labels stripped",
        "LabelNode" => "Node labelled",
        "Verify" => "Containment checked",
        "Neighbours" => "Other containers described",
        "Evict" => "Other pods evicted",
        "Collect" => "Evidence collected",
        "CollectAgain" => "Restarted containers collected",
        other => other,
    }
}
