//! Structural schemas: pruning, defaults, validation.

use regex::Regex;
use serde_json::{Map, Value};

use super::rules;
use crate::json;
use crate::refusal::FieldError;

const PRESERVE: &str = "/x-kubernetes-preserve-unknown-fields";
const INT_OR_STRING: &str = "/x-kubernetes-int-or-string";

/// Removes what the schema doesn't know, and lists it. Type and metadata of the object itself stay.
pub(super) fn prune_root(object: &mut Value, schema: &Value, unknown: &mut Vec<String>) {
    let mut kept = Map::new();
    if let Some(map) = object.as_object_mut() {
        for field in ["apiVersion", "kind", "metadata"] {
            if let Some(value) = map.remove(field) {
                kept.insert(field.to_owned(), value);
            }
        }
    }
    prune(object, schema, "", unknown);
    if let Some(map) = object.as_object_mut() {
        map.extend(kept);
    }
}

fn prune(value: &mut Value, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let additional = schema.get("additionalProperties");
            let preserve = json::truth(schema, PRESERVE);
            map.retain(|key, value| {
                let place = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                let embedded = json::truth(schema, "/x-kubernetes-embedded-resource")
                    && matches!(key.as_str(), "apiVersion" | "kind" | "metadata");
                match properties.and_then(|all| all.get(key)) {
                    Some(schema) => {
                        prune(value, schema, &place, unknown);
                        true
                    }
                    None => match additional {
                        Some(schema) if schema.is_object() => {
                            prune(value, schema, &place, unknown);
                            true
                        }
                        Some(Value::Bool(true)) => true,
                        _ if preserve || embedded => true,
                        _ => {
                            unknown.push(place);
                            false
                        }
                    },
                }
            });
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (at, item) in items.iter_mut().enumerate() {
                    prune(item, schema, &format!("{path}[{at}]"), unknown);
                }
            }
        }
        _ => {}
    }
}

/// Fills in the defaults of absent fields, parents first. A null where null isn't allowed counts as absent.
pub(super) fn default(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => {
            for (key, schema) in json::map(schema, "/properties").into_iter().flatten() {
                let nullable = json::truth(schema, "/nullable");
                if map.get(key).is_some_and(Value::is_null) && !nullable {
                    map.remove(key);
                }
                if let Some(default) = schema.get("default")
                    && !map.contains_key(key)
                {
                    map.insert(key.clone(), default.clone());
                }
                if let Some(value) = map.get_mut(key) {
                    self::default(value, schema);
                }
            }
            if let Some(schema) = schema.get("additionalProperties") {
                map.values_mut().for_each(|value| default(value, schema));
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| default(item, schema));
            }
        }
        _ => {}
    }
}

