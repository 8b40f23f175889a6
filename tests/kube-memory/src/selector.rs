//! Label selectors (as query text and as objects) and field selectors.

use serde_json::{Map, Value};

use crate::json;
use crate::refusal::{Outcome, Refusal};

type Labels = Map<String, Value>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// All requirements of a selector; an empty one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector(Vec<(String, Test)>);

impl Selector {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches(&self, labels: Option<&Labels>) -> bool {
        self.0.iter().all(|(key, test)| {
            let value = labels
                .and_then(|labels| labels.get(key))
                .and_then(Value::as_str);
            match test {
                Test::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
                // An absent label is not in any set of values.
                Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
                Test::Exists => value.is_some(),
                Test::DoesNotExist => value.is_none(),
            }
        })
    }

    /// A `LabelSelector` object. Absent means: selects nothing.
    pub(crate) fn of_object(selector: Option<&Value>) -> Option<Self> {
        let selector = selector.filter(|selector| !selector.is_null())?;
        let mut tests = Self::of_map(json::map(selector, "/matchLabels")).0;
        for expression in json::list(selector, "/matchExpressions") {
            let values = json::list(expression, "/values")
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            let test = match json::text(expression, "/operator") {
                "In" => Test::In(values),
                "NotIn" => Test::NotIn(values),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::DoesNotExist,
                _ => return None,
            };
            tests.push((json::text(expression, "/key").to_owned(), test));
        }
        Some(Self(tests))
    }

    /// A plain map of labels, as a Service has.
    pub(crate) fn of_map(labels: Option<&Labels>) -> Self {
        let tests = labels.into_iter().flatten().map(|(key, value)| {
            let value = value.as_str().unwrap_or("").to_owned();
            (key.clone(), Test::In(vec![value]))
        });
        Self(tests.collect())
    }

    /// The `labelSelector` query parameter.
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let mut tests = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            tests.push(requirement(part).ok_or_else(|| {
                Refusal::bad_request(format!(
                    "unable to parse requirement: found '{part}', expected: a label requirement"
                ))
            })?);
        }
        Ok(Self(tests))
    }

    /// As `labelSelector` writes it: the Scale object shows it.
    pub(crate) fn to_text(&self) -> String {
        let parts = self.0.iter().map(|(key, test)| match test {
            Test::In(values) => match values.as_slice() {
                [one] => format!("{key}={one}"),
                many => format!("{key} in ({})", many.join(",")),
            },
            Test::NotIn(values) => format!("{key} notin ({})", values.join(",")),
            Test::Exists => key.clone(),
            Test::DoesNotExist => format!("!{key}"),
        });
        parts.collect::<Vec<_>>().join(",")
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    text.split(move |letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    })
    .collect()
}

fn requirement(part: &str) -> Option<(String, Test)> {
    let values = |text: &str| {
        let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(
            inner
                .split(',')
                .map(|value| value.trim().to_owned())
                .collect::<Vec<_>>(),
        )
    };
    let key = |text: &str| {
        let text = text.trim();
        (!text.is_empty() && !text.contains(char::is_whitespace)).then(|| text.to_owned())
    };
    if let Some(rest) = part.strip_prefix('!') {
        return Some((key(rest)?, Test::DoesNotExist));
    }
    if let Some((left, right)) = part.split_once("!=") {
        return Some((key(left)?, Test::NotIn(vec![right.trim().to_owned()])));
    }
    if let Some((left, right)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some((key(left)?, Test::In(vec![right.trim().to_owned()])));
    }
    if let Some((left, right)) = part
        .split_once(" notin ")
        .or_else(|| part.split_once(" notin("))
    {
        let right = if right.contains('(') {
            right.to_owned()
        } else {
            format!("({right}")
        };
        return Some((key(left)?, Test::NotIn(values(&right)?)));
    }
    if let Some((left, right)) = part.split_once(" in ").or_else(|| part.split_once(" in(")) {
        let right = if right.contains('(') {
            right.to_owned()
        } else {
            format!("({right}")
        };
        return Some((key(left)?, Test::In(values(&right)?)));
    }
    Some((key(part)?, Test::Exists))
}

/// The `fieldSelector` query parameter: (path, wanted value, equal or not).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSelector(Vec<(String, String, bool)>);

impl FieldSelector {
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let mut tests = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
                (path, value, false)
            } else if let Some((path, value)) =
                part.split_once("==").or_else(|| part.split_once('='))
            {
                (path, value, true)
            } else {
                return Err(Refusal::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            tests.push((path.trim().to_owned(), value.trim().to_owned(), equal));
        }
        Ok(Self(tests))
    }

    /// Refuses paths that a real server doesn't index, so that a test can't pass on what production refuses.
    pub(crate) fn check(&self, table: &str, custom: bool) -> Outcome<()> {
        for (path, _, _) in &self.0 {
            let known = matches!(path.as_str(), "metadata.name" | "metadata.namespace")
                || (!custom
                    && match table {
                        "pods" => matches!(
                            path.as_str(),
                            "spec.nodeName"
                                | "spec.restartPolicy"
                                | "spec.schedulerName"
                                | "spec.serviceAccountName"
                                | "spec.hostNetwork"
                                | "status.phase"
                                | "status.podIP"
                                | "status.nominatedNodeName"
                        ),
                        "events" => {
                            path.starts_with("involvedObject.")
                                || path.starts_with("regarding.")
                                || matches!(
                                    path.as_str(),
                                    "reason"
                                        | "type"
                                        | "source"
                                        | "reportingComponent"
                                        | "reportingController"
                                )
                        }
                        "nodes" => path == "spec.unschedulable",
                        "namespaces" => path == "status.phase",
                        "secrets" => path == "type",
                        "jobs.batch" => path == "status.successful",
                        "replicasets.apps" => path == "status.replicas",
                        _ => false,
                    });
            if !known {
                return Err(Refusal::bad_request(format!(
                    "field label not supported: {path}"
                )));
            }
        }
        Ok(())
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, wanted, equal)| {
            let path = match path.as_str() {
                "source" => "source.component".to_owned(),
                "reportingController" => "reportingComponent".to_owned(),
                other => other.replace("regarding.", "involvedObject."),
            };
            let found = object.pointer(&format!("/{}", path.replace('.', "/")));
            let found = match found {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => match path.as_str() {
                    // Go's zero value of a bool that is left out.
                    "spec.unschedulable" | "spec.hostNetwork" => "false".to_owned(),
                    _ => String::new(),
                },
                Some(other) => other.to_string(),
            };
            (found == *wanted) == *equal
        })
    }

    /// The name, where the selector asks for exactly one object.
    pub(crate) fn name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|(path, _, equal)| path == "metadata.name" && *equal)
            .map(|(_, value, _)| value.as_str())
    }
}
