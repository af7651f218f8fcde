//! The whole backlog on real files and paused time, above a tier that is told how to fail.

use super::*;
use crate::tier::{Below, BelowError, BelowResult, Incoming};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

const BATCH_BYTES: u64 = 1000;

/// What both sides have, and how below fails.
#[derive(Default)]
struct World {
    here: BTreeMap<Digest, Bytes>,
    /// By action: the blobs that its result needs.
    results: BTreeMap<Digest, Vec<Digest>>,
    below: BTreeSet<Digest>,
    below_results: BTreeSet<(String, Digest)>,
    /// Failures to give, by call, before it works.
    failures: Vec<BelowError>,
    refused: BTreeSet<Digest>,
    /// Those that no batch may hold: all of it is refused.
    poison: BTreeSet<Digest>,
    /// Those of which below has other bytes, as far as this node knows.
    wrong: BTreeSet<Digest>,
    /// Blobs written, each time.
    written: Vec<Digest>,
    /// What was to be kept from eviction, and when.
    held: Vec<(tokio::time::Instant, Arc<Item>)>,
    calls: u64,
}

#[derive(Clone, Default)]
struct Side(Arc<Mutex<World>>);

impl Side {
    fn with<T>(&self, ask: impl FnOnce(&mut World) -> T) -> T {
        ask(&mut self.0.lock().unwrap())
    }

    fn put(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.with(|world| world.here.insert(digest, bytes.into()));
        digest
    }

    fn call<T>(&self, answer: impl FnOnce(&mut World) -> BelowResult<T>) -> BelowResult<T> {
        self.with(|world| {
            world.calls += 1;
            world.failures.pop().map_or_else(|| answer(world), Err)
        })
    }
}

fn keep(world: &mut World, digest: Digest, bytes: &[u8]) -> BelowResult<()> {
    if world.refused.contains(&digest) {
        return Err(BelowError::Refused("no".into()));
    }
    assert_eq!(Digest::of(bytes), digest);
    world.below.insert(digest);
    world.written.push(digest);
    Ok(())
}

impl Local for Side {
    fn hold(&self, items: Vec<Arc<Item>>) -> BoxFuture<'_, ()> {
        let now = tokio::time::Instant::now();
        self.with(|world| world.held.extend(items.into_iter().map(|item| (now, item))));
        async {}.boxed()
    }

    fn open(&self, digest: Digest) -> BoxFuture<'_, Result<Outgoing, BlobError>> {
        async move {
            let bytes = Local::read(self, digest).await?;
            Ok(stream::iter([Ok(bytes)]).boxed())
        }
        .boxed()
    }

    fn read(&self, digest: Digest) -> BoxFuture<'_, Result<Bytes, BlobError>> {
        let found = self.with(|world| world.here.get(&digest).cloned());
        async move { found.ok_or(BlobError::NotFound(digest)) }.boxed()
    }

    fn wrong_below(&self, digests: Vec<Digest>) -> BoxFuture<'_, Vec<Digest>> {
        let wrong = |world: &mut World| {
            digests.into_iter().filter(|digest| world.wrong.contains(digest)).collect()
        };
        let wrong: Vec<Digest> = self.with(wrong);
        async move { wrong }.boxed()
    }

    fn written_below(&self, digests: Vec<Digest>) {
        self.with(|world| digests.iter().for_each(|digest| _ = world.wrong.remove(digest)));
    }

    fn result<'a>(
        &'a self,
        _: &'a str,
        action: Digest,
    ) -> BoxFuture<'a, Result<Option<(ActionResult, Vec<Digest>)>, BlobError>> {
        let needed = self.with(|world| world.results.get(&action).cloned());
        async move { Ok(needed.map(|needed| (ActionResult::default(), needed))) }.boxed()
    }
}

