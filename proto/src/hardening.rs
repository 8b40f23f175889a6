//! What every program does first that holds a key: its memory stays its own.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Keeps the process's memory, keys in it, from core dumps and from other processes of the same user
/// (`ptrace`, `/proc/PID/mem`, `/proc/PID/environ`). A process with `CAP_SYS_PTRACE` can still look.
///
/// # Errors
/// If the kernel refuses, which it does to nobody.
pub fn protect_memory() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // A core dump that is piped to a program is not stopped by the limit, but by this.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
