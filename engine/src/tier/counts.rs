//! What a tier did, counted where it is done, read by metrics. Must never decide anything.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts `more`.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one tier did since the node started.
#[derive(Debug, Default)]
pub struct TierCounts {
    /// Blobs brought here.
    pub fetched: Count,
    /// Their bytes.
    pub fetched_bytes: Count,
    /// Requests that joined a fetch which another had begun.
    pub joined: Count,
    /// Blobs that it did not have.
    pub absent: Count,
    /// Blobs not asked for, because it did not have them a moment ago.
    pub absent_remembered: Count,
    /// Blobs whose bytes were wrong.
    pub wrong: Count,
    /// Fetches that ended before the last byte and went on where they were.
    pub resumed: Count,
    /// Fetches that nobody waited for any more.
    pub left: Count,
    /// Blobs written below.
    pub pushed: Count,
    /// Their bytes.
    pub pushed_bytes: Count,
    /// Requests that failed because it could not be asked.
    pub failed: Count,
    /// Results found there and complete.
    pub results: Count,
}
