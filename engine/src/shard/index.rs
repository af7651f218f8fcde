//! Digest → place, size, last use, lease; and action key → place. In memory, one core's own.
//! Must never touch the disk: whether a blob is here is answered from this alone.
//!
//! Both are cut into [`PARTS`] tables, so that neither growing one nor looking through one holds a
//! core up for long.

use super::{layout::BLOCK_BYTES, segment};
use crate::{
    blob::Home,
    digest::{Digest, DigestFunction, HASH_BYTES},
};
use hashbrown::HashTable;

/// Tables of one index.
pub(super) const PARTS: usize = 256;
/// A blob that is used again after as many seconds was not merely used by those who brought it.
const AGAIN_SECONDS: u32 = 60;

/// Where a record lies: a segment, and the position of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

/// A segment number that no segment has.
const NO_SEGMENT: u32 = u32::MAX;

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
    homes: u8,
    /// Homes whose bytes were hashed since the node started.
    verified: u8,
    /// Whether it was used again, well after it came.
    again: bool,
}

const _: () = assert!(size_of::<Entry>() <= 64);

impl Entry {
    /// A blob in a segment.
    pub(super) fn in_segment(digest: &Digest, place: Place, verified: bool) -> Self {
        Self { place, ..Self::in_home(digest, Home::Segment, verified) }
    }

    /// A blob in a file of its own.
    pub(super) fn in_file(digest: &Digest, executable: bool, verified: bool) -> Self {
        Self::in_home(digest, Home::file(executable), verified)
    }

    fn in_home(digest: &Digest, home: Home, verified: bool) -> Self {
        Self {
            hash: *digest.hash(),
            size: digest.size(),
            place: Place { segment: NO_SEGMENT, offset: 0 },
            used: 0,
            leased: 0,
            function: digest.function(),
            homes: home.bit(),
            verified: if verified { home.bit() } else { 0 },
            again: false,
        }
    }

    /// The same, last used at `used`.
    pub(super) fn used_at(self, used: u32) -> Self {
        Self { used, ..self }
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::from_parts(self.function, self.hash, self.size)
    }

    /// Notes a use at `now`, and a promise until `leased`.
    pub(super) fn touch(&mut self, now: u32, leased: u32) {
        self.again |= self.used != 0 && now.saturating_sub(self.used) >= AGAIN_SECONDS;
        self.used = now;
        self.leased = self.leased.max(leased);
    }

    /// Seconds since its last use; of one that was used again, a quarter of them: what is wanted
    /// by several outlives what was brought once.
    pub(super) fn age(&self, now: u32) -> u32 {
        let age = now.saturating_sub(self.used);
        if self.again { age / 4 } else { age }
    }

    /// Seconds for which it is still promised.
    pub(super) fn promised(&self, now: u32) -> u32 {
        self.leased.saturating_sub(now)
    }

    /// Its files, and the bytes that they take on disk.
    pub(super) fn files(&self) -> (u64, u64) {
        let files = [Home::Plain, Home::Executable].into_iter().filter(|home| self.has(*home));
        let files = files.count() as u64;
        (files, files * on_disk(self.size))
    }

    /// Bytes that its record takes in a segment, if it has one.
    pub(super) fn record_bytes(&self) -> u64 {
        if self.has(Home::Segment) { segment::record_bytes(self.size) } else { 0 }
    }

    /// Its record is copied to another place.
    pub(super) fn moved(&mut self, place: Place) {
        self.place = place;
        self.set_verified(Home::Segment);
    }

    /// Where its record lies, if it has one.
    pub(super) fn place(&self) -> Option<Place> {
        self.has(Home::Segment).then_some(self.place)
    }

    pub(super) fn has(&self, home: Home) -> bool {
        self.homes & home.bit() != 0
    }

    pub(super) fn is_verified(&self, home: Home) -> bool {
        self.verified & home.bit() != 0
    }

