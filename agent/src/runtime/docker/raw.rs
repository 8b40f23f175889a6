//! A plain GET over the engine's unix socket: the answer's own bytes, bounded or streamed.
//!
//! The path carries no API version, so the engine answers with everything it knows.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::answered;
use crate::runtime::RuntimeError;

/// Largest error message that is read. The engine's have a line.
const MESSAGE_LIMIT: usize = 64 << 10;

/// An answer whose body is still to be read.
pub(super) struct Body {
    call: String,
    api_version: Option<String>,
    incoming: Incoming,
    // Drives the connection; ends with this body.
    _connection: JoinSet<()>,
}

/// Asks for `path`; the answer's head must come within `limit`.
pub(super) async fn open(socket: &Path, path: &str, limit: Duration) -> Result<Body, RuntimeError> {
    let call = format!("GET {path}");
    match tokio::time::timeout(limit, request(socket, path, &call)).await {
        Ok(answer) => answer,
        Err(_) => Err(RuntimeError::Timeout {
            call,
            seconds: limit.as_secs(),
        }),
    }
}

/// The engine's own version of the API, e.g. "1.41", as the head of its answer to a ping says. `GET /version` says
/// it too, but an engine runs its helper programs to answer that, which takes longer than most calls.
pub(super) async fn api_version(socket: &Path, limit: Duration) -> Result<String, RuntimeError> {
    let body = open(socket, "/_ping", limit).await?;
    body.api_version.ok_or_else(|| RuntimeError::Malformed {
        call: body.call,
        why: "expected the header Api-Version, found none".to_owned(),
    })
}

/// Asks for `path` and reads the whole answer, at most `size` bytes, within `limit`.
pub(super) async fn collect(
    socket: &Path,
    path: &str,
    size: usize,
    limit: Duration,
) -> Result<Bytes, RuntimeError> {
    let answer = async { open(socket, path, limit).await?.collect(size).await };
    match tokio::time::timeout(limit, answer).await {
        Ok(bytes) => bytes,
        Err(_) => Err(RuntimeError::Timeout {
            call: format!("GET {path}"),
            seconds: limit.as_secs(),
        }),
    }
}

async fn request(socket: &Path, path: &str, call: &str) -> Result<Body, RuntimeError> {
    let unreachable =
        |source: Box<dyn std::error::Error + Send + Sync>| RuntimeError::Unreachable {
            at: socket.to_owned(),
            source,
        };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| unreachable(error.into()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(error.into()))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Its errors reach the reader of the body, or the request below.
        let _ = connection.await;
    });
    let request = Request::get(path)
        .header("host", "docker")
        .body(Empty::<Bytes>::new())
        .map_err(|error| unreachable(error.into()))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| unreachable(error.into()))?;
    let status = answer.status();
    let api_version = answer.headers().get("api-version");
    let api_version = api_version.and_then(|version| version.to_str().ok());
    let body = Body {
        call: call.to_owned(),
        api_version: api_version.map(str::to_owned),
        incoming: answer.into_body(),
        _connection: driver,
    };
    if status == StatusCode::OK {
        Ok(body)
    } else {
        Err(body.refusal(status).await)
    }
}

impl Body {
    /// The next piece, or `None` at the announced end. An answer that ends early is an error.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RuntimeError> {
        while let Some(frame) = self.incoming.frame().await {
            let frame = frame.map_err(|error| RuntimeError::Broken {
                call: self.call.clone(),
                source: error.into(),
            })?;
            // Anything but data is a trailer, which the engine does not send.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    async fn collect(mut self, size: usize) -> Result<Bytes, RuntimeError> {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            if all.len() + bytes.len() > size {
                return Err(RuntimeError::Malformed {
                    call: self.call,
                    why: format!("expected at most {size} bytes, more came"),
                });
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    async fn refusal(self, status: StatusCode) -> RuntimeError {
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let call = self.call.clone();
        let text = self.collect(MESSAGE_LIMIT).await.unwrap_or_default();
        let message = serde_json::from_slice::<Message>(&text).map_or_else(
            |_| String::from_utf8_lossy(&text).into_owned(),
            |message| message.message,
        );
        answered(&call, status.as_u16(), message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_http_any_answer_of_an_engine_is_read_within_its_limits() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        const LIMIT: usize = 4 << 10;
        let seeds = [
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"Id\":\"0123\"}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\n123\r\n0\r\nTrailer: x\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 32\r\n\r\n{\"message\":\"No such container\"}\n",
        ];
        let seeds = seeds.map(|text| text.as_bytes().to_vec());
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("engine.sock");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(async { tokio::net::UnixListener::bind(&socket) })
            .unwrap();
        impound_fuzz::run("http", &seeds, |_, answer| {
            let served = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                // The reader may have had enough.
                let _ = stream.write_all(&answer).await;
            };
            let asked = collect(
                &socket,
                "/containers/0123/json",
                LIMIT,
                Duration::from_secs(10),
            );
            let (bytes, ()) = runtime.block_on(async { tokio::join!(asked, served) });
            match bytes {
                Ok(bytes) => assert!(bytes.len() <= LIMIT && bytes.len() <= answer.len()),
                Err(RuntimeError::Timeout { .. }) => panic!("an answer that ended was waited for"),
                Err(_) => {}
            }
        });
    }
}
