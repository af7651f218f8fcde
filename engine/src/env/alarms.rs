//! Waiting, on one core: a table of wakers and one beat that looks at it. Coarse on purpose; must
//! never be used for what is measured.
//!
//! The executor's own timers are looked through at every turn of its loop, and one of them that is
//! polled again before its time is entered again: a core with a thousand deadlines, or a single
//! sleep beside a busy stream, would spend its time there. Here a sleep costs two steps in a tree,
//! and only the beat is a timer of the executor's.

use super::clock::Clock;
use futures_util::FutureExt;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// How late a sleep may end; also how often a core that has nothing to do looks at its inbox all
/// the same. A wake-up from another thread was seen to get lost about once in a million times on a
/// parked executor: this is how long it can go unnoticed (docs/plan/0001).
pub const BEAT: Duration = Duration::from_millis(20);

/// How much too early the executor may fire.
const EARLY: Duration = Duration::from_millis(5);

/// Who waits on one core, and until when. Cheap to clone.
#[derive(Clone)]
pub struct Alarms(Rc<Table>);

struct Table {
    clock: Clock,
    waiting: RefCell<BTreeMap<Key, Waker>>,
    next: Cell<u64>,
}

/// When, and a number that makes it unique.
type Key = (Duration, u64);

impl Alarms {
    pub(super) fn new(clock: Clock) -> Self {
        Self(Rc::new(Table { clock, waiting: RefCell::default(), next: Cell::default() }))
    }

    /// Ends after `duration`, at most a beat late.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        let until = self.0.clock.now().saturating_add(duration);
        Sleep { alarms: self.clone(), key: (until, number) }
    }

    /// Wakes those whose time has come, again and again; never ends.
    pub async fn beat(&self) {
        loop {
            self.once(BEAT).await;
            self.ring();
        }
    }

    fn once(&self, duration: Duration) -> Once {
        let timer = glommio::timer::Timer::new(duration);
        let near = self.0.clock.now().saturating_add(duration.saturating_sub(EARLY));
        Once { timer, clock: self.0.clock, near, polled_by: None }
    }

    fn ring(&self) {
        // First out of the table: who is woken may sleep again.
        let later = self.0.waiting.borrow_mut().split_off(&(self.0.clock.now(), u64::MAX));
        let due = self.0.waiting.replace(later);
        due.into_values().for_each(Waker::wake);
    }
}

/// See [`Alarms::sleep`].
pub struct Sleep {
    alarms: Alarms,
    key: Key,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.alarms.0.clock.now() >= self.key.0 {
            return Poll::Ready(());
        }
        self.alarms.0.waiting.borrow_mut().insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.alarms.0.waiting.borrow_mut().remove(&self.key);
    }
}

/// One of the executor's timers, polled once for each waker until its time is near.
struct Once {
    timer: glommio::timer::Timer,
    clock: Clock,
    near: Duration,
    polled_by: Option<Waker>,
}

impl Future for Once {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let asked = self.polled_by.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        // The same waker again, before the time: somebody else in this task was woken.
        if asked && self.clock.now() < self.near {
            return Poll::Pending;
        }
        self.polled_by = Some(cx.waker().clone());
        self.timer.poll_unpin(cx).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::{Either, select};
    use glommio::{LocalExecutorBuilder, Placement};
    use std::pin::pin;

    const SOON: Duration = Duration::from_millis(30);
    const NEVER: Duration = Duration::from_secs(3600);

    fn on_a_core(test: impl AsyncFnOnce(Alarms) + Send + 'static) {
        let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(512 << 10);
        let thread = executor.spawn(async move || {
            let alarms = Alarms::new(Clock::start());
            let beating = alarms.clone();
            select(pin!(beating.beat()), pin!(test(alarms))).await;
        });
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn a_sleep_ends_and_an_earlier_one_before_it() {
        on_a_core(async |alarms| {
            let (early, late) = (pin!(alarms.sleep(SOON)), pin!(alarms.sleep(NEVER)));
            assert!(matches!(select(late, early).await, Either::Right(_)));
            assert!(alarms.0.waiting.borrow().len() <= 1);
        });
    }

    #[test]
    fn a_sleep_that_is_dropped_or_polled_often_leaves_nothing() {
        on_a_core(async |alarms| {
            let mut sleep = pin!(alarms.sleep(NEVER));
            for _ in 0..1000 {
                let polled = futures_lite::future::poll_once(sleep.as_mut()).await;
                assert_eq!(polled, None);
            }
            assert_eq!(alarms.0.waiting.borrow().len(), 1);
            for _ in 0..1000 {
                let mut other = pin!(alarms.sleep(NEVER));
                assert_eq!(futures_lite::future::poll_once(other.as_mut()).await, None);
            }
            assert_eq!(alarms.0.waiting.borrow().len(), 1);
        });
    }
}
