//! Policy kinds beyond NetworkPolicy: those of network plugins (Cilium, Calico) and of the cluster policy
//! API, as far as the cluster serves them.
//!
//! They matter in both ways. Some of them win over a NetworkPolicy, so one of them can let the suspect's
//! traffic through; and a denial in such a kind holds where a NetworkPolicy doesn't, so containment adds one
//! (`deny`). Which kinds there are is read from API discovery and kept for a while: where none is served,
//! nothing more is asked.

pub mod deny;
pub mod facts;
pub mod foreign;

use std::time::Duration;

use futures::future::join_all;
use kube::Client;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::selector::Labels;
use crate::describe::describe;
use crate::kubernetes::{ApiError, read};

/// How long what discovery said is believed: definitions change with an upgrade, not in an incident.
const BELIEVED: Duration = Duration::from_secs(600);

/// How long planning waits for all of this. An aggregated API (Calico's) can hang, and containment does
/// not wait for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Objects of one kind that are looked at; what is beyond is said to be unread.
const READ: usize = 500;

/// Which plugin or API enforces a kind. At most one of a family's kinds is used for the denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Deny rules win over every allow rule, also over those of NetworkPolicies.
    /// Source: Cilium documentation, "Deny Policies".
    Cilium,
    /// By order within tiers; a NetworkPolicy has the order 1000 of the tier "default".
    Calico,
    /// AdminNetworkPolicy and ClusterNetworkPolicy, asked before any NetworkPolicy.
    Cluster,
}

/// A policy kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Kind as it is called, e.g. `CiliumNetworkPolicy`.
    pub name: &'static str,
    /// Whose it is.
    pub family: Family,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    namespaced: bool,
}

const fn kind(
    name: &'static str,
    family: Family,
    [group, version, plural]: [&'static str; 3],
    namespaced: bool,
) -> Kind {
    Kind {
        name,
        family,
        group,
        version,
        plural,
        namespaced,
    }
}

/// The kinds that are known, the strongest of each family first: that one is used for the denial.
/// Calico's objects can be written through its API server (projectcalico.org) or, without it, where that
/// keeps them (crd.projectcalico.org).
static KINDS: [Kind; 8] = [
    kind(
        "CiliumNetworkPolicy",
        Family::Cilium,
        ["cilium.io", "v2", "ciliumnetworkpolicies"],
        true,
    ),
    kind(
        "CiliumClusterwideNetworkPolicy",
        Family::Cilium,
        ["cilium.io", "v2", "ciliumclusterwidenetworkpolicies"],
        false,
    ),
    kind(
        "NetworkPolicy",
        Family::Calico,
        ["projectcalico.org", "v3", "networkpolicies"],
        true,
    ),
    kind(
        "GlobalNetworkPolicy",
        Family::Calico,
        ["projectcalico.org", "v3", "globalnetworkpolicies"],
        false,
    ),
    kind(
        "NetworkPolicy",
        Family::Calico,
        ["crd.projectcalico.org", "v1", "networkpolicies"],
        true,
    ),
    kind(
        "GlobalNetworkPolicy",
        Family::Calico,
        ["crd.projectcalico.org", "v1", "globalnetworkpolicies"],
        false,
    ),
    kind(
        "ClusterNetworkPolicy",
        Family::Cluster,
        [
            "policy.networking.k8s.io",
            "v1alpha2",
            "clusternetworkpolicies",
        ],
        false,
    ),
    kind(
        "AdminNetworkPolicy",
        Family::Cluster,
        [
            "policy.networking.k8s.io",
            "v1alpha1",
            "adminnetworkpolicies",
        ],
        false,
    ),
];

impl Kind {
    /// Path of the kind's objects, of one namespace if they are in namespaces.
    #[must_use]
    pub fn path(&self, namespace: &str) -> String {
        let Self {
            group,
            version,
            plural,
            ..
        } = self;
        if self.namespaced {
            format!("/apis/{group}/{version}/namespaces/{namespace}/{plural}")
        } else {
            format!("/apis/{group}/{version}/{plural}")
        }
    }

    /// For people; Calico's kinds are named as Kubernetes' own are.
    #[must_use]
    pub fn title(&self) -> String {
        match self.family {
            Family::Calico => format!("Calico {}", self.name),
            Family::Cilium | Family::Cluster => self.name.to_owned(),
        }
    }

    /// Whether an object of the kind has a name. Calico's API server may put the tier's before it.
    fn is_named(&self, object: &Value, name: &str) -> bool {
        let found = object_name(object);
        let tiered = || found.strip_prefix("default.") == Some(name);
        found == name || (self.family == Family::Calico && tiered())
    }

    fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }
}

