//! Reviews: questions that are answered and never stored. Everybody who is let in may do everything.

use serde_json::{Value, json};

use super::{Call, Reply};
use crate::json;
use crate::refusal::Outcome;

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
        "SelfSubjectAccessReview" | "SubjectAccessReview" => json!({"allowed": true}),
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}], "incomplete": false,
        }),
        "SelfSubjectReview" => json!({"userInfo": user(&call.request.user)}),
        _ => {
            let token = json::text(&review, "/spec/token").to_owned();
            match call
                .core
                .shared
                .with(|state| state.tokens.get(&token).cloned())
            {
                Some(name) => json!({"authenticated": true, "user": {"username": name},
                                     "audiences": json::list(&review, "/spec/audiences")}),
                None => json!({"user": {}, "error": "invalid bearer token"}),
            }
        }
    };
    json::put(&mut review, &["status"], status);
    Ok(Reply::json(201, &review))
}
