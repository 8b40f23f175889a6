//! Reviews: questions that are answered and never stored. Everybody who is let in may do everything here; what
//! somebody may by the cluster's roles, a SubjectAccessReview says, and a SelfSubjectAccessReview of who has any.

use serde_json::{Value, json};

use super::{Call, Reply};
use crate::access::Question;
use crate::json;
use crate::refusal::Outcome;
use crate::tokens::{self, OWN_AUDIENCE};

pub(super) fn answer(call: &Call<'_>) -> Outcome<Reply> {
    // Some kubectl commands send protobuf. The answer doesn't depend on the question, so that is no hindrance here.
    let mut review = call.request.json().unwrap_or_default();
    if !review.is_object() {
        review = json!({});
    }
    json::put(&mut review, &["kind"], call.resource.kind.as_str());
    json::put(&mut review, &["apiVersion"], call.resource.api_version());
    json::fill(&mut review, &["metadata"], json!({}));
    let user = |name: &str| {
        let groups: Vec<Value> = call
            .request
            .groups
            .iter()
            .map(|group| json!(group))
            .collect();
        json!({"username": name, "groups": groups})
    };
    let status = match call.resource.kind.as_str() {
        "SelfSubjectAccessReview" => {
            let mut asked = review.clone();
            json::put(&mut asked, &["spec", "user"], call.request.user.as_str());
            json::put(&mut asked, &["spec", "groups"], call.request.groups.clone());
            let question = Question::of(&asked);
            let state = &call.core.shared;
            // Who is named in no binding may do everything, as their requests show.
            let allowed = state.with(|state| !question.named(state) || question.allowed(state));
            json!({"allowed": allowed})
        }
        "SubjectAccessReview" => {
            let question = Question::of(&review);
            let allowed = call.core.shared.with(|state| question.allowed(state));
            json!({"allowed": allowed})
        }
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}], "incomplete": false,
        }),
        "SelfSubjectReview" => json!({"userInfo": user(&call.request.user)}),
        _ => token(call, &review),
    };
    json::put(&mut review, &["status"], status);
    Ok(Reply::json(201, &review))
}

/// A wrong audience and an unknown token are no errors of the request: `authenticated` is absent.
fn token(call: &Call<'_>, review: &Value) -> Value {
    let mut audiences: Vec<String> = json::list(review, "/spec/audiences")
        .iter()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    if audiences.is_empty() {
        audiences.push(OWN_AUDIENCE.to_owned());
    }
    call.core.shared.with(|state| {
        let Some(token) = state.tokens.get(json::text(review, "/spec/token")) else {
            return json!({"user": {}, "error": "invalid bearer token"});
        };
        if let Some(error) = token.refusal(state, &audiences) {
            return json!({"user": {}, "error": error});
        }
        let shared: Vec<&String> = audiences
            .iter()
            .filter(|audience| token.audiences.contains(audience))
            .collect();
        json!({
            "authenticated": true, "user": token.review_user(&tokens::groups(&token.user)),
            "audiences": shared,
        })
    })
}
