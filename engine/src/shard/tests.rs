//! A shard on a real directory and a real executor: the store's contract, and what a start finds.

use super::*;
use crate::blob::{
    contract::{self, blob_of, bytes_of},
    stack,
};
use bytes::Bytes;
use futures_util::future::{Either, select};
use glommio::{LocalExecutorBuilder, Placement};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    pin::pin,
};

pub(super) fn config(root: &Path) -> StoreConfig {
    StoreConfig {
        layout: Layout::new(root),
        segment_bytes: 1 << 20,
        small_blob_bytes_max: 64 << 10,
        blob_bytes_max: 1 << 30,
        bytes_max: 0,
        free_bytes_min: 0,
        lease: Duration::from_secs(60),
        durability: Durability::Epoch,
    }
}

/// Runs `test` with the shards that recovery finds in `config`'s store; closes them if asked to.
pub(super) fn with_shards<T: Send + 'static, F: Future<Output = T>>(
    config: StoreConfig,
    count: u16,
    close: bool,
    test: impl FnOnce(Vec<Rc<Shard>>) -> F + Send + 'static,
) -> T {
    let _lock = config.layout.take().unwrap();
    let recovered = recover(&config, count).unwrap();
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(512 << 10);
    let thread = executor.spawn(move || async move {
        let env = Env::real();
        let opened: Vec<_> = recovered
            .into_iter()
            .map(|found| Shard::open(env.clone(), config.clone(), found, LossCounter::alone()))
            .collect();
        let work = async {
            let result = test(opened.clone()).await;
            if close {
                for shard in opened {
                    shard.close().await;
                }
            }
            result
        };
        match select(pin!(work), pin!(env.alarms.beat())).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => unreachable!("a beat never ends"),
        }
    });
    thread.unwrap().join().unwrap()
}

/// Small and large blobs, and one result, put into whichever shard owns them.
async fn fill(shards: &[Rc<Shard>]) {
    for size in [1, 1000, 60_000, 70_000, 300_000] {
        let blob = blob_of(size);
        let digest = Digest::of(&blob);
        let owner = &shards[usize::from(digest.owner(shards.len() as u16).0)];
        owner.put(digest, Source::Bytes(blob)).await.unwrap();
    }
    let key = [0x77; HASH_BYTES];
    let owner = &shards[usize::from(crate::digest::owner(&key, shards.len() as u16).0)];
    owner.put_action(&key, b"first").await.unwrap();
    owner.put_action(&key, b"second").await.unwrap();
}

async fn assert_filled(shards: &[Rc<Shard>]) {
    for size in [1, 1000, 60_000, 70_000, 300_000] {
        let blob = blob_of(size);
        let digest = Digest::of(&blob);
        let owner = &shards[usize::from(digest.owner(shards.len() as u16).0)];
        assert_eq!(owner.find_missing(vec![digest]).await.unwrap(), [], "{size}");
        assert_eq!(bytes_of(owner.get(digest).await.unwrap()), blob, "{size}");
    }
    let key = [0x77; HASH_BYTES];
    let owner = &shards[usize::from(crate::digest::owner(&key, shards.len() as u16).0)];
    assert_eq!(owner.get_action(&key).await.unwrap().unwrap().bytes, "second");
}

#[test]
fn the_shard_under_its_layers_keeps_the_contract() {
    for durability in [Durability::Epoch, Durability::Sync] {
        let directory = tempfile::tempdir().unwrap();
        let config = StoreConfig { durability, ..config(directory.path()) };
        with_shards(config, 1, true, async |shards| {
            contract::check(&stack(shards[0].clone())).await;
        });
    }
}

#[test]
fn a_restart_finds_everything_whatever_the_number_of_shards() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 2, true, async |shards| fill(&shards).await);
    for count in [1, 8, 2, 5] {
        with_shards(config(directory.path()), count, true, async |shards| {
            assert_filled(&shards).await;
        });
    }
}

#[test]
fn a_segment_that_was_not_sealed_is_read_to_its_last_whole_record() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 1, false, async |shards| fill(&shards).await);
    let segment = fs::read_dir(directory.path().join("segments")).unwrap().next().unwrap();
    // What a torn write leaves behind.
    let mut file = OpenOptions::new().append(true).open(segment.unwrap().path()).unwrap();
    file.write_all(&[0x52; 300]).unwrap();
    with_shards(config(directory.path()), 1, true, async |shards| assert_filled(&shards).await);
}

