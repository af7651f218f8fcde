//! One fetch for all who want a blob, and bytes that leave while others are still to come.

use super::front::{Front, LONG, eventually, in_time, name};
use bytes::Bytes;
use futures_util::future::join_all;
use proto::bytestream::{ReadRequest, ReadResponse};
use ringforge_tests::{
    client::{Client, digest},
    liar::Liar,
    noise,
    proxy::{Fault, FaultProxy, Towards},
};
use tonic::Streaming;

const BLOB_BYTES: usize = 16 << 20;
/// Slow enough that a blob would take a quarter of an hour.
const SLOW: Fault = Fault::Slow { bytes_per_second: 512 << 10 };

async fn opened(client: &Client, blob: &Bytes) -> Streaming<ReadResponse> {
    let request = ReadRequest { resource_name: name(&digest(blob)), ..Default::default() };
    in_time("a read", client.byte_stream.clone().read(request)).await.unwrap().into_inner()
}

async fn rest(mut stream: Streaming<ReadResponse>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(message) = in_time("a piece", stream.message()).await.unwrap() {
        bytes.extend_from_slice(&message.data);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_one_blob_are_one_read_below() {
    let liar = Liar::start();
    let proxy = FaultProxy::start(liar.address());
    let front = Front::before(proxy.address(), &[("BACKING__HEDGE", "false")]).await;
    let blob = noise("shared", BLOB_BYTES);
    liar.put(blob.clone());
    proxy.set(SLOW);
    let mut streams = join_all((0..20).map(|_| opened(&front, &blob))).await;
    // Some leave, the one that asked first among them; one comes when much is here.
    streams.drain(..5);
    let mut first = streams.remove(0);
    assert!(!in_time("a piece", first.message()).await.unwrap().unwrap().data.is_empty());
    drop(first);
    streams.push(opened(&front, &blob).await);
    proxy.set(Fault::None);
    for read in join_all(streams.into_iter().map(rest)).await {
        assert!(read == blob);
    }
    assert_eq!(liar.calls("Read"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_leave_before_the_last_one_has_come() {
    let liar = Liar::start();
    let proxy = FaultProxy::start(liar.address());
    let front = Front::before(proxy.address(), &[]).await;
    let blob = noise("slow", BLOB_BYTES);
    let named = liar.put(blob.clone());
    proxy.set(SLOW);
    let part = in_time("a range", front.read_range(&name(&named), 0, 100_000)).await.unwrap();
    assert_eq!(part, blob.slice(..100_000));
    let mut stream = opened(&front, &blob).await;
    let first = in_time("a piece", stream.message()).await.unwrap().unwrap().data;
    assert!(!first.is_empty() && blob.starts_with(&first));
    let passed = proxy.bytes(Towards::Client);
    assert!(passed < BLOB_BYTES as u64 / 2, "{passed} bytes had come before");
    proxy.set(Fault::None);
    let mut whole = first.to_vec();
    whole.extend(rest(stream).await);
    assert!(whole == blob);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_nobody_waits_for_ends() {
    let liar = Liar::start();
    let proxy = FaultProxy::start(liar.address());
    let front = Front::before(proxy.address(), &[]).await;
    let blob = noise("left", BLOB_BYTES);
    liar.put(blob.clone());
    proxy.set(SLOW);
    for _ in 0..3 {
        let mut stream = opened(&front, &blob).await;
        in_time("a piece", stream.message()).await.unwrap();
    }
    proxy.set(Fault::None);
    let mut before = proxy.bytes(Towards::Client);
    eventually("nothing more comes", async || {
        tokio::time::sleep(LONG / 200).await;
        let now = proxy.bytes(Towards::Client);
        std::mem::replace(&mut before, now) == now
    })
    .await;
    assert!(rest(opened(&front, &blob).await).await == blob, "and it can be had later");
}
