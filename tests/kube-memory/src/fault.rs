//! Faults that tests inject: refusals, lost connections, lost replies, delays, cut watches.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

/// What happens to a matching request.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Answered with this status and a Status body; nothing is done.
    Answer {
        /// HTTP status.
        status: u16,
        /// Status reason, e.g. `TooManyRequests`.
        reason: String,
        /// Status message.
        message: String,
        /// Seconds for Retry-After.
        retry_after: Option<u32>,
        /// The message alone, as plain text: what is said besides is in the header only.
        plain: bool,
    },
    /// The connection (HTTP/2: the stream) ends and nothing is done.
    DropBefore,
    /// The request is carried out and its answer is lost.
    DropAfter,
    /// The request is carried out and its answer never comes: who asked can be killed in exactly this moment.
    HangAfter,
    /// The request waits first.
    Delay(Duration),
    /// All running watches end; the request itself goes on.
    CutWatches,
}

/// Which requests meet with an effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    method: Option<String>,
    path: String,
    not: Vec<String>,
    user: Option<String>,
    writes: bool,
    each_call_once: bool,
    skip: usize,
    times: Option<usize>,
    effect: Effect,
}

impl Fault {
    /// A fault of every request; narrow it with the methods below.
    pub fn new(effect: Effect) -> Self {
        Self {
            method: None,
            path: String::new(),
            not: Vec::new(),
            user: None,
            writes: false,
            each_call_once: false,
            skip: 0,
            times: None,
            effect,
        }
    }

    /// A refusal with the usual reason and words for its status: 409, 410, 429, 500, 503, …
    pub fn answer(status: u16) -> Self {
        let (reason, message) = match status {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden: injected"),
            404 => (
                "NotFound",
                "the server could not find the requested resource",
            ),
            409 => (
                "Conflict",
                "the object has been modified; please apply your changes to the latest version and try again",
            ),
            410 => (
                "Expired",
                "The resourceVersion for the provided watch is too old.",
            ),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            500 => ("InternalError", "Internal error occurred: injected"),
            503 => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            504 => ("Timeout", "request timed out"),
            _ => ("", "injected"),
        };
        Self::new(Effect::Answer {
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
            retry_after: None,
            plain: false,
        })
    }

    /// With a Retry-After header (only refusals have one).
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        if let Effect::Answer { retry_after, .. } = &mut self.effect {
            *retry_after = Some(seconds);
        }
        self
    }

    /// In plain text instead of a Status, as an overloaded API server or a proxy before it answers.
    #[must_use]
    pub fn plain(mut self) -> Self {
        if let Effect::Answer { plain, .. } = &mut self.effect {
            *plain = true;
        }
        self
    }

    /// Only requests with this method, and with this text in path and query.
    #[must_use]
    pub fn on(mut self, method: &str, path: &str) -> Self {
        self.method = (!method.is_empty()).then(|| method.to_owned());
        path.clone_into(&mut self.path);
        self
    }

    /// Only requests of this user.
    #[must_use]
    pub fn by(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Only requests that write.
    #[must_use]
    pub fn writes(mut self) -> Self {
        self.writes = true;
        self
    }

    /// Not requests with this text in their path.
    #[must_use]
    pub fn but(mut self, path: &str) -> Self {
        self.not.push(path.to_owned());
        self
    }

    /// Every call (method and path without query) meets with it once, the first time it is made.
    #[must_use]
    pub fn each_call_once(mut self) -> Self {
        self.each_call_once = true;
        self
    }

    fn matches(&self, method: &str, path: &str, user: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| wanted == method)
            && self.user.as_deref().is_none_or(|wanted| wanted == user)
            && !(self.writes && matches!(method, "GET" | "HEAD"))
            && path.contains(&self.path)
            && !self.not.iter().any(|not| path.contains(not))
    }

    /// Only the n-th matching request, counted from 1.
    #[must_use]
    pub fn nth(mut self, n: usize) -> Self {
        self.skip = n.saturating_sub(1);
        self.times = Some(1);
        self
    }

    /// Only this many matching requests.
    #[must_use]
    pub fn times(mut self, n: usize) -> Self {
        self.times = Some(n);
        self
    }
}

#[derive(Debug)]
struct Active {
    fault: Fault,
    seen: AtomicUsize,
    calls: Mutex<HashSet<(String, String)>>,
    hits: AtomicUsize,
    hung: watch::Sender<bool>,
    removed: AtomicBool,
}

/// An injected fault. Dropping it changes nothing; `remove` takes the fault away.
#[derive(Debug, Clone)]
pub struct FaultHandle(Arc<Active>);

impl FaultHandle {
    /// How many requests met with it.
    pub fn hits(&self) -> usize {
        self.0.hits.load(Ordering::SeqCst)
    }

    /// Waits until a request was carried out that never gets its answer.
    pub async fn hung(&self) {
        // The sender is in `self`, so it can't be gone.
        let _ = self.0.hung.subscribe().wait_for(|hung| *hung).await;
    }

    pub(crate) fn hangs(&self) {
        self.0.hung.send_replace(true);
    }

    /// Ends the fault.
    pub fn remove(&self) {
        self.0.removed.store(true, Ordering::SeqCst);
    }
}

/// All injected faults.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Arc<Active>>>);

impl Faults {
    pub(crate) fn inject(&self, fault: Fault) -> FaultHandle {
        let active = Arc::new(Active {
            fault,
            seen: AtomicUsize::new(0),
            calls: Mutex::default(),
            hung: watch::Sender::new(false),
            hits: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
        });
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(active.clone());
        FaultHandle(active)
    }

    /// The effects this request meets with, in the order of their injection.
    pub(crate) fn effects(
        &self,
        method: &str,
        path: &str,
        user: &str,
    ) -> Vec<(Effect, FaultHandle)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|active| !active.removed.load(Ordering::SeqCst));
        let mut effects = Vec::new();
        for active in all.iter() {
            let fault = &active.fault;
            if !fault.matches(method, path, user) {
                continue;
            }
            if fault.each_call_once {
                let path = path.split('?').next().unwrap_or_default();
                let call = (method.to_owned(), path.to_owned());
                let mut calls = active.calls.lock().unwrap_or_else(PoisonError::into_inner);
                if !calls.insert(call) {
                    continue;
                }
            }
            let seen = active.seen.fetch_add(1, Ordering::SeqCst);
            let used = active.hits.load(Ordering::SeqCst);
            if seen < fault.skip || fault.times.is_some_and(|times| used >= times) {
                continue;
            }
            active.hits.fetch_add(1, Ordering::SeqCst);
            effects.push((fault.effect.clone(), FaultHandle(active.clone())));
        }
        effects
    }
}

/// The Status body of an injected refusal.
pub(crate) fn status_body(
    status: u16,
    reason: &str,
    message: &str,
    retry_after: Option<u32>,
) -> Value {
    let mut body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                          "message": message, "code": status});
    if !reason.is_empty() {
        crate::json::put(&mut body, &["reason"], reason);
    }
    if let Some(seconds) = retry_after {
        crate::json::put(&mut body, &["details", "retryAfterSeconds"], seconds);
    }
    body
}
