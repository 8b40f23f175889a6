//! Discovery: which groups, versions and resources there are, in the old form and aggregated.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Reply;
use crate::core::Core;
use crate::refusal::{Outcome, Refusal};
use crate::registry::{Resource, api_version};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// Answers `/api`, `/apis` and what is below them.
pub(super) fn answer(core: &Arc<Core>, parts: &[&str], accept: &str) -> Outcome<Reply> {
    let resources: Vec<Arc<Resource>> = core.shared.with(|state| state.registry.all().to_vec());
    let aggregated = accept.contains("g=apidiscovery.k8s.io;v=v2;");
    let value = match parts {
        ["api"] if aggregated => return Ok(groups_aggregated(&resources, true)),
        ["apis"] if aggregated => return Ok(groups_aggregated(&resources, false)),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"],
                          "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]}),
        ["apis"] => {
            let groups: Vec<Value> = groups(&resources)
                .iter()
                .filter(|g| !g.is_empty())
                .map(|g| group(&resources, g))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            if !groups(&resources).iter().any(|group| group == name) {
                return Err(Refusal::not_served());
            }
            let mut value = group(&resources, name);
            crate::json::put(&mut value, &["kind"], "APIGroup");
            crate::json::put(&mut value, &["apiVersion"], "v1");
            value
        }
        ["api", version] => version_resources(&resources, "", version)?,
        ["apis", group, version] => version_resources(&resources, group, version)?,
        _ => return Err(Refusal::not_served()),
    };
    Ok(Reply::json(200, &value))
}

fn groups(resources: &[Arc<Resource>]) -> Vec<String> {
    let mut groups: Vec<String> = Vec::new();
    for resource in resources {
        if !groups.contains(&resource.group) {
            groups.push(resource.group.clone());
        }
    }
    groups
}

fn versions(resources: &[Arc<Resource>], group: &str) -> Vec<String> {
    let mut versions: Vec<String> = Vec::new();
    for resource in resources.iter().filter(|resource| resource.group == group) {
        if !versions.contains(&resource.version) {
            versions.push(resource.version.clone());
        }
    }
    versions
}

fn group(resources: &[Arc<Resource>], name: &str) -> Value {
    let versions: Vec<Value> = versions(resources, name)
        .iter()
        .map(|version| json!({"groupVersion": api_version(name, version), "version": version}))
        .collect();
    let preferred = versions.first().cloned().unwrap_or(Value::Null);
    json!({"name": name, "versions": versions, "preferredVersion": preferred})
}

/// (sub-resource, group, version, kind, verbs)
type Sub = (&'static str, String, String, String, Vec<&'static str>);

fn subresources(resource: &Resource) -> Vec<Sub> {
    let own = |name, verbs: &[&'static str]| {
        (
            name,
            resource.group.clone(),
            resource.version.clone(),
            resource.kind.clone(),
            verbs.to_vec(),
        )
    };
    let other = |name, group: &str, version: &str, kind: &str, verbs: &[&'static str]| {
        (
            name,
            group.to_owned(),
            version.to_owned(),
            kind.to_owned(),
            verbs.to_vec(),
        )
    };
    let mut subs = Vec::new();
    if resource.status {
        subs.push(own("status", &["get", "patch", "update"]));
    }
    if resource.scale {
        subs.push(other(
            "scale",
            "autoscaling",
            "v1",
            "Scale",
            &["get", "patch", "update"],
        ));
    }
    match &*resource.table {
        "pods" => {
            subs.push(other("binding", "", "v1", "Binding", &["create"]));
            subs.push(other("eviction", "policy", "v1", "Eviction", &["create"]));
            subs.push(own("ephemeralcontainers", &["get", "patch", "update"]));
            subs.push(own("log", &["get"]));
            subs.push(own("resize", &["get", "patch", "update"]));
        }
        "serviceaccounts" => {
            subs.push(other(
                "token",
                "authentication.k8s.io",
                "v1",
                "TokenRequest",
                &["create"],
            ));
        }
        _ => {}
    }
    subs
}

fn verbs(resource: &Resource) -> Vec<&'static str> {
    if resource.stored {
        VERBS.to_vec()
    } else {
        vec!["create"]
    }
}

fn version_resources(resources: &[Arc<Resource>], group: &str, version: &str) -> Outcome<Value> {
    let mut list = Vec::new();
    for resource in resources
        .iter()
        .filter(|r| r.group == group && r.version == version)
    {
        list.push(json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": verbs(resource), "shortNames": resource.short_names,
            "categories": resource.categories,
        }));
        for (name, sub_group, sub_version, kind, verbs) in subresources(resource) {
            let mut entry = json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": kind, "verbs": verbs,
            });
            if (sub_group.as_str(), sub_version.as_str()) != (group, version) {
                crate::json::put(&mut entry, &["group"], sub_group);
                crate::json::put(&mut entry, &["version"], sub_version);
            }
            list.push(entry);
        }
    }
    if list.is_empty() {
        return Err(Refusal::not_served());
    }
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1",
              "groupVersion": api_version(group, version), "resources": list}))
}

fn groups_aggregated(resources: &[Arc<Resource>], core: bool) -> Reply {
    let items: Vec<Value> = groups(resources)
        .iter()
        .filter(|group| group.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = versions(resources, group)
                .iter()
                .map(|version| {
                    let list: Vec<Value> = resources
                        .iter()
                        .filter(|r| r.group == *group && r.version == *version)
                        .map(|resource| aggregated(resource))
                        .collect();
                    json!({"version": version, "resources": list, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    let value = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
                       "metadata": {}, "items": items});
    let mut reply = Reply::json(200, &value);
    reply.content_type = AGGREGATED.into();
    reply
}

fn aggregated(resource: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subs: Vec<Value> = subresources(resource)
        .into_iter()
        .map(|(name, group, version, sub_kind, verbs)| {
            json!({"subresource": name, "responseKind": kind(&group, &version, &sub_kind), "verbs": verbs})
        })
        .collect();
    json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular, "verbs": verbs(resource),
        "shortNames": resource.short_names, "categories": resource.categories, "subresources": subs,
    })
}
