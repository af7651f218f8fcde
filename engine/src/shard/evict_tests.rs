//! Eviction on a real directory: what goes, what stays, and that both are what the index says.

use super::{
    evict::Evictions,
    tests::{config, with_shards},
    *,
};
use crate::blob::contract::{blob_of, bytes_of};
use bytes::Bytes;
use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
};

const ALL: u64 = u64::MAX;

fn unpromised(root: &Path) -> StoreConfig {
    StoreConfig { lease: Duration::ZERO, ..config(root) }
}

fn allow(shard: &Shard, bytes: u64, promised_bytes: u64) {
    shard.usage().allow(0, Allowance { bytes, files: ALL, promised_bytes });
}

/// Blobs that are all different, `size` and a little more.
fn blobs(count: usize, size: usize) -> Vec<(Digest, Bytes)> {
    (0..count).map(|at| blob_of(size + at)).map(|blob| (Digest::of(&blob), blob)).collect()
}

async fn put_all(shard: &Rc<Shard>, blobs: &[(Digest, Bytes)]) {
    for (digest, blob) in blobs {
        shard.put(*digest, Source::Bytes(blob.clone())).await.unwrap();
    }
}

/// Which are there; each that is has its bytes.
async fn present(shard: &Rc<Shard>, blobs: &[(Digest, Bytes)]) -> Vec<bool> {
    let mut found = Vec::new();
    for (digest, blob) in blobs {
        let there = shard.find_missing(vec![*digest]).await.unwrap().is_empty();
        let read = shard.get(*digest).await;
        assert_eq!(there, read.is_ok(), "{digest}");
        if let Ok(body) = read {
            assert_eq!(bytes_of(body), *blob, "{digest}");
        }
        found.push(there);
    }
    found
}

/// What the store's files take, as the shard counts them.
fn on_disk_below(root: &Path) -> u64 {
    let segments = fs::read_dir(root.join("segments")).unwrap();
    let segments: u64 = segments.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    let cas = fs::read_dir(root.join("cas")).unwrap();
    let files = cas.flat_map(|prefix| fs::read_dir(prefix.unwrap().path()).unwrap());
    segments + files.map(|file| on_disk(file.unwrap().metadata().unwrap().len())).sum::<u64>()
}

#[test]
fn files_go_and_what_stays_is_whole_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    with_shards(unpromised(directory.path()), 1, true, async move |shards| {
        let shard = &shards[0];
        let blobs = blobs(40, 100_000);
        put_all(shard, &blobs).await;
        let before = shard.space_used();
        allow(shard, before / 2, ALL);
        assert!(shard.evict().await);
        assert!(shard.space_used() <= before / 2);
        assert!(shard.space_used() > before / 4);
        assert_eq!(shard.space_used(), on_disk_below(&root));
        let there = present(shard, &blobs).await;
        let gone = there.iter().filter(|there| !**there).count();
        let evictions = shard.holdings().evictions;
        assert_eq!((evictions.blobs, evictions.promises_broken), (gone as u64, 0));
        assert_eq!(evictions.bytes, before - shard.space_used());
        // What is gone can come back.
        allow(shard, ALL, ALL);
        put_all(shard, &blobs).await;
        assert!(present(shard, &blobs).await.into_iter().all(|there| there));
    });
}

#[test]
fn what_was_promised_stays_until_it_must_go_and_is_counted_then() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 1, true, async move |shards| {
        let shard = &shards[0];
        let all = [blobs(20, 100_000), blobs(40, 50_000)].concat();
        put_all(shard, &all).await;
        let before = shard.space_used();
        allow(shard, before / 2, ALL);
        let segments = shard.holdings().segments;
        assert!(!shard.evict().await);
        shard.put_action(&[1; HASH_BYTES], b"result").await.unwrap();
        assert_eq!(shard.holdings().segments, segments, "none is sealed for nothing");
        assert_eq!(shard.holdings().evictions, Evictions::default());
        assert!(present(shard, &all).await.into_iter().all(|there| there));
        allow(shard, before / 2, before / 2);
        // The segment that grows is sealed by one round, and can go in the next.
        for _ in 0..4 {
            shard.evict().await;
        }
        assert!(shard.space_used() <= before / 2, "{} of {before}", shard.space_used());
        let gone = present(shard, &all).await.into_iter().filter(|there| !there).count();
        let evictions = shard.holdings().evictions;
        assert!(gone > 0);
        assert_eq!((evictions.blobs, evictions.promises_broken), (gone as u64, gone as u64));
    });
}

