//! What each mode is made of: listeners, signals, and the server that fits.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use impound_proto::NodeName;
use impound_proto::tls::{MaterialError, TlsFiles};
use impound_proto::traces::Traces;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinError;

use crate::config::{self, Mode, Single};
use crate::enroll::Enrolment;
use crate::freeze::FreezeError;
use crate::local::{self, SocketPath};
use crate::methods::Part;
use crate::reach;
use crate::runtime::ContainerRuntime;
use crate::runtime::docker::Docker;
use crate::{Agent, Disk, Front, Worker};

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start, if a part of it ends unexpectedly, or if streams had to be cut off at the end.
pub async fn run(mode: Mode) -> Result<(), RunError> {
    let stop = Box::pin(told_to_stop()?);
    match mode {
        Mode::Front(config) => front(config, stop).await,
        Mode::Collector(config) => work(Part::Collector, config, stop).await,
        Mode::Isolator(config) => work(Part::Isolator, config, stop).await,
        Mode::Reach(wanted) => reach::run(wanted, stop).await,
        Mode::Single(config) => single(config, stop).await,
    }
}

/// The traces of a process of this mode, if it is to export any. A part has no network: it is the front whose spans
/// are exported.
#[must_use]
pub fn traces(mode: &Mode) -> Option<Traces> {
    let (node, entrance) = match mode {
        Mode::Front(front) => (&front.node, &front.entrance),
        Mode::Single(single) => (&single.node, &single.entrance),
        Mode::Collector(_) | Mode::Isolator(_) | Mode::Reach(_) => return None,
    };
    let to = entrance.otlp_endpoint.clone()?;
    let node = ("k8s.node.name", node.to_string());
    Some(Traces::new("impound-agent", [node], to))
}

async fn single(
    config: Single,
    mut stop: impl Future<Output = ()> + Unpin,
) -> Result<(), RunError> {
    let Some(enrolment) = enrolled(&config.entrance, &config.node, &mut stop).await else {
        return Ok(());
    };
    let agent = Agent {
        enrolment,
        files: files(&config.entrance),
        node: config.node,
        disk: disk(&config.runtime),
        state_dir: config.runtime.state_dir.clone(),
        runtime: runtime(config.runtime),
        ready: ready(&config.entrance).await?,
        drain: drain(&config.ending),
        allow_isolation: config.allow_isolation,
    };
    let listener = bind(config.entrance.listen).await?;
    agent.serve(listener, stop).await
}

async fn front(
    config: config::Front,
    mut stop: impl Future<Output = ()> + Unpin,
) -> Result<(), RunError> {
    let Some(enrolment) = enrolled(&config.entrance, &config.node, &mut stop).await else {
        return Ok(());
    };
    let front = Front {
        enrolment,
        files: files(&config.entrance),
        node: config.node,
        collector: config.collector,
        isolator: config.isolator,
        ready: ready(&config.entrance).await?,
        drain: drain(&config.ending),
    };
    let listener = bind(config.entrance.listen).await?;
    front.serve(listener, stop).await
}

async fn work(
    part: Part,
    config: config::Worker,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let socket = config.listen;
    let worker = Worker {
        part,
        node: config.node,
        disk: disk(&config.runtime),
        state_dir: config.runtime.state_dir.clone(),
        runtime: runtime(config.runtime),
        front_uid: config.front_uid,
        drain: drain(&config.ending),
    };
    let listener = local::listen(&socket).map_err(|source| RunError::Socket { socket, source })?;
    worker.serve(listener, stop).await
}

/// Waits until there is a certificate, if one is to be asked for; says how to renew it. `None`: told to stop
/// before.
async fn enrolled(
    entrance: &config::Entrance,
    node: &NodeName,
    stop: &mut (impl Future<Output = ()> + Unpin),
) -> Option<Option<Enrolment>> {
    let asked = &entrance.enrolment;
    let Some(issuer) = asked.issuer.clone() else {
        return Some(None);
    };
    let enrolment = Enrolment {
        issuer,
        token: asked.issuer_token.clone(),
        controller_ca: asked.controller_ca.clone(),
        tls_dir: entrance.tls_dir.clone(),
        node: node.clone(),
    };
    tokio::select! {
        () = enrolment.first() => Some(Some(enrolment)),
        () = stop => None,
    }
}

fn told_to_stop() -> Result<impl Future<Output = ()>, RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen { address, source })
}

async fn ready(entrance: &config::Entrance) -> Result<Option<TcpListener>, RunError> {
    match entrance.ready_listen {
        Some(address) => bind(address).await.map(Some),
        None => Ok(None),
    }
}

fn files(entrance: &config::Entrance) -> TlsFiles {
    let (dir, roots) = (&entrance.tls_dir, "controller-ca.crt");
    match &entrance.tls_bundle {
        Some(bundle) => TlsFiles::bundle_in_dir(dir, bundle, roots),
        None => TlsFiles::in_dir(dir, roots),
    }
}

fn runtime(config: config::Runtime) -> Arc<dyn ContainerRuntime> {
    Arc::new(Docker::new(config.docker_socket))
}

fn disk(config: &config::Runtime) -> Disk {
    Disk::new(config.docker_root.clone(), config.disk_reserve_percent)
}

fn drain(ending: &config::Ending) -> Duration {
    Duration::from_secs(ending.drain_seconds)
}

/// Why the agent did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The TLS directory.
    #[error("the TLS files cannot be used")]
    Tls(#[from] MaterialError),
    /// An address is taken or not ours.
    #[error("could not listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A socket of a part.
    #[error("could not listen at {socket}")]
    Socket {
        /// Which.
        socket: SocketPath,
        /// Why.
        source: io::Error,
    },
    /// The test of the network says no.
    #[error("{address}: no sign within {limit:?} that its answer {expected:?}")]
    Reach {
        /// The other end.
        address: SocketAddr,
        /// What it was tried for.
        expected: config::Answer,
        /// How long.
        limit: Duration,
    },
    /// Signal handlers.
    #[error("could not listen for signals")]
    Signals(#[source] io::Error),
    /// Our own executable.
    #[error("could not read our own executable {}", path.display())]
    Executable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Our own capabilities.
    #[error("could not read our own capabilities")]
    OwnCapabilities(#[source] io::Error),
    /// Containers that an earlier process paused.
    #[error("what an earlier agent may have left paused is not known")]
    Frozen(#[source] FreezeError),
    /// Too few for what was chosen.
    #[error(
        "isolation at the node is chosen (isolator, or --allow-isolation), but {} is missing: add it to the \
         container's capabilities, or leave isolation off",
        missing.join(", ")
    )]
    Capabilities {
        /// Which.
        missing: Vec<&'static str>,
    },
    /// A descriptor set in the binary is broken.
    #[error("gRPC reflection cannot be built: {0}")]
    Reflection(String),
    /// The server failed.
    #[error("the gRPC server failed")]
    Server(#[from] tonic::transport::Error),
    /// A part that runs as long as the process ended.
    #[error("the {part} ended unexpectedly")]
    Ended {
        /// Which.
        part: &'static str,
        /// How, if it panicked.
        source: Option<JoinError>,
    },
    /// Streams were still running when the time was over.
    #[error("streams were still running {drain:?} after the signal and were cut off")]
    CutOff {
        /// How long they had.
        drain: Duration,
    },
}
