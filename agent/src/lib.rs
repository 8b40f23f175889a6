//! The agent of one node: it reads containers out of the local runtime for the controller.
//!
//! Data path: [`runtime`] (Docker today) -> `stream` (hash, completeness, chunks) -> [`service`]
//! (gRPC over mutual TLS) -> the controller. [`run()`] wires it up; `main.rs` only parses arguments.
//!
//! It runs as one process, or split by privilege (`PRIVILEGES.md`): `front` has the key and the network
//! and nothing else, `local` is its way to the parts that have the runtime. [`confine`] takes from each
//! process the system calls that it has no use for.
//!
//! The agent holds no storage credential and keeps nothing: what it reads is on the wire within a
//! few chunks. It changes the node in four ways only, all asked for: a commit makes an image, that
//! image can be removed again, containers stand still for a limited time (`freeze`), and [`isolate`] (off
//! unless allowed) sets a table of rules in a pod's network namespace.

mod capture;
pub mod config;
pub mod confine;
mod disk;
pub mod enroll;
mod freeze;
mod front;
pub mod isolate;
mod local;
mod methods;
mod reach;
mod ready;
mod run;
pub mod runtime;
mod serve;
pub mod service;
mod stream;

pub use disk::Disk;
pub use local::{SocketPath, listen};
pub use methods::Part;
pub use run::{RunError, run, traces};
pub use serve::{Agent, Front, Worker};
