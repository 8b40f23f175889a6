//! Requests that are refused go into the custody log of the case that they name, if there is such a case.
//!
//! Nobody can make a case or fill its log by being refused: a case that does not exist gets no log, and
//! the same refusal of the same caller is written once a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use impound_evidence::{CUSTODY, CaseId, Entry, Event};
use impound_proto::tls::Peer;
use tonic::{Code, Request, Response, Status};

use super::Service;
use super::authorise::{Need, requester};
use crate::describe::describe;
use crate::seal::log_of;

/// Pause before the same refusal is written again.
const PAUSE: Duration = Duration::from_secs(60);
/// Most refusals that are remembered.
const MOST: usize = 1000;
/// Longest reason that is written, in characters.
const REASON: usize = 1024;

/// When whom was refused what of which case.
pub(crate) type Recent = HashMap<(CaseId, String, &'static str), Instant>;

impl Service {
    /// The caller's identity, if its role allows the call; a refusal is written down.
    pub(super) async fn admit<T: Sync>(
        &self,
        request: &Request<T>,
        need: Need,
        call: &'static str,
        case: &str,
    ) -> Result<String, Status> {
        let status = match requester(request, need) {
            Ok(who) => return Ok(who),
            Err(status) => status,
        };
        if let Some(peer) = Peer::of(request) {
            let who = peer.id.to_string();
            self.write_refusal(&who, call, case, status.message()).await;
        }
        Err(status)
    }

    /// The answer to a call that was admitted; if the call is refused after all, that is written down.
    pub(super) async fn noted<T>(
        &self,
        who: &str,
        call: &'static str,
        case: &str,
        answer: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        let refused = |code| matches!(code, Code::FailedPrecondition | Code::AlreadyExists);
        if let Err(status) = &answer
            && refused(status.code())
        {
            self.write_refusal(who, call, case, status.message()).await;
        }
        answer.map(Response::new)
    }

    async fn write_refusal(&self, who: &str, call: &'static str, case: &str, why: &str) {
        let Ok(case) = case.parse::<CaseId>() else {
            return;
        };
        let now = Instant::now();
        {
            let mut recent = self.refusals.lock().await;
            recent.retain(|_, then| now.duration_since(*then) < PAUSE);
            let known = recent.contains_key(&(case.clone(), who.to_owned(), call));
            if known || recent.len() >= MOST {
                return;
            }
            recent.insert((case.clone(), who.to_owned(), call), now);
        }
        let is_known = async {
            let log = log_of(&case).ok()?;
            self.store.size(&log, &CUSTODY.parse().ok()?).await.ok()?
        };
        if is_known.await.is_none() {
            return;
        }
        let why: String = why.chars().take(REASON).collect();
        let entry = Entry::new(Event::Refused, who, call).because(why);
        let written = self.context.custody.append_to_case(&case, vec![entry]);
        if let Err(error) = written.await {
            // The refusal itself stands; the process's log has it, too.
            tracing::error!(%case, error = %describe(&error), "a refusal is not in the custody log");
        }
    }
}
