//! The cluster's state behind one lock, and the operations on it that keep the API's guarantees.
//!
//! HTTP handlers and built-in controllers use the same three operations: create, update, delete.

mod create;
mod delete;
mod update;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use crate::admission::Actor;
use crate::refusal::{Outcome, Refusal};
use crate::registry::{Registry, Resource};
use crate::shapes::Shapes;
use crate::store::{Object, Store};
use crate::tokens::Token;

pub(crate) use delete::{DeleteOptions, Deleted};

/// Who writes and with which options.
#[derive(Debug)]
pub(crate) struct By<'a> {
    /// Name in managedFields.
    pub(crate) manager: &'a str,
    /// Whom admission policies see; none: they are not asked.
    pub(crate) actor: Option<Actor>,
    /// Part of a delete of a collection: policies see no name.
    pub(crate) collection: bool,
    /// Everything is checked, nothing is stored.
    pub(crate) dry_run: bool,
    /// Unknown fields of custom resources are errors, not warnings.
    pub(crate) strict: bool,
    /// Filled with what goes into Warning headers.
    pub(crate) warnings: Vec<String>,
    /// A PUT: the whole object is given, so it may lack a resourceVersion only where that is allowed.
    pub(crate) replaces: bool,
    /// The changed object already has its managedFields (server-side apply wrote them).
    pub(crate) applied: bool,
}

impl<'a> By<'a> {
    /// A write by a built-in controller.
    pub(crate) fn controller(manager: &'a str) -> Self {
        Self {
            manager,
            actor: Some(Actor::controller(manager)),
            collection: false,
            dry_run: false,
            strict: false,
            warnings: Vec::new(),
            replaces: false,
            applied: false,
        }
    }

    /// A write by the kubelet of a node.
    pub(crate) fn kubelet(node: &str) -> Self {
        Self {
            actor: Some(Actor::node(node)),
            ..Self::controller("kubelet")
        }
    }

    /// A write that follows from another one, which policies were asked about.
    pub(crate) fn unasked(manager: &'a str) -> Self {
        Self {
            actor: None,
            ..Self::controller(manager)
        }
    }
}

/// Everything the cluster knows.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    /// Bearer tokens issued for service accounts and users.
    pub(crate) tokens: HashMap<String, Token>,
    pub(crate) ca_pem: String,
    next_service_ip: u32,
    next_pod_ip: HashMap<String, u32>,
}

impl State {
    pub(crate) fn new(ca_pem: String) -> Self {
        Self {
            store: Store::default(),
            registry: Registry::built_in(),
            tokens: HashMap::new(),
            ca_pem,
            next_service_ip: 10,
            next_pod_ip: HashMap::new(),
        }
    }

    /// A built-in resource by its table name.
    pub(crate) fn resource(&self, table: &str) -> Outcome<Arc<Resource>> {
        self.registry.table(table).ok_or_else(Refusal::not_served)
    }

    pub(crate) fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Outcome<Object> {
        self.store
            .get(&resource.table, namespace, name)
            .ok_or_else(|| Refusal::not_found(resource, name))
    }

    /// A cluster IP that no service has.
    pub(crate) fn service_ip(&mut self) -> String {
        self.next_service_ip += 1;
        format!(
            "10.96.{}.{}",
            self.next_service_ip / 256 % 256,
            self.next_service_ip % 256
        )
    }

    /// A pod IP of the node's range.
    pub(crate) fn pod_ip(&mut self, node: &str) -> String {
        let position = self
            .store
            .table("nodes")
            .list("")
            .position(|found| crate::json::name(found) == node);
        let subnet = position.map_or(0, |position| position + 1) % 256;
        let next = self.next_pod_ip.entry(node.to_owned()).or_insert(1);
        *next += 1;
        format!("10.244.{subnet}.{}", *next % 255)
    }

    /// `create` for controllers: by table name.
    pub(crate) fn make(&mut self, table: &str, object: Value, manager: &str) -> Outcome<Object> {
        let resource = self.resource(table)?;
        let namespace = crate::json::namespace(&object).to_owned();
        self.create(&resource, &namespace, object, &mut By::controller(manager))
    }

    /// `update` for controllers: changes the stored object in place, whole or only its status.
    pub(crate) fn change(
        &mut self,
        table: &str,
        object: &Value,
        subresource: &str,
        manager: &str,
        change: impl FnOnce(&mut Value),
    ) -> Outcome<Object> {
        let resource = self.resource(table)?;
        let (namespace, name) = (crate::json::namespace(object), crate::json::name(object));
        let mut by = match manager {
            "kubelet" => By::kubelet(crate::json::text(object, "/spec/nodeName")),
            // What the API server does on the way.
            "kube-apiserver" => By::unasked(manager),
            _ => By::controller(manager),
        };
        let change = |old: &Value| {
            let mut new = old.clone();
            change(&mut new);
            Ok(new)
        };
        self.update(&resource, namespace, name, subresource, &mut by, change)
    }

    /// `delete` for controllers.
    pub(crate) fn discard(
        &mut self,
        table: &str,
        object: &Value,
        options: &DeleteOptions,
    ) -> Outcome<Deleted> {
        self.discard_as(
            table,
            object,
            options,
            &By::controller("kube-controller-manager"),
        )
    }

    /// `discard` by somebody else than a controller.
    pub(crate) fn discard_as(
        &mut self,
        table: &str,
        object: &Value,
        options: &DeleteOptions,
        by: &By<'_>,
    ) -> Outcome<Deleted> {
        let resource = self.resource(table)?;
        let (namespace, name) = (crate::json::namespace(object), crate::json::name(object));
        self.delete(&resource, namespace, name, options, by)
    }
}

/// How the fields of a resource merge.
pub(crate) fn shapes(resource: &Resource) -> Shapes<'_> {
    match &resource.custom {
        Some(custom) => Shapes::Custom(&custom.schema),
        None => Shapes::BuiltIn,
    }
}

/// The letters that the API server and the controllers put behind generated names.
pub(crate) fn random_suffix(length: usize) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let bytes = Uuid::new_v4().into_bytes();
    bytes
        .iter()
        .take(length)
        .filter_map(|byte| LETTERS.get(usize::from(*byte) % LETTERS.len()))
        .map(|letter| char::from(*letter))
        .collect()
}

/// A random container id.
pub(crate) fn random_id() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// The state, its lock, and the signal that it changed.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(state: State) -> Self {
        let version = watch::Sender::new(state.store.version());
        Self {
            state: Mutex::new(state),
            version,
        }
    }

    /// Runs with the lock held; afterwards everybody who waits for changes is woken, if there were any.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        // A panic in a test's thread must not make the whole server unusable: the store is consistent between writes.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut state);
        let version = state.store.version();
        drop(state);
        self.version
            .send_if_modified(|last| std::mem::replace(last, version) != version);
        result
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
