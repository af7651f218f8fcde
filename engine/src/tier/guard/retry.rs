//! Whether and when a question is asked again, and what may be spent on that.
//! Must never wait, ask, or draw a number by itself: error, chance and time left are given.

use crate::tier::BelowError;
use std::time::Duration;

/// How questions that failed are asked again.
#[derive(Clone, Debug)]
pub struct RetryConfig {
    /// Attempts at one call, the first included.
    pub attempts_max: u32,
    /// What the pause before the second attempt may reach; the bound doubles for each further one.
    pub backoff_first: Duration,
    /// What no pause exceeds, unless the tier asks for more.
    pub backoff_max: Duration,
    /// Retries, in percent of calls: an outage must not be answered with more load.
    pub calls_percent: u32,
    /// Retries that may come at once, on top.
    pub burst: u32,
}

/// How long to wait before asking again, or `None` to give up. `attempts` were made, `left` is
/// what remains of the call's time, `chance` is any number.
pub(super) fn pause(
    config: &RetryConfig,
    error: &BelowError,
    attempts: u32,
    left: Duration,
    chance: u64,
) -> Option<Duration> {
    if !error.may_pass() || attempts >= config.attempts_max {
        return None;
    }
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
    let bound = config.backoff_first.saturating_mul(doubled).min(config.backoff_max);
    // Full jitter: callers that failed together do not come back together.
    let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX - 1);
    let jitter = Duration::from_micros(chance % (micros + 1).max(1));
    let asked = match error {
        BelowError::Busy { retry_after: Some(after), .. } => *after,
        _ => Duration::ZERO,
    };
    // The jitter is added: all who were told "in a second" would else return in the same moment.
    let pause = asked.saturating_add(jitter);
    (pause < left).then_some(pause)
}

/// Something extra that may be done for a part of the calls: a bucket of tokens that calls fill.
/// Whatever was spent is at most `burst` plus that part of the calls.
#[derive(Debug)]
pub(super) struct Budget {
    hundredths: u64,
    percent: u64,
    full: u64,
}

impl Budget {
    pub(super) fn new(calls_percent: u32, burst: u32) -> Self {
        let full = u64::from(burst) * 100;
        // A bucket smaller than one token could never be spent from.
        Self { hundredths: full, percent: calls_percent.into(), full: full.max(100) }
    }

    /// A call was made.
    pub(super) fn called(&mut self) {
        self.hundredths = self.full.min(self.hundredths.saturating_add(self.percent));
    }

    /// Takes a token, if there is one.
    pub(super) fn spend(&mut self) -> bool {
        let left = self.hundredths.checked_sub(100);
        self.hundredths = left.unwrap_or(self.hundredths);
        left.is_some()
    }
}

/// splitmix64: numbers for jitter, the same for the same seed.
#[derive(Debug)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{blob::BlobError, digest::Digest};

    const CONFIG: RetryConfig = RetryConfig {
        attempts_max: 3,
        backoff_first: Duration::from_millis(100),
        backoff_max: Duration::from_millis(150),
        calls_percent: 10,
        burst: 5,
    };
    const LONG: Duration = Duration::from_secs(60);

    fn busy(seconds: u64) -> BelowError {
        let retry_after = Some(Duration::from_secs(seconds));
        BelowError::Busy { why: "full".into(), retry_after }
    }

    #[test]
    fn only_what_may_pass_is_asked_again() {
        let cases = [
            (BelowError::Absent, false),
            (BelowError::Refused("no".into()), false),
            (BelowError::Wrong(Digest::of(b"a")), false),
            (BelowError::Local(BlobError::Full), false),
            (BelowError::TimedOut, true),
            (BelowError::Unreachable("reset".into()), true),
            (busy(0), true),
        ];
        for (error, again) in cases {
            assert_eq!(pause(&CONFIG, &error, 1, LONG, 7).is_some(), again, "{error}");
        }
    }

    #[test]
    fn attempts_are_counted() {
        let made = |attempts| pause(&CONFIG, &BelowError::TimedOut, attempts, LONG, 0).is_some();
        assert_eq!([1, 2, 3, 4].map(made), [true, true, false, false]);
    }

    #[test]
    fn jitter_reaches_from_nothing_to_a_bound_that_doubles_up_to_its_own_bound() {
        let longest = |attempts| {
            let at = |chance| pause(&CONFIG, &BelowError::TimedOut, attempts, LONG, chance);
            (0..1000).filter_map(|step| at(step * 1009)).max().unwrap()
        };
        let config = RetryConfig { attempts_max: 99, ..CONFIG };
        assert_eq!(pause(&config, &BelowError::TimedOut, 1, LONG, 0), Some(Duration::ZERO));
        assert!(longest(1) <= config.backoff_first && longest(1) > config.backoff_first / 2);
        assert!(longest(2) <= config.backoff_max && longest(2) > config.backoff_first);
        for attempts in [31, 64, 98] {
            let pause = pause(&config, &BelowError::TimedOut, attempts, LONG, u64::MAX).unwrap();
            assert!(pause <= config.backoff_max);
        }
    }

    #[test]
    fn what_a_busy_tier_asks_for_is_waited_but_never_past_the_deadline() {
        let second = Duration::from_secs(1);
        assert!(pause(&CONFIG, &busy(1), 1, LONG, 5).unwrap() >= second);
        assert_eq!(pause(&CONFIG, &busy(1), 1, second, 0), None);
        assert_eq!(pause(&CONFIG, &busy(u64::MAX), 1, LONG, u64::MAX), None);
        assert_eq!(pause(&CONFIG, &BelowError::TimedOut, 1, Duration::ZERO, 0), None);
    }

    #[test]
    fn bounds_of_zero_and_of_forever_are_harmless() {
        let none = RetryConfig { backoff_first: Duration::ZERO, ..CONFIG };
        assert_eq!(pause(&none, &BelowError::TimedOut, 1, LONG, 99), Some(Duration::ZERO));
        let far = Duration::MAX;
        let ever = RetryConfig { backoff_first: far, backoff_max: far, ..CONFIG };
        assert_eq!(pause(&ever, &BelowError::TimedOut, 2, LONG, u64::MAX - 7), None);
    }

    #[test]
    fn a_budget_is_never_exceeded_whatever_the_order() {
        for seed in 0..300 {
            let mut chance = Chance(seed);
            let (percent, burst) = (chance.draw() % 30, chance.draw() % 12);
            let mut budget = Budget::new(percent as u32, burst as u32);
            let (mut calls, mut spent) = (0, 0);
            for _ in 0..2000 {
                if chance.draw().is_multiple_of(3) {
                    spent += u64::from(budget.spend());
                } else {
                    budget.called();
                    calls += 1;
                }
                assert!(spent * 100 <= burst * 100 + calls * percent, "seed {seed}");
            }
            assert!(percent == 0 || spent > 0, "seed {seed}: never spent");
        }
    }
}
