//! Printer columns: a subset of JSONPath, as CustomResourceDefinitions use it.

use serde_json::Value;

use crate::clock;
use crate::json;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(usize),
    All,
    /// `[?(@.type=="Ready")]`
    Where(Vec<String>, String),
}

/// One column of a table.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    pub(crate) description: String,
    pub(crate) priority: i64,
    path: Vec<Step>,
}

impl Column {
    /// None for a path that isn't in the subset.
    pub(crate) fn parse(column: &Value) -> Option<Self> {
        let path = json::text(column, "/jsonPath");
        let mut description = json::text(column, "/description").to_owned();
        if description.is_empty() {
            description = format!("Custom resource definition column (in JSONPath format): {path}");
        }
        Some(Self {
            name: json::text(column, "/name").to_owned(),
            kind: json::text(column, "/type").to_owned(),
            format: json::text(column, "/format").to_owned(),
            description,
            priority: json::number(column, "/priority").unwrap_or(0),
            path: parse_path(path)?,
        })
    }

    /// The cell of an object; null when there is nothing.
    pub(crate) fn cell(&self, object: &Value) -> Value {
        let mut found = vec![object];
        for step in &self.path {
            found = found
                .into_iter()
                .flat_map(|value| follow(value, step))
                .collect();
        }
        let Some(first) = found.first() else {
            return Value::Null;
        };
        match (self.kind.as_str(), first) {
            ("date", Value::String(time)) => clock::age(time).into(),
            ("integer" | "number" | "boolean", value) => (*value).clone(),
            (_, Value::String(text)) if found.len() == 1 => text.clone().into(),
            _ => {
                let all: Vec<String> = found
                    .iter()
                    .map(|value| {
                        value
                            .as_str()
                            .map_or_else(|| value.to_string(), str::to_owned)
                    })
                    .collect();
                all.join(",").into()
            }
        }
    }
}

fn follow<'a>(value: &'a Value, step: &Step) -> Vec<&'a Value> {
    match (step, value) {
        (Step::Field(field), _) => value.get(field).into_iter().collect(),
        (Step::Index(at), _) => value.get(at).into_iter().collect(),
        (Step::All, Value::Array(items)) => items.iter().collect(),
        (Step::All, Value::Object(map)) => map.values().collect(),
        (Step::Where(path, wanted), Value::Array(items)) => items
            .iter()
            .filter(|item| {
                let found = path.iter().try_fold(*item, |value, field| value.get(field));
                found.and_then(Value::as_str) == Some(wanted)
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn parse_path(text: &str) -> Option<Vec<Step>> {
    let mut rest = text.trim().strip_prefix('$').unwrap_or(text.trim());
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let mut field = String::new();
            let mut letters = after.char_indices();
            let mut end = after.len();
            while let Some((at, letter)) = letters.next() {
                match letter {
                    // A dot inside a key, as in labels, is escaped.
                    '\\' => field.extend(letters.next().map(|(_, letter)| letter)),
                    '.' | '[' => {
                        end = at;
                        break;
                    }
                    other => field.push(other),
                }
            }
            if field.is_empty() {
                return None;
            }
            steps.push(if field == "*" {
                Step::All
            } else {
                Step::Field(field)
            });
            rest = after.get(end..)?;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (inner, after) = after.split_once(']')?;
            steps.push(parse_bracket(inner.trim())?);
            rest = after;
        } else {
            return None;
        }
    }
    (!steps.is_empty()).then_some(steps)
}

fn parse_bracket(inner: &str) -> Option<Step> {
    let unquoted = |text: &str| {
        let text = text.trim();
        text.strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
            .or_else(|| {
                text.strip_prefix('\'')
                    .and_then(|text| text.strip_suffix('\''))
            })
            .map(str::to_owned)
    };
    if inner == "*" {
        return Some(Step::All);
    }
    if let Ok(at) = inner.parse() {
        return Some(Step::Index(at));
    }
    if let Some(field) = unquoted(inner) {
        return Some(Step::Field(field));
    }
    let test = inner.strip_prefix("?(")?.strip_suffix(')')?;
    let (path, wanted) = test.split_once("==")?;
    let path = path.trim().strip_prefix("@.")?;
    Some(Step::Where(
        path.split('.').map(str::to_owned).collect(),
        unquoted(wanted)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cells_follow_fields_filters_and_escapes() {
        let object = json!({"metadata": {"labels": {"a.b/c": "v"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "n": 3}});
        let cell = |path: &str, kind: &str| {
            Column::parse(&json!({"name": "x", "type": kind, "jsonPath": path}))
                .unwrap()
                .cell(&object)
        };
        assert_eq!(
            cell(".status.conditions[?(@.type==\"Ready\")].status", "string"),
            "True"
        );
        assert_eq!(cell(".metadata.labels.a\\.b/c", "string"), "v");
        assert_eq!(cell(".status.n", "integer"), 3);
        assert_eq!(cell(".status.missing", "string"), Value::Null);
        assert!(Column::parse(&json!({"jsonPath": "status"})).is_none());
    }
}
