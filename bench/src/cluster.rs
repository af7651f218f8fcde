//! Several servers that share their work: what it costs an action to run on another one than that
//! which was asked, how busy all workers are kept, and how soon the others know that one was
//! killed. Must take nothing on trust that a result says itself: who ran an action is looked at.

mod run;
mod share;

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use futures_util::future::{Either, join_all, select, try_join_all};
use prost::Message;
use proto::node::{ViewRequest, ViewResponse};
use tokio::time::sleep;

use self::{
    run::{Actions, Ran, run},
    share::busy,
};
use crate::{
    client::{Client, Method},
    cpu,
    payload::Seed,
    report::{median, number},
    setup::{Setup, encoded},
    tiers::hits::{restarted, signal},
};

/// Rest before clocks are taken.
const SETTLE: Duration = Duration::from_millis(300);
/// Between two looks at who is there.
const LOOK: Duration = Duration::from_millis(10);
/// How long anything may take that has to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// By which a kill may come later than the last look: gossip has a beat, and no kill keeps it.
const KILL_STEPS: u32 = 7;
const KILL_STEP: Duration = Duration::from_millis(170);

/// Servers that know each other. `kill` asks them by ringforge's own RPC, the other rows by REAPI.
#[derive(Args)]
pub(crate) struct Options {
    /// All of them, as HOST:PORT; actions are sent to the first, the last one is killed.
    #[arg(required = true, num_args = 2.., value_name = "SERVER")]
    servers: Vec<String>,
    /// Process of each, in the same order.
    #[arg(long, value_name = "PID", required = true)]
    pid: Vec<u32>,
    /// Starts the last server again (bash), and prints the new process id.
    #[arg(long, value_name = "COMMAND", default_value = "")]
    restart: String,
    /// Only these: offload, spread, kill.
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    rows: Vec<String>,
    /// How often offload and kill are measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Actions in one round of offload, on each side.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    actions: u64,
    /// Time for which the first server is kept full in a round of offload, in seconds.
    #[arg(long, default_value_t = 5)]
    hold: u64,
    /// Actions that one server runs at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    slots: u32,
    /// Actions of spread.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Actions of spread that are in flight.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=1000))]
    in_flight: u32,
    /// Number that all payloads come from; random if absent.
    #[arg(long)]
    seed: Option<u64>,
}

/// What was measured, line by line.
#[derive(Default)]
struct Figures(Vec<(String, Vec<f64>)>);

impl Figures {
    fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.to_owned(), vec![value])),
        }
    }

    fn table(&self) -> String {
        let mut out = "| figure | median | min–max |\n|---|---:|---:|\n".to_owned();
        for (name, values) in &self.0 {
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let middle = median(values.iter().copied()).map_or_else(String::new, number);
            // Writing to a string cannot fail.
            let _ = writeln!(out, "| {name} | {middle} | {}–{} |", number(low), number(high));
        }
        out
    }
}

/// Runs all rows that were asked for, and prints what they gave.
pub(crate) async fn measure(options: &Options) -> Result<()> {
    let (servers, pids) = (options.servers.len(), options.pid.len());
    ensure!(servers == pids, "{pids} process ids for {servers} servers");
    let wanted = |name: &str| options.rows.is_empty() || options.rows.iter().any(|row| row == name);
    let mut figures = Figures::default();
    if wanted("offload") || wanted("spread") {
        let seed = Seed(options.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0));
        let client = Client::connect(&options.servers[0]).await?;
        let setup = Setup { client, instance: String::new(), seed, chunk_len: 1 << 20 };
        let mut actions = Actions::prepare(setup).await?;
        if wanted("offload") {
            offload(options, &mut actions, &mut figures).await?;
        }
        if wanted("spread") {
            spread(options, &mut actions, &mut figures).await?;
        }
    }
    if wanted("kill") {
        kill(options, &mut figures).await?;
    }
    println!("{}", figures.table());
    Ok(())
}