/// What discovery said, kept for a while.
#[derive(Debug, Default)]
pub struct Discovery(Mutex<Option<(Instant, Vec<&'static Kind>)>>);

/// The objects of the served kinds that concern a namespace.
#[derive(Clone, Debug, Default)]
pub struct Plugin {
    /// Each served kind with its objects.
    pub kinds: Vec<(&'static Kind, Vec<Value>)>,
    /// Labels of the namespace; empty if no kind asks for them.
    pub namespace_labels: Labels,
    /// What could not be read, one sentence each.
    pub unread: Vec<String>,
}

impl Plugin {
    /// The object at a path.
    #[must_use]
    pub fn at(&self, namespace: &str, path: &str) -> Option<&Value> {
        let (parent, name) = path.rsplit_once('/')?;
        let (kind, _) = self
            .kinds
            .iter()
            .find(|(kind, _)| kind.path(namespace) == parent)?;
        self.find(kind, name)
    }

    /// The object of a kind by name.
    #[must_use]
    pub fn find(&self, kind: &Kind, name: &str) -> Option<&Value> {
        let (_, objects) = self.kinds.iter().find(|(known, _)| *known == kind)?;
        objects.iter().find(|object| kind.is_named(object, name))
    }
}

impl Discovery {
    /// Reads what concerns a namespace. Never fails: what can't be read is said.
    pub async fn observe(&self, client: &Client, namespace: &str) -> Plugin {
        let observed = timeout(PATIENCE, self.read(client, namespace)).await;
        observed.unwrap_or_else(|_| Plugin {
            unread: vec![format!(
                "Policies of the network plugin's own kinds could not be read within {} s.",
                PATIENCE.as_secs()
            )],
            ..Plugin::default()
        })
    }

    async fn read(&self, client: &Client, namespace: &str) -> Plugin {
        let mut plugin = Plugin::default();
        let kinds = match self.served(client).await {
            Ok(kinds) => kinds,
            Err(error) => {
                plugin.unread.push(format!(
                    "Which policy kinds the cluster serves beyond NetworkPolicy could not be read: {}.",
                    describe(&error)
                ));
                return plugin;
            }
        };
        if kinds.is_empty() {
            return plugin;
        }
        let namespace_path = format!("/api/v1/namespaces/{namespace}");
        let lists = kinds.iter().map(|kind| objects(client, kind, namespace));
        let (lists, labels) = futures::join!(join_all(lists), read(client, &namespace_path));
        for (kind, list) in kinds.into_iter().zip(lists) {
            let objects = list.unwrap_or_else(|unread| {
                plugin.unread.push(unread);
                Vec::new()
            });
            plugin.kinds.push((kind, objects));
        }
        let labels = labels
            .ok()
            .flatten()
            .and_then(|namespace| namespace.pointer("/metadata/labels").cloned());
        plugin.namespace_labels = labels
            .and_then(|labels| serde_json::from_value(labels).ok())
            .unwrap_or_default();
        plugin
    }

    async fn served(&self, client: &Client) -> Result<Vec<&'static Kind>, ApiError> {
        let mut known = self.0.lock().await;
        if let Some((when, kinds)) = known.as_ref()
            && when.elapsed() < BELIEVED
        {
            return Ok(kinds.clone());
        }
        let kinds = discover(client).await?;
        *known = Some((Instant::now(), kinds.clone()));
        Ok(kinds)
    }
}

/// Name of an object.
pub(super) fn object_name(object: &Value) -> &str {
    object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

async fn discover(client: &Client) -> Result<Vec<&'static Kind>, ApiError> {
    let groups = read(client, "/apis").await?.unwrap_or_default();
    let mut offered: Vec<String> = strings(&groups, "/groups", |group| {
        let versions = group.get("versions")?.as_array()?.iter();
        Some(
            versions
                .filter_map(|version| version.get("groupVersion")?.as_str().map(str::to_owned))
                .collect(),
        )
    });
    let wanted: Vec<String> = KINDS.iter().map(Kind::api_version).collect();
    offered.retain(|version| wanted.contains(version));
    // Calico's storage is its API server's own business where there is one.
    if offered
        .iter()
        .any(|version| version == "projectcalico.org/v3")
    {
        offered.retain(|version| version != "crd.projectcalico.org/v1");
    }
    let mut served = Vec::new();
    for version in offered {
        let resources = read(client, &format!("/apis/{version}"))
            .await?
            .unwrap_or_default();
        let names = strings(&resources, "/resources", |resource| {
            Some(vec![resource.get("name")?.as_str()?.to_owned()])
        });
        let of_version = KINDS.iter().filter(|kind| kind.api_version() == version);
        served.extend(of_version.filter(|kind| names.iter().any(|name| name == kind.plural)));
    }
    // In the order of the table: the strongest of a family first.
    served.sort_by_key(|kind| KINDS.iter().position(|known| known == *kind));
    Ok(served)
}

fn strings(
    value: &Value,
    pointer: &str,
    read: impl Fn(&Value) -> Option<Vec<String>>,
) -> Vec<String> {
    let items = value.pointer(pointer).and_then(Value::as_array);
    items
        .into_iter()
        .flatten()
        .filter_map(read)
        .flatten()
        .collect()
}

async fn objects(client: &Client, kind: &Kind, namespace: &str) -> Result<Vec<Value>, String> {
    let path = format!("{}?limit={READ}", kind.path(namespace));
    let answer = read(client, &path).await.map_err(|error| {
        format!(
            "{} objects could not be read: {}.",
            kind.title(),
            describe(&error)
        )
    })?;
    let mut list = answer.unwrap_or_default();
    let more = list
        .pointer("/metadata/continue")
        .and_then(Value::as_str)
        .is_some_and(|token| !token.is_empty());
    if more {
        return Err(format!(
            "There are more than {READ} {} objects: they were not evaluated.",
            kind.title()
        ));
    }
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests;
