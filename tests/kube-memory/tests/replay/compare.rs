//! Compares a recorded body with a live one up to what differs between two clusters: ids, names, times, addresses.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::exceptions::NEVER;

/// Recorded ids, names and addresses, and their live counterparts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mapping {
    live: HashMap<String, String>,
    recorded: HashMap<String, String>,
}

impl Mapping {
    /// Notes a pair of which several recorded ones may stand for one live one: the real kubelet wrote more often.
    fn learn_loosely(&mut self, recorded: &str, live: &str) -> bool {
        self.live
            .entry(recorded.to_owned())
            .or_insert_with(|| live.to_owned())
            == live
    }

    /// Notes a pair; false if one of them already belongs to another.
    pub(crate) fn learn(&mut self, recorded: &str, live: &str) -> bool {
        match (self.live.get(recorded), self.recorded.get(live)) {
            (None, None) => {
                self.live.insert(recorded.to_owned(), live.to_owned());
                self.recorded.insert(live.to_owned(), recorded.to_owned());
                true
            }
            (Some(known), Some(_)) => known == live,
            _ => false,
        }
    }

    /// A recorded text with everything that is known put in its live form.
    pub(crate) fn translate(&self, text: &str) -> String {
        if let Some(live) = self.live.get(text) {
            return live.clone();
        }
        let mut text = text.to_owned();
        // Names contain other names: the longest first.
        let mut pairs: Vec<_> = self.live.iter().collect();
        pairs.sort_by_key(|(recorded, _)| std::cmp::Reverse(recorded.len()));
        for (recorded, live) in pairs {
            if recorded.len() >= 8 {
                text = text.replace(recorded.as_str(), live);
            } else {
                // Versions are short: only where a message shows them.
                text = text.replace(&format!("({recorded})"), &format!("({live})"));
            }
        }
        text
    }

    /// A recorded request body in its live form.
    pub(crate) fn translate_value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.translate(text).into(),
            Value::Array(items) => items
                .iter()
                .map(|item| self.translate_value(item))
                .collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), self.translate_value(value)))
                .collect(),
            other => other.clone(),
        }
    }
}

/// Fields whose values differ between clusters but stand for the same thing wherever they appear.
const IDENTIFIERS: &[&str] = &[
    "uid",
    "resourceVersion",
    "containerID",
    "imageID",
    "podIP",
    "ip",
    "hostIP",
    "clusterIP",
    "image",
    "pod-template-hash",
    "controller-revision-hash",
    "currentRevision",
    "updateRevision",
    "controller-uid",
    "batch.kubernetes.io~1controller-uid",
];

/// Names are the same unless they were generated.
fn is_identifier(path: &str, recorded: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or("");
    if IDENTIFIERS.contains(&last) {
        return last != "image" || recorded.starts_with("registry.example/");
    }
    let in_addresses = path.contains("/addresses/") || path.contains("/clusterIPs/");
    let generated = recorded.starts_with("kube-api-access-")
        || recorded
            .rsplit_once('-')
            .is_some_and(|(_, end)| end.is_empty() || (5..=10).contains(&end.len()));
    in_addresses || (matches!(last, "name" | "generateName") && generated)
}

#[derive(Debug, Clone)]
pub(crate) struct Comparison<'a> {
    pub(crate) mapping: Mapping,
    pub(crate) without: &'a [&'a str],
    pub(crate) kind: String,
    pub(crate) differences: Vec<String>,
}

fn is_time(text: &str) -> bool {
    text.len() >= 20 && text.ends_with('Z') && text.as_bytes().get(10) == Some(&b'T')
}

fn matches(pattern: &str, path: &str) -> bool {
    if let Some(end) = pattern.strip_prefix("**/") {
        return path.rsplit('/').next() == Some(end);
    }
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, _) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
}

