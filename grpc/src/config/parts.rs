//! What each part of the node needs to know, in the standard library's types. Plain values: each
//! part takes its own, and nobody takes the whole. Must never hold a default or an `Option`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub(crate) use super::units::CpuChoice;

/// Where clients connect, and how much one request may bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerConfig {
    /// Address to listen on; port 0 lets the kernel choose.
    pub(crate) listen: SocketAddr,
    /// Connections open at once, whole node.
    pub(crate) connections_max: usize,
    /// HTTP/2 streams open at once on one connection.
    pub(crate) streams_max: u32,
    /// Bytes of the headers of one request.
    pub(crate) header_bytes_max: u32,
    /// Bytes of one request message; larger than `batch_bytes_max`.
    pub(crate) message_bytes_max: usize,
    /// Bytes of the blobs in one batch, together.
    pub(crate) batch_bytes_max: usize,
    /// Digests in one FindMissingBlobs.
    pub(crate) find_missing_digests_max: usize,
    /// Instance names that are served; empty serves every name.
    pub(crate) instances: Vec<String>,
    /// Time from the signal to stop until what still runs is given up.
    pub(crate) grace: Duration,
}

/// Blobs and action results on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreSettings {
    /// Directory of all data, as it was said.
    pub(crate) directory: PathBuf,
    /// Bytes that blobs may take; 0 = down to `free_bytes_min`.
    pub(crate) bytes_max: u64,
    /// Bytes of the disk that stay free.
    pub(crate) free_bytes_min: u64,
    /// Bytes of a segment.
    pub(crate) segment_bytes: u64,
    /// Bytes of the largest blob in a segment; at most a quarter of one.
    pub(crate) small_blob_bytes_max: u64,
    /// Bytes of the largest blob that is accepted.
    pub(crate) blob_bytes_max: u64,
    /// Time for which a blob stays after a client was told that it is present.
    pub(crate) lease: Duration,
    /// When an upload is acknowledged.
    pub(crate) durability: Durability,
    /// Bytes that are read again in a second in search of damage; 0 = none.
    pub(crate) scrub_bytes_per_second: u64,
}

/// When an upload is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// When written; a power failure may lose the last second.
    Epoch,
    /// When durable.
    Sync,
}

/// Which CPU does what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuSettings {
    /// CPUs of the data cores.
    pub(crate) data: CpuChoice,
    /// CPUs of the control core.
    pub(crate) control: CpuChoice,
    /// CPUs on which actions run.
    pub(crate) actions: CpuChoice,
    /// Shards of the store; 0 = one for each data CPU.
    pub(crate) shards: usize,
}

/// Bounds inside the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LimitSettings {
    /// Requests that wait for one data core.
    pub(crate) inbox_len_max: usize,
    /// Requests that one data core serves at once.
    pub(crate) in_flight_max: usize,
    /// Uploads open at once on one data core.
    pub(crate) uploads_max: usize,
    /// Time without a byte after which an unfinished upload is dropped.
    pub(crate) upload_idle: Duration,
    /// Bytes of all directories of one tree.
    pub(crate) tree_bytes_max: u64,
    /// Directories of one tree.
    pub(crate) tree_directories_max: usize,
}

/// Running actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecutionSettings {
    /// False: a cache only.
    pub(crate) enabled: bool,
    /// Actions running at once; 0 = one for each CPU of actions.
    pub(crate) slots: usize,
    /// Actions that wait for a slot.
    pub(crate) queue_max: usize,
    /// Time limit of an action that names none; at most `timeout_max`.
    pub(crate) timeout_default: Duration,
    /// Longest time limit that an action may ask for.
    pub(crate) timeout_max: Duration,
    /// Files in one input root.
    pub(crate) input_files_max: usize,
    /// Bytes of all files in one input root.
    pub(crate) input_bytes_max: u64,
    /// Files that one action may give back.
    pub(crate) output_files_max: usize,
    /// Bytes of one file that an action writes.
    pub(crate) output_bytes_max: u64,
    /// Bytes of stdout, and of stderr, that are kept.
    pub(crate) stream_bytes_max: u64,
    /// Time for which a finished operation is remembered.
    pub(crate) operations_kept: Duration,
    /// Operations known at once; at least `queue_max`.
    pub(crate) operations_max: usize,
    /// Name of this node in operation names; never empty.
    pub(crate) node_id: String,
}

/// The walls around an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxSettings {
    /// Absolute paths that an action sees, read-only; some may not exist.
    pub(crate) toolchain: Vec<PathBuf>,
    /// First of the user ids of actions.
    pub(crate) uid_first: u32,
    /// Files that one process may have open.
    pub(crate) open_files_max: u64,
    /// Processes and threads of one action.
    pub(crate) processes_max: u64,
    /// Bytes in the `/tmp` of one action.
    pub(crate) tmp_bytes_max: u64,
    /// Files and directories in the `/tmp` of one action.
    pub(crate) tmp_inodes_max: u64,
    /// True: the host's network is reachable.
    pub(crate) network: bool,
}

/// What the node says on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogSettings {
    /// Least important thing that is said.
    pub(crate) level: LogLevel,
    /// Form of a line.
    pub(crate) format: LogFormat,
}

/// Importance of a line of log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// Something was lost or refused by our fault.
    Error,
    /// Somebody should look.
    Warn,
    /// Start, stop and what changes in between.
    Info,
    /// Each request.
    Debug,
    /// Each step.
    Trace,
}

/// Form of a line of log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}
