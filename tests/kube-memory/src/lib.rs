//! An in-memory Kubernetes API server for tests and the demo.
//!
//! Unmodified `kube` clients and `kubectl` talk to it over HTTPS. What it answers was taken from recordings of a real
//! server (`recordings/`), and a test replays them. The built-in controllers that matter for containing a pod run in
//! it: owners that release, adopt and replace pods, the scheduler, endpoints, budgets, taints, garbage collection.
//!
//! It keeps nothing on disk, has no admission plug-ins beyond defaults and ValidatingAdmissionPolicies, and enforces no
//! RBAC.

mod access;
mod admission;
mod api;
mod audit;
mod cel;
mod clock;
mod cluster;
mod controllers;
mod core;
mod crd;
mod door;
mod fault;
mod json;
mod kinds;
mod managed;
mod patch;
mod pki;
mod refusal;
mod registry;
mod request;
mod selector;
mod server;
mod shapes;
mod state;
mod store;
mod tokens;

pub use audit::RequestRecord;
pub use cluster::{Cluster, ClusterConfig};
pub use fault::{Effect, Fault, FaultHandle};
