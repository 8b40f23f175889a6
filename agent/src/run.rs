//! All wiring of the agent: certificates, service, health, reflection, readiness, shutdown.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use impound_evidence::Sha256Hasher;
use impound_proto::agent::v1::agent_server::{AgentServer, SERVICE_NAME};
use impound_proto::tls::{
    MaterialError, Peers, RELOAD_INTERVAL, TlsFiles, http2, incoming, server_credentials,
};
use impound_proto::{NodeName, PeerId, agent};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::Disk;
use crate::config::Config;
use crate::isolate;
use crate::ready::{self, Pending};
use crate::runtime::ContainerRuntime;
use crate::runtime::docker::Docker;
use crate::service::Service;

/// Largest request. The largest real one is a commit with its labels; the kubelet allows 256 KiB of
/// annotations, and no label of ours is near that.
const REQUEST_LIMIT: usize = 64 << 10;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start, if a part of it ends unexpectedly, or if streams had to be cut off at the end.
pub async fn run(config: Config) -> Result<(), RunError> {
    let bind = |address: SocketAddr| async move {
        TcpListener::bind(address)
            .await
            .map_err(|source| RunError::Listen { address, source })
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let agent = Agent {
        files: TlsFiles::in_dir(&config.tls_dir, "controller-ca.crt"),
        node: config.node,
        runtime: Arc::new(Docker::new(config.docker_socket)),
        disk: Disk::new(config.docker_root, config.disk_reserve_percent),
        ready: match config.ready_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        },
        drain: Duration::from_secs(config.drain_seconds),
        allow_isolation: config.allow_isolation,
    };
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    agent.serve(bind(config.listen).await?, stop).await
}

/// An agent that is ready to serve.
pub struct Agent {
    /// The node it is for; its certificate must say the same.
    pub node: NodeName,
    /// Its certificate, key and the controller's CA.
    pub files: TlsFiles,
    /// Where containers are read from.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// The disk that a commit fills.
    pub disk: Disk,
    /// Where the kubelet's probe comes in, if anywhere.
    pub ready: Option<TcpListener>,
    /// How long running streams may go on after `stop`.
    pub drain: Duration,
    /// Isolate pods when asked to; needs the capabilities that [`isolate`](crate::isolate) names.
    pub allow_isolation: bool,
}

impl Agent {
    /// Serves on `listener` until `stop`, then lets running streams end.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), RunError> {
        let own = PeerId::Agent {
            node: self.node.clone(),
        };
        let (credentials, reloader) =
            server_credentials(self.files, own, Peers::Only(PeerId::Controller))?;
        let executable = executable_sha256()?;
        if self.allow_isolation {
            let missing = isolate::missing_capabilities().map_err(RunError::OwnCapabilities)?;
            if !missing.is_empty() {
                return Err(RunError::Capabilities { missing });
            }
        }
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(agent::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| RunError::Reflection(error.to_string()))?;
        let (reporter, health) = tonic_health::server::health_reporter();
        let (publish, pending) = watch::channel(vec!["not looked at yet".to_owned()]);
        tracing::info!(
            node = %self.node,
            address = listener.local_addr().map(tracing::field::display).ok(),
            runtime = self.runtime.name(),
            disk = %self.disk.root().display(),
            executable_sha256 = %executable,
            isolation = self.allow_isolation,
            certificate_not_after = %credentials.not_after(),
            "serving"
        );

        // Each of these lives as long as the process; one that ends takes it down.
        let mut parts = JoinSet::new();
        parts.spawn(reloader.run(RELOAD_INTERVAL));
        parts.spawn(ready::observe(
            Arc::clone(&self.runtime),
            credentials.clone(),
            publish,
        ));
        parts.spawn(report(reporter, pending.clone()));
        if let Some(listener) = self.ready {
            parts.spawn(ready::serve(listener, pending));
        }

        let service = Service::new(
            self.node,
            self.runtime,
            self.disk,
            *executable.as_bytes(),
            self.allow_isolation,
        );
        let service = AgentServer::new(service).max_decoding_message_size(REQUEST_LIMIT);
        let (stopping, stopped) = oneshot::channel::<()>();
        let server = http2::server(Server::builder())
            .add_service(service)
            .add_service(health)
            .add_service(reflection)
            .serve_with_incoming_shutdown(incoming(listener, credentials), async {
                // An error means that the sender is gone, which is a reason to stop as well.
                let _ = stopped.await;
            });
        tokio::pin!(server);
        tokio::select! {
            ended = &mut server => {
                ended?;
                return Err(RunError::Ended { part: "server", source: None });
            }
            part = parts.join_next() => {
                let source = part.and_then(Result::err);
                return Err(RunError::Ended { part: "background task", source });
            }
            () = stop => {}
        }
        tracing::info!(drain = ?self.drain, "stopping: running streams may end, new calls are refused");
        drop(stopping);
        match tokio::time::timeout(self.drain, server).await {
            Ok(ended) => ended.map_err(RunError::from),
            Err(_) => Err(RunError::CutOff { drain: self.drain }),
        }
    }
}

/// Tells gRPC health what readiness found.
async fn report(reporter: HealthReporter, mut pending: watch::Receiver<Pending>) {
    loop {
        let status = if pending.borrow_and_update().is_empty() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        // "" is the server as a whole.
        reporter.set_service_status("", status).await;
        reporter.set_service_status(SERVICE_NAME, status).await;
        if pending.changed().await.is_err() {
            return;
        }
    }
}

/// What this process runs, hashed in pieces: the file is several MiB, memory is counted.
fn executable_sha256() -> Result<impound_evidence::Sha256, RunError> {
    let path = PathBuf::from("/proc/self/exe");
    let failed = |source| RunError::Executable {
        path: path.clone(),
        source,
    };
    let mut file = File::open(&path).map_err(failed)?;
    let mut hasher = Sha256Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        match buffer.get(..read) {
            Some(bytes) if !bytes.is_empty() => hasher.update(bytes),
            _ => return Ok(hasher.finish()),
        }
    }
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
    /// Too few for what was chosen.
    #[error(
        "isolation at the node is chosen (--allow-isolation), but {} is missing: add it to the \
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
