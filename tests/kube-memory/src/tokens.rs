//! Bearer tokens: who holds them, for which audience, and which pod they are bound to.
//!
//! A token that is bound to a pod carries what a Kubernetes of version 1.30 or later puts into its
//! review (`authentication.kubernetes.io/pod-name`, `pod-uid`, `node-name`, `node-uid`), and ends with the pod.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::json;
use crate::state::State;

/// Audience of tokens that are for this server.
pub(crate) const OWN_AUDIENCE: &str = "https://kubernetes.default.svc";

/// What a token stands for.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    /// Name of the user, for a service account `system:serviceaccount:<namespace>:<name>`.
    pub(crate) user: String,
    /// `metadata.uid` of the service account, empty for other users.
    pub(crate) uid: String,
    /// Who may accept it.
    pub(crate) audiences: Vec<String>,
    /// The pod it is bound to.
    pub(crate) pod: Option<BoundPod>,
    /// Its id, as the review shows it.
    pub(crate) id: String,
}

/// The pod that a token is bound to, as it was when the token was made.
#[derive(Clone, Debug)]
pub(crate) struct BoundPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: String,
    pub(crate) node_uid: String,
}

impl Token {
    /// A token of `user` for this server, bound to nothing.
    pub(crate) fn of(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            uid: String::new(),
            audiences: vec![OWN_AUDIENCE.to_owned()],
            pod: None,
            id: Uuid::new_v4().to_string(),
        }
    }

    /// Why the token is not accepted for one of `audiences`; `None` if it is.
    pub(crate) fn refusal(&self, state: &State, audiences: &[String]) -> Option<String> {
        if !audiences
            .iter()
            .any(|wanted| self.audiences.contains(wanted))
        {
            return Some(format!(
                "[invalid bearer token, token audiences {} is invalid for the target audiences {}]",
                quoted(&self.audiences),
                quoted(audiences)
            ));
        }
        let pod = self.pod.as_ref()?;
        let found = state.store.get("pods", &pod.namespace, &pod.name);
        let there = found.is_some_and(|found| json::uid(&found) == pod.uid);
        (!there).then(|| {
            "[invalid bearer token, service account token has been invalidated]".to_owned()
        })
    }

    /// The user of a TokenReview.
    pub(crate) fn review_user(&self, groups: &[String]) -> Value {
        let mut user = json!({"username": self.user, "groups": groups});
        if !self.uid.is_empty() {
            json::put(&mut user, &["uid"], self.uid.as_str());
        }
        if let Some(pod) = &self.pod {
            let key = |name: &str| format!("authentication.kubernetes.io/{name}");
            let mut extra = json!({
                key("credential-id"): [format!("JTI={}", self.id)],
                key("pod-name"): [pod.name],
                key("pod-uid"): [pod.uid],
            });
            if !pod.node.is_empty() {
                json::put(&mut extra, &[&key("node-name")], json!([pod.node]));
                json::put(&mut extra, &[&key("node-uid")], json!([pod.node_uid]));
            }
            json::put(&mut user, &["extra"], extra);
        }
        user
    }
}

/// The groups that come with a user.
pub(crate) fn groups(user: &str) -> Vec<String> {
    let mut groups = Vec::new();
    if user == crate::cluster::ADMIN {
        groups.push("system:masters".to_owned());
    }
    if let Some(account) = user.strip_prefix("system:serviceaccount:") {
        groups.push("system:serviceaccounts".to_owned());
        if let Some((namespace, _)) = account.split_once(':') {
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
    }
    groups.push("system:authenticated".to_owned());
    groups
}

/// As Go prints a list of strings with `%q`.
fn quoted(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", quoted.join(" "))
}
