//! The authority's timestamp of the checkpoint: that it is the file which the manifest names, always;
//! and what it says, if the authority's certificate was given.

use serde::Serialize;

use super::{Problem, Verdict, read};
use crate::custody::CHECKPOINT_LIMIT;
use crate::digest::Sha256;
use crate::manifest::Manifest;
use crate::source::EvidenceSource;
use crate::stamp::{CheckpointStamp, StampAuthority, TOKEN_LIMIT, stamp_time};
use crate::timestamp::Timestamp;
use crate::{CHECKPOINT, CHECKPOINT_STAMP};

/// What is known of when the checkpoint, and so the whole collection but its signature, existed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Stamped {
    /// The authority says that it existed then.
    Good {
        /// By the authority's clock.
        time: Timestamp,
    },
    /// A token is there, as the manifest says, and no certificate was given to check it with.
    NotChecked {
        /// What it says.
        time: Timestamp,
    },
    /// An authority was asked, and there is none.
    None {
        /// Why, as the manifest says.
        reason: String,
    },
}

/// `signed`: whether the manifest is; nothing is read otherwise.
pub(super) fn check(
    source: &impl EvidenceSource,
    authority: Option<&StampAuthority>,
    manifest: &Manifest,
    signed: bool,
    verdict: &mut Verdict,
) {
    if !signed {
        return;
    }
    let sha256 = match &manifest.timestamp {
        Some(CheckpointStamp::Token { sha256, .. }) => *sha256,
        Some(CheckpointStamp::None { reason }) => {
            verdict.timestamp = Some(Stamped::None {
                reason: reason.clone(),
            });
            missed(authority, "the authority gave none", verdict);
            return;
        }
        None => {
            missed(authority, "no authority was asked", verdict);
            return;
        }
    };
    let Some(token) = read(source, CHECKPOINT_STAMP, TOKEN_LIMIT, verdict) else {
        return;
    };
    let got = Sha256::of(&token);
    if got != sha256 {
        verdict.problem(
            CHECKPOINT_STAMP,
            format!("expected SHA-256 {sha256}, got {got}; it was changed"),
        );
        return;
    }
    let Some(authority) = authority else {
        match stamp_time(&token) {
            Ok(time) => verdict.timestamp = Some(Stamped::NotChecked { time }),
            Err(error) => verdict.problem(CHECKPOINT_STAMP, error.to_string()),
        }
        return;
    };
    // Read and counted by the log's check; what is wrong with it is said there.
    let mut silent = Verdict::default();
    let Some(checkpoint) = read(source, CHECKPOINT, CHECKPOINT_LIMIT, &mut silent) else {
        return;
    };
    match authority.check(&token, Sha256::of(&checkpoint)) {
        Ok(time) => verdict.timestamp = Some(Stamped::Good { time }),
        Err(error) => verdict.problem(CHECKPOINT_STAMP, error.to_string()),
    }
}

/// Warns whoever wanted a timestamp to be checked.
fn missed(authority: Option<&StampAuthority>, why: &str, verdict: &mut Verdict) {
    if authority.is_some() {
        verdict.warnings.push(Problem {
            path: CHECKPOINT_STAMP.to_owned(),
            message: format!("is not there to be checked: {why}"),
        });
    }
}
