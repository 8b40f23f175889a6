//! What every call comes through, whatever service it is for: who is it, is that not too much, and one line in the
//! log of how it ended. Refused calls, and those whose caller went away, have their line, too.
//!
//! The services behind it then ask whether the caller may do that ([`Caller::may`]) and say what the call is
//! about ([`About`]).

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, header};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use impound_proto::PeerId;
use impound_proto::tls;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::authorise::{Caller, Requester, Rights, unexpired};
use super::limits::{Limits, Running};
use super::tokens::{Token, Tokens, network};
use crate::locked::locked;
use crate::metrics::Metrics;

/// Longest text of a caller's making that is logged, in characters.
const TEXT: usize = 256;

/// Wraps every service of the controller's port. Requests must come from [`tls::incoming_callers`].
#[derive(Clone)]
pub struct Door {
    /// Who is asked about tokens; none: only certificates count.
    pub tokens: Option<Arc<Tokens>>,
    /// What each caller may ask for.
    pub limits: Arc<Limits>,
    /// Counts calls by method and code.
    pub metrics: Arc<Metrics>,
}

impl<S> Layer<S> for Door {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            inner,
            door: self.clone(),
        }
    }
}

/// `S` behind the door.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    door: Door,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The one that was found ready.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let door = self.door.clone();
        Box::pin(async move {
            let mut line = Line::of(&request, door.metrics.clone());
            let from = request.extensions().get::<tls::Caller>().cloned();
            let caller = door.caller(from, request.headers()).await;
            let admitted = caller.and_then(|caller| {
                line.identity = Some(caller.who.id.clone());
                let running = door.limits.begin(&caller.who.id);
                Ok((caller, running.map_err(|much| much.status())?))
            });
            let (caller, running) = match admitted {
                Ok(admitted) => admitted,
                Err(status) => {
                    let status = door.stranger(&mut line, status);
                    line.ends(status.code(), status.message());
                    return Ok(status.into_http());
                }
            };
            // Nobody behind the door has a use for it.
            request.headers_mut().remove(header::AUTHORIZATION);
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(line.about.clone());
            let answer = inner.call(request).await?;
            match Status::from_header_map(answer.headers()) {
                Some(status) => line.ends(status.code(), status.message()),
                None => line.ends(Code::Ok, ""),
            }
            Ok(answer.map(|body| {
                Body::new(Held {
                    body,
                    _running: running,
                })
            }))
        })
    }
}

impl Door {
    /// What somebody is told who is nobody. They have a rate by address: beyond it their lines would fill the log,
    /// so they are only counted.
    fn stranger(&self, line: &mut Line, status: Status) -> Status {
        let Some(remote) = line
            .remote
            .filter(|_| status.code() == Code::Unauthenticated)
        else {
            return status;
        };
        match self.limits.begin(&network(remote.ip())) {
            Ok(_) => status,
            Err(much) => {
                line.unsaid = true;
                much.status()
            }
        }
    }

    async fn caller(
        &self,
        from: Option<tls::Caller>,
        headers: &HeaderMap,
    ) -> Result<Caller, Status> {
        let Some(from) = from else {
            return Err(Status::unauthenticated(
                "the call did not come through a verified connection",
            ));
        };
        let token = bearer(headers)?;
        match (&from.peer, token, &self.tokens) {
            (Some(_), Some(_), _) => Err(Status::unauthenticated(
                "the connection has a client certificate and the call a token: show one of them",
            )),
            (Some(peer), None, _) => {
                let PeerId::Responder {
                    role, namespaces, ..
                } = &peer.id
                else {
                    return Err(Status::permission_denied(format!(
                        "{}: only a responder's certificate may call the controller",
                        peer.id
                    )));
                };
                // There is one where there is a certificate.
                let expires = from.expires.unwrap_or(SystemTime::UNIX_EPOCH);
                unexpired(expires)?;
                Ok(Caller {
                    who: Requester {
                        id: peer.id.to_string(),
                        certificate: Some(peer.certificate_sha256.into()),
                    },
                    rights: Rights::Certificate {
                        role: *role,
                        namespaces: namespaces.clone(),
                        expires,
                    },
                })
            }
            (None, Some(token), Some(tokens)) => {
                let token = Token::from(token);
                let user = tokens.user(&token, from.remote.ip()).await?;
                Ok(Caller {
                    who: Requester {
                        id: user.id.clone(),
                        certificate: None,
                    },
                    rights: Rights::Token {
                        user,
                        tokens: tokens.clone(),
                        token,
                    },
                })
            }
            (None, _, _) => Err(Status::unauthenticated(
                "the connection has no client certificate and the call no token",
            )),
        }
    }
}

