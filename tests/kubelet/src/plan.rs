//! What to do next for a pod, from its specification and its containers as they are now. Pure:
//! the same input gives the same answer, so a kubelet that starts anew goes on where it stopped.

use std::collections::HashSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::jiff::Timestamp;

use crate::runtime::{Observed, State};

/// Wait before the second restart; doubles with each further one, as a kubelet's.
const BACK_OFF_FIRST: Duration = Duration::from_secs(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran as long as this starts again without delay.
const BACK_OFF_RESET: Duration = Duration::from_secs(600);

#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    CreateSandbox {
        attempt: u32,
    },
    /// Started never yet: this kubelet stopped between creating and starting it.
    Start {
        id: String,
    },
    /// A new attempt of the container of this name.
    Run {
        container: String,
        attempt: u32,
    },
    Stop {
        id: String,
    },
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// May be carried out at the same time.
    pub(crate) actions: Vec<Action>,
    /// Look again at this time: a back-off ends.
    pub(crate) again: Option<Timestamp>,
}

/// `unhealthy`: ids of containers whose liveness or startup probe has failed. `reported`: the
/// restart count that the API knows for a container, should all its attempts have been removed.
pub(crate) fn plan(
    pod: &Pod,
    observed: &[Observed],
    unhealthy: &HashSet<String>,
    reported: impl Fn(&str) -> Option<u32>,
    now: Timestamp,
) -> Plan {
    let Some(spec) = &pod.spec else {
        return Plan::default();
    };
    let policy = policy(spec);
    let mut plan = Plan::default();

    let sandbox = sandbox(observed);
    let running = match sandbox.map(|sandbox| &sandbox.state) {
        Some(State::Running { .. }) => true,
        Some(State::Created) => {
            plan.actions.extend(sandbox.map(|sandbox| Action::Start {
                id: sandbox.id.clone(),
            }));
            return plan;
        }
        Some(State::Exited { .. }) | None => false,
    };
    if !running {
        if finished(spec, observed, policy) {
            return plan;
        }
        // The containers' network has gone with the sandbox: none of them is of use.
        let orphans = observed
            .iter()
            .filter(|one| one.container.is_some() && is_running(one));
        plan.actions
            .extend(orphans.map(|one| Action::Stop { id: one.id.clone() }));
        if plan.actions.is_empty() {
            let attempt = sandbox.map_or(0, |sandbox| sandbox.attempt + 1);
            plan.actions.push(Action::CreateSandbox { attempt });
        }
        return plan;
    }

    let mut decide = |container: &str, policy: &str| -> bool {
        let latest = latest(observed, container);
        let next = || match latest {
            Some(latest) => latest.attempt + 1,
            None => reported(container).map_or(0, |count| count + 1),
        };
        match latest.map(|latest| (latest, &latest.state)) {
            None => plan.actions.push(Action::Run {
                container: container.into(),
                attempt: next(),
            }),
            Some((latest, State::Created)) => {
                plan.actions.push(Action::Start {
                    id: latest.id.clone(),
                });
            }
            Some((latest, State::Running { .. })) => {
                if unhealthy.contains(&latest.id) {
                    plan.actions.push(Action::Stop {
                        id: latest.id.clone(),
                    });
                }
            }
            Some((latest, State::Exited { .. })) => match restart(policy, latest) {
                Restart::Never => return true,
                Restart::At(time) if time > now => {
                    plan.again = Some(plan.again.map_or(time, |again| again.min(time)));
                }
                Restart::At(_) => {
                    plan.actions.push(Action::Run {
                        container: container.into(),
                        attempt: next(),
                    });
                }
            },
        }
        false
    };

    for container in spec.init_containers.iter().flatten() {
        // An init container that succeeded is over, whatever the policy.
        let init_policy = if policy == "Never" {
            "Never"
        } else {
            "OnFailure"
        };
        let over = decide(&container.name, init_policy);
        if !over || !latest(observed, &container.name).is_some_and(succeeded) {
            return plan;
        }
    }
    for container in &spec.containers {
        decide(&container.name, policy);
    }
    for container in spec.ephemeral_containers.iter().flatten() {
        decide(&container.name, "Never");
    }
    plan
}

/// When a container that ended is started again.
#[derive(Debug, PartialEq)]
pub(crate) enum Restart {
    Never,
    /// May be in the past.
    At(Timestamp),
}

pub(crate) fn restart(policy: &str, ended: &Observed) -> Restart {
    let State::Exited {
        code,
        started,
        finished,
        ..
    } = &ended.state
    else {
        return Restart::Never;
    };
    if policy == "Never" || (policy == "OnFailure" && *code == 0) {
        return Restart::Never;
    }
    let ran = finished.duration_since(*started).unsigned_abs();
    let wait = match ended.attempt {
        0 => Duration::ZERO,
        _ if ran >= BACK_OFF_RESET => Duration::ZERO,
        attempt => back_off(attempt),
    };
    Restart::At(finished.checked_add(wait).unwrap_or(*finished))
}

/// Wait after the end of this attempt.
pub(crate) fn back_off(attempt: u32) -> Duration {
    BACK_OFF_FIRST
        .saturating_mul(1 << attempt.saturating_sub(1).min(8))
        .min(BACK_OFF_MAX)
}

/// Whether nothing of the pod runs or will run again.
pub(crate) fn finished(spec: &PodSpec, observed: &[Observed], policy: &str) -> bool {
    let over = |container: &Container, policy: &str| {
        latest(observed, &container.name).is_some_and(|latest| {
            matches!(latest.state, State::Exited { .. })
                && restart(policy, latest) == Restart::Never
        })
    };
    let init_failed = policy == "Never"
        && spec.init_containers.iter().flatten().any(|container| {
            over(container, policy) && !latest(observed, &container.name).is_some_and(succeeded)
        });
    init_failed
        || spec
            .containers
            .iter()
            .all(|container| over(container, policy))
}

pub(crate) fn policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

/// The newest sandbox, running or not.
pub(crate) fn sandbox(observed: &[Observed]) -> Option<&Observed> {
    observed
        .iter()
        .filter(|one| one.container.is_none())
        .max_by_key(|one| one.attempt)
}

/// The newest attempt of a container.
pub(crate) fn latest<'a>(observed: &'a [Observed], container: &str) -> Option<&'a Observed> {
    attempts(observed, container).max_by_key(|one| one.attempt)
}

pub(crate) fn attempts<'a>(
    observed: &'a [Observed],
    container: &str,
) -> impl Iterator<Item = &'a Observed> {
    observed
        .iter()
        .filter(move |one| one.container.as_deref() == Some(container))
}

pub(crate) fn is_running(one: &Observed) -> bool {
    matches!(one.state, State::Running { .. })
}

pub(crate) fn succeeded(one: &Observed) -> bool {
    matches!(one.state, State::Exited { code: 0, .. })
}

#[cfg(test)]
mod tests;
