//! The breaker under seeded histories: late answers, lost probes, clocks that jump.

use super::*;
use crate::tier::guard::retry::Chance;

const SECOND: Duration = Duration::from_secs(1);
const CONFIG: BreakerConfig = BreakerConfig {
    outages_max: 5,
    outages_percent: 50,
    window_calls_min: 20,
    window: Duration::from_secs(10),
    wrong_max: 6,
    open_for: Duration::from_secs(5),
    open_for_max: Duration::from_secs(8),
    probe_timeout: Duration::from_secs(2),
};

fn pass(breaker: &mut Breaker, now: Duration) -> Epoch {
    match breaker.handle(Event::Called, now) {
        Decision::Pass(epoch) => epoch,
        other => panic!("{other:?}"),
    }
}

fn probe(breaker: &mut Breaker, now: Duration) -> Epoch {
    match breaker.handle(Event::Called, now) {
        Decision::Probe(epoch) => epoch,
        other => panic!("{other:?}"),
    }
}

/// A breaker that opened at this time.
fn opened(now: Duration) -> Breaker {
    let mut breaker = Breaker::new(CONFIG);
    let epoch = pass(&mut breaker, now);
    let said: Vec<_> = (0..5).map(|_| breaker.handle(Event::Outage(epoch), now)).collect();
    assert_eq!(said[3..], [Decision::Noted, Decision::Opened]);
    breaker
}

#[test]
fn outages_in_a_row_open_it_and_an_answer_breaks_the_row() {
    let mut breaker = Breaker::new(CONFIG);
    let epoch = pass(&mut breaker, SECOND);
    for _ in 0..4 {
        breaker.handle(Event::Outage(epoch), SECOND);
    }
    breaker.handle(Event::Answered(epoch, 0), SECOND);
    for _ in 0..4 {
        assert_eq!(breaker.handle(Event::Outage(epoch), SECOND), Decision::Noted);
    }
    assert_eq!(breaker.handle(Event::Outage(epoch), SECOND), Decision::Opened);
    assert_eq!(breaker.handle(Event::Called, SECOND), Decision::Refuse(CONFIG.open_for));
}

#[test]
fn a_large_part_of_outages_opens_it_once_enough_calls_are_known() {
    let mut breaker = Breaker::new(CONFIG);
    let epoch = pass(&mut breaker, SECOND);
    for call in 1..=20 {
        let said = if call % 2 == 0 {
            breaker.handle(Event::Outage(epoch), SECOND)
        } else {
            breaker.handle(Event::Answered(epoch, 1), SECOND)
        };
        assert_eq!(said == Decision::Opened, call == 20, "{call}");
    }
}

#[test]
fn outages_older_than_the_window_do_not_count() {
    let mut breaker = Breaker::new(CONFIG);
    let epoch = pass(&mut breaker, SECOND);
    for call in 0..200 {
        let event = if call % 2 == 0 { Event::Outage(epoch) } else { Event::Answered(epoch, 1) };
        assert_eq!(breaker.handle(event, SECOND * call), Decision::Noted, "{call}");
    }
    assert!(breaker.recent.len() <= 11);
}

#[test]
fn the_window_is_bounded_however_many_calls_there_are() {
    let mut breaker = Breaker::new(CONFIG);
    let epoch = pass(&mut breaker, SECOND);
    for call in 0..5000 {
        let event = if call % 4 == 0 { Event::Outage(epoch) } else { Event::Answered(epoch, 1) };
        breaker.handle(event, SECOND);
    }
    assert_eq!((breaker.recent.len(), breaker.recent_outages), (1024, 256));
}

#[test]
fn one_probe_decides_and_everybody_else_is_refused_meanwhile() {
    for answered in [true, false] {
        let mut breaker = opened(SECOND);
        let at = SECOND + CONFIG.open_for;
        let early = at - Duration::from_nanos(1);
        let again_in = Decision::Refuse(Duration::from_nanos(1));
        assert_eq!(breaker.handle(Event::Called, early), again_in);
        let epoch = probe(&mut breaker, at);
        for later in 0..100 {
            let said = breaker.handle(Event::Called, at + SECOND * later);
            assert_eq!(said, Decision::Refuse(Duration::ZERO));
        }
        let ended = at + SECOND * 100;
        if answered {
            breaker.handle(Event::ProbeAnswered(epoch), ended);
            pass(&mut breaker, ended);
        } else {
            assert_eq!(breaker.handle(Event::ProbeFailed(epoch), ended), Decision::Opened);
            let said = breaker.handle(Event::Called, ended);
            assert_eq!(said, Decision::Refuse(CONFIG.open_for_max));
        }
    }
}

