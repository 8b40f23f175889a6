//! Asks a time-stamping authority (RFC 3161) when a collection's checkpoint existed: one question, one answer,
//! just before the manifest is made. Evidence never waits longer for that than [`PATIENCE`], and never fails
//! for it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http::Uri;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use impound_evidence::{Sha256, StampAuthority, StampError, StampRequest, TOKEN_LIMIT};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use uuid::Uuid;

/// How long the authority has for its answer, connecting included.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Longest file of certificates that is read, in bytes.
const CERTIFICATES_LIMIT: u64 = 1 << 20;

/// An authority that is asked, and what its answers are checked with.
pub struct TimestampAuthority {
    url: String,
    uri: Uri,
    trusted: Arc<StampAuthority>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    patience: Duration,
}

impl TimestampAuthority {
    /// `ca` is a PEM file with the root of the authority's certificate. An `https` server's certificate may
    /// lead to that, too, or to one of the system's.
    ///
    /// # Errors
    /// If the URL is none, or the file holds no such certificate.
    pub fn new(url: &str, ca: &Path) -> Result<Self> {
        let uri: Uri = url
            .parse()
            .with_context(|| format!("--timestamp-url {url:?}"))?;
        let http = matches!(uri.scheme_str(), Some("http" | "https"));
        // A user in the URL would be a credential in logs and manifests.
        if !http
            || uri
                .authority()
                .is_none_or(|host| host.as_str().contains('@'))
        {
            bail!("--timestamp-url: expected http://HOST/PATH or https://HOST/PATH, got {url:?}");
        }
        let named = || format!("--timestamp-ca {}", ca.display());
        let pem = read(ca).with_context(named)?;
        let trusted = StampAuthority::from_pem(&pem).with_context(named)?;
        Ok(Self {
            url: url.to_owned(),
            uri,
            trusted: Arc::new(trusted),
            client: client(&pem)?,
            patience: PATIENCE,
        })
    }

    /// Another patience than [`PATIENCE`].
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// As it was given.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What tokens are checked with.
    #[must_use]
    pub fn trusted(&self) -> Arc<StampAuthority> {
        Arc::clone(&self.trusted)
    }

    /// A token over `checkpoint`, checked.
    ///
    /// # Errors
    /// In words, if none came in time or what came is not good.
    pub async fn stamp(&self, checkpoint: &[u8]) -> Result<Vec<u8>, String> {
        let (nonce, _) = Uuid::new_v4().as_u64_pair();
        let request = StampRequest::new(Sha256::of(checkpoint), nonce.to_be_bytes());
        let asked = tokio::time::timeout(self.patience, self.ask(request.encode())).await;
        let answer = asked.map_err(|_| {
            format!(
                "{} did not answer within {} s",
                self.url,
                self.patience.as_secs_f32()
            )
        })?;
        let answer = answer.map_err(|error| format!("{}: {error:#}", self.url))?;
        let token = request.token(&answer, &self.trusted);
        token
            .map(|(token, _)| token.to_vec())
            .map_err(|error| format!("{}: {error}", self.url))
    }

    /// Whether a token is one over `checkpoint` that this authority would give.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, token: &[u8], checkpoint: &[u8]) -> Result<(), StampError> {
        self.trusted.check(token, Sha256::of(checkpoint)).map(drop)
    }

    async fn ask(&self, question: Vec<u8>) -> Result<Bytes> {
        let mut request = http::Request::post(self.uri.clone()).body(Full::from(question))?;
        request.headers_mut().insert(
            CONTENT_TYPE,
            http::HeaderValue::from_static("application/timestamp-query"),
        );
        let answer = self.client.request(request).await?;
        let status = answer.status();
        if !status.is_success() {
            bail!("expected a time-stamp, got HTTP status {status}");
        }
        let limit = usize::try_from(TOKEN_LIMIT * 2)?;
        let body = Limited::new(answer.into_body(), limit).collect().await;
        let body = body.map_err(|error| anyhow!("its answer breaks off: {error}"))?;
        Ok(body.to_bytes())
    }
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(file)?
        .take(CERTIFICATES_LIMIT)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn client(pem: &[u8]) -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>> {
    let mut roots = rustls::RootCertStore::empty();
    let own = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    roots.add_parsable_certificates(own);
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    // One question now and then: no connection is kept.
    Ok(Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(https))
}
