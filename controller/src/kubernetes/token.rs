//! Whose token it is, by the API server's word: an agent's at the issuer, a caller's at the controller's port.

use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

/// What the API server says of `token`, asked whether it is for `audience`.
///
/// # Errors
/// If it does not answer, or refuses to.
pub async fn review(
    client: &Client,
    token: &str,
    audience: &str,
) -> kube::Result<TokenReviewStatus> {
    let review = TokenReview {
        metadata: ObjectMeta::default(),
        spec: TokenReviewSpec {
            token: token.to_owned(),
            audiences: Some(vec![audience.to_owned()]),
        },
        status: None,
    };
    let api = Api::<TokenReview>::all(client.clone());
    let reviewed = api.create(&PostParams::default(), &review).await?;
    Ok(reviewed.status.unwrap_or_default())
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
