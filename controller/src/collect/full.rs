//! The full stage: every container of the suspect, one after the other, exported (live, or
//! while it stands still) and then made into an image.

use std::collections::BTreeSet;

use futures::try_join;
use impound_evidence::{ContainerRole, EvidencePath, export_name};
use tokio::sync::SetOnce;

use super::CollectError;
use super::fetch::{Ask, Wanted};
use super::image::ImagePaths;
use super::note::Known;
use super::session::Session;

/// How often the runtime is asked for containers that were restarted while others were exported. One that
/// is restarted again and again must not keep the evidence from being sealed.
const LOOKS: usize = 5;

/// Bytes of a writable layer up to which its commit reads so little that an export doesn't become slower by it.
const SMALL_LAYER: u64 = 64 << 20;

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
        let mut wanted = Vec::new();
        for known in &containers {
            wanted.push((known, self.export_path(known)?, self.image_paths(known)?));
        }
        let paths = wanted
            .iter()
            .flat_map(|(_, export, image)| [export.clone(), image.path.clone()]);
        self.board.expect(paths);
        for (known, export, image) in wanted {
            let read = SetOnce::new();
            let exported = async {
                let exported = self.export(known, export, &read).await;
                // Also of one that could not be had, or is there already.
                let _ = read.set(0);
                exported
            };
            try_join!(exported, self.image(known, image, &read))?;
        }
        Ok(true)
    }

    /// The image of a container: made and saved when its export is `read`, while the store completes that; made
    /// beside the export if that costs it little.
    async fn image(
        &self,
        known: &Known,
        image: ImagePaths,
        read: &SetOnce<u64>,
    ) -> Result<(), CollectError> {
        // A container that stands still for its export is not asked for more meanwhile.
        let stands_still = self.job.pause || self.job.freeze.is_some();
        if stands_still || !self.has_small_layer(known).await? {
            read.wait().await;
        }
        let made = self.make_image(known, &image).await?;
        let expected = *read.wait().await;
        self.save_image(known, &image, made, expected).await?;
        self.hand_on(image);
        Ok(())
    }

    async fn has_small_layer(&self, known: &Known) -> Result<bool, CollectError> {
        let layer = self.layer_path(known).await?;
        let stored = layer.and_then(|layer| self.stored(&layer));
        Ok(stored.is_some_and(|layer| layer.size <= SMALL_LAYER))
    }

    /// The export of a container. `read` is told how many bytes came, when the agent is done with the container.
    async fn export(
        &self,
        known: &Known,
        path: EvidencePath,
        read: &SetOnce<u64>,
    ) -> Result<(), CollectError> {
        // Before the container stands still: it has little time to. Who waits for its node takes nobody's place.
        let of_node = self.collector.budget.turn(&self.job.target.node).await;
        let turn = self.collector.exports.acquire().await;
        if self.stored(&path).is_none() {
            self.stand_still(known, &path).await?;
        }
        let wanted = Wanted {
            node: &self.job.target.node,
            paths: vec![path],
            ask: Ask::Export {
                container: known.container.id.as_str(),
                read,
            },
            expected_bytes: 0,
            deadline: None,
        };
        let fetched = self.fetch(&wanted).await;
        // If no byte came, nobody has let go yet.
        self.let_go().await?;
        drop((turn, of_node));
        fetched.map(drop)
    }

    fn export_path(&self, known: &Known) -> Result<EvidencePath, CollectError> {
        let what = "the name of a container";
        let name = export_name(known.file_name(), &known.container.id);
        let name = name.map_err(|source| CollectError::Name {
            at: self.at.to_string(),
            what,
            source,
        })?;
        self.path(&format!("{}/{name}", known.directory), what)
    }
}
