//! Bytes that somebody else wrote: hostile tars, real ones beside GNU tar's reading of them, and
//! random damage to everything that this crate parses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]

mod agreement;
mod corpus;
mod ends;
mod fuzz;
mod hostile;
mod image;
mod memory;
mod tars;
