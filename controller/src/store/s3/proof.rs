//! What a bucket is worth, found out by trying: an object is written under lock, and then everything
//! is tried on it that must not work. What the store needs to work at all is tried first.
//!
//! The tries use this process's own credentials: the strongest that a thief of them could use. What
//! the account's other users may do is not known by this.

use std::time::Duration;

use bytes::Bytes;
use impound_evidence::Sha256;
use time::OffsetDateTime;

use super::bucket::{Bucket, Created, Purpose, attempt};
use super::error::S3Error;
use super::http::Chunks;
use super::keys;
use crate::store::WriteOnce;

const CANARY: &[u8] = b"written to find out whether this bucket keeps what it has\n";
/// How much is tried to be taken off the canary's lock. Every retention is longer.
const SHORTER: Duration = Duration::from_secs(600);

/// Tries. The error is why the bucket can't be used.
pub(super) async fn prove(bucket: &Bucket) -> Result<WriteOnce, String> {
    let attempt = attempt();
    let key = keys::canary(&bucket.config.place, &attempt);
    let Created::Ours(version) = create(bucket, &key, &attempt)
        .await
        .map_err(|error| explain(bucket, &error))?
    else {
        return Err(format!("{key} was created and is somebody else's"));
    };
    let again = create(bucket, &key, &self::attempt()).await;
    match again.map_err(|error| explain(bucket, &error))? {
        Created::Taken => {}
        Created::Ours(_) => {
            return Err(
                "it replaces objects that are to be created (If-None-Match: * has no effect), so two controllers could write one name; use a server that refuses"
                    .to_owned(),
            );
        }
    }
    let proof = try_all(bucket, &key, version.as_deref()).await;
    let proof = proof.map_err(|error| explain(bucket, &error))?;
    if bucket.config.lock.is_none() {
        // Nothing keeps it; one that is locked goes when its time is over, or stays.
        bucket
            .purge(&key)
            .await
            .map_err(|error| explain(bucket, &error))?;
    }
    Ok(proof)
}

async fn create(bucket: &Bucket, key: &str, attempt: &str) -> Result<Created, S3Error> {
    let body = Chunks::new(vec![Bytes::from_static(CANARY)]);
    let sha256 = Sha256::of(CANARY);
    bucket
        .create(key, body, sha256, attempt, Purpose::Evidence)
        .await
}

/// Everything that must be refused, until something is not.
async fn try_all(bucket: &Bucket, key: &str, version: Option<&str>) -> Result<WriteOnce, S3Error> {
    let not = |why: &str| Ok(WriteOnce::NotProven(why.to_owned()));
    let Some(head) = bucket.head_version(key, version).await? else {
        return Err(S3Error::Broken("what was just written is not there".into()));
    };
    if bucket.config.lock.is_none() {
        return not("no Object Lock was asked for (--store-lock)");
    }
    let (Some(version), true) = (version, bucket.keeps_versions().await?) else {
        return not("the bucket keeps no versions, so its objects can't be locked");
    };
    let lock = head.stored.lock;
    let Some(until) = lock.as_ref().map(|lock| lock.until) else {
        return not(
            "the bucket took the object and did not lock it; was it made with Object Lock?",
        );
    };
    let (version, until) = (Some(version), until.to_utc());
    for bypass in [false, true] {
        if !refused(bucket.delete_version(key, version, bypass).await)? {
            return not(match bypass {
                false => "a locked version could be deleted",
                true => {
                    "these credentials can delete a locked version (s3:BypassGovernanceRetention)"
                }
            });
        }
    }
    let mode = bucket
        .config
        .lock
        .map_or("", super::config::LockPolicy::mode);
    for bypass in [false, true] {
        let shorter = until - SHORTER;
        let shortened = bucket.retain(key, version, mode, shorter, bypass).await;
        let now = bucket.retention(key, version).await?;
        if !refused(shortened)?
            || now.is_none_or(|now| now < until.replace_nanosecond(0).unwrap_or(until))
        {
            return not(match bypass {
                false => "the lock of an object could be shortened",
                true => {
                    "these credentials can shorten the lock of an object (s3:BypassGovernanceRetention)"
                }
            });
        }
    }
    // Where versions are kept a write makes a newer one; the locked one must be as it was.
    let over = bucket.replace(key, Bytes::from_static(b"replaced\n")).await;
    refused(over)?;
    match bucket.head_version(key, version).await? {
        Some(kept) if kept.size == CANARY.len() as u64 && kept.etag == head.etag => {}
        _ => return not("a locked object could be replaced"),
    }
    if !is_locked_now(bucket, key, version).await? {
        return not("the lock of an object was gone after these tries");
    }
    Ok(WriteOnce::Proven)
}

async fn is_locked_now(bucket: &Bucket, key: &str, version: Option<&str>) -> Result<bool, S3Error> {
    let until = bucket.retention(key, version).await?;
    Ok(until.is_some_and(|until| until > OffsetDateTime::now_utc()))
}

/// Whether the store said no; any other failure proves nothing.
fn refused(tried: Result<(), S3Error>) -> Result<bool, S3Error> {
    match tried {
        Ok(()) => Ok(false),
        Err(error) if matches!(error.status(), 400 | 403 | 405 | 409 | 412) => Ok(true),
        Err(error) => Err(error),
    }
}

/// What a failure of the first requests means, and what to do.
fn explain(bucket: &Bucket, error: &S3Error) -> String {
    let hint = match (error.status(), error.code()) {
        (404, _) => {
            "there is no such bucket; make it, with Object Lock if evidence is to be locked"
        }
        (403, "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
            "the server does not know this key, or the secret is another; see the credentials"
        }
        (301 | 307 | 400, "PermanentRedirect" | "AuthorizationHeaderMalformed") => {
            "the bucket is in another region; see --store-region"
        }
        (400, "InvalidRequest") => {
            "the bucket takes no Object Lock; make it with it, or use no --store-lock"
        }
        (403, _) => "these credentials may not write there",
        _ => "see the endpoint, the region and the network",
    };
    let host = bucket.config.endpoint.as_deref().unwrap_or("Amazon S3");
    format!("{error} ({host}): {hint}")
}
