//! Multipart uploads: how an object larger than memory gets into a bucket, one part after the other.

use ::http::Method;
use ::http::header::{ETAG, HeaderMap, IF_NONE_MATCH};
use bytes::Bytes;
use impound_evidence::Sha256;

use super::bucket::{Bucket, Created, Purpose};
use super::error::S3Error;
use super::http::{self, Chunks, Request};
use super::xml::{self, CopiedPart, Initiated, Part, PartPage, Upload, UploadPage};

/// Bytes of a part that is copied within the store; at most 5 GiB.
const COPIED_PART: u64 = 1 << 30;
/// Unfinished uploads that are listed.
const MOST_UPLOADS: usize = 100_000;

impl Bucket {
    /// Starts an upload; returns its id, and whether an earlier try may have started one more.
    pub(super) async fn start_upload(
        &self,
        key: &str,
        attempt: &str,
        lock: bool,
    ) -> Result<(String, bool), S3Error> {
        let request = Request::new(Method::POST, key)
            .query("uploads", "")
            .header("x-amz-checksum-algorithm", "SHA256")?;
        let mut request = self.writing(request, attempt, Purpose::Control)?;
        if lock {
            request = self.locking(request)?;
        }
        let root = "InitiateMultipartUploadResult";
        let answer = self.document(&request, root).await?;
        let initiated: Initiated = xml::read(root, &answer.body)?;
        Ok((initiated.upload_id, answer.tries > 1))
    }

