//! Starts what issues agents' certificates: the port for agents that ask by themselves, the watch for kubelets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use impound_proto::PeerId;
use impound_proto::issuer::v1::issuer_server::IssuerServer;
use impound_proto::pki::Ca;
use impound_proto::tls::{self, TlsFiles};
use kube::Client;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use zeroize::Zeroizing;

use crate::config::Issuing;
use crate::issue::{self, AgentIssuer, Rules};
use crate::revoked::Revoked;

/// How long a request for a certificate may take: three short calls to the Kubernetes API.
const ISSUE_LIMIT: Duration = Duration::from_secs(30);

/// Issues agents' certificates, in the ways that are asked for. `client` is for calls, and for watches.
pub(super) async fn issue(
    config: Issuing,
    tls_dir: PathBuf,
    client: (Client, Client),
    revoked: Revoked,
    stop: CancellationToken,
) -> Result<()> {
    if config.issuer_listen.is_none() && !config.pod_certificates {
        stop.cancelled().await;
        return Ok(());
    }
    let (client, watch_client) = client;
    let issuer = issuer(&config, client, revoked)?;
    let kubelets = async {
        match config.pod_certificates {
            true => {
                tracing::info!(signer = issue::SIGNER, "signing PodCertificateRequests");
                issuer.answer_kubelets(watch_client).await;
            }
            false => std::future::pending().await,
        }
    };
    let agents = async {
        match config.issuer_listen {
            Some(address) => serve_issuer(address, &tls_dir, issuer.clone(), stop.clone()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // Below, the server ends by itself when it has let its calls end.
        () = stop.cancelled(), if config.issuer_listen.is_none() => Ok(()),
        () = kubelets => Err(anyhow!("PodCertificateRequests are not watched any more")),
        ended = agents => ended,
    }
}

fn issuer(config: &Issuing, client: Client, revoked: Revoked) -> Result<Arc<AgentIssuer>> {
    let read = |name: &str| {
        let file = config.agent_ca_dir.join(name);
        std::fs::read_to_string(&file)
            .map(Zeroizing::new)
            .with_context(|| format!("the agent CA's {} can't be read", file.display()))
    };
    let ca = Ca::from_pem(&read("ca.crt")?, &read("ca.key")?)
        .with_context(|| format!("the agent CA in {}", config.agent_ca_dir.display()))?;
    let rules = Rules {
        namespace: config.agent_namespace.clone(),
        service_account: config.agent_service_account.clone(),
        daemon_set: config.agent_daemon_set.clone(),
    };
    let life = time::Duration::minutes(config.agent_certificate_minutes.into());
    anyhow::ensure!(
        !config.pod_certificates || life >= issue::LEAST_LIFE,
        "--agent-certificate-minutes: expected at least {} with --pod-certificates, got {}",
        issue::LEAST_LIFE.whole_minutes(),
        life.whole_minutes()
    );
    Ok(AgentIssuer::new(client, ca, rules, life, revoked))
}

/// Lets agents ask by themselves.
async fn serve_issuer(
    address: SocketAddr,
    tls_dir: &Path,
    issuer: Arc<AgentIssuer>,
    stop: CancellationToken,
) -> Result<()> {
    let (credentials, reloader) = tls::open_server_credentials(
        TlsFiles::in_dir(tls_dir, "agent-ca.crt"),
        PeerId::Controller,
    )
    .context("credentials of the issuer")?;
    let service =
        IssuerServer::new(issue::Service(issuer)).max_decoding_message_size(issue::REQUEST_LIMIT);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen at {address}"))?;
    tracing::info!(listen = %listener.local_addr()?, "issuing agents' certificates");
    let serving = tls::http2::server(Server::builder())
        .timeout(ISSUE_LIMIT)
        .add_service(service)
        .serve_with_incoming_shutdown(
            tls::incoming_open(listener, credentials),
            stop.cancelled_owned(),
        );
    tokio::select! {
        ended = serving => ended.map_err(Into::into),
        () = reloader.run(tls::RELOAD_INTERVAL) => Err(anyhow!("its certificate is not watched any more")),
    }
}
