//! Thousands of random histories of the queue: outages, refusals, losses, restarts, jumps of the
//! clock; and after each step what must always be true.

use super::*;
use crate::digest::Digest;

const SEEDS: u64 = 200;
const STEPS: u64 = 1500;

/// xorshift64: the same history for the same seed, everywhere.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn config(rng: &mut Rng) -> Config {
    Config {
        items_max: 1 + usize::try_from(rng.below(40)).unwrap(),
        flights_max: 1 + usize::try_from(rng.below(4)).unwrap(),
        batch_len_max: 1 + usize::try_from(rng.below(6)).unwrap(),
        batch_bytes_max: 20,
        small_bytes_max: 10,
    }
}

/// Blob `number`: small ones and large ones.
fn blob(number: u64) -> Item {
    let size = usize::try_from(1 + number % 12).unwrap();
    let mut bytes = vec![0; size];
    bytes[0] = u8::try_from(number).unwrap();
    Item::Blob(Digest::of(&bytes))
}

fn action(number: u64) -> Item {
    Item::Action { instance: String::new(), action: Digest::of(&number.to_le_bytes()) }
}

struct Model {
    rng: Rng,
    config: Config,
    queue: Queue,
    now: Duration,
    /// What lies on disk.
    disk: BTreeMap<u64, Arc<Item>>,
    number: u64,
    flights: Vec<Vec<Numbered>>,
    /// Acknowledged and neither written nor reported lost since.
    owed: BTreeSet<Item>,
    /// Those that the flight that lands did not find, and that nobody pushed meanwhile.
    gone: BTreeSet<Item>,
    out: bool,
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let config = config(&mut rng);
        Self {
            queue: Queue::new(config, seed),
            rng,
            config,
            now: Duration::ZERO,
            disk: BTreeMap::new(),
            number: 0,
            flights: Vec::new(),
            owed: BTreeSet::new(),
            gone: BTreeSet::new(),
            out: false,
        }
    }

    fn handle(&mut self, event: Event) {
        let effects = self.queue.handle(event, self.now);
        for effect in effects {
            match effect {
                Effect::Fly(items) => self.depart(items),
                Effect::Settle(numbers) => {
                    numbers.iter().for_each(|number| assert!(self.disk.remove(number).is_some()));
                }
                Effect::ReportLost(item) => {
                    assert!(self.gone.remove(&*item));
                    self.owed.remove(&*item);
                }
                Effect::ReportRefused(..) | Effect::ReportOutage(_) | Effect::ReportRecovery => {}
            }
        }
        self.check();
    }

    fn depart(&mut self, items: Vec<Numbered>) {
        assert!(!items.is_empty() && items.len() <= self.config.batch_len_max);
        let sizes = items.iter().map(|(number, item)| {
            assert!(self.disk.contains_key(number));
            match **item {
                Item::Blob(digest) => digest.size(),
                Item::Action { .. } => 100,
            }
        });
        assert!(items.len() == 1 || sizes.sum::<u64>() <= self.config.batch_bytes_max);
        for flown in self.flights.iter().flatten() {
            assert!(items.iter().all(|(number, _)| *number != flown.0), "twice in flight");
        }
        self.flights.push(items);
    }

    fn check(&self) {
        assert!(self.queue.len() <= self.config.items_max);
        assert!(self.flights.len() <= self.config.flights_max);
        assert!(self.queue.refused() <= self.queue.len());
        let pending: BTreeSet<&Item> = self.queue.numbers.keys().map(|item| &**item).collect();
        assert!(self.owed.iter().all(|item| pending.contains(item)), "an item was dropped");
        let on_disk: BTreeSet<&Item> = self.disk.values().map(|item| &**item).collect();
        assert!(pending.is_subset(&on_disk), "an item lies in memory alone");
        // It never sleeps while it could do something.
        let busy = !self.flights.is_empty() || self.queue.wake().is_some();
        assert!(busy || self.queue.len() == 0, "it hangs");
    }

    fn push(&mut self) {
        let first = self.rng.below(60);
        let count = self.rng.below(5);
        let mut items: Vec<Item> = (first..first + count).map(blob).collect();
        items.push(action(self.rng.below(30)));
        let mut batch = BTreeSet::new();
        if !self.queue.admit(items.clone(), &mut batch) {
            assert!(batch.is_empty());
            return;
        }
        let fate = self.rng.below(12);
        let numbered: Vec<Numbered> = batch
            .into_iter()
            .map(|item| {
                self.number += 1;
                (self.number, Arc::new(item))
            })
            .collect();
        if fate == 0 {
            // The append fails; part of it reached the disk. Nothing was acknowledged.
            let reached = usize::try_from(self.rng.below(4)).unwrap();
            self.disk.extend(numbered.into_iter().take(reached));
            return;
        }
        self.disk.extend(numbered.iter().cloned());
        if fate == 1 {
            self.restart();
            return;
        }
        self.owed.extend(items);
        self.handle(Event::Written(numbered));
    }

    fn restart(&mut self) {
        // What failed to be appended may be found now, beyond what there was room for.
        self.flights.clear();
        self.now = Duration::from_secs(self.rng.below(3));
        self.queue = Queue::new(self.config, self.rng.below(u64::MAX));
        self.config.items_max = self.config.items_max.max(self.disk.len());
        self.queue.config.items_max = self.config.items_max;
        let pending = self.disk.iter().map(|(number, item)| (*number, Arc::clone(item)));
        let pending = pending.collect();
        self.handle(Event::Written(pending));
    }

    fn land(&mut self, calm: bool) {
        if self.flights.is_empty() {
            return;
        }
        let at = usize::try_from(self.rng.below(self.flights.len() as u64)).unwrap();
        let flight = self.flights.swap_remove(at);
        let failed = |retry_after| Outcome::Failed { why: "out".into(), retry_after };
        let outcomes = flight
            .into_iter()
            .map(|(number, item)| {
                let again = self.queue.items[&number].again;
                let outcome = match self.rng.below(20) {
                    _ if self.out && !calm => failed(None),
                    0 if !calm => failed(Some(Duration::from_secs(self.rng.below(900)))),
                    1 if !calm => failed(None),
                    2 if !calm => Outcome::Refused("no".into()),
                    3 if !calm => Outcome::Lost,
                    _ => Outcome::Kept,
                };
                if outcome == Outcome::Kept && (!again || matches!(*item, Item::Blob(_))) {
                    self.owed.remove(&*item);
                }
                if outcome == Outcome::Lost && !again {
                    self.gone.insert((*item).clone());
                }
                (number, outcome)
            })
            .collect();
        self.handle(Event::Landed(outcomes));
        assert!(self.gone.is_empty(), "a loss is not reported");
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..30 => self.push(),
            30..70 => self.land(false),
            70..90 => {
                self.now = self.queue.wake().unwrap_or(self.now);
                self.handle(Event::Tick);
            }
            90..93 => {
                let jump = Duration::from_secs(self.rng.below(7200));
                self.now = if self.rng.below(2) == 0 {
                    self.now + jump
                } else {
                    self.now.saturating_sub(jump)
                };
                self.handle(Event::Tick);
            }
            93..97 => self.out = !self.out,
            _ => self.restart(),
        }
    }

    fn drain(&mut self) {
        for _ in 0..10_000 {
            if self.queue.len() == 0 {
                break;
            }
            self.land(true);
            if let Some(wake) = self.queue.wake() {
                self.now = self.now.max(wake);
            }
            self.handle(Event::Tick);
        }
        assert_eq!(self.queue.len(), 0, "something is never written");
        assert!(self.owed.is_empty());
    }
}