impl Below for Side {
    fn name(&self) -> &'static str {
        "below"
    }

    fn batch_bytes_max(&self) -> u64 {
        BATCH_BYTES
    }

    fn probe(&self) -> BoxFuture<'_, BelowResult<()>> {
        async { Ok(()) }.boxed()
    }

    fn find_missing(&self, digests: Vec<Digest>) -> BoxFuture<'_, BelowResult<Vec<Digest>>> {
        async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            self.call(|world| {
                Ok(digests.into_iter().filter(|digest| !world.below.contains(digest)).collect())
            })
        }
        .boxed()
    }

    fn read(&self, _: Digest, _: u64) -> BoxFuture<'_, BelowResult<Incoming>> {
        async { Err(BelowError::Absent) }.boxed()
    }

    fn read_many(&self, _: Vec<Digest>) -> BoxFuture<'_, BelowResult<Vec<BelowResult<Bytes>>>> {
        async { Err(BelowError::Absent) }.boxed()
    }

    fn write(&self, digest: Digest, mut bytes: Outgoing) -> BoxFuture<'_, BelowResult<()>> {
        async move {
            let mut whole = Vec::new();
            while let Some(piece) = bytes.next().await {
                whole.extend_from_slice(&piece?);
            }
            assert!(whole.len() as u64 > BATCH_BYTES, "a small blob by itself");
            self.call(|world| keep(world, digest, &whole))
        }
        .boxed()
    }

    fn write_many(
        &self,
        blobs: Vec<(Digest, Bytes)>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<()>>>> {
        async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(blobs.iter().map(|(digest, _)| digest.size()).sum::<u64>() <= BATCH_BYTES);
            self.call(|world| {
                if blobs.iter().any(|(digest, _)| world.poison.contains(digest)) {
                    return Err(BelowError::Refused("not this batch".into()));
                }
                Ok(blobs.iter().map(|(digest, bytes)| keep(world, *digest, bytes)).collect())
            })
        }
        .boxed()
    }

    fn get_action<'a>(
        &'a self,
        _: &'a str,
        _: Digest,
    ) -> BoxFuture<'a, BelowResult<Option<ActionResult>>> {
        async { Ok(None) }.boxed()
    }

    fn put_action<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
        _: ActionResult,
    ) -> BoxFuture<'a, BelowResult<()>> {
        async move {
            self.call(|world| {
                let complete = world.results[&action].iter().all(|it| world.below.contains(it));
                assert!(complete, "a result before its blobs");
                world.below_results.insert((instance.to_owned(), action));
                Ok(())
            })
        }
        .boxed()
    }
}

/// Opens the backlog and runs `ask` beside its drain, until `ask` ends: then both are dropped.
fn session<T>(at: &Path, side: &Side, items_max: usize, ask: impl AsyncFnOnce(Backlog) -> T) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let config = BacklogConfig { items_max, sync: false, in_flight_max: 3 };
        let (backlog, drain) = Backlog::open(at, config).unwrap();
        let run = drain.run(Arc::new(side.clone()), Arc::new(side.clone()));
        tokio::select! {
            biased;
            answer = ask(backlog) => answer,
            () = run => panic!("the drain ended while a handle lives"),
        }
    })
}

/// Blobs of many sizes, and an action that needs them all.
fn pushed(side: &Side, seed: u8) -> Vec<Item> {
    let sizes = [1, 300, 600, 5000, 900, 70];
    let blobs: Vec<Digest> = sizes.into_iter().map(|size| side.put(vec![seed; size])).collect();
    let action = Digest::of(&[seed, 255]);
    side.with(|world| world.results.insert(action, blobs.clone()));
    let instance = "main".to_owned();
    blobs.into_iter().map(Item::Blob).chain([Item::Action { instance, action }]).collect()
}

fn is_below(side: &Side, items: &[Item]) -> bool {
    side.with(|world| {
        items.iter().all(|item| match item {
            Item::Blob(digest) => world.below.contains(digest),
            Item::Action { instance, action } => {
                world.below_results.contains(&(instance.clone(), *action))
            }
        })
    })
}

