//! The page as a whole: one file that loads nothing, runs nothing, and in which no text from evidence is
//! anything but text.
//!
//! Two borders keep it so. `html!` escapes every value for HTML. Then the whole body passes through
//! [`crate::human::clean`], so that whatever could steer a terminal, reorder text or hide in it is shown
//! as its number; this is in one place for all sections. The browser is told besides to load nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use impound_evidence::Sha256;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::case::Case;
use super::sections;
use crate::human;

const STYLE: &str = include_str!("style.css");

/// The file's contents.
pub(super) fn page(case: &Case) -> String {
    let name = case.verdict.manifest.as_ref().map_or_else(
        || "unknown case".to_owned(),
        |manifest| format!("{}, {}", manifest.case, manifest.collection),
    );
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        STANDARD.encode(Sha256::of(STYLE.as_bytes()))
    );
    let head = html! {
        head {
            meta charset="utf-8";
            meta http-equiv="Content-Security-Policy" content=(policy);
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="referrer" content="no-referrer";
            meta name="generator" content={ "impound " (env!("CARGO_PKG_VERSION")) };
            title { "Evidence report: " (name) }
            style { (PreEscaped(STYLE)) }
        }
    };
    format!(
        "{}\n<html lang=\"en\">\n{}\n{}\n</html>\n",
        DOCTYPE.into_string(),
        head.into_string(),
        body(sections::body(case, &name))
    )
}

/// The body without a character that steers, broken into lines after what ends a block.
fn body(markup: Markup) -> String {
    let mut text = human::clean(&markup.into_string());
    for end in [
        "</tr>",
        "</p>",
        "</section>",
        "</thead>",
        "</dd>",
        "</li>",
        "</h2>",
        "</g>",
        "</text>",
    ] {
        // Text has no `<` of its own any more, so this meets only our own marks.
        text = text.replace(end, &format!("{end}\n"));
    }
    text
}