impl Comparison<'_> {
    fn ignored(&self, path: &str) -> bool {
        self.without.iter().any(|pattern| matches(pattern, path))
            || NEVER.iter().any(|pattern| match pattern.split_once('@') {
                Some((pattern, kind)) => kind == self.kind && matches(pattern, path),
                None => matches(pattern, path),
            })
    }

    fn differ(&mut self, path: &str, recorded: &Value, live: &Value) {
        let short = |value: &Value| value.to_string().chars().take(300).collect::<String>();
        self.differences.push(format!(
            "{path}: recorded {}, live {}",
            short(recorded),
            short(live)
        ));
    }

    pub(crate) fn compare(&mut self, path: &str, recorded: &Value, live: &Value) {
        if self.ignored(path) {
            return;
        }
        match (recorded, live) {
            (Value::Object(a), Value::Object(b)) => {
                let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
                for key in keys {
                    let place = format!("{path}/{}", key.replace('/', "~1"));
                    let pair = (
                        a.get(key).unwrap_or(&Value::Null),
                        b.get(key).unwrap_or(&Value::Null),
                    );
                    self.compare(&place, pair.0, pair.1);
                }
            }
            (Value::Array(a), Value::Array(b)) => self.compare_lists(path, a, b),
            (Value::String(a), Value::String(b)) => {
                let list_version = path == "/metadata/resourceVersion"
                    && (self.kind.ends_with("List")
                        || self.kind == "Table"
                        || self.kind == "Status");
                if a == b || (is_time(a) && is_time(b)) || list_version {
                    return;
                }
                let last = path.rsplit('/').next().unwrap_or("");
                let same = match (is_identifier(path, a), last) {
                    (true, "resourceVersion" | "imageID" | "image") => {
                        self.mapping.learn_loosely(a, b)
                    }
                    (true, _) => self.mapping.learn(a, b),
                    (false, _) => false,
                };
                if !same && self.mapping.translate(a) != *b {
                    self.differ(path, recorded, live);
                }
            }
            (a, b) if a == b => {}
            _ => self.differ(path, recorded, live),
        }
    }

    fn compare_lists(&mut self, path: &str, recorded: &[Value], live: &[Value]) {
        let unordered = [
            "items",
            "endpoints",
            "causes",
            "conditions",
            "containerStatuses",
            "rows",
        ]
        .contains(&path.rsplit('/').next().unwrap_or(""));
        let (mut recorded, mut live) = (recorded.to_vec(), live.to_vec());
        if path.ends_with("/causes") {
            // The real server repeats causes, one per round of validation.
            for list in [&mut recorded, &mut live] {
                let mut seen = Vec::new();
                list.retain(|cause| {
                    let fresh = !seen.contains(cause);
                    seen.push(cause.clone());
                    fresh
                });
            }
        }
        if recorded.len() != live.len() {
            let names = |list: &[Value]| -> Value {
                list.iter()
                    .map(|item| item.pointer("/metadata/name").unwrap_or(item).clone())
                    .collect()
            };
            self.differ(
                &format!("{path} (length)"),
                &names(&recorded),
                &names(&live),
            );
            return;
        }
        let mut left: Vec<usize> = (0..live.len()).collect();
        for (at, item) in recorded.iter().enumerate() {
            let place = format!("{path}/{at}");
            let mut choice = if unordered { None } else { Some((at, 0)) };
            if unordered {
                for candidate in &left {
                    let mut trial = self.clone();
                    trial.differences.clear();
                    trial.compare(&place, item, &live[*candidate]);
                    let count = trial.differences.len();
                    if choice.is_none_or(|(_, least)| count < least) {
                        choice = Some((*candidate, count));
                    }
                }
            }
            if let Some((candidate, _)) = choice {
                left.retain(|at| *at != candidate);
                self.compare(&place, item, &live[candidate]);
            }
        }
    }
}

/// What counts of a list of events: who, what, why. Not the kubelet's complaint about the lab's missing DNS.
pub(crate) fn essence_of_events(list: &Value) -> Value {
    let items: Vec<Value> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| event["reason"] != "MissingClusterDNS")
        .map(|event| {
            let mut involved = event["involvedObject"].clone();
            if let Some(involved) = involved.as_object_mut() {
                involved.remove("resourceVersion");
            }
            json!({"involvedObject": involved, "reason": event["reason"], "message": event["message"],
                   "source": event["source"], "type": event["type"], "action": event["action"],
                   "reportingComponent": event["reportingComponent"]})
        })
        .collect();
    json!({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": items})
}
