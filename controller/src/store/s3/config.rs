//! Where an S3 bucket is and how evidence is kept in it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use impound_evidence::LockMode;

/// A bucket, and how objects are written to it. Credentials are not here: they come from the usual
/// chain (environment, shared files, web identity, container and instance metadata).
#[derive(Clone, Debug)]
pub struct S3Config {
    /// Bucket, and what every key begins with.
    pub place: Place,
    /// `http://` or `https://`, a host, a port if need be; none: Amazon's of the region.
    pub endpoint: Option<String>,
    /// Region that requests are signed for.
    pub region: String,
    /// Whether the bucket's name is in the path or in the host name.
    pub style: AddressStyle,
    /// PEM file of the certificates that the server's is checked against; none: the system's.
    pub ca: Option<PathBuf>,
    /// Object Lock of every object of evidence; none: what the bucket does by itself.
    pub lock: Option<LockPolicy>,
    /// Put a legal hold on every object of evidence; only with a lock.
    pub legal_hold: bool,
    /// How the server encrypts at rest.
    pub encryption: Encryption,
    /// How long is waited, and how often tried.
    pub timing: Timing,
}

/// `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The bucket.
    pub bucket: String,
    /// What keys begin with: empty, or without `/` at its ends.
    pub prefix: String,
}

/// How a bucket is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AddressStyle {
    /// `https://host/bucket/key`, which every server understands.
    Path,
    /// `https://bucket.host/key`, which Amazon wants.
    Virtual,
}

/// Object Lock of new objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockPolicy {
    /// Who may shorten it: with governance the holders of `s3:BypassGovernanceRetention`, with
    /// compliance nobody, the account's owner included.
    pub mode: LockMode,
    /// From the writing on.
    pub retain: Duration,
}

/// Encryption by the server.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Encryption {
    /// Whatever the bucket does by itself.
    #[default]
    OfBucket,
    /// With keys of the store (SSE-S3).
    Store,
    /// With a key of its key management service (SSE-KMS): an id or ARN, or the account's default.
    Kms(Option<String>),
}

/// Patience with the server.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Until a connection is there.
    pub connect: Duration,
    /// Without any progress: until the head of an answer, and between two pieces of its body. A
    /// request that carries bytes gets a second more for each MiB.
    pub stall: Duration,
    /// For one request with all its repetitions; at least one try is made.
    pub budget: Duration,
}

impl Default for Timing {
    /// Object stores restart and shed load for seconds to minutes; a collection that waits that long
    /// is better than one that fails, and the agents' streams wait with it.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(60),
            budget: Duration::from_secs(180),
        }
    }
}

impl LockPolicy {
    /// Its mode as the protocol writes it.
    pub(super) fn mode(self) -> &'static str {
        match self.mode {
            LockMode::Governance => "GOVERNANCE",
            LockMode::Compliance => "COMPLIANCE",
        }
    }
}

impl Place {
    /// The key of what is called `name` below the prefix.
    pub(super) fn key(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.key_of_bucket())
    }
}

impl Place {
    fn key_of_bucket(&self) -> String {
        match self.prefix.as_str() {
            "" => self.bucket.clone(),
            prefix => format!("{}/{prefix}", self.bucket),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            Err(format!(
                "expected s3://BUCKET or s3://BUCKET/PREFIX, came {text:?}: {what}"
            ))
        };
        let Some(rest) = text.strip_prefix("s3://") else {
            return wrong("it does not begin with s3://");
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let named = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(named) {
            return wrong("a bucket has 3 to 63 lower-case letters, digits, '-' or '.'");
        }
        let prefix = prefix.trim_end_matches('/');
        let plain = |segment: &str| {
            let part = |c: u8| c.is_ascii_alphanumeric() || b"-_.=".contains(&c);
            !segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(part)
        };
        if !prefix.is_empty() && (prefix.len() > 128 || !prefix.split('/').all(plain)) {
            return wrong(
                "a prefix has at most 128 letters, digits, '-', '_', '.', '=' and single '/', and no part that begins with '.'",
            );
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

impl FromStr for Encryption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "s3" => Ok(Self::Store),
            None if text == "kms" => Ok(Self::Kms(None)),
            Some(("kms", key)) if !key.is_empty() => Ok(Self::Kms(Some(key.to_owned()))),
            _ => Err(format!("expected s3, kms or kms:KEY, came {text:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_bucket_and_a_plain_prefix() {
        let place: Place = "s3://evidence/team-a/2026/".parse().unwrap();
        assert_eq!(place.to_string(), "s3://evidence/team-a/2026");
        assert_eq!(place.key("INC-1"), "team-a/2026/INC-1");
        let whole: Place = "s3://evidence".parse().unwrap();
        assert_eq!(whole.key("INC-1"), "INC-1");
        for wrong in [
            "/var/lib",
            "s3://",
            "s3://No",
            "s3://evidence/a//b",
            "s3://evidence/../b",
            "s3://evidence/.impound",
            "s3://evidence/a?x=y",
        ] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn encryption_names_its_key() {
        assert_eq!(
            "kms:arn:aws:kms:eu-1:1:key/2".parse(),
            Ok(Encryption::Kms(Some("arn:aws:kms:eu-1:1:key/2".into())))
        );
        assert_eq!("s3".parse(), Ok(Encryption::Store));
        assert!("kms:".parse::<Encryption>().is_err());
    }
}
