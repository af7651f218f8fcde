//! All that is known of one tier and all that is decided from it: breaker, budgets, latencies,
//! counters. Must never wait or ask: the calls report here, with the time, and are told.

use super::{
    breaker::{Breaker, BreakerState, Decision, Epoch, Event},
    config::GuardConfig,
    latency::Latency,
    retry::{Budget, Chance, pause},
};
use crate::tier::BelowError;
use std::time::Duration;

/// The bytes of an outage's text that are kept, to be told to those who are refused.
const WHY_BYTES_MAX: usize = 200;

/// The kinds of questions, each with latencies of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// A blob, until its first piece.
    Read,
    /// Small blobs.
    ReadMany,
    /// What is absent.
    FindMissing,
    /// The result of an action.
    GetAction,
    /// A blob to keep, with the time that its source takes.
    Write,
    /// Small blobs to keep.
    WriteMany,
    /// The result of an action to keep.
    PutAction,
    /// Whether it is there.
    Probe,
}

impl Question {
    /// All, in the order of their latencies in [`Health`].
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::ReadMany,
        Self::FindMissing,
        Self::GetAction,
        Self::Write,
        Self::WriteMany,
        Self::PutAction,
        Self::Probe,
    ];

    /// Whether asking it twice at once is harmless.
    const fn may_be_hedged(self) -> bool {
        matches!(self, Self::Read | Self::ReadMany | Self::FindMissing | Self::GetAction)
    }
}

/// The latencies of recent answers to one kind of question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerTimes {
    /// The kind.
    pub question: Question,
    /// Half of the answers came within this time; `None` before the first.
    pub p50: Option<Duration>,
    /// 95 of 100 answers came within this time.
    pub p95: Option<Duration>,
}

/// A tier's health at one moment. Counters count from the start of the node.
#[derive(Clone, Debug)]
pub struct Health {
    /// The state of the circuit breaker.
    pub breaker: BreakerState,
    /// For how long it has been in that state.
    pub breaker_for: Duration,
    /// How often it opened.
    pub opened: u64,
    /// Probes sent by a half-open breaker.
    pub probes: u64,
    /// Calls, whether they reached the tier or not. Retries and hedges are not calls.
    pub calls: u64,
    /// Attempts that met an outage: unreachable, too slow, busy.
    pub outages: u64,
    /// Attempts that the breaker refused.
    pub refused: u64,
    /// Attempts refused because too many waited already, or waited in vain.
    pub shed: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Second questions sent while the first was out.
    pub hedges: u64,
    /// Second questions that were answered first.
    pub hedges_won: u64,
    /// Answers whose bytes were not those of their digest.
    pub wrong: u64,
    /// Bytes of blobs received.
    pub bytes_in: u64,
    /// Bytes of blobs sent.
    pub bytes_out: u64,
    /// Attempts in flight, streams being read included.
    pub in_flight: usize,
    /// Attempts that may be in flight.
    pub in_flight_max: usize,
    /// Attempts waiting for their turn.
    pub waiting: usize,
    /// Attempts that may wait for their turn.
    pub waiting_max: usize,
    /// Latencies, in the order of [`Question::ALL`].
    pub latencies: [AnswerTimes; 8],
}

#[derive(Debug, Default)]
struct Counters {
    opened: u64,
    probes: u64,
    calls: u64,
    outages: u64,
    refused: u64,
    shed: u64,
    retries: u64,
    hedges: u64,
    hedges_won: u64,
    wrong: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// What is known of one tier.
#[derive(Debug)]
pub(super) struct Ledger {
    config: GuardConfig,
    breaker: Breaker,
    retries: Budget,
    hedges: Budget,
    latencies: [Latency; 8],
    chance: Chance,
    counters: Counters,
    why: String,
}

impl Ledger {
    pub(super) fn new(config: GuardConfig) -> Self {
        Self {
            breaker: Breaker::new(config.breaker.clone()),
            retries: Budget::new(config.retry.calls_percent, config.retry.burst),
            hedges: Budget::new(config.hedge.calls_percent, config.hedge.burst),
            latencies: [const { Latency::new() }; 8],
            chance: Chance(config.seed),
            counters: Counters::default(),
            why: String::new(),
            config,
        }
    }

    /// A call begins.
    pub(super) fn called(&mut self) {
        self.counters.calls += 1;
        self.retries.called();
        self.hedges.called();
    }

    /// Whether an attempt may go on to wait for its turn, or is to probe first.
    pub(super) fn ask(&mut self, now: Duration) -> Decision {
        let decision = self.breaker.handle(Event::Called, now);
        self.counters.refused += u64::from(matches!(decision, Decision::Refuse(_)));
        self.counters.probes += u64::from(matches!(decision, Decision::Probe(_)));
        decision
    }

    /// Whether an attempt whose turn has come may still ask.
    pub(super) fn passes(&self) -> Option<Epoch> {
        self.breaker.passes()
    }

    /// An attempt was refused by the breaker after it had waited.
    pub(super) const fn refused(&mut self) {
        self.counters.refused += 1;
    }

    /// An attempt did not get its turn.
    pub(super) const fn shed(&mut self) {
        self.counters.shed += 1;
    }

    /// The probe ended; true if that opened the breaker again.
    pub(super) fn probed(
        &mut self,
        epoch: Epoch,
        answer: Result<(), &BelowError>,
        now: Duration,
    ) -> bool {
        match answer {
            Err(error) if error.is_outage() => {
                self.counters.outages += 1;
                self.keep_why(error);
                self.tell(Event::ProbeFailed(epoch), now)
            }
            _ => self.tell(Event::ProbeAnswered(epoch), now),
        }
    }

