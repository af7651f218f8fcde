//! What is written below next, when, and after which pause: a pure state machine, an [`Event`]
//! in, [`Effect`]s out.
//!
//! Must never read a clock, wait, draw from the system's randomness or touch a disk: the same
//! events at the same times give the same effects. Must never let an item go that was neither
//! written nor lost, and must never hold a blob's bytes.
//!
//! ```text
//! Written --> ready --> flying --> settled: kept below, or lost here
//!               ^          |
//!               |          +--> ready     the tier is out: all wait, with backoff
//!               |          +--> aside     refused, or it fails while others do not
//!               +----------------'        its time has come again
//! ```
//!
//! Invariants: an item is ready, flying or aside, once, however often it is pushed. An action
//! flies only when each blob that was pushed before it has been tried; whoever carries it checks
//! that all its blobs are below.

pub(super) mod event;
mod order;

use super::{Item, log::Numbered};
use event::{Config, Counts, Effect, Event, Outcome};
use order::Ready;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// The first pause after a failure, before jitter; each further one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest pause that is our own choice.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest pause that below may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// How long a refused item waits before it is tried again.
const REFUSED_RETRY: Duration = Duration::from_secs(3600);
/// How often an item may fail while others do not, before it counts as refused.
const STRIKES_MAX: u32 = 8;
/// How long one report of a refused item stands for all that follow.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// The state machine. See the drawing above.
pub(super) struct Queue {
    config: Config,
    now: Duration,
    chance: u64,
    items: BTreeMap<u64, Entry>,
    numbers: BTreeMap<Arc<Item>, u64>,
    blobs: usize,
    ready: Ready,
    /// Those that wait for a time of their own, by that time.
    aside: BTreeSet<(Duration, u64)>,
    refused: usize,
    flights: usize,
    /// Nothing flies before this.
    paused_until: Duration,
    /// Pauses since below last did something.
    pauses: u32,
    reported: Option<Duration>,
    counts: Counts,
    effects: Vec<Effect>,
}

struct Entry {
    item: Arc<Item>,
    since: Duration,
    state: State,
    /// It was pushed while it flew: what flew may not be what is meant now.
    again: bool,
    /// What `written` was when it last failed.
    failed_at: Option<u64>,
    strikes: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Flying,
    Aside { until: Duration, refused: bool },
}

impl Queue {
    /// A queue without items. `seed` decides nothing but the jitter of pauses.
    pub(super) fn new(config: Config, seed: u64) -> Self {
        Self {
            config,
            now: Duration::ZERO,
            // xorshift stays at zero for ever.
            chance: seed | 1,
            items: BTreeMap::new(),
            numbers: BTreeMap::new(),
            blobs: 0,
            ready: Ready::default(),
            aside: BTreeSet::new(),
            refused: 0,
            flights: 0,
            paused_until: Duration::ZERO,
            pauses: 0,
            reported: None,
            counts: Counts::default(),
            effects: Vec::new(),
        }
    }

    /// Adds to `batch` those that are not pending yet and have to be written to disk; false,
    /// and none is added, where they are more than there is room for.
    pub(super) fn admit(&mut self, items: Vec<Item>, batch: &mut BTreeSet<Item>) -> bool {
        let mut fresh = BTreeSet::new();
        for item in items {
            match self.numbers.get(&item).and_then(|number| self.items.get_mut(number)) {
                Some(entry) => entry.again |= entry.state == State::Flying,
                None if batch.contains(&item) => {}
                None => {
                    fresh.insert(item);
                }
            }
        }
        let fits = self.items.len() + batch.len() + fresh.len() <= self.config.items_max;
        if fits {
            // In a set blobs come before actions: an action is never numbered before its blobs.
            batch.append(&mut fresh);
        }
        fits
    }

    /// Takes an event; `now` counts from the start of the process.
    pub(super) fn handle(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        self.now = self.now.max(now);
        match event {
            Event::Written(items) => self.take(items),
            Event::Landed(outcomes) => {
                self.flights -= 1;
                self.land(outcomes);
            }
            Event::Tick => {}
        }
        self.recall();
        self.launch();
        std::mem::take(&mut self.effects)
    }

