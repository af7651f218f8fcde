//! What is present: FindMissingBlobs, and the empty blob everywhere.

use crate::shared::{assert_refused, own, shared};
use proto::reapi::{BatchReadBlobsRequest, Digest, SpliceBlobRequest, SplitBlobRequest};
use ringforge_tests::{client::digest, noise};
use std::collections::BTreeSet;
use tonic::Code;

#[tokio::test]
async fn only_what_is_absent_is_missing() {
    let node = shared().await;
    let kept = node.put((0..20).map(|n| noise(&format!("kept {n}"), 100 + n))).await;
    let absent: Vec<Digest> =
        (0..20).map(|n| digest(&noise(&format!("absent {n}"), 100 + n))).collect();
    let asked = kept.iter().zip(&absent).flat_map(|(one, other)| [one.clone(), other.clone()]);
    let missing = node.missing(asked.collect()).await.unwrap();
    let names = |digests: &[Digest]| -> BTreeSet<String> {
        digests.iter().map(|digest| digest.hash.clone()).collect()
    };
    assert_eq!(names(&missing), names(&absent));
    assert_eq!(missing.len(), absent.len());
}

#[tokio::test]
async fn nothing_asked_is_nothing_missing() {
    assert_eq!(shared().await.missing(Vec::new()).await.unwrap(), []);
}

#[tokio::test]
async fn a_digest_that_is_asked_twice_is_no_error() {
    let node = shared().await;
    let absent = digest(b"asked twice");
    let missing = node.missing(vec![absent.clone(), absent.clone()]).await.unwrap();
    assert!(!missing.is_empty() && missing.iter().all(|one| *one == absent), "{missing:?}");
}

#[tokio::test]
async fn a_hash_with_another_size_is_another_blob() {
    let node = shared().await;
    let kept = node.put([noise("another size", 50)]).await.remove(0);
    for size_bytes in [1, 49, 51, i64::MAX] {
        let other = Digest { size_bytes, ..kept.clone() };
        let missing = node.missing(vec![other.clone()]).await.unwrap();
        assert_eq!(missing, std::slice::from_ref(&other));
        assert_refused(node.read(&other).await, Code::NotFound, "a wrong size");
        let request = BatchReadBlobsRequest { digests: vec![other], ..Default::default() };
        match node.cas.clone().batch_read_blobs(request).await {
            // A size beyond the limit of a batch.
            Err(refused) => assert_eq!(refused.code(), Code::InvalidArgument),
            Ok(answer) => {
                let one = answer.into_inner().responses.remove(0);
                assert_eq!(one.status.unwrap().code, Code::NotFound as i32);
                assert!(one.data.is_empty());
            }
        }
    }
    assert_eq!(node.missing(vec![kept]).await.unwrap(), []);
}

#[tokio::test]
async fn the_empty_blob_is_always_there() {
    let node = shared().await;
    let empty = digest(b"");
    assert_eq!(node.missing(vec![empty.clone()]).await.unwrap(), []);
    assert_eq!(node.read(&empty).await.unwrap(), "");
    let request = BatchReadBlobsRequest { digests: vec![empty.clone()], ..Default::default() };
    let one = node.cas.clone().batch_read_blobs(request).await.unwrap();
    let one = one.into_inner().responses.remove(0);
    assert_eq!(one.status.unwrap_or_default().code, 0);
    assert_eq!((one.digest.unwrap(), one.data.len()), (empty, 0));
    node.put([bytes::Bytes::new()]).await;
}

#[tokio::test]
async fn ten_thousand_digests_are_one_question() {
    let node = shared().await;
    let digests: Vec<Digest> = (0..10_000_u32).map(|n| digest(&n.to_be_bytes())).collect();
    assert_eq!(node.missing(digests.clone()).await.unwrap().len(), digests.len());
}

#[tokio::test]
async fn more_digests_than_the_bound_are_refused() {
    let node = own(&[("SERVER__FIND_MISSING_DIGESTS_MAX", "10")]).await;
    let digests = |count: u32| (0..count).map(|n| digest(&n.to_be_bytes())).collect::<Vec<_>>();
    assert_eq!(node.missing(digests(10)).await.unwrap().len(), 10);
    assert_refused(node.missing(digests(11)).await, Code::InvalidArgument, "11 digests");
}

#[tokio::test]
async fn chunking_is_not_served_and_says_so() {
    let node = shared().await;
    let kept = node.put([noise("chunked", 100)]).await.remove(0);
    let split = SplitBlobRequest { blob_digest: Some(kept.clone()), ..Default::default() };
    let answer = node.cas.clone().split_blob(split).await;
    assert_refused(answer, Code::Unimplemented, "SplitBlob");
    let splice = SpliceBlobRequest {
        blob_digest: Some(kept.clone()),
        chunk_digests: vec![kept],
        ..Default::default()
    };
    let answer = node.cas.clone().splice_blob(splice).await;
    assert_refused(answer, Code::Unimplemented, "SpliceBlob");
}