    /// Uploads a part whose bytes the server checks.
    pub(super) async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        bytes: Chunks,
        sha256: Sha256,
    ) -> Result<Part, S3Error> {
        let request = Request::new(Method::PUT, key)
            .query("partNumber", number.to_string())
            .query("uploadId", upload)
            .body(bytes, sha256)?;
        let answer = self
            .http
            .call_checked(&request, |headers, _| etag(headers).map(drop))
            .await?;
        Ok(Part {
            part_number: number,
            etag: etag(&answer.headers)?,
            checksum_sha256: Some(xml::base64(&sha256)),
        })
    }

    /// Makes an object of the parts, if nothing has the name.
    pub(super) async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        attempt: &str,
        parts: &[Part],
    ) -> Result<Created, S3Error> {
        let request = Request::new(Method::POST, key)
            .query("uploadId", upload)
            .header(IF_NONE_MATCH.as_str(), "*")?
            // A checksum header would be that of the object here, not of this document.
            .signed_bytes(Bytes::from(xml::completion(parts)));
        match self
            .document(&request, "CompleteMultipartUploadResult")
            .await
        {
            // Its version is that of the object that has the name now and is of this attempt.
            Ok(_) => self.whose(key, attempt).await,
            Err(error) if error.is_taken() => self.whose(key, attempt).await,
            // The upload is gone: an earlier try has completed it and its answer was lost, or
            // somebody else has aborted it.
            Err(error) if error.is_absent() => match self.whose(key, attempt).await? {
                Created::Ours(version) => Ok(Created::Ours(version)),
                Created::Taken => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Ends an upload and leaves nothing of it.
    pub(super) async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), S3Error> {
        let request = Request::new(Method::DELETE, key).query("uploadId", upload);
        match self.http.call(&request).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_absent() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The parts of an upload, ordered; nothing if there is no such upload.
    pub(super) async fn parts(
        &self,
        key: &str,
        upload: &str,
    ) -> Result<Option<Vec<Part>>, S3Error> {
        let mut found: Vec<Part> = Vec::new();
        let mut after = None;
        loop {
            let mut request = Request::new(Method::GET, key);
            if let Some(after) = after {
                request = request.query("part-number-marker", format!("{after}"));
            }
            let request = request.query("uploadId", upload);
            let page: PartPage = match self.document(&request, "ListPartsResult").await {
                Ok(answer) => xml::read("ListPartsResult", &answer.body)?,
                Err(error) if error.is_absent() => return Ok(None),
                Err(error) => return Err(error),
            };
            found.extend(page.part);
            after = page.next_part_number_marker;
            if !page.is_truncated || after.is_none() {
                found.sort_by_key(|part| part.part_number);
                return Ok(Some(found));
            }
        }
    }

    /// Unfinished uploads whose keys begin with `prefix`.
    pub(super) async fn uploads(&self, prefix: &str) -> Result<Vec<Upload>, S3Error> {
        let mut found: Vec<Upload> = Vec::new();
        let mut after = None;
        loop {
            let mut request = Request::new(Method::GET, "");
            if let Some((key, upload)) = after {
                request = request.query("key-marker", key);
                request = request.query("prefix", prefix);
                request = request.query("upload-id-marker", upload);
            } else {
                request = request.query("prefix", prefix);
            }
            let request = request.query("uploads", "");
            let root = "ListMultipartUploadsResult";
            let answer = self.document(&request, root).await?;
            let page: UploadPage = xml::read(root, &answer.body)?;
            found.extend(page.upload);
            after = page.next_key_marker.zip(page.next_upload_id_marker);
            if !page.is_truncated || after.is_none() || found.len() > MOST_UPLOADS {
                found.retain(|upload| upload.key.starts_with(prefix));
                return Ok(found);
            }
        }
    }

    /// Aborts every upload to exactly this key.
    pub(super) async fn abort_uploads_of(&self, key: &str) -> Result<(), S3Error> {
        for upload in self.uploads(key).await? {
            if upload.key == key {
                self.abort_upload(key, &upload.upload_id).await?;
            }
        }
        Ok(())
    }

    /// Copies an object of `size` bytes to another key within the store, if nothing has that name.
    pub(super) async fn copy(
        &self,
        from: (&str, Option<&str>),
        size: u64,
        to: &str,
        attempt: &str,
    ) -> Result<Created, S3Error> {
        let (upload, _) = self.start_upload(to, attempt, true).await?;
        match self.copy_parts(from, size, to, &upload).await {
            Ok(parts) => match self.complete_upload(to, &upload, attempt, &parts).await? {
                Created::Taken => {
                    self.abort_upload(to, &upload).await?;
                    Ok(Created::Taken)
                }
                ours => Ok(ours),
            },
            Err(error) => {
                // What is left of it is garbage that a later collection finds; the first error counts.
                let _ = self.abort_upload(to, &upload).await;
                Err(error)
            }
        }
    }

    async fn copy_parts(
        &self,
        (key, version): (&str, Option<&str>),
        size: u64,
        to: &str,
        upload: &str,
    ) -> Result<Vec<Part>, S3Error> {
        let mut source = format!("{}{}", self.config.place.bucket, http::encoded(key));
        if let Some(version) = version {
            source = format!("{source}?versionId={version}");
        }
        let mut parts = Vec::new();
        let mut from = 0;
        for number in 1.. {
            let end = size.min(from + COPIED_PART);
            if from >= end {
                break;
            }
            let request = Request::new(Method::PUT, to)
                .query("partNumber", format!("{number}"))
                .query("uploadId", upload)
                .header("x-amz-copy-source", &source)?
                .header(
                    "x-amz-copy-source-range",
                    &format!("bytes={from}-{}", end - 1),
                )?;
            let answer = self.document(&request, "CopyPartResult").await?;
            let copied: CopiedPart = xml::read("CopyPartResult", &answer.body)?;
            parts.push(Part {
                part_number: number,
                etag: copied.etag,
                checksum_sha256: copied.checksum_sha256,
            });
            from = end;
        }
        Ok(parts)
    }
}

fn etag(headers: &HeaderMap) -> Result<String, S3Error> {
    let tag = headers.get(ETAG).and_then(|tag| tag.to_str().ok());
    tag.map(str::to_owned)
        .ok_or_else(|| S3Error::Broken("the answer names no ETag".to_owned()))
}
