//! What could get past the table, or take it away: looked for in the processes of the pod.
//!
//! A process is the pod's if it is in the pod's network namespace, whatever its control group, or in the control
//! group of the pod or one of its containers, whatever its namespaces: either alone can be left. Who has left
//! both, as only root on the node can, is not seen.
//!
//! It is looked at, not prevented: taking a privilege from a running process is not possible.

use std::io;

use super::namespace::{NamespaceId, Process};
use super::sandbox::Sandbox;
use crate::runtime::ContainerId;

/// Bits of the masks in /proc/PID/status: `CAP_NET_ADMIN`, `CAP_NET_RAW`, `CAP_SYS_ADMIN`.
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_ADMIN: u32 = 21;

/// The node's first process: never a pod's, and out of sight where a security module guards it.
const FIRST: u32 = 1;

/// Processes that are named; of more only the number is told.
const NAMED: usize = 5;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Weakness {
    pub(crate) kind: Kind,
    /// For people.
    pub(crate) detail: String,
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NetAdmin,
    NetAdminObtainable,
    NetRaw,
    NetRawObtainable,
    PacketSocket,
    Outside,
    SysAdmin,
    NotExamined,
}

/// Looks at every process of the pod, in the sandbox's network namespace or outside of it. Reads /proc, so
/// not for a thread that serves others.
pub(super) fn look(sandbox: &Sandbox) -> Vec<Weakness> {
    let mut found = Vec::new();
    let mut tally = Tally::default();
    let mut outside = Vec::new();
    if let Err(error) = examine(sandbox, &mut tally, &mut outside) {
        found.push(Weakness {
            kind: Kind::NotExamined,
            detail: format!("the pod's processes could not be listed: {error}"),
        });
    }
    tally.report(&mut found);
    match sandbox.process.read("net/packet") {
        // The first line is a heading.
        Ok(sockets) => {
            let open = sockets.lines().skip(1).count();
            if open > 0 {
                found.push(Weakness {
                    kind: Kind::PacketSocket,
                    detail: format!(
                        "{open} packet sockets are open in the pod: they see frames before any rule of IP, \
                         and can send some past them"
                    ),
                });
            }
        }
        Err(error) => found.push(Weakness {
            kind: Kind::NotExamined,
            detail: format!("the pod's packet sockets could not be listed: {error}"),
        }),
    }
    if !outside.is_empty() {
        found.push(Weakness {
            kind: Kind::Outside,
            detail: format!(
                "not in the pod's network namespace, so not isolated; {}",
                named(&outside)
            ),
        });
    }
    found
}

/// All processes of the pod except the sandbox's own, which only waits.
fn examine(sandbox: &Sandbox, tally: &mut Tally, outside: &mut Vec<String>) -> io::Result<()> {
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if pid == sandbox.process.pid || pid == FIRST {
            continue;
        }
        // One that has ended since.
        let Ok(process) = Process::open(pid) else {
            continue;
        };
        let inside = match process.namespace_id() {
            Ok(id) if id == sandbox.namespace.id => Ok(()),
            Ok(id) => Err(id),
            Err(error) if is_gone(&error) => continue,
            Err(error) => {
                tally.not_examined.push(format!("{pid}: {error}"));
                continue;
            }
        };
        let read = match inside {
            Ok(()) => process.read("status").map(|status| tally.add(pid, &status)),
            Err(id) => process.read("cgroup").map(|groups| {
                if let Some(member) = member(sandbox, &groups) {
                    let name = process.read("comm").unwrap_or_default();
                    outside.push(format!(
                        "{pid} {} of {member} {}",
                        name.trim_end().escape_debug(),
                        place(sandbox, id)
                    ));
                }
            }),
        };
        match read {
            Ok(()) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => tally.not_examined.push(format!("{pid}: {error}")),
        }
    }
    Ok(())
}

/// Whose a process is by its control groups: a container's, or the pod's as a whole.
fn member(sandbox: &Sandbox, groups: &str) -> Option<String> {
    let of = |id: &ContainerId| groups.contains(id.as_str());
    if let Some((_, name)) = sandbox.containers.iter().find(|(id, _)| of(id)) {
        return Some(format!("container {name}"));
    }
    // As the kubelet names it, with its cgroupfs driver and with systemd's.
    let uid = &sandbox.pod_uid;
    let pod = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    let by_pod = !uid.is_empty() && pod.iter().any(|group| groups.contains(group));
    (of(&sandbox.id) || by_pod).then(|| "the pod".to_owned())
}

fn place(sandbox: &Sandbox, id: NamespaceId) -> String {
    if id == sandbox.host.id {
        "in the node's own".to_owned()
    } else {
        format!("in {}", id.inode)
    }
}

/// Processes by what they may do.
#[derive(Default)]
struct Tally {
    net_admin: Vec<String>,
    net_admin_obtainable: Vec<String>,
    net_raw: Vec<String>,
    net_raw_obtainable: Vec<String>,
    sys_admin: Vec<String>,
    not_examined: Vec<String>,
}

