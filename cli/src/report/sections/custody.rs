//! Custody, how to check the collection without this program, and the words that are used.

use impound_evidence::{Build, CheckpointStamp, Entry, Event, Manifest};
use maud::{Markup, html};

use super::table;
use crate::report::case::Case;
use crate::report::timeline::clock;

pub(super) fn custody(case: &Case) -> Markup {
    let custody = match &case.custody {
        Ok(custody) => custody,
        Err(why) => return html! { p.bad { "The custody log is not shown: " (why) } },
    };
    let shown = (custody.first.len() + custody.last.len()) as u64;
    let rows = html! {
        @for entry in &custody.first { (row(entry)) }
        @if custody.entries > shown {
            tr { td colspan="5" { "… " (custody.entries - shown) " entries are not shown; they are in custody.jsonl …" } }
        }
        @for entry in &custody.last { (row(entry)) }
    };
    html! {
        p {
            (custody.entries) " entries, each hashed together with all before it (a Merkle log as in RFC 6962). "
            @if let Some(head) = case.verdict.custody {
                "The signed head covers " (head.size) " of them; its root is " code { (head.root) } "."
            } @else {
                strong { "The signed head does not fit them, or could not be checked." }
            }
        }
        (table("Custody log, by the controller's clock", &["#No.", "Time (UTC)", "Event", "Who", "What, and why"], rows))
    }
}

fn row(entry: &Entry) -> Markup {
    html! {
        tr {
            td.number { (entry.seq) }
            td.time { (clock(entry.time.to_utc())) }
            th scope="row" { (event(entry.event)) }
            td.path { (slashed(&entry.who)) @if entry.claimed { " (claimed)" } }
            td.path { (entry.what) @if let Some(why) = &entry.why { br; em { (why) } } }
        }
    }
}

/// A name that may be broken into lines behind its slashes.
fn slashed(name: &str) -> Markup {
    html! { @for part in name.split_inclusive('/') { (part) wbr; } }
}

/// As custody.jsonl writes it, with spaces.
fn event(event: Event) -> String {
    let name = serde_json::to_value(event).ok();
    let name = name
        .as_ref()
        .and_then(|name| name.as_str())
        .unwrap_or_default();
    name.replace('_', " ")
}

pub(super) fn check(case: &Case, manifest: &Manifest) -> Markup {
    html! {
        p { "Nothing here needs a network, and only the last needs a program of ours. Take " code { "evidence.pub" } " from whoever runs the controller; its fingerprint must be the one in the verdict above." }
        div.commands {
            code { "openssl pkey -pubin -in evidence.pub -outform DER | sha256sum" }
            code { "jq -r .dsseEnvelope.payload manifest.sigstore.json | base64 -d | cmp - manifest.json" }
            code { "jq -r '.dsseEnvelope.signatures[0].sig' manifest.sigstore.json | base64 -d > /tmp/sig" }
            code { "{ printf 'DSSEv1 28 application/vnd.in-toto+json %s ' \"$(wc -c < manifest.json)\"; cat manifest.json; } > /tmp/signed" }
            code { "openssl dgst -sha256 -verify evidence.pub -signature /tmp/sig /tmp/signed" }
            code { "jq -r '.predicate.artifacts[] | (.stored // .) | \"\\(.sha256)  \\(.path)\"' manifest.json | sha256sum -c --strict" }
        }
        p {
            "The first prints the key's fingerprint, the next four check that the key signed the manifest, the last compares every file with it. "
            @if case.has_script { code { "verify.sh" } ", which is in the collection, does all of it and checks the custody log too: " code { "bash verify.sh . evidence.pub" } ". " }
            "With the program: " code { "impound verify DIR --key evidence.pub" } ". The bundle is a Sigstore bundle (v0.3) around an in-toto Statement, which other tools read as well."
        }
        @if let Some(CheckpointStamp::Token { authority, .. }) = &manifest.timestamp {
            p {
                "The head of the custody log was dated by the time-stamping authority " code { (authority) } " (RFC 3161). With its root certificate, at the time that the first command prints: "
                code { "openssl ts -reply -token_in -in custody.checkpoint.tst -text" } ", "
                code { "openssl ts -verify -token_in -in custody.checkpoint.tst -data custody.checkpoint -CAfile root.pem -attime SECONDS" } "."
            }
        }
        h3 { "The programs that collected" }
        dl {
            dt { "Controller" } dd { (build(&manifest.controller)) }
            @for agent in &manifest.agents {
                dt { "Agent" }
                dd {
                    (agent.identity) ", version " (agent.version)
                    @if let Some(sha256) = agent.executable_sha256 { ", by its own word SHA-256 " code { (sha256) } }
                    ", certificate SHA-256 " code { (agent.certificate_sha256) }
                }
            }
        }
    }
}

fn build(build: &Build) -> Markup {
    html! {
        (build.name) " " (build.version)
        @if let Some(sha256) = build.executable_sha256 { ", SHA-256 of its executable " code { (sha256) } }
    }
}

pub(super) fn words() -> Markup {
    html! {
        dl {
            dt { "Added, changed, deleted" }
            dd { "Against the image that the container was started from. A directory counts as changed when something in it did." }
            dt { "Complete" }
            dd { "Everything that was asked for is in the collection and ended as its format says it must." }
            dt { "Intact" }
            dd { "Each file has the SHA-256 that the signed manifest gives it; none is missing and none was added." }
            dt { "Sealed" }
            dd { "The manifest was signed and stored after every file had been read again from the store." }
            dt { "What is proved" }
            dd { "That nothing changed since the controller received it. What a node whose system was taken over has told, is what it has told: it could have lied before." }
            dt { "Times" }
            dd { "The controller's clock unless the node's is named; the difference between the two, as measured, is in the summary." }
        }
    }
}
