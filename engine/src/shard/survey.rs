//! How much of a shard is how old, and from which age on things have to go. Arithmetic only: must
//! never look at a blob itself.

use super::index::Entry;

/// Ages told apart in each doubling of the age.
const STEPS: u32 = 16;
/// Ages told apart: exact below two [`STEPS`], then within a sixteenth.
const AGES: usize = 464;

/// What one look through a shard found: by age what nobody was promised, and by the time that is
/// left what somebody was.
pub(super) struct Survey {
    now: u32,
    bytes: Tally,
    files: Tally,
    promised: Tally,
}

struct Tally(Box<[u64; AGES]>);

/// From where on things go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cutoff {
    now: u32,
    /// Of what nobody was promised.
    age: usize,
    /// The same, for files alone.
    file_age: usize,
    /// Of what is promised for a time shorter than this; 0 = nothing.
    promised: usize,
}

impl Tally {
    fn new() -> Self {
        Self(Box::new([0; AGES]))
    }

    fn add(&mut self, value: u32, weight: u64) {
        self.0[step(value)] += weight;
    }

    /// The lowest step at which all from there on make `wanted`; `AGES` where nothing is wanted.
    fn oldest(&self, wanted: u64) -> usize {
        let mut found = 0;
        for (at, &weight) in self.0.iter().enumerate().rev() {
            if found >= wanted {
                return at + 1;
            }
            found += weight;
        }
        if found == 0 { AGES } else { 0 }
    }

    /// The step below which all make `wanted`.
    fn shortest(&self, wanted: u64) -> usize {
        let mut found = 0;
        for (at, &weight) in self.0.iter().enumerate() {
            if found >= wanted {
                return at;
            }
            found += weight;
        }
        AGES
    }

    fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Survey {
    pub(super) fn new(now: u32) -> Self {
        Self { now, bytes: Tally::new(), files: Tally::new(), promised: Tally::new() }
    }

    /// Counts a blob.
    pub(super) fn blob(&mut self, entry: &Entry) {
        let (files, file_bytes) = entry.files();
        let bytes = file_bytes + entry.record_bytes();
        let promised = entry.promised(self.now);
        if promised > 0 {
            self.promised.add(promised, bytes);
            return;
        }
        let age = entry.age(self.now);
        self.bytes.add(age, bytes);
        self.files.add(age, files);
    }

    /// Counts a result that was used at `used` and takes `bytes`.
    pub(super) fn result(&mut self, used: u32, bytes: u64) {
        self.bytes.add(self.now.saturating_sub(used), bytes);
    }

    /// What has to go so that `bytes` and `files` of what nobody was promised do, and at least
    /// `in_any_case` bytes of all.
    pub(super) fn cutoff(&self, bytes: u64, files: u64, in_any_case: u64) -> Cutoff {
        let breaks = in_any_case.saturating_sub(self.bytes.sum());
        Cutoff {
            now: self.now,
            age: self.bytes.oldest(bytes.max(in_any_case)),
            file_age: self.files.oldest(files),
            promised: if breaks == 0 { 0 } else { self.promised.shortest(breaks) },
        }
    }
}

impl Cutoff {
    /// Whether a blob goes.
    pub(super) fn takes(&self, entry: &Entry) -> bool {
        if self.keeps_promise(entry) {
            return false;
        }
        entry.promised(self.now) > 0 || step(entry.age(self.now)) >= self.age
    }

    /// Whether a blob's files go.
    pub(super) fn takes_files(&self, entry: &Entry) -> bool {
        self.takes(entry)
            || entry.promised(self.now) == 0 && step(entry.age(self.now)) >= self.file_age
    }

    /// Whether a result that was used at `used` goes.
    pub(super) fn takes_result(&self, used: u32) -> bool {
        step(self.now.saturating_sub(used)) >= self.age
    }

    /// Whether a blob is promised, and that is heeded.
    pub(super) fn keeps_promise(&self, entry: &Entry) -> bool {
        let promised = entry.promised(self.now);
        promised > 0 && step(promised) >= self.promised
    }
}

/// Values told apart: each of its own at first, then [`STEPS`] to each doubling.
fn step(value: u32) -> usize {
    if value < 2 * STEPS {
        return value as usize;
    }
    let doublings = value.ilog2() - STEPS.ilog2();
    (doublings * STEPS + (value >> doublings)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{blob::Home, digest::Digest};

    #[test]
    fn steps_grow_with_their_values_and_end_where_the_values_do() {
        let mut last = step(0);
        for value in (0..100_000).chain((17..32).map(|bit| 1 << bit)) {
            let now = step(value);
            assert!(now >= last, "{value}");
            last = now;
        }
        assert_eq!(step(u32::MAX), AGES - 1);
        assert_eq!((step(31), step(32), step(33), step(34)), (31, 32, 32, 33));
    }

    fn used(size: u64, age: u32, promised: u32) -> Entry {
        let digest = Digest::from_parts(crate::digest::DigestFunction::Sha256, [7; 32], size);
        let mut entry = Entry::in_file(&digest, false, true).used_at(1_000_000 - age);
        entry.leased = if promised > 0 { 1_000_000 + promised } else { 0 };
        entry
    }

    #[test]
    fn the_oldest_go_first_and_the_promised_only_where_they_must() {
        let entries = [used(4096, 10, 0), used(4096, 20, 0), used(4096, 30, 5), used(4096, 0, 9)];
        let mut survey = Survey::new(1_000_000);
        entries.iter().for_each(|entry| survey.blob(entry));
        let table = [
            ((0, 0, 0), [false, false, false, false]),
            ((1, 0, 0), [false, true, false, false]),
            ((4096, 0, 0), [false, true, false, false]),
            ((4097, 0, 0), [true, true, false, false]),
            ((1 << 20, 0, 0), [true, true, false, false]),
            ((0, 0, 8192), [true, true, false, false]),
            ((0, 0, 8193), [true, true, true, false]),
            ((0, 0, 12_289), [true, true, true, true]),
        ];
        for ((bytes, files, in_any_case), expect) in table {
            let cutoff = survey.cutoff(bytes, files, in_any_case);
            let taken: Vec<bool> = entries.iter().map(|entry| cutoff.takes(entry)).collect();
            assert_eq!(taken, expect, "{bytes} {in_any_case}");
        }
        let files = survey.cutoff(0, 1, 0);
        assert!(files.takes_files(&entries[1]) && !files.takes(&entries[1]));
        assert!(!files.takes_files(&entries[0]) && !files.takes_files(&entries[2]));
    }

    #[test]
    fn what_is_used_again_stays_four_times_as_long() {
        let mut again = used(1, 0, 0);
        again.used = 100;
        again.touch(1_000_000 - 400, 0);
        assert_eq!(again.age(1_000_000), 100);
        let mut at_once = used(1, 0, 0);
        at_once.used = 1_000_000 - 410;
        at_once.touch(1_000_000 - 400, 0);
        assert_eq!(at_once.age(1_000_000), 400);
        assert!(again.has(Home::Plain));
    }
}