#[test]
fn a_lost_probe_is_offered_again_at_once() {
    let mut breaker = opened(SECOND);
    let at = SECOND * 6;
    let lost = probe(&mut breaker, at);
    breaker.handle(Event::ProbeLost(lost), at);
    let second = probe(&mut breaker, at);
    // What is said of the lost one later changes nothing.
    breaker.handle(Event::ProbeAnswered(lost), at);
    assert_eq!(breaker.handle(Event::Called, at), Decision::Refuse(Duration::ZERO));
    breaker.handle(Event::ProbeAnswered(second), at);
    pass(&mut breaker, at);
}

#[test]
fn it_stays_open_longer_each_time_up_to_its_bound_and_forgets_that_when_all_is_well() {
    let mut breaker = opened(SECOND);
    let mut now = SECOND;
    for _ in 0..40 {
        now += CONFIG.open_for_max;
        let epoch = probe(&mut breaker, now);
        breaker.handle(Event::ProbeFailed(epoch), now);
        assert_eq!(breaker.open_for, CONFIG.open_for_max);
    }
    now += CONFIG.open_for_max;
    let epoch = probe(&mut breaker, now);
    breaker.handle(Event::ProbeAnswered(epoch), now);
    now += CONFIG.open_for_max;
    let epoch = pass(&mut breaker, now);
    for _ in 0..5 {
        breaker.handle(Event::Outage(epoch), now);
    }
    assert_eq!(breaker.open_for, CONFIG.open_for);
}

#[test]
fn answers_to_what_was_asked_before_it_opened_change_nothing() {
    let mut breaker = Breaker::new(CONFIG);
    let old = pass(&mut breaker, SECOND);
    for _ in 0..5 {
        breaker.handle(Event::Outage(old), SECOND);
    }
    let epoch = probe(&mut breaker, SECOND * 9);
    breaker.handle(Event::ProbeAnswered(epoch), SECOND * 9);
    for _ in 0..100 {
        assert_eq!(breaker.handle(Event::Outage(old), SECOND * 9), Decision::Noted);
    }
    pass(&mut breaker, SECOND * 9);
}

#[test]
fn a_tier_that_lies_more_than_not_is_left_alone() {
    // (right blobs for each wrong one, whether it opens in 100 blobs)
    for (right, opens) in [(0, true), (1, false), (3, false)] {
        let mut breaker = Breaker::new(CONFIG);
        let epoch = pass(&mut breaker, SECOND);
        let mut wrong = 0;
        let opened = (0..100).any(|blob| {
            breaker.handle(Event::Answered(epoch, 1), SECOND);
            let lie = blob % (right + 1) == 0;
            wrong += u32::from(lie);
            lie && breaker.handle(Event::Wrong, SECOND) == Decision::Opened
        });
        assert_eq!(opened, opens, "{right}");
        assert!(!opens || wrong == CONFIG.wrong_max, "{wrong}");
    }
}

#[test]
fn a_clock_that_goes_back_does_not_keep_it_open() {
    let mut breaker = opened(SECOND * 1_000_000);
    let said = breaker.handle(Event::Called, Duration::ZERO);
    assert_eq!(said, Decision::Refuse(CONFIG.open_for));
    probe(&mut breaker, CONFIG.open_for);
}

