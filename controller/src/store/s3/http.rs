//! One HTTP request to an object store and its repetitions: signed anew each time, with its payload's
//! SHA-256, until an answer comes or the budget is used up.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use impound_evidence::Sha256;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::config::{AddressStyle, S3Config, Timing};
use super::credentials::Credentials;
use super::error::S3Error;
use super::{sign, xml};

/// Longest document that is read whole: a page of 1000 keys has some 100 KiB.
const DOCUMENT_LIMIT: usize = 16 << 20;
/// Waits between tries: random up to this, doubled each time, at most [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Everything but what RFC 3986 leaves unreserved, which is what the signature is over.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

pub(super) type Connection = Client<HttpsConnector<HttpConnector>, Chunks>;

/// The way to a bucket.
pub(super) struct Http {
    connection: Connection,
    credentials: Credentials,
    region: String,
    /// `scheme://authority` and the path in front of keys, without its last `/`.
    base: String,
    timing: Timing,
}

/// A request that can be sent again.
pub(super) struct Request {
    method: Method,
    key: String,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: Chunks,
    sha256: Sha256,
}

/// A whole answer.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// How often it was asked; more than once: an earlier one may have been carried out.
    pub(super) tries: u32,
}

impl Request {
    /// Without a body. `key` is empty for the bucket itself.
    pub(super) fn new(method: Method, key: &str) -> Self {
        Self {
            method,
            key: key.to_owned(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Chunks::default(),
            sha256: Sha256::of(b""),
        }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Result<Self, S3Error> {
        let wrong = |error: http::header::InvalidHeaderValue| S3Error::Request(error.to_string());
        let value = HeaderValue::from_str(value).map_err(wrong)?;
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }

    /// With a body and its digest, which the server checks.
    pub(super) fn body(self, body: Chunks, sha256: Sha256) -> Result<Self, S3Error> {
        let mut request = self.header("x-amz-checksum-sha256", &xml::base64(&sha256))?;
        request.body = body;
        request.sha256 = sha256;
        Ok(request)
    }

    /// With a small body whose digest is part of the signature only.
    pub(super) fn signed_bytes(mut self, bytes: Bytes) -> Self {
        self.sha256 = Sha256::of(&bytes);
        self.body = Chunks::new(vec![bytes]);
        self
    }

    /// With a small body.
    pub(super) fn bytes(self, bytes: Bytes) -> Result<Self, S3Error> {
        let sha256 = Sha256::of(&bytes);
        self.body(Chunks::new(vec![bytes]), sha256)
    }
}

impl Http {
    /// Reads certificates. Blocks.
    pub(super) fn new(config: &S3Config) -> Result<Self, String> {
        let connection = connect(config)?;
        Ok(Self {
            credentials: Credentials::new(connection.clone(), &config.region),
            connection,
            region: config.region.clone(),
            base: base(config)?,
            timing: config.timing,
        })
    }

    /// Asks until a whole answer of success has come.
    pub(super) async fn call(&self, request: &Request) -> Result<Answer, S3Error> {
        self.call_checked(request, |_, _| Ok(())).await
    }

    /// As [`Self::call`]; an answer that `check` refuses with a passing error is no answer.
    pub(super) async fn call_checked(
        &self,
        request: &Request,
        check: impl Fn(&HeaderMap, &[u8]) -> Result<(), S3Error>,
    ) -> Result<Answer, S3Error> {
        let mut patience = Patience::new(self.timing.budget);
        loop {
            let tried = async {
                let (headers, body) = self.once(request).await?;
                let body = self.whole(body).await?;
                check(&headers, &body)?;
                Ok((headers, body))
            };
            match tried.await {
                Ok((headers, body)) => {
                    return Ok(Answer {
                        headers,
                        body,
                        tries: patience.tries,
                    });
                }
                Err((error, after)) => patience.wait(error, after).await?,
            }
        }
    }

    /// Asks once and leaves the body to be read.
    pub(super) async fn open(
        &self,
        request: &Request,
    ) -> Result<(HeaderMap, Incoming), (S3Error, Option<Duration>)> {
        self.once(request).await
    }

    /// The next piece of a body, or nothing at its end.
    pub(super) async fn piece(&self, body: &mut Incoming) -> Result<Option<Bytes>, S3Error> {
        loop {
            let frame = tokio::time::timeout(self.timing.stall, body.frame())
                .await
                .map_err(|_| S3Error::Stalled(self.timing.stall))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(S3Error::Broken(explain(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.timing.budget)
    }

    async fn whole(&self, mut body: Incoming) -> Result<Bytes, S3Error> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.piece(&mut body).await? {
            if whole.len() + piece.len() > DOCUMENT_LIMIT {
                return Err(S3Error::Request(format!(
                    "the answer has more than {DOCUMENT_LIMIT} bytes"
                )));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// One try. The time is how long the server asks to wait.
    async fn once(
        &self,
        request: &Request,
    ) -> Result<(HeaderMap, Incoming), (S3Error, Option<Duration>)> {
        let signed = self.signed(request).await?;
        let size = request.body.left;
        let patience = self.timing.stall + Duration::from_secs(size >> 20);
        let answer = tokio::time::timeout(patience, self.connection.request(signed))
            .await
            .map_err(|_| S3Error::Stalled(patience))?
            .map_err(|error| S3Error::Broken(explain(&error)))?;
        let (head, body) = answer.into_parts();
        if head.status.is_success() {
            return Ok((head.headers, body));
        }
        let after = head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        // HEAD has no body to say why; a cut one says no less than none.
        let document = self.whole(body).await.unwrap_or_default();
        Err((xml::refusal(head.status, &document), after))
    }

    async fn signed(&self, request: &Request) -> Result<http::Request<Chunks>, S3Error> {
        let mut uri = format!("{}{}", self.base, encoded(&request.key));
        let mut query = request.query.clone();
        query.sort_unstable();
        for (index, (name, value)) in query.iter().enumerate() {
            uri.push(if index == 0 { '?' } else { '&' });
            uri.push_str(name);
            uri.push('=');
            uri.extend(utf8_percent_encode(value, ENCODED));
        }
        let wrong = |error: &dyn fmt::Display| S3Error::Request(error.to_string());
        let mut unsigned = http::Request::new(request.body.clone());
        *unsigned.method_mut() = request.method.clone();
        *unsigned.uri_mut() = Uri::try_from(uri).map_err(|error| wrong(&error))?;
        *unsigned.headers_mut() = request.headers.clone();
        let credential = self.credentials.current().await?;
        let (mut head, body) = unsigned.into_parts();
        let now = time::OffsetDateTime::now_utc();
        sign::sign(&mut head, &request.sha256, &credential, &self.region, now)?;
        Ok(http::Request::from_parts(head, body))
    }
}

impl From<S3Error> for (S3Error, Option<Duration>) {
    fn from(error: S3Error) -> Self {
        (error, None)
    }
}

/// The budget of one request.
pub(super) struct Patience {
    start: Instant,
    budget: Duration,
    tries: u32,
}

impl Patience {
    fn new(budget: Duration) -> Self {
        Self {
            start: Instant::now(),
            budget,
            tries: 1,
        }
    }

    /// Starts over: there was progress.
    pub(super) fn renew(&mut self) {
        *self = Self::new(self.budget);
    }

    /// Waits before another try; fails if there is to be none.
    pub(super) async fn wait(
        &mut self,
        error: S3Error,
        after: Option<Duration>,
    ) -> Result<(), S3Error> {
        if !error.is_passing() {
            return Err(error);
        }
        let longest = FIRST_WAIT
            .saturating_mul(1 << self.tries.min(10))
            .min(LONGEST_WAIT);
        let wait = longest
            .mul_f64(fastrand::f64())
            .max(after.unwrap_or_default());
        let spent = self.start.elapsed();
        if spent + wait >= self.budget {
            return Err(S3Error::GaveUp {
                tries: self.tries,
                within: spent,
                last: Box::new(error),
            });
        }
        tracing::debug!(
            tries = self.tries,
            reason = %error,
            "the object store is asked again"
        );
        self.tries += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// A body of reference-counted pieces, of known length, that can be sent again.
#[derive(Clone, Default)]
pub(super) struct Chunks {
    chunks: VecDeque<Bytes>,
    left: u64,
}

impl Chunks {
    pub(super) fn new(chunks: Vec<Bytes>) -> Self {
        let left = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let chunks = chunks.into_iter().filter(|chunk| !chunk.is_empty());
        Self {
            chunks: chunks.collect(),
            left,
        }
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.left
    }

    /// The pieces.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        self.chunks.iter()
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Poller<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.chunks.pop_front();
        self.left -= next.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Poll::Ready(next.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn connect(config: &S3Config) -> Result<Connection, String> {
    let mut roots = rustls::RootCertStore::empty();
    match &config.ca {
        Some(file) => {
            let shown = file.display();
            let certificates = CertificateDer::pem_file_iter(file)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| {
                    format!("the CA certificates {shown} can't be read as PEM: {error}")
                })?;
            let (added, _) = roots.add_parsable_certificates(certificates);
            if added == 0 {
                return Err(format!("{shown} holds no CA certificate"));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(config.timing.connect));
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(20))
        // Whether a request is sent again is decided here, not below.
        .retry_canceled_requests(false)
        .build(https))
}

fn base(config: &S3Config) -> Result<String, String> {
    let endpoint = match &config.endpoint {
        Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
        None => format!("https://s3.{}.amazonaws.com", config.region),
    };
    let wrong = || {
        format!("the endpoint {endpoint:?} is none: expected http://HOST:PORT or https://HOST:PORT")
    };
    let uri: Uri = endpoint.parse().map_err(|_| wrong())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong());
    };
    // A user in the URL would be a credential in logs and errors.
    if !["http", "https"].contains(&scheme)
        || uri.path().len() > 1
        || uri.query().is_some()
        || authority.as_str().contains('@')
    {
        return Err(wrong());
    }
    let bucket = &config.place.bucket;
    Ok(match config.style {
        AddressStyle::Path => format!("{scheme}://{authority}/{bucket}"),
        AddressStyle::Virtual => format!("{scheme}://{bucket}.{authority}"),
    })
}

/// A key as a path, with its `/` in front.
pub(super) fn encoded(key: &str) -> String {
    let mut path = String::new();
    for segment in key.split('/') {
        path.push('/');
        path.extend(utf8_percent_encode(segment, ENCODED));
    }
    path
}

/// An error with its sources: hyper says why only there.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
