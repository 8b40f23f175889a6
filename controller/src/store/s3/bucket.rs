//! Operations on objects of a bucket: each repeated until it is answered, each telling apart "done by
//! this call, whose answer was lost" from "done by somebody else".
//!
//! For that every object carries the id of the attempt that wrote it as metadata: when a create that
//! must not replace anything finds the name taken, the object's attempt says by whom.

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, IF_MATCH, IF_NONE_MATCH, RANGE,
};
use http::{HeaderValue, Method};
use hyper::body::Incoming;
use impound_evidence::{LockMode, StorageLock, Timestamp};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::config::{Encryption, S3Config};
use super::error::S3Error;
use super::http::{Answer, Chunks, Http, Patience, Request};
use super::xml::{self, Listed, ObjectPage, Version, VersionPage};

/// Metadata that names the attempt that wrote an object.
const ATTEMPT: &str = "x-amz-meta-impound-attempt";
const VERSION: &str = "x-amz-version-id";
const LOCK_MODE: &str = "x-amz-object-lock-mode";
const RETAIN_UNTIL: &str = "x-amz-object-lock-retain-until-date";
const LEGAL_HOLD: &str = "x-amz-object-lock-legal-hold";
const BYPASS: &str = "x-amz-bypass-governance-retention";

/// A bucket.
pub(super) struct Bucket {
    pub(super) http: Http,
    pub(super) config: S3Config,
}

/// An object as it is.
#[derive(Debug, Clone)]
pub(super) struct Head {
    /// Bytes.
    pub(super) size: u64,
    pub(super) etag: String,
    /// Who wrote it.
    pub(super) attempt: Option<String>,
    /// Version and lock.
    pub(super) stored: StoredAs,
}

/// Which version an object has, and how it is locked.
#[derive(Debug, Clone)]
pub(super) struct StoredAs {
    /// If the bucket keeps versions.
    pub(super) version: Option<String>,
    /// If it is.
    pub(super) lock: Option<StorageLock>,
}

/// What became of a create.
pub(super) enum Created {
    /// The name is this attempt's: its version, if the bucket keeps versions.
    Ours(Option<String>),
    /// It was somebody else's already.
    Taken,
}

/// What an object is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Evidence: locked, if objects are to be.
    Evidence,
    /// Of the store itself: replaced and removed.
    Control,
}

impl Bucket {
    /// Creates an object; never replaces one.
    pub(super) async fn create(
        &self,
        key: &str,
        body: Chunks,
        sha256: impound_evidence::Sha256,
        attempt: &str,
        purpose: Purpose,
    ) -> Result<Created, S3Error> {
        let request = self
            .writing(Request::new(Method::PUT, key), attempt, purpose)?
            .header(IF_NONE_MATCH.as_str(), "*")?
            .body(body, sha256)?;
        match self.http.call(&request).await {
            Ok(answer) => Ok(Created::Ours(text(&answer.headers, VERSION))),
            Err(error) if error.is_taken() => self.whose(key, attempt).await,
            Err(error) => Err(error),
        }
    }

    /// Whether the object that has the name is of this attempt.
    pub(super) async fn whose(&self, key: &str, attempt: &str) -> Result<Created, S3Error> {
        Ok(match self.head(key).await? {
            Some(head) if head.attempt.as_deref() == Some(attempt) => {
                Created::Ours(head.stored.version)
            }
            _ => Created::Taken,
        })
    }

    /// Writes an object of the store itself, whatever there is.
    pub(super) async fn replace(&self, key: &str, bytes: Bytes) -> Result<(), S3Error> {
        let attempt = attempt();
        let request = self
            .writing(Request::new(Method::PUT, key), &attempt, Purpose::Control)?
            .bytes(bytes)?;
        self.http.call(&request).await.map(drop)
    }

