//! A running cluster: the library's face.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::audit::{Audit, RequestRecord};
use crate::controllers;
use crate::core::Core;
use crate::fault::{Fault, FaultHandle, Faults};
use crate::kinds::pod_certificate::REQUESTS;
use crate::pki::Pki;
use crate::server;
use crate::state::{Shared, State};
use crate::tokens::Token;

/// The user of the kubeconfig.
pub(crate) const ADMIN: &str = "kubernetes-admin";

/// How a cluster is set up.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Nodes as `name` or `name=ip`; without an ip the node's InternalIP is 127.0.0.1.
    pub nodes: Vec<String>,
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// A file that every request is appended to, as one JSON line. By default a new one in the directory that
    /// KUBE_MEMORY_AUDIT_DIR names, if it does: what a whole run of tests called is there afterwards.
    pub audit: Option<PathBuf>,
    /// Scheduled pods become Ready at once and terminate by themselves. Without it somebody else must play kubelet.
    /// Which of both is said by each node's annotation `kube-memory/kubelet`: `instant` or `none`.
    pub instant_kubelet: bool,
    /// Serve PodCertificateRequests, as a cluster where they are turned on. By default a real one does not, either.
    pub pod_certificates: bool,
    /// How long the instant kubelet takes to end a terminating pod (at most: never longer than its grace period).
    pub termination: Duration,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            nodes: ["k8s-worker1", "k8s-worker2", "k8s-worker3"]
                .map(str::to_owned)
                .to_vec(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            audit: std::env::var_os("KUBE_MEMORY_AUDIT_DIR").map(|directory| {
                PathBuf::from(directory).join(format!("{}.jsonl", Uuid::new_v4()))
            }),
            instant_kubelet: true,
            pod_certificates: false,
            termination: Duration::from_millis(30),
        }
    }
}

/// A running API server with its controllers. Dropping it stops it.
#[derive(Debug)]
pub struct Cluster {
    core: Arc<Core>,
    address: SocketAddr,
    ca_pem: String,
    token: String,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Cluster {
    /// Starts the server and the controllers; when it returns, requests are answered and the nodes are there.
    pub async fn start(config: ClusterConfig) -> anyhow::Result<Self> {
        Self::serve(config, None).await
    }

    /// A door in front of a real API server, which `client` reaches: faults and log are the same, and every
    /// request that meets with no fault goes on to it, in the name of the client's user whoever asks here.
    pub async fn in_front_of(client: kube::Client) -> anyhow::Result<Self> {
        Self::serve(ClusterConfig::default(), Some(client)).await
    }

    async fn serve(config: ClusterConfig, real: Option<kube::Client>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("listening on {}", config.listen))?;
        let address = listener.local_addr().context("the address listened on")?;
        let pki = Pki::new(address.ip())?;
        let file = config
            .audit
            .as_ref()
            .map(|path| {
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("opening the audit file {}", path.display()))
            })
            .transpose()?;
        let mut state = State::new(pki.ca_pem.clone());
        let token = Uuid::new_v4().simple().to_string();
        state.tokens.insert(token.clone(), Token::of(ADMIN));
        if !config.pod_certificates {
            state.registry.remove(REQUESTS);
        }
        let in_memory = real.is_none();
        if in_memory {
            let kubelet = if config.instant_kubelet {
                "instant"
            } else {
                "none"
            };
            controllers::furnish(&mut state, &config.nodes, kubelet)
                .map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        }
        let core = Arc::new(Core {
            shared: Shared::new(state),
            audit: Audit::new(file),
            faults: Faults::default(),
            cuts: watch::Sender::new(0),
            held: watch::Sender::new(false),
            real,
        });
        let (stop, stopped) = watch::channel(false);
        let kubelet = config.instant_kubelet.then_some(config.termination);
        let serving = server::serve(listener, pki.server, core.clone(), stopped.clone());
        let mut tasks = vec![tokio::spawn(serving)];
        if in_memory {
            tasks.push(tokio::spawn(controllers::run(
                core.clone(),
                kubelet,
                stopped,
            )));
        }
        Ok(Self {
            core,
            address,
            ca_pem: pki.ca_pem,
            token,
            stop,
            tasks,
        })
    }

    /// `https://address:port`
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A kubeconfig of the administrator, with the CA and a bearer token in it.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_text(ADMIN, &self.token)
    }

    /// A kubeconfig that authenticates as another user (a service account is `system:serviceaccount:namespace:name`).
    pub fn kubeconfig_as(&self, user: &str) -> String {
        let token = Uuid::new_v4().simple().to_string();
        self.core
            .shared
            .with(|state| state.tokens.insert(token.clone(), Token::of(user)));
        self.kubeconfig_text(user, &token)
    }

    /// A token of `user` that `audience` may accept, and this server not.
    pub fn token_for(&self, user: &str, audience: &str) -> String {
        let token = Uuid::new_v4().simple().to_string();
        let made = Token {
            audiences: vec![audience.to_owned()],
            ..Token::of(user)
        };
        let shared = &self.core.shared;
        shared.with(|state| state.tokens.insert(token.clone(), made));
        token
    }

    fn kubeconfig_text(&self, user: &str, token: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: kube-memory\n\
             clusters:\n- name: kube-memory\n  cluster:\n    server: {url}\n    certificate-authority-data: {ca}\n\
             users:\n- name: {user:?}\n  user:\n    token: {token:?}\n\
             contexts:\n- name: kube-memory\n  context:\n    cluster: kube-memory\n    user: {user:?}\n",
            url = self.url(),
            ca = STANDARD.encode(&self.ca_pem),
        )
    }

    /// Every request so far, in the order of their answers.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.core.audit.records()
    }

    /// Injects a fault; it stays until its count is used up or its handle removes it.
    pub fn inject(&self, fault: Fault) -> FaultHandle {
        self.core.faults.inject(fault)
    }

    /// Ends all running watches, as a restart of an API server does.
    pub fn cut_watches(&self) {
        self.core.cut_watches();
    }

    /// Forgets all changes so far: watches from older versions end with 410.
    pub fn compact(&self) {
        self.core.shared.with(|state| state.store.compact());
    }

    /// Stops (true) or resumes (false) the built-in controllers, to look at the moment before they act.
    pub fn hold_controllers(&self, held: bool) {
        self.core.held.send_replace(held);
    }

    /// Stops the server and waits for its tasks.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        self.core.cut_watches();
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a server task ended badly");
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
