//! Containment end to end: the controller as a process of its own, a responder over mutual TLS, and
//! a Kubernetes API.
//!
//! With `KUBECONFIG` set the suite runs against that cluster, else against the in-memory one; faults and
//! request log are there in both (README, Development). Tests that need what a real one has not say so and use the
//! other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that finds something else than it expects is to panic"
)]

#[path = "../collection/agent.rs"]
#[allow(dead_code, reason = "its faults are for the tests of collecting")]
mod agent;
mod agent_crashes;
mod blocked;
mod crashes;
mod custody;
mod doctor;
mod drift;
mod events;
mod evictions;
mod faults;
mod given_up;
mod guard;
mod health;
mod idle;
mod isolation;
mod kinds;
mod late;
mod outcome;
mod policies;
mod procedure;
mod races;
#[path = "../../../proto/tests/otlp/receiver.rs"]
mod receiver;
mod refusals;
mod refused;
mod release;
mod renamed;
mod replicas;
mod restarts;
mod rotation;
mod sweeps;
mod taken;
mod waiting;
mod world;
