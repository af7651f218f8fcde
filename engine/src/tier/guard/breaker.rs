//! Whether a tier is asked at all: a circuit breaker, closed, open or half-open.
//! Must never look at a clock, wait, or ask: it is told events and the time, and decides.
//!
//! Closed: calls pass. It opens after so many outages in a row, or when too large a part of the
//! recent calls were outages, or when wrong bytes outweigh right ones: a lying tier costs as much
//! as a dead one (fetched, hashed, thrown away, for each request), and leaving it alone for some
//! seconds bounds that. Open: calls are refused at once. When its time is over, the next call is
//! told to probe. Half-open: that one probe decides; everybody else is still refused.
//!
//! Invariant: there is at most one probe, and whoever got it says how it ended, also by losing it.
//! Invariant: an answer to a question asked before the breaker last opened changes nothing.

use std::{collections::VecDeque, time::Duration};

/// Recent calls remembered at most, however long the window.
const WINDOW_CALLS_MAX: usize = 1024;

/// When a tier counts as down, and for how long it is then left alone.
#[derive(Clone, Debug)]
pub struct BreakerConfig {
    /// Outages in a row that open it.
    pub outages_max: u32,
    /// The part of the calls in the window, in percent, that opens it when they are outages.
    pub outages_percent: u32,
    /// Calls that the window must hold before that part means anything.
    pub window_calls_min: usize,
    /// How far back the window reaches; never further than 1024 calls.
    pub window: Duration,
    /// Wrong answers, not outweighed by right ones, that open it.
    pub wrong_max: u32,
    /// How long it stays open the first time.
    pub open_for: Duration,
    /// How long at most, after doubling each time that it opens again soon. With the time of a
    /// probe added, this is how long a tier that is healthy again may be thought dead.
    pub open_for_max: Duration,
    /// How long a probe may take.
    pub probe_timeout: Duration,
}

/// Which stretch of being closed a call belongs to, or which probe is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(u64);

/// What can be said to a breaker.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Somebody wants to ask the tier.
    Called,
    /// A call was answered, with so many blobs; "no" is an answer of no blob.
    Answered(Epoch, u32),
    /// A call met an outage.
    Outage(Epoch),
    /// Bytes of the tier were not those that were asked for.
    Wrong,
    /// The probe was answered.
    ProbeAnswered(Epoch),
    /// The probe met an outage.
    ProbeFailed(Epoch),
    /// Nobody will ever know how the probe would have ended.
    ProbeLost(Epoch),
}

/// What the breaker says to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Ask the tier, and say under this epoch how it went.
    Pass(Epoch),
    /// Do not ask; a probe may be offered after this time (zero: the probe is under way).
    Refuse(Duration),
    /// Send the probe, and say under this epoch how it went.
    Probe(Epoch),
    /// This event opened it.
    Opened,
    /// Nothing to do.
    Noted,
}

/// The three states of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// Calls are refused while a probe is under way.
    HalfOpen,
}

/// Time that only goes forward: what the clock goes back counts as no time. A breaker opened
/// "in the future" would else stay open until the clock has caught up.
#[derive(Debug, Default)]
struct Steady {
    seen: Duration,
    passed: Duration,
}

impl Steady {
    fn at(&mut self, now: Duration) -> Duration {
        self.passed = self.passed.saturating_add(now.saturating_sub(self.seen));
        self.seen = now;
        self.passed
    }
}

/// The circuit breaker of one tier.
#[derive(Debug)]
pub(super) struct Breaker {
    config: BreakerConfig,
    time: Steady,
    state: BreakerState,
    since: Duration,
    open_for: Duration,
    /// Openings that followed each other closely.
    openings: u32,
    epoch: u64,
    outages_in_row: u32,
    recent: VecDeque<(Duration, bool)>,
    recent_outages: usize,
    /// Two for each wrong answer, one less for each blob that came: above `wrong_max` only when
    /// more than half of the blobs were wrong. An order in which right and wrong are heard of is
    /// not needed, as blobs are hashed long after their call was answered.
    lies: u32,
}

