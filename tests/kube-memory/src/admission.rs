//! ValidatingAdmissionPolicies: asked for every write, after its own checks and before it is stored.
//!
//! What they see and what goes round them is as recorded (15-admission-policy): the built-in controllers and
//! kubelets are asked like everybody, an eviction is seen as an Eviction and its delete not at all.

use serde_json::{Value, json};

use crate::cel;
use crate::json;
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::registry::Resource;
use crate::selector::Selector;
use crate::state::State;

pub(crate) const POLICIES: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";
const BINDINGS: &str = "validatingadmissionpolicybindings.admissionregistration.k8s.io";

/// Who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Actor {
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
}

impl Actor {
    /// A controller of kube-controller-manager, with a service account of its own.
    pub(crate) fn controller(name: &str) -> Self {
        Self {
            user: format!("system:serviceaccount:kube-system:{name}"),
            groups: [
                "system:serviceaccounts",
                "system:serviceaccounts:kube-system",
                "system:authenticated",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }

    /// The kubelet of a node.
    pub(crate) fn node(name: &str) -> Self {
        Self {
            user: format!("system:node:{name}"),
            groups: ["system:nodes", "system:authenticated"]
                .map(str::to_owned)
                .to_vec(),
        }
    }
}

/// A write that is about to happen.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub(crate) operation: &'static str,
    pub(crate) resource: &'a Resource,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    /// `""` for a delete of a collection.
    pub(crate) name: &'a str,
    /// As it will be; null for a delete.
    pub(crate) object: &'a Value,
    /// As it is; null for a create.
    pub(crate) old: &'a Value,
    pub(crate) actor: &'a Actor,
    pub(crate) dry_run: bool,
}

impl Question<'_> {
    /// Asks every policy that is bound. Gives the warnings, or the first refusal.
    pub(crate) fn ask(&self, state: &State) -> Outcome<Vec<String>> {
        let bindings = state.store.list(BINDINGS, "");
        let mut warnings = Vec::new();
        for binding in &bindings {
            let name = json::text(binding, "/spec/policyName");
            let Some(policy) = state.store.get(POLICIES, "", name) else {
                continue;
            };
            let applies = self.is_meant(state, policy.pointer("/spec/matchConstraints"), true)
                && self.is_meant(state, binding.pointer("/spec/matchResources"), false);
            if !applies {
                continue;
            }
            for (message, reason) in self.objections(state, &policy, binding) {
                let message = format!(
                    "ValidatingAdmissionPolicy '{name}' with binding '{}' denied request: {message}",
                    json::name(binding)
                );
                let actions = json::list(binding, "/spec/validationActions");
                if actions.iter().any(|action| action == "Deny") {
                    return Err(self.refusal(&message, &reason));
                }
                if actions.iter().any(|action| action == "Warn") {
                    warnings.push(message);
                }
            }
        }
        Ok(warnings)
    }

    fn refusal(&self, message: &str, reason: &str) -> Refusal {
        let name = [self.name, json::name(self.object)]
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or("Unknown");
        let mut refusal = Refusal::forbidden(self.resource, name, message);
        (refusal.code, refusal.reason) = match reason {
            "Unauthorized" => (401, "Unauthorized"),
            "Forbidden" => (403, "Forbidden"),
            "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
            _ => (422, "Invalid"),
        };
        // The name in the details is that of the words, also where it is none.
        let details = refusal.details.get_or_insert_with(|| json!({}));
        json::put(details, &["causes"], json!([{ "message": message }]));
        refusal
    }

    /// Whether rules and selectors mean this request; a binding may leave the rules out.
    fn is_meant(&self, state: &State, wanted: Option<&Value>, needs_rules: bool) -> bool {
        let Some(wanted) = wanted else {
            return !needs_rules;
        };
        let rules = json::list(wanted, "/resourceRules");
        let by_rules =
            rules.iter().any(|rule| self.fits(rule)) || (rules.is_empty() && !needs_rules);
        let excluded = json::list(wanted, "/excludeResourceRules")
            .iter()
            .any(|rule| self.fits(rule));
        by_rules && !excluded && self.in_namespace(state, wanted) && self.is_selected(wanted)
    }

