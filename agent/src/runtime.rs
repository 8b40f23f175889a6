//! What the agent needs from a container runtime. `docker` implements it; another runtime is another
//! implementation, and the tests have one that misbehaves.
//!
//! Nothing here runs, stops, deletes or enters a container: evidence can only be read. The calls that
//! change the node are `commit` and `remove_image`, and `pause` with its `unpause`.

pub mod docker;
mod reference;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::BoxStream;

pub use reference::{ImageReference, ReferenceError};

/// Bytes as the runtime sends them, in whatever pieces. An error item is the last one and means
/// that what came before is not complete.
pub type ByteStream = BoxStream<'static, Result<Bytes, RuntimeError>>;

/// Largest description of a container that is read, bytes. Real ones have a few tens of KiB; a
/// container with thousands of environment variables and mounts has a few MiB.
pub const INSPECT_LIMIT: usize = 16 << 20;

/// A container runtime of this node. Every method's error says what the runtime answered.
#[tonic::async_trait]
pub trait ContainerRuntime: Send + Sync + 'static {
    /// The runtime's name, e.g. "docker".
    fn name(&self) -> &'static str;

    /// The runtime's version. Also the cheapest proof that it answers.
    async fn version(&self) -> Result<String, RuntimeError>;

    /// A process of the runtime itself, which is in the node's own namespaces.
    async fn process(&self) -> Result<u32, RuntimeError> {
        Err(RuntimeError::Refused {
            message: format!("{} does not tell its process", self.name()),
        })
    }

    /// Every container, running or not.
    async fn containers(&self) -> Result<Vec<Container>, RuntimeError>;

    /// The runtime's description of a container, byte for byte, at most [`INSPECT_LIMIT`].
    async fn inspect(&self, id: &ContainerId) -> Result<Reading<Bytes>, RuntimeError>;

    /// Bytes that the container's writable layer takes, which a commit copies.
    async fn writable_size(&self, id: &ContainerId) -> Result<u64, RuntimeError>;

    /// What the container changed against its image, in the runtime's order.
    async fn changes(
        &self,
        id: &ContainerId,
    ) -> Result<BoxStream<'static, Result<Change, RuntimeError>>, RuntimeError>;

    /// The container's file system as a tar.
    async fn export(&self, id: &ContainerId) -> Result<Reading<ByteStream>, RuntimeError>;

    /// Makes an image of the container's file system and gives the image's id.
    async fn commit(&self, id: &ContainerId, commit: &Commit)
    -> Result<Done<String>, RuntimeError>;

    /// An image of this node, or `None`.
    async fn image(&self, reference: &ImageReference) -> Result<Option<Image>, RuntimeError>;

    /// An image as an archive that the runtime can load again.
    async fn save(&self, reference: &ImageReference) -> Result<Reading<ByteStream>, RuntimeError>;

    /// Makes every process of a running container stand still.
    async fn pause(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        Err(RuntimeError::Refused {
            message: format!("{} does not pause containers such as {id}", self.name()),
        })
    }

    /// Lets a paused container go on.
    async fn unpause(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        Err(RuntimeError::Refused {
            message: format!("{} does not pause containers such as {id}", self.name()),
        })
    }

    /// Removes the reference, and the image with its last one. False: there was none.
    async fn remove_image(&self, reference: &ImageReference) -> Result<Done<bool>, RuntimeError>;
}

/// Something that the runtime changed, and the call that did it.
pub struct Done<A> {
    /// The call as it was sent: its line, and its body behind a space.
    pub api_call: String,
    /// What it answered.
    pub answer: A,
}

/// Something read from the runtime, and the call that it came from.
pub struct Reading<B> {
    /// E.g. "GET /v1.41/containers/<id>/export".
    pub api_call: String,
    /// What it answers.
    pub bytes: B,
}

/// A container's full id: 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// Takes a runtime's full id.
    ///
    /// # Errors
    /// If it is anything else than 64 lower-case hexadecimal digits.
    pub fn parse(id: &str) -> Result<Self, RuntimeError> {
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if id.len() == 64 && id.bytes().all(hexadecimal) {
            Ok(Self(id.to_owned()))
        } else {
            Err(RuntimeError::Malformed {
                call: "list of containers".to_owned(),
                why: format!("expected an id of 64 hexadecimal digits, found {id:?}"),
            })
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One container in a list.
#[derive(Clone, Debug)]
pub struct Container {
    /// Full id.
    pub id: ContainerId,
    /// Name in the runtime, without a leading slash.
    pub name: String,
    /// Image reference as the runtime gives it.
    pub image: String,
    /// Full id of the image.
    pub image_id: String,
    /// What it is doing.
    pub state: State,
    /// When it was made.
    pub created: SystemTime,
    /// The container's labels; the kubelet's are among them.
    pub labels: HashMap<String, String>,
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the runtime's own words")]
pub enum State {
    Unknown,
    Created,
    Running,
    Paused,
    Restarting,
    Exited,
    Dead,
    Removing,
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How it changed.
    pub kind: ChangeKind,
    /// Absolute path inside the container, as the runtime gave it.
    pub path: String,
}

/// How a path changed against the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// New.
    Added,
    /// Changed; of a directory perhaps only what is in it.
    Changed,
    /// Gone.
    Deleted,
}

/// How an image is to be made of a container.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The image's name, which must be free.
    pub reference: ImageReference,
    /// Kept in the image's history.
    pub message: String,
    /// Kept in the image.
    pub author: String,
    /// Added to the container's own labels.
    pub labels: HashMap<String, String>,
    /// Pause the container meanwhile.
    pub pause: bool,
}

/// An image of this node.
#[derive(Clone, Debug)]
pub struct Image {
    /// Full id, "sha256:<64 hex>".
    pub id: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// Bytes of its layers.
    pub size: u64,
}

/// Why the runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nobody answers.
    #[error("the container runtime does not answer at {}: is it running, and is the path right?", at.display())]
    Unreachable {
        /// Its socket.
        at: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("the container runtime did not answer {call} within {seconds} s")]
    Timeout {
        /// The call.
        call: String,
        /// How long we waited.
        seconds: u64,
    },
    /// No such container or image.
    #[error("the container runtime does not know it: {message}")]
    NotFound {
        /// The runtime's words.
        message: String,
    },
    /// Not in the present state.
    #[error("the container runtime refuses: {message}")]
    Refused {
        /// The runtime's words.
        message: String,
    },
    /// An error of the runtime's own.
    #[error("the container runtime failed at {call} with status {status}: {message}")]
    Failed {
        /// The call.
        call: String,
        /// HTTP status.
        status: u16,
        /// The runtime's words.
        message: String,
    },
    /// The answer ended in the middle.
    #[error("the container runtime broke off its answer to {call}")]
    Broken {
        /// The call.
        call: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer that is not understood.
    #[error("the container runtime's answer to {call} is not understood: {why}")]
    Malformed {
        /// The call.
        call: String,
        /// What was expected and what came.
        why: String,
    },
}
