//! The agent as its controller meets it: over real mutual TLS, and where it matters in front of a
//! real Docker Engine.
//!
//! Tests that need the engine fail with what to install or start if there is none. Images are made
//! with `docker import` from busybox-static, so no registry is needed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests"
)]

mod capture;
mod engine;
mod fake;
mod freeze;
mod images;
mod isolation;
mod layer;
mod pod;
mod process;
#[path = "../../../proto/tests/otlp/receiver.rs"]
mod receiver;
mod refusals;
mod rotation;
mod split;
mod streams;
mod traces;
mod world;
