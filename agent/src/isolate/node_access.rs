//! The node's own way to a pod: from which addresses it connects there, as its routes say.
//!
//! The kubelet's probes come from the node. Which address they have depends on the network plugin (a
//! bridge's, a tunnel's, the node's own), so the kernel is asked: a UDP socket that is connected to the
//! pod has the address that a packet would have, and sends none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use super::allow::{Allow, Direction, Protocol};
use super::namespace::{NamespaceError, NetworkNamespace};

/// Any port: nothing is sent to it.
const PORT: u16 = 9;

/// Lets the node itself connect to a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeAccess {
    /// The pod's addresses.
    pub(crate) pod_addresses: Vec<IpAddr>,
    /// TCP ports of the pod.
    pub(crate) ports: Vec<u16>,
}

impl NodeAccess {
    /// The addresses that the node has towards the pod, and the exceptions that let them in.
    pub(super) async fn resolve(
        &self,
        host: &NetworkNamespace,
    ) -> Result<(Vec<IpAddr>, Vec<Allow>), NamespaceError> {
        let sources = sources(host, &self.pod_addresses).await?;
        let rules = sources.iter().flat_map(|source| {
            self.ports.iter().map(|port| Allow {
                direction: Direction::Ingress,
                cidr: (*source).into(),
                protocol: Protocol::Tcp,
                port: Some(*port),
            })
        });
        let rules = rules.collect();
        Ok((sources, rules))
    }
}

/// The addresses that packets from `host` to these have, each once. A destination without a route has
/// none.
pub(super) async fn sources(
    host: &NetworkNamespace,
    to: &[IpAddr],
) -> Result<Vec<IpAddr>, NamespaceError> {
    let to = to.to_vec();
    host.run(move || {
        let mut found = Vec::new();
        for address in to {
            match source(address) {
                Ok(source) if found.contains(&source) => {}
                Ok(source) => found.push(source),
                Err(error) => tracing::warn!(%address, %error, "this node has no way to the pod"),
            }
        }
        found
    })
    .await
}

/// Of the calling thread's namespace.
fn source(to: IpAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((to, PORT))?;
    Ok(socket.local_addr()?.ip())
}
