//! What can go wrong between this process and an object store. No message holds a credential: what
//! the signer and the credential sources say is cut to its kind.

use std::time::Duration;

/// An answer that says no, or none.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    /// The server refused.
    #[error("the server answered {status} {code}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The protocol's code, e.g. `AccessDenied`.
        code: String,
        /// Its message.
        message: String,
    },
    /// No whole answer came.
    #[error("no whole answer came: {0}")]
    Broken(String),
    /// The answer took too long.
    #[error("nothing came for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    /// No credential, or none that can be used.
    #[error(
        "no usable credential was found ({0}); looked at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the shared files, the web identity token and the metadata services"
    )]
    Credential(String),
    /// The answer's document is not the one that belongs there.
    #[error("expected {expected} in the answer: {found}")]
    Document {
        /// Its root element.
        expected: &'static str,
        /// What is wrong.
        found: String,
    },
    /// The budget is used up.
    #[error("gave up after {tries} tries in {} s, last: {last}", .within.as_secs())]
    GaveUp {
        /// How often it was tried.
        tries: u32,
        /// Since the first.
        within: Duration,
        /// Why the last one failed.
        last: Box<S3Error>,
    },
    /// A request that can't be made, e.g. with a header of forbidden characters.
    #[error("the request can't be made: {0}")]
    Request(String),
}

impl S3Error {
    /// Whether the same request may succeed a moment later.
    pub(in crate::store) fn is_passing(&self) -> bool {
        match self {
            Self::Refused { status, code, .. } => {
                matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
                    // Bytes that were changed on the way; another write to the same name at this moment.
                    || matches!(
                        code.as_str(),
                        "BadDigest"
                            | "XAmzContentSHA256Mismatch"
                            | "XAmzContentChecksumMismatch"
                            | "IncompleteBody"
                            | "MalformedXML"
                            | "InvalidPart"
                            | "RequestTimeout"
                            | "ConditionalRequestConflict"
                            | "OperationAborted"
                            | "SlowDown"
                    )
            }
            // A document that is none was cut or changed on the way.
            Self::Broken(_) | Self::Stalled(_) | Self::Document { .. } => true,
            Self::GaveUp { last, .. } => last.is_passing(),
            Self::Credential(_) | Self::Request(_) => false,
        }
    }

    /// The protocol's code, if it was an answer.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::GaveUp { last, .. } => last.code(),
            _ => "",
        }
    }

    /// The HTTP status, if it was an answer.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Refused { status, .. } => *status,
            Self::GaveUp { last, .. } => last.status(),
            _ => 0,
        }
    }

    /// Whether what was asked for is not there.
    pub(super) fn is_absent(&self) -> bool {
        self.status() == 404 && self.code() != "NoSuchBucket"
    }

    /// Whether a condition did not hold: somebody else has the name.
    pub(super) fn is_taken(&self) -> bool {
        self.status() == 412
    }
}