#[test]
fn segments_go_what_was_used_is_carried_and_a_start_finds_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    let all = blobs(200, 30_000);
    let put = all.clone();
    let stayed = with_shards(unpromised(directory.path()), 1, true, async move |shards| {
        let shard = &shards[0];
        put_all(shard, &put).await;
        // As if all but every tenth were from long ago.
        for (at, (digest, _)) in put.iter().enumerate() {
            let mut index = shard.index.borrow_mut();
            let entry = index.get_mut(digest).unwrap();
            entry.used -= if at % 10 == 0 { 0 } else { 1000 };
        }
        let before = shard.space_used();
        allow(shard, before / 3, ALL);
        assert!(shard.evict().await);
        assert!(shard.space_used() <= before / 3);
        assert_eq!(shard.space_used(), on_disk_below(&root));
        let there = present(shard, &put).await;
        assert!(there.iter().step_by(10).all(|there| *there), "{there:?}");
        assert!(shard.holdings().evictions.carried_bytes > 0);
        there
    });
    for shards in [1, 3] {
        let (all, stayed) = (all.clone(), stayed.clone());
        with_shards(unpromised(directory.path()), shards, true, async move |shards| {
            for ((digest, blob), stayed) in all.iter().zip(stayed) {
                let owner = &shards[usize::from(digest.owner(shards.len() as u16).0)];
                match owner.get(*digest).await {
                    Ok(body) => assert_eq!(bytes_of(body), *blob),
                    Err(error) => assert!(!stayed, "{digest} {error}"),
                }
            }
        });
    }
}

#[test]
fn a_result_that_was_overwritten_never_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let key = [0x77; HASH_BYTES];
    with_shards(unpromised(directory.path()), 1, true, async move |shards| {
        let shard = &shards[0];
        shard.put_action(&key, b"first").await.unwrap();
        put_all(shard, &blobs(20, 60_000)).await;
        let first = shard.segments.held.settled();
        shard.put_action(&key, b"second").await.unwrap();
        put_all(shard, &blobs(20, 61_000)).await;
        // All but the oldest segment is emptied, with a cutoff that takes everything.
        let oldest = first.iter().map(|(id, _)| *id).min().unwrap();
        allow(shard, 0, 0);
        let cutoff = shard.survey().await.cutoff(ALL, 0, ALL);
        for (id, _) in shard.segments.held.settled() {
            if id != oldest {
                shard.empty_segment(id, &cutoff).await.unwrap();
            }
        }
        let found = shard.get_action(&key).await.unwrap();
        assert!(found.is_none_or(|found| found.bytes == "second"));
    });
    with_shards(unpromised(directory.path()), 1, true, async move |shards| {
        let found = shards[0].get_action(&key).await.unwrap();
        assert!(found.is_none_or(|found| found.bytes == "second"));
        // And once the older one is gone, this one may go.
        let shard = &shards[0];
        for _ in 0..2 {
            let cutoff = shard.survey().await.cutoff(ALL, 0, ALL);
            for (id, _) in shard.segments.held.settled() {
                shard.empty_segment(id, &cutoff).await.unwrap();
            }
            shard.segments.rotate().await.unwrap();
        }
        assert!(shard.get_action(&key).await.unwrap().is_none());
        assert_eq!(shard.holdings().evictions.results, 1);
    });
}

#[test]
fn twice_what_fits_can_be_written_and_every_answer_is_true() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    let bounded = StoreConfig { bytes_max: 8 << 20, ..unpromised(directory.path()) };
    with_shards(bounded, 1, true, async move |shards| {
        let shard = shards[0].clone();
        let looks = async {
            let mark = |hundredths: u64| (8 << 20) / 100 * hundredths;
            loop {
                let (used, wanted) = (shard.space_used(), shard.usage().wanted());
                if used + wanted > mark(95) {
                    allow(&shard, mark(90) - wanted, mark(98) - wanted);
                }
                shard.env.alarms.sleep(Duration::from_millis(20)).await;
            }
        };
        let work = async {
            let all: Vec<_> = (0..400)
                .map(|at| blob_of(if at % 4 == 0 { 100_000 + at } else { 20_000 + at }))
                .map(|blob| (Digest::of(&blob), blob))
                .collect();
            for chunk in all.chunks(20) {
                let puts = chunk.iter().map(async |(digest, blob)| {
                    shard.put(*digest, Source::Bytes(blob.clone())).await.unwrap();
                    shard.link(vec![(*digest, true)]).await.ok();
                    shard.put(*digest, Source::Bytes(blob.clone())).await.unwrap();
                });
                futures_util::future::join_all(puts).await;
            }
            let there = present(&shard, &all).await;
            assert!(there.iter().any(|there| *there) && there.iter().any(|there| !*there));
        };
        let upkeep = std::pin::pin!(futures_util::future::join(looks, shard.tend()));
        futures_util::future::select(std::pin::pin!(work), upkeep).await;
        assert!(shard.space_used() <= 8 << 20);
        assert_eq!(shard.space_used(), on_disk_below(&root));
    });
}

