//! The full stage: every container of the suspect, one after the other, exported (live, or
//! while it stands still) and then made into an image.

use std::collections::BTreeSet;
use std::pin::pin;

use futures::future::{Either, select};
use futures::try_join;
use impound_evidence::{ContainerRole, EvidencePath, export_name};

use tokio::sync::Notify;

use super::CollectError;
use super::fetch::{Ask, Fetched, Wanted};
use super::image::ImagePaths;
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
        let mut wanted = Vec::new();
        for known in &containers {
            wanted.push((known, self.export_path(known)?, self.image_paths(known)?));
        }
        let paths = wanted
            .iter()
            .flat_map(|(_, export, image)| [export.clone(), image.path.clone()]);
        self.board.expect(paths);
        for (known, export, image) in wanted {
            // The image of the container before is removed from the node meanwhile.
            let (exported, ()) = try_join!(
                self.export_and_make(known, export, &image),
                self.remove_images()
            )?;
            let (expected, made) = exported;
            self.save_image(known, &image, made, expected).await?;
        }
        Ok(true)
    }

    /// The export of a container, and its image, which is made while the store completes the export: the
    /// export's size in bytes, and what [`Session::make_image`] says.
    async fn export_and_make(
        &self,
        known: &Known,
        path: EvidencePath,
        image: &ImagePaths,
    ) -> Result<(u64, Option<Result<String, String>>), CollectError> {
        let read = Notify::new();
        let export = pin!(self.export(known, path, &read));
        match select(export, pin!(read.notified())).await {
            Either::Left((exported, _)) => Ok((exported?, self.make_image(known, image).await?)),
            Either::Right(((), export)) => try_join!(export, self.make_image(known, image)),
        }
    }

    /// The export of a container; its size in bytes, 0 if it could not be had. `read` is told when the agent is done
    /// with the container.
    async fn export(
        &self,
        known: &Known,
        path: EvidencePath,
        read: &Notify,
    ) -> Result<u64, CollectError> {
        // Before the container stands still: it has little time to.
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
        drop(turn);
        Ok(match fetched? {
            Fetched::Stored(content) => content.size,
            Fetched::GivenUp(_) => 0,
        })
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
