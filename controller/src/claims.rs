//! Which replica works on which collection: a claim for each, held by leases.
//!
//! ```text
//! Collection.status.worker = "<lease>/<process>"     the claim: a guarded write, so one of two that want it gets it
//!                            ""                      let go of after a failure: whoever comes next gets it
//! Lease impound-worker-<n>, held by <process>        the worker lives: renewed as long as it has claims
//! ```
//! A worker that could not renew in time drops what it works on, before anybody else may take it, and so does one that
//! finds the status written by somebody else; what it had sent by then meets the resourceVersion of the status and the
//! store's names, which are created and never written over.
//! Containment is not shared: it stays with the replica that leads ([`crate::leader`]).

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::Api;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::describe::describe;
use crate::kubernetes::{ApiError, from_kube};
use crate::leader::{self, Leadership};
use crate::locked::locked;

/// Names of the workers' leases, one for each replica that has claims. The roles name them.
pub const LEASES: [&str; 10] = [
    "impound-worker-0",
    "impound-worker-1",
    "impound-worker-2",
    "impound-worker-3",
    "impound-worker-4",
    "impound-worker-5",
    "impound-worker-6",
    "impound-worker-7",
    "impound-worker-8",
    "impound-worker-9",
];

/// A lease is kept so long after the last claim: the next collection of a sweep comes within a second.
const LINGER: Duration = Duration::from_secs(10);

/// Between two rounds over the leases, when none was to be had.
const RETRY: Duration = Duration::from_secs(1);

/// How long a claim waits for its worker's lease; then it is tried again.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was read of a lease is believed for so long: all collections of a worker ask for the same one.
const FRESH: Duration = Duration::from_secs(2);

/// A replica with this many collections takes the next one of a sweep later by this much, up to the longest, so that
/// one with fewer comes first.
const COURTESY: Duration = Duration::from_millis(150);
const LONGEST_COURTESY: Duration = Duration::from_millis(900);

/// Between two looks whether it is this replica's turn.
const TURN: Duration = Duration::from_millis(50);

/// The claims of this process, and what it knows of others'.
pub struct Claims {
    client: Client,
    process: String,
    /// For how many collections a lease is wanted.
    wanted: watch::Sender<usize>,
    /// How many of them are claimed, and not only about to be.
    claimed: watch::Sender<usize>,
    /// What this process is called in a claim, while it holds a lease.
    worker: watch::Sender<Option<Worker>>,
    others: Mutex<HashMap<String, Other>>,
}

/// What this process is while it holds a lease. The next time it has the same name, and is another.
#[derive(Clone, Debug)]
struct Worker {
    name: String,
    over: CancellationToken,
}

/// A claim on a collection: as long as there is one, this process renews its lease. It is over when it is dropped.
pub struct Claim<'a> {
    worker: Worker,
    _counted: [One<'a>; 2],
}

impl Claim<'_> {
    /// As a status has it: `<lease>/<process>`.
    #[must_use]
    pub fn worker(&self) -> &str {
        &self.worker.name
    }

    /// Ends when the lease is lost, or was, also if this process holds it again.
    pub async fn lost(&self) {
        self.worker.over.cancelled().await;
    }
}

/// One more, until it is dropped.
struct One<'a>(&'a watch::Sender<usize>);

impl<'a> One<'a> {
    fn more(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count = count.saturating_add(1));
        Self(count)
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// Another worker's lease as it was read last.
#[derive(Clone, Debug)]
struct Other {
    read: Instant,
    process: String,
    renewed: Option<MicroTime>,
    /// Since when, by our own clock, nothing was renewed.
    since: Instant,
}

impl Other {
    fn lives(&self) -> bool {
        self.since.elapsed() <= leader::DURATION
    }
}

impl Claims {
    /// `process` must be unique to this process, and have no slash.
    #[must_use]
    pub fn new(client: Client, process: String) -> Self {
        Self {
            client,
            process,
            wanted: watch::Sender::new(0),
            claimed: watch::Sender::new(0),
            worker: watch::Sender::new(None),
            others: Mutex::default(),
        }
    }

    /// What this process is called.
    #[must_use]
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Holds a lease while there are claims, for ever or until `stop`; then it is given up, so that others need not
    /// wait for its end.
    pub async fn run(&self, stop: &CancellationToken) {
        loop {
            let lease = async {
                self.until(|wanted| wanted > 0).await;
                self.acquire().await
            };
            let (name, mut lease) = tokio::select! {
                () = stop.cancelled() => return,
                acquired = lease => acquired,
            };
            let over = CancellationToken::new();
            let worker = Worker {
                name: format!("{name}/{}", self.process),
                over: over.clone(),
            };
            self.worker.send_replace(Some(worker));
            let lost = tokio::select! {
                lost = lease.keep() => Some(lost),
                () = self.idle() => None,
                () = stop.cancelled() => None,
            };
            // What is under way is dropped by this.
            self.worker.send_replace(None);
            over.cancel();
            match lost {
                Some(lost) => tracing::warn!(
                    lease = name,
                    lost,
                    "no longer a worker: collections are dropped"
                ),
                None => lease.give_up().await,
            }
        }
    }