#[test]
fn a_damaged_blob_is_absent_and_can_be_put_again() {
    for size in [1000, 300_000] {
        let directory = tempfile::tempdir().unwrap();
        with_shards(config(directory.path()), 1, true, async |shards| fill(&shards).await);
        let blob = blob_of(size);
        flip_a_byte_of(&blob, directory.path());
        with_shards(config(directory.path()), 1, true, async move |shards| {
            let digest = Digest::of(&blob);
            let link = shards[0].link(vec![(digest, false)]).await;
            assert!(matches!(link, Err(BlobError::NotFound(_))), "{link:?}");
            assert_eq!(shards[0].find_missing(vec![digest]).await.unwrap(), [digest]);
            shards[0].put(digest, Source::Bytes(blob.clone())).await.unwrap();
            assert_eq!(bytes_of(shards[0].get(digest).await.unwrap()), blob);
        });
    }
}

/// Changes one byte of a blob, wherever below `root` it lies.
fn flip_a_byte_of(blob: &[u8], root: &Path) {
    let needle = &blob[blob.len() - 200..];
    let cas = fs::read_dir(root.join("cas")).unwrap();
    let files = cas.flat_map(|prefix| fs::read_dir(prefix.unwrap().path()).unwrap());
    let segments = fs::read_dir(root.join("segments")).unwrap();
    for file in files.chain(segments) {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            bytes[at + 100] ^= 1;
            let mode = fs::metadata(&path).unwrap().permissions();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, mode).unwrap();
            return;
        }
    }
    panic!("the blob lies nowhere");
}

#[test]
fn links_have_the_mode_that_was_asked_for_and_inodes_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 1, true, async |shards| {
        fill(&shards).await;
        for size in [1000, 300_000] {
            let digest = Digest::of(&blob_of(size));
            let links = shards[0].link(vec![(digest, false), (digest, true)]).await.unwrap();
            let [plain, executable] = [0, 1].map(|at| fs::metadata(&links[at].path).unwrap());
            assert_eq!(plain.permissions().mode() & 0o7777, 0o444);
            assert_eq!(executable.permissions().mode() & 0o7777, 0o555);
            assert_ne!(plain.ino(), executable.ino());
            assert_eq!((plain.mtime(), executable.mtime()), (946_684_800, 946_684_800));
            assert_eq!(fs::read(&links[1].path).unwrap(), blob_of(size));
            let again = shards[0].link(vec![(digest, true)]).await.unwrap();
            assert_eq!(fs::metadata(&again[0].path).unwrap().ino(), executable.ino());
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let bounded = StoreConfig { bytes_max: 500_000, ..config(directory.path()) };
    with_shards(bounded, 1, true, async |shards| {
        let (small, large) = (blob_of(1000), blob_of(400_000));
        let (a, b) = (Digest::of(&small), Digest::of(&large));
        shards[0].put(b, Source::Bytes(large)).await.unwrap();
        let more = blob_of(200_000);
        let c = Digest::of(&more);
        let refused = shards[0].put(c, Source::Bytes(more)).await;
        assert!(matches!(refused, Err(BlobError::Full)), "{refused:?}");
        assert_eq!(shards[0].find_missing(vec![a, b, c]).await.unwrap(), [a, c]);
        shards[0].put(a, Source::Bytes(small)).await.unwrap();
    });
}

#[test]
fn segments_are_sealed_when_full_and_all_their_records_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let blobs: Vec<Bytes> = (0..100).map(|at| blob_of(50_000 + at)).collect();
    let put = blobs.clone();
    with_shards(config(directory.path()), 1, true, async move |shards| {
        for blob in put {
            shards[0].put(Digest::of(&blob), Source::Bytes(blob)).await.unwrap();
        }
    });
    assert!(fs::read_dir(directory.path().join("segments")).unwrap().count() >= 5);
    with_shards(config(directory.path()), 2, true, async move |shards| {
        for blob in blobs {
            let digest = Digest::of(&blob);
            let owner = &shards[usize::from(digest.owner(2).0)];
            assert_eq!(bytes_of(owner.get(digest).await.unwrap()), blob);
        }
    });
}

#[test]
fn two_processes_cannot_have_one_store() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path());
    let held = layout.take().unwrap();
    assert_eq!(layout.take().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(held);
    layout.take().unwrap();
    fs::write(directory.path().join("FORMAT"), "another\n").unwrap();
    assert_eq!(layout.take().unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn a_blob_that_looks_like_the_end_of_a_segment_ends_none() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 1, false, async |shards| {
        fill(&shards).await;
        let path = shards[0].config.layout.segments();
        let segment = fs::read_dir(path).unwrap().next().unwrap().unwrap();
        // Its trailer says: no records, beginning where this payload will lie.
        let start = segment.metadata().unwrap().len() + RECORD_HEADER_BYTES as u64;
        let mut forged = start.to_le_bytes().to_vec();
        forged.extend_from_slice(&[0; 4]);
        forged.extend_from_slice(&crc32fast::hash(&forged).to_le_bytes());
        forged.extend_from_slice(b"RFSEAL01");
        let forged = Bytes::from(forged);
        shards[0].put(Digest::of(&forged), Source::Bytes(forged)).await.unwrap();
    });
    with_shards(config(directory.path()), 1, true, async |shards| assert_filled(&shards).await);
}