impl Tally {
    fn add(&mut self, pid: u32, status: &str) {
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let mask = |name| u64::from_str_radix(field(name)?, 16).ok();
        // A zombie still has a status, but runs no more.
        if field("State").is_some_and(|state| state.starts_with(['Z', 'X'])) {
            return;
        }
        let name = field("Name").unwrap_or_default();
        let who = format!("{pid} {}", name.escape_debug());
        let masks = mask("CapPrm").zip(mask("CapEff")).zip(mask("CapBnd"));
        let Some(((permitted, effective), bounding)) = masks else {
            self.not_examined.push(who);
            return;
        };
        // With no_new_privs no program that it starts can have more than it has.
        let fixed = field("NoNewPrivs") == Some("1");
        let holds = |bit| (permitted | effective) >> bit & 1 == 1;
        let may_get = |bit| !fixed && bounding >> bit & 1 == 1;
        if holds(NET_ADMIN) {
            self.net_admin.push(who.clone());
        } else if may_get(NET_ADMIN) {
            self.net_admin_obtainable.push(who.clone());
        }
        if holds(NET_RAW) {
            self.net_raw.push(who.clone());
        } else if may_get(NET_RAW) {
            self.net_raw_obtainable.push(who.clone());
        }
        if holds(SYS_ADMIN) {
            self.sys_admin.push(who);
        }
    }

    fn report(self, found: &mut Vec<Weakness>) {
        let lines = [
            (
                Kind::NetAdmin,
                self.net_admin,
                "CAP_NET_ADMIN is held: it can remove or change the isolation from inside",
            ),
            (
                Kind::NetAdminObtainable,
                self.net_admin_obtainable,
                "CAP_NET_ADMIN is not held but in the bounding set: a program with file capabilities or \
                 set-user-id root could remove the isolation from inside",
            ),
            (
                Kind::NetRaw,
                self.net_raw,
                "CAP_NET_RAW is held: packet sockets can send and receive frames past the isolation",
            ),
            (
                Kind::NetRawObtainable,
                self.net_raw_obtainable,
                "CAP_NET_RAW is not held but in the bounding set: a program with file capabilities or \
                 set-user-id root could open packet sockets, which the isolation does not stop",
            ),
            (
                Kind::SysAdmin,
                self.sys_admin,
                "CAP_SYS_ADMIN is held: other namespaces can be entered, and with them other networks",
            ),
            (
                Kind::NotExamined,
                self.not_examined,
                "processes could not be looked at (the agent needs hostPID and CAP_SYS_PTRACE)",
            ),
        ];
        for (kind, processes, meaning) in lines {
            if !processes.is_empty() {
                let detail = format!("{meaning}; {}", named(&processes));
                found.push(Weakness { kind, detail });
            }
        }
    }
}

fn named(processes: &[String]) -> String {
    let first: Vec<&str> = processes.iter().take(NAMED).map(String::as_str).collect();
    let more = match processes.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("processes: {}{more}", first.join(", "))
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [rustix::io::Errno::NOENT, rustix::io::Errno::SRCH];
    gone.iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(status: &str) -> Vec<Kind> {
        let mut tally = Tally::default();
        tally.add(42, status);
        let mut found = Vec::new();
        tally.report(&mut found);
        assert!(found.iter().all(|weakness| weakness.detail.contains("42")));
        found.into_iter().map(|weakness| weakness.kind).collect()
    }

    fn status(state: &str, held: u64, bounding: u64, fixed: u8) -> String {
        format!(
            "Name:\tsh\nState:\t{state}\nCapInh:\t0\nCapPrm:\t{held:016x}\nCapEff:\t{held:016x}\n\
             CapBnd:\t{bounding:016x}\nNoNewPrivs:\t{fixed}\n"
        )
    }

    #[test]
    fn what_a_process_holds_or_can_get_is_reported() {
        // Docker's default for root.
        let usual = 0xa804_25fb;
        assert_eq!(
            kinds(&status("S (sleeping)", usual, usual, 0)),
            [Kind::NetRaw]
        );
        // The same as another user, without and with no_new_privs.
        assert_eq!(
            kinds(&status("S (sleeping)", 0, usual, 0)),
            [Kind::NetRawObtainable]
        );
        assert_eq!(kinds(&status("S (sleeping)", 0, usual, 1)), []);
        // Privileged.
        let all = 0x01ff_ffff_ffff;
        assert_eq!(
            kinds(&status("R (running)", all, all, 0)),
            [Kind::NetAdmin, Kind::NetRaw, Kind::SysAdmin]
        );
        assert_eq!(
            kinds(&status("R (running)", 0, 1 << NET_ADMIN, 0)),
            [Kind::NetAdminObtainable]
        );
        assert_eq!(kinds(&status("R (running)", 0, 0, 0)), []);
        assert_eq!(kinds(&status("Z (zombie)", all, all, 0)), []);
        assert_eq!(kinds("Name:\tsh\n"), [Kind::NotExamined]);
    }

    #[test]
    fn fuzz_status_any_text_of_a_process_is_counted_once_or_called_unread() {
        let seeds = [
            status("S (sleeping)", 0xa804_25fb, 0xa804_25fb, 0),
            status("R (running)", 0x01ff_ffff_ffff, 0x01ff_ffff_ffff, 1),
            "Name:\tsh\n".to_owned(),
        ];
        impound_fuzz::run("status", &seeds.map(String::into_bytes), |_, bytes| {
            let mut tally = Tally::default();
            tally.add(42, &String::from_utf8_lossy(&bytes));
            assert!(tally.net_admin.len() + tally.net_admin_obtainable.len() <= 1);
            assert!(tally.net_raw.len() + tally.net_raw_obtainable.len() <= 1);
            let examined = tally.net_admin.len() + tally.net_raw.len() + tally.sys_admin.len();
            assert!(tally.not_examined.is_empty() || examined == 0);
            let mut found = Vec::new();
            tally.report(&mut found);
            for weakness in found {
                assert!(!weakness.detail.contains(char::is_control), "{weakness:?}");
            }
        });
    }
}
