//! The loop that owns a backlog: answers pushes, writes below, sleeps. Must never decide: what
//! flies and when is the queue's. Must never wait for the disk on its own thread, which is that of
//! all tiers: a read that comes through must not wait for a sync.

use super::{
    BacklogConfig, BacklogError, BacklogSnapshot, Item, Local, Published, Push,
    flight::{BATCH_LEN_MAX, Route},
    log::Log,
    queue::{
        Queue,
        event::{Config, Effect, Event, Outcome},
    },
    record::INSTANCE_BYTES_MAX,
};
use crate::{limits::IO_BYTES, tier::Below};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use std::{collections::BTreeSet, io, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

/// Pushes that are written to disk together.
const PUSHES_MAX: usize = 256;
/// How often what is pending is kept from being evicted once more.
const HOLD_EVERY: Duration = Duration::from_secs(60);
/// Items that are held by one question.
const HELD_MAX: usize = 4096;
/// How long what was appended may be unsynced, where pushes do not wait for it.
const SYNC_EVERY: Duration = Duration::from_secs(1);

type Reply = oneshot::Sender<Result<(), BacklogError>>;
type Landed = BoxFuture<'static, Vec<(u64, Outcome)>>;

/// The owner of a backlog's log and queue. Dropping it, or the future of [`Drain::run`], at any
/// moment loses nothing that was acknowledged.
pub struct Drain {
    log: Log,
    config: BacklogConfig,
    inbox: mpsc::Receiver<Push>,
    publish: watch::Sender<Published>,
}

impl Drain {
    pub(super) const fn new(
        log: Log,
        config: BacklogConfig,
        inbox: mpsc::Receiver<Push>,
        publish: watch::Sender<Published>,
    ) -> Self {
        Self { log, config, inbox, publish }
    }

    /// Writes below what is pending and what is pushed. Returns once every [`super::Backlog`] is
    /// gone; what is pending then is found by the next start.
    pub async fn run(self, below: Arc<dyn Below>, local: Arc<dyn Local>) {
        let batch_bytes_max = below.batch_bytes_max();
        let small_bytes_max = batch_bytes_max.min(IO_BYTES as u64);
        let config = Config {
            items_max: self.config.items_max,
            flights_max: self.config.in_flight_max.max(1),
            batch_len_max: BATCH_LEN_MAX,
            batch_bytes_max,
            small_bytes_max,
        };
        let damaged = self.publish.borrow().snapshot.damaged;
        let seed = uuid::Uuid::new_v4().as_u64_pair().1;
        let mut pump = Pump {
            queue: Queue::new(config, seed),
            log: Some(self.log),
            items_max: self.config.items_max,
            settled: Vec::new(),
            started: Instant::now(),
            sync_due: None,
            hold_due: Instant::now(),
            damaged,
            flights: FuturesUnordered::new(),
            route: Route { below, local, small_bytes_max, batch_bytes_max },
            publish: self.publish,
        };
        pump.run(self.inbox).await;
    }
}

struct Pump {
    queue: Queue,
    /// Away while the disk works.
    log: Option<Log>,
    items_max: usize,
    /// What is to leave the disk.
    settled: Vec<u64>,
    started: Instant,
    sync_due: Option<Instant>,
    hold_due: Instant,
    damaged: u64,
    flights: FuturesUnordered<Landed>,
    route: Route,
    publish: watch::Sender<Published>,
}

impl Pump {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Push>) {
        let pending = self.log.as_ref().map(Log::pending).unwrap_or_default();
        self.handle(Event::Written(pending));
        self.hold_again().await;
        let mut pushes = Vec::new();
        loop {
            self.settle().await;
            self.publish();
            let due = self.due();
            tokio::select! {
                len = inbox.recv_many(&mut pushes, PUSHES_MAX) => {
                    if len == 0 {
                        break;
                    }
                    self.push(std::mem::take(&mut pushes)).await;
                }
                Some(outcomes) = self.flights.next() => self.handle(Event::Landed(outcomes)),
                () = tokio::time::sleep_until(due.unwrap_or(self.started)), if due.is_some() => {
                    self.handle(Event::Tick);
                }
            }
            self.sync().await;
            self.hold_again().await;
        }
        self.flush().await;
    }

    /// Lets the log do something on a thread that may wait.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&mut Log) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let gone = || io::Error::other("the log is gone: the node stops");
        let mut log = self.log.take().ok_or_else(gone)?;
        let asked = tokio::task::spawn_blocking(move || {
            let answer = ask(&mut log);
            (log, answer)
        });
        let (log, answer) = asked.await.map_err(|_| gone())?;
        self.log = Some(log);
        answer
    }

    async fn settle(&mut self) {
        if self.settled.is_empty() {
            return;
        }
        let numbers = std::mem::take(&mut self.settled);
        if let Err(error) = self.on_disk(move |log| log.finish(&numbers)).await {
            tracing::warn!(%error, "the backlog keeps what is done; it is done again");
        }
    }

    /// Puts pushes on disk by one write, and answers them.
    async fn push(&mut self, pushes: Vec<Push>) {
        let mut replies: Vec<Reply> = Vec::new();
        let mut batch = BTreeSet::new();
        for Push { items, reply } in pushes {
            match self.admit(items, &mut batch) {
                Ok(()) => replies.push(reply),
                // Whoever asked may be gone: then nobody has to know.
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        let fresh = batch.into_iter().map(Arc::new).collect();
        let answer = self.keep(fresh).await.map_err(|error| {
            tracing::error!(%error, "the backlog could not be written");
            BacklogError::Disk(Arc::new(error))
        });
        // Whoever is answered and asks for the state finds what it pushed.
        self.publish();
        for reply in replies {
            drop(reply.send(answer.clone()));
        }
    }

    fn admit(&mut self, items: Vec<Item>, batch: &mut BTreeSet<Item>) -> Result<(), BacklogError> {
        for item in &items {
            if let Item::Action { instance, .. } = item
                && instance.len() > INSTANCE_BYTES_MAX
            {
                return Err(BacklogError::TooLong(instance.len()));
            }
        }
        // The empty blob is everywhere, and never asked for.
        let items = items
            .into_iter()
            .filter(|item| !matches!(item, Item::Blob(digest) if digest.is_empty()))
            .collect();
        if self.queue.admit(items, batch) { Ok(()) } else { Err(BacklogError::Full) }
    }

    async fn keep(&mut self, fresh: Vec<Arc<Item>>) -> io::Result<()> {
        if !fresh.is_empty() {
            let items = fresh.clone();
            let numbered = self.on_disk(|log| log.append(fresh)).await?;
            self.hold(items).await;
            self.handle(Event::Written(numbered));
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        let now = self.started.elapsed();
        for effect in self.queue.handle(event, now) {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        let below = self.route.below.name();
        match effect {
            Effect::Fly(items) => self.flights.push(Box::pin(self.route.clone().fly(items))),
            Effect::Settle(numbers) => self.settled.extend(numbers),
            Effect::ReportLost(item) => {
                tracing::warn!(below, %item, "not written below: this node has it no more");
            }
            Effect::ReportRefused(item, why) => {
                tracing::error!(below, %item, why, "not taken; it stays, and is tried hourly");
            }
            Effect::ReportOutage(why) => {
                tracing::warn!(below, why, pending = self.queue.len(), "writing below pauses");
            }
            Effect::ReportRecovery => tracing::info!(below, "writing below goes on"),
        }
    }

    /// When the loop has something to do even if nothing comes.
    fn due(&self) -> Option<Instant> {
        let wake = self.queue.wake().map(|wake| self.started + wake);
        let hold = (self.queue.len() > 0).then_some(self.hold_due);
        wake.into_iter().chain(self.sync_due).chain(hold).min()
    }

    async fn sync(&mut self) {
        let now = Instant::now();
        if !self.log.as_ref().is_some_and(Log::is_dirty) {
            self.sync_due = None;
        } else if *self.sync_due.get_or_insert(now + SYNC_EVERY) <= now {
            self.sync_due = None;
            self.flush().await;
        }
    }

    /// Sees to it that nothing is evicted that is owed below, however long that takes.
    async fn hold_again(&mut self) {
        let now = Instant::now();
        if self.hold_due <= now {
            self.hold_due = now + HOLD_EVERY;
            let pending = self.queue.items();
            self.hold(pending).await;
        }
    }

    async fn hold(&mut self, items: Vec<Arc<Item>>) {
        for items in items.chunks(HELD_MAX) {
            self.route.local.hold(items.to_vec()).await;
        }
    }

    async fn flush(&mut self) {
        if let Err(error) = self.on_disk(Log::flush).await {
            tracing::error!(%error, "the backlog may not survive a power failure");
        }
    }

    fn publish(&self) {
        let counts = self.queue.counts();
        let blobs = self.queue.blobs();
        let snapshot = BacklogSnapshot {
            blobs,
            actions: self.queue.len() - blobs,
            parked: self.queue.refused(),
            oldest_age: None,
            items_max: self.items_max,
            disk_bytes: self.log.as_ref().map(Log::disk_bytes).unwrap_or_default(),
            attempts: counts.attempts,
            failures: counts.failures,
            written: counts.written,
            lost: counts.lost,
            damaged: self.damaged,
        };
        let oldest = self.queue.oldest().map(|since| self.started + since);
        self.publish.send_replace(Published { snapshot, oldest });
    }
}