    /// A claim on a collection, once this process has a lease. Of those that are `shared`, a replica that has more
    /// takes one later than a replica that has fewer. `None` if there was no lease to be had for a while.
    pub async fn stake(&self, shared: bool) -> Option<Claim<'_>> {
        let wanted = One::more(&self.wanted);
        let begun = Instant::now();
        while shared && begun.elapsed() < self.courtesy() {
            sleep(TURN).await;
        }
        let claimed = One::more(&self.claimed);
        let mut worker = self.worker.subscribe();
        let held = timeout(PATIENCE, worker.wait_for(Option::is_some)).await;
        let worker = held.ok()?.ok()?.clone()?;
        Some(Claim {
            worker,
            _counted: [wanted, claimed],
        })
    }

    /// How long a further collection is left to others.
    fn courtesy(&self) -> Duration {
        let claimed = u32::try_from(*self.claimed.borrow()).unwrap_or(u32::MAX);
        COURTESY.saturating_mul(claimed).min(LONGEST_COURTESY)
    }

    /// Whether a claim is another process's that lives.
    ///
    /// # Errors
    /// If its lease can't be read.
    pub async fn is_anothers(&self, worker: Option<&str>) -> Result<bool, ApiError> {
        let Some((lease, process)) = worker.and_then(|worker| worker.split_once('/')) else {
            return Ok(false);
        };
        if process == self.process || !LEASES.contains(&lease) {
            return Ok(false);
        }
        let now = self.look(lease).await?;
        Ok(now.process == process && now.lives())
    }

    /// Whether another process that lives leads.
    ///
    /// # Errors
    /// If the lease can't be read.
    pub async fn leads_elsewhere(&self) -> Result<bool, ApiError> {
        let now = self.look(leader::LEASE).await?;
        Ok(!now.process.is_empty() && now.process != self.process && now.lives())
    }

    /// What is known of another worker's lease, read again if that is some time ago.
    async fn look(&self, lease: &str) -> Result<Other, ApiError> {
        let known = locked(&self.others).get(lease).cloned();
        if let Some(known) = known.filter(|known| known.read.elapsed() < FRESH) {
            return Ok(known);
        }
        let api = Api::<Lease>::default_namespaced(self.client.clone());
        let found = api.get_opt(lease).await;
        let found = found.map_err(|error| from_kube("GET", &format!("leases/{lease}"), error))?;
        let spec = found.and_then(|found| found.spec).unwrap_or_default();
        let process = spec.holder_identity.unwrap_or_default();
        let mut others = locked(&self.others);
        let since = others
            .get(lease)
            .filter(|known| known.process == process && known.renewed == spec.renew_time)
            .map_or_else(Instant::now, |known| known.since);
        let other = Other {
            read: Instant::now(),
            process,
            renewed: spec.renew_time,
            since,
        };
        others.insert(lease.to_owned(), other.clone());
        Ok(other)
    }

    /// Takes the first lease that nobody holds.
    async fn acquire(&self) -> (&'static str, Leadership) {
        let namespace = self.client.default_namespace().to_owned();
        let of =
            |name| Leadership::new(self.client.clone(), &namespace, name, self.process.clone());
        let mut leases = LEASES.map(|name| (name, of(name)));
        loop {
            let mut others = HashSet::new();
            for (name, lease) in &mut leases {
                match lease.take().await {
                    Ok(None) => {
                        let mut taken = of(name);
                        std::mem::swap(&mut taken, lease);
                        return (*name, taken);
                    }
                    Ok(Some(other)) => {
                        others.insert(other);
                    }
                    Err(error) => {
                        tracing::warn!(error = %describe(&error), "no worker's lease, trying again");
                        break;
                    }
                }
            }
            if others.len() == LEASES.len() {
                tracing::warn!(
                    workers = others.len(),
                    "every worker's lease is held: this replica takes no collections"
                );
            }
            sleep(RETRY).await;
        }
    }

    /// There has been no claim for a while.
    async fn idle(&self) {
        loop {
            self.until(|wanted| wanted == 0).await;
            let anew = timeout(LINGER, self.until(|wanted| wanted > 0)).await;
            if anew.is_err() {
                return;
            }
        }
    }

    async fn until(&self, is: impl Fn(usize) -> bool) {
        let mut wanted = self.wanted.subscribe();
        // The sender is ours, so it is never closed.
        let _ = wanted.wait_for(|wanted| is(*wanted)).await;
    }
}
