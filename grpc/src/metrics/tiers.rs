//! The numbers of what lies below, and of the nodes that share their blobs: how it answers, what
//! came from it and went to it, what it is owed. Must only read.

use super::{
    Collector,
    page::{Family, Number, Page, counter, gauge},
};
use engine::tier::{
    Backlog, BacklogSnapshot, BreakerState, Guarded, Health, Question, Tier, TierCounts,
};
use futures_util::future::{LocalBoxFuture, ready};
use std::time::Duration;

const HEALTH: [Number<Health>; 18] = [
    (
        gauge(
            "ringforge_tier_breaker_state",
            "The circuit breaker: 0 = closed, calls pass; 1 = half open, it is being probed; \
             2 = open, calls are refused.",
        ),
        |tier| breaker_state(tier.breaker),
    ),
    (
        gauge("ringforge_tier_breaker_seconds", "How long the circuit breaker is in its state."),
        |tier| tier.breaker_for.as_secs_f64(),
    ),
    (
        counter("ringforge_tier_breaker_opened_total", "How often the circuit breaker opened."),
        |tier| tier.opened as f64,
    ),
    (counter("ringforge_tier_probes_total", "Probes of a half-open circuit breaker."), |tier| {
        tier.probes as f64
    }),
    (
        counter("ringforge_tier_calls_total", "Calls, refused ones included; retries are none."),
        |tier| tier.calls as f64,
    ),
    (
        counter(
            "ringforge_tier_outages_total",
            "Attempts that found it unreachable, too slow or busy.",
        ),
        |tier| tier.outages as f64,
    ),
    (
        counter("ringforge_tier_refused_total", "Attempts that the circuit breaker refused."),
        |tier| tier.refused as f64,
    ),
    (
        counter(
            "ringforge_tier_shed_total",
            "Attempts refused because too many waited already, or that waited in vain.",
        ),
        |tier| tier.shed as f64,
    ),
    (counter("ringforge_tier_retries_total", "Attempts after the first of a call."), |tier| {
        tier.retries as f64
    }),
    (
        counter("ringforge_tier_hedges_total", "Second questions sent while the first was out."),
        |tier| tier.hedges as f64,
    ),
    (
        counter("ringforge_tier_hedges_won_total", "Second questions that were answered first."),
        |tier| tier.hedges_won as f64,
    ),
    (
        counter(
            "ringforge_tier_wrong_answers_total",
            "Answers whose bytes were not those of their digest.",
        ),
        |tier| tier.wrong as f64,
    ),
    (counter("ringforge_tier_received_bytes_total", "Bytes of blobs received."), |tier| {
        tier.bytes_in as f64
    }),
    (counter("ringforge_tier_sent_bytes_total", "Bytes of blobs sent."), |tier| {
        tier.bytes_out as f64
    }),
    (
        gauge("ringforge_tier_in_flight", "Attempts in flight, streams being read included."),
        |tier| tier.in_flight as f64,
    ),
    (gauge("ringforge_tier_in_flight_max", "Attempts that may be in flight."), |tier| {
        tier.in_flight_max as f64
    }),
    (gauge("ringforge_tier_waiting", "Attempts that wait for their turn."), |tier| {
        tier.waiting as f64
    }),
    (gauge("ringforge_tier_waiting_max", "Attempts that may wait for their turn."), |tier| {
        tier.waiting_max as f64
    }),
];

const P50: Family = gauge(
    "ringforge_tier_answer_p50_seconds",
    "Half of its recent answers to such a question came within this time.",
);
const P95: Family = gauge(
    "ringforge_tier_answer_p95_seconds",
    "95 of 100 of its recent answers to such a question came within this time.",
);

const TIER: [Number<TierCounts>; 12] = [
    (counter("ringforge_tier_fetched_blobs_total", "Blobs brought here."), |tier| {
        tier.fetched.get() as f64
    }),
    (counter("ringforge_tier_fetched_bytes_total", "Their bytes."), |tier| {
        tier.fetched_bytes.get() as f64
    }),
    (counter("ringforge_tier_joined_total", "Requests that joined a fetch under way."), |tier| {
        tier.joined.get() as f64
    }),
    (counter("ringforge_tier_absent_total", "Blobs that it did not have."), |tier| {
        tier.absent.get() as f64
    }),
    (
        counter(
            "ringforge_tier_absent_remembered_total",
            "Blobs not asked for, because it did not have them a moment ago.",
        ),
        |tier| tier.absent_remembered.get() as f64,
    ),
    (
        counter("ringforge_tier_wrong_blobs_total", "Fetched blobs whose bytes were wrong."),
        |tier| tier.wrong.get() as f64,
    ),
    (
        counter(
            "ringforge_tier_resumed_total",
            "Fetches that ended before the last byte and went on where they were.",
        ),
        |tier| tier.resumed.get() as f64,
    ),
    (counter("ringforge_tier_left_total", "Fetches that nobody waited for any more."), |tier| {
        tier.left.get() as f64
    }),
    (counter("ringforge_tier_pushed_blobs_total", "Blobs written below."), |tier| {
        tier.pushed.get() as f64
    }),
    (counter("ringforge_tier_pushed_bytes_total", "Bytes of blobs written below."), |tier| {
        tier.pushed_bytes.get() as f64
    }),
    (
        counter("ringforge_tier_failed_total", "Requests that failed as it could not be asked."),
        |tier| tier.failed.get() as f64,
    ),
    (counter("ringforge_tier_results_total", "Results found there and complete."), |tier| {
        tier.results.get() as f64
    }),
];

