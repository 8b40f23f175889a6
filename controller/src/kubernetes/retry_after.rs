//! Keeps the Retry-After of an answer: kube reads a Status body only, and an API server that is overloaded, or a
//! proxy before it, answers in plain text and says in the header alone when to come again.
//!
//! Such an answer becomes the Status that it stands for, before anything else sees it.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Body;
use serde_json::{Value, json};
use tower::BoxError;

/// A refusal is read as far as this; what is longer is a page for people.
const LIMIT: usize = 64 * 1024;

/// Passes answers on; a refusal whose header says when to come again says so in its body too.
///
/// # Errors
/// None of its own.
pub async fn keep<B>(answer: Response<B>) -> Result<Response<Either<B, Full<Bytes>>>, BoxError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let refused = answer.status().is_client_error() || answer.status().is_server_error();
    let Some(seconds) = seconds(answer.headers()).filter(|_| refused) else {
        return Ok(answer.map(Either::Left));
    };
    let (mut parts, body) = answer.into_parts();
    // A body that breaks off, or is too long, says nothing; status and header stand.
    let body = Limited::new(body, LIMIT).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let body = status(parts.status, &body, seconds).to_string();
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(
        parts,
        Either::Right(Full::new(body.into())),
    ))
}

/// Only whole seconds: that is what API servers send.
fn seconds(headers: &HeaderMap) -> Option<u32> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().filter(|seconds| *seconds > 0)
}

fn status(code: StatusCode, body: &[u8], seconds: u32) -> Value {
    let parsed = serde_json::from_slice::<Value>(body).ok();
    let mut status = parsed
        .filter(|body| body.get("kind").and_then(Value::as_str) == Some("Status"))
        .unwrap_or_else(|| {
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "code": code.as_u16(),
                "reason": code.canonical_reason().unwrap_or_default().replace(' ', ""),
                "message": String::from_utf8_lossy(body).trim(),
            })
        });
    if let Some(status) = status.as_object_mut() {
        let details = status.entry("details").or_insert_with(|| json!({}));
        if let Some(details) = details.as_object_mut() {
            details
                .entry("retryAfterSeconds")
                .or_insert_with(|| json!(seconds));
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn kept(code: u16, retry_after: Option<&str>, body: &'static str) -> Value {
        let mut answer = Response::builder().status(code);
        if let Some(value) = retry_after {
            answer = answer.header("retry-after", value);
        }
        let answer = answer.body(Full::new(Bytes::from(body))).unwrap();
        let body = keep(answer).await.unwrap().into_body().collect().await;
        let bytes = body.unwrap().to_bytes();
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes).into_owned()))
    }

    #[tokio::test]
    async fn a_refusal_in_plain_text_keeps_its_retry_after() {
        let status = kept(
            429,
            Some("7"),
            "Too many requests, please try again later.\n",
        )
        .await;
        assert_eq!(status["details"]["retryAfterSeconds"], 7);
        assert_eq!(status["code"], 429);
        assert_eq!(status["reason"], "TooManyRequests");
        assert_eq!(
            status["message"],
            "Too many requests, please try again later."
        );
    }

    #[tokio::test]
    async fn a_status_without_details_gets_the_headers_retry_after_and_one_with_keeps_its_own() {
        let bare = r#"{"kind":"Status","message":"m","code":503}"#;
        let status = kept(503, Some("3"), bare).await;
        assert_eq!(status["details"]["retryAfterSeconds"], 3);
        assert_eq!(status["message"], "m");
        let own = r#"{"kind":"Status","code":429,"details":{"retryAfterSeconds":10,"name":"x"}}"#;
        let status = kept(429, Some("3"), own).await;
        assert_eq!(
            status["details"],
            json!({ "retryAfterSeconds": 10, "name": "x" })
        );
    }

    #[tokio::test]
    async fn other_answers_pass_unchanged() {
        assert_eq!(kept(200, Some("3"), r#"{"a":1}"#).await, json!({ "a": 1 }));
        assert_eq!(kept(429, None, "busy").await, json!("busy"));
        assert_eq!(kept(429, Some("soon"), "busy").await, json!("busy"));
    }

    #[test]
    fn fuzz_refusal_any_body_becomes_a_status_that_says_when_to_come_again() {
        let seeds = [
            r#"{"kind":"Status","code":429,"details":{"retryAfterSeconds":10,"name":"x"}}"#,
            r#"{"kind":"Status","details":[]}"#,
            "Too many requests, please try again later.\n",
        ];
        impound_fuzz::run("refusal", &seeds.map(|text| text.into()), |_, body| {
            let said = status(StatusCode::TOO_MANY_REQUESTS, &body, 7);
            assert_eq!(said["kind"], "Status");
            let details = said["details"].as_object();
            assert!(details.is_none_or(|details| details.contains_key("retryAfterSeconds")));
        });
    }
}
