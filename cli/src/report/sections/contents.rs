//! What was changed in the containers against their images.

use impound_evidence::EvidencePath;
use maud::{Markup, html};

use super::{count, table};
use crate::human;
use crate::report::case::{Case, Container};
use crate::report::changes::{AGES, ALL, Ages, Change, Changes, Count, Kind};
use crate::report::timeline::clock;

/// Directories that are listed.
const DIRECTORIES: usize = 25;

/// Other pods' containers that are listed.
const NEIGHBOURS: usize = 200;

pub(super) fn changes(case: &Case) -> Markup {
    let (suspects, neighbours): (Vec<_>, Vec<_>) = case
        .containers
        .iter()
        .partition(|container| container.suspect);
    html! {
        @if suspects.is_empty() { p { "No list of changes of the suspect's containers is in the collection." } }
        @for container in suspects { (suspect(container)) }
        (odd(case))
        (others(&neighbours))
    }
}

fn suspect(container: &Container) -> Markup {
    html! {
        h3 { "Container " (container.name) @if !container.pod.is_empty() { " of " (container.pod) } }
        @match &container.changes {
            Err(why) => p.bad { "Its changes are not shown: " (why) },
            Ok(changes) => {
                p {
                    strong { (count(changes.count.all(), "change", "changes")) }
                    " against its image: " (changes.count.added) " added, " (changes.count.changed) " changed, "
                    (changes.count.deleted) " deleted. All of them are in " code { (container.list) } "."
                }
                @if !changes.described {
                    p.note { "This collection only says that a path changed, not what it is: types, sizes, times and hashes are in the exported file system." }
                }
                @if changes.count.all() > 0 {
                    (types(changes))
                    (directories(changes))
                    @if changes.described { (ages(&changes.ages)) (tops(changes)) }
                    (all(changes, &container.list))
                }
            }
        }
    }
}

fn counted(head: &str, rows: &[(&str, &Count)], label: &str) -> Markup {
    let rows = html! {
        @for (name, count) in rows {
            tr {
                th.mono scope="row" { (name) }
                td.number { (count.added) }
                td.number { (count.changed) }
                td.number { (count.deleted) }
            }
        }
    };
    table(label, &[head, "#Added", "#Changed", "#Deleted"], rows)
}

fn types(changes: &Changes) -> Markup {
    let rows: Vec<_> = changes
        .types
        .iter()
        .filter(|(_, count)| count.all() > 0)
        .map(|(name, count)| (*name, count))
        .collect();
    counted("What", &rows, "Changes by type")
}

fn directories(changes: &Changes) -> Markup {
    let rows: Vec<_> = changes
        .directories
        .iter()
        .take(DIRECTORIES)
        .map(|(name, count)| (name.as_str(), count))
        .collect();
    let more = changes.directories.len().saturating_sub(DIRECTORIES);
    html! {
        (counted("Directory", &rows, "Changes by directory, most first"))
        @if more > 0 { p { "and " (count(more as u64, "more directory", "more directories")) "." } }
    }
}

/// How long before the request the files were modified: a bar and a figure each.
fn ages(ages: &Ages) -> Markup {
    let most = ages.count.iter().copied().max().unwrap_or(0);
    let bar = |n: u64| format!("{:.1}", n as f64 / most.max(1) as f64 * 300.0);
    let total: u64 = ages.count.iter().sum();
    html! {
        @if most > 0 {
            h3 { "When the added and changed files were last modified, as they say" }
            div.scroll role="region" aria-label="Ages of changed files" tabindex="0" {
                svg.ages role="img" viewBox="0 0 660 216" aria-labelledby="ages-title ages-text" {
                    title id="ages-title" { "Last modification of added and changed files, before the pod was asked for" }
                    desc id="ages-text" {
                        (total) " files: "
                        @for ((name, _), n) in AGES.iter().zip(ages.count) { (n) " " (name) "; " }
                    }
                    @for (row, ((name, _), n)) in AGES.iter().zip(ages.count).enumerate() {
                        text x="0" y=(row * 24 + 17) { (name) }
                        rect.evidence x="260" y=(row * 24 + 4) width=(bar(n)) height="16" {}
                        text.took x={ (format!("{:.1}", 268.0 + n as f64 / most.max(1) as f64 * 300.0)) } y=(row * 24 + 17) { (n) }
                    }
                }
            }
            p.note { "An intruder can set these times to anything; a file that is new by the diff and old by its own time deserves a look." }
        }
    }
}

