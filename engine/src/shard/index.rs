//! Digest → place, size, last use, lease; and action key → place. In memory, one core's own.
//! Must never touch the disk: whether a blob is here is answered from this alone.

use crate::digest::{Digest, DigestFunction, HASH_BYTES};
use hashbrown::HashTable;

/// Where a record lies: a segment, and the position of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

/// A segment number that no segment has.
const NO_SEGMENT: u32 = u32::MAX;
const FILE_PLAIN: u8 = 1;
const FILE_EXECUTABLE: u8 = 2;
const VERIFIED: u8 = 4;

/// What is known of one blob. Kept small: a node holds tens of millions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    hash: [u8; HASH_BYTES],
    size: u64,
    place: Place,
    /// Seconds of the core's clock.
    pub(super) used: u32,
    /// The second until which the blob was promised to somebody.
    pub(super) leased: u32,
    function: DigestFunction,
    flags: u8,
}

const _: () = assert!(size_of::<Entry>() <= 64);

impl Entry {
    /// A blob in a segment.
    pub(super) fn in_segment(digest: &Digest, place: Place, verified: bool) -> Self {
        let mut entry = Self::nowhere(digest, verified);
        entry.place = place;
        entry
    }

    /// A blob in a file of its own.
    pub(super) fn in_file(digest: &Digest, executable: bool, verified: bool) -> Self {
        let mut entry = Self::nowhere(digest, verified);
        entry.set_file(executable);
        entry
    }

    fn nowhere(digest: &Digest, verified: bool) -> Self {
        Self {
            hash: *digest.hash(),
            size: digest.size(),
            place: Place { segment: NO_SEGMENT, offset: 0 },
            used: 0,
            leased: 0,
            function: digest.function(),
            flags: if verified { VERIFIED } else { 0 },
        }
    }

    pub(super) fn place(&self) -> Option<Place> {
        (self.place.segment != NO_SEGMENT).then_some(self.place)
    }

    pub(super) fn has_file(&self, executable: bool) -> bool {
        self.flags & if executable { FILE_EXECUTABLE } else { FILE_PLAIN } != 0
    }

    pub(super) fn set_file(&mut self, executable: bool) {
        self.flags |= if executable { FILE_EXECUTABLE } else { FILE_PLAIN };
    }

    pub(super) fn is_verified(&self) -> bool {
        self.flags & VERIFIED != 0
    }

    pub(super) fn set_verified(&mut self) {
        self.flags |= VERIFIED;
    }

    /// Takes over what another entry of the same blob knows.
    fn merge(&mut self, other: &Self) {
        if other.place().is_some() {
            self.place = other.place;
        }
        self.flags |= other.flags & (FILE_PLAIN | FILE_EXECUTABLE);
        if !other.is_verified() {
            self.flags &= !VERIFIED;
        }
        self.used = self.used.max(other.used);
        self.leased = self.leased.max(other.leased);
    }
}

/// The blobs of one shard.
#[derive(Default)]
pub(super) struct Index {
    table: HashTable<Entry>,
}

impl Index {
    #[cfg(test)]
    pub(super) fn get(&self, digest: &Digest) -> Option<&Entry> {
        self.table.find(spread(digest.hash()), |entry| is(entry, digest))
    }

    pub(super) fn get_mut(&mut self, digest: &Digest) -> Option<&mut Entry> {
        self.table.find_mut(spread(digest.hash()), |entry| is(entry, digest))
    }

    /// Adds a blob; what was known of it stays known.
    pub(super) fn insert(&mut self, digest: &Digest, entry: Entry) {
        match self.get_mut(digest) {
            Some(known) => known.merge(&entry),
            None => {
                self.table.insert_unique(spread(&entry.hash), entry, |entry| spread(&entry.hash));
            }
        }
    }

    pub(super) fn remove(&mut self, digest: &Digest) -> Option<Entry> {
        let found = self.table.find_entry(spread(digest.hash()), |entry| is(entry, digest));
        found.ok().map(|occupied| occupied.remove().0)
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}

fn is(entry: &Entry, digest: &Digest) -> bool {
    entry.hash == *digest.hash()
        && entry.size == digest.size()
        && entry.function == digest.function()
}

/// A hash is spread evenly already; its first bytes chose the shard, so others choose the slot.
fn spread(hash: &[u8; HASH_BYTES]) -> u64 {
    u64::from_le_bytes(hash[8..16].try_into().expect("eight bytes"))
}

/// Where one action's result lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct ActionEntry {
    pub(super) key: [u8; HASH_BYTES],
    pub(super) place: Place,
    pub(super) length: u32,
    /// The loss generation at which all its blobs were seen present; 0 = never.
    pub(super) complete_at: u64,
}

/// The results of one shard.
#[derive(Default)]
pub(super) struct ActionIndex {
    table: HashTable<ActionEntry>,
}

impl ActionIndex {
    pub(super) fn get_mut(&mut self, key: &[u8; HASH_BYTES]) -> Option<&mut ActionEntry> {
        self.table.find_mut(spread(key), |entry| entry.key == *key)
    }

    /// Adds a result, over any other of the same key.
    pub(super) fn insert(&mut self, entry: ActionEntry) {
        match self.get_mut(&entry.key) {
            Some(known) => *known = entry,
            None => {
                self.table.insert_unique(spread(&entry.key), entry, |entry| spread(&entry.key));
            }
        }
    }

    pub(super) fn remove(&mut self, key: &[u8; HASH_BYTES]) {
        if let Ok(occupied) = self.table.find_entry(spread(key), |entry| entry.key == *key) {
            occupied.remove();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_of_another_size_is_another_blob() {
        let digest = Digest::of(b"abc");
        let other = Digest::from_parts(digest.function(), *digest.hash(), 4);
        let mut index = Index::default();
        let place = Place { segment: 1, offset: 64 };
        index.insert(&digest, Entry::in_segment(&digest, place, true));
        assert!(index.get(&digest).is_some());
        assert!(index.get(&other).is_none());
    }

    #[test]
    fn a_blob_keeps_its_place_when_it_gets_a_file() {
        let digest = Digest::of(b"abc");
        let place = Place { segment: 1, offset: 64 };
        let mut index = Index::default();
        index.insert(&digest, Entry::in_segment(&digest, place, true));
        index.insert(&digest, Entry::in_file(&digest, true, true));
        let entry = index.get(&digest).unwrap();
        assert_eq!(entry.place(), Some(place));
        assert!(entry.has_file(true) && !entry.has_file(false) && entry.is_verified());
        assert_eq!(index.len(), 1);
        assert!(index.remove(&digest).is_some());
        assert_eq!(index.len(), 0);
    }
}
