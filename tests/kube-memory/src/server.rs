//! HTTPS: accepts connections, reads requests, applies faults, writes answers and the audit log.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures::future::poll_fn;
use http::{HeaderMap, Response, header};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use crate::api::{self, Reply, ReplyBody};
use crate::audit::RequestRecord;
use crate::clock;
use crate::core::Core;
use crate::door;
use crate::fault::{Effect, status_body};
use crate::refusal::Refusal;
use crate::request::{Query, Request};
use crate::tokens::{OWN_AUDIENCE, groups};

/// Serves until `stop` becomes true.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    core: Arc<Core>,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                continue;
            }
        };
        // Small answers to small requests: waiting to fill a segment would cost 40 ms each.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let (acceptor, core, mut stop) = (acceptor.clone(), core.clone(), stop.clone());
        tokio::spawn(async move {
            let stream = match acceptor.accept(stream).await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::debug!(%error, "TLS handshake");
                    return;
                }
            };
            let service = service_fn(move |request| detached(core.clone(), request));
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(1000);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "connection");
                },
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
    }
}

/// The body of an answer.
enum Outgoing {
    Whole(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(lines) => lines
                .poll_recv(context)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                let length = bytes.as_ref().map_or(0, |bytes| bytes.len());
                hyper::body::SizeHint::with_exact(u64::try_from(length).unwrap_or(0))
            }
            Self::Stream(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// The connection (or stream) ends without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("dropped by an injected fault")
    }
}

impl std::error::Error for Dropped {}

async fn read_body(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}

type Answer = Result<Response<Outgoing>, Box<dyn std::error::Error + Send + Sync>>;

/// As with a real server, what was begun goes on also when who asked has gone.
async fn detached(core: Arc<Core>, request: http::Request<Incoming>) -> Answer {
    let answer: tokio::task::JoinHandle<Answer> = tokio::spawn(respond(core, request));
    match answer.await {
        Ok(answer) => answer,
        Err(error) => Err(Box::new(error)),
    }
}

async fn respond(core: Arc<Core>, request: http::Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = read_body(body).await?;
    let started = Instant::now();
    let text = |name: header::HeaderName| header_text(&parts.headers, name.as_str());
    let path_and_query = parts
        .uri
        .path_and_query()
        .map_or("/", |all| all.as_str())
        .to_owned();
    let mut request = Request {
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        query: Query::parse(parts.uri.query().unwrap_or("")),
        accept: text(header::ACCEPT),
        content_type: text(header::CONTENT_TYPE),
        user: String::new(),
        groups: Vec::new(),
        user_agent: text(header::USER_AGENT),
        body,
    };
    let known = authenticate(&core, &parts.headers, &mut request);

    let mut lost = false;
    let mut hanging = None;
    let mut injected = None;
    let met = core
        .faults
        .effects(request.method.as_str(), &path_and_query, &request.user);
    for (effect, handle) in met {
        match effect {
            Effect::Answer {
                status,
                reason,
                message,
                retry_after,
                plain,
            } => {
                let mut reply = if plain {
                    Reply::text(status, &message)
                } else {
                    Reply::json(status, &status_body(status, &reason, &message, retry_after))
                };
                reply
                    .headers
                    .extend(retry_after.map(|seconds| ("retry-after", seconds.to_string())));
                injected = Some(reply);
            }
            Effect::DropBefore => {
                note(&core, &request, path_and_query, 0, started);
                return Err(Dropped.into());
            }
            Effect::DropAfter => lost = true,
            Effect::HangAfter => hanging = Some(handle),
            Effect::Delay(time) => tokio::time::sleep(time).await,
            Effect::CutWatches => core.cut_watches(),
        }
    }
    let reply = match (injected, known) {
        (Some(reply), _) => reply,
        (None, false) => Reply::refusal(&Refusal::unauthorized()),
        (None, true) => match &core.real {
            Some(real) => door::pass(&core, real, &request, &path_and_query).await?,
            None => api::handle(&core, &request),
        },
    };
    note(&core, &request, path_and_query, reply.code, started);
    if let Some(handle) = hanging {
        handle.hangs();
        std::future::pending::<()>().await;
    }
    if lost {
        return Err(Dropped.into());
    }
    let mut response = Response::builder()
        .status(reply.code)
        .header(header::CONTENT_TYPE, reply.content_type.as_ref());
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    let body = match reply.body {
        ReplyBody::Whole(bytes) => Outgoing::Whole(Some(bytes)),
        ReplyBody::Stream(lines) => Outgoing::Stream(lines),
    };
    Ok(response.body(body)?)
}

fn header_text(headers: &HeaderMap, name: &str) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("")
        .to_owned()
}

/// Finds the user behind the bearer token, and behind an impersonation. False: 401.
fn authenticate(core: &Core, headers: &HeaderMap, request: &mut Request) -> bool {
    let authorization = header_text(headers, "authorization");
    let Some(token) = authorization.strip_prefix("Bearer ") else {
        request.user = "system:anonymous".to_owned();
        // Probes and discovery of the version need no token, as with the default bindings of a real cluster.
        return matches!(
            request.path.as_str(),
            "/version" | "/healthz" | "/livez" | "/readyz"
        );
    };
    let known = core.shared.with(|state| {
        let token = state.tokens.get(token)?;
        let refusal = token.refusal(state, &[OWN_AUDIENCE.to_owned()]);
        refusal.is_none().then(|| token.user.clone())
    });
    let Some(user) = known else {
        return false;
    };
    request.groups = groups(&user);
    request.user = user;
    let acting = header_text(headers, "impersonate-user");
    if !acting.is_empty() {
        request.groups = groups(&acting);
        for group in headers.get_all("impersonate-group") {
            request
                .groups
                .extend(group.to_str().ok().map(str::to_owned));
        }
        request.user = acting;
    }
    true
}

fn note(core: &Core, request: &Request, path: String, status: u16, started: Instant) {
    let write = !matches!(request.method.as_str(), "GET" | "HEAD");
    core.audit.add(RequestRecord {
        time: clock::now_micros(),
        method: request.method.to_string(),
        path,
        user: request.user.clone(),
        user_agent: request.user_agent.clone(),
        status,
        micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        body: if write {
            serde_json::from_slice(&request.body).ok()
        } else {
            None
        },
    });
}
