//! What each shard of a store uses and may keep: written by the shards and by the janitor on the
//! control core, read by both. Must never be what a shard decides alone by: it says how much has to
//! go, not what.

use crossbeam_utils::CachePadded;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Notify;

/// All shards of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Usage {
    shards: Arc<[CachePadded<ShardUsage>]>,
    /// A write waits for room.
    asked: Arc<Notify>,
}

/// One shard. Bytes are those on disk.
#[derive(Debug)]
struct ShardUsage {
    bytes: AtomicU64,
    files: AtomicU64,
    wanted: AtomicU64,
    keep_bytes: AtomicU64,
    keep_files: AtomicU64,
    promised_bytes: AtomicU64,
    /// It may keep less than before, or a write of its own waits for room.
    pressed: Notify,
}

/// How much one shard may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes; what is beyond them goes as far as nobody was promised it.
    pub bytes: u64,
    /// Files; the same.
    pub files: u64,
    /// Bytes; what is beyond them goes, promised or not.
    pub promised_bytes: u64,
}

impl Allowance {
    /// As much as there is.
    pub const ALL: Self = Self { bytes: u64::MAX, files: u64::MAX, promised_bytes: u64::MAX };
}

impl Usage {
    /// Of `shards` empty shards that may keep everything.
    #[must_use]
    pub fn new(shards: u16) -> Self {
        let all = || AtomicU64::new(u64::MAX);
        let shard = |_| {
            CachePadded::new(ShardUsage {
                bytes: AtomicU64::new(0),
                files: AtomicU64::new(0),
                wanted: AtomicU64::new(0),
                keep_bytes: all(),
                keep_files: all(),
                promised_bytes: all(),
                pressed: Notify::new(),
            })
        };
        Self { shards: (0..shards).map(shard).collect(), asked: Arc::default() }
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Bytes and files of one shard; nothing where there is no such shard.
    #[must_use]
    pub fn of(&self, shard: usize) -> (u64, u64) {
        self.shards.get(shard).map_or((0, 0), |shard| {
            (shard.bytes.load(Ordering::Relaxed), shard.files.load(Ordering::Relaxed))
        })
    }

    /// Bytes that writes of all shards wait for.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        self.shards.iter().map(|shard| shard.wanted.load(Ordering::Relaxed)).sum()
    }

    /// Bytes of all shards.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Says how much a shard may keep from here on.
    pub fn allow(&self, shard: usize, allowance: Allowance) {
        if let Some(shard) = self.shards.get(shard) {
            shard.keep_bytes.store(allowance.bytes, Ordering::Relaxed);
            shard.keep_files.store(allowance.files, Ordering::Relaxed);
            shard.promised_bytes.store(allowance.promised_bytes, Ordering::Relaxed);
            if allowance != Allowance::ALL {
                shard.pressed.notify_one();
            }
        }
    }

    /// Ends when a write waits for room, in whichever shard.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Ends when a shard may have to let something go.
    pub(super) async fn pressed(&self, shard: usize) {
        self.shards[shard].pressed.notified().await;
    }

    /// A write of a shard waits for room.
    pub(super) fn press(&self, shard: usize) {
        self.asked.notify_one();
        self.shards[shard].pressed.notify_one();
    }

    /// How much a shard may keep.
    #[must_use]
    pub fn allowance(&self, shard: usize) -> Allowance {
        self.shards.get(shard).map_or(Allowance::ALL, |shard| Allowance {
            bytes: shard.keep_bytes.load(Ordering::Relaxed),
            files: shard.keep_files.load(Ordering::Relaxed),
            promised_bytes: shard.promised_bytes.load(Ordering::Relaxed),
        })
    }

    pub(super) fn add_bytes(&self, shard: usize, bytes: u64) {
        self.shards[shard].bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub_bytes(&self, shard: usize, bytes: u64) {
        subtract(&self.shards[shard].bytes, bytes);
    }

    pub(super) fn add_files(&self, shard: usize, files: u64) {
        self.shards[shard].files.fetch_add(files, Ordering::Relaxed);
    }

    pub(super) fn sub_files(&self, shard: usize, files: u64) {
        subtract(&self.shards[shard].files, files);
    }

    pub(super) fn add_wanted(&self, shard: usize, bytes: u64) {
        self.shards[shard].wanted.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub_wanted(&self, shard: usize, bytes: u64) {
        subtract(&self.shards[shard].wanted, bytes);
    }
}

/// Each counter has one writer, its shard: nothing is lost between the two steps.
fn subtract(counter: &AtomicU64, value: u64) {
    let now = counter.load(Ordering::Relaxed).saturating_sub(value);
    counter.store(now, Ordering::Relaxed);
}
