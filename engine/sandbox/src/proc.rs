//! Owns the action's /proc: one of its own pid namespace, with the kernel's own parts hidden.
//! Never shows a writable one of those.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::libc;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::mounts::{attach, detach_path, new_filesystem};
use crate::step::{At, Step, StepFailure};
use crate::sys;

/// Read as empty.
const HIDDEN: [&str; 8] = [
    "/proc/kcore",         // the kernel's memory
    "/proc/kallsyms",      // its addresses
    "/proc/keys",          // keys of other users
    "/proc/key-users",     // counts of them
    "/proc/latency_stats", // what other processes wait for
    "/proc/sched_debug",   // every process of the host
    "/proc/sysrq-trigger", // reboots
    "/proc/timer_list",    // addresses, and every timer of the host
];

/// Readable, since tools look things up there.
const READ_ONLY: [&str; 4] = ["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs"];

/// A detached /proc. The kernel allows one only while a complete one is in sight.
pub(crate) fn create() -> Result<OwnedFd, StepFailure> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    new_filesystem("proc", &[], attributes).at(Step::Proc)
}

/// Mounts it and hides what must be hidden.
pub(crate) fn place(proc: OwnedFd) -> Result<(), StepFailure> {
    std::fs::create_dir("/proc").at(Step::Proc)?;
    attach(proc.as_fd(), Path::new("/proc")).at(Step::Proc)?;
    for path in HIDDEN.map(Path::new) {
        present(rustix::mount::mount_bind("/dev/null", path)).at_path(Step::Proc, path)?;
    }
    for path in READ_ONLY.map(Path::new) {
        present(read_only(path)).at_path(Step::Proc, path)?;
    }
    Ok(())
}

fn read_only(path: &Path) -> rustix::io::Result<()> {
    let copy = detach_path(path)?;
    sys::add_mount_attributes(copy.as_fd(), libc::MOUNT_ATTR_RDONLY, true)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    attach(copy.as_fd(), path)
}

/// Which entries /proc has depends on how the kernel was built.
fn present(outcome: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match outcome {
        Err(Errno::NOENT) => Ok(()),
        outcome => outcome,
    }
}
