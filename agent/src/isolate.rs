//! Isolation of a suspect pod at the node: one nftables table in the pod's own network namespace that
//! drops everything in and out.
//!
//! ```text
//! Isolate -> sandbox (pod -> container -> process -> namespace) -> namespace (a thread inside)
//!         -> nft (read, compare, replace, read again) -> the kernel
//! ```
//! It needs no network plugin, no owner reference and no policy engine, and it also stops what a
//! NetworkPolicy leaves alone: established connections, traffic to and from the pod's own node, and
//! other policies that allow. The table (`inet impound`: chains input, forward and output at priority
//! -350, policy drop) is set in one transaction and is the only one that is touched; the host's
//! namespace is never entered for a change. It lives in the kernel: an agent that is restarted or gone
//! leaves it in force, and a new one finds it by its name.
//!
//! # What it needs
//! Off unless the agent is started with `--allow-isolation`. Then the agent has to share the node's
//! process ids (`hostPID`) and, besides the runtime's socket, hold:
//!
//! | capability | for | why |
//! |---|---|---|
//! | `CAP_SYS_PTRACE` | all four calls | opening `/proc/PID/ns/net` of another's process, reading what it holds |
//! | `CAP_SYS_ADMIN` | all four calls | `setns(2)` into a network namespace, on a thread that then ends |
//! | `CAP_NET_ADMIN` | Isolate, InspectIsolation, LiftIsolation | the kernel lists and sets rules for nobody else |
//!
//! The agent refuses to start with the flag and without these. With AppArmor its profile has to be
//! `Unconfined`: the default one forbids looking at processes outside of it. Seccomp profiles that filter `setns`
//! only without `CAP_SYS_ADMIN` (Docker's, the kubelet's default) do not hinder it. The node's kernel
//! needs nf_tables with the family inet (Linux 3.14) and, for case and time in the table, Linux 5.10.
//!
//! # What passes
//! - Loopback, unless it is to be dropped too: it cannot leave the pod, and a pod whose containers no
//!   longer reach each other fails its exec probes and sidecars; the kubelet then restarts containers,
//!   which costs their writable layer.
//! - What the request allows, with its answers. **A TCP or HTTP liveness probe comes from the node and is
//!   dropped like all else**: let the node in at the probe's port (`node_access`), or the kubelet kills
//!   the container after failureThreshold x periodSeconds, and the evidence in it is gone.
//! - ARP, and with an IPv6 exception neighbour discovery: without it no permitted packet finds its way.
//!
//! # What it cannot hold
//! Both Isolate and InspectIsolation report these for the processes that are there now:
//! - `CAP_NET_ADMIN` inside the pod: such a process can remove the table. InspectIsolation then says so;
//!   call it regularly, and Isolate again.
//! - `CAP_NET_RAW`, which Docker gives every root container: a packet socket (`AF_PACKET`) sends and
//!   receives frames that come past no hook of the family inet.
//! - A container of the pod in another network namespace, or one with `CAP_SYS_ADMIN`, which can go to
//!   one.
//!
//! Not seen at all: what is no network of this namespace, such as volumes, sockets on a hostPath, the
//! runtime's socket, vsock. A pod in the host's network is refused: its traffic is the node's.
//!
//! A sandbox that is made anew (node restarted, pause process killed) has a new namespace without a
//! table. InspectIsolation then answers with another sandbox id and `isolated` false: isolate again.

pub(crate) mod allow;
pub(crate) mod namespace;
mod nft;
pub(crate) mod node_access;
pub(crate) mod probe;
pub(crate) mod record;
pub(crate) mod rules;
pub(crate) mod sandbox;
pub(crate) mod weakness;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, Semaphore};

use crate::runtime::{ContainerRuntime, RuntimeError};
use namespace::NamespaceError;
use nft::{NftError, Socket};
use node_access::NodeAccess;
use probe::Attempt;
use record::{Holder, Record};
use rules::Exceptions;
use sandbox::{Pod, Sandbox};
use weakness::Weakness;

