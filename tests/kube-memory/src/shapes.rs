//! How lists and maps of each kind are merged: what the OpenAPI extensions `x-kubernetes-list-type`,
//! `x-kubernetes-map-type` and `x-kubernetes-patch-merge-key` say of the built-in types, by field path.

use serde_json::Value;

use crate::json;

/// How server-side apply sees a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListShape {
    /// One value, owned as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items told apart by these fields.
    Map(Vec<String>),
}

/// Where the shapes come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shapes<'a> {
    BuiltIn,
    /// The OpenAPI schema of a custom resource.
    Custom(&'a Value),
}

impl Shapes<'_> {
    /// `path` is the field names from the root, without list positions.
    pub(crate) fn list(self, path: &[&str]) -> ListShape {
        if let Some(shape) = metadata_list(path) {
            return shape;
        }
        match self {
            Self::BuiltIn => built_in_list(path),
            Self::Custom(schema) => {
                let schema = schema_at(schema, path);
                let text = |key| schema.and_then(|s| s.get(key)).and_then(Value::as_str);
                match text("x-kubernetes-list-type") {
                    Some("set") => ListShape::Set,
                    Some("map") => ListShape::Map(
                        schema
                            .map(|s| json::list(s, "/x-kubernetes-list-map-keys"))
                            .unwrap_or_default()
                            .iter()
                            .filter_map(Value::as_str)
                            .map(str::to_owned)
                            .collect(),
                    ),
                    _ => ListShape::Atomic,
                }
            }
        }
    }

    /// Whether a map is owned as a whole.
    pub(crate) fn atomic_map(self, path: &[&str]) -> bool {
        if path.first() == Some(&"metadata") && path.len() <= 2 {
            return false;
        }
        match self {
            Self::BuiltIn => built_in_atomic(path),
            Self::Custom(schema) => schema_at(schema, path)
                .is_some_and(|s| json::text(s, "/x-kubernetes-map-type") == "atomic"),
        }
    }
}

fn schema_at<'a>(schema: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let mut current = schema;
    for field in path {
        while let Some(items) = current.get("items") {
            current = items;
        }
        current = match current.get("properties").and_then(|all| all.get(*field)) {
            Some(found) => found,
            None => current.get("additionalProperties")?,
        };
    }
    Some(current)
}

fn metadata_list(path: &[&str]) -> Option<ListShape> {
    match path {
        ["metadata", "finalizers"] => Some(ListShape::Set),
        ["metadata", "ownerReferences"] => Some(ListShape::Map(vec!["uid".to_owned()])),
        _ => None,
    }
}

fn built_in_list(path: &[&str]) -> ListShape {
    let keys = |keys: &[&str]| ListShape::Map(keys.iter().map(|key| (*key).to_owned()).collect());
    match path {
        [.., "topologySpreadConstraints"] => keys(&["topologyKey", "whenUnsatisfiable"]),
        [
            ..,
            "containers" | "initContainers" | "ephemeralContainers",
            "ports",
        ] => keys(&["containerPort", "protocol"]),
        ["spec", "ports"] => keys(&["port", "protocol"]),
        other => strategic_key(other).map_or(ListShape::Atomic, |key| keys(&[key])),
    }
}

/// The patch merge key of a list of a built-in type; none means that a strategic merge patch replaces the list.
pub(crate) fn strategic_key(path: &[&str]) -> Option<&'static str> {
    match path {
        ["metadata", "ownerReferences"] => Some("uid"),
        ["status", "conditions"] => Some("type"),
        ["status", "addresses"] => Some("type"),
        ["status", "podIPs" | "hostIPs"] => Some("ip"),
        ["spec", "ports"] => Some("port"),
        ["secrets" | "imagePullSecrets"] => Some("name"),
        [.., "spec", last] => match *last {
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "imagePullSecrets"
            | "schedulingGates"
            | "resourceClaims" => Some("name"),
            "hostAliases" => Some("ip"),
            "topologySpreadConstraints" => Some("topologyKey"),
            _ => None,
        },
        [
            ..,
            "containers" | "initContainers" | "ephemeralContainers",
            last,
        ] => match *last {
            "env" => Some("name"),
            "ports" => Some("containerPort"),
            "volumeMounts" => Some("mountPath"),
            "volumeDevices" => Some("devicePath"),
            _ => None,
        },
        _ => None,
    }
}

/// Lists of scalars that a strategic merge patch adds to.
pub(crate) fn strategic_set(path: &[&str]) -> bool {
    matches!(path, ["metadata", "finalizers"] | ["spec", "podCIDRs"])
}

fn built_in_atomic(path: &[&str]) -> bool {
    matches!(
        path.last().copied().unwrap_or(""),
        // LabelSelector and the other types marked `structType=atomic`.
        "podSelector"
            | "namespaceSelector"
            | "labelSelector"
            | "nodeSelector"
            | "secretKeyRef"
            | "configMapKeyRef"
            | "fieldRef"
            | "resourceFieldRef"
            | "involvedObject"
            | "regarding"
            | "roleRef"
            | "claimRef"
            | "targetRef"
            | "preference"
            | "requiredDuringSchedulingIgnoredDuringExecution"
    ) || matches!(path, ["spec", "selector"])
}
