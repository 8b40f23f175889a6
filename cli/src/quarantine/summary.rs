//! Quarantines in words: what would be done, what was recorded, how it stands, how it ended.

use std::fmt::Write as _;

use impound_proto::controller::v1 as wire;

use crate::collection::summary as of_collection;
use crate::follow::{Followed, fact_word};
use crate::human::{self, clean};
use crate::output::Table;
use crate::view;

/// The plan of a dry run of `what`, e.g. "Release of shop/web".
pub(super) fn plan(what: &str, plan: &wire::Plan) -> String {
    let mut text = match plan.calls.len() {
        1 => format!("{} would make 1 call:\n", clean(what)),
        n => format!("{} would make {n} calls, in this order:\n", clean(what)),
    };
    for (at, call) in plan.calls.iter().enumerate() {
        let method = clean(&call.method);
        let _ = writeln!(
            text,
            "\n{:2}. {}: {}",
            at + 1,
            clean(&call.step),
            clean(&call.purpose)
        );
        let _ = writeln!(text, "    {method} {}", clean(&call.path));
        if !call.content_type.is_empty() {
            let _ = writeln!(text, "    Content-Type: {}", clean(&call.content_type));
        }
        if let Some(body) = view::body(&call.body) {
            let body = serde_json::to_string_pretty(&body).unwrap_or_default();
            for line in body.lines() {
                let _ = writeln!(text, "    {}", clean(line));
            }
        }
    }
    text.push_str(&warnings(&plan.warnings));
    text.push_str("\nNothing was changed.\n");
    text
}

/// What a release is about to do, and what follows from it.
pub(super) fn question(what: &str, plan: &wire::Plan) -> String {
    let mut text = format!("{}:\n", clean(what));
    for call in &plan.calls {
        let _ = writeln!(text, "  {}: {}", clean(&call.step), clean(&call.purpose));
    }
    text.push_str(&warnings(&plan.warnings));
    text
}

/// A quarantine that was asked for and is not waited for.
pub(super) fn recorded(
    quarantine: &wire::Quarantine,
    plan: &wire::Plan,
    own: &str,
    program: &str,
) -> String {
    let (namespace, name) = (clean(&quarantine.namespace), clean(&quarantine.name));
    let mut text = format!(
        "Quarantine {namespace}/{name} is recorded (case {}, requested by {own}).\n",
        clean(&quarantine.case_id)
    );
    text.push_str(&warnings(&plan.warnings));
    let _ = writeln!(
        text,
        "\nFollow it:\n  {program} watch {name} -n {namespace}"
    );
    text
}

/// A release that was asked for and is not waited for.
pub(super) fn releasing(quarantine: &wire::Quarantine, program: &str) -> String {
    let (namespace, name) = (clean(&quarantine.namespace), clean(&quarantine.name));
    format!(
        "The release of quarantine {namespace}/{name} is recorded.\n\nFollow it:\n  {program} watch {name} -n {namespace}\n"
    )
}

/// How a quarantine stands.
pub(super) fn status(quarantine: &wire::Quarantine, program: &str) -> String {
    let q = quarantine;
    let mut head = Table::inset();
    let phase = [q.phase.as_str(), q.message.as_str()];
    let phase: Vec<_> = phase.into_iter().filter(|text| !text.is_empty()).collect();
    for (name, value) in [
        (
            "Pod",
            format!("{}/{} (uid {})", q.namespace, q.pod, q.pod_uid),
        ),
        ("Node", q.node.clone()),
        ("Case", q.case_id.clone()),
        ("Reason", q.reason.clone()),
        ("Requested by", q.requested_by.clone()),
        ("Created", human::date(q.created.as_ref())),
        ("Phase", phase.join(": ")),
        ("Verdict", verdict(&q.verdict).to_owned()),
        (
            "At the node",
            q.isolation.as_ref().map(at_the_node).unwrap_or_default(),
        ),
    ] {
        if !value.is_empty() {
            head.row([name.to_owned(), value]);
        }
    }
    let mut text = format!(
        "Quarantine {}/{}\n{head}",
        clean(&q.namespace),
        clean(&q.name)
    );
    if !q.steps.is_empty() {
        let mut steps = Table::inset();
        for step in &q.steps {
            steps.row([
                step.name.clone(),
                step.state.clone(),
                human::between(step.started.as_ref(), step.finished.as_ref()),
                step.message.clone(),
            ]);
        }
        let _ = write!(text, "\nSteps\n{steps}");
    }
    if !q.facts.is_empty() {
        let mut checks = Table::inset();
        for fact in &q.facts {
            checks.row([
                fact.name.clone(),
                fact_word(&fact.state).to_owned(),
                fact.message.clone(),
            ]);
        }
        let _ = write!(text, "\nChecks\n{checks}");
    }
    if !q.attempts.is_empty() {
        let _ = write!(
            text,
            "\nConnections, before and after\n{}",
            attempts(&q.attempts)
        );
    }
    let stay = q.evictions.iter();
    let stay = stay.filter(|one| !["Gone", "Pending"].contains(&one.state.as_str()));
    let mut neighbours = Table::inset();
    for one in stay.clone() {
        let pod = format!("{}/{}", one.namespace, one.pod);
        neighbours.row([pod, one.state.clone(), one.message.clone()]);
    }
    if stay.count() > 0 {
        let _ = write!(text, "\nStill on the node\n{neighbours}");
    }
    text.push_str(&warnings(&q.warnings));
    if !q.collection.is_empty() {
        let _ = writeln!(
            text,
            "\nEvidence\n  {program} status collection/{} -n {}",
            clean(&q.collection),
            clean(&q.namespace)
        );
        text.push_str(&later(q, program));
    }
    text
}

