//! A node in front of another: what reading through it costs beside reading from the other one,
//! and its own hits while the other hangs. Must put a ratio beside each figure: a time alone says
//! more of the machine than of the node.

pub(crate) mod hits;
mod ratios;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use prost::Message;
use proto::{bytestream, reapi};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

use self::ratios::{Ratios, Side};
use crate::{
    call::{Expect, Reply},
    client::{Client, Method},
    cpu,
    payload::{Lane, Seed, Source, finished},
    report::median,
    setup::{Setup, encoded},
};

/// Length of a small blob, in bytes.
const SMALL_LEN: usize = 4096;
/// Small blobs in one request.
const SMALL_BATCH: u64 = 100;
/// Requests for small blobs in one round.
const SMALL_REQUESTS: u64 = 200;
/// Rest before the clocks are taken: what went before comes to an end.
const SETTLE: Duration = Duration::from_millis(200);
/// Two servers of which one is the other's backing cache.
#[derive(Args)]
pub(crate) struct Options {
    /// The one that has the blobs, as HOST:PORT.
    back: String,
    /// The one in front of it.
    front: String,
    /// Process of the one that has the blobs; it is stopped for a while.
    #[arg(long, value_name = "PID")]
    back_pid: u32,
    /// Process of the one in front.
    #[arg(long, value_name = "PID")]
    front_pid: u32,
    /// Only these: large, hashed, small, hits.
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    rows: Vec<String>,
    /// How often both sides are measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Large blobs a round.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1000))]
    blobs: u64,
    /// Length of each, in MiB.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    mib: u32,
    /// Length of one measurement of hits, in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Starts the one that has the blobs again (bash), and prints the new process id; without it
    /// that one is stopped for `hits`, never killed.
    #[arg(long, value_name = "COMMAND", default_value = "")]
    restart: String,
    /// Number that all payloads come from; random if absent.
    #[arg(long)]
    seed: Option<u64>,
}

struct Pair<'a> {
    options: &'a Options,
    back: Setup,
    front: Setup,
}

/// What one side of a round gave, one value for each request.
#[derive(Default)]
struct Block {
    /// Until the first bytes, in microseconds.
    first: Vec<f64>,
    /// Until the last, in microseconds.
    whole: Vec<f64>,
    /// CPU time of both servers, in microseconds.
    cpu: f64,
}

/// Measures all rows and prints their ratios.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let seed = Seed(options.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0));
    let (back, front) = (&options.back, &options.front);
    let pair = Pair { options, back: setup(back, seed).await?, front: setup(front, seed).await? };
    let wanted = |name: &str| options.rows.is_empty() || options.rows.iter().any(|row| row == name);
    let mut ratios = Ratios::default();
    for (name, hashing) in [("large", false), ("hashed", true)] {
        for round in (0..u64::from(options.rounds)).take_while(|_| wanted(name)) {
            pair.large(&mut ratios, name, hashing, round).await?;
        }
    }
    for round in (0..u64::from(options.rounds)).take_while(|_| wanted("small")) {
        pair.small(&mut ratios, round).await?;
    }
    if wanted("hits") {
        hits::measure(options, &pair.front, &mut ratios).await?;
    }
    println!("{}", ratios.table());
    Ok(())
}

async fn setup(address: &str, seed: Seed) -> Result<Setup> {
    let client = Client::connect(address).await?;
    Ok(Setup { client, instance: String::new(), seed, chunk_len: 1 << 20 })
}

/// Which side is measured first: in turn, so that neither always finds the machine warm.
fn order(round: u64) -> [Side; 2] {
    if round.is_multiple_of(2) {
        [Side::Reference, Side::Measured]
    } else {
        [Side::Measured, Side::Reference]
    }
}

