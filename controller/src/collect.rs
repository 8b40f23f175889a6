//! Takes a pod's evidence off its node into the store and seals it.
//!
//! ```text
//! Collector::run
//!   session   create or resume the collection; what the custody log and the store say is there
//!   before/*  the Kubernetes objects as they were
//!   quick     inspect and diff of every container: the suspect's, then its neighbours'
//!   full      of each of the suspect's containers: layer, export, then commit and save of an image
//!   image     removes it from the node again, beside what follows
//!   derive    lists each tar while it arrives, and ends that while the next one does
//!   close     no node is asked for evidence any more
//!   containment.json   the Quarantine as it then stands
//!   timeline  what happened when
//!   finish    check, log, timestamp, manifest, signature
//! ```
//! Every step can be repeated: a second `run` of the same job after a crash at any point keeps what
//! is stored, gives what was cut off a name of its own, and goes on. One artifact that fails never
//! stops another; it is recorded as missing, with the reason, in the signed manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::try_join;
use impound_evidence::age::{AgeError, Identity, Recipient};
use impound_evidence::{
    Build, CaseId, CollectionName, EvidencePath, NameError, Outcome, Sha256, Sha256Hasher,
    StampAuthority, Timestamp,
};
use impound_proto::PeerId;
use impound_proto::traces::TARGET;
use tokio::sync::{Semaphore, mpsc};
use tracing::{Instrument, Span};

use crate::agents::AgentConnector;
use crate::progress::{Board, ProgressSink};
use crate::seal::{CustodyAppender, SealError};
use crate::store::{CollectionId, Store, StoreError};
use crate::timestamp::TimestampAuthority;
use budget::Budget;
pub use budget::Limits;
pub use containment::{Containment, ContainmentSource};
use keys::Keys;
pub use left::{Begun, look as look_for_images};
use session::Session;

mod attempt;
mod before;
mod budget;
mod containment;
mod derive;
mod diff;
mod encrypted;
mod failure;
mod fetch;
mod finish;
mod full;
mod image;
mod keys;
mod left;
mod listing;
mod mounts;
mod note;
mod partial;
mod quick;
mod receive;
mod session;
mod stamp;
mod standstill;
mod taking_up;
mod timeline;

/// Exports and images that are received at the same time, of all collections together. Each holds up to 17
/// threads of the runtime's pool (a writer and a re-reader for the tar and for each of its larger listings, two
/// indexes and a hash) and some 20 MiB: without a bound they would wait for each other's threads, and memory would
/// end first. Those that wait have not asked their agent for anything yet. The default of `--collect-streams`.
pub const EXPORTS: usize = 16;
/// Tars whose listings wait for the rest of them, each with what an export holds but for its connection.
const BEHIND: usize = 8;
/// Layers that are received at the same time: they are small, and evictions wait for them, so that they don't
/// wait for exports.
const LAYERS: usize = 8;

/// Collects evidence. One for the whole process.
pub struct Collector {
    store: Arc<dyn Store>,
    exports: Semaphore,
    layers: Semaphore,
    behind: Arc<Semaphore>,
    budget: Budget,
    agents: AgentConnector,
    custody: Arc<CustodyAppender>,
    build: Build,
    retry: Retry,
    recipients: Vec<Recipient>,
    keys: Keys,
    timestamps: Option<Arc<TimestampAuthority>>,
}

/// What to collect, for whom and why.
#[derive(Debug, Clone)]
pub struct CollectionJob {
    /// The case.
    pub case: CaseId,
    /// The collection's name, never used before in the case.
    pub name: CollectionName,
    /// Identity of the requester's certificate.
    pub requested_by: String,
    /// What the custody log calls the request if it was authorised, see
    /// [`crate::reconcile::custody::request`]; none if nothing can have authorised it.
    pub request: Option<String>,
    /// The requester's reason, word for word.
    pub reason: String,
    /// uid of the `kube-system` namespace.
    pub cluster: String,
    /// The suspect.
    pub target: TargetPod,
    /// Kubernetes objects as they were before containment: file name, e.g. `pod.json`, and bytes.
    pub before: Vec<(String, Vec<u8>)>,
    /// The other pods on the node that have containers there.
    pub neighbours: Vec<TargetPod>,
    /// Pause each container while its image is made.
    pub pause: bool,
    /// Why that is not done though it was asked for.
    pub unpaused: Option<String>,
    /// Pause each container while it is exported, all together for no longer than this.
    pub freeze: Option<Duration>,
    /// Who can read the evidence, besides those whom the controller encrypts everything to; if there is nobody of
    /// either, it is not encrypted.
    pub encrypt_to: Vec<Recipient>,
    /// `<namespace>/<name>` of the Quarantine that asks for it.
    pub quarantine: Option<String>,
    /// What that Quarantine came to, read when everything else is stored.
    pub containment: Option<ContainmentSource>,
}

impl CollectionJob {
    /// The collection.
    fn at(&self) -> CollectionId {
        CollectionId {
            case: self.case.clone(),
            name: self.name.clone(),
        }
    }
}

