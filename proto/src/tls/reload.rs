//! Certificates in use, and their replacement while the process runs.
//!
//! The directory is polled by content: Kubernetes replaces a mounted Secret by swapping a symbolic
//! link, which file watchers miss. A set of files that does not check out never replaces a working
//! one. It is reported once and tried again at every look: a certificate that is not valid yet is one
//! later, without its file changing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::material::{Material, MaterialError, Snapshot, client_without_certificate};
use super::{Peers, TlsFiles};
use crate::identity::PeerId;

/// A server's or client's TLS configuration as of now. Clones follow the same reloads.
pub struct Credentials<C> {
    own: PeerId,
    published: watch::Receiver<Published<C>>,
}

/// Re-reads the files of one [`Credentials`]. Dropping it freezes them.
pub struct Reloader<C> {
    files: TlsFiles,
    own: Peers,
    build: Build<C>,
    /// Fingerprint of the files in use.
    in_use: [u8; 32],
    /// Fingerprint of the files that were last refused, until usable ones are there.
    reported: Option<[u8; 32]>,
    publish: watch::Sender<Published<C>>,
}

/// What a look at the files led to.
#[derive(Debug)]
pub enum Reload {
    /// They are those in use, or still those that were refused before.
    Unchanged,
    /// New ones are in use now.
    Replaced,
    /// New ones are broken; the former stay in use.
    Refused(MaterialError),
}

type Build<C> = Box<dyn Fn(&Material) -> Result<C, MaterialError> + Send>;

struct Published<C> {
    config: Arc<C>,
    not_after: OffsetDateTime,
}

/// Reads a server's files. `own` is the identity our certificate must have, `accept` the clients
/// that are let in.
///
/// # Errors
/// If the files cannot be used, see [`MaterialError`].
pub fn server_credentials(
    files: TlsFiles,
    own: PeerId,
    accept: Peers,
) -> Result<(Credentials<ServerConfig>, Reloader<ServerConfig>), MaterialError> {
    let build = move |material: &Material| material.server_config(&accept);
    load(files, Peers::Only(own), Box::new(build))
}

/// As [`server_credentials`], for a service that also takes tokens: who shows no certificate is let in and
/// proves themselves in each request. For [`incoming_callers`](super::incoming_callers).
///
/// # Errors
/// If the files cannot be used, see [`MaterialError`].
pub fn caller_credentials(
    files: TlsFiles,
    own: PeerId,
    accept: Peers,
) -> Result<(Credentials<ServerConfig>, Reloader<ServerConfig>), MaterialError> {
    let build = move |material: &Material| material.caller_config(&accept);
    load(files, Peers::Only(own), Box::new(build))
}

/// As [`server_credentials`], for a service whose requests carry their own proof: no certificate is asked
/// for. For [`incoming_open`](super::incoming_open). The roots file must exist, but nobody is checked
/// against it.
///
/// # Errors
/// If the files cannot be used, see [`MaterialError`].
pub fn open_server_credentials(
    files: TlsFiles,
    own: PeerId,
) -> Result<(Credentials<ServerConfig>, Reloader<ServerConfig>), MaterialError> {
    load(
        files,
        Peers::Only(own),
        Box::new(Material::open_server_config),
    )
}

/// Reads a client's files. `own` says whose certificate it may be; a process that reloads keeps the
/// identity it started with.
///
/// # Errors
/// If the files cannot be used, see [`MaterialError`].
pub fn client_credentials(
    files: TlsFiles,
    own: Peers,
) -> Result<(Credentials<ClientConfig>, Reloader<ClientConfig>), MaterialError> {
    load(files, own, Box::new(Material::client_config))
}

