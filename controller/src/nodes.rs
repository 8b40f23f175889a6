//! Where a node's agent listens: asked of the Node object, never of the agent.

use async_trait::async_trait;
use kube::Client;

use crate::agents::{AgentError, NodeAddress, NodeDirectory};
use crate::contain::{node, observe};
use crate::describe::describe;

/// Node addresses out of the Kubernetes API.
pub struct NodeAddresses {
    client: Client,
    port: u16,
}

impl NodeAddresses {
    /// Agents listen at their node's first InternalIP and this port.
    #[must_use]
    pub fn new(client: Client, port: u16) -> Self {
        Self { client, port }
    }
}

#[async_trait]
impl NodeDirectory for NodeAddresses {
    async fn address(&self, name: &str) -> Result<NodeAddress, AgentError> {
        let node = name.to_owned();
        let found =
            observe::node(&self.client, name)
                .await
                .map_err(|error| AgentError::Directory {
                    node: node.clone(),
                    reason: describe(&error),
                })?;
        let Some(found) = found else {
            return Err(AgentError::NoSuchNode { node });
        };
        let ip = node::internal_ip(&found)
            .and_then(|ip| ip.parse().ok())
            .ok_or(AgentError::NoAddress { node: node.clone() })?;
        let info = found.status.and_then(|status| status.node_info);
        Ok(NodeAddress {
            name: node,
            boot_id: info.map(|info| info.boot_id).filter(|id| !id.is_empty()),
            uid: found.metadata.uid.unwrap_or_default(),
            ip,
            port: self.port,
        })
    }
}
