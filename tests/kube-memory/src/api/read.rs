//! Get and list.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value, json};

use super::table::Form;
use super::{Call, Reply};
use crate::json;
use crate::kinds;
use crate::patch::go_syntax_error;
use crate::refusal::{Outcome, Refusal};
use crate::registry::Resource;
use crate::selector::{FieldSelector, Selector};
use crate::store::Object;

/// What a list or watch selects.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    pub(super) labels: Selector,
    pub(super) fields: FieldSelector,
}

impl Filter {
    pub(super) fn of(call: &Call<'_>) -> Outcome<Self> {
        let query = &call.request.query;
        let labels = Selector::parse(query.get("labelSelector").unwrap_or(""))?;
        let mut fields = query.get("fieldSelector").unwrap_or("").to_owned();
        if !call.target.name.is_empty() {
            fields = format!("metadata.name={}", call.target.name);
        }
        let fields = FieldSelector::parse(&fields)?;
        fields.check(&call.resource.table, call.resource.custom.is_some())?;
        Ok(Self { labels, fields })
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.labels.matches(json::labels(object)) && self.fields.matches(object)
    }
}

/// The object as this version of its resource shows it.
pub(super) fn shown(resource: &Resource, object: &Object) -> Object {
    if resource.group == "events.k8s.io" {
        return kinds::event_as_new(object).into();
    }
    if resource.custom.is_some() && json::text(object, "/apiVersion") != resource.api_version() {
        let mut object = Value::clone(object);
        json::put(&mut object, &["apiVersion"], resource.api_version());
        return object.into();
    }
    object.clone()
}

pub(super) fn get(call: &Call<'_>) -> Outcome<Reply> {
    let namespace = if call.resource.namespaced {
        call.target.namespace.as_str()
    } else {
        ""
    };
    let object = call
        .core
        .shared
        .with(|state| state.get(&call.resource, namespace, &call.target.name))?;
    let object = shown(&call.resource, &object);
    Ok(match Form::of(&call.request.accept) {
        Form::Plain => Reply::json(200, &object),
        form => {
            let version = json::text(&object, "/metadata/resourceVersion").to_owned();
            Reply::json(200, &form.one(call, &object, &version))
        }
    })
}

/// An item of a list of a built-in kind: without apiVersion and kind, as Go's typed lists are.
struct Item<'a>(&'a Value, bool);

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(fields) = self.0.as_object().filter(|_| self.1) else {
            return self.0.serialize(serializer);
        };
        let mut map = serializer.serialize_map(None)?;
        for (field, value) in fields
            .iter()
            .filter(|(field, _)| !matches!(field.as_str(), "apiVersion" | "kind"))
        {
            map.serialize_entry(field, value)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct List<'a> {
    kind: &'a str,
    #[serde(rename = "apiVersion")]
    api_version: String,
    metadata: Value,
    items: Vec<Item<'a>>,
}

pub(super) fn list(call: &Call<'_>) -> Outcome<Reply> {
    let filter = Filter::of(call)?;
    let query = &call.request.query;
    let start = query
        .get("continue")
        .filter(|token| !token.is_empty())
        .map(read_token)
        .transpose()?;
    let limit = query
        .get("limit")
        .and_then(|limit| limit.parse::<usize>().ok())
        .filter(|limit| *limit > 0);
    let (version, mut items) = call.core.shared.with(|state| {
        let version = state.store.version();
        let table = state.store.table(&call.resource.table);
        let items: Vec<Object> = match (filter.fields.name(), call.target.namespace.as_str()) {
            // The common "one by name" list needs no scan.
            (Some(name), namespace) if !namespace.is_empty() => {
                table.get(namespace, name).into_iter().cloned().collect()
            }
            (_, namespace) => table.list(namespace).cloned().collect(),
        };
        (version, items)
    });
    check_version(call, version)?;
    items.retain(|object| filter.matches(object));
    if let Some(start) = &start {
        items.retain(|object| {
            (json::namespace(object), json::name(object)) > (start.0.as_str(), start.1.as_str())
        });
    }
    let form = Form::of(&call.request.accept);
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(limit) = limit.filter(|limit| items.len() > *limit) {
        let rest = items.len() - limit;
        items.truncate(limit);
        if let Some(last) = items.last() {
            json::put(&mut metadata, &["continue"], write_token(version, last));
        }
        if query.get("labelSelector").is_none() && query.get("fieldSelector").is_none() {
            json::put(&mut metadata, &["remainingItemCount"], rest);
        }
    } else if call.resource.custom.is_some() && form == Form::Plain {
        json::put(&mut metadata, &["continue"], "");
    }
    let items: Vec<Object> = items
        .iter()
        .map(|object| shown(&call.resource, object))
        .collect();
    if form != Form::Plain {
        return Ok(Reply::json(200, &form.many(call, &items, metadata)));
    }
    Ok(plain_list(&call.resource, &items, metadata))
}

/// A list as JSON.
pub(super) fn plain_list(resource: &Resource, items: &[Object], metadata: Value) -> Reply {
    let bare = resource.custom.is_none();
    let list = List {
        kind: &resource.list_kind,
        api_version: resource.api_version(),
        metadata,
        items: items.iter().map(|object| Item(object, bare)).collect(),
    };
    Reply::bytes(
        200,
        "application/json",
        serde_json::to_vec(&list).unwrap_or_default(),
    )
}

/// A version that isn't there yet, or an exact one that is gone.
fn check_version(call: &Call<'_>, current: u64) -> Outcome<()> {
    let Some(asked) = call
        .request
        .query
        .get("resourceVersion")
        .filter(|asked| !asked.is_empty())
    else {
        return Ok(());
    };
    let asked: u64 = asked.parse().map_err(|_| bad_version(asked))?;
    if asked > current {
        return Err(Refusal::too_large_version(asked, current));
    }
    if call.request.query.get("resourceVersionMatch") == Some("Exact") && asked < current {
        return Err(Refusal::expired(
            "The resourceVersion for the provided list is too old.",
        ));
    }
    Ok(())
}

pub(super) fn bad_version(asked: &str) -> Refusal {
    Refusal::internal(format!(
        "resourceVersion: Invalid value: \"{asked}\": strconv.ParseUint: parsing \"{asked}\": invalid syntax"
    ))
}

fn write_token(version: u64, last: &Value) -> String {
    let start = format!("{}\u{0}{}", json::namespace(last), json::name(last));
    URL_SAFE_NO_PAD
        .encode(json!({"v": "meta.k8s.io/v1", "rv": version, "start": start}).to_string())
}

fn read_token(token: &str) -> Outcome<(String, String)> {
    let refuse = |why: String| {
        Refusal::bad_request(format!(
            "invalid continue token: continue key is not valid: {why}"
        ))
    };
    // Go's decoder doesn't mind trailing bits.
    let bytes = base64::engine::GeneralPurpose::new(
        &base64::alphabet::URL_SAFE,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    )
    .decode(token)
    .map_err(|error| refuse(error.to_string()))?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|_| refuse(go_syntax_error(&bytes)))?;
    let start = json::text(&value, "/start");
    let (namespace, name) = start
        .split_once('\u{0}')
        .ok_or_else(|| refuse("no start".to_owned()))?;
    Ok((namespace.to_owned(), name.to_owned()))
}
