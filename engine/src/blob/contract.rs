//! What every `BlobStore` must do, whatever it is made of: one function, run against each layer
//! and against the shard. Must never know which store it checks.

use super::{
    BlobError, BlobStore, Body, Source,
    source::{Chunk, Chunks, Pieces},
};
use crate::{digest::Digest, env::Env};
use bytes::Bytes;
use std::{io::Read, os::unix::fs::FileExt, time::Duration};

/// Sizes on both sides of every boundary between a store's homes.
const SIZES: [usize; 6] = [1, 100, 4096, 64 * 1024, 64 * 1024 + 10, 1_000_000];

/// A blob whose bytes depend on its size.
pub(crate) fn blob_of(size: usize) -> Bytes {
    let mut state = size as u64 | 1 << 40;
    let bytes = (0..size).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    bytes.collect::<Vec<_>>().into()
}

/// Everything that a store says of a body.
pub(crate) fn bytes_of(body: Body) -> Vec<u8> {
    match body {
        Body::Bytes(bytes) => bytes.to_vec(),
        Body::Extent(extent) => {
            let mut bytes = vec![0; usize::try_from(extent.digest.size()).unwrap()];
            extent.file.read_exact_at(&mut bytes, 0).unwrap();
            let mut beyond = [0; 1];
            let mut file = extent.file.try_clone().unwrap();
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(extent.digest.size())).unwrap();
            assert_eq!(file.read(&mut beyond).unwrap(), 0, "nothing lies behind the blob");
            bytes
        }
    }
}

/// The pieces as an upload brings them; without an end where the sender goes away.
pub(crate) async fn chunks(digest: Digest, pieces: &[Bytes], ends: bool) -> Source {
    let (sender, receiver) = async_channel::bounded(pieces.len() + 1);
    for piece in pieces {
        sender.send(Chunk::Bytes(Pieces::new(vec![piece.clone()], None))).await.unwrap();
    }
    if ends {
        sender.send(Chunk::End).await.unwrap();
    }
    Source::Chunks(Chunks::new(
        digest,
        receiver,
        Env::real().alarms.clone(),
        Duration::from_secs(10),
    ))
}

/// The contract. The store is empty at first.
pub(crate) async fn check(store: &impl BlobStore) {
    for size in SIZES {
        whole_blobs_are_found_as_they_were(store, size).await;
        blobs_in_pieces_are_found_as_they_were(store, size).await;
        wrong_bytes_leave_nothing(store, size).await;
    }
    the_empty_blob_is_always_present(store).await;
}

async fn whole_blobs_are_found_as_they_were(store: &impl BlobStore, size: usize) {
    let blob = blob_of(size);
    let digest = Digest::of(&blob);
    assert_eq!(store.find_missing(vec![digest]).await.unwrap(), [digest]);
    assert!(matches!(store.get(digest).await, Err(BlobError::NotFound(_))));
    // Twice: a retry does no harm.
    for _ in 0..2 {
        store.put(digest, Source::Bytes(blob.clone())).await.unwrap();
        assert_eq!(store.find_missing(vec![digest]).await.unwrap(), []);
        assert_eq!(bytes_of(store.get(digest).await.unwrap()), blob);
    }
}

async fn blobs_in_pieces_are_found_as_they_were(store: &impl BlobStore, size: usize) {
    let blob = blob_of(size + 1);
    let digest = Digest::of(&blob);
    let (first, second) = (blob.slice(..size / 2), blob.slice(size / 2..));
    store.put(digest, chunks(digest, &[first, second], true).await).await.unwrap();
    assert_eq!(bytes_of(store.get(digest).await.unwrap()), blob);
}

async fn wrong_bytes_leave_nothing(store: &impl BlobStore, size: usize) {
    let blob = blob_of(size + 2);
    let digest = Digest::of(&blob);
    let mut other = blob.to_vec();
    other[size / 2] ^= 1;
    let other = Bytes::from(other);
    let (short, long) = (blob.slice(1..), [&blob[..], b"x"].concat().into());
    for wrong in [other, short, long] {
        let whole = store.put(digest, Source::Bytes(wrong.clone())).await;
        assert!(matches!(whole, Err(BlobError::Mismatch(_))), "{whole:?}");
        let pieces = store.put(digest, chunks(digest, &[wrong], true).await).await;
        assert!(matches!(pieces, Err(BlobError::Mismatch(_))), "{pieces:?}");
        assert_eq!(store.find_missing(vec![digest]).await.unwrap(), [digest]);
    }
    let half = blob.slice(..size / 2);
    let left = store.put(digest, chunks(digest, &[half], false).await).await;
    assert!(matches!(left, Err(BlobError::Incomplete(_))), "{left:?}");
    assert_eq!(store.find_missing(vec![digest]).await.unwrap(), [digest]);
}

async fn the_empty_blob_is_always_present(store: &impl BlobStore) {
    let empty = Digest::of(b"");
    assert_eq!(store.find_missing(vec![empty]).await.unwrap(), []);
    assert_eq!(bytes_of(store.get(empty).await.unwrap()), b"");
    store.put(empty, Source::Bytes(Bytes::new())).await.unwrap();
    let wrong = store.put(empty, Source::Bytes(Bytes::from_static(b"x"))).await;
    assert!(matches!(wrong, Err(BlobError::Mismatch(_))));
}
