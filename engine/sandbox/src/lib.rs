//! Owns the running of somebody else's program: namespaces, mounts, Landlock, seccomp, limits,
//! and the only unsafe code of the repository (`sys.rs`).
//!
//! ```text
//! node ──control socket──► spawner ──clone3──► init (pid 1) ──fork──► action
//!   └──── pidfd, report socket (one pair for each action) ────┘
//! ```
//!
//! The node never forks: it asks the spawner, a single-threaded process started before any thread
//! exists. Never runs a program outside of the sandbox: there is no switch for that here.
//!
//! Invariant: when [`Child::wait`] has returned, no process of the action is alive.

mod action;
mod child;
mod exec;
mod generated;
mod identity;
mod init;
mod landlock;
mod lease;
mod limits;
mod mounts;
mod network;
mod probe;
mod proc;
mod seccomp;
mod serve;
mod spawner;
mod spec;
mod step;
mod sys;
mod wire;

pub use child::{Child, Ended};
pub use lease::no_writer_is_left;
pub use probe::{ProbeError, landlock_abi, probe, user_namespaces_max};
#[doc(hidden)]
pub use seccomp::denied_errno;
pub use serve::spawner_main;
pub use spawner::{SpawnError, Spawner};
pub use spec::{Limits, Mount, Report, Spec};
pub use step::{Step, StepFailure};

/// The argument that makes the program a spawner; `main` then calls [`spawner_main`].
pub const SPAWNER_ARGUMENT: &str = "sandbox-spawner";

/// Where an action finds its input root.
pub const EXEC_ROOT: &str = "/exec";

/// User and group of every action as it sees itself.
pub const INSIDE_ID: u32 = 1000;

/// PATH of a command that brings none, as of a login shell.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
