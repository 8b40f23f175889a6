//! How much of the nodes and of the network collecting may take: bytes a second and streams, of each node and of all
//! together. In the path of every tar, between the connection and what writes it.
//!
//! What is not read yet stays in the connection, whose windows then hold the agent back, and that its runtime: a
//! suspect's node reads no faster than the budget says. Of the node's processor the agent gets what the limits of its
//! pod say (`agent.resources` of the chart): its cgroup is the kernel's own budget.
//!
//! Small things (descriptions, diffs) are never held back. A layer is not either, since evictions wait for it and
//! it has little time, but it is charged: the exports pay for it by waiting longer.

use std::collections::HashMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::locked::locked;
use impound_proto::BULK_STREAMS;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// What may come at once after a pause: long enough that the timer's granularity costs no throughput, and short
/// enough that nobody sees it in a rate.
const BURST: Duration = Duration::from_millis(100);

/// Longest wait of a stream for what was taken before, mostly by layers, which wait for nobody: an agent gives a stream
/// up that is not read for 15 minutes. What would cost more is not charged.
const LONGEST: Duration = Duration::from_secs(60);

/// Bounds of one process. Replicas don't know of each other's streams: each has its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Exports and images at the same time; none: [`super::EXPORTS`].
    pub streams: Option<NonZeroUsize>,
    /// Exports and images of one node at the same time; none: [`BULK_STREAMS`], which is what its agent gives.
    pub streams_per_node: Option<NonZeroUsize>,
    /// Bytes a second of all streams together; none: as fast as they come.
    pub bytes_per_second: Option<NonZeroU64>,
    /// The same of one node.
    pub node_bytes_per_second: Option<NonZeroU64>,
}

/// Keeps what is received within [`Limits`].
#[derive(Default)]
pub(super) struct Budget {
    limits: Limits,
    all: Bucket,
    nodes: Mutex<HashMap<String, Arc<Node>>>,
}

struct Node {
    streams: Arc<Semaphore>,
    bytes: Bucket,
}

/// A place among the streams of a node.
pub(super) struct Turn {
    _place: Option<OwnedSemaphorePermit>,
    /// Its count is that of those that use the node.
    _node: Arc<Node>,
}

/// What one stream takes.
pub(super) struct Share<'b> {
    budget: &'b Budget,
    node: Arc<Node>,
    urgent: bool,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Waits for a place among the node's exports and images.
    pub(super) async fn turn(&self, node: &str) -> Turn {
        let node = self.node(node);
        // It is never closed.
        let place = Arc::clone(&node.streams).acquire_owned().await.ok();
        Turn {
            _place: place,
            _node: node,
        }
    }

    /// For a stream from this node; an `urgent` one is charged and not held back.
    pub(super) fn share(&self, node: &str, urgent: bool) -> Share<'_> {
        Share {
            budget: self,
            node: self.node(node),
            urgent,
        }
    }

    fn node(&self, name: &str) -> Arc<Node> {
        let mut nodes = locked(&self.nodes);
        if let Some(node) = nodes.get(name) {
            return Arc::clone(node);
        }
        // What nobody uses any more has nothing to remember that lasts.
        nodes.retain(|_, node| Arc::strong_count(node) > 1);
        let streams = self.limits.streams_per_node;
        let node = Arc::new(Node {
            streams: Arc::new(Semaphore::new(
                streams.map_or(BULK_STREAMS, NonZeroUsize::get),
            )),
            bytes: Bucket::default(),
        });
        nodes.insert(name.to_owned(), Arc::clone(&node));
        node
    }
}

impl Share<'_> {
    /// So many bytes have come: waits as long as they cost.
    pub(super) async fn came(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let Budget { limits, all, .. } = self.budget;
        let paid = [
            all.charge(limits.bytes_per_second, bytes),
            self.node.bytes.charge(limits.node_bytes_per_second, bytes),
        ];
        if self.urgent {
            return;
        }
        if let Some(paid) = paid.into_iter().flatten().max() {
            sleep_until(paid).await;
        }
    }
}

/// When everything that was taken will be paid for. Whoever takes waits behind those before, so streams that take
/// pieces of one size get equal parts.
#[derive(Default)]
struct Bucket(Mutex<Option<Instant>>);

impl Bucket {
    fn charge(&self, rate: Option<NonZeroU64>, bytes: u64) -> Option<Instant> {
        let rate = rate?;
        let now = Instant::now();
        let mut paid = locked(&self.0);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let begin = paid.map_or(earliest, |paid| paid.max(earliest));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let until = begin.checked_add(cost).unwrap_or(begin).min(now + LONGEST);
        *paid = Some(until);
        Some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const CHUNK: usize = 256 << 10;

    fn limits(all: u64, node: u64, streams: usize) -> Limits {
        Limits {
            streams: None,
            streams_per_node: NonZeroUsize::new(streams),
            bytes_per_second: NonZeroU64::new(all),
            node_bytes_per_second: NonZeroU64::new(node),
        }
    }

    /// How many chunks each of these streams gets in ten seconds.
    async fn chunks(limits: Limits, streams: &[(&str, bool)]) -> Vec<usize> {
        let budget = Budget::new(limits);
        let end = Instant::now() + Duration::from_secs(10);
        let taking = streams.iter().map(|(node, urgent)| {
            let share = budget.share(node, *urgent);
            async move {
                let mut chunks = 0;
                while chunks < 1000 && Instant::now() < end {
                    share.came(CHUNK).await;
                    chunks += 1;
                }
                chunks
            }
        });
        futures::future::join_all(taking).await
    }

    #[tokio::test(start_paused = true)]
    async fn all_streams_together_take_no_more_than_the_rate_and_equal_parts_of_it() {
        let got = chunks(
            limits(2 * MIB, 0, 0),
            &[("a", false), ("a", false), ("b", false), ("c", false)],
        )
        .await;
        // Four chunks a MiB, and what may come at once.
        let all: usize = got.iter().sum();
        assert!((76..=88).contains(&all), "{got:?}");
        let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
        assert!(most - least <= 1, "{got:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_at_its_rate_takes_nothing_from_the_others() {
        let got = chunks(
            limits(0, MIB, 0),
            &[("a", false), ("a", false), ("b", false)],
        )
        .await;
        assert!((38..=44).contains(&(got[0] + got[1])), "{got:?}");
        assert!((38..=44).contains(&got[2]), "{got:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_urgent_waits_for_nobody_and_the_others_pay_for_it() {
        let begun = Instant::now();
        let budget = Budget::new(limits(MIB, 0, 0));
        let layer = budget.share("a", true);
        for _ in 0..16 {
            layer.came(CHUNK).await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        budget.share("b", false).came(CHUNK).await;
        assert!(
            begun.elapsed() > Duration::from_secs(4),
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let begun = Instant::now();
        assert_eq!(chunks(Limits::default(), &[("a", false)]).await, [1000]);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_of_one_node_have_their_turn_and_nodes_don_t_wait_for_each_other() {
        let budget = Budget::new(limits(0, 0, 1));
        let first = budget.turn("a").await;
        let waits = tokio::time::timeout(Duration::from_secs(1), budget.turn("a"));
        assert!(waits.await.is_err());
        let _other = budget.turn("b").await;
        drop(first);
        let _second = budget.turn("a").await;
    }
}
