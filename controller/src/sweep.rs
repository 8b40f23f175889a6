//! Which pods a sweep takes, asked of the Kubernetes API once: the list that is then worked off.
//!
//! `matching` decides of one pod, `list` puts them in order and gives them names; both ask nobody.

pub mod list;
pub mod matching;

use std::collections::BTreeSet;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, ObjectMeta};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::contain::settings::Settings;
use crate::kubernetes::{ApiError, from_kube, is_object_name, read};
use crate::resources::sweep::MOST_TARGETS;
use crate::resources::{Selection, SweepTarget};
use matching::{Owner, Wanted};

/// Objects that are asked for at a time: what a large cluster has of them must never be here all at once.
const PAGE: u32 = 500;

/// What a selection comes to.
#[derive(Clone, Debug, Default)]
pub struct Selected {
    /// In the order in which they are to be begun.
    pub targets: Vec<SweepTarget>,
    /// Pods that it fits as well, and that are parts of Impound or its store.
    pub own: usize,
    /// Pods that it may fit as well: the digest of an image of theirs is not known yet.
    pub unknown: usize,
}

impl Selected {
    /// What is selected and not a target, and why; empty if there is nothing of the kind.
    #[must_use]
    pub fn left_out(&self) -> String {
        let mut parts = Vec::new();
        if self.own > 0 {
            parts.push(format!(
                "{} of Impound's own pods: the agents, the controller and its store are no suspects",
                self.own
            ));
        }
        if self.unknown > 0 {
            parts.push(format!(
                "{} pods with containers that have not started, so the digests of their images are not known",
                self.unknown
            ));
        }
        parts.join("; ")
    }
}

/// Why there is no list.
#[derive(Debug, Error)]
pub enum SelectError {
    /// It makes none, whenever it is asked.
    #[error("{0}")]
    Refused(String),
    /// The Kubernetes API did not answer as it should.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// The pods that a selection fits now.
///
/// # Errors
/// [`SelectError`]
pub async fn select(
    client: &Client,
    selection: &Selection,
    settings: &Settings,
) -> Result<Selected, SelectError> {
    let mut wanted = Wanted::parse(selection).map_err(SelectError::Refused)?;
    if !selection.node_labels.is_empty() {
        let nodes = Api::<Node>::all(client.clone());
        let mut names = BTreeSet::new();
        pages(&nodes, "nodes", &selection.node_labels, |node| {
            names.insert(node.name_any());
        })
        .await?;
        wanted.nodes = Some(names);
    }
    let mut found = Vec::new();
    let (mut own, mut unknown) = (0, 0);
    for namespace in namespaces(client, selection).await? {
        if let Some(owner) = &mut wanted.owner {
            owner.between = between(client, owner, namespace.as_deref()).await?;
        }
        let pods = of::<Pod>(client, namespace.as_deref());
        pages(&pods, "pods", &selection.labels, |pod| {
            if !wanted.fits(&pod) {
                unknown += usize::from(wanted.is_unknown(&pod));
            } else if matching::is_own(&pod, settings) {
                own += 1;
            } else if found.len() <= MOST_TARGETS {
                found.push(list::Found::of(&pod));
            }
        })
        .await?;
        if found.len() > MOST_TARGETS {
            return Err(SelectError::Refused(format!(
                "more than {MOST_TARGETS} pods are selected by {}: select fewer, or make several sweeps",
                matching::words(selection)
            )));
        }
    }
    let selected = Selected {
        targets: list::ordered(found),
        own,
        unknown,
    };
    if selected.targets.is_empty() {
        let left_out = match selected.left_out() {
            text if text.is_empty() => text,
            text => format!(", but for {text}"),
        };
        return Err(SelectError::Refused(format!(
            "no pod is selected by {}{left_out}",
            matching::words(selection)
        )));
    }
    Ok(selected)
}

/// uids of what an owner owns that in turn owns pods.
async fn between(
    client: &Client,
    owner: &Owner,
    namespace: Option<&str>,
) -> Result<BTreeSet<String>, SelectError> {
    let mut uids = BTreeSet::new();
    let mut note = |object: &ObjectMeta| {
        if owner.is_of(object) {
            uids.extend(object.uid.clone());
        }
    };
    if owner.kind.eq_ignore_ascii_case("Deployment") {
        let sets = of::<ReplicaSet>(client, namespace);
        pages(&sets, "replicasets", "", |set| note(&set.metadata)).await?;
    } else if owner.kind.eq_ignore_ascii_case("CronJob") {
        let jobs = of::<Job>(client, namespace);
        pages(&jobs, "jobs", "", |job| note(&job.metadata)).await?;
    }
    Ok(uids)
}

/// The namespaces that are asked, `None` for all at once. One that is not there is a mistake, and not one without pods.
async fn namespaces(
    client: &Client,
    selection: &Selection,
) -> Result<Vec<Option<String>>, SelectError> {
    if selection.all_namespaces {
        return Ok(vec![None]);
    }
    let names: BTreeSet<_> = selection.namespaces.iter().collect();
    let mut all = Vec::new();
    for name in names {
        let path = format!("/api/v1/namespaces/{name}");
        if !is_object_name(name) || read(client, &path).await?.is_none() {
            return Err(SelectError::Refused(format!(
                "namespace {name} does not exist"
            )));
        }
        all.push(Some(name.clone()));
    }
    Ok(all)
}

fn of<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Every object with these labels, page by page of one state of the cluster.
async fn pages<K>(
    api: &Api<K>,
    what: &str,
    labels: &str,
    mut each: impl FnMut(K),
) -> Result<(), SelectError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams::default().limit(PAGE);
    if !labels.is_empty() {
        params = params.labels(labels);
    }
    loop {
        let page = api.list(&params).await.map_err(|error| {
            match from_kube("GET", what, error) {
                // The API server's own words on a selector that is none.
                ApiError::Refused {
                    code: 400, message, ..
                } => SelectError::Refused(format!("selector {labels:?}: {message}")),
                error => SelectError::Api(error),
            }
        })?;
        let next = page.metadata.continue_.filter(|next| !next.is_empty());
        page.items.into_iter().for_each(&mut each);
        match next {
            Some(next) => params = params.continue_token(&next),
            None => return Ok(()),
        }
    }
}
