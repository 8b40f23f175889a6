//! The built-in controllers: woken by changes, they look at what changed and write like any other client.

mod budgets;
mod daemon_set;
mod definitions;
mod deployment;
mod endpoints;
mod garbage;
mod job;
mod kubelet;
mod namespaces;
mod nodes;
mod owned;
mod replica_set;
pub(crate) mod scheduler;
mod stateful_set;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::clock;
use crate::core::Core;
use crate::json;
use crate::refusal::{Outcome, Refusal};
use crate::state::State;
use crate::store::Dirty;

/// Namespaces, nodes and the service every cluster starts with.
/// `kubelet`: who runs their pods, which each node is told to say.
pub(crate) fn furnish(state: &mut State, node_names: &[String], kubelet: &str) -> Outcome<()> {
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        state.make("namespaces", namespace, "kube-apiserver")?;
    }
    for node in node_names {
        let (name, address) = node.split_once('=').unwrap_or((node, "127.0.0.1"));
        nodes::register(state, name, address, kubelet)?;
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default",
                     "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"clusterIP": "10.96.0.1",
                 "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}]},
    });
    state.make("services", service, "kube-apiserver").map(drop)
}

/// Runs all controllers until told to stop. With `kubelet`, also plays kubelet; its value is the time a pod takes to end.
pub(crate) async fn run(
    core: Arc<Core>,
    kubelet: Option<Duration>,
    mut stop: watch::Receiver<bool>,
) {
    let mut changes = core.shared.changes();
    let mut held = core.held.subscribe();
    loop {
        while !*held.borrow_and_update() {
            let dirty = core
                .shared
                .with(|state| std::mem::take(&mut state.store.dirty));
            if dirty.is_empty() {
                break;
            }
            round(&core, &Work::of(&dirty), kubelet);
            tokio::task::yield_now().await;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = held.changed() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// What changed, by namespace.
#[derive(Debug, Default)]
struct Work {
    /// Namespace (`""` for cluster-wide objects) to tables.
    changed: BTreeMap<String, BTreeSet<Arc<str>>>,
    deletions: bool,
}

impl Work {
    fn of(dirty: &[Dirty]) -> Self {
        let mut work = Self::default();
        for change in dirty {
            work.changed
                .entry(change.namespace.clone())
                .or_default()
                .insert(change.table.clone());
            work.deletions |= change.deleted;
        }
        work
    }

    fn touches(&self, namespace: &str, tables: &[&str]) -> bool {
        self.changed
            .get(namespace)
            .is_some_and(|changed| tables.iter().any(|table| changed.contains(*table)))
    }
}

type Controller = fn(&mut State, &str) -> Outcome<()>;

/// Controllers of one namespace and what they look at. Owners before the pods they make.
const IN_NAMESPACE: &[(&str, Controller, &[&str])] = &[
    (
        "deployment",
        deployment::sync,
        &["deployments.apps", "replicasets.apps"],
    ),
    (
        "replicaset",
        replica_set::sync,
        &["replicasets.apps", "pods"],
    ),
    (
        "statefulset",
        stateful_set::sync,
        &["statefulsets.apps", "pods"],
    ),
    ("daemonset", daemon_set::sync, &["daemonsets.apps", "pods"]),
    ("job", job::sync, &["jobs.batch", "pods"]),
    ("endpoints", endpoints::sync, &["services", "pods"]),
    (
        "budgets",
        budgets::sync,
        &["poddisruptionbudgets.policy", "pods"],
    ),
];

fn round(core: &Arc<Core>, work: &Work, kubelet: Option<Duration>) {
    let run = |name: &str, namespace: &str, work: &dyn Fn(&mut State) -> Outcome<()>| {
        if let Err(refusal) = core.shared.with(|state| work(state)) {
            tracing::warn!(controller = name, namespace, %refusal, "a controller's write was refused");
        }
    };
    if work.touches("", &["nodes"]) {
        run("nodes", "", &nodes::sync);
        let namespaces = core.shared.with(|state| state.store.list("namespaces", ""));
        for namespace in namespaces.iter().map(|namespace| json::name(namespace)) {
            run("daemonset", namespace, &|state| {
                daemon_set::sync(state, namespace)
            });
        }
    }
    if work.touches("", &[crate::crd::DEFINITIONS]) || work.deletions {
        run("definitions", "", &definitions::sync);
    }
    for namespace in work
        .changed
        .keys()
        .filter(|namespace| !namespace.is_empty())
    {
        for (name, sync, tables) in IN_NAMESPACE {
            if work.touches(namespace, tables) {
                run(name, namespace, &|state| sync(state, namespace));
            }
        }
    }
    if work.touches("", &["nodes"])
        || work
            .changed
            .iter()
            .any(|(_, tables)| tables.contains("pods"))
    {
        run("scheduler", "", &scheduler::sync);
    }
    run("garbage", "", &|state| {
        garbage::sync(state, work.changed.keys(), work.deletions)
    });
    if work.touches("", &["namespaces"]) || work.deletions {
        run("namespaces", "", &namespaces::sync);
    }
    if let Some(termination) = kubelet
        && work.changed.values().any(|tables| tables.contains("pods"))
    {
        kubelet::sync(core, termination);
    }
}

/// Logs what a controller could live with: the next change brings it back to the object.
fn tolerate<T>(what: &str, result: Outcome<T>) -> Option<T> {
    result
        .map_err(|refusal: Refusal| tracing::debug!(what, %refusal, "left for the next round"))
        .ok()
}

/// Who tells of an event.
#[derive(Debug, Clone, Copy)]
struct Teller<'a> {
    component: &'a str,
    host: &'a str,
}

/// Writes an event about an object.
fn tell(
    state: &mut State,
    about: &Value,
    field_path: &str,
    warning: bool,
    reason: &str,
    message: &str,
    teller: Teller<'_>,
) {
    let namespace = match json::namespace(about) {
        "" => "default",
        namespace => namespace,
    };
    let mut involved = json!({
        "kind": json::text(about, "/kind"), "name": json::name(about), "uid": json::uid(about),
        "apiVersion": json::text(about, "/apiVersion"),
        "resourceVersion": json::text(about, "/metadata/resourceVersion"),
    });
    if !json::namespace(about).is_empty() {
        json::put(&mut involved, &["namespace"], namespace);
    }
    if !field_path.is_empty() {
        json::put(&mut involved, &["fieldPath"], field_path);
    }
    let now = clock::now();
    let mut source = json!({"component": teller.component});
    if !teller.host.is_empty() {
        json::put(&mut source, &["host"], teller.host);
    }
    let mut event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": format!("{}.{:x}", json::name(about), clock::nanos()), "namespace": namespace},
        "involvedObject": involved, "reason": reason, "message": message, "source": source,
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        "type": if warning { "Warning" } else { "Normal" },
        "reportingComponent": teller.component, "reportingInstance": teller.host,
    });
    if teller.component == "default-scheduler" {
        // The scheduler writes through the newer events API; this is how such events look in the older one.
        for field in ["firstTimestamp", "lastTimestamp", "count"] {
            json::take(&mut event, &[field]);
        }
        json::put(&mut event, &["source"], json!({}));
        json::put(&mut event, &["eventTime"], clock::now_micros());
        json::put(
            &mut event,
            &["action"],
            if warning { "Scheduling" } else { "Binding" },
        );
        json::put(&mut event, &["reportingInstance"], "default-scheduler-0");
    }
    tolerate("event", state.make("events", event, teller.component));
}
