//! Watches: what is there, then every change, as JSON lines.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::read::{Filter, bad_version, shown};
use super::table::Form;
use super::{Call, Reply, ReplyBody};
use crate::core::Core;
use crate::json;
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::registry::Resource;
use crate::request::Request;
use crate::store::{Change, ChangeKind, Object};

/// What a watch without a timeout gets; real servers choose between this and twice as much.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// How often a quiet watch is told the newest version.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(5);

struct Watch {
    core: Arc<Core>,
    resource: Arc<Resource>,
    namespace: String,
    filter: Filter,
    form: Form,
    request: Request,
    bookmarks: bool,
    /// Changes up to this version were sent.
    sent: u64,
}

/// Starts a watch: the answer's body goes on until the timeout.
pub(super) fn start(call: &Call<'_>) -> Outcome<Reply> {
    let query = &call.request.query;
    let filter = Filter::of(call)?;
    let asked = query
        .get("resourceVersion")
        .filter(|asked| !asked.is_empty());
    let asked: Option<u64> = asked
        .map(|asked| asked.parse().map_err(|_| bad_version(asked)))
        .transpose()?;
    let initial = query.get("sendInitialEvents").map(|flag| flag == "true");
    if initial.is_some() && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        let error = FieldError::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
        return Err(Refusal::invalid_kind(
            "ListOptions",
            "meta.k8s.io",
            "",
            &[error],
        ));
    }
    let timeout = query
        .get("timeoutSeconds")
        .and_then(|seconds| seconds.parse().ok());
    let timeout = timeout
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let mut watch = Watch {
        core: call.core.clone(),
        resource: call.resource.clone(),
        namespace: call.target.namespace.clone(),
        filter,
        form: Form::of(&call.request.accept),
        request: call.request.clone(),
        bookmarks: query.flag("allowWatchBookmarks") && query.get("allowWatchBookmarks").is_some(),
        sent: asked.unwrap_or(0),
    };
    // Subscribed before the first look: no change can fall between.
    let changes = call.core.shared.changes();
    let cuts = call.core.cuts.subscribe();
    let from_start = initial.unwrap_or(asked.unwrap_or(0) == 0);
    let mut first = Vec::new();
    if from_start {
        watch.initial(&mut first, initial == Some(true));
    }
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(watch.run(first, changes, cuts, sender, timeout));
    Ok(Reply {
        code: 200,
        content_type: "application/json".into(),
        headers: Vec::new(),
        body: ReplyBody::Stream(receiver),
    })
}

impl Watch {
    fn initial(&mut self, out: &mut Vec<u8>, end_mark: bool) {
        let (version, objects) = self.core.shared.with(|state| {
            (
                state.store.version(),
                state.store.list(&self.resource.table, &self.namespace),
            )
        });
        for object in objects.iter().filter(|object| self.filter.matches(object)) {
            self.line("ADDED", object, out);
        }
        self.sent = version;
        if end_mark {
            self.bookmark(true, out);
        }
    }

    async fn run(
        mut self,
        first: Vec<u8>,
        mut changes: tokio::sync::watch::Receiver<u64>,
        mut cuts: tokio::sync::watch::Receiver<u64>,
        sender: mpsc::Sender<Bytes>,
        timeout: Duration,
    ) {
        let end = Instant::now() + timeout;
        // A client that renews its watch from a bookmark misses least if one comes just before the end.
        let last_mark = end.checked_sub(Duration::from_millis(500)).unwrap_or(end);
        let mut next_mark = (Instant::now() + BOOKMARK_INTERVAL).min(last_mark);
        let mut marked = self.sent;
        let mut out = first;
        loop {
            let failed = self.collect(&mut out);
            if !out.is_empty()
                && sender
                    .send(Bytes::from(std::mem::take(&mut out)))
                    .await
                    .is_err()
            {
                return;
            }
            if failed {
                return;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                _ = cuts.changed() => return,
                () = sender.closed() => return,
                () = tokio::time::sleep_until(end) => return,
                () = tokio::time::sleep_until(next_mark) => {
                    if self.bookmarks && self.sent > marked {
                        self.bookmark(false, &mut out);
                        marked = self.sent;
                    }
                    let next = Instant::now() + BOOKMARK_INTERVAL;
                    next_mark = if Instant::now() >= last_mark { end } else { next.min(last_mark) };
                }
            }
        }
    }

    /// Adds what happened since the last time; true if the log no longer reaches back far enough.
    fn collect(&mut self, out: &mut Vec<u8>) -> bool {
        let (version, changes) = self.core.shared.with(|state| {
            let table = state.store.table(&self.resource.table);
            let changes = table
                .changes_after(self.sent)
                .map(|changes| changes.cloned().collect::<Vec<_>>());
            (state.store.version(), changes)
        });
        match changes {
            Ok(changes) => {
                for change in &changes {
                    self.change(change, out);
                }
                self.sent = self.sent.max(version);
                false
            }
            Err(oldest) => {
                let refusal = Refusal::expired(format!(
                    "too old resource version: {} ({oldest})",
                    self.sent
                ));
                write_line(out, "ERROR", &refusal.status());
                true
            }
        }
    }

    fn change(&self, change: &Change, out: &mut Vec<u8>) {
        if !self.namespace.is_empty() && json::namespace(&change.new) != self.namespace {
            return;
        }
        let before = change
            .old
            .as_ref()
            .is_some_and(|old| self.filter.matches(old));
        let after = change.kind != ChangeKind::Deleted && self.filter.matches(&change.new);
        match (before, after) {
            (false, true) => self.line("ADDED", &change.new, out),
            (true, true) => self.line("MODIFIED", &change.new, out),
            (true, false) if change.kind == ChangeKind::Deleted => {
                self.line("DELETED", &change.new, out)
            }
            // It left the selection: the last state that was in it, with the version of the change.
            (true, false) => {
                let mut last = change.old.as_deref().cloned().unwrap_or(Value::Null);
                json::put(
                    &mut last,
                    &["metadata", "resourceVersion"],
                    change.version.to_string(),
                );
                self.line("DELETED", &Arc::new(last), out);
            }
            (false, false) => {}
        }
    }

    fn line(&self, kind: &str, object: &Object, out: &mut Vec<u8>) {
        let object = shown(&self.resource, object);
        match self.form {
            Form::Plain => write_line(out, kind, &object),
            form => {
                let version = json::text(&object, "/metadata/resourceVersion").to_owned();
                write_line(
                    out,
                    kind,
                    &form.one_of(&self.resource, &self.request, &object, &version),
                );
            }
        }
    }

    fn bookmark(&self, end: bool, out: &mut Vec<u8>) {
        let mut object = json!({
            "kind": self.resource.kind, "apiVersion": self.resource.api_version(),
            "metadata": {"resourceVersion": self.sent.to_string()},
        });
        if end {
            json::put(
                &mut object,
                &["metadata", "annotations", "k8s.io/initial-events-end"],
                "true",
            );
        }
        if self.resource.is("pods") {
            json::put(&mut object, &["spec"], json!({"containers": null}));
            json::put(&mut object, &["status"], json!({}));
        }
        write_line(out, "BOOKMARK", &object);
    }
}

fn write_line(out: &mut Vec<u8>, kind: &str, object: &Value) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    // Writing JSON values into memory can't fail.
    let _ = serde_json::to_writer(&mut *out, object);
    out.extend_from_slice(b"}\n");
}
