//! A pod's volumes as directories of this machine that are mounted into its containers.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, Volume};

/// Why a volume can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(
        "volume {0} is of a kind that this test kubelet doesn't have; it has emptyDir and hostPath"
    )]
    Kind(String),
    #[error("container {container} mounts volume {volume}, which the pod doesn't have")]
    Unknown { container: String, volume: String },
    #[error("directory {path} for an emptyDir volume: {source}")]
    Directory {
        path: String,
        source: std::io::Error,
    },
}

/// Makes the directories of the pod's volumes below `directory` (the pod's own), as far as they
/// don't exist yet.
pub(crate) fn prepare(pod: &Pod, directory: &Path) -> Result<Volumes, VolumeError> {
    let mut volumes = HashMap::new();
    for volume in pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
    {
        volumes.insert(volume.name.clone(), path_of(volume, directory)?);
    }
    Ok(Volumes(volumes))
}

/// Removes what [`prepare`] made.
pub(crate) fn remove(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %directory.display(), "a pod's volumes could not be removed");
    }
}

/// Where each volume is on this machine.
pub(crate) struct Volumes(HashMap<String, PathBuf>);

impl Volumes {
    /// The container's mounts as Docker's binds: `source:target[:ro]`.
    pub(crate) fn binds(&self, container: &Container) -> Result<Vec<String>, VolumeError> {
        container
            .volume_mounts
            .iter()
            .flatten()
            .map(|mount| {
                let mut source =
                    self.0
                        .get(&mount.name)
                        .cloned()
                        .ok_or_else(|| VolumeError::Unknown {
                            container: container.name.clone(),
                            volume: mount.name.clone(),
                        })?;
                source.extend(mount.sub_path.as_deref());
                let mode = if mount.read_only == Some(true) {
                    ":ro"
                } else {
                    ""
                };
                Ok(format!("{}:{}{mode}", source.display(), mount.mount_path))
            })
            .collect()
    }
}

fn path_of(volume: &Volume, directory: &Path) -> Result<PathBuf, VolumeError> {
    if let Some(host) = &volume.host_path {
        return Ok(host.path.clone().into());
    }
    let kind = if volume.empty_dir.is_some() {
        "kubernetes.io~empty-dir"
    } else if volume.projected.is_some() && volume.name.starts_with("kube-api-access-") {
        // An admission plugin gives every pod this one; without a token it is an empty directory.
        "kubernetes.io~projected"
    } else {
        return Err(VolumeError::Kind(volume.name.clone()));
    };
    let path = directory.join("volumes").join(kind).join(&volume.name);
    let made = std::fs::create_dir_all(&path)
        // Whatever user the container runs as must be able to write.
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)));
    match made {
        Ok(()) => Ok(path),
        Err(source) => Err(VolumeError::Directory {
            path: path.display().to_string(),
            source,
        }),
    }
}