#[test]
fn every_item_acknowledged_is_written_or_reported_lost() {
    for seed in 1..=SEEDS {
        let mut model = Model::new(seed);
        for _ in 0..STEPS {
            model.step();
        }
        model.drain();
    }
}

fn queue(flights_max: usize) -> Queue {
    let config = Config {
        items_max: 1000,
        flights_max,
        batch_len_max: 10,
        batch_bytes_max: 20,
        small_bytes_max: 10,
    };
    Queue::new(config, 7)
}

fn written(items: Vec<Item>) -> Event {
    Event::Written((1..).zip(items.into_iter().map(Arc::new)).collect())
}

fn flown(effects: &[Effect]) -> Vec<u64> {
    let flights = effects.iter().filter_map(|effect| match effect {
        Effect::Fly(items) => Some(items.iter().map(|(number, _)| *number)),
        _ => None,
    });
    flights.flatten().collect()
}

fn failed() -> Outcome {
    Outcome::Failed { why: "out".into(), retry_after: None }
}

#[test]
fn an_action_flies_after_the_blobs_before_it() {
    let mut queue = queue(8);
    let event = written(vec![blob(11), blob(23), action(1), blob(35), action(2)]);
    let effects = queue.handle(event, Duration::ZERO);
    assert_eq!(flown(&effects), [1, 2, 4]);
    let landed = |number| Event::Landed(vec![(number, Outcome::Kept)]);
    assert!(flown(&queue.handle(landed(1), Duration::ZERO)).is_empty());
    assert_eq!(flown(&queue.handle(landed(2), Duration::ZERO)), [3]);
    assert_eq!(flown(&queue.handle(landed(4), Duration::ZERO)), [5]);
}

