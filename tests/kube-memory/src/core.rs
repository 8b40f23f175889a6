//! What all parts of the running server share.

use tokio::sync::watch;

use crate::audit::Audit;
use crate::fault::Faults;
use crate::state::Shared;

/// State, audit log, faults and the signals that end watches.
pub(crate) struct Core {
    pub(crate) shared: Shared,
    pub(crate) audit: Audit,
    pub(crate) faults: Faults,
    /// Counts up; every running watch ends when it does.
    pub(crate) cuts: watch::Sender<u64>,
    /// While true, controllers look at nothing: a test can see the moment before they act.
    pub(crate) held: watch::Sender<bool>,
    /// The API server that every request goes on to, if there is a real one.
    pub(crate) real: Option<kube::Client>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Core").finish_non_exhaustive()
    }
}

impl Core {
    /// Ends all running watches, as a restart of the API server would.
    pub(crate) fn cut_watches(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }
}
