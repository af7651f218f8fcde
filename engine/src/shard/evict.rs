//! What goes when a shard has more than it may keep: which blobs and results, and in which order.
//! Must never take what somebody was promised while there is anything else, nor hold the core up:
//! it looks through one part of the index at a time.
//!
//! Files go one by one. Records go by whole segments ([`super::carry`]): those of which the least
//! is to be kept go first, and at least half of each goes, so that no more is copied than is freed.

use super::{
    Shard,
    index::{Entry, PARTS, on_disk},
    survey::{Cutoff, Survey},
};
use crate::{blob::Home, digest::Digest};
use futures_lite::future::yield_now;
use futures_util::future::select;
use std::{collections::HashMap, pin::pin, time::Duration};

/// How often a shard looks whether it has too much.
const TICK: Duration = Duration::from_millis(100);
/// After a round that could free nothing, the next one waits at least as long: leases have to end
/// first. Twenty times what the round took, so that it costs a twentieth of the core.
const FRUITLESS_PAUSE: Duration = Duration::from_secs(1);
/// Blobs whose files are removed in one step.
const REMOVALS_MAX: usize = 64;

/// What a shard let go since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// Blobs that are absent by it.
    pub blobs: u64,
    /// Results of actions.
    pub results: u64,
    /// Bytes that it made room for.
    pub bytes: u64,
    /// Bytes of records that were copied to another segment so that theirs could go.
    pub carried_bytes: u64,
    /// Of the blobs, those that somebody had been promised.
    pub promises_broken: u64,
}

/// What of one segment is to stay.
#[derive(Clone, Copy, Default)]
struct Staying {
    bytes: u64,
    promised: u64,
}

impl Shard {
    /// Keeps the shard at what it may keep; never ends.
    pub(crate) async fn tend(&self) {
        loop {
            let pressed = pin!(self.space.pressed());
            select(pressed, pin!(self.env.alarms.sleep(TICK))).await;
            let (bytes, files, _) = self.space.excess();
            if bytes == 0 && files == 0 {
                continue;
            }
            let began = self.env.clock.now();
            let room_was_made = self.evict().await;
            self.space.tended(room_was_made);
            if !room_was_made {
                let took = self.env.clock.now().saturating_sub(began);
                self.env.alarms.sleep((took * 20).max(FRUITLESS_PAUSE)).await;
            }
        }
    }

    /// One round; whether it made room, or brought the next one nearer to that.
    pub(super) async fn evict(&self) -> bool {
        let before = self.evictions.get().bytes;
        let (bytes, files, in_any_case) = self.space.excess();
        let cutoff = self.survey().await.cutoff(bytes, files, in_any_case);
        self.evict_files(&cutoff).await;
        let (bytes, _, _) = self.space.excess();
        let sealed = bytes > 0 && self.evict_records(&cutoff, bytes).await;
        sealed || self.evictions.get().bytes > before
    }

    /// Looks at everything once.
    pub(super) async fn survey(&self) -> Survey {
        let mut survey = Survey::new(self.env.clock.seconds());
        for part in 0..PARTS {
            self.index.borrow().part(part).for_each(|entry| survey.blob(entry));
            for result in self.actions.borrow().part(part) {
                survey.result(result.used, result.record_bytes());
            }
            yield_now().await;
        }
        survey
    }

    /// Removes files until enough is free, or nothing more may go.
    async fn evict_files(&self, cutoff: &Cutoff) {
        for part in 0..PARTS {
            let going = |entry: &&Entry| entry.files().0 > 0 && cutoff.takes_files(entry);
            let found: Vec<Digest> =
                self.index.borrow().part(part).filter(going).map(Entry::digest).collect();
            for digests in found.chunks(REMOVALS_MAX) {
                let (bytes, files, _) = self.space.excess();
                if bytes == 0 && files == 0 {
                    return;
                }
                self.remove_files(digests, cutoff).await;
            }
            yield_now().await;
        }
    }

