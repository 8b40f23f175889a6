//! The Kubernetes API as the steps use it: objects read as they are, planned calls sent as planned.

pub mod pace;
pub mod retry_after;
pub mod token;

use std::time::Duration;

use http::{Method, Request};
use kube::client::ClientBuilder;
use kube::core::Status;
use kube::{Client, Config};
use serde_json::Value;
use thiserror::Error;
use tower::util::AndThenLayer;

use self::pace::PaceLayer;

use crate::resources::ApiCall;

/// A call that did not succeed.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The server answered with an error.
    #[error("{method} {path}: {code} {reason}: {message}")]
    Refused {
        /// HTTP method.
        method: String,
        /// Path.
        path: String,
        /// HTTP status code.
        code: u16,
        /// Machine-readable reason of the Status, may be empty.
        reason: String,
        /// Message of the Status.
        message: String,
        /// Seconds after which to try again, if the server said so.
        retry_after: Option<u32>,
    },
    /// No answer: the call may or may not have had its effect.
    #[error("{method} {path}: no answer from the Kubernetes API")]
    NoAnswer {
        /// HTTP method.
        method: String,
        /// Path.
        path: String,
        /// What happened.
        #[source]
        source: kube::Error,
    },
}

impl ApiError {
    /// HTTP status code of the answer, 0 if there was none.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::Refused { code, .. } => *code,
            Self::NoAnswer { .. } => 0,
        }
    }

    /// How long the server wants to be left alone; zero if it did not say.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Refused { retry_after, .. } => {
                Duration::from_secs(retry_after.unwrap_or_default().into())
            }
            Self::NoAnswer { .. } => Duration::ZERO,
        }
    }

    /// A stale resourceVersion or a uid precondition: observe again.
    /// (A wrong uid in a patch body is 422, not 409.)
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == 409
    }

    /// Whether the same call can succeed later without anybody's help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.code(), 0 | 409 | 410 | 429 | 500..=599)
    }
}

/// How long an answer may take. A connection that is black-holed must not stop containment, nor keep
/// a replica at work that has lost its lease meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A client for the cluster that `KUBECONFIG`, `~/.kube/config` or the pod's service account name.
///
/// kube's default policy silently retries 429, 503 and 504 up to 15 times with delays up to
/// 1000 s, which would make a blocked eviction look like a hang: it is off, and retries are the
/// reconcilers' business.
///
/// # Errors
/// If no configuration is found or it can't be used.
pub async fn client() -> Result<Client, kube::Error> {
    let mut config = configuration().await?;
    config.read_timeout = Some(ANSWER_LIMIT);
    config.reset_reader_on_write = true;
    paced(config, PaceLayer::default())
}

/// As [`client`], for watches: they are silent for minutes by nature and have a limit of their own.
///
/// # Errors
/// As [`client`].
pub async fn watch_client() -> Result<Client, kube::Error> {
    paced(configuration().await?, PaceLayer::for_watches())
}

fn paced(config: Config, pace: PaceLayer) -> Result<Client, kube::Error> {
    let client = ClientBuilder::try_from(config)?;
    let client = client.with_layer(&AndThenLayer::new(retry_after::keep));
    Ok(client.with_layer(&pace).build())
}

async fn configuration() -> Result<Config, kube::Error> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.default_retry = false;
    Ok(config)
}

/// Pauses before a read is tried again. A plan needs a dozen reads: one that fails now and then must not
/// let it begin from the start each time.
const READ_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];

/// Longest Retry-After that a read follows by itself; what is longer is the reconcilers' business.
const READ_MERCY: Duration = Duration::from_secs(2);

/// The object at `path` exactly as the API server gives it, `None` if it does not exist.
///
/// # Errors
/// Any answer but 200 and 404, again and again.
pub async fn read(client: &Client, path: &str) -> Result<Option<Value>, ApiError> {
    let mut pauses = READ_PAUSES.into_iter();
    loop {
        match request(client, Method::GET, path, "", "").await {
            Ok(value) => return Ok(Some(value)),
            Err(error) if error.code() == 404 => return Ok(None),
            Err(error) => {
                let pause = pauses.next().filter(|_| error.is_transient());
                let pause = pause.map(|pause| pause.max(error.retry_after()));
                match pause.filter(|pause| *pause <= READ_MERCY) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                }
            }
        }
    }
}

/// Sends a planned call and gives the answer's body.
///
/// # Errors
/// Any answer that is not a success.
pub async fn send(client: &Client, call: &ApiCall) -> Result<Value, ApiError> {
    let method = Method::from_bytes(call.method.as_bytes()).unwrap_or(Method::GET);
    request(client, method, &call.path, &call.content_type, &call.body).await
}

async fn request(
    client: &Client,
    method: Method,
    path: &str,
    content_type: &str,
    body: &str,
) -> Result<Value, ApiError> {
    let mut builder = Request::builder().method(method.clone()).uri(path);
    if !content_type.is_empty() {
        builder = builder.header(http::header::CONTENT_TYPE, content_type);
    }
    let request = builder
        .body(body.as_bytes().to_vec())
        .map_err(|source| ApiError::NoAnswer {
            method: method.to_string(),
            path: path.to_owned(),
            source: kube::Error::HttpError(source),
        })?;
    client
        .request::<Value>(request)
        .await
        .map_err(|error| from_kube(method.as_str(), path, error))
}

/// Sorts a client error into "answered" and "no answer".
#[must_use]
pub fn from_kube(method: &str, path: &str, error: kube::Error) -> ApiError {
    match error {
        kube::Error::Api(status) => ApiError::Refused {
            method: method.to_owned(),
            path: path.to_owned(),
            code: status.code,
            reason: status.reason.clone(),
            retry_after: status
                .details
                .as_ref()
                .map(|details| details.retry_after_seconds)
                .filter(|seconds| *seconds > 0),
            message: refusal_text(&status),
        },
        source => ApiError::NoAnswer {
            method: method.to_owned(),
            path: path.to_owned(),
            source,
        },
    }
}

/// Whether a text can be an object's name: lower-case letters, digits, "-" and ".", first and last a letter
/// or digit, at most 253. What is, is safe as part of an API path.
#[must_use]
pub fn is_object_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text
            .bytes()
            .all(|byte| plain(byte) || matches!(byte, b'-' | b'.'))
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
}

/// The Status message with its causes, which name e.g. the disruption budget that refused.
fn refusal_text(status: &Status) -> String {
    let causes: Vec<&str> = status
        .details
        .iter()
        .flat_map(|details| &details.causes)
        .map(|cause| cause.message.as_str())
        .filter(|cause| !status.message.contains(cause))
        .collect();
    if causes.is_empty() {
        status.message.clone()
    } else {
        format!("{} {}", status.message, causes.join("; "))
    }
}
