//! Issues the agents' certificates: who proves to be the agent of a node gets one for exactly that node.
//!
//! ```text
//! agent --token of its pod, request for its key--> Issuer
//!    TokenReview      the API server says whose token it is, of which pod, on which node
//! kubelet --PodCertificateRequest for that pod--> API server --watch--> pods
//!    proof            is that our agent's service account, a living pod of our DaemonSet, that very node
//!    revoked          is the node still trusted
//!    agent CA         signs, with every name set here
//! ```
//! The port is open to whoever reaches it: the caller has no certificate yet. So everything is bounded,
//! and nothing is asked of the API before sizes are checked and a slot is free.

mod pods;
mod proof;
mod used;

use std::sync::Arc;
use std::time::Duration;

use impound_proto::PeerId;
use impound_proto::issuer::v1::issuer_server::Issuer;
use impound_proto::issuer::v1::{IssueAgentCertificateRequest, IssueAgentCertificateResponse};
use impound_proto::pki::{Ca, CertifyError, ProvenKey, Validity};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::Api;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, Semaphore};
use tonic::{Request, Response, Status};

use crate::kubernetes::{ApiError, from_kube, token};
use crate::revoked::Revoked;
pub use pods::{LEAST_LIFE, SIGNER};
pub use proof::{AUDIENCE, Rules};
use proof::{Claim, Refused};
use used::UsedTokens;

/// Largest request message, bytes: a token and a certificate request and some room.
pub const REQUEST_LIMIT: usize = 32 << 10;

/// Largest token. Kubernetes' are about 1 KiB.
const TOKEN_LIMIT: usize = 16 << 10;

/// Largest certificate request. One for a P-256 key without names has 200 bytes.
const CSR_LIMIT: usize = 4 << 10;

/// Requests at the same time. Each costs three calls to the Kubernetes API; a cluster of 1,000 nodes that
/// starts at once is served within seconds all the same.
const SLOTS: usize = 16;

/// How long a request waits for a slot before it is told to come again.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);

/// Signs for agents.
pub struct AgentIssuer {
    client: Client,
    ca: Ca,
    rules: Rules,
    life: time::Duration,
    revoked: Revoked,
    used: Mutex<UsedTokens>,
    slots: Semaphore,
}

impl AgentIssuer {
    /// `ca` is the agent CA, `life` how long its certificates are valid.
    #[must_use]
    pub fn new(
        client: Client,
        ca: Ca,
        rules: Rules,
        life: time::Duration,
        revoked: Revoked,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            ca,
            rules,
            life,
            revoked,
            used: Mutex::default(),
            slots: Semaphore::new(SLOTS),
        })
    }

    async fn issue(
        &self,
        request: &IssueAgentCertificateRequest,
    ) -> Result<IssueAgentCertificateResponse, IssueError> {
        bounded("token", request.token.len(), TOKEN_LIMIT)?;
        bounded(
            "certificate_request",
            request.certificate_request.len(),
            CSR_LIMIT,
        )?;
        let slot = tokio::time::timeout(SLOT_PATIENCE, self.slots.acquire()).await;
        let Ok(Ok(_slot)) = slot else {
            return Err(IssueError::Busy);
        };
        let (claim, credential) = self.claim(&request.token).await?;
        let validity = Validity::from_now(self.life);
        let key = ProvenKey::Request(&request.certificate_request);
        let certificate = self.certify(&claim, key, validity).await?;
        // Last: what was refused for another reason has not used the token up.
        let key: [u8; 32] = Sha256::digest(&request.certificate_request).into();
        if !self.used.lock().await.admit(&credential, key) {
            return Err(Refused::Used.into());
        }
        issued(&claim, validity);
        let renew_after = validity.not_after - self.life / 3;
        Ok(IssueAgentCertificateResponse {
            certificate,
            node: claim.node,
            not_after: Some(instant(validity.not_after)),
            renew_after: Some(instant(renew_after)),
        })
    }

    /// A certificate for `key`, if the claim's pod is the agent of its node, whatever shows the claim.
    async fn certify(
        &self,
        claim: &Claim,
        key: ProvenKey<'_>,
        validity: Validity,
    ) -> Result<String, IssueError> {
        let (pod, node) = futures::try_join!(self.pod(claim), self.node(claim))?;
        self.rules.check_pod(claim, pod.as_ref())?;
        proof::check_node(claim, node.as_ref())?;
        if !self.revoked.is_known() {
            return Err(IssueError::NotKnown);
        }
        if let Some(reason) = self.revoked.reason(&claim.node_uid) {
            return Err(Refused::Revoked {
                node: claim.node.clone(),
                reason,
            }
            .into());
        }
        let peer = PeerId::agent(&claim.node).map_err(|source| Refused::Name {
            node: claim.node.clone(),
            source,
        })?;
        self.ca
            .certify(key, &peer, &claim.node_uid, validity)
            .map_err(IssueError::Request)
    }

    /// What the API server says of the token.
    async fn claim(&self, token: &str) -> Result<(Claim, String), IssueError> {
        let reviewed = token::review(&self.client, token, AUDIENCE).await;
        let status = reviewed.map_err(|error| from_kube("POST", "tokenreviews", error))?;
        Ok(self.rules.claim(status)?)
    }

    async fn pod(&self, claim: &Claim) -> Result<Option<Pod>, IssueError> {
        Api::<Pod>::namespaced(self.client.clone(), &self.rules.namespace)
            .get_opt(&claim.pod)
            .await
            .map_err(|error| from_kube("GET", &format!("pods/{}", claim.pod), error).into())
    }

    async fn node(&self, claim: &Claim) -> Result<Option<Node>, IssueError> {
        Api::<Node>::all(self.client.clone())
            .get_opt(&claim.node)
            .await
            .map_err(|error| from_kube("GET", &format!("nodes/{}", claim.node), error).into())
    }
}