    /// The probe was given up.
    pub(super) fn probe_lost(&mut self, epoch: Epoch, now: Duration) {
        self.tell(Event::ProbeLost(epoch), now);
    }

    /// The tier began to answer after this time.
    pub(super) fn first_answer(&mut self, question: Question, took: Duration) {
        self.latencies[question as usize].record(took);
    }

    /// An attempt ended well, with so many blobs.
    pub(super) fn answered(&mut self, epoch: Epoch, blobs: u32, now: Duration) {
        self.tell(Event::Answered(epoch, blobs), now);
    }

    /// An attempt ended with an error; true if that opened the breaker.
    pub(super) fn failed(&mut self, epoch: Epoch, error: &BelowError, now: Duration) -> bool {
        if error.is_outage() {
            self.counters.outages += 1;
            self.keep_why(error);
            return self.tell(Event::Outage(epoch), now);
        }
        match error {
            BelowError::Local(_) => false, // says nothing of the tier
            BelowError::Wrong(_) => {
                self.tell(Event::Answered(epoch, 0), now);
                self.wrong(now)
            }
            _ => self.tell(Event::Answered(epoch, 0), now),
        }
    }

    /// Nobody waits for an attempt any more, after this time without an answer; true if that
    /// opened the breaker. Callers who are less patient than the configured timeout would else
    /// hide a tier that hangs. Of a blob being written nothing is concluded: it may have waited
    /// for its source.
    pub(super) fn abandoned(
        &mut self,
        epoch: Epoch,
        (question, waited): (Question, Duration),
        now: Duration,
    ) -> bool {
        if question == Question::Write {
            return false;
        }
        self.latencies[question as usize].record_at_least(waited);
        self.speaks_against_it(waited) && self.failed(epoch, &BelowError::TimedOut, now)
    }

    /// Whether silence of this length is the tier's fault: what began shortly before its call's
    /// deadline, after waiting or another attempt, says nothing.
    pub(super) fn speaks_against_it(&self, waited: Duration) -> bool {
        waited >= self.config.timeout / 2
    }

    /// Bytes were not those of their digest; true if that opened the breaker.
    pub(super) fn wrong(&mut self, now: Duration) -> bool {
        self.counters.wrong += 1;
        self.tell(Event::Wrong, now)
    }

    /// How long to wait before asking again, if that is to be done; it is paid for then.
    pub(super) fn retry(
        &mut self,
        error: &BelowError,
        attempts: u32,
        left: Duration,
    ) -> Option<Duration> {
        let chance = self.chance.draw();
        let pause = pause(&self.config.retry, error, attempts, left, chance)?;
        self.breaker.passes()?;
        self.retries.spend().then(|| {
            self.counters.retries += 1;
            pause
        })
    }

    /// How long to wait for an answer before asking a second time, if at all.
    pub(super) fn hedge_after(&self, question: Question) -> Option<Duration> {
        let latency = question.may_be_hedged().then_some(&self.latencies[question as usize])?;
        latency.hedge_after(&self.config.hedge)
    }

    /// The epoch of a second question, if it may be sent; it is paid for then.
    pub(super) fn hedge(&mut self) -> Option<Epoch> {
        let epoch = self.breaker.passes()?;
        self.hedges.spend().then(|| {
            self.counters.hedges += 1;
            epoch
        })
    }

    /// A second question was answered before the first.
    pub(super) const fn hedge_won(&mut self) {
        self.counters.hedges_won += 1;
    }

    /// Bytes of blobs came.
    pub(super) const fn bytes_in(&mut self, bytes: u64) {
        self.counters.bytes_in += bytes;
    }

    /// Bytes of blobs were taken.
    pub(super) const fn bytes_out(&mut self, bytes: u64) {
        self.counters.bytes_out += bytes;
    }

    /// What the last outage said of itself.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// Everything, for metrics. Who is in flight or waits is not known here.
    pub(super) fn health(&mut self, now: Duration) -> Health {
        let (breaker, breaker_for) = self.breaker.state(now);
        let counters = &self.counters;
        Health {
            breaker,
            breaker_for,
            opened: counters.opened,
            probes: counters.probes,
            calls: counters.calls,
            outages: counters.outages,
            refused: counters.refused,
            shed: counters.shed,
            retries: counters.retries,
            hedges: counters.hedges,
            hedges_won: counters.hedges_won,
            wrong: counters.wrong,
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            in_flight: 0,
            in_flight_max: 0,
            waiting: 0,
            waiting_max: self.config.waiting_max,
            latencies: Question::ALL.map(|question| {
                let latency = &self.latencies[question as usize];
                let (p50, p95) = (latency.percentile(50), latency.percentile(95));
                AnswerTimes { question, p50, p95 }
            }),
        }
    }

    fn tell(&mut self, event: Event, now: Duration) -> bool {
        let opened = self.breaker.handle(event, now) == Decision::Opened;
        if opened {
            self.counters.opened += 1;
            if matches!(event, Event::Wrong) {
                self.why = "its bytes are not what was asked for".into();
            }
        }
        opened
    }

    fn keep_why(&mut self, error: &BelowError) {
        self.why = error.to_string();
        self.why.truncate(self.why.floor_char_boundary(WHY_BYTES_MAX));
    }
}
