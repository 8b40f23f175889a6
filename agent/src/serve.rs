//! The servers: an agent that is one process, the front of one that is split, and its parts. They
//! differ in who comes in and in what does the work; what they have in common is here once.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use impound_evidence::Sha256Hasher;
use impound_proto::agent::v1::agent_server::SERVICE_NAME;
use impound_proto::tls::{
    Credentials, Peers, RELOAD_INTERVAL, Reloader, TlsFiles, http2, incoming, server_credentials,
    unexpired,
};
use impound_proto::traces::Served;
use impound_proto::{NodeName, PeerId, agent};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::service::InterceptorLayer;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::enroll::Enrolment;
use crate::freeze::Freezer;
use crate::local::{self, Door, SocketPath};
use crate::methods::Part;
use crate::ready::{self, Condition, PartServes, Pending, RuntimeAnswers};
use crate::run::RunError;
use crate::runtime::ContainerRuntime;
use crate::service::Service;
use crate::{Disk, front, isolate};

/// Largest request. The largest real one is a commit with its labels; the kubelet allows 256 KiB of
/// annotations, and no label of ours is near that.
pub(crate) const REQUEST_LIMIT: usize = 64 << 10;

/// An agent that is one process, ready to serve.
pub struct Agent {
    /// The node it is for; its certificate must say the same.
    pub node: NodeName,
    /// How its certificate is renewed, where the controller issues it.
    pub enrolment: Option<Enrolment>,
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
    /// Where freezes are recorded, below the node's name.
    pub state_dir: PathBuf,
}

/// The part of a split agent that faces the controller.
pub struct Front {
    /// The node it is for; its certificate must say the same.
    pub node: NodeName,
    /// How its certificate is renewed, where the controller issues it.
    pub enrolment: Option<Enrolment>,
    /// Its certificate, key and the controller's CA.
    pub files: TlsFiles,
    /// Socket of the collector.
    pub collector: SocketPath,
    /// Socket of the isolator, where one was chosen.
    pub isolator: Option<SocketPath>,
    /// Where the kubelet's probe comes in, if anywhere.
    pub ready: Option<TcpListener>,
    /// How long running streams may go on after `stop`.
    pub drain: Duration,
}

/// A part of a split agent that works for the front.
pub struct Worker {
    /// Which; it answers no calls of the other.
    pub part: Part,
    /// The node it is for.
    pub node: NodeName,
    /// Where containers are read from.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// The disk that a commit fills.
    pub disk: Disk,
    /// Where freezes are recorded, below the node's name.
    pub state_dir: PathBuf,
    /// The front's user.
    pub front_uid: u32,
    /// How long running streams may go on after `stop`.
    pub drain: Duration,
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
        let (credentials, reloader) = credentials(self.files, &self.node)?;
        if self.allow_isolation {
            require_capabilities()?;
        }
        let service = service(
            &self.node,
            &self.runtime,
            self.disk,
            self.allow_isolation,
            &self.state_dir,
        )?;
        let freezer = service.freezer();
        take_over(&freezer)?;
        tracing::info!(
            node = %self.node,
            address = listener.local_addr().map(tracing::field::display).ok(),
            runtime = self.runtime.name(),
            isolation = self.allow_isolation,
            certificate_not_after = %credentials.not_after(),
            "serving"
        );
        let mut process = Process::new(self.drain)?;
        process.parts.spawn(reloader.run(RELOAD_INTERVAL));
        let mut conditions: Vec<Box<dyn Condition>> = vec![
            Box::new(RuntimeAnswers(self.runtime)),
            Box::new(credentials.clone()),
        ];
        conditions.extend(process.renew(self.enrolment));
        process.observe(conditions, self.ready);
        process.routes.add_service(service.served());
        process
            .serve(incoming(listener, credentials), ending(stop, freezer))
            .await
    }
}

impl Front {
    /// Serves on `listener` until `stop`, then lets running streams end.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), RunError> {
        let (credentials, reloader) = credentials(self.files, &self.node)?;
        tracing::info!(
            node = %self.node,
            address = listener.local_addr().map(tracing::field::display).ok(),
            collector = %self.collector,
            isolator = self.isolator.as_ref().map(tracing::field::display),
            certificate_not_after = %credentials.not_after(),
            "serving"
        );
        let collector = front::channel(&self.collector);
        let isolator = self.isolator.as_ref().map(front::channel);
        let mut conditions: Vec<Box<dyn Condition>> = vec![Box::new(credentials.clone())];
        let parts = [
            (Part::Collector, Some(&collector)),
            (Part::Isolator, isolator.as_ref()),
        ];
        for (part, channel) in parts {
            if let Some(channel) = channel.cloned() {
                conditions.push(Box::new(PartServes { part, channel }));
            }
        }
        let mut process = Process::new(self.drain)?;
        process.parts.spawn(reloader.run(RELOAD_INTERVAL));
        conditions.extend(process.renew(self.enrolment));
        process.observe(conditions, self.ready);
        process
            .routes
            .add_service(front::Forward::new(self.node, collector, isolator));
        process.serve(incoming(listener, credentials), stop).await
    }
}

