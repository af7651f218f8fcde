//! Owns the node's end of the spawner: starting it, and asking it for an action. Never forks the
//! node itself once threads run: that is what the spawner is for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::child::{self, Child};
use crate::spec::Spec;
use crate::step::StepFailure;
use crate::wire::{self, Notice, Order, Request};

/// How long a program may take to say that it is a spawner.
const START_TIME_MAX: Duration = Duration::from_secs(10);

/// Why an action did not start, or cannot be waited for. Always the node's trouble, never the
/// action's.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The spawner did not start.
    #[error("cannot start the sandbox spawner")]
    Start(#[source] io::Error),
    /// The spawner started and says that it cannot serve.
    #[error("the sandbox spawner cannot serve: {0}")]
    Unfit(String),
    /// The spawner has ended; only a new one helps.
    #[error("the sandbox spawner is gone")]
    SpawnerGone,
    /// A socket or an anonymous file failed.
    #[error("cannot talk to the sandbox spawner")]
    Talk(#[source] io::Error),
    /// The spawner could not make this sandbox.
    #[error("the sandbox spawner refused")]
    Refused(#[source] StepFailure),
}

/// A running spawner. Dropping it ends the spawner and every action it started.
#[derive(Debug)]
pub struct Spawner {
    // None only while dropping.
    control: Option<OwnedFd>,
    process: std::process::Child,
}

impl Spawner {
    /// Starts the program that is running as a spawner. Call it on the main thread before any
    /// other thread exists; `main` must begin with [`crate::spawner_main`].
    pub fn start() -> Result<Spawner, SpawnError> {
        Spawner::start_at(Path::new("/proc/self/exe"))
    }

    /// As [`Spawner::start`], with another program.
    pub fn start_at(program: &Path) -> Result<Spawner, SpawnError> {
        let (near, far) = wire::pair().map_err(SpawnError::Start)?;
        let process = Command::new(program)
            .arg(crate::SPAWNER_ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(far))
            .stdout(Stdio::null())
            .spawn()
            .map_err(SpawnError::Start)?;
        let spawner = Spawner { control: Some(near), process };
        spawner.greet()?;
        Ok(spawner)
    }

    /// Starts an action. It runs when this returns; `stdout` and `stderr` are its streams.
    pub fn spawn(
        &self,
        spec: &Spec,
        stdout: BorrowedFd<'_>,
        stderr: BorrowedFd<'_>,
    ) -> Result<Child, SpawnError> {
        let file = wire::spec_to_file(spec).map_err(SpawnError::Talk)?;
        let (near, far) = wire::pair().map_err(SpawnError::Talk)?;
        let order = Order { uid: spec.uid, gid: spec.gid, network: spec.network };
        let descriptors = [file.as_fd(), stdout, stderr, far.as_fd()];
        wire::send(self.control(), &Request::Spawn(order), &descriptors).map_err(talk)?;
        // Else the end of the sandbox would not be the end of the report socket.
        drop(far);
        match wire::receive(near.as_fd()).map_err(SpawnError::Talk)? {
            None => Err(SpawnError::SpawnerGone),
            Some((Notice::Failed(failure), _)) => Err(SpawnError::Refused(failure)),
            Some((Notice::Started, mut descriptors)) => match descriptors.pop() {
                Some(pidfd) => Ok(Child::of(pidfd, near)),
                None => Err(SpawnError::Talk(io::ErrorKind::InvalidData.into())),
            },
            Some(_) => Err(SpawnError::Talk(io::ErrorKind::InvalidData.into())),
        }
    }

    fn greet(&self) -> Result<(), SpawnError> {
        let from_main_thread = rustix::thread::gettid() == rustix::process::getpid();
        wire::send(self.control(), &Request::Hello { from_main_thread }, &[]).map_err(talk)?;
        if !child::readable(self.control(), Some(START_TIME_MAX)).map_err(SpawnError::Start)? {
            return Err(SpawnError::Start(io::ErrorKind::TimedOut.into()));
        }
        match wire::receive(self.control()).map_err(SpawnError::Start)? {
            Some((Notice::Ready, _)) => Ok(()),
            Some((Notice::Unfit(why), _)) => Err(SpawnError::Unfit(why)),
            Some(_) => Err(SpawnError::Start(io::ErrorKind::InvalidData.into())),
            None => Err(SpawnError::SpawnerGone),
        }
    }

    fn control(&self) -> BorrowedFd<'_> {
        self.control.as_ref().expect("taken by drop alone").as_fd()
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        // The spawner ends when this end of the socket closes, and no zombie must stay.
        drop(self.control.take());
        let _ = self.process.wait();
    }
}

fn talk(error: io::Error) -> SpawnError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => SpawnError::SpawnerGone,
        _ => SpawnError::Talk(error),
    }
}
