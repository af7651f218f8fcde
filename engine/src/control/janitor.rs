//! How much each shard may keep, by what all of them use and by what the file system has left.
//! Must never name what goes: that is the shard's to choose.

use crate::shard::{Allowance, Layout, Usage};
use std::{io, time::Duration};

/// How often the file system and the shards are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Between two looks at least.
const PAUSE: Duration = Duration::from_millis(5);
/// Hundredths of what the store may use, from which on something goes that nobody was promised …
const EVICT_ABOVE: u64 = 95;
/// … until as many are used.
const EVICT_TO: u64 = 90;
/// Hundredths from which on what was promised goes too.
const BREAK_ABOVE: u64 = 98;
/// Files that must stay possible: others make some as well.
const FREE_FILES_MIN: u64 = 1024;

/// The janitor of one store.
#[derive(Debug)]
pub struct Janitor {
    usage: Usage,
    layout: Layout,
    /// What the store may use, in bytes; 0 = as much as there is.
    bytes_max: u64,
    /// What must stay free on the file system, in bytes.
    free_bytes_min: u64,
    evicts: Evicts,
}

/// What is being brought down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Evicts {
    bytes: bool,
    files: bool,
}

/// What there is at one moment.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// By all shards.
    used_bytes: u64,
    /// That writes wait for.
    wanted_bytes: u64,
    /// Of all shards.
    used_files: u64,
    free_bytes: u64,
    /// `None` where the file system does not count them.
    free_files: Option<u64>,
}

/// How much all shards together may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Targets {
    bytes: u64,
    files: u64,
    promised_bytes: u64,
}

impl Janitor {
    /// The janitor of the store in `layout`, which its shards share `usage` of.
    #[must_use]
    pub fn new(usage: Usage, layout: Layout, bytes_max: u64, free_bytes_min: u64) -> Self {
        Self { usage, layout, bytes_max, free_bytes_min, evicts: Evicts::default() }
    }

    /// Looks again and again, and when a write waits for room; never ends.
    pub async fn run(mut self) {
        let usage = self.usage.clone();
        loop {
            // However many ask: no more often than this.
            tokio::time::sleep(PAUSE).await;
            // An error means that nobody asked.
            let _ = tokio::time::timeout(TICK, usage.asked()).await;
            if let Err(error) = self.look() {
                tracing::error!(%error, "the file system of the store can't be asked");
            }
        }
    }

    /// Says what each shard may keep from here on.
    ///
    /// # Errors
    /// As statvfs(3); nothing is changed then.
    pub fn look(&mut self) -> io::Result<()> {
        let stat = rustix::fs::statvfs(self.layout.root())?;
        let shards: Vec<_> = (0..self.usage.shards()).map(|shard| self.usage.of(shard)).collect();
        let seen = Seen {
            used_bytes: shards.iter().map(|(bytes, _)| bytes).sum(),
            wanted_bytes: self.usage.wanted(),
            used_files: shards.iter().map(|(_, files)| files).sum(),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            free_files: (stat.f_files > 0).then_some(stat.f_favail),
        };
        let targets = self.decide(&seen);
        for (shard, (bytes, files)) in shards.into_iter().enumerate() {
            self.usage.allow(
                shard,
                Allowance {
                    bytes: share(targets.bytes, bytes, seen.used_bytes),
                    files: share(targets.files, files, seen.used_files),
                    promised_bytes: share(targets.promised_bytes, bytes, seen.used_bytes),
                },
            );
        }
        Ok(())
    }

    /// From the upper mark down to the lower one, so that eviction comes in rounds that are worth
    /// their looking around.
    fn decide(&mut self, seen: &Seen) -> Targets {
        let room = seen.free_bytes.saturating_sub(self.free_bytes_min);
        // What is missing from the reserve has to come from what is used.
        let missing = self.free_bytes_min.saturating_sub(seen.free_bytes);
        let there_is = seen.used_bytes.saturating_add(room).saturating_sub(missing);
        let capacity = if self.bytes_max > 0 { there_is.min(self.bytes_max) } else { there_is };
        let demand = seen.used_bytes.saturating_add(seen.wanted_bytes);
        let (above, to) = (part(capacity, EVICT_ABOVE), part(capacity, EVICT_TO));
        self.evicts.bytes = demand > if self.evicts.bytes { to } else { above };
        let breaks = part(capacity, BREAK_ABOVE);
        let all = u64::MAX;
        let lasting = |target: u64| target.saturating_sub(seen.wanted_bytes);
        Targets {
            bytes: if self.evicts.bytes { lasting(to) } else { all },
            promised_bytes: if demand > breaks { lasting(breaks) } else { all },
            files: self.files(seen),
        }
    }