/// Calls that probe at the same time, each with up to 32 sockets for up to 10 s.
const PROBES: usize = 4;

/// What the agent must hold, with its bit in the masks of /proc/PID/status.
const CAPABILITIES: [(u32, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
];

/// Isolates pods of one node.
pub(crate) struct Isolation {
    runtime: Arc<dyn ContainerRuntime>,
    /// Reading, comparing and replacing is one step.
    tables: Mutex<()>,
    probes: Semaphore,
}

/// Where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) sandbox: String,
    pub(crate) netns_inode: u64,
}

/// An isolation that is in force.
pub(crate) struct Isolated {
    pub(crate) place: Place,
    pub(crate) installed: bool,
    pub(crate) replaced: bool,
    pub(crate) record: Option<Record>,
    pub(crate) weaknesses: Vec<Weakness>,
    /// The node's, which are let in.
    pub(crate) node_addresses: Vec<IpAddr>,
}

/// What is there.
pub(crate) struct Inspected {
    pub(crate) place: Place,
    pub(crate) present: bool,
    pub(crate) differences: Vec<String>,
    pub(crate) rules: Vec<String>,
    pub(crate) dropped: Dropped,
    pub(crate) record: Option<Record>,
    pub(crate) weaknesses: Vec<Weakness>,
    /// As in [`Isolated`].
    pub(crate) node_addresses: Vec<IpAddr>,
}

/// Packets and bytes, by chain.
#[derive(Default)]
pub(crate) struct Dropped {
    pub(crate) input: (u64, u64),
    pub(crate) output: (u64, u64),
    pub(crate) forward: (u64, u64),
}

/// How connection attempts ended.
pub(crate) struct Probed {
    pub(crate) place: Place,
    pub(crate) from_pod: Vec<Attempt>,
    pub(crate) from_node: Vec<Attempt>,
}

impl Isolation {
    /// Isolates pods that `runtime` runs.
    pub(crate) fn new(runtime: Arc<dyn ContainerRuntime>) -> Self {
        Self {
            runtime,
            tables: Mutex::new(()),
            probes: Semaphore::new(PROBES),
        }
    }

    /// Sets the table, unless exactly its rules are there already. Read back before it is reported.
    pub(crate) async fn isolate(
        &self,
        pod: &Pod,
        holder: Holder,
        exceptions: &Exceptions,
        access: &NodeAccess,
    ) -> Result<Isolated, IsolateError> {
        let _alone = self.tables.lock().await;
        let sandbox = Sandbox::find(&*self.runtime, pod).await?;
        let (exceptions, node_addresses) = admit(exceptions, access, &sandbox).await?;
        let record = Record {
            holder,
            since: SystemTime::now(),
        };
        let wanted = rules::table(&exceptions, record.to_string());
        let work = move || -> Result<_, IsolateError> {
            let mut socket = Socket::open()?;
            let before = socket.table(rules::TABLE)?;
            if let Some(present) = &before
                && rules::differences(&wanted, present).is_empty()
            {
                return Ok((false, false, record_of(present)));
            }
            socket.replace(&wanted)?;
            let after = socket.table(rules::TABLE)?;
            let differences = match &after {
                Some(present) => rules::differences(&wanted, present),
                None => vec!["it is not there".to_owned()],
            };
            if differences.is_empty() {
                Ok((true, before.is_some(), after.as_ref().and_then(record_of)))
            } else {
                Err(IsolateError::NotInForce { differences })
            }
        };
        let (installed, replaced, record) = sandbox.namespace.run(work).await??;
        let place = Place::of(&sandbox);
        tracing::info!(
            %pod,
            container = place.sandbox,
            netns = place.netns_inode,
            installed,
            replaced,
            allowed = exceptions.allow.len(),
            "isolated"
        );
        Ok(Isolated {
            place,
            installed,
            replaced,
            record,
            weaknesses: look(sandbox).await?,
            node_addresses,
        })
    }

