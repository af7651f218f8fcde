//! Owns what a node asks at its start: does the sandbox work here, and if not, why. Never a
//! smaller sandbox: the probe runs in the one that actions get.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use crate::child::Ended;
use crate::spawner::{SpawnError, Spawner};
use crate::spec::{Limits, Mount, Spec};
use crate::sys;

/// Far above the milliseconds that it takes.
const TIME_MAX: Duration = Duration::from_secs(30);

/// Why actions cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No directory to run in.
    #[error("cannot prepare the probe's directory")]
    Scratch(#[source] io::Error),
    /// The spawner.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A step of the sandbox.
    #[error("the sandbox cannot be built here: {0}")]
    Step(#[source] crate::StepFailure),
    /// The program did not run well: most likely the mounts do not hold what it needs.
    #[error("`true` did not succeed in the sandbox: {0}")]
    Program(String),
}

/// Runs `true` in a full sandbox, in a fresh directory below `scratch`.
pub fn probe(
    spawner: &Spawner,
    scratch: &Path,
    uid: u32,
    gid: u32,
    mounts: Vec<Mount>,
) -> Result<(), ProbeError> {
    let root = scratch.join(format!("sandbox-probe-{}", std::process::id()));
    fs::create_dir(&root).map_err(ProbeError::Scratch)?;
    let outcome = chown(&root, Some(uid), Some(gid)).map_err(ProbeError::Scratch).and_then(|()| {
        let limits = Limits {
            file_bytes_max: 1 << 20,
            open_files_max: 64,
            processes_max: 16,
            tmp_bytes_max: 1 << 20,
            tmp_inodes_max: 64,
        };
        let spec = Spec {
            root: root.clone(),
            working_directory: String::new(),
            arguments: vec!["true".to_owned()],
            environment: Vec::new(),
            uid,
            gid,
            mounts,
            network: false,
            limits,
        };
        run(spawner, &spec)
    });
    let removed = fs::remove_dir(&root).map_err(ProbeError::Scratch);
    outcome.and(removed)
}

fn run(spawner: &Spawner, spec: &Spec) -> Result<(), ProbeError> {
    let null = fs::File::options().write(true).open("/dev/null").map_err(ProbeError::Scratch)?;
    let mut child = spawner.spawn(spec, null.as_fd(), null.as_fd())?;
    match child.wait(Some(TIME_MAX), None)? {
        Ended::Exited(report) if report.exit_code == 0 => Ok(()),
        Ended::Failed(failure) => Err(ProbeError::Step(failure)),
        other => Err(ProbeError::Program(format!("{other:?}"))),
    }
}

/// The version of Landlock that the kernel speaks; None without Landlock.
pub fn landlock_abi() -> Option<u32> {
    sys::landlock_version()
}

/// How many user namespaces this user may have; None where the kernel does not say, Some(0) where
/// they are forbidden.
pub fn user_namespaces_max() -> Option<u64> {
    fs::read_to_string("/proc/sys/user/max_user_namespaces").ok()?.trim().parse().ok()
}
