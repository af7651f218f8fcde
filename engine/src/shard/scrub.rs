//! Reading everything again, slowly, so that damage is found before somebody needs what is
//! damaged. Must never count as a use, nor read faster than it was told to.

use super::{Shard, index::PARTS};
use crate::{
    blob::{BlobError, Home, Result},
    digest::Digest,
};
use std::time::Duration;

/// Between two passes at least: a small store is not read all the time.
const PAUSE: Duration = Duration::from_secs(60);
/// How long a pace is slept off at once: a sleep ends at a beat.
const STEP: Duration = Duration::from_millis(100);

/// What was read again since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes.
    pub bytes: u64,
    /// Times that everything was.
    pub passes: u64,
    /// Records and files that were not what they should be.
    pub damaged: u64,
}

impl Shard {
    /// Reads everything, again and again; never ends.
    pub(crate) async fn scrub(&self) {
        let Some(rate) = self.scrub_rate() else { return std::future::pending().await };
        loop {
            self.scrub_once(rate).await;
            self.env.alarms.sleep(PAUSE).await;
        }
    }

    /// Bytes a second that are this shard's to read; `None` where nothing is to be read.
    fn scrub_rate(&self) -> Option<u64> {
        match self.config.scrub_bytes_per_second {
            0 => None,
            rate => Some((rate / self.space.shards().max(1)).max(1)),
        }
    }

    pub(super) async fn scrub_once(&self, rate: u64) {
        let mut pace = Pace { shard: self, rate, owed: 0 };
        for part in 0..PARTS {
            let homes: Vec<(Digest, Home)> = self.homes_of(part);
            for (digest, home) in homes {
                let read = match home {
                    Home::Segment => self.scrub_record(digest, &mut pace).await,
                    Home::Plain | Home::Executable => {
                        self.scrub_file(digest, home, &mut pace).await
                    }
                };
                match read {
                    Ok(()) => {}
                    // Gone by now: evicted, or damaged, which was said where it was found.
                    Err(BlobError::NotFound(_)) => {}
                    Err(error) => tracing::warn!(%digest, %error, "a blob can't be read again"),
                }
            }
        }
        self.note(|scrubbed| scrubbed.passes += 1);
    }

    fn homes_of(&self, part: usize) -> Vec<(Digest, Home)> {
        let index = self.index.borrow();
        let homes = index.part(part).flat_map(|entry| {
            let has = |home: &Home| entry.has(*home);
            Home::ALL.into_iter().filter(has).map(|home| (entry.digest(), home))
        });
        homes.collect()
    }

    async fn scrub_record(&self, digest: Digest, pace: &mut Pace<'_>) -> Result<()> {
        let place = self.index.borrow_mut().get_mut(&digest).and_then(|entry| entry.place());
        let Some(place) = place else { return Ok(()) };
        let read = self.read_small(&digest, place, false).await;
        if matches!(read, Err(BlobError::NotFound(_))) {
            self.note(|scrubbed| scrubbed.damaged += 1);
        }
        pace.read(digest.size()).await;
        read.map(drop)
    }

    async fn scrub_file(&self, digest: Digest, home: Home, pace: &mut Pace<'_>) -> Result<()> {
        if !self.index.borrow_mut().get_mut(&digest).is_some_and(|entry| entry.has(home)) {
            return Ok(());
        }
        let file = self.open_home(&digest, home).await?;
        let pause = async |length| pace.read(length as u64).await;
        let good = self.holds(&file, &digest, pause).await?;
        if !good {
            self.note(|scrubbed| scrubbed.damaged += 1);
        }
        self.checked(digest, home, good).await;
        Ok(())
    }

    fn note(&self, add: impl FnOnce(&mut Scrubbed)) {
        let mut scrubbed = self.scrubbed.get();
        add(&mut scrubbed);
        self.scrubbed.set(scrubbed);
    }
}

/// Makes reading as slow as it should be.
struct Pace<'a> {
    shard: &'a Shard,
    /// Bytes a second.
    rate: u64,
    /// Bytes that were read and not slept off yet.
    owed: u64,
}

impl Pace<'_> {
    async fn read(&mut self, bytes: u64) {
        self.shard.note(|scrubbed| scrubbed.bytes += bytes);
        self.owed += bytes;
        let owes = Duration::from_secs_f64(self.owed as f64 / self.rate as f64);
        if owes >= STEP {
            self.shard.env.alarms.sleep(owes).await;
            self.owed = 0;
        }
    }
}
