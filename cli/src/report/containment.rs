//! `containment.json`: what became of the Quarantine that the collection belongs to, as far as a
//! report tells it. Unknown fields are left alone: a newer controller may say more.

use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Its name in a collection.
pub(super) const CONTAINMENT: &str = "containment.json";

/// Longest document that is read. Kubernetes keeps no object over 1.5 MiB.
pub(super) const LIMIT: u64 = 4 << 20;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Containment {
    #[serde(default)]
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    /// When the Quarantine was asked for, in whole seconds.
    #[serde(deserialize_with = "instant")]
    pub(super) creation_timestamp: Option<OffsetDateTime>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) phase: String,
    pub(super) message: String,
    pub(super) owner: Option<String>,
    pub(super) steps: Vec<Step>,
    pub(super) facts: Vec<Fact>,
    pub(super) warnings: Vec<String>,
    pub(super) evictions: Vec<Eviction>,
    pub(super) credentials: Vec<Credential>,
    pub(super) drift: Vec<Drift>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) message: String,
    #[serde(deserialize_with = "instant")]
    pub(super) started: Option<OffsetDateTime>,
    #[serde(deserialize_with = "instant")]
    pub(super) finished: Option<OffsetDateTime>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fact {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Eviction {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) state: String,
    pub(super) message: String,
    #[serde(deserialize_with = "instant")]
    pub(super) tried: Option<OffsetDateTime>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Credential {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) grants: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Drift {
    #[serde(deserialize_with = "instant")]
    pub(super) time: Option<OffsetDateTime>,
    pub(super) reason: String,
    pub(super) what: String,
}

/// A time of the API; what is none is left out, not refused.
fn instant<'de, D: Deserializer<'de>>(from: D) -> Result<Option<OffsetDateTime>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_containment_any_document_is_told_or_refused() {
        let seed = br#"{"metadata":{"creationTimestamp":"2026-01-31T03:04:05Z"},"status":{"phase":"Contained","message":"m","owner":"o","steps":[{"name":"Cordon","state":"Done","started":"2026-01-31T03:04:05Z","finished":"never"}],"facts":[{"name":"OwnerReleased","state":"Yes","message":"m"}],"evictions":[{"namespace":"n","pod":"p","state":"Done","tried":null}],"credentials":[],"drift":[{"time":"2026-01-31T03:04:05Z","reason":"r","what":"w"}]}}"#;
        impound_fuzz::run("containment", &[seed.to_vec()], |_, bytes| {
            if let Ok(told) = serde_json::from_slice::<Containment>(&bytes) {
                assert!(told.status.steps.len() <= bytes.len());
            }
        });
    }
}
