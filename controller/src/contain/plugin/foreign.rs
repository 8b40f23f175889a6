//! What policies of other kinds than NetworkPolicy let through for the suspect, as far as they can win over
//! the denial. A selector that is not understood is never taken for one that does not select.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use super::{Family, Kind, Plugin, object_name};
use crate::contain::selector::{Labels, selects};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Policies that allow the suspect traffic, one sentence each.
    pub allowing: Vec<String>,
    /// What could not be judged, one sentence each.
    pub open: Vec<String>,
}

/// Judges the policies for a pod with these labels. `denials`: paths of our objects that are in force as we
/// made them, or about to be. All others are judged, whatever their labels say.
#[must_use]
pub fn judge(plugin: &Plugin, namespace: &str, labels: &Labels, denials: &[String]) -> Findings {
    let mut findings = Findings {
        open: plugin.unread.clone(),
        ..Findings::default()
    };
    let denial = |kind: &Kind| {
        let of_kind = |path: &String| {
            let (parent, name) = path.rsplit_once('/')?;
            (parent == kind.path(namespace)).then(|| name.to_owned())
        };
        denials.iter().find_map(of_kind)
    };
    for (kind, objects) in &plugin.kinds {
        let ours = denial(kind);
        let mut family = plugin
            .kinds
            .iter()
            .filter(|(other, _)| other.family == kind.family);
        let settled = family.any(|(other, _)| denial(other).is_some());
        let is_ours = |object: &&Value| {
            let name = ours.as_deref();
            name.is_some_and(|name| kind.is_named(object, name))
        };
        for object in objects.iter().filter(|object| !is_ours(object)) {
            let verdict = match kind.family {
                // Deny rules win over every allow rule.
                Family::Cilium if settled => None,
                Family::Cilium => cilium(object, namespace, plugin, labels),
                Family::Calico => calico(object, namespace, labels, settled),
                Family::Cluster => cluster(object, plugin, labels, settled),
            };
            match verdict {
                None => {}
                Some(Verdict::Allows(directions)) => findings
                    .allowing
                    .push(format!("{} still allows {directions}", title(kind, object))),
                Some(Verdict::Open(why)) => findings
                    .open
                    .push(format!("{} may allow traffic: {why}.", title(kind, object))),
            }
        }
    }
    findings
}

enum Verdict {
    /// In which directions.
    Allows(String),
    /// Why it can't be judged.
    Open(String),
}

fn title(kind: &Kind, object: &Value) -> String {
    format!("{} {}", kind.title(), object_name(object))
}

/// Rules are in `spec`, or several in `specs`. A rule without any member allows nothing (it only begins
/// the default denial).
fn cilium(object: &Value, namespace: &str, plugin: &Plugin, labels: &Labels) -> Option<Verdict> {
    let specs = object.get("specs").and_then(Value::as_array);
    let rules = object
        .get("spec")
        .into_iter()
        .chain(specs.into_iter().flatten());
    let own = |rule: &&Value| {
        let selector = rule.get("endpointSelector");
        selector.is_some_and(|selector| cilium_selects(selector, namespace, plugin, labels))
    };
    let mut directions: Vec<&str> = Vec::new();
    for rule in rules.filter(own) {
        for direction in ["ingress", "egress"] {
            let allows = list(rule, direction).iter().any(|rule| {
                let members = rule.as_object().into_iter().flatten();
                members
                    .filter(|(name, _)| !name.ends_with("Requires"))
                    .any(|(_, value)| value.as_array().is_none_or(|list| !list.is_empty()))
            });
            if allows && !directions.contains(&direction) {
                directions.push(direction);
            }
        }
    }
    (!directions.is_empty()).then(|| Verdict::Allows(directions.join(" and ")))
}

/// Keys may say where a label comes from ("k8s:app", "any:app"); Cilium adds labels of its own. Demands on
/// those that are not known here are taken to be met.
fn cilium_selects(selector: &Value, namespace: &str, plugin: &Plugin, labels: &Labels) -> bool {
    const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    const NAMESPACE_LABEL: &str = "io.cilium.k8s.namespace.labels.";
    let Ok(mut selector) = serde_json::from_value::<LabelSelector>(selector.clone()) else {
        return true;
    };
    let mut known = labels.clone();
    known.insert(NAMESPACE.into(), namespace.into());
    for (key, value) in &plugin.namespace_labels {
        known.insert(format!("{NAMESPACE_LABEL}{key}"), value.clone());
    }
    let plain = |key: &str| {
        let without = key
            .strip_prefix("k8s:")
            .or_else(|| key.strip_prefix("any:"));
        without.unwrap_or(key).to_owned()
    };
    let unknown = |key: &str| key.starts_with("io.cilium.") && !key.starts_with(NAMESPACE_LABEL);
    selector.match_labels = selector.match_labels.map(|all| {
        let all = all.into_iter().map(|(key, value)| (plain(&key), value));
        all.filter(|(key, _)| !unknown(key)).collect()
    });
    selector.match_expressions = selector.match_expressions.map(|mut all| {
        for one in &mut all {
            one.key = plain(&one.key);
        }
        all.retain(|one| !unknown(&one.key));
        all
    });
    selects(&selector, &known)
}

