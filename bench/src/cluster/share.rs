//! How busy workers were, from the times that results carry. Must not ask anybody for it: what
//! asks disturbs what it measures.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::run::Ran;

/// Each worker, the share of its slots' time in which an action had them, and how many it ran.
/// The time is that from the first begin to the last end on any worker. An action has its slot
/// from the begin of its laying out to the end of its collecting; what lies between two actions,
/// such as their way here and back, is not in it.
pub(super) fn busy(ran: &[Ran], slots: u32) -> Vec<(String, f64, usize)> {
    let begin = ran.iter().map(|one| one.started).min();
    let end = ran.iter().map(|one| one.completed).max();
    let Some((begin, end)) = begin.zip(end) else { return Vec::new() };
    let window = between(begin, end).as_secs_f64() * f64::from(slots);
    let mut workers: BTreeMap<&str, (Duration, usize)> = BTreeMap::new();
    for one in ran {
        let (time, count) = workers.entry(&one.worker).or_default();
        *time += between(one.started, one.completed);
        *count += 1;
    }
    let share = |time: Duration| if window > 0.0 { time.as_secs_f64() / window } else { 0.0 };
    let line =
        |(name, (time, count)): (&str, (Duration, usize))| (name.to_owned(), share(time), count);
    workers.into_iter().map(line).collect()
}

fn between(begin: SystemTime, end: SystemTime) -> Duration {
    // A clock that was set back in between.
    end.duration_since(begin).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_busy_while_it_has_an_action() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let ran = |worker: &str, started, completed| Ran {
            took: Duration::ZERO,
            worker: worker.to_owned(),
            started: at(started),
            completed: at(completed),
        };
        let all = [ran("a", 0, 25), ran("a", 75, 100), ran("b", 10, 35)];
        let shares = busy(&all, 1);
        assert_eq!(shares, [("a".to_owned(), 0.5, 2), ("b".to_owned(), 0.25, 1)]);
        assert_eq!(busy(&all, 2)[0].1, 0.25);
        assert!(busy(&[], 1).is_empty());
    }
}