fn tops(changes: &Changes) -> Markup {
    html! {
        @if changes.count.all() as usize > ALL {
            (list(&changes.newest, "The newest files"))
            (list(&changes.largest, "The largest files"))
            @if !changes.deleted.is_empty() {
                h3 { "Deleted" }
                ul { @for path in &changes.deleted { li { code { (path) } } } }
                @if changes.count.deleted as usize > changes.deleted.len() { p { "and " (changes.count.deleted as usize - changes.deleted.len()) " more" } }
            }
        } @else {
            (list(changes.newest.get(..5.min(changes.newest.len())).unwrap_or_default(), "The newest files"))
            (list(changes.largest.get(..5.min(changes.largest.len())).unwrap_or_default(), "The largest files"))
        }
    }
}

fn all(changes: &Changes, path: &EvidencePath) -> Markup {
    html! {
        @if changes.count.all() as usize <= ALL {
            (list(&changes.first, "All changes"))
        } @else {
            p { "The list is too long for a page; it is in " code { (path) } ", one change a line." }
        }
    }
}

fn list(changes: &[Change], label: &str) -> Markup {
    let described = changes.iter().any(|change| change.file.is_some());
    let heads: &[&str] = match described {
        true => &["Change", "Path", "#Size", "Modified (UTC)", "SHA-256"],
        false => &["Change", "Path"],
    };
    table(
        label,
        heads,
        html! {
            @for change in changes {
                tr {
                    td.time { (kind(change.kind)) }
                    td.path { code { (change.path) } @if let Some(link) = change.file.as_ref().and_then(|file| file.link.as_ref()) { " → " code { (link) } } }
                    @if described {
                        @match &change.file {
                            Some(file) if file.kind != "dir" => {
                                td.number { (human::bytes(file.size)) }
                                td.time { @match file.time() { Some(at) => (clock(at)), None => "unknown" } }
                                td.hash { @if let Some(sha256) = &file.sha256 { code { (sha256) } } }
                            }
                            Some(_) => { td.number { "directory" } td {} td {} }
                            None => { td {} td {} td {} }
                        }
                    }
                }
            }
        },
    )
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "A added",
        Kind::Changed => "C changed",
        Kind::Deleted => "D deleted",
    }
}

/// What the listings found odd in the tars: a sign of tampering, or of tools that wrote them so.
fn odd(case: &Case) -> Markup {
    html! {
        @for (path, index) in &case.tars {
            @match index {
                Err(why) => p.bad { "The verdict on a tar is not shown: " (why) },
                Ok(index) if index.anomalies.is_empty() && index.not_examined.is_empty() => {},
                Ok(index) => {
                    h3 { "What is odd in a tar" }
                    p { code { (path) } ", of " (count(index.members, "member", "members")) ":" }
                    ul {
                        @for anomaly in index.anomalies.iter().take(50) { li { (anomaly.count) " × " (anomaly.meaning) } }
                        @for not in index.not_examined.iter().take(50) { li { (not) } }
                    }
                }
            }
        }
    }
}

fn others(neighbours: &[&Container]) -> Markup {
    let rows = html! {
        @for container in neighbours.iter().take(NEIGHBOURS) {
            tr {
                th scope="row" { (container.pod) " " (container.name) }
                @match &container.changes {
                    Ok(changes) => {
                        td.number { (changes.count.added) }
                        td.number { (changes.count.changed) }
                        td.number { (changes.count.deleted) }
                    }
                    Err(why) => td.bad colspan="3" { (why) },
                }
                td.path { code { (container.list) } }
            }
        }
    };
    html! {
        @if !neighbours.is_empty() {
            h3 { "Containers of the node's other pods, before they were evicted" }
            (table("Changes of the other containers", &["Container", "#Added", "#Changed", "#Deleted", "List"], rows))
            @if neighbours.len() > NEIGHBOURS { p { "and " (neighbours.len() - NEIGHBOURS) " more" } }
        }
    }
}
