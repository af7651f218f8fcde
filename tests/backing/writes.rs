//! What a write promises of the cache below, mode by mode.

use super::front::{
    Front, IMPATIENT, eventually, get_result, put, put_result, read, result_of, write, write_large,
};
use bytes::Bytes;
use ringforge_tests::{
    action::Job,
    client::digest,
    is_root,
    liar::{Failing, Liar},
    noise,
    proxy::{Fault, FaultProxy},
};
use tonic::Code;

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    IMPATIENT.iter().chain(more).copied().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_write_is_below_when_it_is_acknowledged() {
    let liar = Liar::start();
    let front = Front::before(liar.address(), &[]).await;
    let is_below = |blob: &Bytes| liar.blobs().get(&digest(blob).hash) == Some(blob);
    let blobs: Vec<_> = (0..5).map(|i| noise(&format!("sync {i}"), 10 << (3 * i))).collect();
    front.put(blobs.clone()).await;
    for blob in &blobs {
        assert!(is_below(blob), "batch, {}", blob.len());
    }
    for (size, part) in [(100, 100), (300_000, 1000), (2 << 20, 2 << 20), (9 << 20, 1 << 20)] {
        let blob = noise(&format!("stream {size}"), size);
        assert_eq!(write(&front, "", &blob, part).await.unwrap(), digest(&blob).size_bytes);
        assert!(is_below(&blob), "stream, {size} in parts of {part}");
    }
    let action = digest(b"synchronous");
    let result = result_of(&digest(&blobs[0]));
    // Blobs that below lost meanwhile are there again before the result is.
    assert!(liar.forget(&digest(&blobs[0])));
    put_result(&front, "", &action, result.clone()).await.unwrap();
    assert!(is_below(&blobs[0]));
    assert_eq!(liar.results()[&action.hash], result);
    let incomplete = digest(b"incomplete");
    put_result(&front, "", &incomplete, result_of(&digest(b"nowhere"))).await.unwrap();
    assert!(!liar.results().contains_key(&incomplete.hash), "it names what is nowhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_write_fails_while_below_is_down_and_can_be_repeated() {
    let liar = Liar::start();
    let proxy = FaultProxy::start(liar.address());
    let front = Front::before(proxy.address(), &IMPATIENT).await;
    proxy.set(Fault::Refuse);
    let (small, large) = (noise("down", 1000), noise("down", 3 << 20));
    let action = digest(b"down");
    assert_eq!(put(&front, "", &small).await, Code::Unavailable);
    for part in [3 << 20, 1 << 20] {
        let refused = write(&front, "", &large, part).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{part}");
    }
    let refused = put_result(&front, "", &action, result_of(&digest(&small))).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    proxy.set(Fault::None);
    eventually("a write", async || put(&front, "", &small).await == Code::Ok).await;
    write_large(&front, &large).await.unwrap();
    put_result(&front, "", &action, result_of(&digest(&small))).await.unwrap();
    assert!(liar.blobs().len() == 2 && liar.results().len() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asynchronous_write_arrives_when_below_is_back() {
    let liar = Liar::start();
    let proxy = FaultProxy::start(liar.address());
    proxy.set(Fault::Refuse);
    let settings = with(&[("BACKING__WRITE", "async")]);
    let front = Front::before(proxy.address(), &settings).await;
    let blobs = [noise("a", 10), noise("b", 300_000), noise("c", 5 << 20)];
    assert_eq!(put(&front, "", &blobs[0]).await, Code::Ok);
    for blob in &blobs[1..] {
        write_large(&front, blob).await.unwrap();
    }
    let action = digest(b"asynchronous");
    put_result(&front, "", &action, result_of(&digest(&blobs[1]))).await.unwrap();
    assert_eq!(read(&front, &digest(&blobs[2])).await.unwrap(), blobs[2]);
    assert!(get_result(&front, "", &action).await.is_ok(), "it is here");
    assert!(liar.blobs().is_empty());
    proxy.set(Fault::None);
    eventually("all is below", async || liar.blobs().len() == 3 && liar.results().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_below_survives_a_kill() {
    let liar = Liar::start();
    let proxy = FaultProxy::start(liar.address());
    proxy.set(Fault::Refuse);
    let url = format!("grpc://{}", proxy.address());
    let settings = with(&[("BACKING__WRITE", "async"), ("BACKING__URL", &url)]);
    let mut front = Front::with(&settings).await;
    let mut count = 0;
    for _ in 0..2 {
        for _ in 0..40 {
            let blob = noise(&format!("kept {count}"), 100 + count);
            assert_eq!(put(&front, "", &blob).await, Code::Ok);
            count += 1;
        }
        let output = noise(&format!("kept {count}"), 2 << 20);
        write_large(&front, &output).await.unwrap();
        count += 1;
        let action = digest(format!("action {count}").as_bytes());
        put_result(&front, "", &action, result_of(&digest(&output))).await.unwrap();
        front.kill();
        front.again(&settings).await;
    }
    proxy.set(Fault::None);
    eventually("all is below", async || liar.blobs().len() == count && liar.results().len() == 2)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_forgets_nothing() {
    let liar = Liar::start();
    let proxy = FaultProxy::start(liar.address());
    proxy.set(Fault::Refuse);
    let settings = with(&[("BACKING__WRITE", "async"), ("BACKING__BACKLOG_MAX", "3")]);
    let front = Front::before(proxy.address(), &settings).await;
    for i in 0..3 {
        assert_eq!(put(&front, "", &noise(&format!("full {i}"), 100)).await, Code::Ok);
    }
    // Streamed or not, and again when the bytes are here already: nobody is told that it is kept.
    let (batched, streamed) = (noise("full batched", 100), noise("full streamed", 100));
    for _ in 0..2 {
        assert_eq!(put(&front, "", &batched).await, Code::ResourceExhausted);
        let refused = write(&front, "", &streamed, 50).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let refused = put_result(&front, "", &digest(b"full"), result_of(&digest(b""))).await;
        assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    }
    proxy.set(Fault::None);
    eventually("room", async || write(&front, "", &streamed, 50).await.is_ok()).await;
    eventually("room", async || put(&front, "", &batched).await == Code::Ok).await;
    eventually("all is below", async || liar.blobs().len() == 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_instance_writes_as_it_is_told() {
    let liar = Liar::start();
    let by_instance = ("BACKING__WRITE_BY_INSTANCE", "private=local-only, later=async");
    let front = Front::before(liar.address(), &with(&[by_instance])).await;
    let action = digest(b"by instance");
    let private = noise("private", 1000);
    assert_eq!(put(&front, "private", &private).await, Code::Ok);
    let streamed = noise("private streamed", 2 << 20);
    write(&front, "private", &streamed, 1 << 20).await.unwrap();
    put_result(&front, "private", &action, result_of(&digest(&private))).await.unwrap();
    assert!(get_result(&front, "private", &action).await.is_ok());
    assert!(liar.blobs().is_empty() && liar.results().is_empty());
    // What is here by another instance's write is owed all the same.
    assert_eq!(write(&front, "", &streamed, 1 << 20).await.unwrap(), 2 << 20);
    assert!(liar.blobs().contains_key(&digest(&streamed).hash));
    liar.lie(|lies| lies.failing = Some(Failing::always(Code::Unavailable)));
    assert_eq!(write(&front, "later", &private, 1000).await.unwrap(), 1000);
    assert_eq!(put(&front, "", &noise("sync", 10)).await, Code::Unavailable);
    liar.honest();
    let hash = digest(&private).hash;
    eventually("it arrives", async || liar.blobs().contains_key(&hash)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_action_gives_while_below_is_down_arrives_later() {
    if !is_root("what_an_action_gives_while_below_is_down_arrives_later") {
        return;
    }
    let liar = Liar::start();
    let proxy = FaultProxy::start(liar.address());
    let url = format!("grpc://{}", proxy.address());
    let settings = with(&[("BACKING__URL", url.as_str())]);
    let mut front = Front::with(&settings).await;
    let cached = Job::shell("echo cached > out; mkdir d; echo deep > d/f").outputs(&["out", "d"]);
    let failed = Job::shell("echo failed > out; exit 3").outputs(&["out"]);
    front.put(cached.blobs()).await;
    front.put(failed.blobs()).await;
    proxy.set(Fault::Refuse);
    for (job, code) in [(&cached, 0), (&failed, 3)] {
        let response = front.execute(job.request()).await.unwrap();
        assert_eq!(response.result.unwrap().exit_code, code, "{:?}", response.status);
    }
    assert!(liar.results().is_empty());
    // They are owed, whatever becomes of the process.
    front.kill();
    front.again(&settings).await;
    proxy.set(Fault::None);
    let hashes = ["cached\n", "deep\n", "failed\n"].map(|text| digest(text.as_bytes()).hash);
    eventually("the outputs are below", async || {
        let blobs = liar.blobs();
        hashes.iter().all(|hash| blobs.contains_key(hash))
    })
    .await;
    let action = cached.request().action_digest.unwrap();
    eventually("the result is below", async || liar.results().contains_key(&action.hash)).await;
}
