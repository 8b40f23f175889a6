//! `impound doctor`: whether a live installation works, and what to do where it does not. The controller looks; what
//! only this machine can see (our own certificate, clock and version) comes on top, and what only a try shows.

mod network;

use std::time::SystemTime;

use impound_proto::controller::v1 as wire;
use serde::Serialize;

use crate::arguments::Doctor;
use crate::client::{Client, answer, request};
use crate::failure::{Exit, Failure};
use crate::human;
use crate::output::Output;

/// Clocks that differ by less are as good as the same.
const OFFSET_MS: u128 = 2_000;

#[derive(Serialize)]
struct View {
    about: String,
    state: String,
    found: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

pub(crate) async fn run(
    client: &Client,
    output: &mut Output,
    wanted: Doctor,
) -> Result<Exit, Failure> {
    let asked = SystemTime::now();
    let seen = answer(
        client
            .grpc()
            .diagnose(request(wire::DiagnoseRequest {}))
            .await,
    )?;
    let mut views = vec![version(&seen.version)];
    views.extend(clock(asked, seen.now));
    views.extend(client.not_after().map(certificate));
    views.extend(seen.checks.into_iter().map(|check| View {
        about: check.about,
        state: check.state,
        found: check.found,
        remedy: check.remedy,
    }));
    if wanted.network {
        views.extend(network::tried(wanted).await?);
    }
    output.document(&views, |_| text(&views))?;
    Ok(match count(&views, "failed") {
        0 => Exit::Ok,
        _ => Exit::Failed,
    })
}

fn text(views: &[View]) -> String {
    let width = views.iter().map(|view| view.about.chars().count()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for view in views {
        let state = match view.state.as_str() {
            "ok" => "ok     ",
            "warning" => "WARNING",
            _ => "FAILED ",
        };
        let (about, found) = (human::clean(&view.about), human::clean(&view.found));
        text.push_str(&format!("{state}  {about:width$}  {found}\n"));
        if !view.remedy.is_empty() {
            text.push_str(&format!(
                "         {:width$}  -> {}\n",
                "",
                human::clean(&view.remedy)
            ));
        }
    }
    let (failed, warnings) = (count(views, "failed"), count(views, "warning"));
    let good = views.len() - failed - warnings;
    text.push_str(&format!(
        "\n{good} ok, {warnings} warnings, {failed} failed\n"
    ));
    text
}

fn count(views: &[View], state: &str) -> usize {
    views.iter().filter(|view| view.state == state).count()
}

fn view(about: &str, state: &str, found: String, remedy: &str) -> View {
    View {
        about: about.to_owned(),
        state: state.to_owned(),
        found,
        remedy: match state {
            "ok" => String::new(),
            _ => remedy.to_owned(),
        },
    }
}

fn version(controller: &str) -> View {
    let own = env!("CARGO_PKG_VERSION");
    let state = if controller == own { "ok" } else { "warning" };
    let found = format!("controller {controller}, this program {own}");
    view(
        "versions",
        state,
        found,
        "use the program that came with the controller",
    )
}

/// The controller read its clock between our question and its answer: no closer look is possible, and the answer may
/// have taken long.
fn clock(asked: SystemTime, theirs: Option<prost_types::Timestamp>) -> Option<View> {
    let theirs = SystemTime::try_from(theirs?).ok()?;
    let answered = SystemTime::now();
    let (about, remedy) = ("this machine's clock", "set one of the two clocks by NTP");
    let off = match (
        asked.duration_since(theirs),
        theirs.duration_since(answered),
    ) {
        (Ok(slow), _) => slow,
        (_, Ok(fast)) => fast,
        _ => return Some(view(about, "ok", "as the controller's".to_owned(), remedy)),
    };
    let state = if off.as_millis() < OFFSET_MS {
        "ok"
    } else {
        "warning"
    };
    let found = format!("differs from the controller's by {} ms", off.as_millis());
    Some(view(about, state, found, remedy))
}

fn certificate(end: time::OffsetDateTime) -> View {
    let days = (end - time::OffsetDateTime::now_utc()).whole_days();
    let state = if days < 14 { "warning" } else { "ok" };
    view(
        "your certificate",
        state,
        format!("ends in {days} days"),
        "have a new one issued (`impound pki init`)",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_is_off_only_if_it_was_outside_of_the_call() {
        let now = SystemTime::now();
        let state = |asked: SystemTime, theirs: SystemTime| {
            clock(asked, Some(theirs.into())).unwrap().state
        };
        let minute = Duration::from_secs(60);
        assert_eq!(state(now - minute, now - minute / 2), "ok");
        assert_eq!(state(now, now - minute), "warning");
        assert_eq!(state(now, now + minute), "warning");
    }
}
