//! Writes what the threads make of a tar into the store, beside everything else: a tar never waits for what its
//! listings are written to.

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::What;
use super::output::Output;
use super::threads::Lost;

/// The files of one tar, while they are written.
pub(super) struct Spool {
    stop: oneshot::Sender<()>,
    writing: AbortOnDropHandle<Vec<Output>>,
}

impl Spool {
    /// Writes each of the `pieces` to the file that it is for, until there are no more.
    pub(super) fn start(
        mut outputs: Vec<Output>,
        mut pieces: mpsc::Receiver<(What, Vec<u8>)>,
    ) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let writing = async move {
            loop {
                let piece = tokio::select! {
                    biased;
                    _ = &mut stopped => break,
                    piece = pieces.recv() => piece,
                };
                let Some((what, bytes)) = piece else { break };
                write(&mut outputs, what, bytes).await;
            }
            outputs
        };
        Self {
            stop,
            writing: AbortOnDropHandle::new(tokio::spawn(writing)),
        }
    }

    /// The files, once all pieces are written.
    pub(super) async fn end(self) -> Result<Vec<Output>, Lost> {
        let outputs = self.writing.await;
        // Until here: that it is gone would stop the writing.
        drop(self.stop);
        outputs.map_err(|_| Lost)
    }

    /// The files as they are. The threads find nobody who takes more.
    pub(super) async fn stop(self) -> Vec<Output> {
        drop(self.stop);
        self.writing.await.unwrap_or_default()
    }
}

/// Writes to one of the files, if it is among them.
pub(super) async fn write(outputs: &mut [Output], what: What, bytes: Vec<u8>) {
    let mut outputs = outputs.iter_mut();
    if let Some(output) = outputs.find(|output| output.what == Some(what)) {
        output.write(bytes).await;
    }
}