/// Field errors of an object.
pub(super) fn validate_root(object: &Value, schema: &Value, errors: &mut Vec<FieldError>) {
    validate(object, schema, "", errors);
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn validate(value: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && json::truth(schema, "/nullable") {
        return;
    }
    let wanted = json::text(schema, "/type");
    let found = type_name(value);
    let fits = match wanted {
        "" => !json::truth(schema, INT_OR_STRING) || matches!(found, "integer" | "string"),
        "number" => matches!(found, "integer" | "number"),
        wanted => wanted == found,
    };
    if !fits {
        errors.push(FieldError::type_invalid(
            path,
            format!(
                "Invalid value: \"{found}\": {path} in body must be of type {wanted}: \"{found}\""
            ),
        ));
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        errors.push(FieldError::not_supported(path, value, allowed));
    }
    match value {
        Value::Object(map) => validate_object(map, schema, path, errors),
        Value::Array(items) => validate_list(items, schema, path, errors),
        Value::String(text) => validate_text(text, schema, path, errors),
        Value::Number(_) => {
            let limit = |field: &str| schema.get(field).and_then(Value::as_f64);
            let number = value.as_f64().unwrap_or(0.0);
            if let Some(least) = limit("minimum").filter(|least| number < *least) {
                let words = format!("{path} in body should be greater than or equal to {least}");
                errors.push(FieldError::invalid(path, value, words));
            }
            if let Some(most) = limit("maximum").filter(|most| number > *most) {
                let words = format!("{path} in body should be less than or equal to {most}");
                errors.push(FieldError::invalid(path, value, words));
            }
        }
        _ => {}
    }
}

fn validate_object(
    map: &Map<String, Value>,
    schema: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let place = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    for required in json::list(schema, "/required")
        .iter()
        .filter_map(Value::as_str)
    {
        if !map.contains_key(required) {
            errors.push(FieldError::required(place(required), ""));
        }
    }
    let count = i64::try_from(map.len()).unwrap_or(i64::MAX);
    if json::number(schema, "/maxProperties").is_some_and(|most| count > most) {
        errors.push(FieldError::invalid(
            path,
            &count.into(),
            format!("{path} in body should have fewer properties"),
        ));
    }
    for (key, value) in map {
        // The server checked these before.
        if path.is_empty() && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        let below = schema
            .get("properties")
            .and_then(|all| all.get(key))
            .or_else(|| {
                schema
                    .get("additionalProperties")
                    .filter(|schema| schema.is_object())
            });
        if let Some(schema) = below {
            validate(value, schema, &place(key), errors);
        }
    }
}

fn validate_list(items: &[Value], schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
    if let Some(least) = json::number(schema, "/minItems").filter(|least| count < *least) {
        let words = format!("{path} in body should have at least {least} items");
        errors.push(FieldError::invalid(path, &count.into(), words));
    }
    if let Some(most) = json::number(schema, "/maxItems").filter(|most| count > *most) {
        errors.push(FieldError {
            reason: "FieldValueTooMany",
            field: path.to_owned(),
            message: format!("Too many: {count}: must have at most {most} items"),
        });
    }
    let keys = json::list(schema, "/x-kubernetes-list-map-keys");
    for (at, item) in items.iter().enumerate() {
        let place = format!("{path}[{at}]");
        let same = |other: &Value| match json::text(schema, "/x-kubernetes-list-type") {
            "set" => other == item,
            "map" => keys
                .iter()
                .filter_map(Value::as_str)
                .all(|key| other.get(key) == item.get(key)),
            _ => false,
        };
        if items.iter().take(at).any(same) {
            errors.push(FieldError::duplicate(place.as_str(), item));
        }
        if let Some(schema) = schema.get("items") {
            validate(item, schema, &place, errors);
        }
    }
}

fn validate_text(text: &str, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if let Some(least) = json::number(schema, "/minLength").filter(|least| length < *least) {
        let words = format!("{path} in body should be at least {least} chars long");
        errors.push(FieldError::invalid_text(path, text, words));
    }
    if let Some(most) = json::number(schema, "/maxLength").filter(|most| length > *most) {
        errors.push(FieldError {
            reason: "FieldValueTooLong",
            field: path.to_owned(),
            message: format!("Too long: may not be more than {most} bytes"),
        });
    }
    let pattern = json::text(schema, "/pattern");
    if !pattern.is_empty() && !Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text)) {
        let words = format!("{path} in body should match '{pattern}'");
        errors.push(FieldError::invalid_text(path, text, words));
    }
    if json::text(schema, "/format") == "date-time" && crate::clock::parse(text).is_none() {
        let words = format!("{path} in body must be of type date-time: \"{text}\"");
        errors.push(FieldError::type_invalid(
            path,
            format!("Invalid value: \"{text}\": {words}"),
        ));
    }
}

/// Field errors of the schema itself: it must be structural, its patterns and rules must be known here.
pub(super) fn check(schema: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let typed = schema.get("type").is_some()
        || json::truth(schema, PRESERVE)
        || json::truth(schema, INT_OR_STRING);
    if !typed {
        errors.push(FieldError::required(
            format!("{field}.type"),
            "must not be empty for specified object fields",
        ));
    }
    for unsupported in ["allOf", "anyOf", "oneOf", "not"] {
        let harmless = unsupported == "anyOf" && json::truth(schema, INT_OR_STRING);
        if schema.get(unsupported).is_some() && !harmless {
            errors.push(FieldError::forbidden(
                format!("{field}.{unsupported}"),
                "this server doesn't evaluate it, and would not ignore it silently",
            ));
        }
    }
    let pattern = json::text(schema, "/pattern");
    if !pattern.is_empty()
        && let Err(error) = Regex::new(pattern)
    {
        errors.push(FieldError::invalid_text(
            format!("{field}.pattern"),
            pattern,
            error,
        ));
    }
    for (at, rule) in json::list(schema, "/x-kubernetes-validations")
        .iter()
        .enumerate()
    {
        if let Err(why) = rules::check_rule(rule) {
            let text = json::text(rule, "/rule");
            let field = format!("{field}.x-kubernetes-validations[{at}].rule");
            errors.push(FieldError::invalid_text(
                field,
                text,
                format!("compilation failed: {why}"),
            ));
        }
    }
    for (key, schema) in json::map(schema, "/properties").into_iter().flatten() {
        // `metadata` of the root may stay unspecified.
        if key == "metadata" && field.ends_with("openAPIV3Schema") {
            continue;
        }
        check(schema, &format!("{field}.properties[{key}]"), errors);
    }
    if let Some(schema) = schema.get("items") {
        check(schema, &format!("{field}.items"), errors);
    }
    if let Some(schema) = schema
        .get("additionalProperties")
        .filter(|schema| schema.is_object())
    {
        check(schema, &format!("{field}.additionalProperties"), errors);
    }
}
