//! Network namespaces: whose it is, and doing something inside.
//!
//! A process is held by its directory in /proc. What is read through an open directory is that
//! process's or fails; a number that the kernel has given to another process meanwhile cannot slip in.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, fstat, open, openat, statat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use crate::runtime::ContainerId;

/// Largest file in /proc that is read. Real ones have a few KiB.
const PROC_FILE: u64 = 256 << 10;

/// A running process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    dir: OwnedFd,
}

/// Tells one network namespace from another while one of them is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamespaceId {
    device: u64,
    pub(super) inode: u64,
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn open(pid: u32) -> Result<Self, NamespaceError> {
        let path = PathBuf::from(format!("/proc/{pid}"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(&path, flags, Mode::empty()).map_err(|errno| NamespaceError::Process {
            pid,
            what: "it cannot be found (the agent has to run with hostPID)",
            source: errno.into(),
        })?;
        Ok(Self { pid, dir })
    }

    /// The network namespace that the process is in.
    pub(super) fn namespace(&self) -> Result<NetworkNamespace, NamespaceError> {
        let failed = |errno: rustix::io::Errno| NamespaceError::Process {
            pid: self.pid,
            what: "its network namespace cannot be opened (the agent needs CAP_SYS_PTRACE, and with AppArmor the \
                   profile Unconfined)",
            source: errno.into(),
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.dir, "ns/net", flags, Mode::empty()).map_err(failed)?;
        let stat = fstat(&file).map_err(failed)?;
        Ok(NetworkNamespace {
            file,
            id: NamespaceId {
                device: stat.st_dev,
                inode: stat.st_ino,
            },
        })
    }

    /// The same without opening it.
    pub(super) fn namespace_id(&self) -> io::Result<NamespaceId> {
        let stat = statat(&self.dir, "ns/net", AtFlags::empty())?;
        Ok(NamespaceId {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }

    /// A text file of the process, e.g. "status".
    pub(crate) fn read(&self, name: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, name, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(PROC_FILE).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The file system that the process's root is on.
    pub(crate) fn root_device(&self) -> io::Result<u64> {
        Ok(statat(&self.dir, "root", AtFlags::empty())?.st_dev)
    }

    /// Whether the process is in the control group that the runtime made for this container. A
    /// container that is root inside cannot leave it: its own are below, and their paths contain it.
    pub(crate) fn belongs_to(&self, container: &ContainerId) -> Result<bool, NamespaceError> {
        let groups = self
            .read("cgroup")
            .map_err(|source| NamespaceError::Process {
                pid: self.pid,
                what: "its control groups cannot be read",
                source,
            })?;
        Ok(groups.contains(container.as_str()))
    }
}

/// An open network namespace: it exists as long as this does.
pub(super) struct NetworkNamespace {
    file: OwnedFd,
    pub(super) id: NamespaceId,
}

impl NetworkNamespace {
    /// Does `work` inside, on a thread of its own that ends with it. No thread that does anything
    /// else ever changes its namespace, so nothing can be left behind in the wrong one.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NamespaceError> {
        let file = self
            .file
            .try_clone()
            .map_err(|source| NamespaceError::Enter { source })?;
        let expected = self.id;
        let (done, result) = oneshot::channel();
        let span = tracing::Span::current();
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                let _span = span.entered();
                // The receiver is gone if the call was given up; the work was done nevertheless.
                let _ = done.send(enter(&file, expected).map(|()| work()));
            })
            .map_err(|source| NamespaceError::Thread { source })?;
        result.await.map_err(|_| NamespaceError::Ended)?
    }
}

/// Moves the calling thread, and looks where it has come to.
fn enter(file: &OwnedFd, expected: NamespaceId) -> Result<(), NamespaceError> {
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|errno| {
        NamespaceError::Enter {
            source: errno.into(),
        }
    })?;
    let stat =
        rustix::fs::stat("/proc/thread-self/ns/net").map_err(|errno| NamespaceError::Enter {
            source: errno.into(),
        })?;
    let found = NamespaceId {
        device: stat.st_dev,
        inode: stat.st_ino,
    };
    if found == expected {
        Ok(())
    } else {
        Err(NamespaceError::Elsewhere {
            expected: expected.inode,
            found: found.inode,
        })
    }
}

/// Why a namespace could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    /// A process of /proc.
    #[error("process {pid}: {what}")]
    Process {
        /// Its number.
        pid: u32,
        /// What failed and what it may need.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The system call.
    #[error("a network namespace could not be entered (the agent needs CAP_SYS_ADMIN)")]
    Enter {
        /// Why.
        source: io::Error,
    },
    /// Should not happen; then nothing is done.
    #[error("expected to be in network namespace {expected}, found {found}: nothing was done")]
    Elsewhere {
        /// Where we wanted to go.
        expected: u64,
        /// Where we are.
        found: u64,
    },
    /// No thread.
    #[error("no thread could be started for the work in a network namespace")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// It panicked.
    #[error("the work in a network namespace broke off")]
    Ended,
}

impl NamespaceError {
    /// The agent lacks a privilege.
    pub(crate) fn not_permitted(&self) -> bool {
        matches!(self, Self::Process { source, .. } | Self::Enter { source }
            if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_in_a_namespace_leaves_every_other_thread_where_it_is() {
        let own = Process::open(std::process::id()).unwrap();
        let before = own.namespace_id().unwrap();
        let other = other_namespace();
        assert_ne!(other.id, before);
        let thread = || {
            let stat = rustix::fs::stat("/proc/thread-self/ns/net").unwrap();
            (std::thread::current().id(), stat.st_ino)
        };
        let (worker, inside) = other.run(thread).await.unwrap();
        assert_eq!(inside, other.id.inode);
        assert_ne!(worker, std::thread::current().id());
        assert_eq!(own.namespace_id().unwrap(), before);
        assert_eq!(thread().1, before.inode);
        assert!(matches!(
            other.run(|| panic!("on purpose")).await,
            Err::<(), _>(NamespaceError::Ended)
        ));
    }

    #[test]
    fn a_process_that_has_ended_gives_nothing() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process::open(child.id()).unwrap();
        process.namespace().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.namespace().is_err());
        assert!(process.read("cgroup").is_err());
        let id = ContainerId::parse(&"ab".repeat(32)).unwrap();
        assert!(process.belongs_to(&id).is_err());
    }

    /// A namespace with nothing in it. Needs root, as the agent does.
    fn other_namespace() -> NetworkNamespace {
        let mut child = std::process::Command::new("unshare")
            .args(["--net", "sleep", "60"])
            .spawn()
            .expect("install util-linux for `unshare`");
        let process = Process::open(child.id()).unwrap();
        let own = Process::open(std::process::id())
            .unwrap()
            .namespace_id()
            .unwrap();
        let namespace = loop {
            assert!(child.try_wait().unwrap().is_none(), "run the tests as root");
            let namespace = process.namespace().unwrap();
            if namespace.id != own {
                break namespace;
            }
            std::thread::yield_now();
        };
        child.kill().unwrap();
        child.wait().unwrap();
        namespace
    }
}
