//! How long a tier takes to answer, and when an answer is so late that a second question is worth
//! sending. Must never decide whether it may be sent: that is the budget's and the breaker's.

use std::time::Duration;

/// Answers remembered for each kind of question: recent enough to follow a tier whose speed
/// changes, enough for a p95.
const SAMPLES: usize = 256;

/// When a question is asked a second time while the first is still out.
#[derive(Clone, Debug)]
pub struct HedgeConfig {
    /// Answers that must be known before a p95 means anything.
    pub samples_min: usize,
    /// The second question is never sent earlier than this.
    pub delay_min: Duration,
    /// Nor later, where the p95 is beyond it.
    pub delay_max: Duration,
    /// Second questions, in percent of calls.
    pub calls_percent: u32,
    /// Second questions that may come at once, on top.
    pub burst: u32,
}

/// The last answers' times of one kind of question, in microseconds.
#[derive(Debug)]
pub(super) struct Latency {
    ring: Vec<u32>,
    next: usize,
}

impl Latency {
    pub(super) const fn new() -> Self {
        Self { ring: Vec::new(), next: 0 }
    }

    /// An answer took this long.
    pub(super) fn record(&mut self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        if self.ring.len() < SAMPLES {
            self.ring.push(micros);
        } else {
            self.ring[self.next] = micros;
        }
        self.next = (self.next + 1) % SAMPLES;
    }

    /// No answer had come after this long, and nobody waits any more. Counted only where it is
    /// slow already: without the calls that a second question overtook, the p95 would sink with
    /// each of them until everything were asked twice.
    pub(super) fn record_at_least(&mut self, waited: Duration) {
        if self.percentile(95).is_some_and(|p95| waited >= p95) {
            self.record(waited);
        }
    }

    /// The time within which so many percent of the answers came.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut times = self.ring.clone();
        let rank = (times.len() * percent).div_ceil(100).checked_sub(1)?;
        let (_, time, _) = times.select_nth_unstable(rank);
        Some(Duration::from_micros((*time).into()))
    }

    /// How long to wait before a second question; `None` while too little is known.
    pub(super) fn hedge_after(&self, config: &HedgeConfig) -> Option<Duration> {
        let known = self.ring.len() >= config.samples_min.clamp(1, SAMPLES);
        let p95 = known.then(|| self.percentile(95)).flatten()?;
        Some(p95.max(config.delay_min).min(config.delay_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const CONFIG: HedgeConfig = HedgeConfig {
        samples_min: 20,
        delay_min: Duration::from_millis(5),
        delay_max: Duration::from_millis(500),
        calls_percent: 5,
        burst: 4,
    };

    fn of(times: impl IntoIterator<Item = u32>) -> Latency {
        let mut latency = Latency::new();
        times.into_iter().for_each(|time| latency.record(MS * time));
        latency
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let cases: [(Vec<u32>, usize, Option<u32>); 6] = [
            (vec![], 95, None),
            (vec![7], 50, Some(7)),
            (vec![7], 95, Some(7)),
            ((1..=100).rev().collect(), 95, Some(95)),
            ((1..=100).collect(), 50, Some(50)),
            ((1..=20).collect(), 95, Some(19)),
        ];
        for (times, percent, expected) in cases {
            let expected = expected.map(|time| MS * time);
            assert_eq!(of(times.clone()).percentile(percent), expected, "{times:?}");
        }
    }

    #[test]
    fn old_answers_are_forgotten() {
        let mut latency = of((0..1000).map(|_| 900));
        (0..SAMPLES).for_each(|_| latency.record(MS));
        assert_eq!(latency.percentile(95), Some(MS));
        assert_eq!(latency.ring.len(), SAMPLES);
    }

    #[test]
    fn a_second_question_waits_for_the_p95_within_its_bounds() {
        let cases = [(19, 50, None), (20, 50, Some(50)), (20, 1, Some(5)), (20, 9000, Some(500))];
        for (samples, time, expected) in cases {
            let latency = of((0..samples).map(|_| time));
            assert_eq!(latency.hedge_after(&CONFIG), expected.map(|time| MS * time), "{time}");
        }
    }

    #[test]
    fn calls_that_were_overtaken_raise_the_p95_and_hasty_callers_do_not() {
        let mut latency = of((0..100).map(|_| 10));
        latency.record_at_least(MS * 9);
        assert_eq!(latency.ring.len(), 100);
        (0..20).for_each(|_| latency.record_at_least(MS * 40));
        assert_eq!(latency.percentile(95), Some(MS * 40));
    }
}