impl Breaker {
    pub(super) fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            time: Steady::default(),
            state: BreakerState::Closed,
            since: Duration::ZERO,
            open_for: Duration::ZERO,
            openings: 0,
            epoch: 0,
            outages_in_row: 0,
            recent: VecDeque::new(),
            recent_outages: 0,
            lies: 0,
        }
    }

    /// Takes one event in.
    pub(super) fn handle(&mut self, event: Event, now: Duration) -> Decision {
        let now = self.time.at(now);
        match event {
            Event::Called => self.called(now),
            Event::Answered(epoch, blobs) if self.passes() == Some(epoch) => {
                self.outages_in_row = 0;
                self.lies = self.lies.saturating_sub(blobs);
                self.remember(false, now);
                Decision::Noted
            }
            Event::Outage(epoch) if self.passes() == Some(epoch) => {
                self.outages_in_row = self.outages_in_row.saturating_add(1);
                self.remember(true, now);
                self.open_if(self.too_many_outages(), now)
            }
            Event::Wrong if self.state == BreakerState::Closed => {
                self.lies = self.lies.saturating_add(2);
                self.open_if(self.lies > self.config.wrong_max, now)
            }
            Event::ProbeAnswered(epoch) if self.probing() == Some(epoch) => {
                self.close(now);
                Decision::Noted
            }
            Event::ProbeFailed(epoch) if self.probing() == Some(epoch) => self.open(now),
            Event::ProbeLost(epoch) if self.probing() == Some(epoch) => {
                self.enter(BreakerState::Open, now);
                self.open_for = Duration::ZERO; // nothing was learnt: the next call may probe
                Decision::Noted
            }
            _ => Decision::Noted,
        }
    }

    /// The epoch in which calls pass now, if they do. Never offers a probe.
    pub(super) fn passes(&self) -> Option<Epoch> {
        (self.state == BreakerState::Closed).then_some(Epoch(self.epoch))
    }

    /// What it is, and for how long already.
    pub(super) fn state(&mut self, now: Duration) -> (BreakerState, Duration) {
        let now = self.time.at(now);
        (self.state, now.saturating_sub(self.since))
    }

    fn probing(&self) -> Option<Epoch> {
        (self.state == BreakerState::HalfOpen).then_some(Epoch(self.epoch))
    }

    fn called(&mut self, now: Duration) -> Decision {
        match self.state {
            BreakerState::Closed => Decision::Pass(Epoch(self.epoch)),
            BreakerState::HalfOpen => Decision::Refuse(Duration::ZERO),
            BreakerState::Open => {
                let open = now.saturating_sub(self.since);
                if open < self.open_for {
                    return Decision::Refuse(self.open_for - open);
                }
                self.enter(BreakerState::HalfOpen, now);
                Decision::Probe(Epoch(self.epoch))
            }
        }
    }

    fn remember(&mut self, outage: bool, now: Duration) {
        self.recent.push_back((now, outage));
        self.recent_outages += usize::from(outage);
        while let Some(&(at, outage)) = self.recent.front() {
            let old = now.saturating_sub(at) > self.config.window;
            if !old && self.recent.len() <= WINDOW_CALLS_MAX {
                break;
            }
            self.recent.pop_front();
            self.recent_outages -= usize::from(outage);
        }
    }

    fn too_many_outages(&self) -> bool {
        let calls = self.recent.len();
        let enough = calls >= self.config.window_calls_min.clamp(1, WINDOW_CALLS_MAX);
        let part = self.recent_outages * 100 >= calls * self.config.outages_percent as usize;
        self.outages_in_row >= self.config.outages_max || (enough && part)
    }

    fn open_if(&mut self, open: bool, now: Duration) -> Decision {
        if open { self.open(now) } else { Decision::Noted }
    }

    fn open(&mut self, now: Duration) -> Decision {
        let quiet = now.saturating_sub(self.since) >= self.config.open_for_max;
        let was_well = self.state == BreakerState::Closed && quiet;
        self.openings = if was_well { 0 } else { self.openings };
        let doubled = 2_u32.saturating_pow(self.openings);
        self.openings = self.openings.saturating_add(1);
        let bound = self.config.open_for_max.max(self.config.open_for);
        self.open_for = self.config.open_for.saturating_mul(doubled).min(bound);
        self.enter(BreakerState::Open, now);
        Decision::Opened
    }

    fn close(&mut self, now: Duration) {
        self.outages_in_row = 0;
        self.recent.clear();
        self.recent_outages = 0;
        self.lies = 0;
        self.enter(BreakerState::Closed, now);
    }

    fn enter(&mut self, state: BreakerState, now: Duration) {
        self.state = state;
        self.since = now;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests;
