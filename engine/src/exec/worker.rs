//! A thread that runs one action at a time, in straight-line code: read, lay out, spawn, wait,
//! kill, collect, cache, clean up. Must never publish a result before all its blobs are kept, nor
//! collect while a process of the action is alive.

use super::{
    ExecError, ExecLimits, ExecuteOutcome, RunProgress, Timestamps,
    inputs::InputTree,
    outputs::Collector,
    prepare::Prepared,
    scheduler::event::RunId,
    tree::{self, Owner, make_directory},
};
use crate::{cores::Cores, env::clock::Clock, tier::action_cache::TreeBounds};
use bytes::Bytes;
use futures_lite::future::block_on;
use proto::reapi::ActionResult;
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};
use sandbox::{Ended, SpawnError, Spawner, Spec};
use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What every worker of a node shares.
pub(super) struct Workshop {
    pub(super) cores: Cores,
    pub(super) limits: ExecLimits,
    pub(super) spawner: Spawner,
    pub(super) sandbox: SandboxConfig,
    /// Where execution roots are made: on the store's file system.
    pub(super) directory: PathBuf,
    pub(super) node_id: Arc<str>,
    pub(super) clock: Clock,
}

/// What the sandbox of every action is made of.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// What actions see of the host, read-only.
    pub mounts: Vec<sandbox::Mount>,
    /// Bounds of one action.
    pub limits: sandbox::Limits,
    /// Whether actions have the host's network.
    pub network: bool,
    /// The user of the first slot where this process is root; the next slot's is one more.
    pub uid_first: u32,
}

/// One action that was given to a worker.
pub(super) struct Job {
    pub(super) run: RunId,
    pub(super) prepared: Arc<Prepared>,
    pub(super) queued: SystemTime,
    /// Readable once the action is to be ended.
    pub(super) cancel: Arc<OwnedFd>,
}

impl Workshop {
    /// The user under which the actions of a slot run.
    fn owner(&self, slot: usize) -> Owner {
        let user = rustix::process::geteuid();
        if !user.is_root() {
            return Owner { id: user.as_raw() };
        }
        let slot = u32::try_from(slot).expect("slots are bounded by the configuration");
        Owner { id: self.sandbox.uid_first + slot }
    }

    /// One action from its inputs to its result.
    pub(super) fn run(
        &self,
        slot: usize,
        job: &Job,
        progress: &dyn Fn(RunProgress),
    ) -> ExecuteOutcome {
        let mut times = Timestamps::queued(job.queued);
        times.worker_start = Some(self.clock.wall());
        let owner = self.owner(slot);
        let mut result = ActionResult::default();
        let root = self.directory.join(root_name(slot, job));
        let attempt = Attempt { root: &root, owner, job };
        let ended = self.run_in(&attempt, &mut times, &mut result, progress);
        times.worker_completed = Some(self.clock.wall());
        result.execution_metadata = Some(times.metadata(&self.node_id));
        let error = ended.err();
        if error.is_none() {
            // The outputs are kept and the client can have them: it is a later one that pays.
            let bounds = TreeBounds {
                bytes_max: self.limits.tree_bytes_max,
                directories_max: self.limits.tree_directories_max,
            };
            if let Err(error) = block_on(job.prepared.keep(&result, bounds)) {
                tracing::warn!(action = %job.prepared.digest, %error, "a result was not kept");
            }
        }
        ExecuteOutcome { result: Some(result), error, cached: false }
    }

    fn run_in(
        &self,
        attempt: &Attempt<'_>,
        times: &mut Timestamps,
        result: &mut ActionResult,
        progress: &dyn Fn(RunProgress),
    ) -> Result<(), ExecError> {
        let Attempt { owner, job, .. } = *attempt;
        times.input_fetch_start = Some(self.clock.wall());
        let tree = InputTree::read(&job.prepared, &self.limits)?;
        make_directory(rustix::fs::CWD, attempt.root, owner)?;
        tree.lay_out(&self.cores, attempt.root, owner)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(attempt.root, flags, Mode::empty())?;
        prepare_root(&root, &job.prepared, owner)?;
        let (stdout, stderr) = (self.stream(owner)?, self.stream(owner)?);
        times.input_fetch_completed = Some(self.clock.wall());
        progress(RunProgress::Executing(*times));
        times.execution_start = Some(self.clock.wall());
        let ended = self.execute(attempt, &stdout, &stderr);
        times.execution_completed = Some(self.clock.wall());
        if let Ok(Ended::Exited(report)) = &ended {
            let at = |nanoseconds| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
            times.execution_start = Some(at(report.started_unix_nanoseconds));
            times.execution_completed = Some(at(report.ended_unix_nanoseconds));
            result.exit_code = report.exit_code;
        }
        let failure = failure(ended);
        times.output_upload_start = Some(self.clock.wall());
        let mut collector = Collector::new(&self.cores, &self.limits, &root, &job.cancel);
        let streams = self.streams(&mut collector, stdout, stderr, result);
        let collected = match &failure {
            Ok(()) => {
                let Prepared { working_directory, outputs, .. } = &*job.prepared;
                collector.collect(working_directory, outputs, result)
            }
            Err(_) => Ok(()),
        };
        let flushed = collector.flush();
        times.output_upload_completed = Some(self.clock.wall());
        failure.and(streams).and(collected).and(flushed)
    }

