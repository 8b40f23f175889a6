//! The protocol's documents, as far as they are used. They come from a server that is not trusted
//! with more than keeping bytes: bounded in size by the caller, flat, and never followed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use impound_evidence::Sha256;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::S3Error;

/// `ListObjectsV2`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ObjectPage {
    #[serde(default)]
    pub(super) contents: Vec<Listed>,
    #[serde(default)]
    pub(super) common_prefixes: Vec<CommonPrefix>,
    pub(super) next_continuation_token: Option<String>,
}

/// An object of a listing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) key: String,
    pub(super) size: u64,
}

/// What keys up to the delimiter begin with.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CommonPrefix {
    pub(super) prefix: String,
}

/// `ListObjectVersions`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct VersionPage {
    #[serde(default)]
    pub(super) version: Vec<Version>,
    #[serde(default)]
    pub(super) delete_marker: Vec<Version>,
    pub(super) next_key_marker: Option<String>,
    pub(super) next_version_id_marker: Option<String>,
    #[serde(default)]
    pub(super) is_truncated: bool,
}

/// A version of an object, or a marker that it was deleted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Version {
    pub(super) key: String,
    pub(super) version_id: String,
}

/// `CreateMultipartUpload`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Initiated {
    pub(super) upload_id: String,
}

/// `ListMultipartUploads`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct UploadPage {
    #[serde(default)]
    pub(super) upload: Vec<Upload>,
    pub(super) next_key_marker: Option<String>,
    pub(super) next_upload_id_marker: Option<String>,
    #[serde(default)]
    pub(super) is_truncated: bool,
}

/// An unfinished upload.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) upload_id: String,
    pub(super) initiated: String,
}

/// `ListParts`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PartPage {
    #[serde(default)]
    pub(super) part: Vec<Part>,
    pub(super) next_part_number_marker: Option<u32>,
    #[serde(default)]
    pub(super) is_truncated: bool,
}

/// A part of an upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Part {
    pub(super) part_number: u32,
    #[serde(rename = "ETag")]
    pub(super) etag: String,
    #[serde(rename = "ChecksumSHA256")]
    pub(super) checksum_sha256: Option<String>,
}

/// `UploadPartCopy`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CopiedPart {
    #[serde(rename = "ETag")]
    pub(super) etag: String,
    #[serde(rename = "ChecksumSHA256")]
    pub(super) checksum_sha256: Option<String>,
}

/// `GetBucketVersioning`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Versioning {
    pub(super) status: Option<String>,
}

/// `GetObjectRetention`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Retention {
    pub(super) retain_until_date: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refusal {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// A document whose root element is `expected`.
pub(super) fn read<T: DeserializeOwned>(
    expected: &'static str,
    document: &[u8],
) -> Result<T, S3Error> {
    let wrong = |found: String| S3Error::Document { expected, found };
    let text = std::str::from_utf8(document).map_err(|error| wrong(error.to_string()))?;
    // Some answers of 200 turn out to be refusals while they are sent.
    if is_refusal(text) {
        return Err(refusal(StatusCode::OK, document));
    }
    let closed = format!("</{expected}>");
    if !text.trim_end().ends_with(&closed) {
        return Err(wrong("it is another document, or it is cut".to_owned()));
    }
    quick_xml::de::from_str(text).map_err(|error| wrong(error.to_string()))
}

/// Whether an answer of success is none.
pub(super) fn check_done(expected: &'static str, document: &[u8]) -> Result<(), S3Error> {
    read::<serde::de::IgnoredAny>(expected, document).map(drop)
}

/// What a refusal says.
pub(super) fn refusal(status: StatusCode, document: &[u8]) -> S3Error {
    let said: Option<Refusal> = std::str::from_utf8(document)
        .ok()
        .filter(|text| is_refusal(text))
        .and_then(|text| quick_xml::de::from_str(text).ok());
    let (code, message) = said.map_or_else(Default::default, |said| (said.code, said.message));
    let status = match (status, code.as_str()) {
        // A refusal inside of a success: its code tells.
        (StatusCode::OK, "PreconditionFailed") => 412,
        (StatusCode::OK, "NoSuchUpload" | "NoSuchKey") => 404,
        (StatusCode::OK, _) => 500,
        (status, _) => status.as_u16(),
    };
    S3Error::Refused {
        status,
        code: short(code),
        message: short(message),
    }
}

/// A digest as checksum headers write it.
pub(super) fn base64(sha256: &Sha256) -> String {
    STANDARD.encode(sha256.as_bytes())
}

/// `CompleteMultipartUpload`.
pub(super) fn completion(parts: &[Part]) -> String {
    let mut document =
        r#"<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">"#.to_owned();
    for part in parts {
        let etag = quick_xml::escape::escape(part.etag.as_str());
        document += &format!(
            "<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag>",
            part.part_number
        );
        if let Some(sha256) = &part.checksum_sha256 {
            let sha256 = quick_xml::escape::escape(sha256.as_str());
            document += &format!("<ChecksumSHA256>{sha256}</ChecksumSHA256>");
        }
        document += "</Part>";
    }
    document + "</CompleteMultipartUpload>"
}

fn is_refusal(text: &str) -> bool {
    let root = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let root = match root.strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>").map_or("", |(_, rest)| rest),
        None => root,
    };
    root.trim_start().starts_with("<Error>") || root.trim_start().starts_with("<Error ")
}