impl Pair<'_> {
    const fn side(&self, side: Side) -> &Setup {
        match side {
            Side::Reference => &self.back,
            Side::Measured => &self.front,
        }
    }

    fn cpu(&self) -> Result<Duration> {
        Ok(cpu::tree_time(self.options.back_pid)? + cpu::tree_time(self.options.front_pid)?)
    }

    /// New large blobs, read one after the other: from the one that has them, and through the
    /// other. With `hashing` the client hashes what comes, as builds do.
    async fn large(
        &self,
        ratios: &mut Ratios,
        name: &str,
        hashing: bool,
        round: u64,
    ) -> Result<()> {
        let len = self.options.mib as usize * (1 << 20);
        let source = Source::new(self.back.seed, Lane::Fresh(len + usize::from(hashing)), len);
        let count = self.options.blobs;
        let mut digests = Vec::new();
        for index in round * count..(round + 1) * count {
            let blob = source.blob(index);
            digests.push(blob.digest.clone());
            self.back.store(vec![blob]).await.context("storing the blobs to be read")?;
        }
        for side in order(round) {
            sleep(SETTLE).await;
            let mut block = Block::default();
            let before = self.cpu()?;
            for digest in &digests {
                let (first, whole) = read_large(self.side(side), digest, hashing).await?;
                block.first.push(micros(first));
                block.whole.push(micros(whole));
            }
            sleep(SETTLE).await;
            block.cpu = micros(self.cpu()?.saturating_sub(before));
            let whole = median(block.whole.iter().copied()).context("no blobs")?;
            let first = median(block.first.into_iter()).context("no blobs")?;
            ratios.add(format!("{name}: first byte, µs"), side, first);
            ratios.add(format!("{name}: MB/s"), side, len as f64 / whole);
            let gigabytes = len as f64 * count as f64 / 1e9;
            ratios.add(format!("{name}: servers' CPU, s/GB"), side, block.cpu / 1e6 / gigabytes);
        }
        Ok(())
    }

    /// New small blobs, a hundred in a request.
    async fn small(&self, ratios: &mut Ratios, round: u64) -> Result<()> {
        let source = Source::new(self.back.seed, Lane::Fresh(SMALL_LEN), SMALL_LEN);
        let count = SMALL_BATCH * SMALL_REQUESTS;
        let blobs: Vec<_> =
            (round * count..(round + 1) * count).map(|index| source.blob(index)).collect();
        let digests: Vec<_> = blobs.iter().map(|blob| blob.digest.clone()).collect();
        self.back.store(blobs).await.context("storing the blobs to be read")?;
        let expect = Expect::Blobs { count: SMALL_BATCH as usize, len: SMALL_LEN };
        for side in order(round) {
            sleep(SETTLE).await;
            let mut block = Block::default();
            let before = self.cpu()?;
            for digests in digests.chunks(SMALL_BATCH as usize) {
                let message = batch_read(digests.to_vec());
                let started = Instant::now();
                let client = &self.side(side).client;
                let reply = client.unary(Method::BatchReadBlobs, message).await?;
                block.whole.push(micros(started.elapsed()));
                expect.check(Reply::Message(reply), true)?;
            }
            sleep(SETTLE).await;
            block.cpu = micros(self.cpu()?.saturating_sub(before));
            let whole = median(block.whole.into_iter()).context("no blobs")?;
            ratios.add("small: 100 × 4 KiB, µs".to_owned(), side, whole);
            ratios.add("small: servers' CPU, µs/blob".to_owned(), side, block.cpu / count as f64);
        }
        Ok(())
    }
}

/// Reads a blob; when its first bytes were there, and when all were.
async fn read_large(
    from: &Setup,
    digest: &reapi::Digest,
    hashing: bool,
) -> Result<(Duration, Duration)> {
    let message = from.read(digest);
    let started = Instant::now();
    let mut stream = from.client.download(Method::Read, message).await?;
    let (mut first, mut len, mut hash) = (None, 0, Sha256::new());
    // Ends with the server's stream.
    while let Some(message) = stream.next().await? {
        let piece: Bytes = bytestream::ReadResponse::decode(message)?.data;
        first.get_or_insert_with(|| started.elapsed());
        len += piece.len();
        if hashing {
            hash.update(&piece);
        }
    }
    let whole = started.elapsed();
    ensure!(i64::try_from(len) == Ok(digest.size_bytes), "Read gave {len} bytes");
    ensure!(!hashing || finished(hash, len) == *digest, "Read gave other bytes");
    Ok((first.context("Read gave nothing")?, whole))
}

fn batch_read(digests: Vec<reapi::Digest>) -> Bytes {
    encoded(&reapi::BatchReadBlobsRequest { digests, ..Default::default() })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
