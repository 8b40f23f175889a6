//! The evidence format of Impound: what is written, how it is signed, and the one way to check it.
//!
//! Place in the data path: the agent judges tars with [`TarEnd`], the controller names, hashes,
//! records and signs, and everybody (controller, `impound verify`) checks with [`verify`]. This
//! crate knows no Kubernetes, gRPC or container runtime.
//!
//! A collection is a directory:
//!
//! ```text
//! <case>/<collection>/manifest.json            in-toto Statement v1, one subject per artifact
//! <case>/<collection>/manifest.sigstore.json   Sigstore bundle v0.3 over manifest.json
//! <case>/<collection>/custody.jsonl            who did what, when and why; append-only
//! <case>/<collection>/custody.checkpoint       signed head of the Merkle log over custody.jsonl
//! <case>/<collection>/before/...               Kubernetes objects before containment
//! <case>/<collection>/artifacts/...            what was read off the node
//! ```

mod digest;
mod names;
mod tar_end;

pub use digest::{DigestError, Sha256, Sha256Hasher};
pub use names::{
    CaseId, CollectionName, EvidencePath, NameError, export_name, image_name, short_id,
};
pub use tar_end::{Completeness, TarEnd};
