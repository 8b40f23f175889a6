//! The connection to the controller.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use impound_proto::PeerId;
use impound_proto::controller::v1::controller_client::ControllerClient;
use impound_proto::tls::{self, Credentials, Peers, TlsFiles};
use time::OffsetDateTime;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::arguments::Connection;
use crate::failure::Failure;

/// Longest time a call with a single answer may take: a plan reads a namespace and a node from the
/// Kubernetes API, which takes seconds on a large cluster.
const CALL: Duration = Duration::from_secs(60);

/// A call that lists the pods of a whole cluster.
pub(crate) const LIST_CALL: Duration = Duration::from_secs(600);

/// Checking a collection reads all of it: 1 TiB at 100 MB/s takes three hours.
pub(crate) const LONG_CALL: Duration = Duration::from_secs(12 * 3600);

/// Largest answer: a plan or a list of thousands of objects; evidence comes in chunks.
const ANSWER: usize = 64 << 20;

/// Largest token.
const TOKEN: u64 = 15 << 10;

/// The CA that the controller's certificate is from, in the TLS directory.
const CONTROLLER_CA: &str = "controller-ca.crt";

/// What calls are made with.
pub(crate) type Grpc = ControllerClient<InterceptedService<Channel, Proof>>;

/// A client of the controller, who is known by its certificate or by a token.
pub(crate) struct Client {
    grpc: Grpc,
    own: String,
    not_after: Option<OffsetDateTime>,
}

/// Adds the token to each call, if that is what proves us. It is read anew each time: the kubelet renews what it
/// projects into a pod.
#[derive(Clone)]
pub(crate) struct Proof(Option<PathBuf>);

impl Client {
    /// Reads our certificate or token; connects with the first call.
    pub(crate) fn new(connection: &Connection) -> Result<Self, Failure> {
        let missing = |option: &str, variable: &str, what: &str| {
            Failure::Usage(format!(
                "{what} is not known: give {option} or set {variable}"
            ))
        };
        let address = connection.controller.as_deref().ok_or_else(|| {
            missing(
                "--controller HOST:PORT",
                "IMPOUND_CONTROLLER",
                "the controller's address",
            )
        })?;
        let directory = connection.tls_dir.as_deref().ok_or_else(|| {
            missing(
                "--tls-dir DIR",
                "IMPOUND_TLS_DIR",
                "the directory with your certificate",
            )
        })?;
        let token_file = connection.token_file.clone();
        let (credentials, own, not_after) = match &token_file {
            Some(file) => with_token(directory, file)?,
            None => with_certificate(directory)?,
        };
        let channel = tls::channel(address, credentials, PeerId::Controller)
            .map_err(|error| Failure::Usage(tls::explain(&error)))?;
        let grpc = ControllerClient::with_interceptor(channel, Proof(token_file))
            .max_decoding_message_size(ANSWER);
        Ok(Self {
            grpc,
            own,
            not_after,
        })
    }

    /// When our certificate ends, if we have one.
    pub(crate) fn not_after(&self) -> Option<OffsetDateTime> {
        self.not_after
    }

    /// Who we are to the controller, as far as we know.
    pub(crate) fn own(&self) -> &str {
        &self.own
    }

    /// A handle to call with.
    pub(crate) fn grpc(&self) -> Grpc {
        self.grpc.clone()
    }
}

/// Credentials, who that is, and until when.
type Ours = (
    Credentials<rustls::ClientConfig>,
    String,
    Option<OffsetDateTime>,
);

fn with_certificate(directory: &Path) -> Result<Ours, Failure> {
    let files = TlsFiles::in_dir(directory, CONTROLLER_CA);
    let (credentials, _) =
        tls::client_credentials(files, Peers::AnyResponder).map_err(|error| {
            Failure::Usage(format!(
                "your certificate can't be used: {}",
                tls::explain(&error)
            ))
        })?;
    let (own, end) = (credentials.own().to_string(), credentials.not_after());
    Ok((credentials, own, Some(end)))
}

fn with_token(directory: &Path, file: &Path) -> Result<Ours, Failure> {
    // A file that can't be read is told now, and not by the first call.
    token(file).map_err(Failure::Usage)?;
    let roots = directory.join(CONTROLLER_CA);
    // Nobody is going to have a certificate: the name is of no importance.
    let credentials =
        Credentials::without_certificate(PeerId::Controller, &roots).map_err(|error| {
            Failure::Usage(format!(
                "the controller's CA can't be used: {}",
                tls::explain(&error)
            ))
        })?;
    Ok((credentials, "the holder of the token".to_owned(), None))
}

impl Interceptor for Proof {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(file) = &self.0 {
            let token = token(file).map_err(Status::unauthenticated)?;
            let header = Zeroizing::new(format!("Bearer {}", *token));
            let mut value = MetadataValue::try_from(header.as_str()).map_err(|_| {
                Status::unauthenticated(format!("{} holds no token", file.display()))
            })?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

fn token(file: &Path) -> Result<Zeroizing<String>, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("the token {}: {why}", file.display());
    let mut text = Zeroizing::new(String::new());
    File::open(file)
        .and_then(|file| file.take(TOKEN + 1).read_to_string(&mut text))
        .map_err(|error| wrong(&error))?;
    let token = text.trim();
    if token.is_empty() || token.len() as u64 > TOKEN || token.contains(char::is_whitespace) {
        return Err(wrong(&format!(
            "expected one token of 1 to {TOKEN} bytes and nothing else"
        )));
    }
    Ok(Zeroizing::new(token.to_owned()))
}

/// A request that must be answered in time.
pub(crate) fn request<T>(message: T) -> Request<T> {
    request_within(message, CALL)
}

pub(crate) fn request_within<T>(message: T, time: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time);
    request
}

/// The answer to a call, or why there is none.
pub(crate) fn answer<T>(result: Result<Response<T>, Status>) -> Result<T, Failure> {
    result
        .map(Response::into_inner)
        .map_err(|status| Failure::of_call(&status))
}
