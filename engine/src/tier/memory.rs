//! What is known of blobs below for a while: that one is not there, or is not what its digest
//! says. Must never ask, nor look at a clock: it is told what was learnt, and when.

use crate::digest::Digest;
use std::{collections::HashMap, time::Duration};

/// Blobs remembered; beyond it all that is old is forgotten, then everything.
const REMEMBERED_MAX: usize = 100_000;
/// How long a blob whose bytes were wrong counts as absent below: its place there is to be
/// written again, by whoever has it.
const WRONG_KEPT: Duration = Duration::from_secs(600);
/// How soon after it said that it has a blob by now below is held to that: an honest one does not
/// drop what it was just asked about.
const CLAIM_KEPT: Duration = Duration::from_secs(10);

/// What was learnt about one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belief {
    /// It was not given.
    Absent,
    /// It was not given, and is said to be there by now.
    Claimed,
    /// Other bytes were given under its name, or none although it is said to be there.
    Wrong,
}

/// What is known of one tier's blobs.
#[derive(Debug)]
pub(super) struct Memory {
    beliefs: HashMap<Digest, (Belief, Duration)>,
    absent_kept: Duration,
}

impl Memory {
    /// One that takes a blob for absent for so long after it was not given.
    pub(super) fn new(absent_kept: Duration) -> Self {
        Self { beliefs: HashMap::new(), absent_kept }
    }

    /// It was not given when it was asked for.
    pub(super) fn absent(&mut self, digest: Digest, now: Duration) {
        let claimed = self.belief(&digest, now) == Some(Belief::Claimed);
        self.learn(digest, if claimed { Belief::Wrong } else { Belief::Absent }, now);
    }

    /// Other bytes were given under its name.
    pub(super) fn wrong(&mut self, digest: Digest, now: Duration) {
        self.learn(digest, Belief::Wrong, now);
    }

    /// It is said to be there. That counts only where it was not given before: others are many,
    /// and all is well with them.
    pub(super) fn claimed(&mut self, digest: Digest, now: Duration) {
        if self.was_absent(&digest) {
            self.learn(digest, Belief::Claimed, now);
        }
    }

    /// It was written there, over whatever it was before.
    pub(super) fn written(&mut self, digest: &Digest) {
        self.beliefs.remove(digest);
    }

    /// Whether it was not given when it was asked for last, however long ago.
    pub(super) fn was_absent(&self, digest: &Digest) -> bool {
        matches!(self.beliefs.get(digest), Some((Belief::Absent, _)))
    }

    /// Whether it is not to be asked for: it was not there a moment ago, or is wrong.
    pub(super) fn is_absent(&self, digest: &Digest, now: Duration) -> bool {
        matches!(self.belief(digest, now), Some(Belief::Absent | Belief::Wrong))
    }

    /// Whether it counts as missing whatever below says.
    pub(super) fn is_wrong(&self, digest: &Digest, now: Duration) -> bool {
        self.belief(digest, now) == Some(Belief::Wrong)
    }

    fn belief(&self, digest: &Digest, now: Duration) -> Option<Belief> {
        let &(belief, since) = self.beliefs.get(digest)?;
        self.is_fresh(belief, now.saturating_sub(since)).then_some(belief)
    }

    fn is_fresh(&self, belief: Belief, age: Duration) -> bool {
        age < match belief {
            Belief::Absent => self.absent_kept,
            Belief::Claimed => CLAIM_KEPT,
            Belief::Wrong => WRONG_KEPT,
        }
    }

    fn learn(&mut self, digest: Digest, belief: Belief, now: Duration) {
        if self.beliefs.len() >= REMEMBERED_MAX {
            let mut beliefs = std::mem::take(&mut self.beliefs);
            beliefs
                .retain(|_, &mut (belief, since)| self.is_fresh(belief, now.saturating_sub(since)));
            if beliefs.len() < REMEMBERED_MAX {
                self.beliefs = beliefs;
            }
        }
        self.beliefs.insert(digest, (belief, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: Duration = Duration::from_secs(2);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn one() -> (Memory, Digest) {
        (Memory::new(KEPT), Digest::of(b"a blob"))
    }

    #[test]
    fn what_was_not_there_is_not_asked_for_again_for_a_while() {
        let (mut memory, digest) = one();
        memory.absent(digest, at(1));
        for (now, absent) in [(1, true), (2, true), (3, false), (100, false)] {
            assert_eq!(memory.is_absent(&digest, at(now)), absent, "{now}");
            assert!(!memory.is_wrong(&digest, at(now)), "{now}");
        }
        assert!(!memory.is_absent(&Digest::of(b"another"), at(1)));
    }

    #[test]
    fn what_is_wrong_stays_so_until_it_is_written_or_long_after() {
        let (mut memory, digest) = one();
        memory.wrong(digest, at(1));
        assert!(memory.is_wrong(&digest, at(600)) && memory.is_absent(&digest, at(600)));
        assert!(!memory.is_wrong(&digest, at(601)) && !memory.is_absent(&digest, at(601)));
        memory.wrong(digest, at(700));
        memory.claimed(digest, at(701));
        assert!(memory.is_wrong(&digest, at(702)), "its word counts no more than its bytes");
        memory.written(&digest);
        assert!(!memory.is_absent(&digest, at(702)));
    }

    #[test]
    fn what_is_there_by_now_is_asked_for_at_once() {
        let (mut memory, digest) = one();
        memory.absent(digest, at(1));
        memory.claimed(digest, at(1));
        assert!(!memory.is_absent(&digest, at(1)) && !memory.is_wrong(&digest, at(1)));
    }

    #[test]
    fn what_is_said_to_be_there_and_is_not_given_is_wrong() {
        for (claimed, asked, wrong) in [(5, 6, true), (5, 14, true), (5, 15, false)] {
            let (mut memory, digest) = one();
            memory.absent(digest, at(1));
            memory.claimed(digest, at(claimed));
            memory.absent(digest, at(asked));
            assert_eq!(memory.is_wrong(&digest, at(asked)), wrong, "{claimed} {asked}");
        }
        // What was never asked for may have been dropped by an honest one.
        let (mut memory, digest) = one();
        memory.claimed(digest, at(5));
        memory.absent(digest, at(6));
        assert!(!memory.is_wrong(&digest, at(6)));
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_fresh() {
        let digest = |number: usize| Digest::of(&number.to_le_bytes());
        let mut memory = Memory::new(KEPT);
        (0..REMEMBERED_MAX).for_each(|number| memory.absent(digest(number), at(0)));
        memory.wrong(digest(0), at(1));
        memory.absent(digest(REMEMBERED_MAX), at(10));
        assert_eq!(memory.beliefs.len(), 2, "old ones went");
        assert!(memory.is_wrong(&digest(0), at(10)));
        (0..REMEMBERED_MAX).for_each(|number| memory.wrong(digest(number), at(10)));
        assert!(memory.beliefs.len() <= REMEMBERED_MAX);
    }
}