fn load<C>(
    files: TlsFiles,
    own: Peers,
    build: Build<C>,
) -> Result<(Credentials<C>, Reloader<C>), MaterialError> {
    let snapshot = Snapshot::read(&files)?;
    let material = snapshot.check(&files, &own)?;
    let own = material.own().clone();
    let config = Arc::new(build(&material)?);
    let (publish, published) = watch::channel(Published {
        config,
        not_after: material.not_after(),
    });
    let reloader = Reloader {
        files,
        own: Peers::Only(own.clone()),
        build,
        in_use: snapshot.fingerprint(),
        reported: None,
        publish,
    };
    Ok((Credentials { own, published }, reloader))
}

impl<C> Credentials<C> {
    /// The configuration for the next handshake.
    #[must_use]
    pub fn current(&self) -> Arc<C> {
        Arc::clone(&self.published.borrow().config)
    }

    /// The same, and when the certificate in it ends.
    pub(super) fn in_use(&self) -> (Arc<C>, OffsetDateTime) {
        let published = self.published.borrow();
        (Arc::clone(&published.config), published.not_after)
    }

    /// The identity of our own certificate.
    #[must_use]
    pub fn own(&self) -> &PeerId {
        &self.own
    }

    /// When our own certificate ends; from then on every peer refuses us.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.published.borrow().not_after
    }
}

impl Credentials<ClientConfig> {
    /// Those of a client that has no certificate yet, and is going to be `own`. `roots` is the PEM file of
    /// the CAs that the server's certificate must come from. They are not reloaded.
    ///
    /// # Errors
    /// If `roots` cannot be used.
    pub fn without_certificate(own: PeerId, roots: &Path) -> Result<Self, MaterialError> {
        let (_, published) = watch::channel(Published {
            config: Arc::new(client_without_certificate(roots)?),
            // What is not there does not end.
            not_after: PrimitiveDateTime::MAX.assume_utc(),
        });
        Ok(Self { own, published })
    }
}

impl<C> Clone for Credentials<C> {
    fn clone(&self) -> Self {
        Self {
            own: self.own.clone(),
            published: self.published.clone(),
        }
    }
}

impl<C: Send + Sync + 'static> Reloader<C> {
    /// Looks at the files every `interval` for as long as the process lives. Run it as a task.
    pub async fn run(mut self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.publish.is_closed() {
            ticks.tick().await;
            // Three small files, most often unchanged; not worth a thread of their own.
            match self.check() {
                Reload::Unchanged => {}
                Reload::Replaced => tracing::info!(
                    certificate = %self.files.certificate.display(),
                    not_after = %self.publish.borrow().not_after,
                    "certificate files changed and are in use now"
                ),
                Reload::Refused(error) => tracing::error!(
                    certificate = %self.files.certificate.display(),
                    error = super::explain(&error),
                    "certificate files changed but cannot be used: the former ones stay in use"
                ),
            }
        }
    }

    /// Looks at the files once.
    pub fn check(&mut self) -> Reload {
        let snapshot = match Snapshot::read(&self.files) {
            Ok(snapshot) => snapshot,
            Err(error) => return self.refused(UNREADABLE, error),
        };
        let fingerprint = snapshot.fingerprint();
        if fingerprint == self.in_use {
            self.reported = None;
            return Reload::Unchanged;
        }
        let built = snapshot
            .check(&self.files, &self.own)
            .and_then(|material| Ok(((self.build)(&material)?, material.not_after())));
        match built {
            Ok((config, not_after)) => {
                self.in_use = fingerprint;
                self.reported = None;
                self.publish.send_replace(Published {
                    config: Arc::new(config),
                    not_after,
                });
                Reload::Replaced
            }
            Err(error) => self.refused(fingerprint, error),
        }
    }

    /// Reports an error once for the same files.
    fn refused(&mut self, fingerprint: [u8; 32], error: MaterialError) -> Reload {
        match self.reported.replace(fingerprint) {
            Some(reported) if reported == fingerprint => Reload::Unchanged,
            _ => Reload::Refused(error),
        }
    }
}

/// Stands for files that could not be read; no SHA-256 that occurs is all zeros.
const UNREADABLE: [u8; 32] = [0; 32];
