//! What all parts of the running server share.

use tokio::sync::watch;

use crate::audit::Audit;
use crate::fault::Faults;
use crate::state::Shared;

/// State, audit log, faults and the signals that end watches.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) shared: Shared,
    pub(crate) audit: Audit,
    pub(crate) faults: Faults,
    /// Counts up; every running watch ends when it does.
    pub(crate) cuts: watch::Sender<u64>,
    /// While true, controllers look at nothing: a test can see the moment before they act.
    pub(crate) held: watch::Sender<bool>,
}

impl Core {
    /// Ends all running watches, as a restart of the API server would.
    pub(crate) fn cut_watches(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }
}
