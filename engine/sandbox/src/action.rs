//! Owns the last steps before somebody else's program runs: streams, session, the two filters.
//! Composes only. Never returns but with a failure.

use std::convert::Infallible;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::fs::Mode;

use crate::seccomp::Filter;
use crate::spec::Spec;
use crate::step::{At, Step, StepFailure};
use crate::{EXEC_ROOT, exec, landlock, limits, sys};

/// Standard output and error of the action.
pub(crate) type Streams<'a> = (BorrowedFd<'a>, BorrowedFd<'a>);

/// Turns this process into the action's program.
pub(crate) fn become_program(
    spec: &Spec,
    streams: Streams<'_>,
    filter: &Filter,
) -> Result<Infallible, StepFailure> {
    session(streams).at(Step::Session)?; // only fds 0, 1 and 2 survive the exec
    let directory = Path::new(EXEC_ROOT).join(&spec.working_directory);
    rustix::process::chdir(&directory).at_path(Step::WorkingDirectory, &directory)?;
    let command = exec::Command::of(spec)?;
    landlock::restrict(streams)?; // second lock on the doors that the mounts shut
    limits::apply(&spec.limits)?; // after the last open of ours
    filter.install()?; // last: it forbids calls of ours
    exec::replace(&command)
}

fn session(streams: Streams<'_>) -> std::io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::stdio::dup2_stdout(streams.0)?;
    rustix::stdio::dup2_stderr(streams.1)?;
    sys::close_on_exec_from(3)?;
    sys::default_signals()?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}
