//! From a container to its writable layer: the directory that overlayfs calls `upperdir`.
//!
//! The kernel says where it is, in the mounts of the container's own process; the runtime's word is only
//! compared with it. The path is one of the node's, so it is opened below the root of a process of the node
//! (`/proc/PID/root`), whatever the agent itself sees.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, major, minor, open, openat2};
use rustix::io::Errno;
use serde::Deserialize;
use tracing::Span;

use super::mountinfo::{self, Mount};
use super::{Captured, directory};
use crate::isolate::namespace::{NamespaceError, Process};
use crate::runtime::{ContainerId, ContainerRuntime, RuntimeError};

/// A running container's writable layer.
#[derive(Debug)]
pub(crate) struct Layer {
    directory: OwnedFd,
    source: String,
}

/// What of a container's description matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    state: Running,
    #[serde(default)]
    image: String,
    #[serde(default)]
    graph_driver: GraphDriver,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
struct Running {
    running: bool,
    pid: u32,
    started_at: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GraphDriver {
    data: Option<GraphData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GraphData {
    upper_dir: Option<String>,
}

impl Layer {
    /// Where it was read, for the record.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Begins to read it.
    pub(crate) fn read(self, span: Span) -> Result<Captured, CaptureError> {
        directory(self.directory, self.source, span).map_err(CaptureError::Thread)
    }
}

/// Finds the writable layer of a running container and opens it.
pub(crate) async fn locate(
    runtime: &dyn ContainerRuntime,
    id: &ContainerId,
) -> Result<Layer, CaptureError> {
    let description = describe(runtime, id).await?;
    let pid = description.state.pid;
    if !description.state.running || pid == 0 {
        return Err(CaptureError::NotRunning {
            container: id.clone(),
        });
    }
    let process = Process::open(pid)?;
    if !process.belongs_to(id)? {
        return Err(CaptureError::NotItsProcess { pid });
    }
    let mount = root_mount(&process)?;
    let upper = upper(&mount, &description)?;
    // The control group and the mounts could be of an earlier process with the same number only if the
    // container was restarted in between.
    if describe(runtime, id).await?.state != description.state {
        return Err(CaptureError::Changed {
            container: id.clone(),
        });
    }
    // A proxy may stand before the runtime.
    let node = runtime.process().await.unwrap_or(1);
    let directory = open_below(node, &upper).map_err(|source| CaptureError::Layer {
        path: upper.clone(),
        node,
        source,
    })?;
    let mut source = format!(
        "upperdir={upper} of the root of process {pid}, over image {}",
        description.image
    );
    if !reads_trusted() {
        source.push_str("; without attributes trusted.*, which need CAP_SYS_ADMIN");
    }
    Ok(Layer { directory, source })
}

async fn describe(
    runtime: &dyn ContainerRuntime,
    id: &ContainerId,
) -> Result<Description, CaptureError> {
    let reading = runtime.inspect(id).await?;
    serde_json::from_slice(&reading.bytes).map_err(|error| {
        CaptureError::Runtime(RuntimeError::Malformed {
            call: reading.api_call,
            why: error.to_string(),
        })
    })
}

/// The mount that is the root of `process`, and really is: its device is compared.
fn root_mount(process: &Process) -> Result<Mount, CaptureError> {
    let pid = process.pid;
    let unreadable = |source| CaptureError::Process { pid, source };
    let mounts = process.read("mountinfo").map_err(unreadable)?;
    let device = process.root_device().map_err(unreadable)?;
    mountinfo::root(&mounts)
        .filter(|mount| mount.device == (major(device), minor(device)))
        .ok_or(CaptureError::NoRoot { pid })
}

/// The path of the writable layer on the node.
fn upper(mount: &Mount, description: &Description) -> Result<String, CaptureError> {
    if mount.kind != "overlay" {
        return Err(CaptureError::NotOverlay {
            found: mount.kind.clone(),
        });
    }
    if metacopy(mount) {
        return Err(CaptureError::Metacopy);
    }
    let Some(upper) = mount.option("upperdir") else {
        return Err(CaptureError::ReadOnly);
    };
    let data = description.graph_driver.data.as_ref();
    let told = data.and_then(|data| data.upper_dir.clone());
    match told {
        // A mount with many layers names them from the runtime's directory.
        Some(told) if !upper.starts_with('/') && told.ends_with(&format!("/{upper}")) => Ok(told),
        Some(told) if told != upper => Err(CaptureError::Differs { mount: upper, told }),
        _ if upper.starts_with('/') => Ok(upper),
        _ => Err(CaptureError::Relative { path: upper }),
    }
}

/// Whether files whose owner or mode alone changed lie in the layer without contents.
fn metacopy(mount: &Mount) -> bool {
    match mount.option("metacopy") {
        Some(given) => given == "on",
        None => std::fs::read_to_string("/sys/module/overlay/parameters/metacopy")
            .is_ok_and(|default| default.trim_end() == "Y"),
    }
}

/// Opens `path` as `process` of the node sees it: absolute links on the way lead below its root, too.
fn open_below(process: u32, path: &str) -> io::Result<OwnedFd> {
    let handle = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = format!("/proc/{process}/root");
    let root = open(&root, handle, Mode::empty())?;
    let below = path.trim_start_matches('/');
    let flags = handle | OFlags::NOFOLLOW;
    let opened = openat2(&root, below, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    match opened {
        // Before Linux 5.6.
        Err(Errno::NOSYS) => Ok(rustix::fs::openat(&root, below, flags, Mode::empty())?),
        other => Ok(other?),
    }
}

/// Whether this process may see attributes of the class `trusted`, as overlayfs's own marks are.
fn reads_trusted() -> bool {
    const SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << SYS_ADMIN) != 0)
}

/// Why a layer is not read. What to do instead is always the same: the runtime's export has the files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// The runtime's.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// It has no process.
    #[error(
        "container {container} does not run, and its writable layer is found through its process: its export \
         has the files"
    )]
    NotRunning {
        /// Which.
        container: ContainerId,
    },
    /// Restarted meanwhile.
    #[error("container {container} was started anew while its layer was looked for: try again")]
    Changed {
        /// Which.
        container: ContainerId,
    },
    /// Another process has its number here.
    #[error(
        "process {pid} is not the container's as seen from here: the agent has to run with hostPID to read layers"
    )]
    NotItsProcess {
        /// Its number.
        pid: u32,
    },
    /// Its directory in /proc.
    #[error("a process of the container cannot be looked at")]
    Found(#[from] NamespaceError),
    /// Its mounts.
    #[error(
        "the mounts of process {pid} cannot be read (the agent needs CAP_SYS_PTRACE, and with AppArmor the profile \
         Unconfined)"
    )]
    Process {
        /// Its number.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// No such line.
    #[error("the mounts of process {pid} do not tell where its root comes from")]
    NoRoot {
        /// Its number.
        pid: u32,
    },
    /// Another storage driver.
    #[error(
        "the container's root is of type {found}; only of overlayfs is there a writable layer that can be read: its \
         export has the files"
    )]
    NotOverlay {
        /// Its file system.
        found: String,
    },
    /// Layers refer to each other.
    #[error(
        "overlayfs runs with metacopy, so the layer may lack contents that lie in the image: the container's export has \
         the files"
    )]
    Metacopy,
    /// Nothing can be written there.
    #[error("the container's root is read-only: there is no writable layer")]
    ReadOnly,
    /// No absolute path.
    #[error(
        "the writable layer is at {path:?}, relative to a directory that is not known: the container's export has the files"
    )]
    Relative {
        /// As the kernel has it.
        path: String,
    },
    /// Somebody mounted something over the root.
    #[error(
        "the container's root has its writable layer at {mount:?}, the runtime says {told:?}: nothing is read. Its export \
         has the files"
    )]
    Differs {
        /// The kernel's.
        mount: String,
        /// The runtime's.
        told: String,
    },
    /// The directory.
    #[error(
        "the writable layer {path:?} cannot be opened below the root of process {node} (the agent needs hostPID, \
         CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)"
    )]
    Layer {
        /// As the kernel has it.
        path: String,
        /// Whose root.
        node: u32,
        /// Why.
        source: io::Error,
    },
    /// No thread.
    #[error("no thread could be started to read the layer")]
    Thread(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_inspect_any_description_leads_to_an_absolute_layer_or_none() {
        let seeds = [
            br#"{"Id":"4e5e","State":{"Running":true,"Pid":4242,"StartedAt":"2026-01-31T03:04:05Z"},"Image":"sha256:feed","GraphDriver":{"Name":"overlay2","Data":{"UpperDir":"/var/lib/docker/overlay2/48f9/diff"}}}"#.to_vec(),
            br#"{"State":{"Running":true,"Pid":1,"StartedAt":""},"GraphDriver":{"Data":null}}"#.to_vec(),
        ];
        let mounts = [
            "733 600 0:59 / / rw - overlay overlay rw,metacopy=off,upperdir=/var/lib/docker/overlay2/48f9/diff\n",
            "733 600 0:59 / / rw - overlay overlay rw,metacopy=off,upperdir=48f9/diff\n",
        ];
        let mounts = mounts.map(|text| mountinfo::root(text).unwrap());
        impound_fuzz::run("inspect", &seeds, |_, bytes| {
            let Ok(description) = serde_json::from_slice::<Description>(&bytes) else {
                return;
            };
            let [absolute, relative] = &mounts;
            if let Ok(path) = upper(absolute, &description) {
                assert_eq!(path, "/var/lib/docker/overlay2/48f9/diff");
            }
            if let Ok(path) = upper(relative, &description) {
                assert!(path.ends_with("/48f9/diff"), "{path}");
            }
        });
    }
}
