//! The connection to the controller.

use std::time::Duration;

use impound_proto::PeerId;
use impound_proto::controller::v1::controller_client::ControllerClient;
use impound_proto::tls::{self, Peers, TlsFiles};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

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

/// A client of the controller, who is known by its certificate.
pub(crate) struct Client {
    grpc: ControllerClient<Channel>,
    own: PeerId,
}

impl Client {
    /// Reads our certificate; connects with the first call.
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
        let files = TlsFiles::in_dir(directory, "controller-ca.crt");
        let (credentials, _) =
            tls::client_credentials(files, Peers::AnyResponder).map_err(|error| {
                Failure::Usage(format!(
                    "your certificate can't be used: {}",
                    tls::explain(&error)
                ))
            })?;
        let own = credentials.own().clone();
        let channel = tls::channel(address, credentials, PeerId::Controller)
            .map_err(|error| Failure::Usage(tls::explain(&error)))?;
        let grpc = ControllerClient::new(channel).max_decoding_message_size(ANSWER);
        Ok(Self { grpc, own })
    }

    /// Who we are to the controller.
    pub(crate) fn own(&self) -> &PeerId {
        &self.own
    }

    /// A handle to call with.
    pub(crate) fn grpc(&self) -> ControllerClient<Channel> {
        self.grpc.clone()
    }
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