/// Foreign text in our messages: at most 200 characters, no controls.
fn short(text: String) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_with_one_or_no_object_is_read() {
        let none: ObjectPage = read(
            "ListBucketResult",
            b"<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\"><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>",
        )
        .unwrap();
        assert!(none.contents.is_empty() && none.common_prefixes.is_empty());
        let one: ObjectPage = read(
            "ListBucketResult",
            b"<ListBucketResult><Contents><Key>a&amp;b</Key><Size>3</Size></Contents><CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes><NextContinuationToken>t</NextContinuationToken></ListBucketResult>",
        )
        .unwrap();
        assert_eq!(
            (one.contents[0].key.as_str(), one.contents[0].size),
            ("a&b", 3)
        );
        assert_eq!(one.common_prefixes[0].prefix, "c/");
    }

    #[test]
    fn a_refusal_inside_of_a_success_is_one() {
        let document = b"<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code><Message>again</Message></Error>";
        let error = check_done("CompleteMultipartUploadResult", document).unwrap_err();
        assert_eq!((error.status(), error.code()), (500, "InternalError"));
        assert!(error.is_passing());
    }

    #[test]
    fn a_cut_document_is_none() {
        for cut in [&b""[..], b"<ListBucketResult><Contents><Key>a</Key>"] {
            let error = read::<ObjectPage>("ListBucketResult", cut).unwrap_err();
            assert!(matches!(error, S3Error::Document { .. }) && error.is_passing());
        }
    }

    #[test]
    fn fuzz_xml_any_answer_is_read_or_refused() {
        let seeds = [
            "<ListBucketResult xmlns=\"x\"><Contents><Key>a&amp;b</Key><Size>3</Size></Contents><CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes><NextContinuationToken>t</NextContinuationToken></ListBucketResult>",
            "<ListVersionsResult><Version><Key>k</Key><VersionId>v</VersionId></Version><DeleteMarker><Key>k</Key><VersionId>w</VersionId></DeleteMarker><IsTruncated>true</IsTruncated></ListVersionsResult>",
            "<ListMultipartUploadsResult><Upload><Key>k</Key><UploadId>u</UploadId><Initiated>2026-01-31T03:04:05.000Z</Initiated></Upload></ListMultipartUploadsResult>",
            "<ListPartsResult><Part><PartNumber>1</PartNumber><ETag>\"e\"</ETag><ChecksumSHA256>AAA=</ChecksumSHA256></Part></ListPartsResult>",
            "<?xml version=\"1.0\"?>\n<Error><Code>NoSuchKey</Code><Message>again</Message></Error>",
        ];
        let seeds = seeds.map(|text| text.as_bytes().to_vec());
        impound_fuzz::run("xml", &seeds, |_, bytes| {
            let _ = read::<ObjectPage>("ListBucketResult", &bytes);
            let _ = read::<VersionPage>("ListVersionsResult", &bytes);
            let _ = read::<UploadPage>("ListMultipartUploadsResult", &bytes);
            if let Ok(page) = read::<PartPage>("ListPartsResult", &bytes) {
                // What a server says can't end our own document early.
                let document = completion(&page.part);
                assert!(document.ends_with("</CompleteMultipartUpload>"));
                assert_eq!(document.matches("</CompleteMultipartUpload>").count(), 1);
            }
            let said = refusal(StatusCode::FORBIDDEN, &bytes);
            assert!(said.code().chars().count() <= 200);
        });
    }
}