/// A pod on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its metadata.uid; of a static pod the annotation `kubernetes.io/config.hash`, which is how the
    /// runtime knows it.
    pub uid: String,
    /// Name of its Node.
    pub node: String,
    /// By the name of a container, the imageID of its status: what the registry knows the image by.
    pub image_digests: BTreeMap<String, String>,
}

/// A collection that is signed.
#[derive(Debug, Clone)]
pub struct SealedCollection {
    /// Whether everything that was asked for is there.
    pub outcome: Outcome,
    /// SHA-256 of manifest.json.
    pub manifest_sha256: Sha256,
    /// Where the collection is, as a URL.
    pub location: String,
    /// Whether the store keeps what it has, for people.
    pub storage: String,
    /// What is not there or incomplete, one line each with the path and why.
    pub missing: Vec<String>,
    /// What somebody should look after, e.g. an image that could not be removed from the node.
    pub warnings: Vec<String>,
}

/// How often a broken attempt is repeated.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts at one artifact, at least one.
    pub attempts: u32,
    /// Wait before the second; doubles each time.
    pub delay: Duration,
}

impl Default for Retry {
    /// Three attempts ride out a restart of the agent; each costs a full read of the container, so
    /// more would rather harm the node than help.
    fn default() -> Self {
        Self {
            attempts: 3,
            delay: Duration::from_secs(2),
        }
    }
}

impl Retry {
    /// Wait before attempt `next`, counted from 1.
    fn before(&self, next: u32) -> Duration {
        // At most a minute, whatever the number of attempts.
        self.delay
            .saturating_mul(1 << next.saturating_sub(2).min(5))
            .min(Duration::from_secs(60))
    }
}

/// Why a collection could not be sealed. `run` may be called again; it goes on where it was.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The store failed where nothing can be recorded any more, or somebody else writes there.
    #[error("collection {at} can't be written")]
    Store {
        /// `<case>/<collection>`
        at: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The custody log or the seal could not be written.
    #[error("collection {at} can't be recorded or sealed")]
    Seal {
        /// `<case>/<collection>`
        at: String,
        /// Why.
        #[source]
        source: Box<SealError>,
    },
    /// The collection of that name is somebody else's.
    #[error("collection {at} was begun for another request ({found}); choose another name")]
    OtherRequest {
        /// `<case>/<collection>`
        at: String,
        /// What its custody log says.
        found: String,
    },
    /// A file that the custody log doesn't know.
    #[error(
        "{path} is in collection {at}, and its custody log knows nothing of it; somebody else has put it there, so the collection can't be sealed: look at it, remove it and try again"
    )]
    Foreign {
        /// `<case>/<collection>`
        at: String,
        /// The file.
        path: EvidencePath,
    },
    /// A file that the custody log knows is gone.
    #[error(
        "{path} was stored in collection {at} and is gone; the collection can't be sealed: collect again under another name"
    )]
    Gone {
        /// `<case>/<collection>`
        at: String,
        /// The file.
        path: EvidencePath,
    },
    /// The note of an interrupted collection can't be read, or is another than was logged.
    #[error(
        "the note beside collection {at} can't be used: {reason}; collect again under another name"
    )]
    Note {
        /// `<case>/<collection>`
        at: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing can be encrypted.
    #[error("collection {at} can't be encrypted")]
    Encryption {
        /// `<case>/<collection>`
        at: String,
        /// Why.
        #[source]
        source: AgeError,
    },
    /// The manifest in the store is not the one that belongs there.
    #[error(
        "{file} of collection {at} is not what this controller would write; it can't be sealed: collect again under another name"
    )]
    NotOurs {
        /// `<case>/<collection>`
        at: String,
        /// `manifest.json`, `manifest.sigstore.json` or `custody.checkpoint.tst`
        file: &'static str,
    },
    /// A name that can't be part of a path.
    #[error("collection {at}: {what} can't be part of a path")]
    Name {
        /// `<case>/<collection>`
        at: String,
        /// Which name.
        what: &'static str,
        /// Why not.
        #[source]
        source: NameError,
    },
}

impl CollectError {
    /// Whether another `run` may succeed without anybody doing something.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.is_transient(),
            Self::Seal { source, .. } => match source.as_ref() {
                SealError::Store(source) => source.is_transient(),
                source => matches!(source, SealError::Contended { .. }),
            },
            _ => false,
        }
    }
}

impl Collector {
    /// `custody` writes and signs all custody logs of this process. Blocks while it hashes
    /// the program's own file, for the manifest.
    ///
    /// # Errors
    /// If that can't be read.
    pub fn new(
        store: Arc<dyn Store>,
        agents: AgentConnector,
        custody: Arc<CustodyAppender>,
    ) -> io::Result<Self> {
        Ok(Self {
            store,
            exports: Semaphore::new(EXPORTS),
            layers: Semaphore::new(LAYERS),
            behind: Arc::new(Semaphore::new(BEHIND)),
            budget: Budget::default(),
            agents,
            custody,
            build: this_build()?,
            retry: Retry::default(),
            recipients: Vec::new(),
            keys: Keys::default(),
            timestamps: None,
        })
    }

