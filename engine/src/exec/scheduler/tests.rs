//! The rules of the scheduler, one at a time; `history` tries them all at once.

mod cluster;
mod history;
mod offload;

use super::{
    Config, RETURNS_MAX, Scheduler,
    event::{
        ActionKey, Effect, Event,
        ExecutionStage::{self, Executing, Queued},
        FailReason::{self, Cancelled, WorkerFailed},
        OperationId, RefuseReason, RunId,
    },
};
use crate::digest::HASH_BYTES;
use std::time::Duration;

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 3;
const D: u8 = 4;
const SHARED: bool = true;
const ALONE: bool = false;

const CONFIG: Config = Config {
    slots: 1,
    accept_ahead: 1,
    queue_max: 8,
    operations_max: 16,
    abandon_after: Duration::from_secs(60),
    kept: Duration::from_secs(600),
    kept_max: 8,
};

/// A scheduler, and the time that tests let pass.
struct Bench {
    scheduler: Scheduler,
    now: Duration,
}

impl Bench {
    fn new(config: Config) -> Self {
        Self { scheduler: Scheduler::new(config), now: Duration::from_secs(1000) }
    }

    fn tell(&mut self, event: Event) -> Vec<Effect> {
        self.scheduler.handle(event, self.now)
    }

    /// An operation of priority 0 that may share its run.
    fn submit(&mut self, operation: u64, action: u8) -> Vec<Effect> {
        self.submit_as(operation, action, 0, SHARED)
    }

    fn submit_as(&mut self, operation: u64, action: u8, prio: i32, joinable: bool) -> Vec<Effect> {
        let (operation, action) = (OperationId(operation), key(action));
        let (locality, forwarded) = (0, false);
        self.tell(Event::Submit {
            operation,
            action,
            priority: prio,
            joinable,
            locality,
            forwarded,
        })
    }

    fn stage(&mut self, run: u64, stage: ExecutionStage) -> Vec<Effect> {
        self.tell(Event::Stage { run: RunId(run), stage })
    }

    fn finished(&mut self, run: u64) -> Vec<Effect> {
        self.tell(Event::Finished { run: RunId(run) })
    }

    fn returned(&mut self, run: u64) -> Vec<Effect> {
        self.tell(Event::Returned { run: RunId(run) })
    }

    fn cancel(&mut self, operation: u64) -> Vec<Effect> {
        self.tell(Event::Cancel { operation: OperationId(operation) })
    }

    fn listeners(&mut self, operation: u64, count: usize) {
        let effects = self.tell(Event::Listeners { operation: OperationId(operation), count });
        assert_eq!(effects, []);
    }

    fn tick_after(&mut self, passed: Duration) -> Vec<Effect> {
        self.now += passed;
        self.tell(Event::Tick)
    }

    /// Finishes runs in the order of their start and tells which operations that completes.
    fn completed_in_order(&mut self, runs: u64) -> Vec<u64> {
        let effects = (1..=runs).flat_map(|run| self.finished(run));
        effects
            .filter_map(|effect| match effect {
                Effect::Complete { operation } => Some(operation.0),
                _ => None,
            })
            .collect()
    }
}

fn key(action: u8) -> ActionKey {
    ActionKey([action; HASH_BYTES])
}

fn publish(operation: u64, stage: ExecutionStage) -> Effect {
    Effect::Publish { operation: OperationId(operation), stage }
}

fn run(run: u64, operation: u64, action: u8) -> Effect {
    Effect::Run { run: RunId(run), operation: OperationId(operation), action: key(action) }
}

fn kill(run: u64) -> Effect {
    Effect::Kill { run: RunId(run) }
}

fn complete(operation: u64) -> Effect {
    Effect::Complete { operation: OperationId(operation) }
}

fn fail(operation: u64, reason: FailReason) -> Effect {
    Effect::Fail { operation: OperationId(operation), reason }
}

fn refuse(operation: u64, reason: RefuseReason) -> Effect {
    Effect::Refuse { operation: OperationId(operation), reason }
}

fn forget(operation: u64) -> Effect {
    Effect::Forget { operation: OperationId(operation) }
}

