//! The full stage: every container of the suspect, one after the other, exported (live, or
//! while it stands still) and then made into an image.

use std::collections::BTreeSet;

use impound_evidence::{ContainerRole, export_name, image_name};

use super::CollectError;
use super::fetch::{Ask, Fetched, Wanted};
use super::note::Known;
use super::session::Session;

/// How often the runtime is asked for containers that were restarted while others were exported. One that
/// is restarted again and again must not keep the evidence from being sealed.
const LOOKS: usize = 5;

impl Session<'_> {
    /// Collects the suspect's containers, and those that were started meanwhile.
    pub(super) async fn full_stage(&self) -> Result<(), CollectError> {
        let mut done = BTreeSet::new();
        for _ in 0..LOOKS {
            if !self.look(&mut done).await? {
                break;
            }
        }
        Ok(())
    }

    /// Collects the containers that are not in `done`, and says whether there were any. A container may
    /// have been restarted since the last look: the one before and the one after are both evidence.
    async fn look(&self, done: &mut BTreeSet<String>) -> Result<bool, CollectError> {
        let target = &self.job.target;
        let mut containers = self
            .containers(std::slice::from_ref(target), ContainerRole::Suspect)
            .await?;
        containers.retain(|known| done.insert(known.container.id.clone()));
        if containers.is_empty() {
            return Ok(false);
        }
        self.quick(&target.node, &containers).await?;
        let mut paths = Vec::new();
        for known in &containers {
            paths.push(self.full_paths(known)?);
        }
        self.board.expect(
            paths
                .iter()
                .flat_map(|paths| [paths.export.clone(), paths.image.clone()]),
        );
        for (known, paths) in containers.iter().zip(paths) {
            let container = known.container.id.as_str();
            let ask = Ask::Export { container };
            // Before the container stands still: it has little time to.
            let turn = self.collector.exports.acquire().await;
            if self.stored(&paths.export).is_none() {
                self.stand_still(known, &paths.export).await?;
            }
            let export = Wanted {
                node: &target.node,
                paths: vec![paths.export],
                ask,
                expected_bytes: 0,
                deadline: None,
            };
            let fetched = self.fetch(&export).await;
            // If no byte came, nobody has let go yet.
            self.let_go().await?;
            drop(turn);
            let expected = match fetched? {
                Fetched::Stored(content) => content.size,
                Fetched::GivenUp(_) => 0,
            };
            self.image(known, &paths.repository, paths.image, expected)
                .await?;
        }
        Ok(true)
    }

    fn full_paths(&self, known: &Known) -> Result<FullPaths, CollectError> {
        let container = &known.container;
        let what = "the name of a container";
        let name = |source| CollectError::Name {
            at: self.at.to_string(),
            what,
            source,
        };
        // The same fallback as for its directory: the agent's word may be no name.
        let called = if export_name(&container.name, &container.id).is_ok() {
            container.name.as_str()
        } else {
            "unnamed"
        };
        let repository = image_name(called, &container.id).map_err(name)?;
        let export = export_name(called, &container.id).map_err(name)?;
        Ok(FullPaths {
            export: self.path(&format!("{}/{export}", known.directory), what)?,
            image: self.path(&format!("{}/{repository}.tar", known.directory), what)?,
            repository,
        })
    }
}

struct FullPaths {
    export: impound_evidence::EvidencePath,
    image: impound_evidence::EvidencePath,
    repository: String,
}