    fn fits(&self, rule: &Value) -> bool {
        let has = |field: &str, value: &str| {
            json::list(rule, field)
                .iter()
                .any(|item| item == "*" || item == value)
        };
        let plural = &self.resource.plural;
        let wanted = |item: &Value| match item.as_str().unwrap_or("").split_once('/') {
            None => self.subresource.is_empty() && (item == "*" || item == plural.as_str()),
            Some((main, sub)) => {
                (main == "*" || main == plural)
                    && (sub == self.subresource
                        || (sub == "*" && (main == "*" || !self.subresource.is_empty())))
            }
        };
        let scope = match json::text(rule, "/scope") {
            "Cluster" => !self.resource.namespaced,
            "Namespaced" => self.resource.namespaced,
            _ => true,
        };
        let names = json::list(rule, "/resourceNames");
        has("/operations", self.operation)
            && has("/apiGroups", &self.resource.group)
            && has("/apiVersions", &self.resource.version)
            && json::list(rule, "/resources").iter().any(wanted)
            && scope
            && (names.is_empty() || names.iter().any(|name| name == self.name))
    }

    /// Cluster-wide objects are in every namespace, a Namespace is in itself.
    fn in_namespace(&self, state: &State, wanted: &Value) -> bool {
        let selector = Selector::of_object(wanted.get("namespaceSelector")).unwrap_or_default();
        if selector.is_empty() {
            return true;
        }
        if self.resource.is("namespaces") {
            return selector.matches(json::labels(self.object))
                || selector.matches(json::labels(self.old));
        }
        if !self.resource.namespaced {
            return true;
        }
        let namespace = state.store.get("namespaces", "", self.namespace);
        namespace.is_some_and(|namespace| selector.matches(json::labels(&namespace)))
    }

    /// One of old and new is enough: a label that is put on or taken off is seen.
    fn is_selected(&self, wanted: &Value) -> bool {
        let selector = Selector::of_object(wanted.get("objectSelector")).unwrap_or_default();
        selector.is_empty()
            || [self.object, self.old]
                .into_iter()
                .any(|object| !object.is_null() && selector.matches(json::labels(object)))
    }

    /// What a policy has against the request: message and reason of each failed validation.
    fn objections(&self, state: &State, policy: &Value, binding: &Value) -> Vec<(String, String)> {
        let fails_open = json::text(policy, "/spec/failurePolicy") == "Ignore";
        let params = match self.params(state, policy, binding) {
            Ok(params) => params,
            Err(_) if fails_open => return Vec::new(),
            Err(problem) => return vec![(problem, String::new())],
        };
        let objections = params
            .iter()
            .flat_map(|params| self.objections_with(state, policy, params));
        objections
            .filter(|objection| !fails_open || objection.is_ok())
            .map(|objection| match objection {
                Ok(objection) => objection,
                Err(problem) => (problem, String::new()),
            })
            .collect()
    }

    /// The parameter objects, one null if the policy takes none.
    fn params(&self, state: &State, policy: &Value, binding: &Value) -> Result<Vec<Value>, String> {
        let Some(kind) = policy.pointer("/spec/paramKind") else {
            return Ok(vec![Value::Null]);
        };
        let (version, kind) = (json::text(kind, "/apiVersion"), json::text(kind, "/kind"));
        let resource = state.registry.of_kind(version, kind).ok_or_else(|| {
            format!("failed to configure policy: params of kind {version} {kind} are not served")
        })?;
        let reference = binding.pointer("/spec/paramRef").unwrap_or(&Value::Null);
        let namespace = match json::text(reference, "/namespace") {
            _ if !resource.namespaced => "",
            "" => self.namespace,
            namespace => namespace,
        };
        let name = json::text(reference, "/name");
        let selector = Selector::of_object(reference.get("selector"));
        let mut found = state.store.list(&resource.table, namespace);
        found.retain(|object| match &selector {
            Some(selector) => selector.matches(json::labels(object)),
            None => json::name(object) == name,
        });
        if found.is_empty() && json::text(reference, "/parameterNotFoundAction") == "Deny" {
            return Err(
                "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned(),
            );
        }
        Ok(found.iter().map(|object| Value::clone(object)).collect())
    }

