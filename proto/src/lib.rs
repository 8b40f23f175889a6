//! The wire contract of Impound: generated protobuf types, who a peer is, and the mutual TLS that
//! proves it. The controller, the agents and the command line all speak through this crate, so a
//! field, an identity rule or a TLS setting exists exactly once.
//!
//! - [`agent::v1`], [`controller::v1`], [`issuer::v1`]: generated from `impound/**/*.proto` (see `tests/generated.rs`).
//! - [`identity`]: [`PeerId`], read from a certificate's single URI name.
//! - [`tls`]: both ends of the connection, reloading of certificates, HTTP/2 settings.
//! - [`hardening`]: what a program that holds a key does first.
//! - [`probe`]: the plain-HTTP server for a kubelet's probes and for metrics.
//! - [`traces`]: spans for an OpenTelemetry collector, joined over both ends.
//! - [`pki`]: issues the three private CAs and their certificates.

pub mod hardening;
pub mod identity;
pub mod pki;
pub mod probe;
pub mod tls;
pub mod traces;

pub use identity::{Namespaces, NodeName, PeerId, ResponderName, Role};

/// Exports and saves of one node at the same time: they compete for one disk, and four cost the agent 12 MiB of memory.
/// An agent refuses more with `RESOURCE_EXHAUSTED`.
pub const BULK_STREAMS: usize = 4;

/// gRPC metadata key that carries the case id, so both ends' logs join.
pub const CASE_METADATA: &str = "impound-case";

/// What an agent's message begins with that was not allowed to isolate pods.
pub const ISOLATION_OFF: &str = "isolation at the node is off";

/// What one node's agent serves.
pub mod agent {
    /// Version 1 of `impound.agent`.
    // Generated text: doc comments come from the .proto file, not every item has one.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        include!("gen/impound.agent.v1.rs");

        /// Encoded `FileDescriptorSet` of this package and what it imports, for gRPC reflection.
        pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/impound.agent.v1.bin");
    }
}

/// What the controller serves.
pub mod controller {
    /// Version 1 of `impound.controller`.
    // Generated text: doc comments come from the .proto file, not every item has one.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        include!("gen/impound.controller.v1.rs");

        /// Encoded `FileDescriptorSet` of this package and what it imports, for gRPC reflection.
        pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/impound.controller.v1.bin");
    }
}

/// How an agent gets its certificate from the controller.
pub mod issuer {
    /// Version 1 of `impound.issuer`.
    // Generated text: doc comments come from the .proto file, not every item has one.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        include!("gen/impound.issuer.v1.rs");

        /// Encoded `FileDescriptorSet` of this package and what it imports, for gRPC reflection.
        pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/impound.issuer.v1.bin");
    }
}
