//! One replica contains at a time: the holder of a Lease. (The same serves [`crate::claims`], which shares the
//! collections.)
//!
//! The holder renews well before the lease runs out, and stops working when it could not renew in
//! time, so two replicas never act on the same object. Guards on the writes that contain and release
//! (uid, resourceVersion) protect against a replica that was merely slow to notice.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::{Instant, sleep, timeout};

use crate::describe::describe;
use crate::kubernetes::{ApiError, from_kube};
use crate::resources::now;

/// Name of the leading replica's Lease.
pub const LEASE: &str = "impound-controller";

/// How long a lease holds without renewal. Kubernetes' own controllers take 15 s, 10 s and 2 s
/// (client-go leaderelection); a responder should not wait that long after a crash.
pub(crate) const DURATION: Duration = Duration::from_secs(6);
const RENEW_WITHIN: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_secs(1);
/// Pause between two renewals, and before one that failed is tried again: two more fit in then.
const RENEW_EVERY: Duration = Duration::from_secs(2);
const RENEW_AGAIN: Duration = Duration::from_millis(500);

/// A lease that is held, or wanted.
pub struct Leadership {
    api: Api<Lease>,
    name: &'static str,
    holder: String,
    /// The last renewal that was seen, and when: another replica's clock is not to be trusted, so
    /// a lease has run out when it was not renewed for its duration by our own clock.
    seen: Option<(MicroTime, Instant)>,
    /// Just before the write by which the lease was taken or renewed last: an answer that is late says when it was
    /// true at the latest.
    renewed: Instant,
    /// The lease as we wrote it last: it can be renewed without a look, for its version guards the write.
    written: Option<Lease>,
}

impl Leadership {
    /// Of the Lease of this `name`. `holder` must be unique to this process, e.g. the pod's name and a random part.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &'static str, holder: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name,
            holder,
            seen: None,
            renewed: Instant::now(),
            written: None,
        }
    }

    /// Waits until this process holds the lease.
    pub async fn acquire(&mut self) {
        let mut said = String::new();
        loop {
            match self.take().await {
                Ok(None) => {
                    tracing::info!(holder = self.holder, "holding the lease: working");
                    return;
                }
                Ok(Some(other)) => {
                    if said != other {
                        tracing::info!(holder = other, "another replica holds the lease: waiting");
                    }
                    said = other;
                }
                Err(error) => {
                    tracing::warn!(error = %describe(&error), "lease not taken, trying again");
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Takes the lease with time left to renew it; gives the other holder's name if it is not to be had.
    pub(crate) async fn take(&mut self) -> Result<Option<String>, ApiError> {
        loop {
            let other = self.try_take().await?;
            // After an answer that took longer another may already have counted the lease as ended.
            if other.is_some() || self.renewed.elapsed() < RENEW_WITHIN {
                return Ok(other);
            }
        }
    }

    /// Renews until the lease is lost, then says why.
    pub async fn keep(&mut self) -> String {
        let mut pause = RENEW_EVERY.saturating_sub(self.renewed.elapsed());
        loop {
            sleep(pause).await;
            let left = RENEW_WITHIN.saturating_sub(self.renewed.elapsed());
            pause = match timeout(left, self.try_take()).await {
                Err(_) => return "the lease could not be renewed in time".into(),
                Ok(Ok(None)) => RENEW_EVERY.saturating_sub(self.renewed.elapsed()),
                Ok(Ok(Some(other))) => return format!("{other} has taken the lease"),
                Ok(Err(error)) => {
                    tracing::warn!(error = %describe(&error), "lease not renewed, trying again");
                    RENEW_AGAIN
                }
            };
        }
    }

    /// Gives the lease up, so that another replica need not wait for its end.
    pub async fn give_up(&self) {
        let held = match self.api.get_opt(self.name).await {
            Ok(Some(lease)) if holder(&lease) == self.holder => lease,
            _ => return,
        };
        let mut lease = held;
        if let Some(spec) = lease.spec.as_mut() {
            spec.holder_identity = Some(String::new());
            spec.renew_time = Some(now());
        }
        if let Err(error) = self
            .api
            .replace(self.name, &PostParams::default(), &lease)
            .await
        {
            tracing::warn!(error = %describe(&error), "lease not given up; it runs out by itself");
        }
    }

    /// Takes or renews the lease; gives the other holder's name if it is not to be had. The
    /// resourceVersion in the write makes sure that only one of two candidates succeeds.
    async fn try_take(&mut self) -> Result<Option<String>, ApiError> {
        let current = match self.written.take() {
            Some(written) => Some(written),
            None => self.api.get_opt(self.name).await.map_err(failed)?,
        };
        let Some(mut lease) = current else {
            let begun = Instant::now();
            let created = self.api.create(&PostParams::default(), &self.first()).await;
            return self.won(begun, created).await;
        };
        let other = holder(&lease).to_owned();
        if !other.is_empty() && other != self.holder && !self.has_run_out(&lease) {
            return Ok(Some(other));
        }
        let spec = lease.spec.get_or_insert_default();
        if other != self.holder {
            spec.holder_identity = Some(self.holder.clone());
            spec.acquire_time = Some(now());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.lease_duration_seconds = Some(seconds());
        spec.renew_time = Some(now());
        let begun = Instant::now();
        let replaced = self
            .api
            .replace(self.name, &PostParams::default(), &lease)
            .await;
        self.won(begun, replaced).await
    }

    fn has_run_out(&mut self, lease: &Lease) -> bool {
        let Some(renewed) = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone()) else {
            return true;
        };
        match &self.seen {
            Some((seen, since)) if *seen == renewed => since.elapsed() > DURATION,
            _ => {
                self.seen = Some((renewed, Instant::now()));
                false
            }
        }
    }

    async fn won(
        &mut self,
        begun: Instant,
        written: kube::Result<Lease>,
    ) -> Result<Option<String>, ApiError> {
        match written.map_err(failed) {
            Ok(lease) => {
                self.renewed = begun;
                self.written = Some(lease);
                Ok(None)
            }
            // Somebody else wrote first, another replica or e.g. a person who annotated it. Also where we are
            // still the holder, this write had no effect: it is no renewal.
            Err(error) if error.is_conflict() => {
                let lease = self.api.get_opt(self.name).await.map_err(failed)?;
                let other = lease.as_ref().map(holder).unwrap_or_default();
                if other == self.holder {
                    return Err(error);
                }
                Ok(Some(other.to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    fn first(&self) -> Lease {
        let mut lease = Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(self.holder.clone()),
                acquire_time: Some(now()),
                renew_time: Some(now()),
                lease_duration_seconds: Some(seconds()),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        lease.metadata.name = Some(self.name.into());
        lease
    }
}

fn holder(lease: &Lease) -> &str {
    lease
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}

fn seconds() -> i32 {
    i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX)
}

fn failed(error: kube::Error) -> ApiError {
    from_kube("PUT", "lease", error)
}

#[cfg(test)]
mod tests;