#[test]
fn what_is_pushed_comes_below_and_leaves_the_disk() {
    let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
    let items = pushed(&side, 1);
    session(at.path(), &side, 100, async |backlog| {
        backlog.push(items.clone()).await.unwrap();
        assert_eq!(backlog.pending(), 7);
        backlog.idle().await;
        assert_eq!((backlog.pending(), backlog.snapshot().written), (0, 7));
    });
    assert!(is_below(&side, &items));
    session(at.path(), &side, 100, async |backlog| assert_eq!(backlog.pending(), 0));
}

#[test]
fn an_outage_is_outlived_without_hammering() {
    let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
    let items = pushed(&side, 1);
    side.with(|world| world.failures = vec![BelowError::TimedOut; 40]);
    session(at.path(), &side, 100, async |backlog| {
        backlog.push(items.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(side.with(|world| world.calls) <= 12);
        backlog.idle().await;
        assert_eq!(backlog.snapshot().lost, 0);
    });
    assert!(is_below(&side, &items));
}

#[test]
fn what_is_pending_is_kept_from_eviction_for_as_long_as_that_is() {
    let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
    let items = pushed(&side, 1);
    side.with(|world| world.failures = vec![BelowError::TimedOut; 10_000]);
    for first in [true, false] {
        session(at.path(), &side, 100, async |backlog| {
            side.with(|world| world.held.clear());
            let began = tokio::time::Instant::now();
            if first {
                backlog.push(items.clone()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(1000)).await;
            let ended = tokio::time::Instant::now();
            for item in &items {
                let held = side.with(|world| world.held.clone());
                let mut until = began;
                for (at, _) in held.iter().filter(|(_, held)| **held == *item) {
                    assert!(*at <= until + Duration::from_secs(1), "{item}");
                    until = *at + HELD;
                }
                assert!(until > ended, "{item}");
            }
        });
    }
}

#[test]
fn a_drain_that_is_dropped_at_any_moment_loses_nothing() {
    for milliseconds in 0..40 {
        let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
        let items = pushed(&side, 1);
        side.with(|world| world.failures = vec![BelowError::Unreachable("reset".into()); 2]);
        session(at.path(), &side, 100, async |backlog| {
            backlog.push(items.clone()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        });
        session(at.path(), &side, 100, async |backlog| backlog.idle().await);
        assert!(is_below(&side, &items), "after {milliseconds} ms");
    }
}

#[test]
fn a_full_backlog_refuses_and_keeps_what_it_has() {
    let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
    let (first, second) = (pushed(&side, 1), pushed(&side, 2));
    session(at.path(), &side, 10, async |backlog| {
        backlog.push(first.clone()).await.unwrap();
        let error = backlog.push(second.clone()).await.unwrap_err();
        assert!(matches!(error, BacklogError::Full));
        assert_eq!(backlog.pending(), 7);
        backlog.push(first.clone()).await.unwrap();
        assert_eq!(backlog.pending(), 7);
        backlog.idle().await;
    });
    assert!(is_below(&side, &first));
    assert!(!is_below(&side, &second));
}

#[test]
fn what_is_refused_stays_with_its_action_and_is_tried_again() {
    let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
    let items = pushed(&side, 1);
    let Item::Blob(bad) = items[1] else { panic!("blobs come first") };
    side.with(|world| world.refused.insert(bad));
    session(at.path(), &side, 100, async |backlog| {
        backlog.push(items.clone()).await.unwrap();
        backlog.idle().await;
        let snapshot = backlog.snapshot();
        assert_eq!((snapshot.blobs, snapshot.actions, snapshot.parked), (1, 1, 2));
        side.with(|world| world.refused.clear());
        tokio::time::sleep(Duration::from_secs(3700)).await;
        assert_eq!(backlog.pending(), 0);
    });
    assert!(is_below(&side, &items));
}

#[test]
fn one_that_makes_below_refuse_a_batch_holds_up_none_of_the_others() {
    for bad in 0..30 {
        let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
        let blobs: Vec<Digest> = (0..30_u8).map(|seed| side.put(vec![seed; 9])).collect();
        side.with(|world| world.poison.insert(blobs[bad]));
        session(at.path(), &side, 100, async |backlog| {
            backlog.push(blobs.iter().copied().map(Item::Blob).collect()).await.unwrap();
            backlog.idle().await;
            let snapshot = backlog.snapshot();
            assert_eq!((snapshot.written, snapshot.parked), (29, 1), "{bad}");
        });
        let (below, calls) = side.with(|world| (world.below.len(), world.calls));
        assert!(below == 29 && calls < 16, "{bad}: {below} {calls}");
    }
}

#[test]
fn where_all_are_refused_each_batch_costs_a_bounded_number_of_calls() {
    let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
    let blobs: Vec<Digest> = (0..100_u8).map(|seed| side.put(vec![seed; 9])).collect();
    side.with(|world| world.poison = blobs.iter().copied().collect());
    session(at.path(), &side, 100, async |backlog| {
        backlog.push(blobs.iter().copied().map(Item::Blob).collect()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(side.with(|world| world.calls) <= 50);
        side.with(|world| world.poison.clear());
        tokio::time::sleep(Duration::from_secs(3700)).await;
        assert_eq!(backlog.pending(), 0);
    });
}

#[test]
fn what_is_wrong_below_is_written_though_below_says_that_it_has_it() {
    let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
    let items = pushed(&side, 1);
    side.with(|world| {
        world.below = world.here.keys().copied().collect();
        world.wrong = world.below.clone();
    });
    session(at.path(), &side, 100, async |backlog| {
        // The action alone: it sees to its blobs.
        backlog.push(items[6..].to_vec()).await.unwrap();
        backlog.idle().await;
        assert!(side.with(|world| world.wrong.is_empty() && world.written.len() == 6));
        backlog.push(items.clone()).await.unwrap();
        backlog.idle().await;
        assert_eq!(side.with(|world| world.written.len()), 6, "once");
    });
}

#[test]
fn what_is_no_longer_here_is_counted_as_lost() {
    let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
    let items = pushed(&side, 1);
    let Item::Blob(gone) = items[3] else { panic!("blobs come first") };
    side.with(|world| world.here.remove(&gone));
    session(at.path(), &side, 100, async |backlog| {
        backlog.push(items.clone()).await.unwrap();
        backlog.idle().await;
        let snapshot = backlog.snapshot();
        assert_eq!((snapshot.lost, snapshot.written, backlog.pending()), (2, 5, 0));
    });
    assert!(side.with(|world| world.below_results.is_empty()));
}

#[test]
fn an_instance_name_beyond_the_bound_is_an_error() {
    let (at, side) = (tempfile::tempdir().unwrap(), Side::default());
    session(at.path(), &side, 10, async |backlog| {
        let instance = "x".repeat(record::INSTANCE_BYTES_MAX + 1);
        let item = Item::Action { instance, action: Digest::of(b"a") };
        let error = backlog.push(vec![item]).await.unwrap_err();
        assert!(matches!(error, BacklogError::TooLong(_)));
        backlog.push(vec![Item::Blob(Digest::of(b""))]).await.unwrap();
        assert_eq!(backlog.pending(), 0);
    });
}

#[test]
fn a_push_after_the_drain_is_gone_is_told_so() {
    let at = tempfile::tempdir().unwrap();
    let config = BacklogConfig { items_max: 1, sync: true, in_flight_max: 1 };
    let (backlog, drain) = Backlog::open(at.path(), config).unwrap();
    drop(drain);
    let push = backlog.push(vec![Item::Blob(Digest::of(b"a"))]);
    assert!(matches!(push.now_or_never(), Some(Err(BacklogError::Stopped))));
    assert_eq!(backlog.idle().now_or_never(), Some(()));
}

/// What callers await crosses threads.
const _: fn() = || {
    fn is_send<T: Send>(_: T) {}
    let ask = |backlog: Backlog, drain: Drain, side: Side| {
        is_send(backlog.push(Vec::new()));
        is_send(drain.run(Arc::new(side.clone()), Arc::new(side)));
    };
    let _ = ask;
};
