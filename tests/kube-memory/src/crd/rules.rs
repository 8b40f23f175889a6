//! `x-kubernetes-validations`: rules of custom resources, checked when the definition is created.

use serde_json::{Value, json};

use crate::cel;
use crate::json;
use crate::refusal::FieldError;

/// Whether a rule can be evaluated here; if not, why.
pub(super) fn check_rule(rule: &Value) -> Result<(), String> {
    for field in ["messageExpression", "optionalOldSelf"] {
        if rule.get(field).is_some() {
            return Err(format!("{field} is not supported by this server"));
        }
    }
    cel::check(json::text(rule, "/rule"), &["self", "oldSelf"])
}

/// Evaluates all rules of a schema against a value, and its old value in an update.
pub(super) fn check(
    value: &Value,
    old: Option<&Value>,
    schema: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    for rule in json::list(schema, "/x-kubernetes-validations") {
        let text = json::text(rule, "/rule");
        // A rule about the old value is one about a change.
        if old.is_none() && cel::mentions(text, "oldSelf") {
            continue;
        }
        let old = old.unwrap_or(&Value::Null);
        if cel::evaluate(text, &[("self", value), ("oldSelf", old)]) == Ok(json!(true)) {
            continue;
        }
        let message = match json::text(rule, "/message") {
            "" => format!("failed rule: {text}"),
            message => message.to_owned(),
        };
        let field = format!("{path}{}", json::text(rule, "/fieldPath"));
        let field = if field.is_empty() {
            "<nil>".to_owned()
        } else {
            field
        };
        let mut error = FieldError::rule(field, message);
        error.reason = match json::text(rule, "/reason") {
            "FieldValueForbidden" => "FieldValueForbidden",
            "FieldValueRequired" => "FieldValueRequired",
            "FieldValueDuplicate" => "FieldValueDuplicate",
            _ => error.reason,
        };
        errors.push(error);
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let below = schema
                    .get("properties")
                    .and_then(|all| all.get(key))
                    .or_else(|| schema.get("additionalProperties"));
                if let Some(schema) = below {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    check(
                        value,
                        old.and_then(|old| old.get(key)),
                        schema,
                        &path,
                        errors,
                    );
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (at, item) in items.iter().enumerate() {
                    // Items of an atomic list have no old value of their own.
                    check(item, None, schema, &format!("{path}[{at}]"), errors);
                }
            }
        }
        _ => {}
    }
}