/// The one token in the headers, if there is any.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Status> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let wrong = || Status::unauthenticated("expected one header \"authorization: Bearer TOKEN\"");
    let Some(first) = given.next() else {
        return Ok(None);
    };
    let text = first.to_str().map_err(|_| wrong())?;
    match (text.split_once(' '), given.next()) {
        (Some((scheme, token)), None) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Some(token.trim()))
        }
        _ => Err(wrong()),
    }
}

/// What a call is about, for its line in the log. The service says it.
#[derive(Clone, Default)]
pub(super) struct About(Arc<Mutex<String>>);

impl About {
    /// Notes what the call that `request` came with is about.
    pub(super) fn note<T>(request: &tonic::Request<T>, target: &str) {
        if let Some(about) = request.extensions().get::<Self>() {
            *locked(&about.0) = short(target);
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

/// One call's line in the log; written when it ends, or when it is dropped before it did.
struct Line {
    method: String,
    remote: Option<SocketAddr>,
    identity: Option<String>,
    about: About,
    began: Instant,
    metrics: Arc<Metrics>,
    over: bool,
    /// Only counted.
    unsaid: bool,
}

impl Line {
    fn of(request: &Request<Body>, metrics: Arc<Metrics>) -> Self {
        let from = request.extensions().get::<tls::Caller>();
        Self {
            // "/package.Service/Method"
            method: short(request.uri().path().trim_start_matches('/')),
            remote: from.map(|from| from.remote),
            identity: None,
            about: About::default(),
            began: Instant::now(),
            metrics,
            over: false,
            unsaid: false,
        }
    }

    /// A stream ends here when it begins: `Ok` then means that it was let begin.
    fn ends(&mut self, code: Code, why: &str) {
        self.over = true;
        let name = self.method.rsplit('/').next().unwrap_or_default();
        // Anybody may ask for any name; a label must have few values.
        let known = !matches!(code, Code::Unimplemented | Code::Unauthenticated) && !self.unsaid;
        let label = if known { name } else { "unknown" };
        self.metrics.answered(label, &format!("{code:?}"));
        if self.unsaid {
            return;
        }
        let target = locked(&self.about.0);
        let (method, target, why) = (self.method.as_str(), target.as_str(), short(why));
        let identity = self.identity.as_deref().unwrap_or("nobody");
        let remote = self.remote.map(tracing::field::display);
        let elapsed_ms = self.began.elapsed().as_millis();
        if code == Code::Ok {
            tracing::info!(
                identity,
                remote,
                method,
                target,
                outcome = "Ok",
                elapsed_ms,
                "call"
            );
        } else {
            let outcome = format!("{code:?}");
            tracing::warn!(
                identity, remote, method, target, outcome, why, elapsed_ms, "call"
            );
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.over {
            self.ends(
                Code::Cancelled,
                "the caller went away, or its time was over",
            );
        }
    }
}

/// A body that is still being sent counts as a running call.
struct Held {
    body: Body,
    _running: Running,
}

impl HttpBody for Held {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bearer_token_is_taken_and_nothing_else() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(|token| token.map(str::to_owned))
        };
        assert_eq!(with(&[]).unwrap(), None);
        assert_eq!(with(&["bearer abc"]).unwrap(), Some("abc".to_owned()));
        for wrong in [&["abc"][..], &["Basic abc"], &["Bearer a", "Bearer b"]] {
            assert!(with(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn fuzz_bearer_any_header_has_one_token_or_the_call_is_refused() {
        impound_fuzz::run(
            "bearer",
            &[b"Bearer eyJhbGciOi.e30.c2ln".to_vec()],
            |_, bytes| {
                let Ok(value) = header::HeaderValue::from_bytes(&bytes) else {
                    return;
                };
                let mut headers = HeaderMap::new();
                headers.append(header::AUTHORIZATION, value.clone());
                match bearer(&headers) {
                    Ok(token) => assert!(token.is_some_and(|token| token.len() < bytes.len())),
                    // Nothing of a token is in any message.
                    Err(refused) => assert!(refused.message().len() < 100),
                }
                headers.append(header::AUTHORIZATION, value);
                assert!(bearer(&headers).is_err(), "one of two was chosen");
            },
        );
    }
}
