//! What a tier asks of another server, and what it makes of the answers.

pub(crate) mod server;

use self::server::{Fake, Fault, remote_at};
use super::{Remote, joined};
use bytes::{Bytes, BytesMut};
use engine::{
    blob::BlobError,
    digest::Digest,
    tier::{Below, BelowError, BelowResult, Outgoing},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::reapi::ActionResult;
use std::{net::TcpListener, time::Duration};

/// Bytes that don't pack well, and are others for each `seed`.
fn blob_of(size: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_add(1 << 40);
    let bytes = (0..size).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[4] & 0x3f
    });
    bytes.collect::<Vec<_>>().into()
}

fn outgoing(blob: &Bytes, piece: usize) -> Outgoing {
    let pieces: Vec<_> =
        blob.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces).boxed()
}

async fn whole(remote: &Remote, digest: Digest, offset: u64) -> BelowResult<Bytes> {
    let mut pieces = remote.read(digest, offset).await?;
    let mut whole = BytesMut::new();
    while let Some(piece) = pieces.try_next().await? {
        assert!(!piece.is_empty());
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

const SIZES: [usize; 5] = [1, 1000, 64 << 10, (256 << 10) + 1, 3_000_000];

#[tokio::test]
async fn blobs_go_there_and_come_back_packed_or_not() {
    for zstd in [false, true] {
        let server = Fake::start().await;
        if zstd {
            server.offers_zstd();
        }
        let remote = server.remote(|settings| settings.instance = "main/cache".to_owned());
        for size in SIZES {
            let blob = blob_of(size, 1);
            let digest = Digest::of(&blob);
            assert!(matches!(remote.read(digest, 0).await, Err(BelowError::Absent)));
            for _ in 0..2 {
                remote.write(digest, outgoing(&blob, 70_000)).await.unwrap();
                assert_eq!(server.has(digest), Some(blob.clone()));
            }
            let offsets = [0, 1, size as u64 / 2, size as u64 - 1, size as u64];
            for offset in offsets {
                let rest = blob.slice(usize::try_from(offset).unwrap()..);
                assert_eq!(whole(&remote, digest, offset).await.unwrap(), rest);
            }
            let beyond = remote.read(digest, size as u64 + 1).await;
            assert!(matches!(beyond, Err(BelowError::Refused(_))));
        }
        let names: Vec<_> =
            server.asked().into_iter().filter(|asked| !asked.starts_with("cap")).collect();
        assert!(names.iter().all(|name| name.contains(" main/cache/")), "{names:?}");
        assert_eq!(names.iter().any(|name| name.contains("compressed-blobs/zstd/")), zstd);
    }
}

#[tokio::test]
async fn nothing_is_packed_where_it_is_not_wanted() {
    let server = Fake::start().await;
    server.offers_zstd();
    let remote = server.remote(|settings| settings.compression = false);
    let digest = server.keep(&blob_of(1_000_000, 1));
    whole(&remote, digest, 0).await.unwrap();
    assert_eq!(server.asked(), [format!("read blobs/{digest}")]);
}

#[tokio::test]
async fn what_is_missing_is_what_was_asked_for_and_is_not_there() {
    let server = Fake::start().await;
    let remote = server.remote(|_| ());
    let blobs: Vec<_> = (0..25_000).map(|n| blob_of(8, n)).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| Digest::of(blob)).collect();
    for blob in blobs.iter().step_by(3) {
        server.keep(blob);
    }
    let expect: Vec<_> = (0..digests.len()).filter(|n| n % 3 > 0).map(|n| digests[n]).collect();
    for fault in [Fault::None, Fault::More] {
        server.fails(fault);
        assert_eq!(remote.find_missing(digests.clone()).await.unwrap(), expect);
        assert_eq!(server.asked().len(), 3, "no request has too many");
    }
    assert_eq!(remote.find_missing(Vec::new()).await.unwrap(), []);
    server.fails(Fault::NoDigest);
    let unclear = remote.find_missing(digests[..2].to_vec()).await;
    assert!(matches!(unclear, Err(BelowError::Unreachable(_))));
}

/// What became of each of many, in words.
fn words<T>(answers: &[BelowResult<T>]) -> String {
    let word = |answer: &BelowResult<T>| match answer {
        Ok(_) => '+',
        Err(BelowError::Absent) => 'a',
        Err(BelowError::Unreachable(_)) => 'u',
        Err(BelowError::Wrong(_)) => 'w',
        Err(BelowError::Refused(_)) => 'r',
        Err(_) => '?',
    };
    answers.iter().map(word).collect()
}

#[tokio::test]
async fn many_small_blobs_are_answered_in_their_places() {
    let server = Fake::start().await;
    server.offers(|offer| offer.max_batch_total_size_bytes = 100_000);
    let remote = server.remote(|_| ());
    let mut blobs: Vec<_> = (0..6).map(|n| blob_of(30_000, n)).collect();
    blobs.push(blob_of(100_001, 9));
    let mut named: Vec<_> = blobs.iter().map(|blob| (Digest::of(blob), blob.clone())).collect();
    assert_eq!(words(&remote.write_many(named.clone()).await.unwrap()), "+++++++");
    assert_eq!(remote.batch_bytes_max(), 100_000);
    let absent = Digest::of(b"absent");
    let asked: Vec<_> = named.iter().map(|(digest, _)| *digest).chain([absent]).collect();
    let answers = remote.read_many(asked.clone()).await.unwrap();
    assert_eq!(words(&answers), "+++++++a");
    for (answer, blob) in answers.iter().zip(&blobs) {
        assert_eq!(answer.as_ref().unwrap(), blob);
    }
    // Two batches of three, one blob by itself, one more batch for the absent one.
    let count =
        |asked: &[String], method: &str| asked.iter().filter(|one| one.starts_with(method)).count();
    let asked_of = server.asked();
    let counts = ["update", "write", "batch", "read"].map(|method| count(&asked_of, method));
    assert_eq!(counts, [2, 1, 3, 1]);

    for (fault, reads, writes) in [
        (Fault::More, "++++a", "++++r"),
        (Fault::Fewer, "+u+ua", "+u+ur"),
        (Fault::Longer, "wwwwa", "++++r"),
    ] {
        server.fails(fault);
        let few = [&asked[..4], &[absent]].concat();
        server.offers(|offer| offer.max_batch_total_size_bytes = 0);
        remote.probe().await.unwrap();
        assert_eq!(words(&remote.read_many(few).await.unwrap()), reads, "{fault:?}");
        named.truncate(4);
        named.push((absent, Bytes::from_static(b"another")));
        assert_eq!(words(&remote.write_many(named.clone()).await.unwrap()), writes, "{fault:?}");
    }
    assert!(remote.read_many(Vec::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn results_of_two_instances_never_mix() {
    let server = Fake::start().await;
    let remote = server.remote(|settings| settings.instance = "tier".to_owned());
    let action = Digest::of(b"action");
    let result = |exit_code| ActionResult { exit_code, ..Default::default() };
    assert_eq!(remote.get_action("a", action).await.unwrap(), None);
    remote.put_action("a", action, result(1)).await.unwrap();
    remote.put_action("", action, result(2)).await.unwrap();
    for (instance, expect) in [("a", Some(1)), ("", Some(2)), ("b", None)] {
        let found = remote.get_action(instance, action).await.unwrap();
        assert_eq!(found.map(|found| found.exit_code), expect, "{instance}");
    }
    assert!(server.asked().contains(&"put action tier/a".to_owned()));
    for (own, client, expect) in
        [("", "", ""), ("a", "", "a"), ("", "b", "b"), ("a", "b/c", "a/b/c")]
    {
        assert_eq!(joined(own, client), expect);
    }
    let large = ActionResult { stdout_raw: blob_of(5 << 20, 1), ..Default::default() };
    let refused = remote.put_action("a", action, large).await;
    assert!(matches!(refused, Err(BelowError::Refused(_))));
}

#[tokio::test]
async fn a_blob_of_another_length_is_never_taken_for_whole() {
    for zstd in [false, true] {
        let server = Fake::start().await;
        if zstd {
            server.offers_zstd();
        }
        let remote = server.remote(|_| ());
        let digest = server.keep(&blob_of(300_000, 1));
        server.fails(Fault::Longer);
        let longer = whole(&remote, digest, 0).await;
        assert!(matches!(longer, Err(BelowError::Wrong(_))), "{longer:?}");
        server.fails(Fault::Shorter);
        let shorter = whole(&remote, digest, 0).await;
        assert!(matches!(shorter, Err(BelowError::Wrong(_))), "{shorter:?}");
        server.fails(Fault::Bomb);
        let bomb = whole(&remote, digest, 0).await;
        assert!(matches!(bomb, Err(BelowError::Wrong(_))), "{bomb:?}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_at_every_step() {
    let server = Fake::start().await;
    let remote = server.remote(|settings| {
        settings.call_deadline = Duration::from_millis(200);
        settings.idle_deadline = Duration::from_millis(200);
    });
    let blob = blob_of(40 << 20, 1);
    let digest = server.keep(&blob);
    let timed_out = |result: BelowResult<()>| {
        assert!(matches!(result, Err(BelowError::TimedOut)), "{result:?}");
    };
    server.fails(Fault::Hangs);
    timed_out(remote.probe().await);
    timed_out(remote.find_missing(vec![digest]).await.map(drop));
    timed_out(remote.read(digest, 0).await.map(drop));
    for one in [digest, Digest::of(b"small")] {
        timed_out(remote.read_many(vec![one]).await.map(drop));
    }
    timed_out(remote.write_many(vec![(digest, blob.slice(..9))]).await.map(drop));
    timed_out(remote.get_action("", digest).await.map(drop));
    server.fails(Fault::HangsHalfway);
    timed_out(whole(&remote, digest, 0).await.map(drop));
    server.fails(Fault::Trickles);
    timed_out(whole(&remote, server.keep(&blob.slice(..9000)), 0).await.map(drop));
    server.fails(Fault::TakesNothing);
    timed_out(remote.write(digest, outgoing(&blob, 1 << 20)).await);
    // Small enough to be taken whole: it is the answer that does not come.
    let small = blob.slice(..10);
    timed_out(remote.write(Digest::of(&small), outgoing(&small, 10)).await);
}

#[tokio::test]
async fn a_server_that_asks_for_rest_gets_it() {
    let server = Fake::start().await;
    server.fails(Fault::Busy);
    let remote = server.remote(|_| ());
    let digest = Digest::of(b"x");
    let half_a_second = Some(Duration::from_millis(500));
    for error in [
        remote.find_missing(vec![digest]).await.map(drop).unwrap_err(),
        remote.read(digest, 0).await.map(drop).unwrap_err(),
        remote.write(digest, outgoing(&Bytes::from_static(b"x"), 1)).await.unwrap_err(),
        remote.probe().await.unwrap_err(),
    ] {
        let BelowError::Busy { retry_after, .. } = error else { panic!("{error}") };
        assert_eq!(retry_after, half_a_second);
    }
}

#[tokio::test]
async fn a_write_whose_source_fails_is_not_finished() {
    for zstd in [false, true] {
        let server = Fake::start().await;
        if zstd {
            server.offers_zstd();
        }
        let remote = server.remote(|_| ());
        let blob = blob_of(500_000, 1);
        let digest = Digest::of(&blob);
        let fails = stream::iter([Err(BlobError::Stopped)]);
        let failed = remote.write(digest, outgoing(&blob, 1000).chain(fails).boxed()).await;
        assert!(matches!(failed, Err(BelowError::Local(BlobError::Stopped))), "{failed:?}");
        let short = remote.write(digest, outgoing(&blob.slice(1..), 1000)).await;
        assert!(matches!(short, Err(BelowError::Local(BlobError::Incomplete(_)))), "{short:?}");
        let long = [&blob[..], b"x"].concat().into();
        let long = remote.write(digest, outgoing(&long, 1000)).await;
        assert!(matches!(long, Err(BelowError::Local(BlobError::Mismatch(_)))), "{long:?}");
        assert_eq!(server.has(digest), None);
        server.fails(Fault::KeepsLess);
        let less = remote.write(digest, outgoing(&blob, 1000)).await;
        assert!(matches!(less, Err(BelowError::Unreachable(_))), "{less:?}");
    }
}

#[tokio::test]
async fn capabilities_that_hang_keep_nobody_from_reading() {
    let server = Fake::start().await;
    server.fails(Fault::CapabilitiesHang);
    let remote = server.remote(|settings| settings.call_deadline = Duration::from_secs(2));
    let blob = blob_of(100_000, 1);
    let digest = server.keep(&blob);
    let (one, other) = tokio::join!(whole(&remote, digest, 0), whole(&remote, digest, 0));
    assert_eq!(one.unwrap(), blob);
    assert_eq!(other.unwrap(), blob);
    remote.write(digest, outgoing(&blob, 1000)).await.unwrap();
}

#[tokio::test]
async fn capabilities_that_fail_keep_nobody_from_reading() {
    let server = Fake::start().await;
    server.offers_zstd();
    server.fails(Fault::NoCapabilities);
    let remote = server.remote(|_| ());
    let blob = blob_of(100_000, 1);
    let digest = server.keep(&blob);
    assert_eq!(whole(&remote, digest, 0).await.unwrap(), blob);
    assert_eq!(words(&remote.read_many(vec![digest]).await.unwrap()), "+");
    // Asked once, not each time; and again by a probe.
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|one| one.starts_with("cap")).count(), 1, "{asked:?}");
    server.fails(Fault::None);
    remote.probe().await.unwrap();
    assert_eq!(whole(&remote, digest, 0).await.unwrap(), blob);
    assert!(server.asked().contains(&format!("read compressed-blobs/zstd/{digest}")));
    server.offers(|offer| offer.digest_functions = vec![9]);
    assert!(matches!(remote.probe().await, Err(BelowError::Refused(_))));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable_until_it_is() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let remote = remote_at(port, |settings| settings.instance = "main".to_owned());
    assert_eq!(remote.name(), format!("grpc://127.0.0.1:{port}/main"));
    let digest = Digest::of(b"x");
    for gone in [
        remote.probe().await,
        remote.read(digest, 0).await.map(drop),
        remote.read_many(vec![digest]).await.map(drop),
        remote.write(digest, outgoing(&Bytes::from_static(b"x"), 1)).await,
    ] {
        assert!(matches!(gone, Err(BelowError::Unreachable(_))), "{gone:?}");
    }
    let server = Fake::start_at(port, None).await;
    server.keep(&Bytes::from_static(b"x"));
    remote.probe().await.unwrap();
    assert_eq!(whole(&remote, digest, 0).await.unwrap(), "x");
}

#[tokio::test]
async fn readers_that_stand_still_hold_up_nobody() {
    let server = Fake::start().await;
    let remote = server.remote(|_| ());
    let digest = server.keep(&blob_of(8 << 20, 1));
    let mut still = Vec::new();
    for _ in 0..16 {
        still.push(remote.read(digest, 0).await.unwrap());
    }
    assert_eq!(whole(&remote, digest, 0).await.unwrap().len(), 8 << 20);
    for mut pieces in still {
        while let Some(piece) = pieces.next().await {
            piece.unwrap();
        }
    }
}
