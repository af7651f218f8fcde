//! The guard around a tier that does what a script says, in virtual time.

use super::*;
use crate::{
    blob::BlobError,
    tier::guard::{ledger::Ledger, retry::Chance},
};
use futures_util::{FutureExt as _, StreamExt as _, future::join_all, stream};
use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::sleep;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn config() -> GuardConfig {
    GuardConfig {
        seed: 1,
        timeout: SECOND * 10,
        idle_timeout: SECOND * 3,
        concurrency_max: 8,
        waiting_max: 4,
        breaker: BreakerConfig {
            outages_max: 5,
            outages_percent: 50,
            window_calls_min: 20,
            window: SECOND * 10,
            wrong_max: 6,
            open_for: SECOND * 5,
            open_for_max: SECOND * 8,
            probe_timeout: SECOND * 2,
        },
        retry: RetryConfig {
            attempts_max: 3,
            backoff_first: MS * 50,
            backoff_max: SECOND,
            calls_percent: 10,
            burst: 4,
        },
        hedge: HedgeConfig {
            samples_min: 20,
            delay_min: MS * 5,
            delay_max: SECOND,
            calls_percent: 5,
            burst: 2,
        },
    }
}

/// No attempt after the first, so that a script is used up one step a call.
fn without_retries() -> GuardConfig {
    let config = config();
    GuardConfig { retry: RetryConfig { attempts_max: 1, ..config.retry }, ..config }
}

/// What the tier does when asked once: after a while, an answer; of a read, its pieces.
#[derive(Clone)]
enum Step {
    Answer(Duration),
    Fail(BelowError),
    Hang,
    Pieces(Vec<(Duration, BelowResult<&'static [u8]>)>),
}

#[derive(Default)]
struct Scripted {
    steps: Mutex<VecDeque<Step>>,
    asked: AtomicUsize,
    in_flight: Arc<AtomicUsize>,
    in_flight_max: AtomicUsize,
    dead: AtomicBool,
    probes: AtomicUsize,
    probing: Arc<AtomicUsize>,
    probe_takes: Mutex<Duration>,
    takes_no_second_piece: AtomicBool,
}

/// Counts one more while it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn reset() -> BelowError {
    BelowError::Unreachable("reset".into())
}

impl Scripted {
    /// A tier that does these, then answers everything at once.
    fn of(steps: impl IntoIterator<Item = Step>) -> Arc<Self> {
        let steps = Mutex::new(steps.into_iter().collect());
        Arc::new(Self { steps, ..Self::default() })
    }

    fn then(&self, steps: impl IntoIterator<Item = Step>) {
        self.steps.lock().unwrap().extend(steps);
    }

    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }

    async fn step(&self) -> BelowResult<(Vec<(Duration, BelowResult<&'static [u8]>)>, Counted)> {
        self.asked.fetch_add(1, Relaxed);
        let counted = Counted::new(&self.in_flight);
        self.in_flight_max.fetch_max(self.in_flight.load(Relaxed), Relaxed);
        if self.dead.load(Relaxed) {
            return Err(reset());
        }
        let step = self.steps.lock().unwrap().pop_front();
        let whole = |after| vec![(after, Ok(&b"blob"[..]))];
        match step.unwrap_or(Step::Answer(Duration::ZERO)) {
            Step::Answer(after) => {
                sleep(after).await;
                Ok((whole(Duration::ZERO), counted))
            }
            Step::Fail(error) => Err(error),
            Step::Hang => std::future::pending().await,
            Step::Pieces(pieces) => Ok((pieces, counted)),
        }
    }
}

impl Below for Scripted {
    fn name(&self) -> &str {
        "grpc://scripted"
    }

    fn batch_bytes_max(&self) -> u64 {
        4096
    }

    fn probe(&self) -> BoxFuture<'_, BelowResult<()>> {
        async {
            let _counted = Counted::new(&self.probing);
            assert_eq!(self.probing.load(Relaxed), 1, "two probes at once");
            self.probes.fetch_add(1, Relaxed);
            let takes = *self.probe_takes.lock().unwrap();
            sleep(takes).await;
            if self.dead.load(Relaxed) { Err(reset()) } else { Ok(()) }
        }
        .boxed()
    }

