//! Reads files off the node itself, past the runtime: what the runtime's own export cuts away.
//!
//! ```text
//! locate   container -> its process -> /proc/PID/mountinfo -> upperdir -> an open directory
//! walk     directory -> members, one after the other; follows no link, crosses no mount
//! tar      member -> PAX and ustar headers
//! output   bytes -> pieces -> stream
//! ```
//! What comes out is a POSIX tar that GNU tar and bsdtar read: times to the nanosecond (also of access,
//! change and birth), all extended attributes, holes, file flags, whiteouts as they lie on the disk.
//! A file is read by a descriptor that was looked at before, so nothing can be put in its place meanwhile.
//!
//! Memory of one capture: two pieces of [`CHUNK`], 16 MiB of names of directories
//! and 16 MiB of paths of hard links at most; usually far less than 2 MiB.

mod locate;
mod mountinfo;
mod output;
mod reasons;
mod sparse;
mod tar;
mod walk;

use std::os::fd::OwnedFd;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::Span;

pub(crate) use locate::{CaptureError, locate};
pub(crate) use reasons::Reasons;

use crate::runtime::{ByteStream, RuntimeError};
#[cfg(doc)]
use crate::stream::CHUNK;
use output::Output;
use walk::{Stop, Walk};

/// A tar that is being made, and what is known to be wrong with it once it has ended.
pub(crate) struct Captured {
    pub(crate) bytes: ByteStream,
    pub(crate) reasons: Reasons,
}

/// Reads a directory as a tar, on a thread of its own that ends with the stream. `call` names the source in
/// errors.
pub(crate) fn directory(
    root: OwnedFd,
    call: String,
    span: Span,
) -> Result<Captured, std::io::Error> {
    let (pieces, receiver) = mpsc::channel(1);
    let reasons = Reasons::default();
    let noted = reasons.clone();
    std::thread::Builder::new()
        .name("capture".to_owned())
        .spawn(move || {
            let _span = span.entered();
            let failed = pieces.clone();
            match Walk::new(Output::new(pieces), noted).run(root) {
                Ok(seen) => tracing::info!(
                    members = seen.members,
                    vanished = seen.vanished,
                    changed = seen.changed,
                    "read a layer"
                ),
                // Whoever asked is gone.
                Err(Stop::Gone) => {}
                Err(Stop::Root(source)) => {
                    let source = source.into();
                    // Fails only if nobody waits for it.
                    let _ = failed.blocking_send(Err(RuntimeError::Broken { call, source }));
                }
            }
        })?;
    Ok(Captured {
        bytes: ReceiverStream::new(receiver).boxed(),
        reasons,
    })
}

#[cfg(test)]
mod tests;
