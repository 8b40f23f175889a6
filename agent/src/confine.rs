//! Takes from a process the system calls that it has no use for (seccomp), before it does anything.
//!
//! The list is in the program and not in a file on each node: it holds wherever the program runs, needs
//! no profile to be installed first, and adds to what the container's own profile (`RuntimeDefault`)
//! forbids. A call that is not listed answers `EPERM`. Whoever takes over such a process cannot start
//! a program, trace another, mount, load a module or make a namespace, and out of the collector not even
//! a packet gets to the network, although it shares the pod's.
//!
//! One list serves all, made of what the C library, tokio and this program call; the processes differ in
//! the sockets they may open, and the isolator may enter namespaces.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// What a process may do beyond the common list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Families of sockets that it may open.
    sockets: &'static [i32],
    /// `setns(2)`.
    namespaces: bool,
}

impl Confinement {
    /// Network to the controller, sockets to the parts.
    pub const FRONT: Self = Self {
        sockets: &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6],
        namespaces: false,
    };
    /// No network: the runtime's socket and the front's.
    pub const COLLECTOR: Self = Self {
        sockets: &[libc::AF_UNIX],
        namespaces: false,
    };
    /// Sets rules over netlink, probes over TCP, in namespaces that it enters.
    pub const ISOLATOR: Self = Self {
        sockets: &[
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_NETLINK,
        ],
        namespaces: true,
    };
    /// All in one, with or without isolation.
    #[must_use]
    pub fn single(isolation: bool) -> Self {
        if isolation {
            Self::ISOLATOR
        } else {
            Self::FRONT
        }
    }

    /// Confines the calling thread and all that it starts from now on. It cannot be undone.
    ///
    /// # Errors
    /// If the kernel refuses; it has to be built with seccomp filters, as all distributions' are.
    pub fn apply(self) -> Result<(), ConfineError> {
        let architecture = std::env::consts::ARCH
            .try_into()
            .map_err(ConfineError::Filter)?;
        let filter = SeccompFilter::new(
            self.rules()?,
            SeccompAction::Errno(libc::EPERM.cast_unsigned()),
            SeccompAction::Allow,
            architecture,
        )
        .map_err(ConfineError::Filter)?;
        let program: BpfProgram = filter.try_into().map_err(ConfineError::Filter)?;
        seccompiler::apply_filter(&program)
            .map_err(|error| ConfineError::Kernel(io::Error::other(error)))
    }

    fn rules(self) -> Result<BTreeMap<i64, Vec<SeccompRule>>, ConfineError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = COMMON
            .iter()
            .chain(LEGACY)
            .map(|call| (*call, vec![]))
            .collect();
        let families = self.sockets.iter().map(|family| {
            // The first argument of socket(2), an int.
            let family = u64::from(family.cast_unsigned());
            let same = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family)?;
            SeccompRule::new(vec![same])
        });
        let families = families
            .collect::<Result<_, _>>()
            .map_err(ConfineError::Filter)?;
        rules.insert(libc::SYS_socket, families);
        if self.namespaces {
            rules.insert(libc::SYS_setns, vec![]);
        }
        Ok(rules)
    }
}

/// What every process calls, whatever the architecture.
const COMMON: &[i64] = &[
    // Files and descriptors.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_listxattr,
    libc::SYS_getxattr,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_getcwd,
    // A part's own socket and records: made, written for good, replaced, removed.
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchmod,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    // Sockets; which may be opened is said apart.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    // The C library's resolver sends its questions with it: the issuer may be given by name.
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Threads.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_prctl,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_brk,
    // Signals, its own.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Who and when.
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_prlimit64,
    libc::SYS_getrlimit,
];

/// Older forms of the same, which the C library still calls on this architecture.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[i64] = &[];

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The filter cannot be made, e.g. for this architecture.
    #[error("no filter of system calls can be made for {}", std::env::consts::ARCH)]
    Filter(#[source] BackendError),
    /// The kernel does not take it.
    #[error(
        "the kernel does not take a filter of system calls (it needs CONFIG_SECCOMP_FILTER, and the \
         container's own profile must allow seccomp and prctl)"
    )]
    Kernel(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    /// On a thread of its own, which the filter dies with.
    fn confined<T: Send + 'static>(
        to: Confinement,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let thread = std::thread::spawn(move || {
            to.apply().unwrap();
            work()
        });
        thread.join().unwrap()
    }

    fn refused<T>(result: io::Result<T>) -> bool {
        matches!(result, Err(error) if error.kind() == io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn a_collector_has_no_network_but_its_unix_sockets() {
        confined(Confinement::COLLECTOR, || {
            assert!(refused(TcpListener::bind("127.0.0.1:0")));
            assert!(refused(UdpSocket::bind("[::1]:0")));
            UnixStream::pair().unwrap();
            let dir = tempfile::tempdir().unwrap();
            std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        });
    }

    #[test]
    fn no_part_starts_a_program() {
        for part in [
            Confinement::FRONT,
            Confinement::COLLECTOR,
            Confinement::ISOLATOR,
            Confinement::single(true),
        ] {
            confined(part, || {
                assert!(refused(Command::new("/bin/true").status()));
            });
        }
    }

    #[test]
    fn only_an_isolator_enters_namespaces() {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        use std::os::fd::AsFd;
        let enter = || {
            let own = std::fs::File::open("/proc/self/ns/net").unwrap();
            move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network))
        };
        for part in [Confinement::FRONT, Confinement::COLLECTOR] {
            assert_eq!(confined(part, enter), Err(rustix::io::Errno::PERM));
        }
        assert_eq!(
            confined(Confinement::ISOLATOR, enter),
            Ok(()),
            "run the tests as root"
        );
    }
}
