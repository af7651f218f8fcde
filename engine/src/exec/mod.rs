//! From an Action to an ActionResult: [`Executions`] is the handle, `schedule` the loop that owns
//! the scheduler, workers the threads that run actions.
//!
//! Invariant: the scheduler decides, workers do; neither calls the other.
//! Invariant: every operation that was accepted ends exactly once.

mod errand;
mod handle;
mod ingest;
mod inputs;
mod message;
mod outputs;
mod prepare;
mod schedule;
mod scheduler;
mod tree;
mod worker;

pub use self::{
    errand::{Errand, ErrandEnd, Load, PeerCapacity},
    handle::{
        Executions, ExecutionsConfig, Listening, OperationName, OperationState, Stage, Started,
        Workers, start,
    },
    message::{check_message_size, decode_message},
    prepare::{Prepared, is_plain_path, platform, prepare},
    scheduler::{Counters as OffloadCounts, Snapshot as ScheduleCounts},
    worker::{SandboxConfig, clear_roots},
};

use crate::{blob::BlobError, digest::Digest};
use prost_types::Timestamp;
use proto::reapi::{ActionResult, ExecutedActionMetadata};
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Bounds of one action. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct ExecLimits {
    /// How long an action may execute where it does not say.
    pub timeout_default: Duration,
    /// The longest an action may ask for.
    pub timeout_max: Duration,
    /// Files, directories and symlinks of one input root.
    pub input_files_max: u64,
    /// Bytes of one input root's files.
    pub input_bytes_max: u64,
    /// Files, directories and symlinks of one action's outputs.
    pub output_files_max: usize,
    /// Bytes of one output file; all files of one action together may have `input_bytes_max`.
    pub output_bytes_max: u64,
    /// Bytes kept of stdout, and of stderr.
    pub stream_bytes_max: u64,
    /// Bytes of an Action, a Command, or all Directories of a tree.
    pub tree_bytes_max: u64,
    /// Directories in one tree.
    pub tree_directories_max: usize,
}

impl ExecLimits {
    #[cfg(test)]
    fn for_tests() -> Self {
        Self {
            timeout_default: Duration::from_secs(60),
            timeout_max: Duration::from_secs(600),
            input_files_max: 100_000,
            input_bytes_max: 1 << 40,
            output_files_max: 1000,
            output_bytes_max: 1 << 30,
            stream_bytes_max: 1 << 20,
            tree_bytes_max: 1 << 24,
            tree_directories_max: 10_000,
        }
    }
}

/// Why an action has no result, or was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExecError {
    /// Something in the action, its command or its inputs is malformed or not supported.
    #[error("{0}")]
    Invalid(String),
    /// More than a bound of [`ExecLimits`] allows.
    #[error("{0}")]
    TooLarge(String),
    /// These blobs are absent; the client may upload them and ask again.
    #[error("{} blobs are missing, {} among them", .0.len(), listed(.0))]
    Missing(Vec<Digest>),
    /// No worker can do it, now or later.
    #[error("{0}")]
    NoWorker(String),
    /// What the action wrote is not what it promised.
    #[error("{0}")]
    Output(String),
    /// The action executed for longer than it may.
    #[error("the action's timeout has passed")]
    TimedOut,
    /// A client said so, or nobody waited any more.
    #[error("the execution was cancelled")]
    Cancelled,
    /// Too much is queued; may be asked again.
    #[error("too many actions are queued")]
    Overloaded,
    /// The node stops; may be asked again, elsewhere.
    #[error("the node is draining")]
    Draining,
    /// There is no such operation here.
    #[error("there is no operation {0:?}")]
    NoOperation(String),
    /// The node failed, not the action; may be asked again.
    #[error("worker: {0}")]
    Worker(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] BlobError),
    /// The disk failed.
    #[error("disk: {0}")]
    Disk(Arc<io::Error>),
}