/// One action at a time: on the server that is asked, and, while that one's slots are taken, on
/// others.
async fn offload(options: &Options, actions: &mut Actions, figures: &mut Figures) -> Result<()> {
    let client = actions.client();
    let mut origin = None;
    for round in 0..options.rounds {
        for away in [!round.is_multiple_of(2), round.is_multiple_of(2)] {
            let ready = actions.tiny(options.actions).await?;
            let holding = if away { options.slots } else { 0 };
            let holds = actions.long(u64::from(holding), options.hold).await?;
            let hold = join_all(holds.into_iter().map(|action| run(&client, action)));
            let measured = async {
                // The slots fill meanwhile.
                sleep(2 * SETTLE).await;
                let mut ran = Vec::new();
                for action in ready {
                    ran.push(run(&client, action).await?);
                }
                Ok::<_, anyhow::Error>(ran)
            };
            let (hold, measured) = (Box::pin(hold), Box::pin(measured));
            let ran = match select(measured, hold).await {
                Either::Left((ran, hold)) => {
                    let ran = ran?;
                    hold.await.into_iter().collect::<Result<Vec<_>>>()?;
                    ran
                }
                Either::Right((held, measured)) => {
                    held.into_iter().collect::<Result<Vec<_>>>()?;
                    ensure!(!away, "the slots were free before the round ended: more --hold");
                    measured.await?
                }
            };
            let name = match (&origin, away) {
                (None, true) => bail!("the first round was not the server's own"),
                (None, false) => origin.insert(ran[0].worker.clone()),
                (Some(name), _) => name,
            };
            let strays = ran.iter().filter(|one| (one.worker == *name) == away).count();
            ensure!(strays == 0, "{strays} actions did not run where they should");
            add_side(figures, away, &ran);
        }
        let last = |figures: &Figures, name: &str| {
            figures.0.iter().find(|line| line.0 == name).and_then(|line| line.1.last().copied())
        };
        let both =
            last(figures, &side_line(true, "p50")).zip(last(figures, &side_line(false, "p50")));
        let (away, here) = both.context("both sides were measured")?;
        figures.add("offload: adds to the median, ms", away - here);
    }
    Ok(())
}

fn side_line(away: bool, what: &str) -> String {
    format!("offload: {} {what}, ms", if away { "on another" } else { "on the one asked" })
}

fn add_side(figures: &mut Figures, away: bool, ran: &[Ran]) {
    let mut times: Vec<f64> = ran.iter().map(|one| one.took.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    let middle = median(times.iter().copied()).unwrap_or_default();
    figures.add(&side_line(away, "p50"), middle);
    let at = times.len() * 9 / 10;
    figures.add(&side_line(away, "p90"), times.get(at).copied().unwrap_or_default());
}

/// Many tiny actions, all sent to one server.
async fn spread(options: &Options, actions: &mut Actions, figures: &mut Figures) -> Result<()> {
    let client = actions.client();
    let mut ready = actions.tiny(options.count).await?.into_iter();
    sleep(SETTLE).await;
    let before = cpu_of(&options.pid)?;
    let started = Instant::now();
    let shared = std::cell::RefCell::new((&mut ready, Vec::new()));
    try_join_all((0..options.in_flight).map(|_| async {
        loop {
            // Its own statement: the borrow ends before the wait.
            let next = shared.borrow_mut().0.next();
            let Some(action) = next else { return Ok::<_, anyhow::Error>(()) };
            let ran = run(&client, action).await?;
            shared.borrow_mut().1.push(ran);
        }
    }))
    .await?;
    let wall = started.elapsed();
    let ran = shared.into_inner().1;
    sleep(SETTLE).await;
    let spent = cpu_of(&options.pid)?.saturating_sub(before);
    let count = ran.len() as f64;
    figures.add("spread: actions a second", count / wall.as_secs_f64());
    figures.add("spread: servers' CPU, ms/action", spent.as_secs_f64() * 1e3 / count);
    for (worker, share, actions) in busy(&ran, options.slots) {
        figures.add(&format!("spread: {worker} busy, %"), 100.0 * share);
        figures.add(&format!("spread: {worker} ran, %"), 100.0 * actions as f64 / count);
    }
    Ok(())
}

fn cpu_of(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|&pid| cpu::tree_time(pid)).sum()
}

/// SIGKILL to the last one, at another moment each time, until none of the others counts it any
/// more.
async fn kill(options: &Options, figures: &mut Figures) -> Result<()> {
    ensure!(!options.restart.is_empty(), "kill wants --restart");
    let clients = try_join_all(options.servers.iter().map(|one| Client::connect(one))).await?;
    let (_, others) = clients.split_last().context("no servers")?;
    let all = options.servers.len();
    let mut pid = *options.pid.last().context("no process")?;
    for round in 0..options.rounds {
        let started = Instant::now();
        until_all_see(others, all).await?;
        figures.add("kill: until all were seen again, s", started.elapsed().as_secs_f64());
        sleep(SETTLE + KILL_STEP * (round % KILL_STEPS)).await;
        let killed = Instant::now();
        signal(pid, "-KILL")?;
        until_all_see(others, all - 1).await?;
        figures.add("kill: until no other counts it, s", killed.elapsed().as_secs_f64());
        pid = restarted(&options.restart)?;
    }
    until_all_see(others, all).await
}

/// Waits until each of these sees so many servers.
async fn until_all_see(clients: &[Client], count: usize) -> Result<()> {
    let started = Instant::now();
    for client in clients {
        while members(client).await? != count {
            ensure!(started.elapsed() < PATIENCE, "{count} servers are never seen");
            sleep(LOOK).await;
        }
    }
    Ok(())
}

async fn members(client: &Client) -> Result<usize> {
    let reply: Bytes = client.unary(Method::View, encoded(&ViewRequest {})).await?;
    Ok(ViewResponse::decode(reply)?.members.len())
}