/// What was collected again, and why.
fn later(q: &wire::Quarantine, program: &str) -> String {
    let mut text = String::new();
    for later in &q.later_collections {
        let stands = match (later.phase.as_str(), later.message.as_str()) {
            ("", _) => "not made yet",
            (phase, "") => phase,
            (_, message) => message,
        };
        let _ = writeln!(
            text,
            "  {program} status collection/{} -n {}\n    {}\n    {}",
            clean(&later.name),
            clean(&q.namespace),
            clean(&later.reason),
            clean(stands)
        );
    }
    text
}

fn verdict(verdict: &str) -> &str {
    match verdict {
        "Isolated" => "isolated: proved at the Kubernetes API and at the node",
        "Contained" => "contained at the Kubernetes API",
        "NotContained" => "NOT contained",
        other => other,
    }
}

fn at_the_node(isolation: &wire::NodeIsolation) -> String {
    if !isolation.in_force {
        return format!("not known to be isolated: {}", isolation.problem);
    }
    format!(
        "isolated since {}; dropped {} packets towards the pod and {} from it",
        human::date(isolation.since.as_ref()),
        isolation.dropped_packets_in,
        isolation.dropped_packets_out
    )
}

fn attempts(attempts: &[wire::ConnectionAttempt]) -> Table {
    let mut table = Table::inset();
    for attempt in attempts {
        let from = if attempt.from_pod {
            "from the pod to"
        } else {
            "from the node to"
        };
        let ended = |outcome: &str| match outcome {
            "" => "not tried".to_owned(),
            "TimedOut" => "no answer".to_owned(),
            other => other.to_lowercase(),
        };
        let permitted = if attempt.permitted { "let through" } else { "" };
        table.row([
            format!("{from} {}", attempt.target),
            ended(&attempt.before),
            ended(&attempt.after),
            attempt.about.clone(),
            permitted.to_owned(),
        ]);
    }
    table
}

/// How it ended: what is contained and what isn't, where the evidence is, what to type next.
pub(super) fn end(followed: &Followed, program: &str) -> String {
    let mut text = String::new();
    let mut next = Vec::new();
    if let Some(quarantine) = &followed.quarantine {
        text.push_str(&contained(quarantine));
    }
    if let Some(collection) = &followed.collection {
        text.push_str(&of_collection::end(collection));
        next.extend(of_collection::next(collection, program));
    }
    if let Some(q) = &followed.quarantine
        && !["Refused", "Released"].contains(&q.phase.as_str())
    {
        let (namespace, name) = (clean(&q.namespace), clean(&q.name));
        next.push(format!(
            "{program} release {name} -n {namespace} --reason \"...\""
        ));
    }
    if !next.is_empty() {
        text.push_str("\nNext\n");
        for command in next {
            let _ = writeln!(text, "  {command}");
        }
    }
    text
}

/// Whether a release has left something as it was, for good.
pub(super) fn is_left_undone(q: &wire::Quarantine) -> bool {
    q.steps.iter().any(|step| is_undo(step) && has_failed(step))
}

fn is_undo(step: &wire::Step) -> bool {
    step.name.starts_with("Undo")
}

fn has_failed(step: &wire::Step) -> bool {
    step.state == "Failed"
}

fn contained(q: &wire::Quarantine) -> String {
    // What was checked and said of the containment holds no longer once it is released.
    let released = q.phase == "Released";
    let facts = || q.facts.iter().filter(|_| !released);
    let failed: Vec<_> = facts().filter(|fact| fact.state == "False").collect();
    let unverified: Vec<_> = facts()
        .filter(|fact| !["True", "False"].contains(&fact.state.as_str()))
        .collect();
    let head = match q.phase.as_str() {
        "Refused" => "REFUSED",
        "Released" if is_left_undone(q) => "RELEASED, not all is undone",
        "Released" => "RELEASED",
        _ if q.verdict == "NotContained" => "NOT CONTAINED",
        "Failed" => "FAILED",
        _ if q.verdict == "Isolated" => "ISOLATED",
        _ if !failed.is_empty() => "NOT FULLY CONTAINED",
        _ if !unverified.is_empty() => "CONTAINED, not all of it verified",
        _ if q.facts.is_empty() => "CONTAINED, none of it verified",
        _ => "CONTAINED",
    };
    let mut text = format!(
        "\n{head}: pod {}/{} on node {} (quarantine {}, case {})\n",
        clean(&q.namespace),
        clean(&q.pod),
        clean(&q.node),
        clean(&q.name),
        clean(&q.case_id)
    );
    if !q.message.is_empty() {
        let _ = writeln!(text, "  {}", clean(&q.message));
    }
    let steps = q.steps.iter().filter(|step| !released || is_undo(step));
    let failed_steps = steps.filter(|step| has_failed(step));
    let mut table = Table::inset();
    for step in failed_steps {
        table.row([
            "step failed".to_owned(),
            format!("{}: {}", step.name, step.message),
        ]);
    }
    for (word, facts) in [("NOT TRUE", failed), ("not verified", unverified)] {
        for fact in facts {
            table.row([word.to_owned(), format!("{}: {}", fact.name, fact.message)]);
        }
    }
    for warning in q.warnings.iter().filter(|_| !released) {
        table.row(["warning".to_owned(), warning.clone()]);
    }
    text.push_str(&table.to_string());
    text
}

fn warnings(warnings: &[String]) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let mut text = "\nWarnings\n".to_owned();
    for warning in warnings {
        let _ = writeln!(text, "  - {}", clean(warning));
    }
    text
}
