//! BatchUpdateBlobs and BatchReadBlobs: each blob for itself, all of them within the limit.

use crate::shared::{assert_refused, own, shared};
use bytes::Bytes;
use proto::{
    reapi::{
        BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, batch_read_blobs_response,
        batch_update_blobs_request::Request, compressor::Value as Compressor,
    },
    rpc,
};
use ringforge_tests::{
    client::{Client, digest},
    noise,
};
use tonic::{Code, Status};

fn upload(blob: &Bytes) -> Request {
    Request { digest: Some(digest(blob)), data: blob.clone(), compressor: 0 }
}

async fn update(
    client: &Client,
    requests: Vec<Request>,
) -> Result<Vec<(Digest, rpc::Status)>, Status> {
    let request = BatchUpdateBlobsRequest { requests, ..Default::default() };
    let answer = client.cas.clone().batch_update_blobs(request).await?.into_inner();
    let each = answer.responses.into_iter();
    Ok(each.map(|one| (one.digest.unwrap_or_default(), one.status.unwrap_or_default())).collect())
}

async fn read(
    client: &Client,
    digests: Vec<Digest>,
) -> Result<Vec<batch_read_blobs_response::Response>, Status> {
    let request = BatchReadBlobsRequest { digests, ..Default::default() };
    Ok(client.cas.clone().batch_read_blobs(request).await?.into_inner().responses)
}

#[tokio::test]
async fn what_was_written_is_read_in_the_order_it_is_asked() {
    let node = shared().await;
    // On both sides of what fits a segment.
    let sizes = [1, 2, 1000, 65_535, 65_536, 65_537, 200_000];
    let blobs = sizes.map(|size| noise("batch", size));
    let mut digests = node.put(blobs.clone()).await;
    let twice = read(&node, vec![digests[0].clone(), digests[0].clone()]).await.unwrap();
    assert!(twice.len() == 2 && twice.iter().all(|answer| answer.data == blobs[0]));
    digests.reverse();
    let answers = read(&node, digests.clone()).await.unwrap();
    assert_eq!(answers.len(), blobs.len());
    for ((answer, digest), blob) in answers.iter().zip(digests).zip(blobs.iter().rev()) {
        assert_eq!(answer.digest.as_ref(), Some(&digest));
        assert_eq!(answer.data, blob);
        assert_eq!(answer.compressor, Compressor::Identity as i32);
        assert_eq!(answer.status.clone().unwrap_or_default().code, 0);
    }
}

#[tokio::test]
async fn one_bad_blob_spoils_no_other() {
    let node = shared().await;
    let (first, last) = (noise("first good", 100), noise("last good", 100));
    let other = noise("not what it says", 100);
    let wrong_hash = Request { digest: Some(digest(&noise("promised", 100))), ..upload(&other) };
    let wrong_size = Digest { size_bytes: 99, ..digest(&other) };
    let wrong_size = Request { digest: Some(wrong_size), ..upload(&other) };
    let no_digest = Request { digest: None, ..upload(&other) };
    let compressed = Request { compressor: Compressor::Zstd as i32, ..upload(&other) };
    let unknown = Request { compressor: 99, ..upload(&other) };
    let short = Request { data: other.slice(..50), ..upload(&other) };
    let bad = [wrong_hash, wrong_size, no_digest, compressed, unknown, short];
    let mut requests = vec![upload(&first)];
    requests.extend(bad.clone());
    requests.push(upload(&last));
    let answers = update(&node, requests.clone()).await.unwrap();
    assert_eq!(answers.len(), requests.len());
    for (index, (said, status)) in answers.iter().enumerate() {
        let good = index == 0 || index == requests.len() - 1;
        let code = if good { Code::Ok } else { Code::InvalidArgument };
        assert_eq!(status.code, code as i32, "{index}: {status:?}");
        assert_eq!(good, status.message.is_empty(), "{index}: {status:?}");
        assert_eq!(*said, requests[index].digest.clone().unwrap_or_default());
    }
    assert_eq!(node.read(&digest(&first)).await.unwrap(), first);
    assert_eq!(node.read(&digest(&last)).await.unwrap(), last);
    for digest in bad.iter().filter_map(|request| request.digest.clone()) {
        assert_eq!(node.missing(vec![digest.clone()]).await.unwrap(), [digest]);
    }
}

