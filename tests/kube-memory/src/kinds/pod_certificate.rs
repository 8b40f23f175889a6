//! PodCertificateRequests (certificates.k8s.io/v1beta1): what a kubelet may ask, and what its signer may answer.
//!
//! The rules are those of Kubernetes 1.36, but for one: the proof that the key is the requester's, which the real
//! server checks, is left to the signer, so that a signer's own look at it can be tested.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::access;
use crate::admission::Actor;
use crate::clock;
use crate::json;
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::registry::Resource;
use crate::state::State;

pub(crate) const REQUESTS: &str = "podcertificaterequests.certificates.k8s.io";

/// Of the requests's life, in seconds: what is filled in, and between what it has to be.
const USUAL_LIFE: i64 = 86_400;
const LIVES: std::ops::RangeInclusive<i64> = 3_600..=7_862_400;

const ANSWERS: [&str; 3] = ["Issued", "Denied", "Failed"];

pub(super) fn prepare(request: &mut Value) {
    json::take(request, &["status"]);
    json::fill(request, &["spec", "maxExpirationSeconds"], USUAL_LIFE);
}

/// `old` for an update: the spec never changes.
pub(super) fn validate(request: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let spec = request.get("spec").unwrap_or(&Value::Null);
    if let Some(old) = old {
        return match old.get("spec") == Some(spec) {
            true => Vec::new(),
            false => vec![FieldError::invalid("spec", spec, "field is immutable")],
        };
    }
    let mut errors = Vec::new();
    for field in [
        "podName",
        "podUID",
        "serviceAccountName",
        "serviceAccountUID",
        "nodeName",
        "nodeUID",
        "signerName",
    ] {
        if json::text(spec, &format!("/{field}")).is_empty() {
            errors.push(FieldError::required(format!("spec.{field}"), ""));
        }
    }
    let life = json::number(spec, "/maxExpirationSeconds").unwrap_or_default();
    if !LIVES.contains(&life) {
        let why = format!("must be in the range [{}, {}]", LIVES.start(), LIVES.end());
        errors.push(FieldError::invalid(
            "spec.maxExpirationSeconds",
            &life.into(),
            why,
        ));
    }
    if requested_key(request).is_none() {
        let why = "must hold a key: stubPKCS10Request, or pkixPublicKey and proofOfPossession";
        errors.push(FieldError::invalid("spec", &Value::Null, why));
    }
    errors
}

/// A kubelet asks for pods of its own node only (NodeRestriction).
pub(crate) fn admit(
    state: &State,
    resource: &Resource,
    request: &Value,
    actor: &Actor,
) -> Outcome<()> {
    let Some(node) = actor.user.strip_prefix("system:node:") else {
        return Ok(());
    };
    if !resource.is(REQUESTS) {
        return Ok(());
    }
    let said = |field: &str| json::text(request, &format!("/spec/{field}"));
    let pod = state
        .store
        .get("pods", json::namespace(request), said("podName"));
    let so = said("nodeName") == node
        && pod.is_some_and(|pod| {
            json::uid(&pod) == said("podUID")
                && json::text(&pod, "/spec/nodeName") == node
                && json::text(&pod, "/spec/serviceAccountName") == said("serviceAccountName")
        });
    match so {
        true => Ok(()),
        false => Err(Refusal::forbidden(
            resource,
            json::name(request),
            format!("node {node:?} may ask for the pods that run on it, as they are, only"),
        )),
    }
}

/// What may become of a status: one answer, once, by who may sign.
pub(crate) fn validate_status(
    state: &State,
    old: &Value,
    new: &Value,
    actor: Option<&Actor>,
) -> Vec<FieldError> {
    let (before, now) = (status(old), status(new));
    let answers = |status: &Value| -> Vec<String> {
        json::list(status, "/conditions")
            .iter()
            .map(|condition| json::text(condition, "/type").to_owned())
            .collect()
    };
    let said = answers(&now);
    for (at, condition) in json::list(&now, "/conditions").iter().enumerate() {
        let field = format!("status.conditions[{at}]");
        let kind = json::text(condition, "/type");
        if !ANSWERS.contains(&kind) {
            let known: Vec<Value> = ANSWERS.map(Value::from).to_vec();
            let error = FieldError::not_supported(format!("{field}.type"), &kind.into(), &known);
            return vec![error];
        }
        if at > 0 {
            let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            return vec![FieldError::invalid(
                format!("{field}.type"),
                &kind.into(),
                why,
            )];
        }
        if json::text(condition, "/status") != "True" {
            let found = json::text(condition, "/status");
            let error = FieldError::not_supported(
                format!("{field}.status"),
                &found.into(),
                &[json!("True")],
            );
            return vec![error];
        }
        if json::text(condition, "/reason").is_empty() {
            return vec![FieldError::required(
                format!("{field}.reason"),
                "must be set",
            )];
        }
    }
    let unlike = |why: &str| vec![FieldError::invalid("status", &Value::Null, why)];
    if before == now {
        return Vec::new();
    }
    if !answers(&before).is_empty() {
        return unlike("immutable after PodCertificateRequest is issued, denied, or failed");
    }
    match said.first().map(String::as_str) {
        Some("Issued") => match issued(new, &now) {
            Err(error) => vec![error],
            Ok(()) => may_sign(state, new, actor),
        },
        Some(_) if now.as_object().is_some_and(|fields| fields.len() > 1) => unlike(
            "non-condition status fields must be empty when denying or failing the PodCertificateRequest",
        ),
        Some(_) => Vec::new(),
        None => unlike(
            "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"",
        ),
    }
}

