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
//! <case>/<collection>/custody.jsonl            the case's log until then: who did what, when and why
//! <case>/<collection>/custody.checkpoint       its head, signed
//! <case>/<collection>/custody.checkpoint.tst   what a time-stamping authority says of that, if one was asked
//! <case>/<collection>/verify.sh                checks all of it without us
//! <case>/<collection>/before/...               Kubernetes objects before containment
//! <case>/<collection>/artifacts/...            what was read off the node; with .age behind its name if encrypted
//! <case>/<collection>/signatures/...           of people who vouch for the manifest, added later
//! <case>/custody/custody.jsonl                 the case's log, append-only
//! <case>/custody/custody.checkpoint            signed head of the Merkle log over it
//! ```

pub mod age;
mod bundle;
mod chunks;
mod custody;
mod digest;
pub mod index;
mod keyring;
mod manifest;
mod merkle;
mod names;
#[cfg(test)]
mod schema;
mod sign;
mod source;
mod stamp;
mod stored;
mod tar;
mod timeline;
mod timestamp;
mod verify;

pub use bundle::{BUNDLE_LIMIT, BUNDLE_TYPE, BundleError, OpenBundle, PAYLOAD_TYPE, sign_manifest};
pub use chunks::{CHUNK_SIZE, Digests, DigestsHasher};
pub use custody::{
    CHECKPOINT_LIMIT, Checkpoint, CheckpointError, CustodyError, CustodyLog, ENTRY_LIMIT, Entry,
    EntryError, Event, LINE_LIMIT, LogHead, case_log, origin,
};
pub use digest::{DigestError, Sha256, Sha256Hasher};
pub use keyring::{KEYRING_LIMIT, Keyring};
pub use manifest::{
    Agent, Alteration, AlterationKind, ArtifactRecord, Build, Consistency, Container,
    ContainerRole, LockMode, MANIFEST_LIMIT, Manifest, ManifestError, Method, Missing, Node,
    OMISSIONS, Omission, Outcome, PREDICATE_TYPE, Pod, STATEMENT_TYPE, StorageClaim, StorageLock,
    StorageReceipt, WriteOnce, superseded,
};
pub use merkle::{verify_consistency, verify_inclusion};
pub use names::{
    CaseId, CollectionName, EvidencePath, NameError, export_name, image_name, short_id,
};
pub use sign::{KeyError, Signer, SigningKey, VerifyingKey};
pub use source::{DirSource, EvidenceSource, FILE_LIMIT, Listing, OpenFile};
pub use stamp::{
    CheckpointStamp, StampAuthority, StampError, StampRequest, TOKEN_LIMIT, stamp_time,
};
pub use stored::{Encoded, Encoder, Encoding, StoredForm, decode, open_artifact, without_suffixes};
pub use tar::{
    Anomalies, Anomaly, Completeness, Expansion, FileType, Map, Member, PATH_LIMIT, Part, Sparse,
    TarEnd, TarTime, Unexpanded, Visitor as TarVisitor, Walk as TarWalk,
};
pub use timeline::Moment;
pub use timestamp::{Timestamp, TimestampError};
pub use verify::{Given, Problem, Progress, Stamped, Verdict, verify, verify_watched};

/// File name of the manifest in a collection.
pub const MANIFEST: &str = "manifest.json";

/// File name of the manifest's signature bundle.
pub const BUNDLE: &str = "manifest.sigstore.json";

/// Directory of the counter-signatures in a collection: `<key id>.sigstore.json` each.
pub const SIGNATURES: &str = "signatures";

/// File name of [`VERIFY_SH`] in a collection.
pub const SCRIPT: &str = "verify.sh";

/// The script that checks a collection with bash, openssl, jq and coreutils only.
pub const VERIFY_SH: &str = include_str!("../verify.sh");

/// File name of the custody log.
pub const CUSTODY: &str = "custody.jsonl";

/// File name of the custody log's signed head.
pub const CHECKPOINT: &str = "custody.checkpoint";

/// File name of a collection's token of a time-stamping authority over its checkpoint.
pub const CHECKPOINT_STAMP: &str = "custody.checkpoint.tst";
