//! The agent of one node: it reads containers out of the local runtime for the controller.
//!
//! Data path: [`runtime`] (Docker today) -> `stream` (hash, completeness, chunks) -> [`service`]
//! (gRPC over mutual TLS) -> the controller. [`run()`] wires it up; `main.rs` only parses arguments.
//!
//! The agent holds no storage credential and keeps nothing: what it reads is on the wire within a
//! few chunks. It changes the node in three ways only, all asked for: a commit makes an image, that
//! image can be removed again, and [`isolate`] (off unless allowed) sets a table of rules in a pod's
//! network namespace.

pub mod config;
mod disk;
pub mod isolate;
mod ready;
mod run;
pub mod runtime;
pub mod service;
mod stream;

pub use disk::Disk;
pub use run::{Agent, RunError, run};
