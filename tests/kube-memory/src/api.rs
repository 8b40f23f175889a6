//! From a request to an answer: which resource, which verb.

mod discovery;
mod evict;
mod openapi;
mod read;
mod review;
mod subresource;
mod table;
mod watch;
mod write;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::core::Core;
use crate::refusal::{Outcome, Refusal};
use crate::registry::Resource;
use crate::request::{Request, Target};

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) content_type: Cow<'static, str>,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: ReplyBody,
}

#[derive(Debug)]
pub(crate) enum ReplyBody {
    Whole(Bytes),
    /// Lines of a watch.
    Stream(mpsc::Receiver<Bytes>),
}

impl Reply {
    pub(crate) fn json(code: u16, value: &Value) -> Self {
        Self::bytes(
            code,
            "application/json",
            serde_json::to_vec(value).unwrap_or_default(),
        )
    }

    fn bytes(code: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Self {
            code,
            content_type: content_type.into(),
            headers: Vec::new(),
            body: ReplyBody::Whole(body.into()),
        }
    }

    pub(crate) fn text(code: u16, text: &str) -> Self {
        Self::bytes(code, "text/plain; charset=utf-8", text.as_bytes().to_vec())
    }

    pub(crate) fn refusal(refusal: &Refusal) -> Self {
        if refusal.plain {
            return Self::text(refusal.code, &refusal.message);
        }
        let mut reply = Self::json(refusal.code, &refusal.status());
        if let Some(seconds) = refusal.retry_after {
            reply.headers.push(("retry-after", seconds.to_string()));
        }
        reply
    }

    fn warn(mut self, warnings: Vec<String>) -> Self {
        for warning in warnings {
            self.headers.push(("warning", format!("299 - {warning:?}")));
        }
        self
    }
}

/// What a handler needs besides the state.
#[derive(Debug)]
struct Call<'a> {
    core: &'a Arc<Core>,
    request: &'a Request,
    target: Target,
    resource: Arc<Resource>,
}

/// Answers a request.
pub(crate) fn handle(core: &Arc<Core>, request: &Request) -> Reply {
    answer(core, request).unwrap_or_else(|refusal| Reply::refusal(&refusal))
}

fn answer(core: &Arc<Core>, request: &Request) -> Outcome<Reply> {
    if let Some(reply) = outside_resources(core, request) {
        return reply;
    }
    let target = Target::parse(&request.path).ok_or_else(Refusal::not_served)?;
    let found = core.shared.with(|state| {
        state
            .registry
            .find(&target.group, &target.version, &target.plural)
    });
    let resource = found.ok_or_else(Refusal::not_served)?;
    let call = Call {
        core,
        request,
        target,
        resource,
    };
    if !call.resource.stored {
        return if request.method == Method::POST {
            review::answer(&call)
        } else {
            Err(Refusal::method_not_allowed())
        };
    }
    if call.target.subresource.is_empty()
        || matches!(
            call.target.subresource.as_str(),
            "status" | "ephemeralcontainers" | "resize"
        )
    {
        let known = match call.target.subresource.as_str() {
            "status" => call.resource.status,
            "ephemeralcontainers" | "resize" => call.resource.is("pods"),
            _ => true,
        };
        if !known {
            return Err(Refusal::not_served());
        }
        return by_method(&call);
    }
    subresource::answer(&call)
}

fn by_method(call: &Call<'_>) -> Outcome<Reply> {
    let collection = call.target.name.is_empty();
    match (&call.request.method, collection) {
        (&Method::GET, true) => {
            if call.target.watch || call.request.query.flag("watch") {
                watch::start(call)
            } else {
                read::list(call)
            }
        }
        (&Method::GET, false) if call.target.watch || call.request.query.flag("watch") => {
            watch::start(call)
        }
        (&Method::GET, false) => read::get(call),
        (&Method::POST, true) => write::create(call),
        (&Method::PUT, false) => write::replace(call),
        (&Method::PATCH, false) => write::patch(call),
        (&Method::DELETE, false) if call.target.subresource.is_empty() => write::delete(call),
        (&Method::DELETE, true) => write::delete_collection(call),
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn outside_resources(core: &Arc<Core>, request: &Request) -> Option<Outcome<Reply>> {
    let path = request.path.trim_end_matches('/');
    let reply = match path {
        "/healthz" | "/livez" | "/readyz" | "/healthz/ping" => {
            Reply::bytes(200, "text/plain; charset=utf-8", b"ok".to_vec())
        }
        "/version" => Reply::json(200, &version()),
        "" => Reply::json(
            200,
            &json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}),
        ),
        _ if path.starts_with("/openapi/") => return Some(openapi::answer(core, path)),
        _ => {
            let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
            return match parts.as_slice() {
                ["api" | "apis"] | ["api", _] | ["apis", _] | ["apis", _, _] => {
                    Some(discovery::answer(core, &parts, &request.accept))
                }
                _ => None,
            };
        }
    };
    Some(Ok(reply))
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-04-22T00:00:00Z", "goVersion": "go1.26", "compiler": "gc", "platform": "linux/amd64",
    })
}
