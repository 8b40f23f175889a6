//! How the guard in the cluster stands: whether it is there as it is made here, and for this controller.
//! Read by every replica at its start and now and then, and stated with the facts of each quarantine.

use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use super::{NOT_BY_US, NOT_USER, guard, own_user, user_name};
use crate::contain::settings::{PART_OF_LABEL, Settings};
use crate::describe::describe;
use crate::kubernetes::{ApiError, read};
use crate::resources::{Fact, FactState};

const PATH: &str = "/apis/admissionregistration.k8s.io/v1";

/// How long what was read of the guard is believed: it is asked for with every look at every quarantine.
const BELIEVED: Duration = Duration::from_secs(15);

/// What is known of the guard in the cluster.
#[derive(Debug, Default)]
pub struct Known {
    user: OnceCell<String>,
    standing: Mutex<Option<(Instant, Standing)>>,
}

/// How the guard stands for the controller that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All of it is there, as this version makes it for this controller.
    Complete,
    /// It was made for another controller: this one is refused what it does, the release among it.
    ForAnother {
        /// Whom it lets through.
        user: String,
        /// Who this controller is.
        own: String,
    },
    /// What is missing or says something else, for a controller of this name.
    Lacking(String, Vec<String>),
    /// It could not be read.
    Unread(String),
}

impl Known {
    /// How the guard stands, read again if that was long ago.
    pub async fn standing(&self, client: &Client, settings: &Settings) -> Standing {
        let known = self.standing.lock().await;
        if let Some((when, standing)) = known.as_ref()
            && when.elapsed() < BELIEVED
        {
            return standing.clone();
        }
        drop(known);
        self.look(client, settings).await
    }

    /// How the guard stands now.
    pub async fn look(&self, client: &Client, settings: &Settings) -> Standing {
        let mut known = self.standing.lock().await;
        let standing = self
            .read(client, settings)
            .await
            .unwrap_or_else(|error| Standing::Unread(describe(&error)));
        *known = Some((Instant::now(), standing.clone()));
        standing
    }

    /// What keeps the controller from its work, as far as is known without asking.
    pub async fn hindrance(&self) -> Option<String> {
        let known = self.standing.lock().await;
        match known.as_ref() {
            Some((_, standing @ Standing::ForAnother { .. })) => Some(standing.fact().message),
            _ => None,
        }
    }

    async fn read(&self, client: &Client, settings: &Settings) -> Result<Standing, ApiError> {
        let user = self.user.get_or_try_init(|| own_user(client)).await?;
        standing(client, user, settings).await
    }
}

impl Standing {
    /// As a fact about a quarantine.
    #[must_use]
    pub fn fact(&self) -> Fact {
        let (state, message) = match self {
            Self::Complete => (
                FactState::True,
                "admission policies keep everybody but the controller from deleting, evicting, changing and relabelling \
                 the pod"
                    .to_owned(),
            ),
            Self::ForAnother { user, own } => (
                FactState::False,
                format!(
                    "the admission policies let {user} through and not {own}, which this controller is: they refuse its \
                     own steps, the release among them. Apply those that name it: `impound-controller admission --user \
                     {own} | kubectl apply -f -`"
                ),
            ),
            Self::Lacking(user, lacking) => (
                FactState::Unverified,
                format!(
                    "whoever may delete or patch pods can destroy the evidence, and who asked with kubectl is only a \
                     claim: of the admission policies for user {user}, {}; see deploy/admission",
                    lacking.join(", ")
                ),
            ),
            Self::Unread(why) => (
                FactState::Unverified,
                format!("whether admission policies guard the evidence was not checked: {why}"),
            ),
        };
        Fact {
            name: "Guarded".into(),
            state,
            message,
        }
    }
}

/// Compares with what there should be: an administrator's weaker version is no guard.
async fn standing(client: &Client, own: &str, settings: &Settings) -> Result<Standing, ApiError> {
    let user = user_name(own).unwrap_or_default();
    let (key, value) = PART_OF_LABEL;
    let list = |plural: &str| format!("{PATH}/{plural}?labelSelector={key}%3D{value}");
    let (policies, bindings) = (
        list("validatingadmissionpolicies"),
        list("validatingadmissionpolicybindings"),
    );
    let (policies, bindings) =
        futures::try_join!(read(client, &policies), read(client, &bindings))?;
    let items = |list: Option<Value>| {
        let list = list.unwrap_or_default();
        list.pointer("/items").and_then(Value::as_array).cloned()
    };
    let (policies, bindings) = (
        items(policies).unwrap_or_default(),
        items(bindings).unwrap_or_default(),
    );
    if let Some(other) = lets_through(&policies).find(|other| *other != user) {
        return Ok(Standing::ForAnother {
            user: other.to_owned(),
            own: own.to_owned(),
        });
    }
    let wanted = guard(&user, settings);
    let there_are = |wanted: &Value| {
        let name = wanted.pointer("/metadata/name");
        let all = policies.iter().chain(&bindings);
        all.into_iter()
            .any(|found| found.pointer("/metadata/name") == name)
    };
    if !wanted.iter().any(there_are) {
        let none = vec!["none is installed".into()];
        return Ok(Standing::Lacking(user, none));
    }
    let missing: Vec<String> = wanted
        .iter()
        .filter_map(|wanted| {
            let is_policy = wanted.get("kind") == Some(&json!("ValidatingAdmissionPolicy"));
            let (what, there) = if is_policy {
                ("policy", &policies)
            } else {
                ("binding", &bindings)
            };
            let name = wanted.pointer("/metadata/name");
            let found = there
                .iter()
                .find(|found| found.pointer("/metadata/name") == name);
            let name = name.and_then(Value::as_str).unwrap_or_default();
            match found {
                None => Some(format!("{what} {name} is missing")),
                Some(found) if found.get("spec") != wanted.get("spec") => {
                    Some(format!("{what} {name} is another one"))
                }
                Some(_) => None,
            }
        })
        .collect();
    Ok(if missing.is_empty() {
        Standing::Complete
    } else {
        Standing::Lacking(user, missing)
    })
}

/// The users that policies of the guard let through.
fn lets_through(policies: &[Value]) -> impl Iterator<Item = &str> {
    let conditions = policies
        .iter()
        .filter_map(|policy| policy.pointer("/spec/matchConditions")?.as_array());
    conditions.flatten().filter_map(|condition| {
        let is_ours = condition.get("name")?.as_str()? == NOT_BY_US;
        let expression = condition.get("expression")?.as_str()?;
        let user = expression.strip_prefix(NOT_USER)?.strip_suffix('\'')?;
        is_ours.then_some(user)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_the_guard_lets_through_is_read_off_it() {
        let policies = guard("system:serviceaccount:a:b", &Settings::default());
        let users: Vec<&str> = lets_through(&policies).collect();
        assert_eq!(users.len(), 4, "one for each policy");
        assert!(
            users
                .iter()
                .all(|user| *user == "system:serviceaccount:a:b")
        );
    }
}
