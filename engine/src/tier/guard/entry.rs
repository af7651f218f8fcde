//! The door to a tier: who may ask now, who waits, who is refused; and the one probe.
//! Must never hold the ledger's lock across an await, nor let anybody out without a report.

use super::{
    breaker::{Decision, Epoch},
    config::GuardConfig,
    ledger::{Ledger, Question},
};
use crate::tier::{Below, BelowError, BelowResult};
use futures_util::future::{Either, select};
use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

/// No wait is longer, so that adding one to a time never overflows.
const WAIT_MAX: Duration = Duration::from_hours(24 * 365);

/// Why an answer is not waited for any longer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Over {
    /// The call's time is over; an attempt that began late may be innocent of that.
    Deadline,
    /// The breaker has opened since.
    Cut,
    /// The tier was to move and did not.
    Stalled,
}

/// What all calls of one tier share.
pub(super) struct Door {
    pub(super) below: Arc<dyn Below>,
    pub(super) config: GuardConfig,
    ledger: Mutex<Ledger>,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Told each time that the breaker opens: those who wait are to be refused at once.
    opened: Notify,
    start: Instant,
}

impl Door {
    pub(super) fn new(below: Arc<dyn Below>, mut config: GuardConfig) -> Self {
        config.timeout = config.timeout.min(WAIT_MAX);
        config.idle_timeout = config.idle_timeout.min(WAIT_MAX);
        config.breaker.open_for = config.breaker.open_for.min(WAIT_MAX);
        let permits = config.concurrency_max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            below,
            ledger: Mutex::new(Ledger::new(config.clone())),
            permits: Arc::new(Semaphore::new(permits)),
            waiting: AtomicUsize::new(0),
            opened: Notify::new(),
            start: Instant::now(),
            config,
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The ledger, which is consistent after every call: a panic elsewhere doesn't spoil it.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight_max().saturating_sub(self.permits.available_permits())
    }

    pub(super) fn in_flight_max(&self) -> usize {
        self.config.concurrency_max.clamp(1, Semaphore::MAX_PERMITS)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lets a question in, or says why not. May send the probe, and waits for its end then.
    pub(super) async fn enter(
        self: &Arc<Self>,
        question: Question,
        deadline: Instant,
    ) -> BelowResult<Entry> {
        let decision = self.ledger().ask(self.now());
        match decision {
            Decision::Probe(epoch) => self.probe(epoch, deadline).await?,
            Decision::Refuse(again_in) => return Err(self.refusal(again_in)),
            _ => {}
        }
        let permit = self.turn(deadline).await?;
        let passes = self.ledger().passes();
        let Some(epoch) = passes else {
            return Err(self.refused_late());
        };
        Ok(Entry::new(self.clone(), question, epoch, permit))
    }

    /// Lets a second question in, if one is allowed right now.
    pub(super) fn enter_again(self: &Arc<Self>, question: Question) -> Option<Entry> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let epoch = self.ledger().hedge()?;
        Some(Entry::new(self.clone(), question, epoch, permit))
    }

    /// Ends when an answer is not to be waited for any longer: at the deadline, or some time after
    /// the breaker has opened. What hangs gives its place back by the time that the next probe is
    /// due, however long its own timeout.
    pub(super) async fn over(&self, deadline: Instant) -> Over {
        let cut = async {
            self.opened().await;
            sleep(self.config.breaker.open_for).await;
        };
        match select(pin!(sleep_until(deadline)), pin!(cut)).await {
            Either::Left(_) => Over::Deadline,
            Either::Right(_) => Over::Cut,
        }
    }

    /// Ends when the breaker opens.
    pub(super) async fn opened(&self) {
        self.opened.notified().await;
    }

    /// Takes what the ledger said of an event: whether it opened the breaker.
    pub(super) fn announce(&self, opened: bool) {
        if opened {
            let why = self.ledger().why().to_owned();
            tracing::warn!(tier = self.below.name(), why, "circuit open");
            self.opened.notify_waiters();
        }
    }

