//! Checks of `metadata`, the same for all kinds: names, labels, annotations, finalizers.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::json;
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::registry::Resource;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const KEY: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// A pattern of this file: all of them compile, a test says so.
fn pattern(text: &str) -> Option<Regex> {
    Regex::new(&format!("^(?:{text})$")).ok()
}

static SUBDOMAIN_PATTERN: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"));
static LABEL_PATTERN: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"));
static VALUE_PATTERN: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"));
static KEY_PATTERN: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"));

fn fits(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern
        .as_ref()
        .is_some_and(|pattern| pattern.is_match(text))
}

/// A DNS subdomain of at most 253 letters: the rule of most names.
pub(crate) fn subdomain(field: &str, name: &str) -> Option<FieldError> {
    if name.len() > 253 {
        return Some(FieldError::invalid_text(
            field,
            name,
            "must be no more than 253 characters",
        ));
    }
    (!fits(&SUBDOMAIN_PATTERN, name)).then(|| FieldError::invalid_text(field, name, SUBDOMAIN))
}

/// A DNS label of at most 63 letters: container, volume, namespace and service names.
pub(crate) fn label(field: &str, name: &str) -> Option<FieldError> {
    if name.len() > 63 {
        return Some(FieldError::invalid_text(
            field,
            name,
            "must be no more than 63 characters",
        ));
    }
    (!fits(&LABEL_PATTERN, name)).then(|| FieldError::invalid_text(field, name, LABEL))
}

/// What Go's decoder refuses before any validation: label and annotation values that aren't strings.
pub(crate) fn decode(object: &Value) -> Outcome<Vec<FieldError>> {
    for field in ["labels", "annotations"] {
        for value in json::map(object, &format!("/metadata/{field}"))
            .into_iter()
            .flat_map(|map| map.values())
        {
            let found = match value {
                Value::String(_) | Value::Null => continue,
                Value::Number(_) => "number",
                Value::Bool(_) => "bool",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            let (kind, version) = (
                json::text(object, "/kind"),
                json::text(object, "/apiVersion"),
            );
            let version = version.rsplit('/').next().unwrap_or(version);
            return Err(Refusal::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: json: cannot unmarshal {found} into Go \
                 struct field ObjectMeta.metadata.{field} of type string"
            )));
        }
    }
    Ok(Vec::new())
}

/// Field errors of the metadata.
pub(crate) fn validate(
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old.is_none() {
        errors.extend(name_error(resource, json::name(object)));
    }
    if json::map(object, "/metadata/labels") != old.and_then(json::labels) {
        labels("metadata.labels", json::labels(object), &mut errors);
    }
    for key in json::map(object, "/metadata/annotations")
        .into_iter()
        .flat_map(|map| map.keys())
    {
        // Unlike label keys, annotation keys may have upper case letters in the prefix.
        errors.extend(key_error("metadata.annotations", &key.to_lowercase()));
    }
    let finalizers = json::list(object, "/metadata/finalizers");
    for finalizer in finalizers.iter().filter_map(Value::as_str) {
        errors.extend(key_error("metadata.finalizers", finalizer));
    }
    if let Some(old) = old
        && json::terminating(old)
    {
        let before = json::list(old, "/metadata/finalizers");
        let fresh: Vec<String> = finalizers
            .iter()
            .filter(|finalizer| !before.contains(finalizer))
            .map(Value::to_string)
            .collect();
        if !fresh.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    fresh.join(", ")
                ),
            ));
        }
    }
    let owners = json::list(object, "/metadata/ownerReferences");
    if owners
        .iter()
        .filter(|owner| json::truth(owner, "/controller"))
        .count()
        > 1
    {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            &Value::from(owners.to_vec()),
            "Only one reference can have Controller set to true. Found \"true\" in references",
        ));
    }
    errors
}

fn name_error(resource: &Resource, name: &str) -> Option<FieldError> {
    if name.is_empty() {
        return Some(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    }
    match &*resource.table {
        "namespaces" | "services" => label("metadata.name", name),
        table if table.ends_with("rbac.authorization.k8s.io") => (name.contains('/')
            || name.contains('%'))
        .then(|| FieldError::invalid_text("metadata.name", name, "may not contain '/' or '%'")),
        _ => subdomain("metadata.name", name),
    }
}

/// Field errors of a map of labels.
pub(crate) fn labels(
    field: &str,
    labels: Option<&serde_json::Map<String, Value>>,
    errors: &mut Vec<FieldError>,
) {
    for (key, value) in labels.into_iter().flatten() {
        errors.extend(key_error(field, key));
        let value = value.as_str().unwrap_or("");
        if value.len() > 63 {
            errors.push(FieldError::invalid_text(
                field,
                value,
                "must be no more than 63 bytes",
            ));
        } else if !fits(&VALUE_PATTERN, value) {
            errors.push(FieldError::invalid_text(field, value, VALUE));
        }
    }
}

fn key_error(field: &str, key: &str) -> Option<FieldError> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix
        && !fits(&SUBDOMAIN_PATTERN, prefix)
    {
        return Some(FieldError::invalid_text(
            field,
            key,
            format!("prefix part {SUBDOMAIN}"),
        ));
    }
    if name.is_empty() {
        return Some(FieldError::invalid_text(
            field,
            key,
            "name part must be non-empty",
        ));
    }
    if name.len() > 63 {
        return Some(FieldError::invalid_text(
            field,
            key,
            "name part must be no more than 63 bytes",
        ));
    }
    (!fits(&KEY_PATTERN, name)).then(|| FieldError::invalid_text(field, key, KEY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_follow_the_rules_of_the_api() {
        assert!(subdomain("f", "web-1.example").is_none());
        assert!(subdomain("f", "Web").is_some());
        assert!(label("f", "a.b").is_some());
        assert!(key_error("f", "example.com/role").is_none());
        assert!(key_error("f", "example.com/").is_some());
        let mut errors = Vec::new();
        labels(
            "f",
            serde_json::json!({"a": "not valid!", "b": ""}).as_object(),
            &mut errors,
        );
        assert_eq!(errors.len(), 1);
    }
}
