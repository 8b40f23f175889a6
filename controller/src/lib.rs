//! The controller: contains suspect pods through the Kubernetes API, takes their evidence off
//! their nodes and seals it in write-once storage.
//!
//! The data path, by file: [`reconcile`] decides and records, [`contain`] speaks to the Kubernetes
//! API, [`agents`] and [`isolate`] to the node's agent, [`collect`] receives and checks, [`store`] keeps,
//! [`seal`] signs. [`service`] is how responders and platforms ask for it. [`issue`] gives the agents
//! their certificates.

pub mod agents;
pub mod claims;
pub mod collect;
pub mod config;
pub mod contain;
pub mod describe;
pub mod health;
pub mod isolate;
pub mod issue;
pub mod kubernetes;
pub mod leader;
mod locked;
pub mod metrics;
pub mod nodes;
pub mod progress;
pub mod reconcile;
pub mod resources;
pub mod revoked;
pub mod run;
pub mod seal;
pub mod service;
pub mod store;
pub mod sweep;
pub mod timestamp;
