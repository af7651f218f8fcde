//! What the store uses, and what is promised to writes under way. Must never promise the same
//! space twice.

use super::Shard;
use crate::blob::{BlobError, Result};
use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How often the file system is asked what is free.
const FREE_CHECK: Duration = Duration::from_secs(1);

/// One shard's view of the disk's space.
pub(super) struct Space {
    /// Of all shards.
    used: Arc<AtomicU64>,
    /// By writes of this shard that are under way.
    reserved: Cell<u64>,
    /// By writes of this shard that ended since the file system was asked.
    spent: Cell<u64>,
    /// When it was asked, and what was free.
    free: Cell<Option<(Duration, u64)>>,
}

/// Space that a write under way may take.
pub(super) struct Reservation<'a> {
    space: &'a Space,
    bytes: u64,
}

impl Space {
    pub(super) fn new(used: Arc<AtomicU64>) -> Self {
        let (reserved, spent) = (Cell::new(0), Cell::new(0));
        Self { used, reserved, spent, free: Cell::new(None) }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.space.reserved.set(self.space.reserved.get().saturating_sub(self.bytes));
        self.space.spent.set(self.space.spent.get().saturating_add(self.bytes));
    }
}

impl Shard {
    /// What the blobs of all shards take, in bytes.
    pub(super) fn space_used(&self) -> u64 {
        self.space.used.load(Ordering::Relaxed)
    }

    /// Space for a write of `bytes`, as long as the returned value lives.
    pub(super) fn reserve(&self, bytes: u64) -> Result<Reservation<'_>> {
        let space = &self.space;
        let wanted = space.reserved.get().saturating_add(bytes);
        let used = space.used.load(Ordering::Relaxed);
        if self.config.bytes_max > 0 && used.saturating_add(wanted) > self.config.bytes_max {
            return Err(BlobError::Full);
        }
        let now = self.env.clock.now();
        let free = match space.free.get() {
            Some((asked, free)) if now.saturating_sub(asked) <= FREE_CHECK => free,
            _ => {
                let free = self.env.disk.free_bytes(self.config.layout.root())?;
                space.free.set(Some((now, free)));
                space.spent.set(0);
                free
            }
        };
        let taken = wanted.saturating_add(space.spent.get());
        if free.saturating_sub(taken) < self.config.free_bytes_min || taken > free {
            return Err(BlobError::Full);
        }
        space.reserved.set(wanted);
        Ok(Reservation { space, bytes })
    }
}
