//! The closed loop: each stream sends, waits, checks, and sends again. Must take the time of the
//! wait only, and must stop at the first reply that is not what it has to be.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;

use crate::{
    client::Client,
    work::{Shot, Work},
};

/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// Where a loop ends: at whichever comes first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub time: Duration,
    pub ops: u64,
}

/// What a loop did.
pub(crate) struct Sample {
    pub ops: u64,
    /// Payload read and written, in bytes.
    pub bytes: u64,
    /// From the first request to the last reply.
    pub wall: Duration,
    /// Latencies in nanoseconds.
    pub latency: Histogram<u64>,
}

struct Loop<'a> {
    work: &'a mut Work,
    limit: Limit,
    started: Instant,
    taken: u64,
    sample: Sample,
}

impl Loop<'_> {
    fn take(&mut self) -> Option<(u64, Shot)> {
        if self.taken >= self.limit.ops || self.started.elapsed() >= self.limit.time {
            return None;
        }
        let shot = self.work.take()?;
        self.taken += 1;
        Some((self.taken - 1, shot))
    }

    fn count(&mut self, took: Duration, bytes: u64) -> Result<()> {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sample.latency.record(nanos).context("counting a latency")?;
        self.sample.ops += 1;
        self.sample.bytes += bytes;
        Ok(())
    }
}

/// Runs `streams` requests at a time on each of `clients` until `limit`. The bytes of every
/// `verify_every`th reply are hashed, the first one's always.
pub(crate) async fn closed_loop(
    clients: &[Client],
    streams: u32,
    limit: Limit,
    verify_every: u64,
    work: &mut Work,
) -> Result<Sample> {
    let sample = Sample {
        ops: 0,
        bytes: 0,
        wall: Duration::ZERO,
        latency: Histogram::new(DIGITS).context("a histogram")?,
    };
    let started = Instant::now();
    let shared = RefCell::new(Loop { work, limit, started, taken: 0, sample });
    let streams = clients.iter().flat_map(|client| (0..streams).map(move |_| client));
    try_join_all(streams.map(|client| one_stream(client, &shared, verify_every))).await?;
    let mut sample = shared.into_inner().sample;
    sample.wall = started.elapsed();
    ensure!(sample.ops > 0, "no operation ended");
    Ok(sample)
}

async fn one_stream(client: &Client, shared: &RefCell<Loop<'_>>, verify_every: u64) -> Result<()> {
    loop {
        // Its own statement: the borrow ends before the wait.
        let taken = shared.borrow_mut().take();
        let Some((ticket, Shot { call, expect, sent })) = taken else { return Ok(()) };
        let deep = ticket.is_multiple_of(verify_every);
        let started = Instant::now();
        let reply = call.run(client, deep).await?;
        let took = started.elapsed();
        let read = expect.check(reply, deep)?;
        shared.borrow_mut().count(took, sent + read)?;
    }
}
