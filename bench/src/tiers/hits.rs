//! Hits of the node in front while the one behind it is well, and while it is down: it hangs, or it
//! is dead and its port refuses. Must leave it up.

use std::{
    cell::Cell,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::future::{Either, select};
use hdrhistogram::Histogram;
use prost::Message;
use proto::reapi;
use tokio::time::{sleep, timeout};

use super::{
    Options, SETTLE, batch_read, order,
    ratios::{Ratios, Side},
};
use crate::{
    client::{Client, Method},
    drive::{Limit, closed_loop},
    payload::digest_of,
    rows::{Row, select as rows_named},
    setup::Setup,
    work::Work,
};

/// The rows of hits.
const ROWS: [&str; 3] = ["stream_read_4k", "batch_read_100x1k", "action_hit_1"];
/// Requests in flight.
const STREAMS_MAX: u32 = 4;
/// Pause between two misses, and how long one is waited for.
const MISS_PAUSE: Duration = Duration::from_millis(10);
const MISS_WAIT: Duration = Duration::from_millis(100);
/// How long the node may take to use the other again.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// google.rpc.Code NOT_FOUND.
const NOT_FOUND: i32 = 5;
/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// How the one behind is down.
#[derive(Clone, Copy)]
enum Down {
    Hangs,
    Dead,
}

struct Hits<'a> {
    options: &'a Options,
    front: &'a Setup,
    back_pid: Cell<u32>,
}

/// Hits, alone and beside misses that have to ask the one behind.
pub(super) async fn measure(options: &Options, front: &Setup, ratios: &mut Ratios) -> Result<()> {
    let hits = Hits { options, front, back_pid: Cell::new(options.back_pid) };
    let downs =
        if options.restart.is_empty() { &[Down::Hangs][..] } else { &[Down::Hangs, Down::Dead] };
    for name in ROWS {
        let mut row = rows_named(&[name.to_owned()])?.remove(0);
        row.streams = row.streams.min(STREAMS_MAX);
        row.connections = 1;
        let setup = Setup {
            client: Client::connect(&options.front).await?,
            instance: String::new(),
            seed: front.seed,
            chunk_len: front.chunk_len,
        };
        let mut work = Work::prepare(row, setup).await?;
        hits.one_round(&mut work, &row, false).await?;
        for &down in downs {
            hits.compare(&mut work, &row, down, ratios).await?;
        }
    }
    Ok(())
}

impl Hits<'_> {
    /// Round after round, in turn up and down.
    async fn compare(
        &self,
        work: &mut Work,
        row: &Row,
        down: Down,
        ratios: &mut Ratios,
    ) -> Result<()> {
        let lines = [false, true].map(|misses| {
            let beside = if misses { ", beside misses" } else { "" };
            let state = match down {
                Down::Hangs => "hangs",
                Down::Dead => "is dead",
            };
            format!("hits: {}, it {state}{beside}", row.name)
        });
        let mut pooled = [[None, None], [None, None]];
        for round in 0..u64::from(self.options.rounds) {
            for side in order(round) {
                if side == Side::Measured {
                    self.take_down(down)?;
                }
                for misses in [false, true] {
                    sleep(SETTLE).await;
                    let latency = self.one_round(work, row, misses).await;
                    if latency.is_err() && side == Side::Measured {
                        self.bring_up(down)?;
                    }
                    let latency = latency?;
                    let line = &lines[usize::from(misses)];
                    ratios.add(format!("{line}: p50, µs"), side, micros_at(&latency, 0.5));
                    ratios.add(format!("{line}: p99, µs"), side, micros_at(&latency, 0.99));
                    let pool = &mut pooled[usize::from(misses)][side as usize];
                    add(pool, &latency)?;
                }
                if side == Side::Measured {
                    self.bring_up(down)?;
                }
                self.recovered().await?;
            }
        }
        for (line, pools) in lines.iter().zip(&pooled) {
            for (side, pool) in [Side::Reference, Side::Measured].into_iter().zip(pools) {
                let pool = pool.as_ref().context("each side was measured")?;
                ratios.add(format!("{line}: p99 of all, µs"), side, micros_at(pool, 0.99));
            }
        }
        Ok(())
    }

    async fn one_round(&self, work: &mut Work, row: &Row, misses: bool) -> Result<Histogram<u64>> {
        let client = [Client::connect(&self.options.front).await?];
        let limit = Limit { time: Duration::from_secs_f64(self.options.seconds), ops: u64::MAX };
        let hits = Box::pin(closed_loop(&client, row.streams, limit, 64, work));
        let sample = if misses {
            match select(hits, Box::pin(self.misses())).await {
                Either::Left((sample, _)) => sample?,
                Either::Right((failed, _)) => return Err(failed),
            }
        } else {
            hits.await?
        };
        Ok(sample.latency)
    }

    /// Asks for what nobody has, again and again.
    async fn misses(&self) -> anyhow::Error {
        let client = match Client::connect(&self.options.front).await {
            Ok(client) => client,
            Err(error) => return error,
        };
        // Ends when it is dropped.
        loop {
            let message = batch_read(vec![digest_of(uuid::Uuid::new_v4().as_bytes())]);
            let asked = timeout(MISS_WAIT, client.unary(Method::BatchReadBlobs, message)).await;
            if let Ok(Err(error)) = asked {
                return error;
            }
            sleep(MISS_PAUSE).await;
        }
    }

    /// Waits until the one in front uses the other again.
    async fn recovered(&self) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < RECOVERY_MAX {
            let message = batch_read(vec![digest_of(uuid::Uuid::new_v4().as_bytes())]);
            let asked = self.front.client.unary(Method::BatchReadBlobs, message);
            if let Ok(reply) = timeout(Duration::from_secs(1), asked).await {
                let reply = reapi::BatchReadBlobsResponse::decode(reply?)?;
                let status = reply.responses.first().and_then(|one| one.status.as_ref());
                if status.is_some_and(|status| status.code == NOT_FOUND) {
                    return Ok(());
                }
            }
            sleep(MISS_WAIT).await;
        }
        anyhow::bail!("the node in front does not use the other again")
    }

    fn take_down(&self, down: Down) -> Result<()> {
        match down {
            Down::Hangs => signal(self.back_pid.get(), "-STOP"),
            Down::Dead => signal(self.back_pid.get(), "-KILL"),
        }
    }

    fn bring_up(&self, down: Down) -> Result<()> {
        match down {
            Down::Hangs => signal(self.back_pid.get(), "-CONT"),
            Down::Dead => {
                self.back_pid.set(restarted(&self.options.restart)?);
                Ok(())
            }
        }
    }
}

/// Runs a command that starts a server again; the process id that it prints. By bash, because a
/// script's functions come through no other shell.
pub(crate) fn restarted(command: &str) -> Result<u32> {
    let output =
        Command::new("bash").args(["-c", command]).output().context("running --restart")?;
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    printed.parse().with_context(|| format!("--restart printed {printed:?}, which is no process"))
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, which: &str) -> Result<()> {
    let sent = Command::new("kill").args([which, &pid.to_string()]).status();
    ensure!(sent.context("running kill")?.success(), "kill {which} {pid} failed");
    Ok(())
}

fn add(pool: &mut Option<Histogram<u64>>, latency: &Histogram<u64>) -> Result<()> {
    let all = match pool {
        Some(all) => all,
        None => pool.insert(Histogram::new(DIGITS).context("a histogram")?),
    };
    all.add(latency).context("adding latencies")
}

fn micros_at(latency: &Histogram<u64>, quantile: f64) -> f64 {
    latency.value_at_quantile(quantile) as f64 / 1e3
}