#[test]
fn a_blob_that_was_found_damaged_stays_absent_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 1, true, async |shards| fill(&shards).await);
    let blob = blob_of(300_000);
    let digest = Digest::of(&blob);
    flip_a_byte_of(&blob, directory.path());
    with_shards(config(directory.path()), 1, true, async move |shards| {
        shards[0].verify_file(&digest, Home::Plain).await.unwrap_err();
    });
    with_shards(config(directory.path()), 1, true, async move |shards| {
        assert_eq!(shards[0].find_missing(vec![digest]).await.unwrap(), [digest]);
    });
}

#[test]
fn a_good_home_does_not_vouch_for_a_damaged_one() {
    let directory = tempfile::tempdir().unwrap();
    let blob = blob_of(300_000);
    let digest = Digest::of(&blob);
    with_shards(config(directory.path()), 1, true, async move |shards| {
        fill(&shards).await;
        shards[0].link(vec![(digest, true)]).await.unwrap();
    });
    // The first that is found is the plain file or its twin: one of the two is left good.
    flip_a_byte_of(&blob, directory.path());
    with_shards(config(directory.path()), 1, true, async move |shards| {
        for executable in [true, false] {
            let links = shards[0].link(vec![(digest, executable)]).await.unwrap();
            assert_eq!(fs::read(&links[0].path).unwrap(), blob, "{executable}");
        }
        let Body::Extent(extent) = shards[0].get(digest).await.unwrap() else { panic!() };
        assert!(extent.verified);
        assert_eq!(bytes_of(Body::Extent(extent)), blob);
    });
}

#[test]
fn a_late_report_of_damage_takes_no_good_blob_away() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 1, true, async |shards| {
        fill(&shards).await;
        let digest = Digest::of(&blob_of(300_000));
        shards[0].checked(digest, Home::Plain, false).await;
        assert_eq!(shards[0].find_missing(vec![digest]).await.unwrap(), []);
        shards[0].get(digest).await.unwrap();
    });
}

#[test]
fn a_blob_that_is_put_again_after_a_restart_is_kept_once_more_at_most() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 1, true, async |shards| fill(&shards).await);
    with_shards(config(directory.path()), 1, true, async |shards| {
        let blob = blob_of(60_000);
        let before = shards[0].space_used();
        for _ in 0..20 {
            shards[0].put(Digest::of(&blob), Source::Bytes(blob.clone())).await.unwrap();
        }
        assert!(shards[0].space_used() - before < 2 * 60_000);
    });
}

#[test]
fn a_result_is_called_complete_only_while_it_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 1, true, async |shards| {
        let key = [0x11; HASH_BYTES];
        shards[0].put_action(&key, b"first").await.unwrap();
        let first = shards[0].get_action(&key).await.unwrap().unwrap();
        shards[0].put_action(&key, b"second").await.unwrap();
        shards[0].complete_action(&key, first.record, 7);
        let second = shards[0].get_action(&key).await.unwrap().unwrap();
        assert_eq!(second.complete_at, 0);
        shards[0].complete_action(&key, second.record, 7);
        assert_eq!(shards[0].get_action(&key).await.unwrap().unwrap().complete_at, 7);
    });
}

#[test]
fn space_is_not_promised_twice() {
    let directory = tempfile::tempdir().unwrap();
    let bounded = StoreConfig { bytes_max: 1000, ..config(directory.path()) };
    with_shards(bounded, 1, true, async |shards| {
        let first = shards[0].reserve(600).await.unwrap();
        assert!(matches!(shards[0].reserve(600).await, Err(BlobError::Full)));
        drop(first);
        shards[0].reserve(600).await.unwrap();
    });
}

#[test]
fn a_home_that_a_blob_does_not_have_can_not_be_lost() {
    let directory = tempfile::tempdir().unwrap();
    with_shards(config(directory.path()), 1, true, async |shards| {
        fill(&shards).await;
        let digest = Digest::of(&blob_of(300_000));
        let before = shards[0].space_used();
        let verified = shards[0].verify_file(&digest, Home::Executable).await;
        assert!(matches!(verified, Err(BlobError::NotFound(_))), "{verified:?}");
        assert_eq!(shards[0].space_used(), before);
        assert_eq!(shards[0].find_missing(vec![digest]).await.unwrap(), []);
    });
}