    fn find_missing(&self, _: Vec<Digest>) -> BoxFuture<'_, BelowResult<Vec<Digest>>> {
        async { self.step().await.map(|_| Vec::new()) }.boxed()
    }

    fn read(&self, _: Digest, _: u64) -> BoxFuture<'_, BelowResult<Incoming>> {
        async {
            let (pieces, counted) = self.step().await?;
            let pieces = stream::iter(pieces).then(move |(after, piece)| {
                let _held = &counted;
                async move {
                    sleep(after).await;
                    piece.map(Bytes::from_static)
                }
            });
            Ok(pieces.boxed())
        }
        .boxed()
    }

    fn read_many(
        &self,
        digests: Vec<Digest>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<Bytes>>>> {
        async move {
            let (pieces, _counted) = self.step().await?;
            let piece = |at: usize| pieces[at % pieces.len()].1.clone().map(Bytes::from_static);
            Ok((0..digests.len()).map(piece).collect())
        }
        .boxed()
    }

    fn write(&self, _: Digest, bytes: Outgoing) -> BoxFuture<'_, BelowResult<()>> {
        async move {
            let mut bytes = bytes;
            while let Some(piece) = bytes.next().await {
                piece.map_err(|_| reset())?; // a client library that can't tell whose error it is
                if self.takes_no_second_piece.load(Relaxed) {
                    std::future::pending::<()>().await;
                }
            }
            self.step().await.map(|_| ())
        }
        .boxed()
    }

    fn write_many(
        &self,
        blobs: Vec<(Digest, Bytes)>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<()>>>> {
        async move { self.step().await.map(|_| blobs.iter().map(|_| Ok(())).collect()) }.boxed()
    }

    fn get_action<'a>(
        &'a self,
        _: &'a str,
        _: Digest,
    ) -> BoxFuture<'a, BelowResult<Option<ActionResult>>> {
        async { self.step().await.map(|_| None) }.boxed()
    }

    fn put_action<'a>(
        &'a self,
        _: &'a str,
        _: Digest,
        _: ActionResult,
    ) -> BoxFuture<'a, BelowResult<()>> {
        async { self.step().await.map(|_| ()) }.boxed()
    }
}

fn blob() -> Digest {
    Digest::of(b"blob")
}

async fn ask(guarded: &Guarded) -> BelowResult<()> {
    guarded.find_missing(vec![blob()]).await.map(|_| ())
}

async fn read(guarded: &Guarded) -> BelowResult<Vec<u8>> {
    let mut pieces = guarded.read(blob(), 0).await?;
    let mut whole = Vec::new();
    while let Some(piece) = pieces.next().await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole)
}

fn times(count: usize, step: &Step) -> Vec<Step> {
    vec![step.clone(); count]
}