#[test]
fn an_operation_is_queued_then_executing_then_complete() {
    let mut bench = Bench::new(CONFIG);
    assert_eq!(bench.submit(1, A), [publish(1, Queued), run(1, 1, A)]);
    assert_eq!(bench.stage(1, Executing), [publish(1, Executing)]);
    assert!(!bench.scheduler.is_idle());
    assert_eq!(bench.finished(1), [complete(1)]);
    assert!(bench.scheduler.is_idle());
}

#[test]
fn a_stage_that_is_known_is_not_published_again() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    assert_eq!(bench.stage(1, Queued), []);
    bench.stage(1, Executing);
    assert_eq!(bench.stage(1, Executing), []);
}

#[test]
fn the_queue_goes_by_priority_then_arrival() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    for (operation, priority) in [(2, 5), (3, 0), (4, -7), (5, 0), (6, i32::MIN), (7, i32::MAX)] {
        bench.submit_as(operation, u8::try_from(operation).unwrap(), priority, SHARED);
    }
    assert_eq!(bench.completed_in_order(7), [1, 6, 4, 3, 5, 2, 7]);
}

#[test]
fn no_more_runs_than_slots_are_started() {
    let mut bench = Bench::new(Config { slots: 2, ..CONFIG });
    assert_eq!(bench.submit(1, A), [publish(1, Queued), run(1, 1, A)]);
    assert_eq!(bench.submit(2, B), [publish(2, Queued), run(2, 2, B)]);
    assert_eq!(bench.submit(3, C), [publish(3, Queued)]);
    assert_eq!(bench.finished(2), [complete(2), run(3, 3, C)]);
}

#[test]
fn the_same_action_runs_once_for_all_who_ask() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    assert_eq!(bench.submit(2, A), [publish(2, Queued)]);
    assert_eq!(bench.stage(1, Executing), [publish(1, Executing), publish(2, Executing)]);
    assert_eq!(bench.submit(3, A), [publish(3, Executing)]);
    assert_eq!(bench.finished(1), [complete(1), complete(2), complete(3)]);
}

#[test]
fn a_finished_run_is_not_joined() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.finished(1);
    assert_eq!(bench.submit(2, A), [publish(2, Queued), run(2, 2, A)]);
}

#[test]
fn an_operation_that_may_not_be_cached_shares_no_run() {
    let mut bench = Bench::new(Config { slots: 4, ..CONFIG });
    assert_eq!(bench.submit_as(1, A, 0, ALONE), [publish(1, Queued), run(1, 1, A)]);
    assert_eq!(bench.submit_as(2, A, 0, SHARED), [publish(2, Queued), run(2, 2, A)]);
    assert_eq!(bench.submit_as(3, A, 0, ALONE), [publish(3, Queued), run(3, 3, A)]);
    bench.finished(1);
    assert_eq!(bench.submit_as(4, A, 0, SHARED), [publish(4, Queued)]);
    assert_eq!(bench.finished(2), [complete(2), complete(4)]);
}

#[test]
fn a_waiting_run_is_as_urgent_as_its_most_urgent_operation() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit_as(2, B, 5, SHARED);
    bench.submit_as(3, C, 1, SHARED);
    bench.submit_as(4, B, 0, SHARED);
    assert_eq!(bench.finished(1), [complete(1), run(2, 4, B)]);
    assert_eq!(bench.finished(2), [complete(4), complete(2), run(3, 3, C)]);
}

#[test]
fn a_run_loses_the_urgency_of_an_operation_that_is_cancelled() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit_as(2, B, 5, SHARED);
    bench.submit_as(3, C, 1, SHARED);
    bench.submit_as(4, B, 0, SHARED);
    assert_eq!(bench.cancel(4), [fail(4, Cancelled)]);
    assert_eq!(bench.finished(1), [complete(1), run(2, 3, C)]);
}

#[test]
fn a_full_queue_refuses_runs_but_not_those_who_join() {
    let mut bench = Bench::new(Config { queue_max: 1, ..CONFIG });
    bench.submit(1, A);
    bench.submit(2, B);
    assert_eq!(bench.submit(3, C), [refuse(3, RefuseReason::Overloaded)]);
    assert_eq!(bench.submit(4, B), [publish(4, Queued)]);
    assert_eq!(bench.submit(5, A), [publish(5, Queued)]);
    bench.finished(1);
    assert_eq!(bench.submit(6, C), [publish(6, Queued)]);
}

