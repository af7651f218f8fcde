//! Owns what the node says about an action, and what it hears back. Never checks a path: the
//! steps that use one do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One action, complete: nothing else decides what it sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The input root on the host; the action sees it as [`crate::EXEC_ROOT`], writable.
    pub root: PathBuf,
    /// Relative to `root`, already validated; empty means `root` itself.
    pub working_directory: String,
    /// The first one is looked up as a shell would, relative to the working directory.
    pub arguments: Vec<String>,
    /// Every variable of the action, except that a missing PATH is added.
    pub environment: Vec<(String, String)>,
    /// The host's user behind the action; must own nothing that outlives the action.
    pub uid: u32,
    /// The host's group behind the action.
    pub gid: u32,
    /// Toolchains, read-only, in this order: a later one may lie inside an earlier one.
    pub mounts: Vec<Mount>,
    /// Whether the action shares the host's network.
    pub network: bool,
    /// What it may use at most.
    pub limits: Limits,
}

/// A file or directory of the host that the action sees at the same path, read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute. A symlink is recreated as the same symlink, not followed.
    pub source: PathBuf,
    /// Whether a missing source is no failure.
    pub optional: bool,
}

/// Bounds that hold without cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest file, stdout and stderr included, in bytes; beyond it: SIGXFSZ.
    pub file_bytes_max: u64,
    /// Open files of one process.
    pub open_files_max: u64,
    /// Processes and threads of the action, its init included.
    pub processes_max: u64,
    /// Bytes in /tmp, /var/tmp and /dev/shm together.
    pub tmp_bytes_max: u64,
    /// Files in /tmp, /var/tmp and /dev/shm together.
    pub tmp_inodes_max: u64,
}

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The exit code, or 128 + the number of the signal.
    pub exit_code: i32,
    /// Processor time outside of the kernel.
    pub user_microseconds: u64,
    /// Processor time in the kernel.
    pub system_microseconds: u64,
    /// Resident memory of its largest process, in bytes.
    pub memory_bytes_max: u64,
    /// Wall clock before the program was started, nanoseconds since 1970.
    pub started_unix_nanoseconds: u64,
    /// Wall clock after it had ended, nanoseconds since 1970.
    pub ended_unix_nanoseconds: u64,
}