/// Lets every task go on until all of them wait.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_hangs_costs_a_call_its_timeout_and_no_more() {
    let tier = Scripted::of([Step::Hang]);
    let guarded = Guarded::new(tier.clone(), config());
    let began = Instant::now();
    assert!(matches!(ask(&guarded).await, Err(BelowError::TimedOut)));
    assert_eq!(began.elapsed().as_secs(), 10);
    let health = guarded.health();
    assert_eq!((tier.asked(), health.outages, health.in_flight), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_busy_tier_is_asked_again_when_it_says() {
    let retry_after = Some(SECOND * 2);
    let tier = Scripted::of([Step::Fail(BelowError::Busy { why: "full".into(), retry_after })]);
    let guarded = Guarded::new(tier.clone(), config());
    let began = Instant::now();
    ask(&guarded).await.unwrap();
    assert!(began.elapsed() >= SECOND * 2);
    assert_eq!((tier.asked(), guarded.health().retries), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_busy_tier_that_asks_for_more_than_the_deadline_is_reported_at_once() {
    let retry_after = Some(SECOND * 60);
    let tier = Scripted::of([Step::Fail(BelowError::Busy { why: "full".into(), retry_after })]);
    let guarded = Guarded::new(tier.clone(), config());
    let began = Instant::now();
    assert!(matches!(ask(&guarded).await, Err(BelowError::Busy { .. })));
    assert_eq!((began.elapsed(), tier.asked()), (Duration::ZERO, 1));
}

#[tokio::test(start_paused = true)]
async fn a_no_is_an_answer_and_never_asked_again() {
    let refused = BelowError::Refused("no".into());
    for error in [BelowError::Absent, refused, BelowError::Wrong(blob())] {
        let tier = Scripted::of(times(50, &Step::Fail(error.clone())));
        let guarded = Guarded::new(tier.clone(), config());
        ask(&guarded).await.unwrap_err();
        let wrong = matches!(error, BelowError::Wrong(_));
        let health = guarded.health();
        assert_eq!((tier.asked(), health.outages, health.wrong), (1, 0, u64::from(wrong)));
    }
}

#[tokio::test(start_paused = true)]
async fn reads_and_idempotent_writes_are_asked_again_and_streams_are_not() {
    let outage = || Scripted::of([Step::Fail(reset())]);
    let guard = |tier: &Arc<Scripted>| Guarded::new(tier.clone(), config());
    let tier = outage();
    assert_eq!(read(&guard(&tier)).await.unwrap(), b"blob");
    let tier = outage();
    guard(&tier).read_many(vec![blob()]).await.unwrap();
    let tier = outage();
    guard(&tier).get_action("", blob()).await.unwrap();
    let tier = outage();
    guard(&tier).put_action("", blob(), ActionResult::default()).await.unwrap();
    let tier = outage();
    guard(&tier).write_many(vec![(blob(), Bytes::from_static(b"blob"))]).await.unwrap();
    let tier = outage();
    let bytes = stream::iter([Ok(Bytes::from_static(b"blob"))]).boxed();
    guard(&tier).write(blob(), bytes).await.unwrap_err();
    assert_eq!(tier.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_an_outage_only_if_all_of_it_is() {
    let failed = Step::Pieces(vec![(Duration::ZERO, Err(reset()))]);
    let mixed = Step::Pieces(vec![(Duration::ZERO, Err(reset())), (Duration::ZERO, Ok(b"blob"))]);
    for (step, asked) in [(failed, 2), (mixed, 1)] {
        let tier = Scripted::of([step]);
        let guarded = Guarded::new(tier.clone(), config());
        assert_eq!(guarded.read_many(vec![blob(); 4]).await.unwrap().len(), 4);
        assert_eq!(tier.asked(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_tier_is_left_alone_and_found_again_by_one_probe() {
    let tier = Scripted::of([]);
    tier.dead.store(true, Relaxed);
    let guarded = Guarded::new(tier.clone(), without_retries());
    for _ in 0..5 {
        ask(&guarded).await.unwrap_err();
    }
    let refused = ask(&guarded).await.unwrap_err().to_string();
    assert!(refused.contains("grpc://scripted: circuit open"), "{refused}");
    assert!(refused.contains("reset"), "{refused}");
    let health = guarded.health();
    assert_eq!((tier.asked(), health.refused, health.breaker), (5, 1, BreakerState::Open));

    sleep(SECOND * 5).await;
    *tier.probe_takes.lock().unwrap() = SECOND;
    tier.dead.store(false, Relaxed);
    let answers = join_all((0..50).map(|_| ask(&guarded))).await;
    // The one that sent the probe was let in, the others did not wait for it.
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert_eq!((tier.probes.load(Relaxed), guarded.health().breaker), (1, BreakerState::Closed));
    ask(&guarded).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_probe_decides_although_its_caller_went_away() {
    let tier = Scripted::of(times(5, &Step::Fail(reset())));
    let guarded = Guarded::new(tier.clone(), without_retries());
    for _ in 0..5 {
        ask(&guarded).await.unwrap_err();
    }
    sleep(SECOND * 5).await;
    *tier.probe_takes.lock().unwrap() = SECOND;
    assert!(ask(&guarded).now_or_never().is_none());
    sleep(SECOND + MS).await;
    assert_eq!(guarded.health().breaker, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_opens_it_again() {
    let tier = Scripted::of(times(5, &Step::Fail(reset())));
    let guarded = Guarded::new(tier.clone(), without_retries());
    for _ in 0..5 {
        ask(&guarded).await.unwrap_err();
    }
    sleep(SECOND * 5).await;
    *tier.probe_takes.lock().unwrap() = SECOND * 1000;
    ask(&guarded).await.unwrap_err();
    let health = guarded.health();
    assert_eq!((health.breaker, health.opened), (BreakerState::Open, 2));
}

#[tokio::test(start_paused = true)]
async fn streams_that_break_or_stall_in_the_middle_are_outages() {
    let broken = vec![(Duration::ZERO, Ok(&b"bl"[..])), (Duration::ZERO, Err(reset()))];
    let stalled = vec![(SECOND, Ok(&b"bl"[..])), (SECOND * 1000, Ok(&b"ob"[..]))];
    for pieces in [broken, stalled] {
        let tier = Scripted::of(times(9, &Step::Pieces(pieces)));
        let guarded = Guarded::new(tier.clone(), without_retries());
        for _ in 0..5 {
            read(&guarded).await.unwrap_err();
        }
        let health = guarded.health();
        assert_eq!((health.outages, health.breaker), (5, BreakerState::Open));
        assert_eq!((health.bytes_in, health.in_flight), (10, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_is_slow_but_goes_on_may_take_longer_than_the_timeout() {
    let pieces = (0..40).map(|_| (SECOND * 2, Ok(&b"piece"[..]))).collect();
    let guarded = Guarded::new(Scripted::of([Step::Pieces(pieces)]), config());
    assert_eq!(read(&guarded).await.unwrap().len(), 200);
    assert_eq!(guarded.health().outages, 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_first_byte_is_asked_for_again_and_the_faster_answer_wins() {
    let tier = Scripted::of(times(20, &Step::Answer(MS * 10)));
    let guarded = Guarded::new(tier.clone(), config());
    for _ in 0..20 {
        read(&guarded).await.unwrap();
    }
    let slow = Step::Pieces(vec![(SECOND * 9, Ok(b"late"))]);
    tier.then([slow, Step::Answer(MS * 10)]);
    let began = Instant::now();
    let mut pieces = guarded.read(blob(), 0).await.unwrap();
    assert!(began.elapsed() < SECOND);
    // The slow one is gone; the winner keeps its place while it is read.
    assert_eq!((guarded.health().in_flight, tier.in_flight.load(Relaxed)), (1, 1));
    assert_eq!(pieces.next().await.unwrap().unwrap(), &b"blob"[..]);
    drop(pieces);
    let health = guarded.health();
    assert_eq!((health.hedges, health.hedges_won, health.in_flight), (1, 1, 0));
    assert_eq!((health.retries, health.outages), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failed_first_question_waits_for_the_second() {
    let tier = Scripted::of(times(20, &Step::Answer(MS * 10)));
    let guarded = Guarded::new(tier.clone(), without_retries());
    for _ in 0..20 {
        read(&guarded).await.unwrap();
    }
    let breaks = Step::Pieces(vec![(MS * 50, Err(reset()))]);
    tier.then([breaks, Step::Answer(MS * 500)]);
    assert_eq!(read(&guarded).await.unwrap(), b"blob");
    assert_eq!(guarded.health().hedges_won, 1);
}

#[tokio::test(start_paused = true)]
async fn there_is_no_second_question_for_writes_or_without_a_free_place() {
    let slow = Step::Answer(SECOND * 5);
    let one = GuardConfig { concurrency_max: 1, ..config() };
    let tier = Scripted::of(times(20, &Step::Answer(MS * 10)));
    let guarded = Guarded::new(tier.clone(), one);
    for _ in 0..20 {
        ask(&guarded).await.unwrap();
    }
    tier.then([slow.clone()]);
    ask(&guarded).await.unwrap();
    let tier = Scripted::of(times(20, &Step::Answer(MS * 10)));
    let writing = Guarded::new(tier.clone(), config());
    for _ in 0..21 {
        writing.put_action("", blob(), ActionResult::default()).await.unwrap();
        tier.then([slow.clone()]);
    }
    assert_eq!((guarded.health().hedges, writing.health().hedges), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn places_are_given_back_when_futures_and_streams_are_dropped() {
    let tier = Scripted::of(times(20, &Step::Hang));
    let guarded = Guarded::new(tier.clone(), config());
    let mut calls: Vec<_> = (0..12).map(|_| Box::pin(ask(&guarded))).collect();
    for call in &mut calls {
        assert!(call.now_or_never().is_none());
    }
    let health = guarded.health();
    assert_eq!((health.in_flight, health.waiting, tier.asked()), (8, 4, 8));
    drop(calls);
    let health = guarded.health();
    assert_eq!((health.in_flight, health.waiting, health.outages), (0, 0, 0));
    assert_eq!(tier.in_flight.load(Relaxed), 0);

    tier.steps.lock().unwrap().clear();
    let streams = join_all((0..8).map(|_| guarded.read(blob(), 0))).await;
    assert_eq!(guarded.health().in_flight, 8);
    drop(streams);
    assert_eq!(guarded.health().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_bounded_and_the_next_is_told_that_it_is_busy() {
    let tier = Scripted::of(times(20, &Step::Hang));
    let guarded = Guarded::new(tier.clone(), config());
    let mut calls: Vec<_> = (0..12).map(|_| Box::pin(ask(&guarded))).collect();
    for call in &mut calls {
        assert!(call.now_or_never().is_none());
    }
    let busy = ask(&guarded).now_or_never().unwrap().unwrap_err();
    assert!(matches!(busy, BelowError::Busy { .. }), "{busy}");
    let health = guarded.health();
    // Not the tier's fault, and not asked again.
    assert_eq!((health.shed, health.outages, health.retries), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_refused_as_soon_as_it_opens() {
    let tier = Scripted::of(times(8, &Step::Hang));
    let guarded = Guarded::new(tier.clone(), config());
    let hanging: Vec<_> = (0..8).map(|_| tokio::spawn(owned(&guarded))).collect();
    settle().await;
    let waiting = tokio::spawn(owned(&guarded));
    settle().await;
    assert_eq!(guarded.health().waiting, 1);
    for _ in 0..7 {
        guarded.report_wrong();
    }
    settle().await;
    assert!(waiting.is_finished() && !hanging[0].is_finished());
    assert!(waiting.await.unwrap().unwrap_err().to_string().contains("circuit open"));
    assert_eq!((guarded.health().wrong, guarded.health().breaker), (7, BreakerState::Open));
}

async fn owned_call(guarded: Guarded) -> BelowResult<()> {
    ask(&guarded).await
}

fn owned(guarded: &Guarded) -> impl Future<Output = BelowResult<()>> + Send + 'static {
    owned_call(guarded.clone())
}

#[tokio::test(start_paused = true)]
async fn what_hangs_gives_its_place_back_before_the_probe_is_due() {
    let config = GuardConfig { timeout: SECOND * 3600, ..without_retries() };
    let tier = Scripted::of(times(8, &Step::Hang));
    let guarded = Guarded::new(tier.clone(), config);
    let hanging: Vec<_> = (0..8).map(|_| tokio::spawn(owned(&guarded))).collect();
    settle().await;
    for _ in 0..7 {
        guarded.report_wrong();
    }
    sleep(SECOND * 5 + MS).await;
    ask(&guarded).await.unwrap();
    for call in hanging {
        assert!(matches!(call.await.unwrap(), Err(BelowError::TimedOut)));
    }
}

#[tokio::test(start_paused = true)]
async fn callers_who_lose_patience_do_not_hide_a_tier_that_hangs() {
    let tier = Scripted::of(times(20, &Step::Hang));
    let guarded = Guarded::new(tier.clone(), config());
    for _ in 0..5 {
        tokio::time::timeout(SECOND * 6, ask(&guarded)).await.unwrap_err();
    }
    assert_eq!(guarded.health().breaker, BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_or_is_slow_is_not_the_fault_of_the_tier() {
    let tier = Scripted::of([]);
    let guarded = Guarded::new(tier.clone(), config());
    let failing = stream::iter([Ok(Bytes::from_static(b"bl")), Err(BlobError::Full)]).boxed();
    let error = guarded.write(blob(), failing).await.unwrap_err();
    assert!(matches!(error, BelowError::Local(BlobError::Full)), "{error}");
    let slow = stream::iter(0..3).then(|_| async {
        sleep(SECOND * 100).await;
        Ok(Bytes::from_static(b"bl"))
    });
    guarded.write(blob(), slow.boxed()).await.unwrap();
    let health = guarded.health();
    assert_eq!((health.outages, health.bytes_out, health.in_flight), (0, 8, 0));
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_never_acknowledges_a_write_times_out() {
    let guarded = Guarded::new(Scripted::of([Step::Hang]), config());
    let began = Instant::now();
    let bytes = stream::iter([Ok(Bytes::from_static(b"blob"))]).boxed();
    let error = guarded.write(blob(), bytes).await.unwrap_err();
    assert!(matches!(error, BelowError::TimedOut), "{error}");
    assert_eq!((began.elapsed().as_secs(), guarded.health().outages), (10, 1));
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_stops_taking_a_blob_is_given_up_after_the_idle_timeout() {
    let tier = Scripted::of([]);
    tier.takes_no_second_piece.store(true, Relaxed);
    let guarded = Guarded::new(tier, config());
    let began = Instant::now();
    let bytes = stream::iter((0..3).map(|_| Ok(Bytes::from_static(b"blob")))).boxed();
    let error = guarded.write(blob(), bytes).await.unwrap_err();
    assert!(matches!(error, BelowError::TimedOut), "{error}");
    assert_eq!((began.elapsed().as_secs(), guarded.health().outages), (3, 1));
}

/// A blob of twenty pieces, one each second.
fn slow_blob() -> Outgoing {
    let pieces = stream::iter(0..20).then(|_| async {
        sleep(SECOND).await;
        Ok(Bytes::from_static(b"piece"))
    });
    pieces.boxed()
}

#[tokio::test(start_paused = true)]
async fn a_write_that_goes_on_survives_that_the_breaker_opens() {
    let guarded = Guarded::new(Scripted::of([]), config());
    let writing = tokio::spawn({
        let guarded = guarded.clone();
        async move { guarded.write(blob(), slow_blob()).await }
    });
    sleep(SECOND).await;
    for _ in 0..7 {
        guarded.report_wrong();
    }
    assert_eq!(guarded.health().breaker, BreakerState::Open);
    writing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_write_given_up_while_its_source_was_slow_says_nothing_of_the_tier() {
    let guarded = Guarded::new(Scripted::of([]), config());
    for _ in 0..6 {
        let writing = guarded.write(blob(), slow_blob());
        tokio::time::timeout(SECOND * 8, writing).await.unwrap_err();
    }
    assert_eq!((guarded.health().outages, guarded.health().in_flight), (0, 0));
}

#[test]
fn extra_questions_are_paid_for_and_never_sent_unless_it_is_closed() {
    let mut ledger = Ledger::new(config());
    let epoch = ledger.passes().unwrap();
    let retry = |ledger: &mut Ledger| ledger.retry(&reset(), 1, SECOND * 10).is_some();
    let spend = |ledger: &mut Ledger| {
        let hedges = (0..50).filter(|_| ledger.hedge().is_some()).count();
        (hedges, (0..50).filter(|_| retry(ledger)).count())
    };
    // The bursts; then, after more calls than they are worth, the bursts again.
    assert_eq!(spend(&mut ledger), (2, 4));
    (0..20).for_each(|_| ledger.called());
    assert_eq!(spend(&mut ledger), (1, 2));
    (0..1000).for_each(|_| ledger.called());
    assert_eq!(spend(&mut ledger), (2, 4));
    (0..1000).for_each(|_| ledger.called());
    for _ in 0..5 {
        ledger.failed(epoch, &reset(), SECOND);
    }
    assert_eq!(spend(&mut ledger), (0, 0));
}

#[test]
fn a_probe_that_is_dropped_with_its_runtime_is_not_waited_for() {
    let new = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let tier = Scripted::of(times(5, &Step::Fail(reset())));
    let open_for = Duration::ZERO;
    let breaker = BreakerConfig { open_for, open_for_max: open_for, ..config().breaker };
    let config = GuardConfig { breaker, ..without_retries() };
    let runtime = new();
    let guarded = runtime.block_on(async { Guarded::new(tier.clone(), config) });
    runtime.block_on(async {
        for _ in 0..5 {
            ask(&guarded).await.unwrap_err();
        }
        *tier.probe_takes.lock().unwrap() = SECOND * 1000;
        assert!(ask(&guarded).now_or_never().is_none());
    });
    assert_eq!(guarded.health().breaker, BreakerState::HalfOpen);
    drop(runtime);
    assert_eq!(guarded.health().breaker, BreakerState::Open);
    *tier.probe_takes.lock().unwrap() = Duration::ZERO;
    new().block_on(async { ask(&guarded).await.unwrap() });
}

/// A step drawn for a tier that is mostly well, or mostly not.
fn drawn(chance: &mut Chance, sick: bool) -> Step {
    let after = MS * (chance.draw() % 100) as u32;
    match chance.draw() % 100 {
        0..2 => Step::Answer(SECOND * 4),
        2..4 => Step::Fail(BelowError::Absent),
        roll if roll > 60 && sick => Step::Fail(reset()),
        roll if roll > 45 && sick => Step::Hang,
        4..20 => Step::Pieces(vec![(after, Ok(b"bl")), (after, Ok(b"ob"))]),
        20..22 => Step::Pieces(vec![(after, Ok(b"bl")), (after, Err(reset()))]),
        _ => Step::Answer(after),
    }
}

async fn any_call(guarded: Guarded, mut chance: Chance) {
    sleep(MS * (chance.draw() % 60_000) as u32).await;
    let patience = SECOND * (chance.draw() % 20) as u32;
    let _outcome = tokio::time::timeout(patience, async {
        match chance.draw() % 4 {
            0 => drop(read(&guarded).await),
            1 => drop(ask(&guarded).await),
            2 => drop(guarded.put_action("", blob(), ActionResult::default()).await),
            _ => drop(guarded.read_many(vec![blob(); 3]).await),
        }
    })
    .await;
}

async fn history(seed: u64) -> Health {
    let mut chance = Chance(seed);
    let config = GuardConfig { seed, ..config() };
    let tier = Scripted::of([]);
    let guarded = Guarded::new(tier.clone(), config.clone());
    let steps: Vec<Step> = (0..2000).map(|at| drawn(&mut chance, at % 400 > 200)).collect();
    tier.then(steps);
    let calls = 2000;
    let run = (0..calls).map(|_| any_call(guarded.clone(), Chance(chance.draw())));
    join_all(run).await;
    let health = guarded.health();
    let budget = |percent: u32, burst: u32| u64::from(burst) + calls * u64::from(percent) / 100;
    assert!(health.calls <= calls);
    assert!(health.retries <= budget(config.retry.calls_percent, config.retry.burst));
    assert!(health.hedges <= budget(config.hedge.calls_percent, config.hedge.burst));
    assert!(health.hedges_won <= health.hedges);
    assert!(tier.in_flight_max.load(Relaxed) <= config.concurrency_max);
    assert_eq!((health.in_flight, health.waiting), (0, 0));
    assert_eq!(tier.in_flight.load(Relaxed), 0);
    // Healthy from now on: within ten seconds it is asked again, and stays so.
    tier.steps.lock().unwrap().clear();
    sleep(config.breaker.open_for_max).await;
    ask(&guarded).await.unwrap();
    ask(&guarded).await.unwrap();
    health
}

#[test]
fn no_history_of_calls_exceeds_a_bound_or_leaves_the_tier_unasked() {
    let mut seen = [0; 7];
    for seed in 0..300 {
        println!("seed {seed}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let health = runtime.block_on(history(seed));
        let happened = [
            health.opened,
            health.probes,
            health.refused,
            health.shed,
            health.retries,
            health.hedges,
            health.hedges_won,
        ];
        seen.iter_mut().zip(happened).for_each(|(seen, new)| *seen += new);
    }
    println!("{seen:?}");
    assert!(seen.iter().all(|&times| times > 300), "the histories are too quiet: {seen:?}");
}
