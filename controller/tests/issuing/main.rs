//! Agents get their certificates from the controller, and nobody else does: over real TLS, against the
//! in-memory Kubernetes API, with the real agent's side.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod kubelet;
mod pod_certificates;
mod refusals;
mod renewal;
mod world;
