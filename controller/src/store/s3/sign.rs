//! AWS Signature Version 4 of a request's head, for S3: the path is encoded once and the payload's
//! digest is a header. Source: "Create a signed AWS API request" of the IAM user guide.
//!
//! Written here because the crates that do it bring a second HTTP stack or a time zone database.

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use impound_evidence::Sha256;
use time::OffsetDateTime;
use time::macros::format_description;

use super::credentials::Credential;
use super::error::S3Error;

/// Header of the payload's digest; part of what is signed.
pub(super) const PAYLOAD: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Signs a head whose URI is encoded, with its query ordered by name.
pub(super) fn sign(
    head: &mut Parts,
    payload: &Sha256,
    credential: &Credential,
    region: &str,
    now: OffsetDateTime,
) -> Result<(), S3Error> {
    let wrong = |what: &str| S3Error::Request(what.to_owned());
    let stamp = now
        .format(format_description!(
            "[year][month][day]T[hour][minute][second]Z"
        ))
        .map_err(|_| wrong("the clock"))?;
    let day = stamp.get(..8).unwrap_or_default();
    let host = head.uri.authority().ok_or_else(|| wrong("no host"))?;
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| wrong("a header's value"));
    head.headers.insert(HOST, value(host.as_str())?);
    head.headers.insert(PAYLOAD, value(&payload.to_string())?);
    head.headers.insert(DATE, value(&stamp)?);
    if let Some(token) = &credential.token {
        let mut token = value(token)?;
        token.set_sensitive(true);
        head.headers.insert(TOKEN, token);
    }
    let (signed, lines) = canonical(&head.headers)?;
    let request = format!(
        "{}\n{}\n{}\n{lines}\n{signed}\n{payload}",
        head.method,
        head.uri.path(),
        head.uri.query().unwrap_or_default(),
    );
    let scope = format!("{day}/{region}/s3/aws4_request");
    let digest = Sha256::of(request.as_bytes());
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}");
    let mut key = mac(format!("AWS4{}", &*credential.secret).as_bytes(), day)?;
    for part in [region, "s3", "aws4_request"] {
        key = mac(&key, part)?;
    }
    let signature = Sha256::from(mac(&key, &text)?);
    let mut authorization = value(&format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed}, Signature={signature}",
        credential.id
    ))?;
    authorization.set_sensitive(true);
    head.headers.insert(AUTHORIZATION, authorization);
    Ok(())
}

/// Names of all headers, joined, and a line for each; ordered by name.
fn canonical(headers: &HeaderMap) -> Result<(String, String), S3Error> {
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let mut lines = String::new();
    for name in &names {
        let value = headers.get(*name).and_then(|value| value.to_str().ok());
        let value = value.ok_or_else(|| S3Error::Request(format!("the header {name}")))?;
        lines += &format!("{name}:{}\n", value.trim());
    }
    Ok((names.join(";"), lines))
}

fn mac(key: &[u8], text: &str) -> Result<[u8; 32], S3Error> {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key)
        .map_err(|_| S3Error::Request("the length of a key".to_owned()))?;
    mac.update(text.as_bytes());
    Ok(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of "Signature calculations for the Authorization header" in the S3 API reference.
    fn signature(request: http::request::Builder, payload: &[u8]) -> String {
        let credential = Credential::of(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            None,
        );
        let mut head = request.body(()).unwrap().into_parts().0;
        let now = time::macros::datetime!(2013-05-24 00:00:00 UTC);
        sign(
            &mut head,
            &Sha256::of(payload),
            &credential,
            "us-east-1",
            now,
        )
        .unwrap();
        let authorization = head.headers.get(AUTHORIZATION).unwrap();
        let text = authorization.to_str().unwrap();
        text.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    #[test]
    fn requests_are_signed_as_amazon_signs_its_examples() {
        let base = "https://examplebucket.s3.amazonaws.com";
        let get = http::Request::get(format!("{base}/test.txt")).header("range", "bytes=0-9");
        assert_eq!(
            signature(get, b""),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let put = http::Request::put(format!("{base}/test%24file.text"))
            .header("date", "Fri, 24 May 2013 00:00:00 GMT")
            .header("x-amz-storage-class", "REDUCED_REDUNDANCY");
        assert_eq!(
            signature(put, b"Welcome to Amazon S3."),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        let list = http::Request::get(format!("{base}/?max-keys=2&prefix=J"));
        assert_eq!(
            signature(list, b""),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }
}
