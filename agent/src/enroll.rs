//! Gets the agent's certificate from the controller, and the next one before it ends.
//!
//! ```text
//! token of our pod (projected by the kubelet) + request for a new key  -> controller's issuer
//!     <- certificate for the node that the token names                 -> TLS directory
//! ```
//! The key is made here and never leaves this process but into the TLS directory, which in a cluster
//! is memory (emptyDir). Whoever serves with the files re-reads them, so a renewal needs no restart and
//! breaks no stream; while one fails, the former certificate stays in use.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use impound_proto::issuer::v1::IssueAgentCertificateRequest;
use impound_proto::issuer::v1::issuer_client::IssuerClient;
use impound_proto::pki::KeyRequest;
use impound_proto::tls::{
    ConnectError, Connector, Credentials, MaterialError, TlsFiles, certificate_life, connect_with,
    explain,
};
use impound_proto::{NodeName, PeerId};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// Largest token file. Kubernetes' tokens are about 1 KiB.
const TOKEN_LIMIT: u64 = 16 << 10;

/// How long the controller may take to issue.
const ISSUE_LIMIT: Duration = Duration::from_secs(30);

/// Wait after a failure; it doubles, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Where and how to ask.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// The controller's issuer, "host:port".
    pub issuer: String,
    /// File with the projected token, audience "impound.dev/issuer". Read anew each time: the kubelet replaces it.
    pub token: PathBuf,
    /// PEM file of the CA that the controller's certificate comes from.
    pub controller_ca: PathBuf,
    /// Where tls.crt, tls.key and controller-ca.crt are put.
    pub tls_dir: PathBuf,
    /// Our node.
    pub node: NodeName,
}

/// What is in the way of a renewal; `None`: nothing.
pub type Trouble = Option<String>;

impl Enrolment {
    /// Waits until there is a certificate: the one that is there already, if two thirds of its life are
    /// not over, else a new one.
    pub async fn first(&self) {
        if self.renewal_is_due() {
            self.until_issued(&watch::Sender::new(None)).await;
        }
    }

    /// Renews for as long as the process lives; run it as a task.
    pub async fn keep(self, trouble: watch::Sender<Trouble>) {
        loop {
            tokio::time::sleep(self.until_renewal()).await;
            self.until_issued(&trouble).await;
        }
    }

    async fn until_issued(&self, trouble: &watch::Sender<Trouble>) {
        let mut wait = FIRST_WAIT;
        loop {
            match self.issue().await {
                Ok(()) => {
                    trouble.send_replace(None);
                    return;
                }
                Err(error) => {
                    let why = explain(&error);
                    tracing::warn!(
                        issuer = self.issuer,
                        error = why,
                        retry_in = ?wait,
                        "no certificate was issued"
                    );
                    trouble.send_replace(Some(format!(
                        "our certificate could not be renewed at {}: {why}",
                        self.issuer
                    )));
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn issue(&self) -> Result<(), EnrolError> {
        let token = self.read_token()?;
        let own = PeerId::Agent {
            node: self.node.clone(),
        };
        let credentials = Credentials::without_certificate(own, &self.controller_ca)?;
        let (channel, _) = connect_with(
            &self.issuer,
            Connector::new(credentials, PeerId::Controller)?,
        )
        .await?;
        let key = KeyRequest::generate().map_err(|error| EnrolError::Key(error.to_string()))?;
        let mut client = IssuerClient::new(channel);
        let request = IssueAgentCertificateRequest {
            token: token.trim_ascii().to_owned(),
            certificate_request: key.request,
        };
        let issued = tokio::time::timeout(ISSUE_LIMIT, client.issue_agent_certificate(request))
            .await
            .map_err(|_| EnrolError::Silent)?
            .map_err(|status| EnrolError::Refused(explain(&status)))?
            .into_inner();
        if issued.node != self.node.as_str() {
            return Err(EnrolError::OtherNode {
                expected: self.node.clone(),
                found: issued.node,
            });
        }
        self.install(&key.key, &issued.certificate)?;
        tracing::info!(
            not_after = issued.not_after.map_or(0, |time| time.seconds),
            "a new certificate was issued"
        );
        Ok(())
    }

    fn read_token(&self) -> Result<Zeroizing<String>, EnrolError> {
        let failed = |source| EnrolError::Io {
            action: "read",
            path: self.token.clone(),
            source,
        };
        let mut token = Zeroizing::new(String::new());
        let read = File::open(&self.token)
            .and_then(|file| file.take(TOKEN_LIMIT).read_to_string(&mut token));
        read.map_err(failed)?;
        Ok(token)
    }

    /// Key first: while the two do not fit together the former pair stays in use.
    fn install(&self, key: &str, certificate: &str) -> Result<(), EnrolError> {
        let roots = fs::read(&self.controller_ca).map_err(|source| EnrolError::Io {
            action: "read",
            path: self.controller_ca.clone(),
            source,
        })?;
        let files = self.files();
        replace(&files.roots, &roots)?;
        replace(&files.key, key.as_bytes())?;
        replace(&files.certificate, certificate.as_bytes())
    }

    fn renewal_is_due(&self) -> bool {
        self.until_renewal().is_zero()
    }

    /// Until two thirds of the present certificate's life are over; zero without a usable one.
    fn until_renewal(&self) -> Duration {
        let Ok((from, to)) = certificate_life(&self.files()) else {
            return Duration::ZERO;
        };
        let (from, to) = (SystemTime::from(from), SystemTime::from(to));
        let life = to.duration_since(from).unwrap_or_default();
        (from + life / 3 * 2)
            .duration_since(SystemTime::now())
            .unwrap_or_default()
    }

    fn files(&self) -> TlsFiles {
        TlsFiles::in_dir(&self.tls_dir, "controller-ca.crt")
    }
}

/// Replaces a file in one step; only its owner may read it.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), EnrolError> {
    let failed = |source| EnrolError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(failed)
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// A file can't be read or written.
    #[error("could not {action} {}", path.display())]
    Io {
        /// "read" or "write".
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The controller's CA.
    #[error("the controller's CA cannot be used")]
    Tls(#[from] MaterialError),
    /// No connection to the issuer.
    #[error("the issuer can't be reached")]
    Connect(#[from] ConnectError),
    /// No key.
    #[error("no key could be made: {0}")]
    Key(String),
    /// It said no, with the reason.
    #[error("the issuer refuses: {0}")]
    Refused(String),
    /// It said nothing.
    #[error("the issuer did not answer within {ISSUE_LIMIT:?}")]
    Silent,
    /// A certificate of another node.
    #[error(
        "expected a certificate for node {expected}, the issuer gave one for {found}: the agent was started with a wrong --node"
    )]
    OtherNode {
        /// Ours.
        expected: NodeName,
        /// What came.
        found: String,
    },
}