    /// Removes the files of those that are still to go.
    async fn remove_files(&self, digests: &[Digest], cutoff: &Cutoff) {
        let (mut removing, mut paths, mut freed) = (Vec::new(), Vec::new(), Vec::new());
        for digest in digests {
            let entry = self.index.borrow_mut().get_mut(digest).copied();
            // Used or promised since it was found.
            let Some(entry) = entry.filter(|entry| cutoff.takes_files(entry)) else { continue };
            let Some(guard) = self.names.removing(*digest) else { continue };
            removing.push(guard);
            for home in [Home::Plain, Home::Executable].into_iter().filter(|h| entry.has(*h)) {
                self.let_go(digest, home);
                paths.push(self.config.layout.blob(digest, home == Home::Executable));
                freed.push(on_disk(digest.size()));
            }
        }
        if let Err(error) = self.env.disk.remove_many(paths).await {
            tracing::error!(%error, "an evicted blob's file could not be removed");
        }
        freed.into_iter().for_each(|bytes| {
            self.space.sub_file(bytes);
            self.count(|evictions| evictions.bytes += bytes);
        });
    }

    /// Takes a home from the index that is about to go from the disk.
    pub(super) fn let_go(&self, digest: &Digest, home: Home) {
        let now = self.env.clock.seconds();
        let mut index = self.index.borrow_mut();
        let promised = index.get_mut(digest).is_some_and(|entry| entry.promised(now) > 0);
        if !index.lose(digest, home) {
            return;
        }
        if promised {
            // Who was told that it is here would find it gone.
            self.losses.add();
        }
        self.count(|evictions| {
            evictions.blobs += 1;
            evictions.promises_broken += u64::from(promised);
        });
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Evictions)) {
        let mut evictions = self.evictions.get();
        add(&mut evictions);
        self.evictions.set(evictions);
    }

    /// Lets segments go that make `wanted` bytes of room. Where none may go, the one that grows is
    /// sealed for the next round, if it may; whether it was.
    async fn evict_records(&self, cutoff: &Cutoff, wanted: u64) -> bool {
        let staying = self.staying(cutoff).await;
        let worth = |(id, bytes): (u32, u64)| {
            let stay = staying.get(&id).copied().unwrap_or_default();
            let carried = stay.bytes.min(bytes / 2).max(stay.promised);
            let freed = bytes.saturating_sub(carried);
            // Otherwise not worth the copying.
            (freed > carried / 2).then_some((id, bytes, freed))
        };
        let settled = self.segments.held.settled().into_iter();
        let mut victims: Vec<(u32, u64, u64)> = settled.filter_map(worth).collect();
        if victims.is_empty() {
            if self.segments.held.growing().and_then(worth).is_none() {
                return false;
            }
            return self.segments.rotate().await.unwrap_or_else(|error| {
                tracing::error!(%error, "the open segment could not be sealed");
                false
            });
        }
        // By the share that is freed, the most first.
        victims.sort_unstable_by(|(a, a_bytes, a_freed), (b, b_bytes, b_freed)| {
            let (left, right) = (b_freed * a_bytes, a_freed * b_bytes);
            left.cmp(&right).then(a.cmp(b))
        });
        let mut freed = 0;
        for (id, _, frees) in victims {
            if freed >= wanted {
                break;
            }
            if let Err(error) = self.empty_segment(id, cutoff).await {
                tracing::error!(segment = id, %error, "the segment could not be emptied");
                break;
            }
            freed += frees;
        }
        false
    }

    /// What is to stay of each segment.
    async fn staying(&self, cutoff: &Cutoff) -> HashMap<u32, Staying> {
        let mut all: HashMap<u32, Staying> = HashMap::new();
        for part in 0..PARTS {
            for entry in self.index.borrow().part(part) {
                let Some(place) = entry.place().filter(|_| !cutoff.takes(entry)) else { continue };
                let staying = all.entry(place.segment).or_default();
                staying.bytes += entry.record_bytes();
                if cutoff.keeps_promise(entry) {
                    staying.promised += entry.record_bytes();
                }
            }
            for result in self.actions.borrow().part(part) {
                if !cutoff.takes_result(result.used) {
                    all.entry(result.place.segment).or_default().bytes += result.record_bytes();
                }
            }
            yield_now().await;
        }
        all
    }
}
