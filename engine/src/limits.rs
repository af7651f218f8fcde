//! Every bound inside a node's engine. Must never hold a default: those live in the configuration.

use std::time::Duration;

/// Bounds of one node. Sizes in bytes; counts per core where the name of the owner is a core's.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests that wait in one core's inbox; beyond it the caller is refused.
    pub inbox_len_max: usize,
    /// Requests that one core serves at the same time.
    pub in_flight_max: usize,
    /// Uploads in parts that one core keeps open.
    pub uploads_max: usize,
    /// How long an upload may make no progress before it is dropped.
    pub upload_idle: Duration,
    /// Largest blob accepted.
    pub blob_bytes_max: u64,
    /// Largest encoded Tree, Directory, Action or Command that is read whole.
    pub tree_bytes_max: u64,
    /// Directories in one tree.
    pub tree_directories_max: usize,
}

/// Chunks that wait between a connection and the owner of its upload.
pub const UPLOAD_CHUNKS_MAX: usize = 16;

/// Bytes of all chunks that wait between connections and owners; beyond it, uploads wait.
pub const UPLOAD_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes in which large blobs are read.
pub const IO_BYTES: usize = 256 * 1024;

/// Bytes gathered before one write of a large blob.
pub const WRITE_BYTES: usize = 256 * 1024;

/// Bytes of records that may wait for one segment write; beyond it the caller is refused.
pub const APPEND_BYTES_MAX: usize = 64 * 1024 * 1024;
