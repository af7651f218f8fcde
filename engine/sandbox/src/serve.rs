//! Owns the spawner process: single-threaded, it clones an init for each request and reaps it.
//! Never holds a writable descriptor of a file that somebody may execute, never reads a spec, and
//! ends when the node does.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::init;
use crate::seccomp::Filter;
use crate::step::{At, Step, StepFailure};
use crate::sys::{self, Cloned};
use crate::wire::{self, DESCRIPTORS_MAX, Notice, Order, Request};

/// Actions alive at a time, above what any node's slots are.
const LIVE_MAX: usize = 4096;

/// Of 1000: the kernel adds this share of all memory to what an action uses.
const OOM_SCORE: &str = "900";

/// Signals taken from a signalfd, or never: a Ctrl-C in the node's terminal must not end the
/// actions that the node still wants to drain.
const BLOCKED: [Signal; 5] =
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// The spawner's whole life. Call it in `main`, before anything else, when the first argument is
/// [`crate::SPAWNER_ARGUMENT`]; the control socket is standard input.
pub fn spawner_main() -> ! {
    let stdin = io::stdin();
    let control = stdin.as_fd();
    let outcome = match Server::prepare() {
        Ok(mut server) => server.serve(control),
        Err(error) => wire::send(control, &Notice::Unfit(error.to_string()), &[]),
    };
    if let Err(error) = outcome {
        let _ = writeln!(io::stderr(), "sandbox spawner: {error}");
        std::process::exit(1);
    }
    std::process::exit(0)
}

struct Server {
    filter: Filter,
    signals: SignalFd,
    /// Its write end lives as long as the spawner: how an init learns that it is an orphan.
    life: (OwnedFd, OwnedFd),
    /// Inits not yet reaped.
    live: BTreeSet<Pid>,
}

impl Server {
    fn prepare() -> io::Result<Server> {
        // Fails only for the leader of a process group, which then is alone in it already.
        let _ = rustix::process::setsid();
        sys::close_range(3, u32::MAX)?;
        if rustix::process::geteuid().is_root() {
            nix::unistd::setgroups(&[])?;
        }
        let blocked = BLOCKED.into_iter().collect::<SigSet>();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)?;
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Server {
            filter: Filter::compile().map_err(io::Error::other)?,
            signals: SignalFd::with_flags(&children, flags)?,
            life: pipe_with(PipeFlags::CLOEXEC)?,
            live: BTreeSet::new(),
        })
    }

    fn serve(&mut self, control: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let mut watched = [
                PollFd::new(&control, PollFlags::IN),
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            ];
            match poll(&mut watched, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let (asked, reap) =
                (!watched[0].revents().is_empty(), !watched[1].revents().is_empty());
            if reap {
                self.reap()?;
            }
            if asked {
                match wire::receive(control)? {
                    None => return Ok(()),
                    Some((Request::Hello { from_main_thread }, _)) => {
                        greet(control, from_main_thread)?;
                    }
                    Some((Request::Spawn(order), descriptors)) => self.answer(order, descriptors),
                }
            }
        }
    }

    /// Starts an action and says so on its report socket.
    fn answer(&mut self, order: Order, descriptors: Vec<OwnedFd>) {
        let Ok([spec, stdout, stderr, report]) =
            <[OwnedFd; DESCRIPTORS_MAX]>::try_from(descriptors)
        else {
            // Closing what did come tells the node.
            return;
        };
        let streams = Streams { spec, stdout, stderr, report };
        if let Err(failure) = self.start(order, &streams) {
            // A node that no longer listens has ended, and so will the spawner.
            let _ = wire::send(streams.report.as_fd(), &Notice::Failed(failure), &[]);
        }
    }

    fn start(&mut self, order: Order, streams: &Streams) -> Result<(), StepFailure> {
        if self.live.len() >= LIVE_MAX {
            return Err(StepFailure::new(Step::Admit, libc::EAGAIN, ""));
        }
        let (wait, release) = pipe_with(PipeFlags::CLOEXEC).at(Step::Isolate)?;
        let (pid, pidfd) = match sys::clone_into(namespaces(order)).at(Step::Isolate)? {
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
            Cloned::Child => init::run(&init::Inherited {
                wait: wait.as_fd(),
                life: self.life.0.as_fd(),
                filter: &self.filter,
                spec: streams.spec.as_fd(),
                stdout: streams.stdout.as_fd(),
                stderr: streams.stderr.as_fd(),
                report: streams.report.as_fd(),
            }),
        };
        self.live.insert(pid);
        // On failure `release` closes unwritten, by which the init knows to end.
        map_user(pid, order)?;
        wire::send(streams.report.as_fd(), &Notice::Started, &[pidfd.as_fd()]).at(Step::Isolate)?;
        rustix::io::write(&release, &[1]).at(Step::Isolate)?;
        Ok(())
    }

    fn reap(&mut self) -> io::Result<()> {
        // Signals are merged, so one may stand for many children.
        while self.signals.read_signal()?.is_some() {}
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(()),
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.live.remove(&pid);
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What came with a request.
struct Streams {
    spec: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    report: OwnedFd,
}

fn greet(control: BorrowedFd<'_>, from_main_thread: bool) -> io::Result<()> {
    if from_main_thread {
        // If the node died before this call, no signal comes, but the control socket is closed.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    wire::send(control, &Notice::Ready, &[])
}

fn namespaces(order: Order) -> u64 {
    let all = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let network = if order.network { 0 } else { libc::CLONE_NEWNET };
    (all | network) as u64
}

/// Maps exactly one user and one group: whoever owns the store does not exist inside.
fn map_user(pid: Pid, order: Order) -> Result<(), StepFailure> {
    let inside = crate::INSIDE_ID;
    // Without this an unprivileged node may not write gid_map; with it nobody can drop a group
    // that a file's mode shuts out.
    write_proc(pid, "setgroups", "deny")?;
    write_proc(pid, "uid_map", &format!("{inside} {} 1", order.uid))?;
    write_proc(pid, "gid_map", &format!("{inside} {} 1", order.gid))?;
    // When memory runs out, actions go first, whatever the node has set for itself.
    write_proc(pid, "oom_score_adj", OOM_SCORE)
}

fn write_proc(pid: Pid, file: &str, text: &str) -> Result<(), StepFailure> {
    let path = format!("/proc/{pid}/{file}");
    let written =
        File::options().write(true).open(&path).and_then(|mut f| f.write_all(text.as_bytes()));
    written.at_path(Step::MapUser, path.as_ref())
}
