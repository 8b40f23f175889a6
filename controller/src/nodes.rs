//! Where a node's agent listens: asked of the Node object, never of the agent.

use async_trait::async_trait;
use kube::Client;

use crate::agents::{NodeAddress, NodeDirectory, NodeDirectoryError};
use crate::contain::{node, observe};

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