/// A few digests, for people.
fn listed(digests: &[Digest]) -> String {
    let few: Vec<String> = digests.iter().take(2).map(Digest::to_string).collect();
    few.join(", ")
}

impl ExecError {
    /// A blob that went away between two looks at it is a missing input.
    fn from_missing(error: BlobError) -> Self {
        match error {
            BlobError::NotFound(digest) => Self::Missing(vec![digest]),
            other => Self::Store(other),
        }
    }
}

impl From<io::Error> for ExecError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull => Self::Store(BlobError::Full),
            _ => Self::Disk(Arc::new(error)),
        }
    }
}

impl From<rustix::io::Errno> for ExecError {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// How an execution ended.
#[derive(Clone, Debug, Default)]
pub struct ExecuteOutcome {
    /// What there is of a result; where there is an error too, it is for people to read.
    pub result: Option<ActionResult>,
    /// Why it is no success of the service; a program that exits with 1 is no error.
    pub error: Option<ExecError>,
    /// Whether it came from the action cache.
    pub cached: bool,
}

/// What a worker or a peer says while it is at work.
#[derive(Clone, Copy, Debug)]
enum RunProgress {
    Accepted,
    Executing(Timestamps),
}

/// When an action went through each step of its life, by the wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timestamps {
    queued: Option<SystemTime>,
    worker_start: Option<SystemTime>,
    worker_completed: Option<SystemTime>,
    input_fetch_start: Option<SystemTime>,
    input_fetch_completed: Option<SystemTime>,
    execution_start: Option<SystemTime>,
    execution_completed: Option<SystemTime>,
    output_upload_start: Option<SystemTime>,
    output_upload_completed: Option<SystemTime>,
}

impl Timestamps {
    fn queued(at: SystemTime) -> Self {
        Self { queued: Some(at), ..Self::default() }
    }

    /// Of a worker elsewhere, as far as its action has come.
    fn of(metadata: &ExecutedActionMetadata) -> Self {
        let at = |stamp: &Option<Timestamp>| stamp.and_then(|at| SystemTime::try_from(at).ok());
        Self {
            queued: at(&metadata.queued_timestamp),
            worker_start: at(&metadata.worker_start_timestamp),
            worker_completed: at(&metadata.worker_completed_timestamp),
            input_fetch_start: at(&metadata.input_fetch_start_timestamp),
            input_fetch_completed: at(&metadata.input_fetch_completed_timestamp),
            execution_start: at(&metadata.execution_start_timestamp),
            execution_completed: at(&metadata.execution_completed_timestamp),
            output_upload_start: at(&metadata.output_upload_start_timestamp),
            output_upload_completed: at(&metadata.output_upload_completed_timestamp),
        }
    }

    /// As REAPI has them, of the worker `worker`.
    #[must_use]
    pub fn metadata(&self, worker: &str) -> ExecutedActionMetadata {
        let stamp = |at: Option<SystemTime>| at.map(Timestamp::from);
        let took = match (self.execution_start, self.execution_completed) {
            (Some(start), Some(end)) => end.duration_since(start).ok(),
            _ => None,
        };
        ExecutedActionMetadata {
            worker: worker.to_owned(),
            queued_timestamp: stamp(self.queued),
            worker_start_timestamp: stamp(self.worker_start),
            worker_completed_timestamp: stamp(self.worker_completed),
            input_fetch_start_timestamp: stamp(self.input_fetch_start),
            input_fetch_completed_timestamp: stamp(self.input_fetch_completed),
            execution_start_timestamp: stamp(self.execution_start),
            execution_completed_timestamp: stamp(self.execution_completed),
            virtual_execution_duration: took.and_then(|took| took.try_into().ok()),
            output_upload_start_timestamp: stamp(self.output_upload_start),
            output_upload_completed_timestamp: stamp(self.output_upload_completed),
            auxiliary_metadata: Vec::new(),
        }
    }
}