    async fn turn(&self, deadline: Instant) -> BelowResult<OwnedSemaphorePermit> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        // Made before the first await, so that no opening is missed.
        let opened = pin!(self.opened.notified());
        let Some(_waiter) = Waiter::new(&self.waiting, self.config.waiting_max) else {
            return Err(self.shed("too many calls wait for it already"));
        };
        let acquire = pin!(self.permits.clone().acquire_owned());
        match select(acquire, select(opened, pin!(sleep_until(deadline)))).await {
            Either::Left((Ok(permit), _)) => Ok(permit),
            Either::Right((Either::Left(_), _)) => Err(self.refused_late()),
            Either::Left((Err(_), _)) | Either::Right((Either::Right(_), _)) => {
                Err(self.shed("its turn did not come in time"))
            }
        }
    }

    /// Sends the probe from a task of its own: the caller may go away, the probe still decides.
    async fn probe(self: &Arc<Self>, epoch: Epoch, deadline: Instant) -> BelowResult<()> {
        let probe = Probe { door: self.clone(), epoch, ended: false };
        let task = tokio::spawn(probe.send());
        match timeout_at(deadline, task).await {
            Ok(Ok(true)) => Ok(()),
            _ => Err(self.refused_late()),
        }
    }

    fn refused_late(&self) -> BelowError {
        self.ledger().refused();
        self.refusal(Duration::ZERO)
    }

    fn refusal(&self, again_in: Duration) -> BelowError {
        let (name, ledger) = (self.below.name(), self.ledger());
        let (seconds, why) = (again_in.as_secs_f32(), ledger.why());
        let text = format!("{name}: circuit open, probed in {seconds:.1} s; last outage: {why}");
        BelowError::Unreachable(text)
    }

    fn shed(&self, why: &str) -> BelowError {
        self.ledger().shed();
        BelowError::Busy { why: format!("{}: {why}", self.below.name()), retry_after: None }
    }
}

/// One of the callers that may wait; gives its place back when dropped.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn new(waiting: &'a AtomicUsize, waiting_max: usize) -> Option<Self> {
        let more = |count: usize| (count < waiting_max).then_some(count + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(waiting))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The probe of a half-open breaker. However it ends, the breaker hears of it.
struct Probe {
    door: Arc<Door>,
    epoch: Epoch,
    ended: bool,
}

impl Probe {
    async fn send(mut self) -> bool {
        let began = self.door.now();
        let probing = timeout(self.door.config.breaker.probe_timeout, self.door.below.probe());
        let answer = probing.await.unwrap_or(Err(BelowError::TimedOut));
        let now = self.door.now();
        let opened = {
            let mut ledger = self.door.ledger();
            ledger.first_answer(Question::Probe, now.saturating_sub(began));
            ledger.probed(self.epoch, answer.as_ref().copied(), now)
        };
        self.ended = true;
        self.door.announce(opened);
        if !opened {
            tracing::info!(tier = self.door.below.name(), "circuit closed");
        }
        !opened
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if !self.ended {
            self.door.ledger().probe_lost(self.epoch, self.door.now());
        }
    }
}

/// The right to have one question in flight. Whoever holds it reports how it went; dropped
/// without, nobody waits any more.
pub(super) struct Entry {
    door: Arc<Door>,
    question: Question,
    epoch: Epoch,
    began: Duration,
    answering: bool,
    reported: bool,
    _permit: OwnedSemaphorePermit,
}

impl Entry {
    fn new(
        door: Arc<Door>,
        question: Question,
        epoch: Epoch,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let began = door.now();
        Self { door, question, epoch, began, answering: false, reported: false, _permit: permit }
    }

    pub(super) fn door(&self) -> &Door {
        &self.door
    }

    /// The tier began to answer.
    pub(super) fn first_answer(&mut self) {
        self.answering = true;
        self.door.ledger().first_answer(self.question, self.waited());
    }

    /// All went well, and so many blobs came.
    pub(super) fn answered(&mut self, blobs: usize) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        let blobs = u32::try_from(blobs).unwrap_or(u32::MAX);
        self.door.ledger().answered(self.epoch, blobs, self.door.now());
    }

    /// It ended with this error.
    pub(super) fn failed(&mut self, error: &BelowError) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        let opened = self.door.ledger().failed(self.epoch, error, self.door.now());
        self.door.announce(opened);
    }

    /// No answer came in time.
    pub(super) fn timed_out(&mut self, over: Over) -> BelowError {
        let guilty = match over {
            Over::Deadline => self.door.ledger().speaks_against_it(self.waited()),
            Over::Cut => false,
            Over::Stalled => true,
        };
        if guilty {
            self.failed(&BelowError::TimedOut);
        }
        self.reported = true;
        BelowError::TimedOut
    }

    fn waited(&self) -> Duration {
        self.door.now().saturating_sub(self.began)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.reported || self.answering {
            return;
        }
        let asked = (self.question, self.waited());
        let opened = self.door.ledger().abandoned(self.epoch, asked, self.door.now());
        self.door.announce(opened);
    }
}
