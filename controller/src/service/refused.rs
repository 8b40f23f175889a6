//! Requests that are refused go into the custody log of the case that they name, if there is such a case.
//!
//! Nobody can make a case or fill its log by being refused: a case that does not exist gets no log, and
//! the same refusal of the same caller is written at once and then, while it goes on, once a minute with how
//! often it was repeated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use impound_evidence::{CUSTODY, CaseId, Entry, Event, Sha256, Timestamp};
use impound_proto::PeerId;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::Service;
use super::authorise::{Caller, Need, Requester, Scope};
use super::door::About;
use crate::describe::describe;
use crate::seal::{CustodyAppender, log_of};
use crate::store::Store;

/// Pause before the same refusal is written again.
const PAUSE: Duration = Duration::from_secs(60);
/// Most refusals that are told apart; past that only their number is kept, for each case.
const MOST: usize = 1000;
/// Longest reason that is written, in characters.
const REASON: usize = 1024;

/// What was refused lately.
pub struct Refusals {
    store: Arc<dyn Store>,
    custody: Arc<CustodyAppender>,
    pause: Duration,
    most: usize,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// Case, caller and call of what was written less than a pause ago.
    seen: HashMap<Key, Repeated>,
    /// Cases that were not there.
    unknown: HashMap<CaseId, Instant>,
}

/// Who was refused what of which case; nobody and nothing for those that are not told apart.
type Key = (CaseId, Option<(String, &'static str)>);

/// What came since something was written.
#[derive(Default)]
struct Repeated {
    more: u64,
    /// When the last one came, and why that was refused.
    last: Option<(Timestamp, String)>,
}

/// A refusal.
pub(super) struct Refusal<'a> {
    pub(super) who: &'a str,
    pub(super) certificate: Option<Sha256>,
    /// For the custody log, e.g. "read evidence".
    pub(super) call: &'static str,
    /// Empty if it belongs to none.
    pub(super) case: &'a str,
    pub(super) why: &'a str,
}

/// What a call is and what it is about.
pub(super) struct Call<'a> {
    /// For the custody log, e.g. "read evidence".
    pub(super) name: &'static str,
    pub(super) need: Need,
    pub(super) scope: Scope<'a>,
    /// Whose custody log a refusal belongs into; empty if that is not known.
    pub(super) case: &'a str,
    /// What it is about, for the process's log.
    pub(super) target: &'a str,
}

impl Service {
    /// The caller, if it may do that there; a refusal is written down.
    pub(super) async fn admit<T: Sync>(
        &self,
        request: &Request<T>,
        call: Call<'_>,
    ) -> Result<Requester, Status> {
        About::note(request, call.target);
        let caller = Caller::of(request)?;
        let Err(status) = caller.may(call.need, call.scope).await else {
            return Ok(caller.who.clone());
        };
        if status.code() == Code::PermissionDenied {
            let refusal = Refusal {
                who: &caller.who.id,
                certificate: caller.who.certificate,
                call: call.name,
                case: call.case,
                why: status.message(),
            };
            self.refusals.note(refusal).await;
        }
        Err(status)
    }

    /// The answer to a call that was admitted; if the call is refused after all, that is written down.
    pub(super) async fn noted<T>(
        &self,
        who: &Requester,
        call: &'static str,
        case: &str,
        answer: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        let refused = |code| {
            matches!(
                code,
                Code::FailedPrecondition
                    | Code::AlreadyExists
                    | Code::ResourceExhausted
                    | Code::InvalidArgument
                    | Code::NotFound
            )
        };
        if let Err(status) = &answer
            && refused(status.code())
        {
            let refusal = Refusal {
                who: &who.id,
                certificate: who.certificate,
                call,
                case,
                why: status.message(),
            };
            self.refusals.note(refusal).await;
        }
        answer.map(Response::new)
    }
}