/// Random work under random allowances, with restarts; what the index says must hold throughout.
#[test]
fn whatever_happens_what_is_present_is_right_and_what_is_promised_is_present() {
    let seeds: u64 = std::env::var("EVICTION_SEEDS").ok().map_or(8, |text| text.parse().unwrap());
    for seed in 1..=seeds {
        random_work(seed);
    }
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        // Steele and others, SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

type Results = HashMap<[u8; HASH_BYTES], Vec<u8>>;

/// One shard, and what it has to hold to.
struct Work {
    shard: Rc<Shard>,
    root: std::path::PathBuf,
    pool: Vec<(Digest, Bytes)>,
    promised: HashSet<Digest>,
    results: Results,
    chance: Chance,
    /// Seed, round, step: where to look when it does not hold.
    at: (u64, u64, u64),
}

impl Work {
    async fn step(&mut self) {
        let (digest, blob) = self.pool[self.chance.below(60) as usize].clone();
        match self.chance.below(8) {
            0..=2 => self.put(digest, blob).await,
            3 => {
                let executable = self.chance.below(2) == 0;
                if self.shard.link(vec![(digest, executable)]).await.is_ok() {
                    self.promised.insert(digest);
                }
            }
            4 => {
                if self.shard.find_missing(vec![digest]).await.unwrap().is_empty() {
                    self.promised.insert(digest);
                }
            }
            5 => {
                let key = [self.chance.below(12) as u8; HASH_BYTES];
                let value = format!("{:?}", self.at).repeat(500).into_bytes();
                self.shard.put_action(&key, &value).await.unwrap();
                self.results.insert(key, value);
            }
            6 => self.evict_and_put().await,
            _ => {
                if let Ok(body) = self.shard.get(digest).await {
                    assert_eq!(bytes_of(body), blob, "{:?}", self.at);
                }
            }
        }
    }

    async fn put(&mut self, digest: Digest, blob: Bytes) {
        self.shard.put(digest, Source::Bytes(blob)).await.unwrap();
        self.promised.insert(digest);
    }

    async fn evict_and_put(&mut self) {
        let shard = self.shard.clone();
        allow(&shard, shard.space_used() * self.chance.below(100) / 100, ALL);
        let racing = async {
            for (digest, blob) in self.pool.clone().into_iter().take(5) {
                self.put(digest, blob).await;
            }
        };
        futures_util::future::join(shard.evict(), racing).await;
        assert_eq!(shard.space_used(), on_disk_below(&self.root), "{:?}", self.at);
    }

    async fn check(&self, promises: bool) {
        if promises {
            let all: Vec<Digest> = self.promised.iter().copied().collect();
            assert_eq!(self.shard.find_missing(all).await.unwrap(), [], "{:?}", self.at);
        }
    }

    async fn finish(self) -> Results {
        present(&self.shard, &self.pool).await;
        for (key, value) in &self.results {
            if let Some(found) = self.shard.get_action(key).await.unwrap() {
                assert_eq!(found.bytes, *value, "{:?}", self.at);
            }
        }
        self.results
    }
}

fn random_work(seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let mut results = Results::new();
    let pool: Vec<(Digest, Bytes)> = (0..60)
        .map(|at| blob_of(if at % 5 == 0 { 70_000 + at } else { 900 * (at + 1) }))
        .map(|blob| (Digest::of(&blob), blob))
        .collect();
    for round in 0..4 {
        let promises = round % 2 == 1;
        let lease = Duration::from_secs(if promises { 600 } else { 0 });
        let config = StoreConfig { lease, segment_bytes: 1 << 18, ..config(directory.path()) };
        let (pool, root) = (pool.clone(), directory.path().to_owned());
        let mut chance = Chance(seed * 1000 + round);
        let clean = chance.below(2) == 0;
        results = with_shards(config, 1, clean, async move |shards| {
            let (shard, promised) = (shards[0].clone(), HashSet::new());
            let at = (seed, round, 0);
            let mut work = Work { shard, root, pool, promised, results, chance, at };
            for step in 0..120 {
                work.at.2 = step;
                work.step().await;
                work.check(promises).await;
            }
            work.finish().await
        });
    }
}

#[test]
fn an_action_that_is_linked_a_file_keeps_it_when_its_name_goes() {
    let directory = tempfile::tempdir().unwrap();
    let taken = directory.path().join("exec").join("input");
    with_shards(unpromised(directory.path()), 1, true, async move |shards| {
        let shard = &shards[0];
        let all = blobs(3, 100_000);
        put_all(shard, &all).await;
        let links = shard.link(vec![(all[0].0, false)]).await.unwrap();
        fs::hard_link(&links[0].path, &taken).unwrap();
        allow(shard, 0, ALL);
        shard.evict().await;
        assert_eq!(shard.find_missing(vec![all[0].0]).await.unwrap(), [all[0].0]);
        assert_eq!(fs::read(&taken).unwrap(), all[0].1);
        assert_eq!(fs::metadata(&taken).unwrap().nlink(), 1);
    });
}
