//! What waits, most urgent first: all of it for this node's slots, and the part of it that may be
//! given to peers.
//!
//! Must never choose a peer.

use super::event::PeerId;
use std::collections::{BTreeMap, BTreeSet};

/// The number of a run in order of arrival, which it keeps when it is handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrival(pub(super) u64);

/// A place in the queue; the order of the fields is the order of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) priority: i32,
    pub(super) arrival: Arrival,
}

/// To whom a run may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Offer {
    /// It stays here.
    Nobody,
    /// Any peer.
    Anybody,
    /// Any but the one that failed it, unless there is no other.
    NotTo(PeerId),
}

/// The queue. Its bound is the scheduler's to keep.
#[derive(Default)]
pub(super) struct Queue {
    places: BTreeSet<Place>,
    /// The same without those that stay, by whom they may not go to: no set is empty, and there
    /// are no more of them than peers that have failed something that waits.
    offers: BTreeMap<Offer, BTreeSet<Place>>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn first(&self) -> Option<Place> {
        self.places.first().copied()
    }

    pub(super) fn insert(&mut self, place: Place, offer: Offer) {
        self.places.insert(place);
        if offer != Offer::Nobody {
            self.offers.entry(offer).or_default().insert(place);
        }
    }

    pub(super) fn remove(&mut self, place: Place, offer: Offer) {
        self.places.remove(&place);
        if let Some(offered) = self.offers.get_mut(&offer) {
            offered.remove(&place);
            if offered.is_empty() {
                self.offers.remove(&offer);
            }
        }
    }

    /// The most urgent of each kind of offer, most urgent first.
    pub(super) fn offered(&self) -> Vec<(Place, Offer)> {
        let firsts = self.offers.iter().filter_map(|(&offer, places)| {
            let place = places.first().copied()?;
            Some((place, offer))
        });
        let mut firsts: Vec<_> = firsts.collect();
        firsts.sort_unstable();
        firsts
    }
}
