//! Owns the node's end of one action: waiting for it, and killing it. Never returns from a wait
//! while a process of the action is alive: the pidfd is that of the init, and the kernel lets an
//! init end only after everything in its pid namespace has.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::spawner::SpawnError;
use crate::spec::Report;
use crate::step::{Step, StepFailure};
use crate::wire::{self, Notice};

/// A running action. Dropping it kills the action, without waiting.
#[derive(Debug)]
pub struct Child {
    pidfd: OwnedFd,
    report: OwnedFd,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The program ended by itself.
    Exited(Report),
    /// Killed at the deadline.
    TimedOut,
    /// Killed because the caller asked.
    Cancelled,
    /// The sandbox could not be built, or died: the node's trouble.
    Failed(StepFailure),
}

enum Woken {
    Dead,
    TimedOut,
    Cancelled,
}

impl Child {
    pub(crate) fn of(pidfd: OwnedFd, report: OwnedFd) -> Child {
        Child { pidfd, report }
    }

    /// Waits until the action has ended, `deadline` has passed, or `cancel` is readable; in the
    /// last two cases the action is killed. An action that ended before it was killed has exited.
    pub fn wait(
        &mut self,
        deadline: Option<Duration>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Ended, SpawnError> {
        let woken = self.sleep(deadline, cancel).map_err(SpawnError::Talk)?;
        if !matches!(woken, Woken::Dead) {
            self.kill();
            readable(self.pidfd.as_fd(), None).map_err(SpawnError::Talk)?;
        }
        match wire::receive_waiting(self.report.as_fd()).map_err(SpawnError::Talk)? {
            Some((Notice::Ended(report), _)) => return Ok(Ended::Exited(report)),
            Some((Notice::Failed(failure), _)) => return Ok(Ended::Failed(failure)),
            _ => {}
        }
        Ok(match woken {
            Woken::TimedOut => Ended::TimedOut,
            Woken::Cancelled => Ended::Cancelled,
            Woken::Dead => Ended::Failed(StepFailure::new(Step::Vanished, libc::ECHILD, "")),
        })
    }

    /// Kills every process of the action, without waiting.
    pub fn kill(&self) {
        // ESRCH, the only error a pidfd of ours can give, means that it is dead already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn sleep(
        &self,
        deadline: Option<Duration>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> io::Result<Woken> {
        let started = Instant::now();
        let mut watched = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        if let Some(cancel) = &cancel {
            watched.push(PollFd::new(cancel, PollFlags::IN));
        }
        loop {
            let left = deadline.map(|deadline| deadline.saturating_sub(started.elapsed()));
            match poll(&mut watched, timespec(left).as_ref()) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(0) => return Ok(Woken::TimedOut),
                Ok(_) if !watched[0].revents().is_empty() => return Ok(Woken::Dead),
                Ok(_) => return Ok(Woken::Cancelled),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `fd` is readable or closed at its other end; false after `time_max`.
pub(crate) fn readable(fd: BorrowedFd<'_>, time_max: Option<Duration>) -> io::Result<bool> {
    let started = Instant::now();
    loop {
        let left = time_max.map(|time_max| time_max.saturating_sub(started.elapsed()));
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], timespec(left).as_ref()) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(ready) => return Ok(ready > 0),
        }
    }
}

fn timespec(left: Option<Duration>) -> Option<Timespec> {
    // A deadline that no timespec can hold is none.
    left.and_then(|left| Timespec::try_from(left).ok())
}
