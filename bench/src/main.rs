//! reapi-load: a load generator for any Remote Execution API server. Must know nothing of one
//! server that it does not know of all, except how to ask for the members of a cluster.

mod call;
mod client;
mod cluster;
mod cpu;
mod drive;
mod measure;
mod payload;
mod report;
mod rows;
mod setup;
mod tiers;
mod work;

use std::{collections::HashMap, fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    client::Client,
    measure::{Pace, Target, round},
    payload::Seed,
    report::Cell,
    rows::{ROWS, Row},
    setup::Setup,
    work::Work,
};

/// How long the uploads that a row needs may take.
const PREPARE_MAX: Duration = Duration::from_secs(300);

/// Measures Remote Execution API servers: latency, rate, and CPU time of the server.
#[derive(Parser)]
#[command(version)]
struct Line {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs rows in turn, round after round, and prints a Markdown table of medians.
    Table(Options),
    /// Lists the rows and the load each is measured under.
    Rows,
    /// Compares a node in front of another with the other itself, and prints ratios.
    Tiers(tiers::Options),
    /// Measures servers that share their work.
    Cluster(cluster::Options),
}

#[derive(Args)]
struct Options {
    /// Servers, as [NAME=]HOST:PORT; several are measured in turn, row by row.
    #[arg(required = true, value_name = "SERVER")]
    targets: Vec<String>,
    /// Process of each server, in the same order; without it server CPU time is not measured.
    #[arg(long, value_name = "PID")]
    server_pid: Vec<u32>,
    /// Only rows whose names begin with one of these.
    #[arg(long, value_delimiter = ',', value_name = "PREFIX,…")]
    rows: Vec<String>,
    /// How often all rows are run; medians over the rounds are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of one round of one row, in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Instance name.
    #[arg(long, default_value = "")]
    instance: String,
    /// Requests in flight on each connection, instead of the row's own number.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    streams: Option<u32>,
    /// Connections, instead of the row's own number.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: Option<u32>,
    /// Number that all payloads come from; random if absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Hash the bytes of one in so many replies; statuses and lengths are checked in all.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    verify_every: u64,
    /// Payload of one message of an upload, in KiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=3_072))]
    chunk_kib: u32,
    /// Also write every round to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    seed: u64,
    rounds: u32,
    seconds: f64,
    chunk_kib: u32,
    verify_every: u64,
    cells: &'a [Cell],
}

