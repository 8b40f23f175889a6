//! How much one caller may ask for: calls a second, and calls at the same time.
//!
//! Who calls is known by then, so nobody uses up what is another's. A caller that asks for more is told when to
//! come again, as gRPC clients understand it: `google.rpc.RetryInfo` and `grpc-retry-pushback-ms`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message as _;
use prost_types::Any;
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::locked::locked;

/// Callers that are told apart. Only who has been proved to be somebody gets here, and who asks for a proof is
/// known by address: more than this at once is no installation's normal day.
const CALLERS: usize = 10_000;

/// What a caller that has too many calls open is told to wait: one of them may end at any time.
const WHILE_BUSY: Duration = Duration::from_secs(1);

/// What is allowed to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Calls a second, on average; twice as many may come at once.
    pub per_second: u32,
    /// Calls that run at the same time, streams among them.
    pub at_once: usize,
}

/// Counts what each caller does.
pub struct Limits {
    allowance: Allowance,
    callers: Mutex<HashMap<String, Usage>>,
}

/// A call that is let run. It is over when this is dropped.
pub struct Running {
    limits: Arc<Limits>,
    who: String,
}

/// Why a call is not let run.
#[derive(Debug, thiserror::Error)]
#[error("{why}: try again in {} ms", after.as_millis())]
pub struct TooMuch {
    why: String,
    after: Duration,
}

struct Usage {
    /// Calls that may begin now, at most two seconds' worth.
    credit: f64,
    then: Instant,
    running: usize,
}

impl Limits {
    /// Nobody has called yet.
    #[must_use]
    pub fn new(allowance: Allowance) -> Arc<Self> {
        Arc::new(Self {
            allowance,
            callers: Mutex::default(),
        })
    }

    /// Lets a call of `who` run, if that is not too much.
    ///
    /// # Errors
    /// If it is.
    pub fn begin(self: &Arc<Self>, who: &str) -> Result<Running, TooMuch> {
        let now = Instant::now();
        let rate = f64::from(self.allowance.per_second);
        let most = rate * 2.0;
        let mut callers = locked(&self.callers);
        if callers.len() >= CALLERS && !callers.contains_key(who) {
            // Whoever has nothing running and could begin as many as anybody needs no entry.
            callers.retain(|_, usage| usage.running > 0 || usage.credit_at(now, rate) < most);
            if callers.len() >= CALLERS {
                return Err(TooMuch {
                    why: format!("{CALLERS} callers are being served"),
                    after: WHILE_BUSY,
                });
            }
        }
        let usage = callers.entry(who.to_owned()).or_insert(Usage {
            credit: most,
            then: now,
            running: 0,
        });
        usage.credit = usage.credit_at(now, rate);
        usage.then = now;
        if usage.credit < 1.0 {
            return Err(TooMuch {
                why: format!(
                    "more than {} calls a second by one caller",
                    self.allowance.per_second
                ),
                after: Duration::from_secs_f64((1.0 - usage.credit) / rate.max(f64::MIN_POSITIVE)),
            });
        }
        if usage.running >= self.allowance.at_once {
            return Err(TooMuch {
                why: format!(
                    "more than {} calls at the same time by one caller",
                    self.allowance.at_once
                ),
                after: WHILE_BUSY,
            });
        }
        usage.credit -= 1.0;
        usage.running += 1;
        Ok(Running {
            limits: Arc::clone(self),
            who: who.to_owned(),
        })
    }
}

impl Usage {
    fn credit_at(&self, now: Instant, rate: f64) -> f64 {
        let earned = now.duration_since(self.then).as_secs_f64() * rate;
        (self.credit + earned).min(rate * 2.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(usage) = locked(&self.limits.callers).get_mut(&self.who) {
            usage.running = usage.running.saturating_sub(1);
        }
    }
}

impl TooMuch {
    /// `RESOURCE_EXHAUSTED`, with when to come again.
    #[must_use]
    pub fn status(&self) -> Status {
        let retry_delay = prost_types::Duration::try_from(self.after).unwrap_or_default();
        let info = RetryInfo {
            retry_delay: Some(retry_delay),
        };
        let status = RpcStatus {
            code: Code::ResourceExhausted as i32,
            message: self.to_string(),
            details: vec![Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: info.encode_to_vec(),
            }],
        };
        let mut metadata = MetadataMap::new();
        let pushback = MetadataValue::from(self.after.as_millis().try_into().unwrap_or(u64::MAX));
        metadata.insert("grpc-retry-pushback-ms", pushback);
        Status::with_details_and_metadata(
            Code::ResourceExhausted,
            self.to_string(),
            status.encode_to_vec().into(),
            metadata,
        )
    }
}

/// `google.rpc.Status`, which details of an error travel in.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.rpc.RetryInfo`
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(per_second: u32, at_once: usize) -> Arc<Limits> {
        Limits::new(Allowance {
            per_second,
            at_once,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_gets_its_rate_back_with_time_and_nobody_elses_is_used_up() {
        let limits = limits(5, 100);
        let burst = (0..20).filter(|_| limits.begin("eve").is_ok()).count();
        assert_eq!(burst, 10);
        assert!(limits.begin("ada").is_ok());
        let refused = limits.begin("eve").err().unwrap();
        assert_eq!(refused.after, Duration::from_millis(200));
        tokio::time::advance(refused.after).await;
        assert!(limits.begin("eve").is_ok() && limits.begin("eve").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_at_the_same_time_are_counted_until_they_end() {
        let limits = limits(100, 2);
        let first = limits.begin("ada").unwrap();
        let _second = limits.begin("ada").unwrap();
        assert!(limits.begin("ada").is_err());
        drop(first);
        assert!(limits.begin("ada").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_long_been_silent_makes_room() {
        let limits = limits(1, 1);
        for n in 0..CALLERS {
            drop(limits.begin(&n.to_string()).unwrap());
        }
        assert!(limits.begin("one more").is_err());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(limits.begin("one more").is_ok());
    }

    #[test]
    fn the_answer_says_when_to_come_again_in_both_ways() {
        let status = TooMuch {
            why: "too much".to_owned(),
            after: Duration::from_millis(1_250),
        }
        .status();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.metadata().get("grpc-retry-pushback-ms").unwrap(),
            "1250"
        );
        let details = RpcStatus::decode(status.details()).unwrap();
        let info = RetryInfo::decode(&*details.details[0].value).unwrap();
        let delay = info.retry_delay.unwrap();
        assert_eq!((delay.seconds, delay.nanos), (1, 250_000_000));
    }
}