impl Worker {
    /// Serves on `listener` until `stop`, then lets running streams end.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn serve(
        self,
        listener: UnixListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), RunError> {
        let isolates = self.part == Part::Isolator;
        if isolates {
            require_capabilities()?;
        }
        let service = service(
            &self.node,
            &self.runtime,
            self.disk,
            isolates,
            &self.state_dir,
        )?;
        let freezer = service.freezer();
        // The isolator freezes nobody, so it has left nothing.
        if self.part == Part::Collector {
            take_over(&freezer)?;
        }
        tracing::info!(
            node = %self.node,
            part = %self.part,
            runtime = self.runtime.name(),
            front_uid = self.front_uid,
            "serving"
        );
        let mut process = Process::new(self.drain)?;
        process.observe(vec![Box::new(RuntimeAnswers(self.runtime))], None);
        process
            .routes
            .add_service(Door::new(self.part, service.served()));
        let incoming = Box::pin(local::incoming(listener, self.front_uid));
        process.serve(incoming, ending(stop, freezer)).await
    }
}

fn credentials(
    files: TlsFiles,
    node: &NodeName,
) -> Result<(Credentials<ServerConfig>, Reloader<ServerConfig>), RunError> {
    let own = PeerId::Agent { node: node.clone() };
    Ok(server_credentials(
        files,
        own,
        Peers::Only(PeerId::Controller),
    )?)
}

fn require_capabilities() -> Result<(), RunError> {
    let missing = isolate::missing_capabilities().map_err(RunError::OwnCapabilities)?;
    if missing.is_empty() {
        Ok(())
    } else {
        Err(RunError::Capabilities { missing })
    }
}

fn service(
    node: &NodeName,
    runtime: &Arc<dyn ContainerRuntime>,
    disk: Disk,
    isolates: bool,
    state_dir: &Path,
) -> Result<Service, RunError> {
    let executable = executable_sha256()?;
    tracing::info!(executable_sha256 = %executable, disk = %disk.root().display(), "reading containers");
    // Several agents of one machine don't let each other's containers go on.
    let frozen = state_dir.join(node.to_string()).join("frozen");
    Ok(Service::new(
        node.clone(),
        Arc::clone(runtime),
        disk,
        *executable.as_bytes(),
        isolates,
        frozen,
    ))
}

/// What an earlier process left paused goes on, in the background: the engine may be slow to answer.
fn take_over(freezer: &Arc<Freezer>) -> Result<(), RunError> {
    let left = freezer.left().map_err(RunError::Frozen)?;
    tokio::spawn(Arc::clone(freezer).let_go(left));
    Ok(())
}

/// The end of the process is the end of every freeze.
async fn ending(stop: impl Future<Output = ()>, freezer: Arc<Freezer>) {
    stop.await;
    freezer.thaw_all().await;
}

/// What every one of the processes does: health, reflection, readiness, drain.
struct Process {
    /// Each of these lives as long as the process; one that ends takes it down.
    parts: JoinSet<()>,
    routes: RoutesBuilder,
    reporter: HealthReporter,
    drain: Duration,
}

impl Process {
    fn new(drain: Duration) -> Result<Self, RunError> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(agent::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| RunError::Reflection(error.to_string()))?;
        let mut routes = RoutesBuilder::default();
        routes.add_service(health).add_service(reflection);
        Ok(Self {
            parts: JoinSet::new(),
            routes,
            reporter,
            drain,
        })
    }

    /// Keeps the certificate renewed; what is in the way of that is a condition.
    fn renew(&mut self, enrolment: Option<Enrolment>) -> Option<Box<dyn Condition>> {
        let (publish, trouble) = watch::channel(None);
        self.parts.spawn(enrolment?.keep(publish));
        Some(Box::new(trouble))
    }

    fn observe(&mut self, conditions: Vec<Box<dyn Condition>>, ready: Option<TcpListener>) {
        let (publish, pending) = watch::channel(vec!["not looked at yet".to_owned()]);
        self.parts.spawn(ready::observe(conditions, publish));
        self.parts
            .spawn(report(self.reporter.clone(), pending.clone()));
        if let Some(listener) = ready {
            self.parts.spawn(ready::serve(listener, pending));
        }
    }

    /// Serves the connections of `incoming` until `stop`, then lets running streams end.
    async fn serve<C>(
        mut self,
        incoming: impl Stream<Item = std::io::Result<C>>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), RunError>
    where
        C: AsyncRead
            + AsyncWrite
            + Connected<ConnectInfo: Clone + Send + Sync + 'static>
            + Unpin
            + Send
            + 'static,
    {
        let (stopping, stopped) = oneshot::channel::<()>();
        let server = http2::server(Server::builder())
            .layer(InterceptorLayer::new(unexpired))
            .layer(Served)
            .add_routes(self.routes.routes())
            .serve_with_incoming_shutdown(incoming, async {
                // An error means that the sender is gone, which is a reason to stop as well.
                let _ = stopped.await;
            });
        tokio::pin!(server);
        tokio::select! {
            ended = &mut server => {
                ended?;
                return Err(RunError::Ended { part: "server", source: None });
            }
            part = self.parts.join_next() => {
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