/// The first rule that matches decides, by tier, then order, then name. Our denial has order 0 in the last
/// tier, "default".
fn calico(object: &Value, namespace: &str, labels: &Labels, settled: bool) -> Option<Verdict> {
    let spec = object.get("spec")?;
    let directions = directions(spec, &["allow"]);
    if directions.is_empty() {
        return None;
    }
    let tier = spec
        .get("tier")
        .and_then(Value::as_str)
        .unwrap_or("default");
    let order = spec.get("order").and_then(Value::as_f64);
    let first = tier != "default" || order.is_some_and(|order| order <= 0.0);
    if settled && !first {
        return None;
    }
    let text = |field| spec.get(field).and_then(Value::as_str).unwrap_or_default();
    let by_labels = calico_selects(text("selector"), namespace, labels);
    let by_more = text("namespaceSelector").is_empty() && text("serviceAccountSelector").is_empty();
    match (by_labels, by_more) {
        (Some(false), _) => None,
        (Some(true), true) => Some(Verdict::Allows(directions.join(" and "))),
        _ => Some(Verdict::Open(format!(
            "whether its selector `{}` selects the pod was not evaluated",
            text("selector")
        ))),
    }
}

/// Selectors that are a chain of simple demands; `None` for all others.
fn calico_selects(selector: &str, namespace: &str, labels: &Labels) -> Option<bool> {
    let mut known = labels.clone();
    known.insert("projectcalico.org/namespace".into(), namespace.into());
    known.insert("projectcalico.org/orchestrator".into(), "k8s".into());
    let selector = selector.trim();
    if selector.is_empty() || selector == "all()" {
        return Some(true);
    }
    let mut all = true;
    for demand in selector.split("&&").map(str::trim) {
        all &= calico_demand(demand, &known)?;
    }
    Some(all)
}

fn calico_demand(demand: &str, labels: &Labels) -> Option<bool> {
    let is_key = |key: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        !key.is_empty() && key.chars().all(plain)
    };
    let has = |text: &str| {
        let key = text.strip_prefix("has(")?.strip_suffix(')')?.trim();
        is_key(key).then(|| labels.contains_key(key))
    };
    let compare = |sign: &str| {
        let (key, value) = demand.split_once(sign)?;
        let (key, value) = (key.trim(), value.trim());
        let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
        let value = quoted('\'').or_else(|| quoted('"'))?;
        let simple = is_key(key) && !value.contains(['\'', '"']);
        simple.then(|| labels.get(key).is_some_and(|found| found == value))
    };
    if demand == "all()" {
        return Some(true);
    }
    if let Some(inner) = demand.strip_prefix('!') {
        return has(inner.trim()).map(|has| !has);
    }
    has(demand)
        .or_else(|| compare("=="))
        .or_else(|| compare("!=").map(|equal| !equal))
}

/// Policies of the Admin tier decide before any NetworkPolicy is asked, those with the lowest priority
/// first; two of the same priority come in an order that nobody promises. The Baseline tier never decides
/// for a pod that a NetworkPolicy selects.
fn cluster(object: &Value, plugin: &Plugin, labels: &Labels, settled: bool) -> Option<Verdict> {
    let spec = object.get("spec")?;
    if spec.get("tier").and_then(Value::as_str) == Some("Baseline") {
        return None;
    }
    let directions = directions(spec, &["allow", "accept"]);
    let priority = spec.get("priority").and_then(Value::as_i64).unwrap_or(0);
    if directions.is_empty() || (settled && priority > 0) {
        return None;
    }
    let subject = spec.get("subject")?;
    let selected = |pointer: &str, labels: &Labels| {
        let selector = subject.pointer(pointer).cloned().unwrap_or_default();
        let selector = serde_json::from_value::<LabelSelector>(selector);
        // Not understood: taken to select.
        selector.map_or(true, |selector| selects(&selector, labels))
    };
    let namespace = &plugin.namespace_labels;
    let is_subject = if subject.get("pods").is_some() {
        selected("/pods/namespaceSelector", namespace) && selected("/pods/podSelector", labels)
    } else {
        selected("/namespaces", namespace)
    };
    is_subject.then(|| {
        Verdict::Allows(format!(
            "{} (priority {priority}, before any NetworkPolicy)",
            directions.join(" and ")
        ))
    })
}

/// The directions in which a rule has one of the actions, whatever its letters' case.
fn directions(spec: &Value, actions: &[&str]) -> Vec<&'static str> {
    let has = |direction: &&str| {
        list(spec, direction).iter().any(|rule| {
            let action = rule.get("action").and_then(Value::as_str);
            action.is_some_and(|action| actions.contains(&action.to_lowercase().as_str()))
        })
    };
    ["ingress", "egress"].into_iter().filter(has).collect()
}

fn list<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    let list = value.get(field).and_then(Value::as_array);
    list.map(Vec::as_slice).unwrap_or_default()
}
