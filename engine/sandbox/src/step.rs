//! Owns the names of the steps by which a sandbox is built, and how a failed one is told.
//! Never decides what a failure means for the caller.

use std::fmt;
use std::path::Path;

use nix::libc;
use serde::{Deserialize, Serialize};

/// Longest subject of a failure, in bytes: a failure must fit one datagram.
const SUBJECT_BYTES_MAX: usize = 1024;

/// A step of building the sandbox, in the order in which they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The spawner already has as many live actions as it may.
    Admit,
    /// Cloning into new namespaces.
    Isolate,
    /// Writing the user and group maps, and the OOM score.
    MapUser,
    /// Reading the spec.
    ReadSpec,
    /// Opening exec root and toolchains, with the rights of the node.
    OpenSources,
    /// Becoming the action's user.
    BecomeUser,
    /// Tying the life of the sandbox to the spawner's.
    TieLife,
    /// Making the empty root and leaving the host's behind.
    NewRoot,
    /// Placing exec root, toolchains, devices and scratch space.
    PlaceMounts,
    /// Mounting and masking /proc.
    Proc,
    /// Writing the generated files of /etc.
    Generate,
    /// Making the root read-only.
    SealRoot,
    /// Loopback and host name.
    Network,
    /// Dropping every capability.
    DropPrivileges,
    /// Forking the action off its init.
    Fork,
    /// Session, umask, streams, signals.
    Session,
    /// Entering the working directory: missing means that the action's command is wrong.
    WorkingDirectory,
    /// The Landlock ruleset.
    Landlock,
    /// Resource limits.
    Limits,
    /// The seccomp filter.
    Seccomp,
    /// Arguments that no program can be given.
    Exec,
    /// The sandbox was gone before it reported: killed from outside, say by the OOM killer.
    Vanished,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Admit => "admit the action",
            Step::Isolate => "clone into new namespaces",
            Step::MapUser => "map the action's user",
            Step::ReadSpec => "read the spec",
            Step::OpenSources => "open the mount sources",
            Step::BecomeUser => "become the action's user",
            Step::TieLife => "tie the sandbox to its spawner",
            Step::NewRoot => "make the new root",
            Step::PlaceMounts => "place the mounts",
            Step::Proc => "mount /proc",
            Step::Generate => "generate /etc",
            Step::SealRoot => "make the root read-only",
            Step::Network => "set up the network",
            Step::DropPrivileges => "drop privileges",
            Step::Fork => "fork the action",
            Step::Session => "set up the session",
            Step::WorkingDirectory => "enter the working directory",
            Step::Landlock => "install the Landlock ruleset",
            Step::Limits => "set the resource limits",
            Step::Seccomp => "install the seccomp filter",
            Step::Exec => "prepare the arguments",
            Step::Vanished => "wait for the report",
        })
    }
}

/// A step that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct StepFailure {
    /// Which step.
    pub step: Step,
    /// The kernel's answer.
    pub errno: i32,
    /// What it was about, say a path; may be empty.
    pub subject: String,
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.step)?;
        if !self.subject.is_empty() {
            write!(f, " ({})", self.subject)?;
        }
        write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))
    }
}

impl StepFailure {
    pub(crate) fn new(step: Step, errno: i32, subject: impl Into<String>) -> StepFailure {
        let mut subject = subject.into();
        while subject.len() > SUBJECT_BYTES_MAX {
            subject.pop();
        }
        StepFailure { step, errno, subject }
    }

    pub(crate) fn invalid(step: Step, subject: impl Into<String>) -> StepFailure {
        StepFailure::new(step, libc::EINVAL, subject)
    }
}

/// The errors of the three crates that make our system calls.
pub(crate) trait Number {
    fn number(&self) -> i32;
}

impl Number for rustix::io::Errno {
    fn number(&self) -> i32 {
        self.raw_os_error()
    }
}

impl Number for nix::errno::Errno {
    fn number(&self) -> i32 {
        *self as i32
    }
}

impl Number for std::io::Error {
    fn number(&self) -> i32 {
        self.raw_os_error().unwrap_or(libc::EIO)
    }
}

/// Gives an error the name of its step.
pub(crate) trait At<T> {
    fn at(self, step: Step) -> Result<T, StepFailure>;
    fn at_path(self, step: Step, subject: &Path) -> Result<T, StepFailure>;
}

impl<T, E: Number> At<T> for Result<T, E> {
    fn at(self, step: Step) -> Result<T, StepFailure> {
        self.map_err(|error| StepFailure::new(step, error.number(), ""))
    }

    fn at_path(self, step: Step, subject: &Path) -> Result<T, StepFailure> {
        self.map_err(|error| {
            StepFailure::new(step, error.number(), subject.to_string_lossy().into_owned())
        })
    }
}
