//! Collecting, from an agent over real mutual TLS into a real store: what arrives, what breaks, and
//! what a crash leaves. Every collection that ends is checked by `impound_evidence::verify`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

mod agent;
mod breaking;
mod bucket;
mod crashing;
mod custody;
mod docker;
mod encrypted;
mod failing;
mod fixture;
mod interrupted;
mod layer;
mod revocation;
mod specimen;
mod stamped;
mod whole;
