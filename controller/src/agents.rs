//! The channel to the agent of a node: found through the Node object, verified to be that node's
//! agent and no other, kept while it works.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use async_trait::async_trait;
use impound_evidence::Agent;
use impound_evidence::Sha256;
use impound_proto::PeerId;
use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::agent::v1::{InfoRequest, InfoResponse};
use impound_proto::identity::IdentityError;
use impound_proto::tls::{self, ConnectError, Connector, Credentials, Link, ShownCertificate};
use rustls::ClientConfig;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::locked::locked;
use crate::revoked::{CONFIG_MAP, Revoked};

/// Longest time that `Info` may take: it reads nothing but the runtime's version.
const INFO_TIMEOUT: Duration = Duration::from_secs(10);

/// Greatest message from an agent, in bytes: a chunk is 1 MiB at most, a batch of a diff half of it,
/// and the list of a pod's containers far less.
const MESSAGE_LIMIT: usize = 2 << 20;
/// Longest word of an agent about itself, in characters.
const WORD_LIMIT: usize = 256;

/// Where a node's agent listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeAddress {
    /// Name of the Node object.
    pub name: String,
    /// metadata.uid of the Node object.
    pub uid: String,
    /// Its status.nodeInfo.bootID.
    pub boot_id: Option<String>,
    /// The node's InternalIP.
    pub ip: IpAddr,
    /// Port of the agent.
    pub port: u16,
}

/// Knows the nodes of the cluster.
#[async_trait]
pub trait NodeDirectory: Send + Sync {
    /// The address of a node's agent, from the Node object and never from the agent.
    async fn address(&self, node: &str) -> Result<NodeAddress, AgentError>;
}

/// Connects to agents. Cheap to clone; clones share the channels.
#[derive(Clone)]
pub struct AgentConnector {
    credentials: Credentials<ClientConfig>,
    nodes: Arc<dyn NodeDirectory>,
    revoked: Revoked,
    channels: Arc<Mutex<HashMap<NodeAddress, Open>>>,
    cuts: Arc<StdMutex<HashMap<String, CancellationToken>>>,
}

/// A channel that is kept.
#[derive(Clone)]
struct Open {
    link: Link,
    shown: ShownCertificate,
}

/// A connection to one node's agent.
pub struct AgentConnection {
    /// Client of the agent's service.
    pub client: AgentClient<Link>,
    /// Where it is.
    pub address: NodeAddress,
    /// What the agent said of itself.
    pub info: InfoResponse,
    /// The agent's clock minus ours, in milliseconds, by the middle of the call.
    pub clock_offset_ms: i64,
    shown: ShownCertificate,
}

/// Why an agent can't be asked.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The node does not exist.
    #[error("node {node} does not exist: check `kubectl get nodes`")]
    NoSuchNode {
        /// Node asked for.
        node: String,
    },
    /// The Node object says no address.
    #[error(
        "node {node} has no InternalIP in its status, so its agent can't be reached: the kubelet or the cloud's controller sets it"
    )]
    NoAddress {
        /// Node asked for.
        node: String,
    },
    /// The Kubernetes API did not answer.
    #[error("the address of node {node} could not be read: {reason}")]
    Directory {
        /// Node asked for.
        node: String,
        /// Why.
        reason: String,
    },
    /// The node's name can't be in a certificate.
    #[error("node {node} can't have an agent")]
    Name {
        /// Node asked for.
        node: String,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// The node is not trusted any more.
    #[error(
        "node {node} is revoked ({reason}): its agent is not talked to; see the ConfigMap {CONFIG_MAP}"
    )]
    Revoked {
        /// Node asked for.
        node: String,
        /// Why, as the list says.
        reason: String,
    },
    /// No connection.
    #[error(
        "the agent of node {node} can't be reached at {address}: check that the agent's pod runs there \
         and that its certificate is valid"
    )]
    Connect {
        /// Node asked for.
        node: String,
        /// Address and port.
        address: String,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// It answered with an error, or not in time.
    #[error("the agent of node {node} does not answer: {reason}; see its pod's log")]
    Info {
        /// Node asked for.
        node: String,
        /// Why.
        reason: String,
    },
    /// It says it is of another node than its certificate.
    #[error(
        "the agent of node {node} says it is the agent of {said}: it was started with a wrong --node, or its certificate is on the wrong node"
    )]
    OtherNode {
        /// Node asked for.
        node: String,
        /// Node it says.
        said: String,
    },
}

impl AgentError {
    /// Whether asking again later can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Directory { .. } | Self::Connect { .. } | Self::Info { .. }
        )
    }
}

impl AgentConnector {
    /// `credentials` are the controller's own towards agents; their roots are the agent CA alone.
    #[must_use]
    pub fn new(
        credentials: Credentials<ClientConfig>,
        nodes: Arc<dyn NodeDirectory>,
        revoked: Revoked,
    ) -> Self {
        Self {
            credentials,
            nodes,
            revoked,
            channels: Arc::default(),
            cuts: Arc::default(),
        }
    }

    /// Ends what is connected to nodes that are revoked, for as long as the process lives.
    pub async fn cut_revoked(&self) {
        let mut revoked = self.revoked.clone();
        loop {
            revoked.changed().await;
            let is_revoked = |uid: &str| revoked.reason(uid).is_some();
            locked(&self.cuts).retain(|uid, cut| {
                let Some(reason) = revoked.reason(uid) else {
                    return true;
                };
                tracing::warn!(
                    node_uid = uid,
                    reason,
                    "cut off from the agent: the node is revoked"
                );
                cut.cancel();
                false
            });
            let mut channels = self.channels.lock().await;
            channels.retain(|address, _| !is_revoked(&address.uid));
        }
    }