    /// When `Tick` is due, if nothing else happens.
    pub(super) fn wake(&self) -> Option<Duration> {
        let pause =
            (!self.ready.is_empty() && self.paused_until > self.now).then_some(self.paused_until);
        let aside = self.aside.first().map(|(until, _)| *until);
        pause.into_iter().chain(aside).min()
    }

    /// What is pending.
    pub(super) fn items(&self) -> Vec<Arc<Item>> {
        self.items.values().map(|entry| entry.item.clone()).collect()
    }

    /// Items pending.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Blobs among them.
    pub(super) const fn blobs(&self) -> usize {
        self.blobs
    }

    /// Those among them that below refused.
    pub(super) const fn refused(&self) -> usize {
        self.refused
    }

    /// When the oldest pending item was pushed.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.items.first_key_value().map(|(_, entry)| entry.since)
    }

    /// Counts since the start.
    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    fn take(&mut self, items: Vec<Numbered>) {
        let mut twice = Vec::new();
        for (number, item) in items {
            // An append that failed may have reached the disk, and then again, under two numbers.
            if self.numbers.contains_key(&item) {
                twice.push(number);
                continue;
            }
            self.numbers.insert(Arc::clone(&item), number);
            self.blobs += usize::from(matches!(*item, Item::Blob(_)));
            self.ready.insert_fresh(number, &item, self.config.small_bytes_max);
            let (since, state) = (self.now, State::Ready);
            let entry = Entry { item, since, state, again: false, failed_at: None, strikes: 0 };
            self.items.insert(number, entry);
        }
        if !twice.is_empty() {
            self.effects.push(Effect::Settle(twice));
        }
    }

    fn land(&mut self, outcomes: Vec<(u64, Outcome)>) {
        let mut settled = Vec::new();
        let mut outage: Option<(String, Option<Duration>)> = None;
        // Successes first: whether others fare better is what a failure is judged by.
        let (kept, others): (Vec<_>, Vec<_>) =
            outcomes.into_iter().partition(|(_, outcome)| *outcome == Outcome::Kept);
        if !kept.is_empty() {
            self.recover();
        }
        for (number, outcome) in kept.into_iter().chain(others) {
            match outcome {
                Outcome::Kept => settled.extend(self.kept(number)),
                Outcome::Lost => settled.extend(self.lost(number)),
                Outcome::Refused(why) => {
                    self.counts.failures += 1;
                    self.refuse(number, why);
                }
                Outcome::Failed { why, retry_after } => {
                    self.counts.failures += 1;
                    self.fail(number, &why);
                    let asked = outage.as_ref().and_then(|(_, asked)| *asked);
                    outage = Some((why, asked.max(retry_after)));
                }
            }
        }
        if !settled.is_empty() {
            self.effects.push(Effect::Settle(settled));
        }
        if let Some((why, retry_after)) = outage {
            self.pause(why, retry_after);
        }
    }

    fn recover(&mut self) {
        if self.pauses > 0 {
            self.pauses = 0;
            self.effects.push(Effect::ReportRecovery);
        }
    }

    /// The number to settle, if this ends it.
    fn kept(&mut self, number: u64) -> Option<u64> {
        self.counts.written += 1;
        let entry = self.items.get(&number)?;
        // A blob's bytes never change; an action's result may have, after it was read.
        if entry.again && matches!(*entry.item, Item::Action { .. }) {
            self.make_ready(number);
            return None;
        }
        self.remove(number);
        Some(number)
    }

    fn lost(&mut self, number: u64) -> Option<u64> {
        let entry = self.items.get(&number)?;
        if entry.again {
            // It may have come back with the push that was answered meanwhile.
            self.make_ready(number);
            return None;
        }
        self.counts.lost += 1;
        self.effects.push(Effect::ReportLost(Arc::clone(&entry.item)));
        self.remove(number);
        Some(number)
    }

    fn refuse(&mut self, number: u64, why: String) {
        let Some(item) = self.items.get(&number).map(|entry| Arc::clone(&entry.item)) else {
            return;
        };
        self.set_aside(number, REFUSED_RETRY, true);
        let quiet = self.reported.is_some_and(|at| self.now < at + REPORT_EVERY);
        if !quiet {
            self.reported = Some(self.now);
            self.effects.push(Effect::ReportRefused(item, why));
        }
    }

    /// A failure while others fare better is the item's own: it waits by itself, ever longer, so
    /// that it holds up nobody.
    fn fail(&mut self, number: u64, why: &str) {
        let written = self.counts.written;
        let Some(entry) = self.items.get_mut(&number) else { return };
        let alone = entry.failed_at.replace(written).is_some_and(|before| before < written);
        if !alone {
            self.make_ready(number);
            return;
        }
        entry.strikes += 1;
        if entry.strikes >= STRIKES_MAX {
            self.refuse(number, format!("it fails where others do not: {why}"));
        } else {
            let delay = PAUSE_FIRST * 2_u32.pow(entry.strikes);
            self.set_aside(number, delay, false);
        }
    }

    fn pause(&mut self, why: String, retry_after: Option<Duration>) {
        // Those that flew together fail together: that is one failure.
        if self.paused_until <= self.now {
            if self.pauses == 0 {
                self.effects.push(Effect::ReportOutage(why));
            }
            let most = PAUSE_FIRST.saturating_mul(1 << self.pauses.min(16)).min(PAUSE_MAX);
            self.pauses += 1;
            self.paused_until = self.now + self.jitter(most);
        }
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        self.paused_until = self.paused_until.max(self.now + asked);
    }

    /// Anything from a millisecond up to `most`, so that many nodes do not come back at once.
    fn jitter(&mut self, most: Duration) -> Duration {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        let milliseconds = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(1 + self.chance % milliseconds)
    }

    /// What was set aside and whose time has come is ready again.
    fn recall(&mut self) {
        while let Some((until, number)) = self.aside.first().copied() {
            if until > self.now {
                break;
            }
            self.make_ready(number);
        }
    }

    fn launch(&mut self) {
        if self.paused_until > self.now {
            return;
        }
        while self.flights < self.config.flights_max {
            if self.pauses == 0 {
                self.ready.rewind();
            }
            let flight = self.ready.next(&self.config, &self.items);
            if flight.is_empty() {
                break;
            }
            for (number, _) in &flight {
                if let Some(entry) = self.items.get_mut(number) {
                    entry.state = State::Flying;
                    entry.again = false;
                }
            }
            self.flights += 1;
            self.counts.attempts += flight.len() as u64;
            self.effects.push(Effect::Fly(flight));
        }
    }

    fn make_ready(&mut self, number: u64) {
        self.leave_aside(number);
        if let Some(entry) = self.items.get_mut(&number) {
            entry.state = State::Ready;
            self.ready.insert(number, &entry.item, self.config.small_bytes_max);
        }
    }

    fn set_aside(&mut self, number: u64, delay: Duration, refused: bool) {
        let until = self.now + delay;
        if let Some(entry) = self.items.get_mut(&number) {
            entry.state = State::Aside { until, refused };
            self.ready.remove(number);
            self.aside.insert((until, number));
            self.refused += usize::from(refused);
        }
    }

    fn leave_aside(&mut self, number: u64) {
        let Some(entry) = self.items.get(&number) else { return };
        if let State::Aside { until, refused } = entry.state {
            self.aside.remove(&(until, number));
            self.refused -= usize::from(refused);
        }
    }

    fn remove(&mut self, number: u64) {
        self.leave_aside(number);
        self.ready.remove(number);
        if let Some(entry) = self.items.remove(&number) {
            self.numbers.remove(&entry.item);
            self.blobs -= usize::from(matches!(*entry.item, Item::Blob(_)));
        }
    }
}

#[cfg(test)]
mod tests;
