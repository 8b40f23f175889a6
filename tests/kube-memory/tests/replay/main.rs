//! Replays recorded exchanges with a real API server and compares what this one answers.
//!
//! Every exchange of every recording is either compared or listed in `exceptions.rs` with a reason.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in what several tests share"
)]

mod compare;
mod exceptions;
mod run;
mod setup;
mod watches;

use exceptions::{Exception, exception};
use run::{Run, recording};

/// All recordings, in their order.
const RECORDINGS: [&str; 16] = [
    "01-deployment-release",
    "02-guard-failures",
    "03-networkpolicy",
    "04-node-cordon",
    "05-eviction",
    "06-statefulset",
    "07-daemonset",
    "08-job",
    "09-bare-pod",
    "10-crd",
    "11-watch",
    "12-lease",
    "13-tokens",
    "14-access",
    "15-admission-policy",
    "16-liveness-restart",
];

async fn replay(name: &str) {
    let mut run = Run::start(name).await;
    let exchanges = recording(name);
    let (mut compared, mut skipped) = (0, 0);
    let mut failures = Vec::new();
    for (at, exchange) in exchanges.iter().enumerate() {
        setup::before(&mut run, name, at).await;
        match exception(name, at) {
            Some(Exception::Skip(why)) => {
                skipped += 1;
                eprintln!("{name}[{at}] skipped: {why}");
            }
            special => {
                compared += 1;
                if let Err(differences) = run.exchange(name, at, exchange, special).await {
                    failures.push(format!(
                        "[{at}] {}\n    {}",
                        exchange["about"],
                        differences.join("\n    ")
                    ));
                }
            }
        }
    }
    eprintln!("{name}: compared {compared}, skipped {skipped}");
    run.stop().await;
    assert!(failures.is_empty(), "{name}:\n{}", failures.join("\n"));
}

#[tokio::test]
async fn a_released_deployment_pod_is_replaced_as_recorded() {
    replay("01-deployment-release").await;
}

#[tokio::test]
async fn failed_guards_are_answered_as_recorded() {
    replay("02-guard-failures").await;
}

#[tokio::test]
async fn network_policies_are_created_applied_and_fought_over_as_recorded() {
    replay("03-networkpolicy").await;
}

#[tokio::test]
async fn a_cordoned_node_is_tainted_as_recorded() {
    replay("04-node-cordon").await;
}

#[tokio::test]
async fn evictions_are_granted_and_refused_as_recorded() {
    replay("05-eviction").await;
}

#[tokio::test]
async fn a_released_stateful_pod_blocks_its_name_as_recorded() {
    replay("06-statefulset").await;
}

#[tokio::test]
async fn a_released_daemon_pod_is_replaced_on_a_cordoned_node_as_recorded() {
    replay("07-daemonset").await;
}

#[tokio::test]
async fn a_job_pod_is_released_by_its_controller_uid_as_recorded() {
    replay("08-job").await;
}

#[tokio::test]
async fn a_bare_pod_keeps_its_immutable_fields_as_recorded() {
    replay("09-bare-pod").await;
}

#[tokio::test]
async fn custom_resources_are_validated_and_served_as_recorded() {
    replay("10-crd").await;
}

#[tokio::test]
async fn watches_tell_what_was_recorded() {
    replay("11-watch").await;
}

#[tokio::test]
async fn leases_are_guarded_as_recorded() {
    replay("12-lease").await;
}

#[tokio::test]
async fn admission_policies_stop_and_let_pass_whom_they_did_when_recorded() {
    replay("15-admission-policy").await;
}

#[tokio::test]
async fn what_is_replayable_of_tokens_access_and_probes_agrees() {
    for name in ["13-tokens", "14-access", "16-liveness-restart"] {
        replay(name).await;
    }
}

/// Counts the table, so that a recording can't fade out of the comparison unnoticed.
#[test]
fn at_least_four_fifths_of_the_relevant_exchanges_are_compared() {
    let (mut compared, mut skipped) = (0, 0);
    let (mut core_compared, mut core_all) = (0, 0);
    for name in RECORDINGS {
        let all = recording(name).len();
        let skips = (0..all)
            .filter(|at| matches!(exception(name, *at), Some(Exception::Skip(_))))
            .count();
        eprintln!("{name}: compared {}, skipped {skips}", all - skips);
        compared += all - skips;
        skipped += skips;
        if name < "13" {
            core_all += all;
            core_compared += all - skips;
        }
    }
    eprintln!("all: compared {compared}, skipped {skipped}");
    assert!(
        core_compared * 5 >= core_all * 4,
        "{core_compared} of {core_all}"
    );
}