fn main() -> ExitCode {
    let outcome = match Line::parse().verb {
        Verb::Rows => {
            list();
            Ok(true)
        }
        Verb::Table(options) => on_one_thread(table(&options)),
        Verb::Tiers(options) => on_one_thread(tiers::run(&options)).map(|()| true),
        Verb::Cluster(options) => on_one_thread(cluster::measure(&options)).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("reapi-load: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What a single thread costs is visible, and it needs one CPU beside the server's.
fn on_one_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")?.block_on(work)
}

fn list() {
    for row in ROWS {
        let unit = report::unit_name(row.unit);
        println!("{:22} {:2} × {} server CPU in {unit}", row.name, row.streams, row.connections);
    }
}

/// Runs everything that was asked for; false if a row failed.
async fn table(options: &Options) -> Result<bool> {
    let rows = wanted_rows(options)?;
    let targets = targets(options)?;
    ensure!(options.seconds > 0.0 && options.seconds <= 3600.0, "--seconds is not in 0 to 3600");
    let seed = options.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    eprintln!("seed {seed}; {} rounds of {} s a row", options.rounds, options.seconds);
    let mut cells: Vec<Cell> = Vec::new();
    for row in &rows {
        cells.extend(targets.iter().map(|target| Cell::new(row, &target.name)));
    }
    let pairs: Vec<(&Row, &Target)> =
        rows.iter().flat_map(|row| targets.iter().map(move |target| (row, target))).collect();
    let mut works = HashMap::new();
    for turn in 1..=options.rounds {
        for (at, (row, target)) in pairs.iter().enumerate() {
            if cells[at].failure.is_some() {
                continue;
            }
            eprintln!("round {turn}: {} on {}", row.name, target.name);
            let figures = one_round(options, seed, (row, target), works.entry(at)).await;
            match figures {
                Ok(figures) => cells[at].rounds.push(figures),
                Err(error) => {
                    eprintln!("FAILED {} on {}: {error:#}", row.name, target.name);
                    cells[at].failure = Some(format!("{error:#}"));
                }
            }
        }
    }
    cells.iter_mut().for_each(Cell::settle);
    println!("{}", report::table(&cells));
    write_json(options, seed, &cells)?;
    Ok(cells.iter().all(|cell| cell.failure.is_none()))
}

type Slot<'a> = std::collections::hash_map::Entry<'a, usize, Work>;

async fn one_round(
    options: &Options,
    seed: u64,
    (row, target): (&Row, &Target),
    slot: Slot<'_>,
) -> Result<report::Figures> {
    let work = match slot {
        Slot::Occupied(entry) => entry.into_mut(),
        Slot::Vacant(entry) => {
            let setup = Setup {
                client: Client::connect(&target.address).await?,
                instance: options.instance.clone(),
                seed: Seed(seed),
                chunk_len: options.chunk_kib as usize * 1024,
            };
            let prepared = timeout(PREPARE_MAX, Work::prepare(*row, setup)).await;
            entry.insert(prepared.context("the server hangs while it is prepared")??)
        }
    };
    let pace = Pace { seconds: options.seconds, verify_every: options.verify_every };
    round(target, row, pace, work).await
}

fn wanted_rows(options: &Options) -> Result<Vec<Row>> {
    let mut rows = rows::select(&options.rows)?;
    for row in &mut rows {
        row.streams = options.streams.unwrap_or(row.streams);
        row.connections = options.connections.unwrap_or(row.connections);
    }
    Ok(rows)
}

fn targets(options: &Options) -> Result<Vec<Target>> {
    let (servers, pids) = (options.targets.len(), options.server_pid.len());
    if pids != 0 && pids != servers {
        bail!("{pids} process ids for {servers} servers");
    }
    let target = |(at, text): (usize, &String)| {
        let (name, address) = text.split_once('=').unwrap_or((text, text));
        let pid = options.server_pid.get(at).copied();
        Target { name: name.to_owned(), address: address.to_owned(), pid }
    };
    Ok(options.targets.iter().enumerate().map(target).collect())
}

fn write_json(options: &Options, seed: u64, cells: &[Cell]) -> Result<()> {
    let Some(path) = &options.json else { return Ok(()) };
    let report = Report {
        seed,
        rounds: options.rounds,
        seconds: options.seconds,
        chunk_kib: options.chunk_kib,
        verify_every: options.verify_every,
        cells,
    };
    let text = serde_json::to_string_pretty(&report).context("writing JSON")?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &[&str]) -> Options {
        let line = ["reapi-load", "table"].iter().chain(line);
        match Line::try_parse_from(line).unwrap().verb {
            Verb::Table(options) => options,
            Verb::Rows | Verb::Tiers(_) | Verb::Cluster(_) => panic!("another verb"),
        }
    }

    #[test]
    fn a_server_has_a_name_and_a_process_or_neither() {
        let found = targets(&options(&["a=h:1", "h:2", "--server-pid=7", "--server-pid=8"]));
        let found: Vec<_> =
            found.unwrap().into_iter().map(|one| (one.name, one.address, one.pid)).collect();
        let expect = |name: &str, address: &str, pid| (name.to_owned(), address.to_owned(), pid);
        assert_eq!(found, [expect("a", "h:1", Some(7)), expect("h:2", "h:2", Some(8))]);
        assert!(targets(&options(&["h:1", "h:2", "--server-pid=7"])).is_err());
    }

    #[test]
    fn a_load_from_the_command_line_goes_before_the_rows_own() {
        let rows = wanted_rows(&options(&["h:1", "--rows=batch", "--streams=3"])).unwrap();
        assert_eq!(rows.iter().map(|row| row.streams).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(rows[0].connections, ROWS[3].connections);
    }
}
