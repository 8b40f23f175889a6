//! What is quick: inspect and diff of every container on the node, before anything is evicted; and of the suspect's
//! running ones what they changed.

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
/// Longest time for one container's description, and for its layer: evictions wait for this stage, and a diff of
/// millions of files takes minutes.
const ONE: Duration = Duration::from_secs(15 * 60);

impl Session<'_> {
    /// Inspect and diff of the suspect's containers.
    pub(super) async fn describe_suspect(&self) -> Result<(), CollectError> {
        let target = std::slice::from_ref(&self.job.target);
        let suspect = self.containers(target, ContainerRole::Suspect).await?;
        self.describe(&self.job.target.node, &suspect).await
    }

    /// The same of its neighbours', and then evictions need not wait any longer.
    pub(super) async fn describe_neighbours(&self) -> Result<(), CollectError> {
        let neighbours = self
            .containers(&self.job.neighbours, ContainerRole::Neighbour)
            .await?;
        self.describe(&self.job.target.node, &neighbours).await?;
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

    /// Everything that is quick of some containers.
    pub(super) async fn quick(&self, node: &str, containers: &[Known]) -> Result<(), CollectError> {
        self.describe(node, containers).await?;
        self.layers(node, containers).await
    }

    /// Inspect and diff of some containers.
    async fn describe(&self, node: &str, containers: &[Known]) -> Result<(), CollectError> {
        let mut expected = Vec::new();
        for known in containers {
            expected.extend(self.quick_paths(known)?);
            expected.extend(self.layer_path(known).await?);
        }
        self.board.expect(expected);
        stream::iter(containers.iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |known| self.describe_one(node, known))
            .await
    }

    async fn describe_one(&self, node: &str, known: &Known) -> Result<(), CollectError> {
        let container = known.container.id.as_str();
        let deadline = Some(Instant::now() + ONE);
        let [inspect, text, lines] = self.quick_paths(known)?;
        let inspected = Wanted {
            node,
            paths: vec![inspect],
            ask: Ask::Inspect { container },
            expected_bytes: 0,
            deadline,
        };
        let diffed = Wanted {
            node,
            paths: vec![text, lines],
            ask: Ask::Diff { container },
            expected_bytes: 0,
            deadline,
        };
        futures::try_join!(self.fetch(&inspected), self.fetch(&diffed))?;
        Ok(())
    }

    /// The writable layers of those that have one to be read.
    async fn layers(&self, node: &str, containers: &[Known]) -> Result<(), CollectError> {
        stream::iter(containers.iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |known| self.layer_of(node, known))
            .await
    }

    async fn layer_of(&self, node: &str, known: &Known) -> Result<(), CollectError> {
        let container = known.container.id.as_str();
        let Some(layer) = self.layer_path(known).await? else {
            return Ok(());
        };
        if self.stored(&layer).is_some() {
            return Ok(());
        }
        let until = Instant::now() + ONE;
        let Ok(_turn) = timeout_at(until, self.collector.layers.acquire()).await else {
            let why = format!("its turn did not come within {} s", ONE.as_secs());
            return self.forgo(&layer, why).await;
        };
        let layer = Wanted {
            node,
            paths: vec![layer],
            ask: Ask::Layer { container },
            expected_bytes: 0,
            deadline: Some(until),
        };
        self.fetch(&layer).await.map(drop)
    }

    /// Where a container's writable layer goes, if it is to be read: it takes a suspect's that runs, and a node
    /// that has not said that it can't.
    pub(super) async fn layer_path(
        &self,
        known: &Known,
    ) -> Result<Option<EvidencePath>, CollectError> {
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