/// The world around a breaker: who was let in, which probe is out, and time as it really passed.
struct World {
    breaker: Breaker,
    chance: Chance,
    clock: Duration,
    passed: Duration,
    calls: Vec<Epoch>,
    probe: Option<Epoch>,
    open_since: Option<Duration>,
    /// The clock went back, and the breaker has not seen it since: what it missed before counts
    /// as no time, so being open may begin anew, once.
    jumped_back: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            breaker: Breaker::new(CONFIG),
            chance: Chance(seed),
            clock: SECOND * 1_000_000,
            passed: Duration::ZERO,
            calls: Vec::new(),
            probe: None,
            open_since: None,
            jumped_back: false,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.chance.draw() % bound
    }

    fn tick(&mut self) {
        let step = Duration::from_millis(self.below(400));
        match self.below(100) {
            0 => {
                self.clock = self.clock.saturating_sub(step * 10_000);
                self.jumped_back = true;
            }
            1 => self.forward(step * 10_000),
            _ => self.forward(step),
        }
    }

    fn forward(&mut self, step: Duration) {
        self.clock += step;
        self.passed += step;
    }

    fn tell(&mut self, event: Event) -> Decision {
        if std::mem::take(&mut self.jumped_back) {
            self.open_since = Some(self.passed);
        }
        let before = self.breaker.state;
        let said = self.breaker.handle(event, self.clock);
        let open = self.breaker.state == BreakerState::Open;
        let newly = before != BreakerState::Open && open;
        assert_eq!(said == Decision::Opened, newly && !matches!(event, Event::ProbeLost(_)));
        self.open_since = if newly { Some(self.passed) } else { self.open_since };
        said
    }

    fn call(&mut self) {
        if self.jumped_back {
            self.tell(Event::Wrong); // any event makes it look
        }
        let closed = self.breaker.state == BreakerState::Closed;
        let due = self.breaker.state == BreakerState::Open
            && self.passed - self.open_since.unwrap() >= CONFIG.open_for_max;
        match self.tell(Event::Called) {
            Decision::Pass(epoch) => {
                assert!(closed);
                self.calls.push(epoch);
            }
            Decision::Probe(epoch) => {
                assert_eq!(self.probe.replace(epoch), None, "two probes at once");
            }
            Decision::Refuse(again_in) => {
                assert!(!closed, "refused although closed");
                assert!(!due, "open for longer than its time, and no probe offered");
                assert!(again_in <= CONFIG.open_for_max);
            }
            other => panic!("{other:?}"),
        }
    }

    fn end_call(&mut self, sick: bool) {
        if self.calls.is_empty() {
            return;
        }
        let index = self.below(self.calls.len() as u64) as usize;
        let epoch = self.calls.swap_remove(index);
        let before = (self.breaker.state, self.breaker.epoch);
        let stale = self.breaker.passes() != Some(epoch);
        let bad = self.below(100) < if sick { 90 } else { 5 };
        self.tell(if bad { Event::Outage(epoch) } else { Event::Answered(epoch, 1) });
        let after = (self.breaker.state, self.breaker.epoch);
        assert!(!stale || before == after, "an old answer changed something");
    }

    fn end_probe(&mut self, sick: bool) {
        let Some(epoch) = self.probe.take() else { return };
        let event = match self.below(10) {
            0 => Event::ProbeLost(epoch),
            1..8 if sick => Event::ProbeFailed(epoch),
            _ => Event::ProbeAnswered(epoch),
        };
        self.tell(event);
    }

    fn step(&mut self, sick: bool) {
        self.tick();
        match self.below(12) {
            0..5 => self.call(),
            5..9 => self.end_call(sick),
            9 | 10 => self.end_probe(sick),
            _ if self.below(6) == 0 => drop(self.tell(Event::Wrong)),
            _ => {}
        }
        assert!(self.breaker.recent.len() <= WINDOW_CALLS_MAX);
    }

    /// The tier is healthy from now on: the time that may be lost is that of being open, and the
    /// probes'.
    fn heal(&mut self) {
        self.call();
        if let Some(epoch) = self.probe.take() {
            self.tell(Event::ProbeFailed(epoch)); // it was sent before
        }
        self.forward(CONFIG.open_for_max);
        if let Decision::Probe(epoch) = self.tell(Event::Called) {
            self.tell(Event::ProbeAnswered(epoch));
        }
        assert!(matches!(self.tell(Event::Called), Decision::Pass(_)));
    }
}

#[test]
fn no_history_breaks_the_promises_of_a_breaker() {
    assert!(CONFIG.open_for_max + CONFIG.probe_timeout <= SECOND * 10);
    for seed in 0..400 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for step in 0..3000_u64 {
            world.step((step / 300).is_multiple_of(2));
            if step % 1000 == 999 {
                world.heal();
            }
        }
    }
}
