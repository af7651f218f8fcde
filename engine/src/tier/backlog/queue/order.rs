//! Which of the ready items fly next. Must never look further than the next flight: however long
//! the queue is, choosing costs the same.

use super::{Entry, event::Config};
use crate::tier::backlog::{Item, log::Numbered};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The ready items, by kind and number.
#[derive(Default)]
pub(super) struct Ready {
    small: BTreeSet<u64>,
    large: BTreeSet<u64>,
    actions: BTreeSet<u64>,
    /// Blobs, ready or flying, that were not tried to the end yet. An action waits for those
    /// before it: it would only find them missing.
    fresh: BTreeSet<u64>,
    /// Where the last flight ended. While nothing succeeds, others have their turn, lest the
    /// first ones alone decide whether below is there; else it is rewound before each flight.
    cursor: u64,
}

impl Ready {
    /// An item that was never tried.
    pub(super) fn insert_fresh(&mut self, number: u64, item: &Item, small_bytes_max: u64) {
        self.insert(number, item, small_bytes_max);
        if let Item::Blob(_) = item {
            self.fresh.insert(number);
        }
    }

    /// An item that is to be tried again.
    pub(super) fn insert(&mut self, number: u64, item: &Item, small_bytes_max: u64) {
        self.fresh.remove(&number);
        let set = match item {
            Item::Blob(digest) if digest.size() <= small_bytes_max => &mut self.small,
            Item::Blob(_) => &mut self.large,
            Item::Action { .. } => &mut self.actions,
        };
        set.insert(number);
    }

    /// Takes an item out, and lets nobody wait for it.
    pub(super) fn remove(&mut self, number: u64) {
        for set in [&mut self.small, &mut self.large, &mut self.actions, &mut self.fresh] {
            set.remove(&number);
        }
    }

    /// Whether nothing is ready.
    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty() && self.actions.is_empty()
    }

    /// The next flight begins with the oldest.
    pub(super) const fn rewind(&mut self) {
        self.cursor = 0;
    }

    /// Takes out what flies next: small blobs, a large one or an action; nothing where all that
    /// is left waits for what flies.
    pub(super) fn next(&mut self, config: &Config, items: &BTreeMap<u64, Entry>) -> Vec<Numbered> {
        let Some(first) = self.first().or_else(|| {
            self.rewind();
            self.first()
        }) else {
            return Vec::new();
        };
        let mut flight = Vec::new();
        let mut room = config.batch_bytes_max;
        if self.small.contains(&first) {
            for number in self.small.range(first..).take(config.batch_len_max) {
                let Some(entry) = items.get(number) else { continue };
                let Item::Blob(digest) = *entry.item else { continue };
                let Some(left) = room.checked_sub(digest.size()) else { break };
                room = left;
                flight.push((*number, Arc::clone(&entry.item)));
            }
        } else if let Some(entry) = items.get(&first) {
            flight.push((first, Arc::clone(&entry.item)));
        }
        for (number, _) in &flight {
            self.small.remove(number);
            self.large.remove(number);
            self.actions.remove(number);
            self.cursor = number + 1;
        }
        flight
    }

    fn first(&self) -> Option<u64> {
        let barrier = self.fresh.first().copied().unwrap_or(u64::MAX);
        let from = |set: &BTreeSet<u64>| set.range(self.cursor..).next().copied();
        let action = from(&self.actions).filter(|number| *number < barrier);
        [from(&self.small), from(&self.large), action].into_iter().flatten().min()
    }
}