    /// What of the table is there, compared with what [`Isolation::isolate`] sets.
    pub(crate) async fn inspect(
        &self,
        pod: &Pod,
        exceptions: &Exceptions,
        access: &NodeAccess,
    ) -> Result<Inspected, IsolateError> {
        let _alone = self.tables.lock().await;
        let sandbox = Sandbox::find(&*self.runtime, pod).await?;
        let (exceptions, node_addresses) = admit(exceptions, access, &sandbox).await?;
        let wanted = rules::table(&exceptions, String::new());
        let work = || Socket::open()?.table(rules::TABLE);
        let found = sandbox.namespace.run(work).await??;
        let place = Place::of(&sandbox);
        let weaknesses = look(sandbox).await?;
        let Some(table) = found else {
            return Ok(Inspected {
                place,
                present: false,
                differences: Vec::new(),
                rules: Vec::new(),
                dropped: Dropped::default(),
                record: None,
                weaknesses,
                node_addresses,
            });
        };
        Ok(Inspected {
            place,
            present: true,
            differences: rules::differences(&wanted, &table),
            rules: rules::text(&table),
            dropped: Dropped {
                input: rules::dropped(&table, "input"),
                output: rules::dropped(&table, "output"),
                forward: rules::dropped(&table, "forward"),
            },
            record: record_of(&table),
            weaknesses,
            node_addresses,
        })
    }

    /// Removes the table if it is there for `holder`, or whatever it is there for if forced. False:
    /// there was none, or no namespace any more.
    pub(crate) async fn lift(
        &self,
        pod: &Pod,
        holder: &Holder,
        force: bool,
    ) -> Result<bool, IsolateError> {
        let _alone = self.tables.lock().await;
        let sandbox = match Sandbox::find(&*self.runtime, pod).await {
            // The table went with the namespace.
            Err(IsolateError::NoSandbox { .. }) => return Ok(false),
            other => other?,
        };
        let (wanted, whose) = (holder.clone(), pod.clone());
        let work = move || -> Result<bool, IsolateError> {
            let mut socket = Socket::open()?;
            let Some(present) = socket.table(rules::TABLE)? else {
                return Ok(false);
            };
            if let Some(record) = record_of(&present)
                && record.holder != wanted
                && !force
            {
                return Err(IsolateError::HeldByOther {
                    pod: whose,
                    holder: record.holder,
                });
            }
            socket.remove(rules::TABLE)?;
            match socket.table(rules::TABLE)? {
                None => Ok(true),
                Some(_) => Err(IsolateError::StillThere),
            }
        };
        let removed = sandbox.namespace.run(work).await??;
        tracing::info!(%pod, container = %sandbox.id, netns = sandbox.namespace.id.inode, removed, force, "isolation lifted");
        Ok(removed)
    }

    /// Tries TCP connections, all at the same time, each for at most `limit`; out of the pod also to
    /// `node_port` of the addresses that the node has towards `from_node`.
    pub(crate) async fn probe(
        &self,
        pod: &Pod,
        from_pod: &[SocketAddr],
        from_node: &[SocketAddr],
        node_port: Option<u16>,
        limit: Duration,
    ) -> Result<Probed, IsolateError> {
        let _slot = self
            .probes
            .acquire()
            .await
            .map_err(|_| IsolateError::Closed)?;
        let sandbox = Sandbox::find(&*self.runtime, pod).await?;
        let mut from_pod = from_pod.to_vec();
        if let Some(port) = node_port {
            let pods: Vec<IpAddr> = from_node.iter().map(SocketAddr::ip).collect();
            let nodes = node_access::sources(&sandbox.host, &pods).await?;
            from_pod.extend(nodes.into_iter().map(|node| SocketAddr::new(node, port)));
        }
        let (from_pod, from_node) = tokio::try_join!(
            probe::connect(&sandbox.namespace, &from_pod, limit),
            probe::connect(&sandbox.host, from_node, limit),
        )?;
        Ok(Probed {
            place: Place::of(&sandbox),
            from_pod,
            from_node,
        })
    }
}

