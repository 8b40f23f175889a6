//! Access reviews, answered by the roles and bindings that are in the cluster. Requests themselves are not
//! checked: everybody who is let in may do everything.

use serde_json::Value;

use crate::json;
use crate::state::State;
use crate::store::Object;

/// Who wants what, of a review's `spec`.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    user: &'a str,
    groups: Vec<&'a str>,
    namespace: &'a str,
    group: &'a str,
    resource: String,
    name: &'a str,
    verb: &'a str,
}

impl<'a> Question<'a> {
    pub(crate) fn of(review: &'a Value) -> Self {
        let text = |path: &str| json::text(review, &format!("/spec/resourceAttributes/{path}"));
        let mut resource = text("resource").to_owned();
        if !text("subresource").is_empty() {
            resource = format!("{resource}/{}", text("subresource"));
        }
        Self {
            user: json::text(review, "/spec/user"),
            groups: strings(review, "/spec/groups"),
            namespace: text("namespace"),
            group: text("group"),
            resource,
            name: text("name"),
            verb: text("verb"),
        }
    }

    /// Whether a binding that holds there gives the right.
    pub(crate) fn allowed(&self, state: &State) -> bool {
        self.groups.contains(&"system:masters")
            || self
                .bindings(state)
                .iter()
                .any(|binding| self.bound(binding) && self.granted(state, binding))
    }

    /// Whether a binding that holds there names the user or a group of theirs.
    pub(crate) fn named(&self, state: &State) -> bool {
        self.bindings(state)
            .iter()
            .any(|binding| self.bound(binding))
    }

    fn bindings(&self, state: &State) -> Vec<Object> {
        let everywhere = state
            .store
            .list("clusterrolebindings.rbac.authorization.k8s.io", "");
        let mut bindings = everywhere;
        if !self.namespace.is_empty() {
            bindings.extend(
                state
                    .store
                    .list("rolebindings.rbac.authorization.k8s.io", self.namespace),
            );
        }
        bindings
    }

    fn bound(&self, binding: &Value) -> bool {
        json::list(binding, "/subjects").iter().any(|subject| {
            let name = json::text(subject, "/name");
            match json::text(subject, "/kind") {
                "User" => name == self.user,
                "Group" => self.groups.contains(&name),
                "ServiceAccount" => {
                    let namespace = json::text(subject, "/namespace");
                    self.user == format!("system:serviceaccount:{namespace}:{name}")
                }
                _ => false,
            }
        })
    }

    fn granted(&self, state: &State, binding: &Value) -> bool {
        let name = json::text(binding, "/roleRef/name");
        let role = match json::text(binding, "/roleRef/kind") {
            "ClusterRole" => state
                .store
                .get("clusterroles.rbac.authorization.k8s.io", "", name),
            _ => state
                .store
                .get("roles.rbac.authorization.k8s.io", self.namespace, name),
        };
        let Some(role) = role else { return false };
        json::list(&role, "/rules").iter().any(|rule| {
            let has = |list: &str, wanted: &str| {
                let list = strings(rule, list);
                list.contains(&"*") || list.contains(&wanted)
            };
            let names = strings(rule, "/resourceNames");
            has("/apiGroups", self.group)
                && has("/resources", &self.resource)
                && has("/verbs", self.verb)
                && (names.is_empty() || names.contains(&self.name))
        })
    }
}

fn strings<'a>(value: &'a Value, path: &str) -> Vec<&'a str> {
    let list = json::list(value, path).iter();
    list.filter_map(Value::as_str).collect()
}