#[test]
fn an_outage_pauses_everything_ever_longer_up_to_a_bound() {
    let mut queue = queue(2);
    let mut now = Duration::from_secs(1);
    let mut flights =
        queue.handle(written((0..40).map(|n| blob(11 + 12 * (n % 20))).collect()), now);
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        let numbers = flown(&flights);
        assert!(numbers.len() <= 2);
        for number in numbers {
            let effects = queue.handle(Event::Landed(vec![(number, failed())]), now);
            assert!(flown(&effects).is_empty());
        }
        let wake = queue.wake().unwrap();
        longest = longest.max(wake - now);
        now = wake;
        flights = queue.handle(Event::Tick, now);
    }
    assert!(longest <= PAUSE_MAX && longest > PAUSE_MAX / 2, "{longest:?}");
}

#[test]
fn below_says_when_it_may_be_asked_again() {
    let mut queue = queue(1);
    queue.handle(written(vec![blob(1)]), Duration::ZERO);
    let retry_after = Some(Duration::from_secs(90));
    let busy = Outcome::Failed { why: "busy".into(), retry_after };
    queue.handle(Event::Landed(vec![(1, busy)]), Duration::ZERO);
    assert_eq!(queue.wake(), retry_after);
}

#[test]
fn one_item_that_always_fails_holds_up_nobody() {
    let mut queue = queue(1);
    let mut now = Duration::ZERO;
    let items = (0..21).map(|n| blob(11 + 12 * n)).collect();
    let mut flights = flown(&queue.handle(written(items), now));
    for _ in 0..2000 {
        let Some(number) = flights.first().copied() else {
            let Some(wake) = queue.wake().filter(|_| queue.len() > queue.refused()) else { break };
            now = wake;
            flights = flown(&queue.handle(Event::Tick, now));
            continue;
        };
        let outcome = if number == 1 { failed() } else { Outcome::Kept };
        flights = flown(&queue.handle(Event::Landed(vec![(number, outcome)]), now));
    }
    assert_eq!(queue.counts().written, 20);
    assert_eq!(queue.len(), 1);
}

#[test]
fn what_is_refused_is_reported_once_and_tried_after_an_hour() {
    let mut queue = queue(1);
    queue.handle(written((0..5).map(blob).collect()), Duration::ZERO);
    let outcomes = (1..=5).map(|number| (number, Outcome::Refused("no".into()))).collect();
    let effects = queue.handle(Event::Landed(outcomes), Duration::ZERO);
    assert_eq!(effects.len(), 1);
    assert_eq!((queue.refused(), queue.wake()), (5, Some(REFUSED_RETRY)));
    assert_eq!(flown(&queue.handle(Event::Tick, REFUSED_RETRY)), [1, 2, 3, 4, 5]);
    assert_eq!(queue.refused(), 0);
}

#[test]
fn an_action_pushed_while_it_flies_flies_again() {
    let mut queue = queue(1);
    queue.handle(written(vec![action(1)]), Duration::ZERO);
    let mut batch = BTreeSet::new();
    assert!(queue.admit(vec![action(1)], &mut batch));
    assert!(batch.is_empty());
    let effects = queue.handle(Event::Landed(vec![(1, Outcome::Kept)]), Duration::ZERO);
    assert_eq!(flown(&effects), [1]);
    queue.handle(Event::Landed(vec![(1, Outcome::Kept)]), Duration::ZERO);
    assert_eq!(queue.len(), 0);
}