    /// `Err`: an expression that could not be evaluated.
    fn objections_with(
        &self,
        state: &State,
        policy: &Value,
        params: &Value,
    ) -> Vec<Result<(String, String), String>> {
        let request = self.as_value();
        let namespace = state.store.get("namespaces", "", self.namespace);
        let namespace = namespace.map_or(Value::Null, |namespace| Value::clone(&namespace));
        let mut variables = json!({});
        let evaluate = |text: &str, variables: &Value| {
            let known = [
                ("object", self.object),
                ("oldObject", self.old),
                ("request", &request),
                ("params", params),
                ("namespaceObject", &namespace),
                ("variables", variables),
            ];
            cel::evaluate(text, &known)
                .map_err(|error| format!("expression '{text}' resulted in error: {error}"))
        };
        for condition in json::list(policy, "/spec/matchConditions") {
            match evaluate(json::text(condition, "/expression"), &variables) {
                Ok(Value::Bool(true)) => {}
                Ok(_) => return Vec::new(),
                Err(problem) => return vec![Err(problem)],
            }
        }
        for variable in json::list(policy, "/spec/variables") {
            // One that can't be evaluated is an error only for who uses it.
            if let Ok(value) = evaluate(json::text(variable, "/expression"), &variables) {
                json::put(&mut variables, &[json::text(variable, "/name")], value);
            }
        }
        let mut objections = Vec::new();
        for validation in json::list(policy, "/spec/validations") {
            let text = json::text(validation, "/expression");
            match evaluate(text, &variables) {
                Ok(Value::Bool(true)) => {}
                Ok(_) => {
                    let told = json::text(validation, "/messageExpression");
                    let told = (!told.is_empty())
                        .then(|| evaluate(told, &variables).ok())
                        .flatten();
                    let message = match (told, json::text(validation, "/message")) {
                        (Some(Value::String(told)), _) => told,
                        (_, "") => format!("failed expression: {}", text.trim()),
                        (_, message) => message.to_owned(),
                    };
                    let reason = json::text(validation, "/reason").to_owned();
                    objections.push(Ok((message, reason)));
                }
                Err(problem) => objections.push(Err(problem)),
            }
        }
        objections
    }

    /// The variable `request`: an AdmissionRequest without the objects.
    fn as_value(&self) -> Value {
        let Resource { group, version, .. } = self.resource;
        let kind = match self.subresource {
            "eviction" => json!({"group": "policy", "version": "v1", "kind": "Eviction"}),
            _ => json!({"group": group, "version": version, "kind": self.resource.kind}),
        };
        let resource =
            json!({"group": group, "version": version, "resource": self.resource.plural});
        json!({
            "kind": kind, "resource": resource, "subResource": self.subresource,
            "requestKind": kind, "requestResource": resource, "requestSubResource": self.subresource,
            "name": self.name, "namespace": self.namespace, "operation": self.operation, "dryRun": self.dry_run,
            "userInfo": {"username": self.actor.user, "groups": self.actor.groups},
        })
    }
}

/// Defaults of policies and bindings.
pub(crate) fn prepare(resource: &Resource, object: &mut Value) {
    let below = if resource.is(POLICIES) {
        json::fill(object, &["spec", "failurePolicy"], "Fail");
        json::fill(object, &["status"], json!({}));
        "matchConstraints"
    } else {
        "matchResources"
    };
    if !json::present(object, &format!("/spec/{below}")) {
        return;
    }
    json::fill(object, &["spec", below, "matchPolicy"], "Equivalent");
    for selector in ["namespaceSelector", "objectSelector"] {
        json::fill(object, &["spec", below, selector], json!({}));
    }
    for rules in ["resourceRules", "excludeResourceRules"] {
        let rules = json::list_mut(object, &format!("/spec/{below}/{rules}"));
        for rule in rules.into_iter().flatten() {
            json::fill(rule, &["scope"], "*");
        }
    }
}

/// Expressions that can't be evaluated here.
pub(crate) fn validate(policy: &Value) -> Vec<FieldError> {
    let mut known = vec!["object", "oldObject", "request", "namespaceObject"];
    if policy.pointer("/spec/paramKind").is_some() {
        known.push("params");
    }
    let mut errors = Vec::new();
    for (list, fields) in [
        ("matchConditions", &["expression"][..]),
        ("variables", &["expression"]),
        ("validations", &["expression", "messageExpression"]),
    ] {
        for (at, item) in json::list(policy, &format!("/spec/{list}"))
            .iter()
            .enumerate()
        {
            for field in fields {
                let text = json::text(item, &format!("/{field}"));
                if text.is_empty() && *field == "messageExpression" {
                    continue;
                }
                if let Err(why) = cel::check(text, &known) {
                    errors.push(FieldError::invalid_text(
                        format!("spec.{list}[{at}].{field}"),
                        text,
                        format!("compilation failed: {why}"),
                    ));
                }
            }
        }
        if list == "matchConditions" {
            known.push("variables");
        }
    }
    errors
}
