//! The record of every request: kept in memory for tests, written as JSON lines if a file is named.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One request and how it was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// When it was answered, RFC 3339 with microseconds.
    pub time: String,
    /// HTTP method.
    pub method: String,
    /// Path and query as sent.
    pub path: String,
    /// Who asked (after impersonation).
    pub user: String,
    /// The User-Agent header.
    pub user_agent: String,
    /// HTTP status, also of an answer that was lost on purpose; 0 if the request was dropped before.
    pub status: u16,
    /// Microseconds from the end of the request body to the answer.
    pub micros: u64,
    /// The body of a write, if it was JSON.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body: Option<Value>,
}

/// The log.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    records: Vec<RequestRecord>,
    file: Option<File>,
}

impl Audit {
    pub(crate) fn new(file: Option<File>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                records: Vec::new(),
                file,
            }),
        }
    }

    pub(crate) fn add(&self, record: RequestRecord) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut inner.file {
            let mut line = serde_json::to_vec(&record).unwrap_or_default();
            line.push(b'\n');
            if let Err(error) = file.write_all(&line) {
                tracing::error!(%error, "audit file can't be written; records stay in memory only");
                inner.file = None;
            }
        }
        inner.records.push(record);
    }

    pub(crate) fn records(&self) -> Vec<RequestRecord> {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .records
            .clone()
    }
}