fn status(request: &Value) -> Value {
    request.get("status").cloned().unwrap_or_else(|| json!({}))
}

/// Whether the certificate is what was asked for, and is told as what it is.
fn issued(request: &Value, status: &Value) -> Result<(), FieldError> {
    let wrong = |field: &str, why: &str| {
        Err(FieldError::invalid(
            format!("status.{field}"),
            &Value::Null,
            why,
        ))
    };
    let chain = json::text(status, "/certificateChain").as_bytes();
    let Some(Ok(leaf)) = Pem::iter_from_buffer(chain).next() else {
        return wrong(
            "certificateChain",
            "issued certificate chain must contain at least one certificate",
        );
    };
    let Ok(leaf) = leaf.parse_x509() else {
        return wrong(
            "certificateChain",
            "leaf certificate does not parse as valid X.509",
        );
    };
    if requested_key(request).as_deref() != Some(leaf.public_key().raw) {
        return wrong(
            "certificateChain",
            "leaf certificate was not issued to the requested public key",
        );
    }
    let told = |field: &str| clock::parse(json::text(status, &format!("/{field}")));
    let (from, to) = (
        leaf.validity().not_before.to_datetime(),
        leaf.validity().not_after.to_datetime(),
    );
    if told("notBefore") != Some(from) {
        return wrong(
            "notBefore",
            "must be set to the NotBefore time encoded in the leaf certificate",
        );
    }
    if (OffsetDateTime::now_utc() - from).abs() >= Duration::minutes(5) {
        return wrong(
            "notBefore",
            "must be set to within 5 minutes of kube-apiserver's current time",
        );
    }
    if told("notAfter") != Some(to) {
        return wrong(
            "notAfter",
            "must be set to the NotAfter time encoded in the leaf certificate",
        );
    }
    let most = json::number(request, "/spec/maxExpirationSeconds").unwrap_or_default();
    let life = (to - from).whole_seconds();
    if !(*LIVES.start()..=most).contains(&life) {
        return wrong(
            "certificateChain",
            "leaf certificate lifetime must be >= 1 hour and <= spec.maxExpirationSeconds",
        );
    }
    let margin = Duration::minutes(10);
    match told("beginRefreshAt") {
        Some(at) if at >= from + margin && at <= to - margin => Ok(()),
        _ => wrong(
            "beginRefreshAt",
            "must be present and in the range [notbefore+10min, notafter-10min]",
        ),
    }
}

/// The right to `sign` for the signer; for all of its domain, it is given with a star.
fn may_sign(state: &State, request: &Value, actor: Option<&Actor>) -> Vec<FieldError> {
    let Some(actor) = actor else {
        return Vec::new();
    };
    let signer = json::text(request, "/spec/signerName");
    let domain = signer.split_once('/').map_or("", |(domain, _)| domain);
    let allowed = [signer.to_owned(), format!("{domain}/*")].iter().any(|name| {
        let review = json!({"spec": {"user": actor.user, "groups": actor.groups, "resourceAttributes":
            {"group": "certificates.k8s.io", "resource": "signers", "verb": "sign", "name": name}}});
        access::Question::of(&review).allowed(state)
    });
    match allowed {
        true => Vec::new(),
        false => vec![FieldError::forbidden(
            "spec.signerName",
            format!(
                "User {:?} is not permitted to \"sign\" for signer {signer:?}",
                actor.user
            ),
        )],
    }
}

/// SubjectPublicKeyInfo, DER.
fn requested_key(request: &Value) -> Option<Vec<u8>> {
    let bytes = |field: &str| {
        let text = json::text(request, &format!("/spec/{field}"));
        STANDARD.decode(text).ok().filter(|bytes| !bytes.is_empty())
    };
    match (bytes("stubPKCS10Request"), bytes("pkixPublicKey")) {
        (Some(asked), None) => {
            let (_, asked) = X509CertificationRequest::from_der(&asked).ok()?;
            Some(asked.certification_request_info.subject_pki.raw.to_vec())
        }
        (None, Some(key)) => bytes("proofOfPossession").and(Some(key)),
        _ => None,
    }
}
