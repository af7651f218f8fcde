//! What the store uses, and what is promised to writes under way. Must never promise the same
//! space twice.

use super::{Shard, usage::Usage};
use crate::blob::{BlobError, Result};
use futures_util::future::select;
use std::{cell::Cell, pin::pin, time::Duration};
use tokio::sync::Notify;

/// How often the file system is asked what is free.
const FREE_CHECK: Duration = Duration::from_secs(1);
/// How long a write waits for eviction to make room before it is refused.
const FULL_WAIT: Duration = Duration::from_secs(2);
/// Writes of one shard that wait so; beyond it they are refused at once, because reads need their
/// places among the requests in flight.
const FULL_WAITERS_MAX: usize = 256;

/// One shard's view of the disk's space.
pub(super) struct Space {
    usage: Usage,
    shard: usize,
    /// By writes of this shard that are under way.
    reserved: Cell<u64>,
    /// By writes of this shard that ended since the file system was asked.
    spent: Cell<u64>,
    /// When it was asked, and what was free.
    free: Cell<Option<(Duration, u64)>>,
    waiters: Cell<usize>,
    /// The last round of eviction had to free something and could not.
    hopeless: Cell<bool>,
    /// There is more room than before.
    freed: Notify,
}

/// Space that a write under way may take.
pub(super) struct Reservation<'a> {
    space: &'a Space,
    bytes: u64,
}

impl Space {
    pub(super) fn new(usage: Usage, shard: usize) -> Self {
        Self {
            usage,
            shard,
            reserved: Cell::new(0),
            spent: Cell::new(0),
            free: Cell::new(None),
            waiters: Cell::new(0),
            hopeless: Cell::new(false),
            freed: Notify::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn usage(&self) -> Usage {
        self.usage.clone()
    }

    pub(super) fn add(&self, bytes: u64) {
        self.usage.add_bytes(self.shard, bytes);
    }

    pub(super) fn sub(&self, bytes: u64) {
        self.usage.sub_bytes(self.shard, bytes);
    }

    /// A file of `bytes` on disk was made.
    pub(super) fn add_file(&self, bytes: u64) {
        self.add(bytes);
        self.usage.add_files(self.shard, 1);
    }

    /// A file of `bytes` on disk was removed.
    pub(super) fn sub_file(&self, bytes: u64) {
        self.sub(bytes);
        self.usage.sub_files(self.shard, 1);
    }

    /// Ends when something may have to go.
    pub(super) async fn pressed(&self) {
        self.usage.pressed(self.shard).await;
    }

    /// Bytes and files of this shard that are more than it may keep: those that nobody was
    /// promised, files, and those that go in any case.
    pub(super) fn excess(&self) -> (u64, u64, u64) {
        let (bytes, files) = self.usage.of(self.shard);
        let keep = self.usage.allowance(self.shard);
        (
            bytes.saturating_sub(keep.bytes),
            files.saturating_sub(keep.files),
            bytes.saturating_sub(keep.promised_bytes),
        )
    }

    /// A round of eviction ended: whether it made room where it had to.
    pub(super) fn tended(&self, room_was_made: bool) {
        self.hopeless.set(!room_was_made);
        // What the file system said was free is no longer true.
        self.free.set(None);
        self.freed.notify_waiters();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.space.reserved.set(self.space.reserved.get().saturating_sub(self.bytes));
        self.space.spent.set(self.space.spent.get().saturating_add(self.bytes));
    }
}

/// Counts one that waits, and what it waits for.
struct Waiter<'a> {
    space: &'a Space,
    bytes: u64,
}

impl<'a> Waiter<'a> {
    fn new(space: &'a Space, bytes: u64) -> Self {
        space.waiters.set(space.waiters.get() + 1);
        space.usage.add_wanted(space.shard, bytes);
        Self { space, bytes }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.space.waiters.set(self.space.waiters.get() - 1);
        self.space.usage.sub_wanted(self.space.shard, self.bytes);
    }
}

impl Shard {
    /// What the blobs of all shards take, in bytes.
    pub(super) fn space_used(&self) -> u64 {
        self.space.usage.bytes()
    }

    /// Space for a write of `bytes`, as long as the returned value lives. Waits a little where
    /// eviction is about to make room.
    pub(super) async fn reserve(&self, bytes: u64) -> Result<Reservation<'_>> {
        match self.reserve_now(bytes) {
            Err(BlobError::Full) => self.reserve_later(bytes).await,
            other => other,
        }
    }

    async fn reserve_later(&self, bytes: u64) -> Result<Reservation<'_>> {
        let space = &self.space;
        let never = self.config.bytes_max > 0 && bytes > self.config.bytes_max;
        if never || space.hopeless.get() || space.waiters.get() >= FULL_WAITERS_MAX {
            // Something may have become evictable since.
            space.usage.press(space.shard);
            return Err(BlobError::Full);
        }
        let _waiter = Waiter::new(space, bytes);
        let until = self.env.clock.now() + FULL_WAIT;
        loop {
            space.usage.press(space.shard);
            let left = until.saturating_sub(self.env.clock.now());
            select(pin!(space.freed.notified()), pin!(self.env.alarms.sleep(left))).await;
            match self.reserve_now(bytes) {
                Err(BlobError::Full) if self.env.clock.now() < until && !space.hopeless.get() => {}
                other => return other,
            }
        }
    }

    fn reserve_now(&self, bytes: u64) -> Result<Reservation<'_>> {
        let space = &self.space;
        let wanted = space.reserved.get().saturating_add(bytes);
        let used = self.space_used();
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