/// Served by [`AgentIssuer`].
pub struct Service(pub Arc<AgentIssuer>);

#[tonic::async_trait]
impl Issuer for Service {
    async fn issue_agent_certificate(
        &self,
        request: Request<IssueAgentCertificateRequest>,
    ) -> Result<Response<IssueAgentCertificateResponse>, Status> {
        let remote = request
            .extensions()
            .get::<std::net::SocketAddr>()
            .map(ToString::to_string)
            .unwrap_or_default();
        let issued = self.0.issue(request.get_ref()).await;
        issued.map(Response::new).map_err(|error| {
            tracing::warn!(
                remote,
                error = impound_proto::tls::explain(&error),
                "refused an agent's certificate"
            );
            error.status()
        })
    }
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
enum IssueError {
    #[error("{field}: expected 1 to {limit} bytes, came {found}")]
    Size {
        field: &'static str,
        limit: usize,
        found: usize,
    },
    #[error(
        "certificate_request: expected a PKCS#10 request in DER for an ECDSA P-256 key, signed by it: {0}"
    )]
    Request(CertifyError),
    #[error(
        "unverifiedUserAnnotations: expected none, found {0}: an agent's volume has no userAnnotations"
    )]
    Annotation(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{SLOTS} requests are being worked on: try again")]
    Busy,
    #[error("which nodes are revoked could not be read yet: try again")]
    NotKnown,
    #[error("the Kubernetes API can't be asked")]
    Api(#[from] ApiError),
}

impl IssueError {
    fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::Size { .. } | Self::Request(_) | Self::Annotation(_) => {
                Status::invalid_argument(text)
            }
            Self::Refused(Refused::NotAuthenticated { .. }) => Status::unauthenticated(text),
            Self::Refused(_) => Status::permission_denied(text),
            Self::Busy => Status::resource_exhausted(text),
            // The log has the details, which are nobody's business at an open port.
            Self::NotKnown | Self::Api(_) => Status::unavailable(text),
        }
    }
}

fn issued(claim: &Claim, validity: Validity) {
    tracing::info!(
        node = claim.node,
        node_uid = claim.node_uid,
        pod = claim.pod,
        not_after = %validity.not_after,
        "issued an agent's certificate"
    );
}

fn bounded(field: &'static str, found: usize, limit: usize) -> Result<(), IssueError> {
    if (1..=limit).contains(&found) {
        Ok(())
    } else {
        Err(IssueError::Size {
            field,
            limit,
            found,
        })
    }
}

fn instant(time: time::OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.unix_timestamp(),
        nanos: 0,
    }
}