    fn files(&mut self, seen: &Seen) -> u64 {
        let Some(free) = seen.free_files else { return u64::MAX };
        let room = free.saturating_sub(FREE_FILES_MIN);
        let missing = FREE_FILES_MIN.saturating_sub(free);
        let capacity = seen.used_files.saturating_add(room).saturating_sub(missing);
        let (above, to) = (part(capacity, EVICT_ABOVE), part(capacity, EVICT_TO));
        self.evicts.files = seen.used_files > if self.evicts.files { to } else { above };
        if self.evicts.files { to } else { u64::MAX }
    }
}

/// `hundredths` of `whole`.
fn part(whole: u64, hundredths: u64) -> u64 {
    whole / 100 * hundredths + whole % 100 * hundredths / 100
}

/// A shard's share of `target`, by what it uses: digests spread evenly, and what is not even goes
/// down evenly.
fn share(target: u64, used: u64, all: u64) -> u64 {
    if target >= all || all == 0 {
        return u64::MAX;
    }
    let share = u128::from(target) * u128::from(used) / u128::from(all);
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const ALL: u64 = u64::MAX;

    fn janitor(bytes_max: u64, free_bytes_min: u64) -> Janitor {
        Janitor::new(Usage::new(2), Layout::new(Path::new("/")), bytes_max, free_bytes_min)
    }

    fn seen(used_bytes: u64, wanted_bytes: u64, free_bytes: u64) -> Seen {
        Seen { used_bytes, wanted_bytes, used_files: 0, free_bytes, free_files: None }
    }

    #[test]
    fn marks_are_of_what_is_allowed_or_of_what_is_there() {
        let table = [
            // allowed, reserve, (used, wanted, free) -> keep, keep of the promised
            ((1000, 0), (950, 0, 10_000), (ALL, ALL)),
            ((1000, 0), (951, 0, 10_000), (900, ALL)),
            ((1000, 0), (400, 551, 10_000), (349, ALL)),
            ((1000, 0), (981, 0, 10_000), (900, 980)),
            ((1000, 0), (900, 200, 10_000), (700, 780)),
            ((1000, 0), (400, 0, 100), (ALL, ALL)),
            ((1000, 0), (400, 0, 5), (364, 396)),
            ((0, 0), (900, 0, 100), (ALL, ALL)),
            ((0, 0), (960, 0, 40), (900, ALL)),
            ((0, 100), (900, 0, 100), (810, 882)),
            ((0, 100), (900, 0, 0), (720, 784)),
            ((0, 5000), (900, 0, 10), (0, 0)),
        ];
        for ((bytes_max, reserve), (used, wanted, free), (bytes, promised)) in table {
            let found = janitor(bytes_max, reserve).decide(&seen(used, wanted, free));
            assert_eq!(
                (found.bytes, found.promised_bytes),
                (bytes, promised),
                "{bytes_max} {reserve} {used} {wanted} {free}"
            );
        }
    }

    #[test]
    fn what_is_begun_is_brought_to_the_lower_mark() {
        let mut janitor = janitor(1000, 0);
        let keeps = [960, 930, 901, 900, 930, 950, 951].map(|used| {
            let keep = janitor.decide(&seen(used, 0, 10_000)).bytes;
            if keep == ALL { 0 } else { keep }
        });
        assert_eq!(keeps, [900, 900, 900, 0, 0, 0, 900]);
    }

    #[test]
    fn files_are_bounded_by_what_the_file_system_has() {
        let mut janitor = janitor(0, 0);
        let files = |used_files, free| Seen { used_files, free_files: free, ..seen(0, 0, 1 << 30) };
        assert_eq!(janitor.decide(&files(1 << 40, None)).files, ALL);
        assert_eq!(janitor.decide(&files(10_000, Some(10_000))).files, ALL);
        assert_eq!(janitor.decide(&files(10_000, Some(FREE_FILES_MIN))).files, 9000);
        assert_eq!(
            janitor.decide(&files(10_000, Some(0))).files,
            (10_000 - FREE_FILES_MIN) * 9 / 10
        );
    }

    #[test]
    fn shards_go_down_by_what_each_has() {
        assert_eq!(share(ALL, 10, 100), ALL);
        assert_eq!(share(100, 10, 100), ALL);
        assert_eq!((share(90, 10, 100), share(90, 90, 100)), (9, 81));
        assert_eq!(share(u64::MAX - 1, u64::MAX / 2, u64::MAX), u64::MAX / 2 - 1);
        assert_eq!(share(0, 0, 0), ALL);
    }
}
