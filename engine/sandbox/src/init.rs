//! Owns the life of pid 1 of a sandbox, from its first instruction to the report. Composes only:
//! each step is a call into the file of its barrier. Never outlives its spawner.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;

use crate::seccomp::Filter;
use crate::spec::Report;
use crate::step::{At, Step, StepFailure};
use crate::wire::{self, Notice};
use crate::{action, generated, identity, mounts, network, proc, sys};

/// What an init keeps of the spawner it was cloned from.
pub(crate) struct Inherited<'a> {
    /// One byte when the maps are written; closed unwritten when they could not be.
    pub(crate) wait: BorrowedFd<'a>,
    /// Closed when the spawner has ended.
    pub(crate) life: BorrowedFd<'a>,
    pub(crate) filter: &'a Filter,
    pub(crate) spec: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    pub(crate) report: BorrowedFd<'a>,
}

/// Builds the sandbox, runs the action, reports. Whatever still runs then, the kernel kills.
pub(crate) fn run(inherited: &Inherited<'_>) -> ! {
    let notice = match live(inherited) {
        Ok(report) => Notice::Ended(report),
        Err(failure) => Notice::Failed(failure),
    };
    // Without a listener there is nobody to tell.
    let _ = wire::send(inherited.report, &notice, &[]);
    sys::exit(0)
}

/// Every step, in this order. Each comment says what the next ones rely on.
fn live(inherited: &Inherited<'_>) -> Result<Report, StepFailure> {
    keep_only(inherited).at(Step::Isolate)?; // the control socket is gone
    wait_for_release(inherited.wait)?; // the maps are written
    let spec = wire::spec_from_file(inherited.spec).at(Step::ReadSpec)?;
    let sources = mounts::open_sources(&spec)?; // while paths of the node's user can be reached
    let texts = generated::Texts::gather(spec.network);
    identity::become_action_user()?; // before the mounts: their files then belong to the action
    tie_life(inherited.life)?; // after the change of user, which unties
    let root = mounts::new_root(&spec.limits)?;
    let proc = proc::create()?; // while the host's /proc is in sight, else the kernel refuses
    mounts::leave_host(&root)?; // from here on a path means one inside of the sandbox
    texts.write().at(Step::Generate)?;
    mounts::place(&root, sources)?;
    proc::place(proc)?;
    mounts::seal(&root)?;
    network::set_up(spec.network)?;
    identity::drop_privileges()?; // nothing below needs a capability
    let started = SystemTime::now();
    let main = match sys::fork().at(Step::Fork)? {
        Some(main) => main,
        None => become_action(&spec, inherited),
    };
    let exit_code = wait_for(main).at(Step::Vanished)?;
    report(exit_code, started).at(Step::Vanished)
}

fn become_action(spec: &crate::Spec, inherited: &Inherited<'_>) -> ! {
    let streams = (inherited.stdout, inherited.stderr);
    let outcome: Result<Infallible, _> = action::become_program(spec, streams, inherited.filter);
    let Err(failure) = outcome;
    // The node takes the first notice, so the report of this exit is not seen.
    let _ = wire::send(inherited.report, &Notice::Failed(failure), &[]);
    sys::exit(1)
}

/// Closes everything else, and points the standard streams at /dev/null: fd 0 is the spawner's
/// control socket.
fn keep_only(inherited: &Inherited<'_>) -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let Inherited { wait, life, spec, stdout, stderr, report, filter: _ } = inherited;
    let mut kept = [*wait, *life, *spec, *stdout, *stderr, *report].map(|fd| fd.as_raw_fd() as u32);
    kept.sort_unstable();
    // `null` is closed by the loop below, not by its owner.
    let _ = null.into_raw_fd();
    let mut next = 3;
    for fd in kept {
        if fd > next {
            sys::close_range(next, fd - 1)?;
        }
        next = fd + 1;
    }
    sys::close_range(next, u32::MAX)
}

fn wait_for_release(wait: BorrowedFd<'_>) -> Result<(), StepFailure> {
    let mut byte = [0_u8; 1];
    match retry_on_intr(|| rustix::io::read(wait, &mut byte)).at(Step::MapUser)? {
        1 => Ok(()),
        // The spawner has reported why, or is dead.
        _ => sys::exit(1),
    }
}

/// The kernel kills this process when the spawner ends. The pipe tells whether it ended before
/// the call.
fn tie_life(life: BorrowedFd<'_>) -> Result<(), StepFailure> {
    let signal = rustix::process::Signal::KILL;
    rustix::process::set_parent_process_death_signal(Some(signal)).at(Step::TieLife)?;
    let now = Some(std::time::Duration::ZERO);
    match crate::child::readable(life.as_fd(), now).at(Step::TieLife)? {
        false => Ok(()),
        true => sys::exit(1),
    }
}

/// Reaps every process of the sandbox until the main one has ended; gives its exit code.
fn wait_for(main: Pid) -> nix::Result<i32> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => return Ok(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                return Ok(128 + signal as i32);
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn report(exit_code: i32, started: SystemTime) -> nix::Result<Report> {
    let ended = SystemTime::now();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let count = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(Report {
        exit_code,
        user_microseconds: count(usage.user_time().num_microseconds()),
        system_microseconds: count(usage.system_time().num_microseconds()),
        memory_bytes_max: count(usage.max_rss()).saturating_mul(1024),
        started_unix_nanoseconds: nanoseconds(started),
        ended_unix_nanoseconds: nanoseconds(ended),
    })
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