/// Of requests that wait for the tier's loop, and how many may.
const INBOX: [Number<(usize, usize)>; 2] = [
    (gauge("ringforge_tier_inbox", "Requests that wait for the tier's loop."), |inbox| {
        inbox.0 as f64
    }),
    (gauge("ringforge_tier_inbox_max", "Requests that may wait for the tier's loop."), |inbox| {
        inbox.1 as f64
    }),
];

const BACKLOG: [Number<BacklogSnapshot>; 11] = [
    (gauge("ringforge_backlog_blobs", "Blobs that wait to be written below."), |backlog| {
        backlog.blobs as f64
    }),
    (gauge("ringforge_backlog_results", "Results that wait to be written below."), |backlog| {
        backlog.actions as f64
    }),
    (gauge("ringforge_backlog_max", "Blobs and results that may wait, together."), |backlog| {
        backlog.items_max as f64
    }),
    (
        gauge(
            "ringforge_backlog_parked",
            "Blobs and results that below refused; they are tried again hourly.",
        ),
        |backlog| backlog.parked as f64,
    ),
    (
        gauge(
            "ringforge_backlog_oldest_seconds",
            "How long the oldest has waited, within this process; 0 where nothing waits.",
        ),
        |backlog| backlog.oldest_age.unwrap_or_default().as_secs_f64(),
    ),
    (gauge("ringforge_backlog_disk_bytes", "Bytes of the backlog's log on disk."), |backlog| {
        backlog.disk_bytes as f64
    }),
    (
        counter("ringforge_backlog_attempts_total", "Attempts to write blobs and results below."),
        |backlog| backlog.attempts as f64,
    ),
    (counter("ringforge_backlog_failures_total", "Attempts that below did not take."), |backlog| {
        backlog.failures as f64
    }),
    (counter("ringforge_backlog_written_total", "Blobs and results written below."), |backlog| {
        backlog.written as f64
    }),
    (
        counter(
            "ringforge_backlog_lost_total",
            "Blobs and results given up, because this node did not have them any more.",
        ),
        |backlog| backlog.lost as f64,
    ),
    (
        counter(
            "ringforge_backlog_damaged_total",
            "Damaged stretches of the log found at the start; each may have been an item.",
        ),
        |backlog| backlog.damaged as f64,
    ),
];

/// A tier below, or all nodes that share their blobs as one.
pub(crate) struct WatchedTier {
    /// What people call it: a URL without secrets, or `home`.
    pub(crate) name: String,
    pub(crate) guard: Guarded,
    pub(crate) tier: Tier,
    /// Where writes wait for it, if it is written to.
    pub(crate) backlog: Option<Backlog>,
}

impl WatchedTier {
    fn write(&self, page: &mut Page) {
        let labels = [("tier", self.name.as_str())];
        let health = self.guard.health();
        page.set_all(&HEALTH, &health, &labels);
        page.set_all(&TIER, self.tier.counts(), &labels);
        page.set_all(&INBOX, &self.tier.inbox(), &labels);
        if let Some(backlog) = &self.backlog {
            page.set_all(&BACKLOG, &backlog.snapshot(), &labels);
        }
        for times in &health.latencies {
            let labels = [("tier", self.name.as_str()), ("question", word(times.question))];
            let mut told = |family, time: Option<Duration>| {
                if let Some(time) = time {
                    page.set(family, &labels, time.as_secs_f64());
                }
            };
            told(&P50, times.p50);
            told(&P95, times.p95);
        }
    }
}

impl Collector for WatchedTier {
    fn collect<'a>(&'a self, page: &'a mut Page) -> LocalBoxFuture<'a, ()> {
        self.write(page);
        Box::pin(ready(()))
    }
}

/// A breaker's state as a number.
pub(super) const fn breaker_state(state: BreakerState) -> f64 {
    match state {
        BreakerState::Closed => 0.0,
        BreakerState::HalfOpen => 1.0,
        BreakerState::Open => 2.0,
    }
}

const fn word(question: Question) -> &'static str {
    match question {
        Question::Read => "read",
        Question::ReadMany => "read_many",
        Question::FindMissing => "find_missing",
        Question::GetAction => "get_action",
        Question::Write => "write",
        Question::WriteMany => "write_many",
        Question::PutAction => "put_action",
        Question::Probe => "probe",
    }
}