#[tokio::test]
async fn an_upload_that_is_repeated_does_no_harm() {
    let node = shared().await;
    let blob = noise("repeated", 3000);
    for requests in [vec![upload(&blob); 3], vec![upload(&blob)]] {
        for (_, status) in update(&node, requests).await.unwrap() {
            assert_eq!(status.code, 0, "{}", status.message);
        }
    }
    // Its digest with other bytes changes nothing, also once the blob is present.
    let forged = Request { data: noise("forged", 3000), ..upload(&blob) };
    let (_, status) = update(&node, vec![forged]).await.unwrap().remove(0);
    assert_eq!(status.code, Code::InvalidArgument as i32);
    assert_eq!(node.read(&digest(&blob)).await.unwrap(), blob);
}

#[tokio::test]
async fn a_batch_of_the_limit_is_taken_and_one_byte_more_is_not() {
    let node = own(&[("SERVER__BATCH_BYTES_MAX", "64KiB")]).await;
    let (half, rest) = (noise("half", 32 << 10), noise("rest", 32 << 10));
    let fits = update(&node, vec![upload(&half), upload(&rest)]).await.unwrap();
    assert!(fits.iter().all(|(_, status)| status.code == 0), "{fits:?}");
    let digests = vec![digest(&half), digest(&rest)];
    assert_eq!(read(&node, digests.clone()).await.unwrap().len(), 2);
    let (one, new) = (noise("one more", 1), noise("new", 64 << 10));
    let over = update(&node, vec![upload(&one), upload(&new)]).await;
    assert_refused(over, Code::InvalidArgument, "an update over the limit");
    let asked = vec![digest(&one), digest(&new)];
    assert_eq!(node.missing(asked.clone()).await.unwrap().len(), 2, "a refused batch is kept");
    node.put([one.clone()]).await;
    let mut over = digests;
    over.push(digest(&one));
    assert_refused(read(&node, over).await, Code::InvalidArgument, "a read over the limit");
}

#[tokio::test]
async fn a_full_batch_fits_a_message_of_4_mib() {
    let node = shared().await;
    let blobs: Vec<Bytes> = (0..240).map(|n| noise(&format!("full {n}"), 16 << 10)).collect();
    let digests = node.put(blobs.iter().cloned()).await;
    let request = BatchReadBlobsRequest { digests, ..Default::default() };
    // What a client takes by default.
    let mut plain = node.cas.clone().max_decoding_message_size(4 << 20);
    let answers = plain.batch_read_blobs(request).await.unwrap().into_inner().responses;
    assert!(answers.iter().zip(&blobs).all(|(answer, blob)| answer.data == blob));
}

#[tokio::test]
async fn an_absent_blob_is_the_affair_of_its_own_answer() {
    let node = shared().await;
    let kept = node.put([noise("beside an absent one", 10)]).await.remove(0);
    let absent = digest(b"an absent one");
    let answers = read(&node, vec![absent, kept.clone()]).await.unwrap();
    assert_eq!(answers[0].status.clone().unwrap().code, Code::NotFound as i32);
    assert!(answers[0].data.is_empty());
    assert_eq!(answers[1].digest, Some(kept));
    assert_eq!(answers[1].data.len(), 10);
}

#[tokio::test]
async fn compressors_that_a_client_would_take_are_no_demand() {
    let node = shared().await;
    let blob = noise("acceptable", 500);
    let kept = node.put([blob.clone()]).await;
    for acceptable in [vec![], vec![1], vec![0, 1, 2, 3], vec![99]] {
        let request = BatchReadBlobsRequest {
            digests: kept.clone(),
            acceptable_compressors: acceptable,
            ..Default::default()
        };
        let answer = node.cas.clone().batch_read_blobs(request).await.unwrap();
        let answer = answer.into_inner().responses.remove(0);
        assert_eq!(answer.compressor, Compressor::Identity as i32);
        assert_eq!(answer.data, blob);
    }
}

#[tokio::test]
async fn nothing_in_a_batch_is_nothing_back() {
    let node = shared().await;
    assert_eq!(update(&node, Vec::new()).await.unwrap(), []);
    assert_eq!(read(&node, Vec::new()).await.unwrap(), []);
}

#[tokio::test]
async fn a_blob_above_the_largest_is_refused() {
    let node = own(&[("STORE__BLOB_BYTES_MAX", "1MiB")]).await;
    let (largest, larger) = (noise("largest", 1 << 20), noise("larger", (1 << 20) + 1));
    let answers = update(&node, vec![upload(&largest), upload(&larger)]).await.unwrap();
    assert_eq!(answers[0].1.code, 0, "{}", answers[0].1.message);
    assert_eq!(answers[1].1.code, Code::InvalidArgument as i32);
    assert_eq!(node.missing(vec![digest(&larger)]).await.unwrap().len(), 1);
}