/// Capabilities that isolation needs and this process does not hold.
pub(crate) fn missing_capabilities() -> io::Result<Vec<&'static str>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::Error::other("expected a line CapEff in /proc/self/status"))?;
    let missing = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 0);
    Ok(missing.map(|(_, name)| *name).collect())
}

/// The exceptions, with those that let the node itself in, and its addresses.
async fn admit(
    exceptions: &Exceptions,
    access: &NodeAccess,
    sandbox: &Sandbox,
) -> Result<(Exceptions, Vec<IpAddr>), IsolateError> {
    let (addresses, rules) = access.resolve(&sandbox.host).await?;
    // Without the exception the kubelet's probes are dropped, and it kills what does not answer: rather
    // leave what is there than set a table that costs the evidence.
    if addresses.is_empty() && !access.ports.is_empty() {
        return Err(IsolateError::NoWayToPod {
            addresses: access.pod_addresses.clone(),
        });
    }
    let mut exceptions = exceptions.clone();
    exceptions.allow.extend(rules);
    Ok((exceptions, addresses))
}

/// Reads all of /proc, so on a thread for blocking work.
async fn look(sandbox: Sandbox) -> Result<Vec<Weakness>, IsolateError> {
    tokio::task::spawn_blocking(move || weakness::look(&sandbox))
        .await
        .map_err(|_| IsolateError::Closed)
}

impl Place {
    fn of(sandbox: &Sandbox) -> Self {
        Self {
            sandbox: sandbox.id.to_string(),
            netns_inode: sandbox.namespace.id.inode,
        }
    }
}

/// The record of a table, if it has one that can be read.
fn record_of(table: &nft::Table) -> Option<Record> {
    table.comment.as_deref()?.parse().ok()
}

/// Why a pod was not isolated, inspected, released or probed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IsolateError {
    #[error("this node's runtime has no container of pod {pod}")]
    UnknownPod { pod: Pod },
    #[error(
        "pod {pod} is not on this node, but another of the same name with uid {found}: it was made anew"
    )]
    OtherUid { pod: Pod, found: String },
    #[error(
        "pod {pod} has no running sandbox, so no network: there is nothing to isolate now, and what starts later is not isolated"
    )]
    NoSandbox { pod: Pod },
    #[error(
        "pod {pod} has {count} running sandboxes, expected one: try again when the kubelet has stopped the old one"
    )]
    SeveralSandboxes { pod: Pod, count: usize },
    #[error("a container of pod {pod} was stopped or restarted at this moment: try again")]
    Changed { pod: Pod },
    #[error(
        "process {pid} is not of container {container}, though the runtime says so: the agent has to run with hostPID, on the node itself"
    )]
    NotItsProcess { pid: u32, container: String },
    #[error(
        "pod {pod} is in the host's network: its traffic cannot be told from the node's and is not isolated here; cut the node off instead"
    )]
    HostNetwork { pod: Pod },
    #[error("pod {pod} is isolated for quarantine {} of case {}, which has to release it (or force it)", holder.quarantine, holder.case)]
    HeldByOther { pod: Pod, holder: Holder },
    #[error("the table was set but is not as set, so the pod is not isolated: {}", differences.join("; "))]
    NotInForce { differences: Vec<String> },
    #[error("the table was removed but is still there: somebody in the pod sets it")]
    StillThere,
    #[error(
        "the host's network namespace is not to be seen, so no pod can be told from it: {first}; {runtime}"
    )]
    NoHost { first: String, runtime: String },
    #[error(
        "the node has no way to the pod's addresses ({addresses:?}), so its probes can't be let in, and the kubelet would \
         restart the containers: try again when the pod has its network, or drop the probes as well (--drop-probes)"
    )]
    NoWayToPod { addresses: Vec<IpAddr> },
    #[error("the agent is shutting down")]
    Closed,
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Nft(#[from] NftError),
}
