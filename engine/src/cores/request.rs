//! Everything that can cross from one core to another. This enum is the whole list.

use crate::{
    blob::{
        Body, Home, Link, Result,
        source::{Chunk, Follower},
    },
    digest::{Digest, HASH_BYTES},
    shard::Holdings,
};
use bytes::Bytes;
use std::{
    fs::File,
    sync::{Arc, atomic::AtomicU64},
};
use tokio::sync::{oneshot, watch};

/// Where the owner puts its answer. Dropped by a client that went away.
pub(super) type Reply<T> = oneshot::Sender<T>;

/// Names an upload in parts: the hash of its resource name.
pub(super) type UploadName = Box<[u8; 32]>;

/// The key of an action's result: a hash over the instance and the action's digest.
pub(super) type ActionKey = Box<[u8; 32]>;

/// What one may ask the owner of a digest.
pub(super) enum Request {
    FindMissing { digests: Vec<Digest>, reply: Reply<Result<Vec<Digest>>> },
    Get { digest: Digest, reply: Reply<Result<Body>> },
    GetMany { digests: Vec<Digest>, reply: Reply<Vec<Result<Bytes>>> },
    Put { digest: Digest, bytes: Bytes, reply: Reply<Result<()>> },
    PutMany { blobs: Vec<(Digest, Bytes)>, reply: Reply<Vec<Result<()>>> },
    Read { digest: Digest, size_max: u64, reply: Reply<Result<Bytes>> },
    Attach { name: UploadName, digest: Digest, reply: Reply<Result<Attached>> },
    Park { name: UploadName, attached: Attached },
    Fill { digest: Digest, chunks: async_channel::Receiver<Chunk>, follower: Follower },
    UploadStatus { name: UploadName, reply: Reply<Option<u64>> },
    Checked { digest: Digest, home: Home, good: bool },
    Link { wanted: Vec<(Digest, bool)>, reply: Reply<Result<Vec<Link>>> },
    Adopt { digest: Digest, file: File, executable: bool, reply: Reply<Result<()>> },
    GetAction { key: ActionKey, reply: Reply<Result<Option<StoredAction>>> },
    PutAction { key: ActionKey, bytes: Bytes, reply: Reply<Result<()>> },
    CompleteAction { key: ActionKey, record: (u32, u32), generation: u64 },
    Hold { blobs: Vec<Digest>, results: Vec<[u8; HASH_BYTES]>, seconds: u32, reply: Reply<()> },
    Count { reply: Reply<CoreCounts> },
}

// A request is moved through a queue twice, and every inbox holds thousands: keep it small.
const _: () = assert!(size_of::<Request>() <= 96);

/// The sending end of an upload, held by one connection at a time.
pub(super) struct Attached {
    pub(super) chunks: async_channel::Sender<Chunk>,
    pub(super) committed: Arc<AtomicU64>,
    pub(super) outcome: watch::Receiver<Option<Result<()>>>,
}

/// What a core does and holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreCounts {
    /// Requests that it serves.
    pub in_flight: usize,
    /// Blobs that come to it in parts.
    pub uploads: usize,
    /// What its shard holds.
    pub holdings: Holdings,
}

/// How a core's inbox is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboxCounts {
    /// Requests that wait in it.
    pub len: usize,
    /// As many may.
    pub len_max: usize,
    /// Blobs that its shard has lost since the start: damaged, or evicted although promised.
    pub losses: u64,
}

/// An encoded ActionResult as the owner keeps it.
#[derive(Clone, Debug)]
pub struct StoredAction {
    /// The encoded message.
    pub bytes: Bytes,
    /// The loss generation at which every blob it names was last seen present; 0 = never.
    pub complete_at: u64,
    /// Which of all results that this action had.
    pub(crate) record: (u32, u32),
}