    /// Whether at least one home is known to hold the right bytes.
    pub(super) fn is_sure(&self) -> bool {
        self.verified != 0
    }

    pub(super) fn set_verified(&mut self, home: Home) {
        self.verified |= home.bit() & self.homes;
    }

    /// Forgets that anything was hashed.
    pub(super) fn doubt(&mut self) {
        self.verified = 0;
    }

    /// The home to read from: a file only where there is no record, a checked one before another.
    pub(super) fn best_home(&self) -> Home {
        let has = |home: &Home| self.has(*home);
        let mut homes = Home::ALL.into_iter().filter(has);
        let sure = homes.clone().find(|home| self.is_verified(*home));
        sure.or_else(|| homes.next()).expect("an entry without a home is removed")
    }

    /// Takes a home that proved bad; whether none is left.
    fn lose(&mut self, home: Home) -> bool {
        self.homes &= !home.bit();
        self.verified &= !home.bit();
        self.homes == 0
    }

    /// Takes over the homes of another entry of the same blob; says which are gained.
    fn merge(&mut self, other: &Self) -> u8 {
        let gained = other.homes & !self.homes;
        // The record of a checked upload replaces one that was only found.
        if other.has(Home::Segment)
            && (!self.has(Home::Segment) || !self.is_verified(Home::Segment))
        {
            self.place = other.place;
            self.verified &= !Home::Segment.bit();
        }
        self.homes |= other.homes;
        self.verified |= other.verified;
        self.used = self.used.max(other.used);
        self.leased = self.leased.max(other.leased);
        gained
    }
}

/// The blobs of one shard.
pub(super) struct Index {
    parts: Box<[HashTable<Entry>]>,
}

impl Default for Index {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| HashTable::new()).collect() }
    }
}

impl Index {
    #[cfg(test)]
    pub(super) fn get(&self, digest: &Digest) -> Option<&Entry> {
        let table = &self.parts[part(digest.hash())];
        table.find(spread(digest.hash()), |entry| is(entry, digest))
    }

    pub(super) fn get_mut(&mut self, digest: &Digest) -> Option<&mut Entry> {
        let table = &mut self.parts[part(digest.hash())];
        table.find_mut(spread(digest.hash()), |entry| is(entry, digest))
    }

    /// Adds a blob; what was known of it stays known. Says which homes it gained, as bits.
    pub(super) fn insert(&mut self, digest: &Digest, entry: Entry) -> u8 {
        match self.get_mut(digest) {
            Some(known) => known.merge(&entry),
            None => {
                let table = &mut self.parts[part(&entry.hash)];
                table.insert_unique(spread(&entry.hash), entry, |entry| spread(&entry.hash));
                entry.homes
            }
        }
    }

    /// Takes a home from a blob; whether the blob is absent by that.
    pub(super) fn lose(&mut self, digest: &Digest, home: Home) -> bool {
        let table = &mut self.parts[part(digest.hash())];
        let found = table.find_entry(spread(digest.hash()), |entry| is(entry, digest));
        let Ok(mut occupied) = found else { return false };
        let absent = occupied.get_mut().lose(home);
        if absent {
            occupied.remove();
        }
        absent
    }

    /// Forgets of every blob that it was hashed.
    pub(super) fn doubt_all(&mut self) {
        self.parts.iter_mut().flat_map(HashTable::iter_mut).for_each(Entry::doubt);
    }

    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }

    /// The blobs of one of [`PARTS`].
    pub(super) fn part(&self, part: usize) -> impl Iterator<Item = &Entry> {
        self.parts[part].iter()
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

fn part(hash: &[u8; HASH_BYTES]) -> usize {
    usize::from(hash[16]) % PARTS
}

/// Bytes that a file of `size` takes on disk.
pub(super) fn on_disk(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX)
}

