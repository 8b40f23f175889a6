//! The three patches that change a given object: JSON patch, merge patch, strategic merge patch.
//!
//! The fourth, server-side apply, needs to know who owns what: see `managed`.

pub(crate) mod json_patch;
pub(crate) mod strategic;

use serde_json::Value;

/// RFC 7386.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(map) = target.as_object_mut() else {
        return;
    };
    for (key, value) in fields {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// What Go's JSON decoder says of a body that isn't JSON; its first words are part of the API's answers.
pub(crate) fn go_syntax_error(body: &[u8]) -> String {
    let mut letters = body.iter().filter(|byte| !byte.is_ascii_whitespace());
    match (letters.next(), letters.next()) {
        (None, _) => "unexpected end of JSON input".to_owned(),
        (Some(b'{'), Some(next)) if *next != b'"' && *next != b'}' => format!(
            "invalid character '{}' looking for beginning of object key string",
            char::from(*next)
        ),
        (Some(first), _) if !b"{[\"-0123456789tfn".contains(first) => format!(
            "invalid character '{}' looking for beginning of value",
            char::from(*first)
        ),
        _ => match serde_json::from_slice::<Value>(body) {
            Err(error) if error.is_eof() => "unexpected end of JSON input".to_owned(),
            Err(error) => error.to_string(),
            Ok(_) => "unexpected JSON".to_owned(),
        },
    }
}