    /// Writes an object only in the place of the one with this tag, or of none. False: it is another.
    pub(super) async fn swap(
        &self,
        key: &str,
        old: Option<&str>,
        bytes: Bytes,
    ) -> Result<bool, S3Error> {
        let attempt = attempt();
        let request = self.writing(Request::new(Method::PUT, key), &attempt, Purpose::Control)?;
        let request = match old {
            Some(etag) => request.header(IF_MATCH.as_str(), etag)?,
            None => request.header(IF_NONE_MATCH.as_str(), "*")?,
        };
        match self.http.call(&request.bytes(bytes)?).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_taken() || error.is_absent() => {
                Ok(matches!(self.whose(key, &attempt).await?, Created::Ours(_)))
            }
            Err(error) => Err(error),
        }
    }

    /// What there is of that name now.
    pub(super) async fn head(&self, key: &str) -> Result<Option<Head>, S3Error> {
        self.head_version(key, None).await
    }

    /// A version of it; the current one if none is given.
    pub(super) async fn head_version(
        &self,
        key: &str,
        version: Option<&str>,
    ) -> Result<Option<Head>, S3Error> {
        let request = versioned(Request::new(Method::HEAD, key), version);
        // Whether a HEAD of a deleted version says 404 or 405 depends on the server.
        match self.http.call(&request).await {
            Ok(answer) => head(&answer.headers).map(Some),
            Err(error) if error.is_absent() || error.status() == 405 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A small object whole, with its head.
    pub(super) async fn small(&self, key: &str) -> Result<Option<(Head, Bytes)>, S3Error> {
        let request = Request::new(Method::GET, key);
        let whole =
            |headers: &HeaderMap, body: &[u8]| match head(headers)?.size == body.len() as u64 {
                true => Ok(()),
                false => Err(S3Error::Broken("it is shorter than announced".to_owned())),
            };
        match self.http.call_checked(&request, whole).await {
            Ok(answer) => Ok(Some((head(&answer.headers)?, answer.body))),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens an object for reading from `offset`, which must be before its end. One try.
    pub(super) async fn open(
        &self,
        key: &str,
        version: Option<&str>,
        offset: u64,
    ) -> Result<(Head, Incoming), (S3Error, Option<std::time::Duration>)> {
        let mut request = versioned(Request::new(Method::GET, key), version);
        if offset > 0 {
            request = request.header(RANGE.as_str(), &format!("bytes={offset}-"))?;
        }
        let (headers, body) = self.http.open(&request).await?;
        Ok((head(&headers)?, body))
    }

    pub(super) fn patience(&self) -> Patience {
        self.http.patience()
    }

    /// Objects whose keys begin with `prefix`, ordered by key, those behind the key `after`; at most `limit`.
    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, S3Error> {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let page = self.page(prefix, None, after, token).await?;
            found.extend(page.contents);
            if found.len() > limit {
                return Err(S3Error::Request(format!(
                    "more than {limit} objects begin with {prefix}"
                )));
            }
            token = page.next_continuation_token;
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// What follows `prefix` in keys, up to the next `/`.
    pub(super) async fn list_below(&self, prefix: &str) -> Result<Vec<String>, S3Error> {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let page = self.page(prefix, Some("/"), None, token).await?;
            for below in page.common_prefixes {
                let name = below.prefix.strip_prefix(prefix).unwrap_or_default();
                found.push(name.trim_end_matches('/').to_owned());
            }
            token = page.next_continuation_token;
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    async fn page(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        after: Option<&str>,
        token: Option<String>,
    ) -> Result<ObjectPage, S3Error> {
        let mut request = Request::new(Method::GET, "");
        let after = after.filter(|_| token.is_none());
        if let Some(token) = token {
            request = request.query("continuation-token", token);
        }
        if let Some(delimiter) = delimiter {
            request = request.query("delimiter", delimiter);
        }
        let mut request = request.query("list-type", "2").query("prefix", prefix);
        if let Some(after) = after {
            request = request.query("start-after", after);
        }
        let answer = self.document(&request, "ListBucketResult").await?;
        xml::read("ListBucketResult", &answer.body)
    }

    /// Deletes a version; the error says whether the store refused.
    pub(super) async fn delete_version(
        &self,
        key: &str,
        version: Option<&str>,
        bypass: bool,
    ) -> Result<(), S3Error> {
        let mut request = versioned(Request::new(Method::DELETE, key), version);
        if bypass {
            request = request.header(BYPASS, "true")?;
        }
        match self.http.call(&request).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_absent() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes an object with all its versions, as far as the bucket lets go of them; in any case
    /// nothing has the name afterwards.
    pub(super) async fn purge(&self, key: &str) -> Result<(), S3Error> {
        let versions = match self.versions(key).await {
            Ok(versions) => versions,
            // A server that knows no versions.
            Err(error) if matches!(error.status(), 400 | 405 | 501) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut kept = versions.is_empty();
        for version in versions {
            match self
                .delete_version(key, Some(&version.version_id), false)
                .await
            {
                Ok(()) => {}
                // The bucket locks by itself, or keeps versions from us.
                Err(error) if matches!(error.status(), 400 | 403 | 409) => kept = true,
                Err(error) => return Err(error),
            }
        }
        match kept {
            true => self.delete_version(key, None, false).await,
            false => Ok(()),
        }
    }

    /// Every version of the objects whose keys begin with `prefix`, without deletion markers; at most `limit`.
    pub(super) async fn versions_below(
        &self,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Version>, S3Error> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = self.version_page(prefix, after).await?;
            found.extend(page.version);
            if found.len() > limit {
                return Err(S3Error::Request(format!(
                    "more than {limit} versions begin with {prefix}"
                )));
            }
            after = page.next_key_marker.zip(page.next_version_id_marker);
            if !page.is_truncated || after.is_none() {
                return Ok(found);
            }
        }
    }

    async fn version_page(
        &self,
        prefix: &str,
        after: Option<(String, String)>,
    ) -> Result<VersionPage, S3Error> {
        let mut request = Request::new(Method::GET, "");
        if let Some((key, version)) = after {
            request = request.query("key-marker", key);
            request = request.query("version-id-marker", version);
        }
        let request = request.query("prefix", prefix).query("versions", "");
        let answer = self.document(&request, "ListVersionsResult").await?;
        xml::read("ListVersionsResult", &answer.body)
    }

    /// Versions and deletion markers of exactly this key.
    pub(super) async fn versions(&self, key: &str) -> Result<Vec<Version>, S3Error> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = self.version_page(key, after).await?;
            let all = page.version.into_iter().chain(page.delete_marker);
            found.extend(all.filter(|version| version.key == key));
            after = page.next_key_marker.zip(page.next_version_id_marker);
            // Keys that only begin with this one come later.
            let over = after.as_ref().is_none_or(|(next, _)| next != key);
            if !page.is_truncated || over {
                return Ok(found);
            }
        }
    }

    /// Until when a version is locked, if it is.
    pub(super) async fn retention(
        &self,
        key: &str,
        version: Option<&str>,
    ) -> Result<Option<OffsetDateTime>, S3Error> {
        let request = versioned(
            Request::new(Method::GET, key).query("retention", ""),
            version,
        );
        let answer = self.document(&request, "Retention").await?;
        let retention: xml::Retention = xml::read("Retention", &answer.body)?;
        Ok(retention.retain_until_date.and_then(|date| instant(&date)))
    }

    /// Locks a version until then, or tries to shorten its lock.
    pub(super) async fn retain(
        &self,
        key: &str,
        version: Option<&str>,
        mode: &str,
        until: OffsetDateTime,
        bypass: bool,
    ) -> Result<(), S3Error> {
        let document = format!(
            r#"<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Mode>{mode}</Mode><RetainUntilDate>{}</RetainUntilDate></Retention>"#,
            date(until)?
        );
        let request = Request::new(Method::PUT, key).query("retention", "");
        let mut request = versioned(request, version).bytes(document.into())?;
        if bypass {
            request = request.header(BYPASS, "true")?;
        }
        self.http.call(&request).await.map(drop)
    }

    /// Puts a legal hold on a version, or lifts it.
    pub(super) async fn hold(
        &self,
        key: &str,
        version: Option<&str>,
        on: bool,
    ) -> Result<(), S3Error> {
        let status = if on { "ON" } else { "OFF" };
        let document = format!(
            r#"<LegalHold xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>{status}</Status></LegalHold>"#
        );
        let request = Request::new(Method::PUT, key).query("legal-hold", "");
        let request = versioned(request, version).bytes(document.into())?;
        self.http.call(&request).await.map(drop)
    }

    /// Whether the bucket keeps every version.
    pub(super) async fn keeps_versions(&self) -> Result<bool, S3Error> {
        let request = Request::new(Method::GET, "").query("versioning", "");
        let answer = self.document(&request, "VersioningConfiguration").await?;
        let versioning: xml::Versioning = xml::read("VersioningConfiguration", &answer.body)?;
        Ok(versioning.status.as_deref() == Some("Enabled"))
    }

    /// When a lock that begins now ends.
    pub(super) fn locked_until(&self) -> Option<OffsetDateTime> {
        let lock = self.config.lock?;
        Some(OffsetDateTime::now_utc() + lock.retain)
    }

    /// Headers of a request that makes an object.
    pub(super) fn writing(
        &self,
        request: Request,
        attempt: &str,
        purpose: Purpose,
    ) -> Result<Request, S3Error> {
        let mut request = request.header(ATTEMPT, attempt)?;
        match &self.config.encryption {
            Encryption::OfBucket => {}
            Encryption::Store => {
                request = request.header("x-amz-server-side-encryption", "AES256")?;
            }
            Encryption::Kms(key) => {
                request = request.header("x-amz-server-side-encryption", "aws:kms")?;
                if let Some(key) = key {
                    request = request.header("x-amz-server-side-encryption-aws-kms-key-id", key)?;
                }
            }
        }
        if purpose == Purpose::Control {
            return Ok(request);
        }
        self.locking(request)
    }

    /// Headers that lock what a request makes.
    pub(super) fn locking(&self, mut request: Request) -> Result<Request, S3Error> {
        if let (Some(lock), Some(until)) = (self.config.lock, self.locked_until()) {
            request = request
                .header(LOCK_MODE, lock.mode())?
                .header(RETAIN_UNTIL, &date(until)?)?;
        }
        if self.config.legal_hold {
            request = request.header(LEGAL_HOLD, "ON")?;
        }
        Ok(request)
    }

    /// Asks for a document that must arrive whole.
    pub(super) async fn document(
        &self,
        request: &Request,
        root: &'static str,
    ) -> Result<Answer, S3Error> {
        let whole = |_: &HeaderMap, body: &[u8]| xml::check_done(root, body);
        self.http.call_checked(request, whole).await
    }
}

/// A name for one attempt at one object.
pub(super) fn attempt() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub(super) fn versioned(request: Request, version: Option<&str>) -> Request {
    match version {
        Some(version) => request.query("versionId", version),
        None => request,
    }
}

/// A date as the protocol writes it, in whole seconds.
fn date(date: OffsetDateTime) -> Result<String, S3Error> {
    date.replace_nanosecond(0)
        .map_err(|error| S3Error::Request(error.to_string()))?
        .format(&Rfc3339)
        .map_err(|error| S3Error::Request(error.to_string()))
}

fn instant(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

fn head(headers: &HeaderMap) -> Result<Head, S3Error> {
    let size = match headers.get(CONTENT_RANGE) {
        // bytes 5-9/10
        Some(range) => range
            .to_str()
            .ok()
            .and_then(|text| text.rsplit_once('/'))
            .and_then(|(_, size)| size.parse().ok()),
        None => text(headers, CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok()),
    };
    let mode = text(headers, LOCK_MODE).and_then(|mode| match mode.as_str() {
        "COMPLIANCE" => Some(LockMode::Compliance),
        "GOVERNANCE" => Some(LockMode::Governance),
        _ => None,
    });
    let until = text(headers, RETAIN_UNTIL).and_then(|date| instant(&date));
    let until = until.and_then(|until| Timestamp::from_unix(until.unix_timestamp(), 0));
    let lock = mode.zip(until).map(|(mode, until)| StorageLock {
        mode,
        until,
        hold: text(headers, LEGAL_HOLD).is_some_and(|hold| hold == "ON"),
    });
    Ok(Head {
        size: size.ok_or_else(|| S3Error::Broken("the answer says no size".to_owned()))?,
        etag: text(headers, ETAG.as_str()).unwrap_or_default(),
        attempt: text(headers, ATTEMPT),
        stored: StoredAs {
            version: text(headers, VERSION).filter(|version| version != "null"),
            lock,
        },
    })
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value: &HeaderValue = headers.get(name)?;
    value.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn fuzz_head_any_headers_say_a_size_or_are_refused() {
        let seeds = [
            "content-length: 9\netag: \"a\"\nx-amz-version-id: v1\nx-amz-object-lock-mode: COMPLIANCE\n\
             x-amz-object-lock-retain-until-date: 2026-01-31T03:04:05Z\nx-amz-object-lock-legal-hold: ON",
            "content-range: bytes 5-9/10\nx-amz-version-id: null",
        ];
        impound_fuzz::run("head", &seeds.map(|text| text.into()), |_, bytes| {
            let mut headers = HeaderMap::new();
            for (name, value) in impound_fuzz::fields(&bytes) {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
                {
                    headers.append(name, value);
                }
            }
            let Ok(head) = head(&headers) else { return };
            // A lock that is half told is none.
            if head.stored.lock.is_some() {
                assert!(headers.contains_key(LOCK_MODE) && headers.contains_key(RETAIN_UNTIL));
            }
            assert!(head.stored.version.is_none_or(|version| version != "null"));
        });
    }
}