    /// Other attempts and waits than the default.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Encrypts every collection to these, and to those that it asks for besides.
    #[must_use]
    pub fn with_recipients(mut self, recipients: Vec<Recipient>) -> Self {
        self.recipients = recipients;
        self
    }

    /// Has checkpoints dated by a time-stamping authority.
    #[must_use]
    pub fn with_timestamps(mut self, authority: Option<Arc<TimestampAuthority>>) -> Self {
        self.timestamps = authority;
        self
    }

    /// What timestamps are checked with, if an authority is asked for them.
    #[must_use]
    pub fn stamp_authority(&self) -> Option<Arc<StampAuthority>> {
        self.timestamps.as_deref().map(TimestampAuthority::trusted)
    }

    /// Within these bounds.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        let streams = limits.streams.map_or(EXPORTS, NonZeroUsize::get);
        self.exports = Semaphore::new(streams);
        self.budget = Budget::new(limits);
        self
    }

    /// Other numbers of exports and layers at the same time than the default.
    #[must_use]
    pub fn with_room_for(mut self, exports: usize, layers: usize) -> Self {
        (self.exports, self.layers) = (Semaphore::new(exports), Semaphore::new(layers));
        self
    }

    /// Whether a collection of this name was begun or sealed in its case.
    ///
    /// # Errors
    /// If the store does not say.
    pub async fn is_stored(&self, at: &CollectionId) -> Result<bool, StoreError> {
        let stored = self.store.collections(&at.case).await?;
        Ok(stored.contains(&at.name))
    }

    /// Collects and seals, or goes on with a collection that was interrupted. A sealed one is left
    /// as it is and described. May be dropped at any point.
    ///
    /// # Errors
    /// Only if the collection can't be sealed at all, see [`CollectError`]; what can't be had from
    /// the node makes it partial instead.
    pub async fn run(
        &self,
        job: CollectionJob,
        report: &dyn ProgressSink,
    ) -> Result<SealedCollection, CollectError> {
        // Wiped with this run, unless that fails and may come again: what it has encrypted is read then.
        let mut key = self.keys.take(&job.at());
        let outcome = self.run_with(&job, report, &mut key).await;
        if let (Err(error), Some(key)) = (&outcome, key)
            && error.is_transient()
        {
            self.keys.keep(job.at(), key);
        }
        outcome
    }

    /// Lets go of what was kept for a next run of a collection that does not come, or not here.
    pub fn forget(&self, at: &CollectionId) {
        self.keys.forget(at);
    }

    async fn run_with(
        &self,
        job: &CollectionJob,
        report: &dyn ProgressSink,
        key: &mut Option<Identity>,
    ) -> Result<SealedCollection, CollectError> {
        let (tars, mut stored) = derive::tars();
        let (saved, mut images) = mpsc::unbounded_channel();
        let session = Session::open(self, job, Board::new(report), tars, saved, key).await?;
        if let Some(sealed) = session.sealed().await? {
            return Ok(sealed);
        }
        session.take_up().await?;
        if session.is_sealing().await {
            session.check_sealing().await?;
            return session.seal().instrument(seal()).await;
        }
        let left = session.images_left().await?;
        let collecting = Box::pin(async {
            if !session.is_closed().await? {
                session.collect(&mut stored).await?;
                session.close().await?;
            }
            session.store_containment().await?;
            session.store_timeline().await?;
            session.no_more_images();
            Ok(())
        });
        try_join!(collecting, session.remove_images(left, &mut images))?;
        session.begin_sealing().await?;
        session.seal().instrument(seal()).await
    }

    /// How the custody log calls this controller.
    fn who() -> String {
        PeerId::Controller.to_string()
    }
}

impl Session<'_> {
    /// Everything that the nodes have, and the listings of it.
    async fn collect(&self, stored: &mut derive::Stored) -> Result<(), CollectError> {
        let taking = async {
            try_join!(self.store_before(), self.describe_suspect())?;
            try_join!(self.describe_neighbours(), self.full_stage())?;
            self.no_more_tars().await;
            Ok(())
        };
        try_join!(taking, self.list_tars(stored))?;
        self.derive_missing().await
    }
}

fn seal() -> Span {
    tracing::info_span!(target: TARGET, "seal")
}

/// An instant of the wire contract; none if it is none.
fn instant(time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::from_unix(time.seconds, time.nanos))
}

/// What runs here. Read once: the file may be replaced while we run.
fn this_build() -> io::Result<Build> {
    static BUILD: OnceLock<Build> = OnceLock::new();
    if let Some(build) = BUILD.get() {
        return Ok(build.clone());
    }
    let mut file = File::open("/proc/self/exe")?;
    let mut hasher = Sha256Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = io::Read::read(&mut file, &mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        hasher.update(bytes);
    }
    let build = Build {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        executable_sha256: Some(hasher.finish()),
    };
    Ok(BUILD.get_or_init(|| build).clone())
}
