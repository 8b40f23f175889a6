//! The quick stage: inspect and diff of every container on the node, and of the suspect's running ones what
//! they changed, before anything is evicted.

use std::time::Duration;

use futures::{TryStreamExt as _, stream};
use impound_evidence::{ContainerRole, EvidencePath};
use tokio::time::{Instant, timeout_at};

use super::CollectError;
use super::fetch::{Ask, Wanted};
use super::note::Known;
use super::session::Session;

/// Containers that are asked about at the same time: the runtime walks each one's file system for
/// a diff, and a node has work to do besides.
const AT_ONCE: usize = 4;
/// Longest time for one container: evictions wait for this stage, and a diff of millions of files
/// takes minutes.
const ONE: Duration = Duration::from_secs(15 * 60);

impl Session<'_> {
    pub(super) async fn quick_stage(&self) -> Result<(), CollectError> {
        let target = std::slice::from_ref(&self.job.target);
        let suspect = self.containers(target, ContainerRole::Suspect).await?;
        self.quick(&self.job.target.node, &suspect).await?;
        let neighbours = self
            .containers(&self.job.neighbours, ContainerRole::Neighbour)
            .await?;
        self.quick(&self.job.target.node, &neighbours).await?;
        self.quick_done();
        Ok(())
    }

    /// Tells that evictions need not wait any longer, and what could not be had before them.
    pub(super) fn quick_done(&self) {
        let failures = self
            .all_missing()
            .iter()
            .map(|(path, why)| format!("{path}: {why}"))
            .collect();
        self.board.quick_done(failures);
    }

    /// Inspect and diff of some containers.
    pub(super) async fn quick(&self, node: &str, containers: &[Known]) -> Result<(), CollectError> {
        let mut expected = Vec::new();
        for known in containers {
            expected.extend(self.quick_paths(known)?);
            expected.extend(self.layer_path(known).await?);
        }
        self.board.expect(expected);
        stream::iter(containers.iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |known| self.quick_one(node, known))
            .await
    }

    async fn quick_one(&self, node: &str, known: &Known) -> Result<(), CollectError> {
        let container = known.container.id.as_str();
        let until = Instant::now() + ONE;
        let deadline = Some(until);
        let [inspect, text, lines] = self.quick_paths(known)?;
        let inspected = Wanted {
            node,
            paths: vec![inspect],
            ask: Ask::Inspect { container },
            expected_bytes: 0,
            deadline,
        };
        self.fetch(&inspected).await?;
        let diffed = Wanted {
            node,
            paths: vec![text, lines],
            ask: Ask::Diff { container },
            expected_bytes: 0,
            deadline,
        };
        self.fetch(&diffed).await?;
        let Some(layer) = self.layer_path(known).await? else {
            return Ok(());
        };
        if self.stored(&layer).is_some() {
            return Ok(());
        }
        let Ok(_turn) = timeout_at(until, self.collector.layers.acquire()).await else {
            let why = format!("its turn did not come within {} s", ONE.as_secs());
            return self.forgo(&layer, why).await;
        };
        let layer = Wanted {
            node,
            paths: vec![layer],
            ask: Ask::Layer { container },
            expected_bytes: 0,
            deadline,
        };
        self.fetch(&layer).await.map(drop)
    }

    /// Where a container's writable layer goes, if it is to be read: it takes a suspect's that runs, and a node
    /// that has not said that it can't.
    async fn layer_path(&self, known: &Known) -> Result<Option<EvidencePath>, CollectError> {
        let runs = ["running", "paused"].contains(&known.container.state.as_str());
        if known.container.role != ContainerRole::Suspect || !runs {
            return Ok(None);
        }
        let path = self.path(
            &format!("{}/layer.tar", known.directory),
            "the name of a container",
        )?;
        let forgone = self.noted(|note| note.forgone.contains_key(&path)).await;
        Ok((!forgone).then_some(path))
    }

    fn quick_paths(&self, known: &Known) -> Result<[EvidencePath; 3], CollectError> {
        let below = |name: &str| {
            self.path(
                &format!("{}/{name}", known.directory),
                "the name of a container",
            )
        };
        Ok([
            below("inspect.json")?,
            below("diff.txt")?,
            below("diff.jsonl")?,
        ])
    }
}