    /// Where the action's output goes: a file without a name.
    fn stream(&self, owner: Owner) -> Result<File, ExecError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.directory, flags, Mode::from_raw_mode(0o600))?;
        owner.give(&file)?;
        Ok(File::from(file))
    }

    fn execute(
        &self,
        attempt: &Attempt<'_>,
        stdout: &File,
        stderr: &File,
    ) -> Result<Ended, ExecError> {
        let Attempt { root, owner, job } = *attempt;
        let prepared = &job.prepared;
        let spec = Spec {
            root: root.to_owned(),
            working_directory: prepared.working_directory.clone(),
            arguments: prepared.arguments.clone(),
            environment: prepared.environment.clone(),
            uid: owner.id,
            gid: if owner.is_another() { owner.id } else { rustix::process::getegid().as_raw() },
            mounts: self.sandbox.mounts.clone(),
            network: self.sandbox.network,
            limits: self.sandbox.limits,
        };
        let child = self.spawner.spawn(&spec, stdout.as_fd(), stderr.as_fd());
        let mut child = child.map_err(not_spawned)?;
        let ended = child.wait(Some(prepared.timeout), Some(job.cancel.as_fd()));
        ended.map_err(|error| ExecError::Worker(error.to_string()))
    }

    /// What the action said, into the result.
    fn streams(
        &self,
        collector: &mut Collector<'_>,
        stdout: File,
        stderr: File,
        result: &mut ActionResult,
    ) -> Result<(), ExecError> {
        result.stdout_digest = self.said(collector, stdout)?;
        result.stderr_digest = self.said(collector, stderr)?;
        Ok(())
    }

    fn said(
        &self,
        collector: &mut Collector<'_>,
        mut file: File,
    ) -> Result<Option<proto::reapi::Digest>, ExecError> {
        let bound = self.limits.stream_bytes_max;
        let length = file.metadata()?.len();
        file.rewind()?;
        let mut bytes = Vec::with_capacity(usize::try_from(length.min(bound)).unwrap_or(0) + 64);
        file.take(bound).read_to_end(&mut bytes)?;
        if length > bound {
            let note = format!("\n[cut here: {length} bytes were written, {bound} are kept]\n");
            bytes.extend_from_slice(note.as_bytes());
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let digest = collector.bytes(Bytes::from(bytes))?;
        Ok(Some(proto::reapi::Digest { hash: digest.hex(), size_bytes: digest.size_i64() }))
    }

    /// Removes what an action leaves; to be called once its client has been told.
    pub(super) fn clean_up(&self, slot: usize, job: &Job) {
        let name = root_name(slot, job);
        match tree::remove(&self.directory, &name) {
            Ok(()) => {}
            // It ended before its root was made.
            Err(ExecError::Disk(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(root = name, %error, "an execution root could not be removed");
            }
        }
    }
}

/// The name of an execution root; no two actions of a process have the same.
fn root_name(slot: usize, job: &Job) -> String {
    format!("{}-{slot}", job.run.0)
}

/// One action on its way through a worker.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    root: &'a Path,
    owner: Owner,
    job: &'a Job,
}

/// Removes what an earlier process left in the directory of execution roots.
///
/// # Errors
/// As readdir(3), unlinkat(2).
pub fn clear_roots(directory: &Path) -> Result<(), ExecError> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type()?.is_dir() {
            true => tree::remove(directory, &name)?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Why an action did not start.
///
/// # Panics
/// Where the spawner has ended: no action can start in this process any more, and a node that
/// goes on would fail every one of them while it says that it serves.
fn not_spawned(error: SpawnError) -> ExecError {
    if matches!(error, SpawnError::SpawnerGone) {
        tracing::error!("the sandbox spawner has ended; this node can execute nothing");
        panic!("the sandbox spawner has ended");
    }
    ExecError::Worker(error.to_string())
}

/// What went wrong, if the action did not end by itself.
fn failure(ended: Result<Ended, ExecError>) -> Result<(), ExecError> {
    match ended? {
        Ended::Exited(_) => Ok(()),
        Ended::TimedOut => Err(ExecError::TimedOut),
        Ended::Cancelled => Err(ExecError::Cancelled),
        // A working directory that is a file, a command line that is too long: the same again
        // on any worker.
        Ended::Failed(step)
            if matches!(step.step, sandbox::Step::WorkingDirectory | sandbox::Step::Exec) =>
        {
            Err(ExecError::Invalid(format!("the command can't be started: {step}")))
        }
        Ended::Failed(step) => Err(ExecError::Worker(format!("sandbox: {step}"))),
    }
}

/// Makes the directories in which outputs will lie.
fn prepare_root(root: &OwnedFd, prepared: &Prepared, owner: Owner) -> Result<(), ExecError> {
    let Prepared { working_directory, outputs, .. } = prepared;
    let here = match working_directory.as_str() {
        "" => rustix::fs::openat(root, ".", OFlags::DIRECTORY, Mode::empty()),
        path => open_beneath(root, path),
    };
    let here = here.map_err(|_| {
        let message = format!("working directory {working_directory:?} is not in the inputs");
        ExecError::Invalid(message)
    })?;
    for output in &outputs.paths {
        let Some((parent, _)) = output.path.rsplit_once('/') else { continue };
        make_directories(&here, parent, owner)?;
    }
    Ok(())
}

fn open_beneath(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// Makes each directory of a path that is not there. What stands in its way (a file, a symlink)
/// is the action's affair: it may fail, the node must not.
fn make_directories(here: &OwnedFd, path: &str, owner: Owner) -> Result<(), ExecError> {
    let mut at = here.try_clone()?;
    for name in path.split('/') {
        match make_directory(&at, name, owner) {
            Ok(()) => {}
            Err(ExecError::Disk(error)) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(other) => return Err(other),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&at, name, flags, Mode::empty()) {
            Ok(next) => at = next,
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