#[test]
fn without_a_queue_a_free_slot_still_serves() {
    let mut bench = Bench::new(Config { queue_max: 0, ..CONFIG });
    assert_eq!(bench.submit(1, A), [publish(1, Queued), run(1, 1, A)]);
    assert_eq!(bench.submit(2, B), [refuse(2, RefuseReason::Overloaded)]);
}

#[test]
fn too_many_live_operations_are_refused_even_if_they_would_join() {
    let mut bench = Bench::new(Config { operations_max: 2, ..CONFIG });
    bench.submit(1, A);
    bench.submit(2, A);
    assert_eq!(bench.submit(3, A), [refuse(3, RefuseReason::Overloaded)]);
    bench.cancel(2);
    assert_eq!(bench.submit(4, A), [publish(4, Queued)]);
}

#[test]
fn a_repeated_submit_of_a_live_operation_has_no_effect() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    assert_eq!(bench.submit(1, A), []);
    assert_eq!(bench.submit(1, B), []);
    assert_eq!(bench.finished(1), [complete(1)]);
}

#[test]
fn a_run_that_is_handed_back_is_first_among_equals_as_another_attempt() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    bench.stage(1, Executing);
    assert_eq!(bench.returned(1), [publish(1, Queued), run(2, 1, A)]);
    assert_eq!(bench.finished(1), [], "the first attempt is over");
    bench.submit_as(3, C, -1, SHARED);
    assert_eq!(bench.returned(2), [run(3, 3, C)], "what is more urgent goes before it");
    assert_eq!(bench.submit(4, A), [publish(4, Queued)], "it is joined while it waits");
    assert_eq!(bench.finished(3), [complete(3), run(4, 1, A)]);
    assert_eq!(bench.finished(4), [complete(1), complete(4), run(5, 2, B)]);
}

#[test]
fn a_run_that_is_handed_back_too_often_fails() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, A);
    bench.submit(3, B);
    for attempt in 1..=u64::from(RETURNS_MAX) {
        assert_eq!(bench.returned(attempt), [run(attempt + 1, 1, A)]);
    }
    let last = u64::from(RETURNS_MAX) + 1;
    let failed = [fail(1, WorkerFailed), fail(2, WorkerFailed), run(last + 1, 3, B)];
    assert_eq!(bench.returned(last), failed);
    assert_eq!(bench.submit(4, A), [publish(4, Queued)], "a later one tries anew");
}

#[test]
fn the_last_operation_to_go_takes_its_waiting_run_along() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    bench.submit(3, B);
    assert_eq!(bench.cancel(2), [fail(2, Cancelled)]);
    assert_eq!(bench.scheduler.snapshot().queued, 1);
    assert_eq!(bench.cancel(3), [fail(3, Cancelled)]);
    assert_eq!(bench.scheduler.snapshot().queued, 0);
    assert_eq!(bench.finished(1), [complete(1)]);
}

#[test]
fn the_last_operation_to_go_kills_its_run_which_keeps_its_slot_until_it_is_dead() {
    for let_go in [Bench::finished, Bench::returned] {
        let mut bench = Bench::new(CONFIG);
        bench.submit(1, A);
        bench.submit(2, A);
        assert_eq!(bench.cancel(1), [fail(1, Cancelled)]);
        assert_eq!(bench.cancel(2), [kill(1), fail(2, Cancelled)]);
        assert_eq!(bench.submit(3, A), [publish(3, Queued)], "a dying run is not joined");
        assert_eq!(bench.stage(1, Executing), []);
        assert_eq!(bench.scheduler.snapshot().executing, 1);
        assert_eq!(let_go(&mut bench, 1), [run(2, 3, A)]);
        assert_eq!(bench.finished(2), [complete(3)]);
    }
}

#[test]
fn a_killed_run_is_waited_for_before_the_node_is_idle() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.cancel(1);
    assert!(!bench.scheduler.is_idle());
    assert_eq!(bench.finished(1), []);
    assert!(bench.scheduler.is_idle());
}

