//! Where evidence is kept: a directory, or a bucket and how objects are written to it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use impound_evidence::LockMode;

use crate::store::Store;
use crate::store::directory::DirectoryStore;
use crate::store::s3::config::{AddressStyle, Encryption, LockPolicy, Place, Timing};
use crate::store::s3::{S3Config, S3Store};

/// Uploads that no record knows of are abandoned ones when they are older than this: a living writer
/// records its upload within one request.
const ABANDONED: Duration = Duration::from_secs(3600);
const DAY: u64 = 86_400;

/// Where evidence is kept.
#[derive(Clone, Debug, Args)]
pub struct StoreConfig {
    /// Directory that the evidence is written to, or s3://BUCKET/PREFIX.
    #[arg(
        long,
        env = "IMPOUND_STORE",
        default_value = "/var/lib/impound",
        value_name = "DIR|S3-URL"
    )]
    pub store: String,
    /// Object store's address, e.g. https://s3.example.org:9000 [default: Amazon's of the region]
    #[arg(long, env = "IMPOUND_STORE_ENDPOINT", value_name = "URL")]
    pub store_endpoint: Option<String>,
    /// Object store's region [default: AWS_REGION, AWS_DEFAULT_REGION or us-east-1]
    #[arg(long, env = "IMPOUND_STORE_REGION", value_name = "REGION")]
    pub store_region: Option<String>,
    /// Where a request names the bucket [default: path with --store-endpoint, otherwise virtual]
    #[arg(long, env = "IMPOUND_STORE_ADDRESS_STYLE", value_enum)]
    pub store_address_style: Option<AddressStyle>,
    /// PEM file of the CA certificates that the object store's is checked against [default: the system's]
    #[arg(long, env = "IMPOUND_STORE_CA", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// Object Lock of every object of evidence; needs --store-retain-days
    #[arg(long, env = "IMPOUND_STORE_LOCK", value_parser = lock_mode, value_name = "governance|compliance")]
    pub store_lock: Option<LockMode>,
    /// Days that an object stays locked after it was written
    #[arg(long, env = "IMPOUND_STORE_RETAIN_DAYS", value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub store_retain_days: Option<u32>,
    /// Put a legal hold on every object of evidence
    #[arg(long, env = "IMPOUND_STORE_LEGAL_HOLD")]
    pub store_legal_hold: bool,
    /// How the object store encrypts: s3, kms or kms:KEY [default: as the bucket does]
    #[arg(long, env = "IMPOUND_STORE_ENCRYPTION", value_name = "HOW")]
    pub store_encryption: Option<Encryption>,
    /// Seconds that a request may take with all its repetitions
    #[arg(
        long,
        env = "IMPOUND_STORE_PATIENCE",
        default_value_t = 180,
        value_name = "SECONDS"
    )]
    pub store_patience: u32,
}

impl StoreConfig {
    /// Opens the store; of a bucket it is seen at once whether it can be used and what it is worth.
    ///
    /// # Errors
    /// If it can't be used, or options don't fit together; the message says what to do.
    pub async fn open(&self) -> Result<Arc<dyn Store>> {
        let Some(config) = self.s3()? else {
            let directory = DirectoryStore::open(self.store.as_ref())
                .with_context(|| format!("evidence store {}", self.store))?;
            return Ok(Arc::new(directory));
        };
        let store = S3Store::open(config).await?;
        match store.collect_garbage(ABANDONED).await {
            Ok(0) => {}
            Ok(aborted) => tracing::info!(aborted, "abandoned uploads were removed from the store"),
            // Evidence comes first: what they cost can be cleared another day.
            Err(error) => {
                tracing::warn!(reason = %crate::describe::describe(&error), "abandoned uploads could not be looked for")
            }
        }
        Ok(Arc::new(store))
    }

