//! The layer around any tier that makes an unreliable one bearable: it is left alone while it is
//! down, asked again where that helps, asked twice where it is slow, never asked too much at once.
//! Must never hash, nor know what the tier is made of.
//!
//! Invariant: every future here ends within the configured times, whatever the tier does.
//! Invariant: decisions are made by pure parts (`breaker`, `retry`, `latency`, put together in
//! `ledger`) that are given time and chance; `entry`, `call` and `flow` only perform them.
//! Used on the thread of tiers: it needs tokio's timers, and its tasks for the probe.

mod breaker;
mod call;
mod config;
mod entry;
mod flow;
mod latency;
mod ledger;
mod retry;

#[cfg(test)]
mod tests;

pub use self::{
    breaker::{BreakerConfig, BreakerState},
    config::GuardConfig,
    latency::HedgeConfig,
    ledger::{AnswerTimes, Health, Question},
    retry::RetryConfig,
};

use self::{
    call::{Answer, perform},
    entry::Door,
    flow::{Opened, Progress},
};
use super::{Below, BelowError, BelowResult, Incoming, Outgoing};
use crate::digest::Digest;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use proto::reapi::ActionResult;
use std::sync::Arc;
use tokio::time::Instant;

/// A tier, guarded. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Guarded {
    door: Arc<Door>,
}

impl Guarded {
    /// Puts the guard around a tier. The bounds on calls are at least one.
    #[must_use]
    pub fn new(below: Arc<dyn Below>, config: GuardConfig) -> Self {
        Self { door: Arc::new(Door::new(below, config)) }
    }

    /// How the tier is, for metrics.
    #[must_use]
    pub fn health(&self) -> Health {
        let health = self.door.ledger().health(self.door.now());
        let in_flight_max = self.door.in_flight_max();
        let (in_flight, waiting) = (self.door.in_flight(), self.door.waiting());
        Health { in_flight, in_flight_max, waiting, ..health }
    }

    async fn write_once(&self, digest: Digest, bytes: Outgoing) -> BelowResult<()> {
        let door = &self.door;
        door.ledger().called();
        let entry = door.enter(Question::Write, Instant::now() + door.config.timeout).await?;
        let (bytes, progress) = Progress::of(bytes, door.clone());
        let writing = async {
            let written = door.below.write(digest, bytes).await;
            written.map_err(|error| progress.blame(error))
        };
        let written = perform(entry, writing, progress.stalled(door)).await;
        written.map(done)
    }
}

/// The answer to a question about no blobs; its place is given back.
fn done<T>((answer, mut entry): Answer<T>) -> T {
    entry.answered(0);
    answer
}

/// A batch of which every part met an outage is an outage as a whole.
fn whole<T>(answers: Vec<BelowResult<T>>) -> BelowResult<Vec<BelowResult<T>>> {
    let outage = |answer: &BelowResult<T>| matches!(answer, Err(error) if error.is_outage());
    match answers.first() {
        Some(Err(first)) if answers.iter().all(outage) => Err(first.clone()),
        _ => Ok(answers),
    }
}

impl Below for Guarded {
    /// Whoever hashes found that bytes of this tier were not those of their digest. Mismatches
    /// that the tier's client found itself ([`BelowError::Wrong`]) are counted already.
    fn report_wrong(&self) {
        let opened = self.door.ledger().wrong(self.door.now());
        self.door.announce(opened);
    }

    fn name(&self) -> &str {
        self.door.below.name()
    }

    fn batch_bytes_max(&self) -> u64 {
        self.door.below.batch_bytes_max()
    }

    fn probe(&self) -> BoxFuture<'_, BelowResult<()>> {
        Box::pin(async { self.door.call(Question::Probe, |below| below.probe()).await.map(done) })
    }

    fn find_missing(&self, digests: Vec<Digest>) -> BoxFuture<'_, BelowResult<Vec<Digest>>> {
        Box::pin(async move {
            let ask =
                self.door.call(Question::FindMissing, |below| below.find_missing(digests.clone()));
            ask.await.map(done)
        })
    }

    fn read(&self, digest: Digest, offset: u64) -> BoxFuture<'_, BelowResult<Incoming>> {
        Box::pin(async move {
            let asked = self.door.call(Question::Read, |below| {
                Box::pin(async move { Opened::of(below.read(digest, offset).await?).await })
            });
            let (opened, entry) = asked.await?;
            Ok(opened.watched(entry, digest.size().saturating_sub(offset)))
        })
    }

    fn read_many(
        &self,
        digests: Vec<Digest>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<Bytes>>>> {
        Box::pin(async move {
            let asked = self.door.call(Question::ReadMany, |below| {
                let digests = digests.clone();
                Box::pin(async move { whole(below.read_many(digests).await?) })
            });
            let (answers, mut entry) = asked.await?;
            let bytes: usize = answers.iter().flatten().map(Bytes::len).sum();
            self.door.ledger().bytes_in(bytes as u64);
            entry.answered(answers.iter().flatten().count());
            let wrong = |answer: &&_| matches!(answer, Err(BelowError::Wrong(_)));
            answers.iter().filter(wrong).for_each(|_| self.report_wrong());
            Ok(answers)
        })
    }

    fn write(&self, digest: Digest, bytes: Outgoing) -> BoxFuture<'_, BelowResult<()>> {
        Box::pin(self.write_once(digest, bytes))
    }

    fn write_many(
        &self,
        blobs: Vec<(Digest, Bytes)>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<()>>>> {
        Box::pin(async move {
            let bytes: usize = blobs.iter().map(|(_, bytes)| bytes.len()).sum();
            let asked = self.door.call(Question::WriteMany, |below| {
                let blobs = blobs.clone();
                self.door.ledger().bytes_out(bytes as u64);
                Box::pin(async move { whole(below.write_many(blobs).await?) })
            });
            asked.await.map(done)
        })
    }

    fn get_action<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
    ) -> BoxFuture<'a, BelowResult<Option<ActionResult>>> {
        Box::pin(async move {
            let ask = move |below: &'a dyn Below| below.get_action(instance, action);
            self.door.call(Question::GetAction, ask).await.map(done)
        })
    }

    fn put_action<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
        result: ActionResult,
    ) -> BoxFuture<'a, BelowResult<()>> {
        Box::pin(async move {
            let ask = |below: &'a dyn Below| below.put_action(instance, action, result.clone());
            self.door.call(Question::PutAction, ask).await.map(done)
        })
    }
}