#[test]
fn what_names_the_unknown_or_ended_has_no_effect() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.finished(1);
    for id in [0, 1, 2, u64::MAX] {
        assert_eq!(bench.cancel(id), []);
        assert_eq!(bench.finished(id), []);
        assert_eq!(bench.returned(id), []);
        assert_eq!(bench.stage(id, Executing), []);
        bench.listeners(id, 0);
    }
    assert_eq!(bench.tick_after(CONFIG.abandon_after), []);
}

#[test]
fn a_waiting_operation_that_nobody_listens_to_is_given_up() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    bench.submit(3, B);
    bench.listeners(2, 0);
    let almost = CONFIG.abandon_after - Duration::from_nanos(1);
    assert_eq!(bench.tick_after(almost), []);
    bench.listeners(2, 0);
    assert_eq!(bench.tick_after(Duration::from_nanos(1)), [fail(2, Cancelled)]);
    assert_eq!(bench.finished(1), [complete(1), run(2, 3, B)]);
}

#[test]
fn a_listener_that_comes_back_in_time_keeps_its_operation() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    bench.listeners(2, 0);
    bench.now += CONFIG.abandon_after;
    bench.listeners(2, 1);
    assert_eq!(bench.tick_after(Duration::ZERO), []);
    bench.listeners(2, 0);
    assert_eq!(bench.tick_after(CONFIG.abandon_after), [fail(2, Cancelled)]);
}

#[test]
fn a_run_that_has_begun_goes_on_unheard_only_if_its_result_can_be_cached() {
    for (joinable, then) in [(SHARED, vec![]), (ALONE, vec![kill(1), fail(1, Cancelled)])] {
        let mut bench = Bench::new(CONFIG);
        bench.submit_as(1, A, 0, joinable);
        bench.stage(1, Executing);
        bench.listeners(1, 0);
        assert_eq!(bench.tick_after(CONFIG.abandon_after), then);
        let ends = if joinable { vec![complete(1)] } else { vec![] };
        assert_eq!(bench.finished(1), ends);
    }
}

#[test]
fn an_ended_operation_is_forgotten_after_a_while() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.finished(1);
    assert_eq!(bench.tick_after(CONFIG.kept / 2), []);
    bench.submit(2, B);
    bench.cancel(2);
    assert_eq!(bench.tick_after(CONFIG.kept / 2), [forget(1)]);
    assert_eq!(bench.tick_after(CONFIG.kept / 2), [forget(2)]);
    assert_eq!(bench.tick_after(CONFIG.kept), []);
}

#[test]
fn of_too_many_ended_operations_the_oldest_is_forgotten_at_once() {
    let mut bench = Bench::new(Config { kept_max: 1, ..CONFIG });
    bench.submit(1, A);
    assert_eq!(bench.finished(1), [complete(1)]);
    bench.submit(2, B);
    assert_eq!(bench.finished(2), [complete(2), forget(1)]);

    let mut bench = Bench::new(Config { kept_max: 0, ..CONFIG });
    bench.submit(1, A);
    assert_eq!(bench.finished(1), [complete(1), forget(1)]);
}

#[test]
fn a_draining_node_ends_what_waits_finishes_what_runs_and_accepts_nothing() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    bench.submit_as(3, C, -1, ALONE);
    let handed_back = [fail(3, FailReason::Draining), fail(2, FailReason::Draining)];
    assert_eq!(bench.tell(Event::Drain), handed_back);
    assert_eq!(bench.tell(Event::Drain), []);
    for action in [A, D] {
        assert_eq!(bench.submit(9, action), [refuse(9, RefuseReason::Draining)]);
    }
    assert!(bench.scheduler.snapshot().draining);
    assert_eq!(bench.finished(1), [complete(1)]);
    assert!(bench.scheduler.is_idle());
}

#[test]
fn a_draining_node_does_not_start_again_what_is_handed_back() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.tell(Event::Drain);
    assert_eq!(bench.returned(1), [fail(1, FailReason::Draining)]);
    assert!(bench.scheduler.is_idle());
}

#[test]
fn a_clock_that_stands_or_steps_back_does_no_harm() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    bench.listeners(2, 0);
    bench.finished(1);
    bench.now = Duration::ZERO;
    assert_eq!(bench.tick_after(Duration::ZERO), []);
}