    /// What ends all connections to the node at once, those too that are not kept any more and go on with a stream.
    fn cut(&self, uid: &str) -> CancellationToken {
        locked(&self.cuts)
            .entry(uid.to_owned())
            .or_default()
            .clone()
    }

    /// Connects to the agent of a node and asks who it is.
    ///
    /// # Errors
    /// [`AgentError`]; a failed channel is forgotten, so the next attempt begins afresh.
    pub async fn connect(&self, node: &str) -> Result<AgentConnection, AgentError> {
        let address = self.nodes.address(node).await?;
        self.connect_at(address).await
    }

    /// The same, if the agent has answered within `limit`; how long Kubernetes takes to say where it is does not count.
    ///
    /// # Errors
    /// As [`AgentConnector::connect`].
    pub async fn connect_within(
        &self,
        node: &str,
        limit: Duration,
    ) -> Result<AgentConnection, AgentError> {
        let address = self.nodes.address(node).await?;
        match timeout(limit, self.connect_at(address.clone())).await {
            Ok(answer) => answer,
            Err(_) => {
                self.forget(&address).await;
                Err(AgentError::Info {
                    node: node.into(),
                    reason: format!("no answer within {} s", limit.as_secs()),
                })
            }
        }
    }

    async fn connect_at(&self, address: NodeAddress) -> Result<AgentConnection, AgentError> {
        let node = address.name.as_str();
        // Before the look at the list: a revocation after that look finds it.
        let cut = self.cut(&address.uid);
        if let Some(reason) = self.revoked.reason(&address.uid) {
            return Err(AgentError::Revoked {
                node: node.into(),
                reason,
            });
        }
        let Open { link, shown } = self.open(&address, cut).await?;
        let mut client = AgentClient::new(link).max_decoding_message_size(MESSAGE_LIMIT);
        let asked = OffsetDateTime::now_utc();
        let answer = timeout(INFO_TIMEOUT, client.info(InfoRequest {})).await;
        let answered = OffsetDateTime::now_utc();
        let info = match answer {
            Ok(Ok(info)) => info.into_inner(),
            Ok(Err(status)) => {
                self.forget(&address).await;
                return Err(AgentError::Info {
                    node: node.into(),
                    reason: tls::explain(&status),
                });
            }
            Err(_) => {
                self.forget(&address).await;
                let reason = format!("no answer within {} s", INFO_TIMEOUT.as_secs());
                return Err(AgentError::Info {
                    node: node.into(),
                    reason,
                });
            }
        };
        if info.node != node {
            return Err(AgentError::OtherNode {
                node: node.into(),
                said: info.node,
            });
        }
        let clock_offset_ms = clock_offset_ms(&info, asked, answered);
        Ok(AgentConnection {
            client,
            address,
            info,
            clock_offset_ms,
            shown,
        })
    }

    async fn open(
        &self,
        address: &NodeAddress,
        cut: CancellationToken,
    ) -> Result<Open, AgentError> {
        if let Some(open) = self.channels.lock().await.get(address) {
            return Ok(open.clone());
        }
        let expected = PeerId::agent(&address.name).map_err(|source| AgentError::Name {
            node: address.name.clone(),
            source,
        })?;
        let at = match address.ip {
            IpAddr::V4(ip) => format!("{ip}:{}", address.port),
            IpAddr::V6(ip) => format!("[{ip}]:{}", address.port),
        };
        let failed = |source| AgentError::Connect {
            node: address.name.clone(),
            address: at.clone(),
            source,
        };
        let connector = Connector::new(self.credentials.clone(), expected)
            .map_err(failed)?
            .of_node(&address.uid)
            .until(cut);
        let (link, shown) = tls::link(&at, connector).await.map_err(failed)?;
        let open = Open { link, shown };
        self.channels
            .lock()
            .await
            .insert(address.clone(), open.clone());
        Ok(open)
    }

    async fn forget(&self, address: &NodeAddress) {
        self.channels.lock().await.remove(address);
    }
}

impl AgentConnection {
    /// Last instant of the certificate that the agent showed.
    #[must_use]
    pub fn certificate_not_after(&self) -> Option<OffsetDateTime> {
        self.shown.not_after()
    }

    /// Who was talked to, for the manifest.
    #[must_use]
    pub fn described(&self) -> Agent {
        let executable: Option<[u8; 32]> = self.info.executable_sha256.as_slice().try_into().ok();
        Agent {
            identity: PeerId::agent(&self.address.name)
                .map_or_else(|_| self.address.name.clone(), |peer| peer.to_string()),
            certificate_sha256: Sha256::from(self.shown.sha256().unwrap_or_default()),
            version: word(&self.info.agent_version),
            executable_sha256: executable.map(Sha256::from),
            runtime: word(&self.info.runtime),
            runtime_version: word(&self.info.runtime_version),
            clock_offset_ms: Some(self.clock_offset_ms),
        }
    }
}

fn word(text: &str) -> String {
    text.chars().take(WORD_LIMIT).collect()
}

/// The agent read its clock at some moment between our question and its answer: the middle is
/// wrong by half the call's duration at most.
fn clock_offset_ms(info: &InfoResponse, asked: OffsetDateTime, answered: OffsetDateTime) -> i64 {
    let Some(now) = info.now.as_ref() else {
        return 0;
    };
    let theirs = i128::from(now.seconds) * 1_000_000_000 + i128::from(now.nanos);
    let ours = (asked.unix_timestamp_nanos() + answered.unix_timestamp_nanos()) / 2;
    i64::try_from((theirs - ours) / 1_000_000).unwrap_or(0)
}
