//! Whose token it is, by the API server's word: an agent's at the issuer, a caller's at the controller's port.
//!
//! Of a token no copy of ours is left in memory after its review: not of the request, and not of the answer, which
//! repeats it. What the HTTP library copies into its own buffers is not ours to overwrite; they are in no core dump.

use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::api::{ObjectMeta, PostParams, Request};
use kube::client::Body;
use kube::core::Status;
use kube::{Client, Resource};
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

/// What a review is larger than its token and its audience, in bytes; some 150 it is.
const AROUND: usize = 512;

/// What the API server says of `token`, asked whether it is for `audience`.
///
/// # Errors
/// If it does not answer, or refuses to.
pub async fn review(
    client: &Client,
    token: &str,
    audience: &str,
) -> kube::Result<TokenReviewStatus> {
    let url = TokenReview::url_path(&(), None);
    let request = Request::new(url)
        .create(&PostParams::default(), Vec::new())
        .map_err(kube::Error::BuildRequest)?
        .map(|_| question(token, audience));
    let (head, body) = request.into_parts();
    let body = Body::from(Bytes::from_owner(body?));
    let answered = client.send(http::Request::from_parts(head, body)).await?;
    let code = answered.status();
    let said = Zeroizing::new(Vec::from(answered.into_body().collect_bytes().await?));
    answer(code, &said)
}

/// The review as JSON, in the only copy of the token that is made.
fn question(token: &str, audience: &str) -> kube::Result<Zeroizing<Vec<u8>>> {
    let mut review = TokenReview {
        metadata: ObjectMeta::default(),
        spec: TokenReviewSpec {
            token: token.to_owned(),
            audiences: Some(vec![audience.to_owned()]),
        },
        status: None,
    };
    // Large enough at once: what grows leaves a copy behind. (A token with characters that JSON escapes is none.)
    let room = token.len() + audience.len() + AROUND;
    let mut text = Zeroizing::new(Vec::with_capacity(room));
    let written = serde_json::to_writer(&mut *text, &review);
    review.spec.token.zeroize();
    written.map_err(kube::Error::SerdeError)?;
    Ok(text)
}

/// The API server's answer, without what it repeats of the question.
fn answer(code: StatusCode, said: &[u8]) -> kube::Result<TokenReviewStatus> {
    #[derive(Deserialize)]
    struct Answer {
        status: Option<TokenReviewStatus>,
    }
    if code.is_success() {
        let answer: Answer = serde_json::from_slice(said).map_err(kube::Error::SerdeError)?;
        return Ok(answer.status.unwrap_or_default());
    }
    let refused = serde_json::from_slice::<Status>(said).unwrap_or_else(|_| {
        // Not of the API server: of something in front of it, which may say anything.
        Status::failure("the answer is no Kubernetes status", "Unknown").with_code(code.as_u16())
    });
    Err(kube::Error::Api(refused.boxed()))
}

/// Who holds a token that was reviewed.
///
/// # Errors
/// Why it is not accepted, if it is not, or is not for `audience`.
pub fn holder(status: TokenReviewStatus, audience: &str) -> Result<UserInfo, String> {
    let echoed = status.audiences.iter().flatten();
    // An API server that knows nothing of audiences echoes none: then it has not checked it.
    let for_it = echoed.into_iter().any(|echoed| echoed == audience);
    if status.authenticated == Some(true) && for_it {
        return Ok(status.user.unwrap_or_default());
    }
    Err(status.error.unwrap_or_else(|| {
        "it says neither yes nor why not, or has not checked the audience".to_owned()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_is_what_kubernetes_reads_and_is_written_without_growing() {
        let token = "t".repeat(15 << 10);
        let text = question(&token, "impound.dev/controller").unwrap();
        let read: TokenReview = serde_json::from_slice(&text).unwrap();
        assert_eq!(read.spec.token, token);
        assert_eq!(read.spec.audiences.unwrap(), ["impound.dev/controller"]);
        let audience = "impound.dev/controller".len();
        assert_eq!(text.capacity(), token.len() + audience + AROUND);
    }

    #[test]
    fn an_answer_is_its_status_and_a_refusal_is_an_error_with_its_code() {
        let said = br#"{"kind":"TokenReview","spec":{"token":"t"},"status":{"authenticated":true,"audiences":["a"]}}"#;
        let status = answer(StatusCode::CREATED, said).unwrap();
        assert_eq!(holder(status, "a"), Ok(UserInfo::default()));
        for (said, reason) in [
            (
                &br#"{"kind":"Status","code":403,"reason":"Forbidden","message":"no"}"#[..],
                "Forbidden",
            ),
            (b"<html>", "Unknown"),
        ] {
            let Err(kube::Error::Api(refused)) = answer(StatusCode::FORBIDDEN, said) else {
                panic!("{reason}");
            };
            assert_eq!((refused.code, &*refused.reason), (403, reason));
        }
    }
}