impl Refusals {
    /// `custody` writes the logs, which are in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, custody: Arc<CustodyAppender>) -> Arc<Self> {
        Self::with(store, custody, PAUSE, MOST)
    }

    fn with(
        store: Arc<dyn Store>,
        custody: Arc<CustodyAppender>,
        pause: Duration,
        most: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            custody,
            pause,
            most,
            recent: Mutex::default(),
        })
    }

    /// Writes what was only counted so far: nothing more comes.
    pub async fn finish(&self) {
        let seen = std::mem::take(&mut self.recent.lock().await.seen);
        for (key, repeated) in seen {
            self.write_repeated(&key, repeated).await;
        }
    }

    /// Writes a refusal down, or counts it with its like.
    pub(super) async fn note(self: &Arc<Self>, refusal: Refusal<'_>) {
        let Ok(case) = refusal.case.parse::<CaseId>() else {
            return;
        };
        let why: String = refusal.why.chars().take(REASON).collect();
        let mut key = (case, Some((refusal.who.to_owned(), refusal.call)));
        {
            let mut recent = self.recent.lock().await;
            recent.unknown.retain(|_, then| then.elapsed() < self.pause);
            if recent.unknown.contains_key(&key.0) || recent.count(&key, &why) {
                return;
            }
        }
        let known = self.is_known(&key.0).await;
        let written_now = {
            let mut recent = self.recent.lock().await;
            if !known {
                if recent.unknown.len() < self.most {
                    recent.unknown.insert(key.0, Instant::now());
                }
                return;
            }
            if recent.count(&key, &why) {
                return;
            }
            let alone = recent.seen.len() < self.most;
            if !alone {
                key.1 = None;
                if recent.count(&key, &why) {
                    return;
                }
            }
            recent.seen.insert(key.clone(), Repeated::default());
            if !alone {
                recent.count(&key, &why);
            }
            alone
        };
        if written_now {
            let mut entry = Entry::new(Event::Refused, refusal.who, refusal.call).because(why);
            entry.certificate_sha256 = refusal.certificate;
            self.write(&key.0, entry).await;
        }
        tokio::spawn(Arc::clone(self).repeat(key));
    }

    /// Writes how often a refusal was repeated, as long as it is.
    async fn repeat(self: Arc<Self>, key: Key) {
        loop {
            tokio::time::sleep(self.pause).await;
            let mut recent = self.recent.lock().await;
            let repeated = match recent.seen.get_mut(&key) {
                Some(repeated) if repeated.more > 0 => std::mem::take(repeated),
                _ => {
                    recent.seen.remove(&key);
                    return;
                }
            };
            drop(recent);
            self.write_repeated(&key, repeated).await;
        }
    }

    async fn write_repeated(&self, (case, of): &Key, repeated: Repeated) {
        let Some((last, why)) = repeated.last.filter(|_| repeated.more > 0) else {
            return;
        };
        let more = repeated.more;
        let entry = match of {
            Some((who, call)) => Entry::new(Event::Refused, who.as_str(), *call)
                .because(format!("and {more} more of the same until {last}: {why}")),
            None => Entry::new(
                Event::Refused,
                PeerId::Controller.to_string(),
                "requests of several callers",
            )
            .because(format!(
                "{more} until {last}, too many to tell apart; the last one: {why}"
            )),
        };
        self.write(case, entry).await;
    }

    async fn is_known(&self, case: &CaseId) -> bool {
        let size = async {
            let log = log_of(case).ok()?;
            self.store.size(&log, &CUSTODY.parse().ok()?).await.ok()?
        };
        size.await.is_some()
    }

    async fn write(&self, case: &CaseId, entry: Entry) {
        let written = self.custody.append_to_case(case, vec![entry]);
        if let Err(error) = written.await {
            // The refusal itself stands; the process's log has it, too.
            tracing::error!(%case, error = %describe(&error), "a refusal is not in the custody log");
        }
    }
}

impl Recent {
    /// Counts one more of what was written; false if it was not.
    fn count(&mut self, key: &Key, why: &str) -> bool {
        let Some(repeated) = self.seen.get_mut(key) else {
            return false;
        };
        repeated.more += 1;
        repeated.last = Some((Timestamp::now(), why.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests;
