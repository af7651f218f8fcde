//! Owns the second lock on the file system, and the scopes of signals and abstract sockets. Never
//! the only lock: Landlock has no right for chmod, chown, utimes or setxattr.

use std::os::fd::BorrowedFd;

use ::landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use nix::libc;
use rustix::fs::FileType;

use crate::action::Streams;
use crate::mounts::{DEVICES, SCRATCH};
use crate::step::{Step, StepFailure};
use crate::{EXEC_ROOT, sys};

/// What Linux 6.1 has, without which there is no start.
const REQUIRED: ABI = ABI::V2;

/// What is used where the kernel has it: truncation, device ioctls, scopes.
const WANTED: ABI = ABI::V6;

/// Reading and executing everywhere, writing where the mounts allow it too.
pub(crate) fn restrict(streams: Streams<'_>) -> Result<(), StepFailure> {
    let failure = |error: RulesetError| {
        // The crate's text says more than an errno, which it keeps to itself.
        StepFailure::new(Step::Landlock, libc::EPERM, error.to_string())
    };
    if sys::landlock_version().is_none() {
        return Err(StepFailure::new(Step::Landlock, libc::ENOSYS, "no Landlock in this kernel"));
    }
    let mut ruleset = create().map_err(failure)?;
    ruleset = allow(ruleset, "/", AccessFs::from_read(WANTED))?;
    for directory in [EXEC_ROOT].into_iter().chain(SCRATCH) {
        let access = AccessFs::from_all(WANTED) & !without();
        ruleset = allow(ruleset, directory, access)?;
    }
    for device in DEVICES {
        let access = AccessFs::from_file(WANTED) & !AccessFs::Execute;
        ruleset = allow(ruleset, &format!("/dev/{device}"), access)?;
    }
    for stream in [streams.0, streams.1] {
        ruleset = allow_reopening(ruleset, stream).map_err(failure)?;
    }
    ruleset.restrict_self().map_err(failure)?;
    Ok(())
}

fn create() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(REQUIRED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()
}

/// Never granted, wherever: an action makes no device and commands none.
fn without() -> BitFlags<AccessFs> {
    AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev
}

fn allow(
    ruleset: RulesetCreated,
    path: &str,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, StepFailure> {
    let failed = |text: String| StepFailure::new(Step::Landlock, libc::EPERM, text);
    let opened = PathFd::new(path).map_err(|error| failed(error.to_string()))?;
    ruleset.add_rule(PathBeneath::new(opened, access)).map_err(|error| failed(error.to_string()))
}

/// `> /dev/stderr` in a script opens the stream's file anew, which lies outside of the root.
fn allow_reopening(
    ruleset: RulesetCreated,
    stream: BorrowedFd<'_>,
) -> Result<RulesetCreated, RulesetError> {
    let regular = rustix::fs::fstat(stream)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    if !regular {
        // The kernel takes no rule for a pipe, and needs none.
        return Ok(ruleset);
    }
    let access = AccessFs::from_file(WANTED) & !(AccessFs::Execute | AccessFs::IoctlDev);
    ruleset.add_rule(PathBeneath::new(stream, access))
}
