//! What a request asks for: the parts of its path and its query.

use bytes::Bytes;
use http::Method;

use crate::refusal::{Outcome, Refusal};

/// A request after its body was read.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Query,
    pub(crate) accept: String,
    pub(crate) content_type: String,
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
    pub(crate) user_agent: String,
    pub(crate) body: Bytes,
}

impl Request {
    /// Who is written into managedFields: the parameter, else the first word of the user agent.
    pub(crate) fn manager(&self) -> &str {
        match self.query.get("fieldManager") {
            Some(manager) if !manager.is_empty() => manager,
            _ => match self.user_agent.split('/').next() {
                Some(first) if !first.is_empty() => first,
                _ => "unknown",
            },
        }
    }

    pub(crate) fn dry_run(&self) -> bool {
        self.query.get("dryRun") == Some("All")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Outcome<serde_json::Value> {
        if self.body.is_empty() {
            return Ok(serde_json::Value::Null);
        }
        if self.content_type.contains("protobuf") {
            return Err(Refusal::unsupported_media(
                "the body of the request was in an unknown format - accepted media types include: application/json",
            ));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            Refusal::bad_request(format!(
                "the object provided is unrecognized (must be of type json): {error}"
            ))
        })
    }
}

/// Decoded query parameters in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: &str) -> Self {
        let pairs = query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                (decode(key), decode(value))
            });
        Self(pairs.collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(found, _)| found == key)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "true" | ""))
    }
}

/// Percent-decoding, with `+` as a space.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                let hex = std::str::from_utf8(&hex).unwrap_or("3f");
                bytes.push(u8::from_str_radix(hex, 16).unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The parts of a resource path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    /// `""`: cluster-wide, or all namespaces.
    pub(crate) namespace: String,
    /// `""`: the collection.
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// What follows the sub-resource (only `proxy` has it).
    pub(crate) rest: String,
    /// The old `/watch/` prefix.
    pub(crate) watch: bool,
}

impl Target {
    /// None for paths that aren't those of a resource.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/').filter(|part| !part.is_empty()).map(decode);
        let mut target = Self::default();
        match parts.next()?.as_str() {
            "api" => target.version = parts.next()?,
            "apis" => {
                target.group = parts.next()?;
                target.version = parts.next()?;
            }
            _ => return None,
        }
        let mut next = parts.next()?;
        if next == "watch" {
            target.watch = true;
            next = parts.next()?;
        }
        if next == "namespaces" {
            let namespace = parts.next();
            match (namespace, parts.next()) {
                (None, _) => {}
                // A namespace's own sub-resources look like resources in it.
                (Some(name), sub @ (None | Some(_)))
                    if sub
                        .as_deref()
                        .is_none_or(|sub| matches!(sub, "status" | "finalize")) =>
                {
                    target.name = name;
                    target.subresource = sub.unwrap_or_default();
                }
                (Some(namespace), Some(plural)) => {
                    target.namespace = namespace;
                    next = plural;
                    target.name = parts.next().unwrap_or_default();
                    target.subresource = parts.next().unwrap_or_default();
                }
                (Some(_), None) => {}
            }
        } else {
            target.name = parts.next().unwrap_or_default();
            target.subresource = parts.next().unwrap_or_default();
        }
        target.plural = next;
        target.rest = parts.collect::<Vec<_>>().join("/");
        Some(target)
    }
}
