//! One round of one row on one server: connect, warm up, take the clocks, run, take the clocks.
//! Must measure nothing while it prepares.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{sleep, timeout};

use crate::{
    client::Client,
    cpu,
    drive::{Limit, Sample, closed_loop},
    report::{Figures, in_unit},
    rows::Row,
    work::Work,
};

/// A warm-up is this part of a round.
const WARM_UP: u32 = 10;
/// Pause before the clocks are taken: what the warm-up left in the server comes to rest.
const SETTLE: Duration = Duration::from_millis(300);
/// How long a round may take beyond its time before the server counts as hanging.
const OVERTIME_MAX: Duration = Duration::from_secs(120);

/// A server to be measured.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub name: String,
    /// HOST:PORT.
    pub address: String,
    /// Its process, if its CPU time is to be measured.
    pub pid: Option<u32>,
}

/// How long and how strictly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub seconds: f64,
    pub verify_every: u64,
}

/// Clock readings around a round.
struct Clocks {
    server: Option<Duration>,
    client: Duration,
}

impl Clocks {
    fn take(target: &Target) -> Result<Self> {
        Ok(Self { server: target.pid.map(cpu::tree_time).transpose()?, client: cpu::own_time()? })
    }
}

/// What a round gives before it is divided.
struct Taken {
    sample: Sample,
    before: Clocks,
    after: Clocks,
    resident: Option<u64>,
}

/// Measures one round.
pub(crate) async fn round(
    target: &Target,
    row: &Row,
    pace: Pace,
    work: &mut Work,
) -> Result<Figures> {
    let deadline = Duration::from_secs_f64(pace.seconds) + OVERTIME_MAX;
    let taken = timeout(deadline, take(target, row, pace, work))
        .await
        .context("the server hangs: the round did not end")??;
    Ok(figures(row, &taken))
}

async fn take(target: &Target, row: &Row, pace: Pace, work: &mut Work) -> Result<Taken> {
    let time = Duration::from_secs_f64(pace.seconds);
    let whole = Limit { time, ops: row.ops_max };
    let part = Limit { time: time / WARM_UP, ops: row.ops_max.div_ceil(u64::from(WARM_UP)) };
    let mut clients = Vec::new();
    for _ in 0..row.connections {
        clients.push(Client::connect(&target.address).await?);
    }
    work.refill(whole.ops.saturating_add(part.ops)).await?;
    closed_loop(&clients, row.streams, part, pace.verify_every, work).await?;
    sleep(SETTLE).await;
    let before = Clocks::take(target)?;
    let sample = closed_loop(&clients, row.streams, whole, pace.verify_every, work).await?;
    let after = Clocks::take(target)?;
    let resident = target.pid.map(cpu::resident).transpose()?;
    Ok(Taken { sample, before, after, resident })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn figures(row: &Row, taken: &Taken) -> Figures {
    let Taken { sample, before, after, resident } = taken;
    let (ops, bytes) = (sample.ops as f64, sample.bytes as f64);
    let wall = sample.wall.as_secs_f64();
    let at = |quantile| sample.latency.value_at_quantile(quantile) as f64 / 1e3;
    let server = after.server.zip(before.server);
    let server = server.map(|(after, before)| micros(after.saturating_sub(before)));
    Figures {
        ops,
        ops_per_s: ops / wall,
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: sample.latency.max() as f64 / 1e3,
        mb_per_s: bytes / 1e6 / wall,
        client_cpu_us_per_op: micros(after.client.saturating_sub(before.client)) / ops,
        server_cpu_us_per_op: server.map(|us| us / ops),
        server_cpu: server.and_then(|us| in_unit(row.unit, us, ops, bytes)),
        server_rss_mib: resident.map(|bytes| bytes as f64 / f64::from(1 << 20)),
    }
}