    /// The bucket, if it is one.
    fn s3(&self) -> Result<Option<S3Config>> {
        if !self.store.contains("://") {
            let only_s3 = [
                (self.store_endpoint.is_some(), "--store-endpoint"),
                (self.store_lock.is_some(), "--store-lock"),
                (self.store_retain_days.is_some(), "--store-retain-days"),
                (self.store_legal_hold, "--store-legal-hold"),
                (self.store_encryption.is_some(), "--store-encryption"),
                (self.store_ca.is_some(), "--store-ca"),
            ];
            if let Some((_, option)) = only_s3.iter().find(|(given, _)| *given) {
                bail!(
                    "{option} is for object stores, and --store {} is a directory",
                    self.store
                );
            }
            return Ok(None);
        }
        let place: Place = self
            .store
            .parse()
            .map_err(|why| anyhow!("--store: {why}"))?;
        let lock = match (self.store_lock, self.store_retain_days) {
            (Some(mode), Some(days)) => Some(LockPolicy {
                mode,
                retain: Duration::from_secs(u64::from(days) * DAY),
            }),
            (Some(_), None) => bail!(
                "--store-lock needs --store-retain-days: how long evidence must be kept is for you to say"
            ),
            (None, Some(_)) => bail!(
                "--store-retain-days needs --store-lock governance or --store-lock compliance"
            ),
            (None, None) => None,
        };
        let variable = |name| {
            std::env::var(name)
                .ok()
                .filter(|value: &String| !value.is_empty())
        };
        Ok(Some(S3Config {
            place,
            style: self
                .store_address_style
                .unwrap_or(match self.store_endpoint {
                    Some(_) => AddressStyle::Path,
                    None => AddressStyle::Virtual,
                }),
            endpoint: self.store_endpoint.clone(),
            region: self
                .store_region
                .clone()
                .or_else(|| variable("AWS_REGION"))
                .or_else(|| variable("AWS_DEFAULT_REGION"))
                .unwrap_or_else(|| "us-east-1".to_owned()),
            ca: self.store_ca.clone(),
            lock,
            legal_hold: self.store_legal_hold,
            encryption: self.store_encryption.clone().unwrap_or_default(),
            timing: Timing {
                budget: Duration::from_secs(u64::from(self.store_patience)),
                ..Timing::default()
            },
        }))
    }
}

fn lock_mode(text: &str) -> Result<LockMode, String> {
    match text {
        "governance" => Ok(LockMode::Governance),
        "compliance" => Ok(LockMode::Compliance),
        _ => Err(format!("expected governance or compliance, came {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::Config;

    fn s3(arguments: &[&str]) -> Result<Option<S3Config>> {
        let all = ["impound-controller"].iter().chain(arguments);
        Config::try_parse_from(all)?.serve.store.s3()
    }

    #[test]
    fn a_bucket_with_an_endpoint_is_addressed_by_path_and_amazons_by_host() {
        let own = s3(&[
            "--store",
            "s3://evidence/a",
            "--store-endpoint",
            "http://127.0.0.1:8333",
        ]);
        assert_eq!(own.unwrap().unwrap().style, AddressStyle::Path);
        let amazon = s3(&["--store", "s3://evidence", "--store-region", "eu-central-1"]);
        let amazon = amazon.unwrap().unwrap();
        assert_eq!(
            (amazon.style, amazon.region.as_str()),
            (AddressStyle::Virtual, "eu-central-1")
        );
        assert!(s3(&["--store", "/var/lib/impound"]).unwrap().is_none());
    }

    #[test]
    fn options_that_do_not_fit_together_are_refused_with_what_is_missing() {
        for (arguments, says) in [
            (
                &["--store", "s3://evidence", "--store-lock", "compliance"][..],
                "--store-retain-days",
            ),
            (
                &["--store", "s3://evidence", "--store-retain-days", "3"],
                "--store-lock",
            ),
            (
                &["--store", "/srv", "--store-lock", "compliance"],
                "is for object stores",
            ),
            (&["--store", "gs://evidence"], "s3://BUCKET"),
            (
                &["--store", "s3://evidence", "--store-encryption", "kms:"],
                "kms:KEY",
            ),
        ] {
            let error = s3(arguments)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(error.contains(says), "{arguments:?}: {error}");
        }
    }
}