/// Where one action's result lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct ActionEntry {
    pub(super) key: [u8; HASH_BYTES],
    pub(super) place: Place,
    pub(super) length: u32,
    /// The loss generation at which all its blobs were seen present; 0 = never.
    pub(super) complete_at: u64,
    /// The second until which all its blobs are promised for a whole lease.
    pub(super) complete_until: u32,
    /// Seconds of the core's clock.
    pub(super) used: u32,
    /// Where older results of this key lie. As long as one of them is left, a start would take it
    /// for the last one if this one were dropped.
    pub(super) shadow: Shadow,
}

/// Segments that hold what was overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shadow {
    /// None does.
    None,
    /// This one.
    In(u32),
    /// Several, from this one on.
    Since(u32),
}

impl Shadow {
    /// With a further segment.
    pub(super) fn and(self, segment: u32) -> Self {
        match self {
            Self::None => Self::In(segment),
            Self::In(same) if same == segment => self,
            Self::In(first) | Self::Since(first) => Self::Since(first.min(segment)),
        }
    }
}

const _: () = assert!(size_of::<ActionEntry>() <= 72);

impl ActionEntry {
    /// A result that was just written there.
    pub(super) fn new(key: [u8; HASH_BYTES], place: Place, length: u32, used: u32) -> Self {
        let (complete_at, complete_until) = (0, 0);
        Self { key, place, length, complete_at, complete_until, used, shadow: Shadow::None }
    }

    /// Bytes that its record takes in a segment.
    pub(super) fn record_bytes(&self) -> u64 {
        segment::record_bytes(u64::from(self.length))
    }
}

/// The results of one shard.
pub(super) struct ActionIndex {
    parts: Box<[HashTable<ActionEntry>]>,
}

impl Default for ActionIndex {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| HashTable::new()).collect() }
    }
}

impl ActionIndex {
    pub(super) fn get_mut(&mut self, key: &[u8; HASH_BYTES]) -> Option<&mut ActionEntry> {
        self.parts[part(key)].find_mut(spread(key), |entry| entry.key == *key)
    }

    /// Adds a result, over any other of the same key; says in which segment that one lies.
    pub(super) fn insert(&mut self, mut entry: ActionEntry) -> Option<u32> {
        if let Some(known) = self.get_mut(&entry.key) {
            let over = known.place.segment;
            entry.shadow = known.shadow.and(over);
            *known = entry;
            return Some(over);
        }
        let table = &mut self.parts[part(&entry.key)];
        table.insert_unique(spread(&entry.key), entry, |entry| spread(&entry.key));
        None
    }

    pub(super) fn remove(&mut self, key: &[u8; HASH_BYTES]) {
        if let Ok(occupied) =
            self.parts[part(key)].find_entry(spread(key), |entry| entry.key == *key)
        {
            occupied.remove();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }

    /// The results of one of [`PARTS`].
    pub(super) fn part(&self, part: usize) -> impl Iterator<Item = &ActionEntry> {
        self.parts[part].iter()
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
    fn what_is_known_of_one_home_says_nothing_of_another() {
        let digest = Digest::of(b"abc");
        let place = Place { segment: 1, offset: 64 };
        let mut index = Index::default();
        index.insert(&digest, Entry::in_segment(&digest, place, false));
        index.insert(&digest, Entry::in_file(&digest, true, true));
        let entry = index.get(&digest).unwrap();
        assert!(entry.is_verified(Home::Executable) && !entry.is_verified(Home::Segment));
        assert_eq!(entry.best_home(), Home::Executable);
        let better = Place { segment: 2, offset: 64 };
        assert_eq!(index.insert(&digest, Entry::in_segment(&digest, better, true)), 0);
        let entry = index.get(&digest).unwrap();
        assert!(entry.is_verified(Home::Segment));
        assert_eq!(entry.place(), Some(better));
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
        assert!(entry.has(Home::Executable) && !entry.has(Home::Plain));
        assert_eq!(index.len(), 1);
        assert!(!index.lose(&digest, Home::Segment));
        assert!(index.lose(&digest, Home::Executable));
        assert_eq!(index.len(), 0);
    }
}
