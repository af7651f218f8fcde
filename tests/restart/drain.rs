//! Signals: what runs is finished, what waits is sent elsewhere, a second signal ends it all.

use super::crash::{eventually, sleepers};
use prost::Message;
use proto::{reapi::execution_stage::Value as Stage, rpc::RetryInfo};
use ringforge_tests::{
    Node,
    action::Job,
    client::{Client, Watched, metadata},
    is_root,
};
use std::{io::Write, net::TcpStream, time::Duration};
use tempfile::TempDir;
use tonic::Code;

struct Started {
    parent: TempDir,
    node: Node,
    client: Client,
}

/// A node with one slot that was asked something: from then on it listens for signals.
async fn start(settings: &[(&str, &str)]) -> Started {
    let parent = tempfile::tempdir().unwrap();
    let settings = [&[("EXECUTION__SLOTS", "1")], settings].concat();
    let node = Node::start_with(&parent.path().join("store"), &settings);
    let client = Client::connect(&node.address()).await;
    client.missing(Vec::new()).await.unwrap();
    Started { parent, node, client }
}

async fn begin(client: &Client, job: &Job) -> Watched {
    client.put(job.blobs()).await;
    client.begin(job.request()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_idle_node_ends_well_by_either_signal() {
    for signal in ["TERM", "INT"] {
        // A client that stays connected and says nothing does not hold it up.
        let Started { parent, mut node, client } = start(&[]).await;
        node.signal(signal);
        let status = node.wait();
        assert_eq!(status.code(), Some(0), "{signal} {status}\n{}", node.log());
        drop((client, parent));
    }
}

#[test]
fn a_cache_that_nobody_asked_anything_ends_well() {
    let parent = tempfile::tempdir().unwrap();
    let settings = [("EXECUTION__ENABLED", "false")];
    let mut node = Node::start_with(&parent.path().join("store"), &settings);
    node.signal("TERM");
    let status = node.wait();
    assert_eq!(status.code(), Some(0), "{status}\n{}", node.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_on_which_nothing_is_asked_is_nothing_given_up() {
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        let Started { parent, mut node, client } = start(&[("SERVER__GRACE", "3s")]).await;
        // Nobody who would answer when the node says goodbye.
        let mut silent = TcpStream::connect(("127.0.0.1", node.port())).unwrap();
        silent.write_all(said).unwrap();
        node.signal("TERM");
        let status = node.wait();
        assert_eq!(status.code(), Some(0), "{said:?} {status}\n{}", node.log());
        drop((client, parent, silent));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_runs_is_finished_and_what_waits_is_sent_elsewhere() {
    if !is_root("what_runs_is_finished_and_what_waits_is_sent_elsewhere") {
        return;
    }
    let Started { parent, mut node, client } = start(&[]).await;
    let job = Job::shell("sleep 1; echo finished > o").outputs(&["o"]);
    let mut running = begin(&client, &job).await;
    running.until(Stage::Executing).await;
    let waiting = begin(&client, &Job::new(&["true"])).await;
    assert_eq!(metadata(&waiting.last).stage, Stage::Queued as i32);
    node.signal("TERM");
    let response = waiting.end().await.unwrap();
    let status = response.status.unwrap();
    assert_eq!(status.code, Code::Unavailable as i32, "{status:?}");
    let retry = status.details.iter().find(|any| any.type_url.ends_with("google.rpc.RetryInfo"));
    RetryInfo::decode(&*retry.expect("when to come again").value).unwrap();
    let response = running.end().await.unwrap();
    assert_eq!(response.status.unwrap_or_default().code, 0);
    assert_eq!(response.result.unwrap().output_files.len(), 1);
    let status = node.wait();
    assert_eq!(status.code(), Some(0), "{status}\n{}", node.log());
    // What finished while it drained was kept.
    let node = Node::start(&parent.path().join("store"));
    let client = Client::connect(&node.address()).await;
    assert!(client.execute(job.request()).await.unwrap().cached_result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_draining_node_takes_nothing_new() {
    if !is_root("a_draining_node_takes_nothing_new") {
        return;
    }
    let Started { parent, mut node, client } = start(&[]).await;
    let mut running = begin(&client, &Job::shell("sleep 2")).await;
    running.until(Stage::Executing).await;
    let late = Job::new(&["true"]);
    client.put(late.blobs()).await;
    let port = node.port();
    node.signal("TERM");
    eventually("the listener is closed", || TcpStream::connect(("127.0.0.1", port)).is_err()).await;
    let refused = client.outcome(late.request()).await;
    // By the node, or by the client's own connection, which takes no more calls.
    let refusals = [Code::Unavailable, Code::Cancelled];
    assert!(refusals.contains(&Code::from_i32(refused.code)), "{refused:?}");
    assert_eq!(running.end().await.unwrap().status.unwrap_or_default().code, 0);
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
    drop(parent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_does_not_finish_within_the_grace_is_ended() {
    if !is_root("what_does_not_finish_within_the_grace_is_ended") {
        return;
    }
    let seconds = format!("62{}", std::process::id());
    let Started { parent, mut node, client } = start(&[("SERVER__GRACE", "1s")]).await;
    let script = format!("(setsid sleep {seconds} &) ; sleep {seconds}");
    let mut running = begin(&client, &Job::shell(&script)).await;
    running.until(Stage::Executing).await;
    eventually("its processes live", || sleepers(&seconds) == 2).await;
    node.signal("TERM");
    let status = node.wait();
    assert!(!status.success(), "the grace did not hold: {status}");
    eventually("its processes are dead", || sleepers(&seconds) == 0).await;
    drop(running);
    // Its store is whole.
    let node = Node::start(&parent.path().join("store"));
    let client = Client::connect(&node.address()).await;
    assert_eq!(client.printed(&Job::shell("echo again")).await, "again\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_second_signal_ends_it_at_once() {
    if !is_root("a_second_signal_ends_it_at_once") {
        return;
    }
    for (n, [first, second]) in
        [["TERM", "TERM"], ["INT", "INT"], ["TERM", "INT"]].into_iter().enumerate()
    {
        let seconds = format!("63{n}{}", std::process::id());
        let Started { parent, mut node, client } = start(&[("SERVER__GRACE", "1h")]).await;
        let mut running = begin(&client, &Job::shell(&format!("sleep {seconds}"))).await;
        running.until(Stage::Executing).await;
        eventually("its process lives", || sleepers(&seconds) == 1).await;
        node.signal(first);
        let port = node.port();
        eventually("it drains", || TcpStream::connect(("127.0.0.1", port)).is_err()).await;
        node.signal(second);
        let status = node.wait();
        assert!(!status.success(), "{first} {second}: {status}");
        eventually("its process is dead", || sleepers(&seconds) == 0).await;
        drop((running, parent));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_never_ends_does_not_hold_it_up_beyond_the_grace() {
    let Started { parent, mut node, client } = start(&[("SERVER__GRACE", "1s")]).await;
    let (more, sent) = tokio::sync::mpsc::channel(1);
    let digest = ringforge_tests::client::digest(b"never finished");
    let resource_name = format!("uploads/u/blobs/{}/{}", digest.hash, digest.size_bytes);
    let message = proto::bytestream::WriteRequest { resource_name, ..Default::default() };
    more.send(message).await.unwrap();
    let mut byte_stream = client.byte_stream.clone();
    let stream = tokio_stream::wrappers::ReceiverStream::new(sent);
    let writing = tokio::spawn(async move { byte_stream.write(stream).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.signal("TERM");
    node.wait();
    assert!(writing.await.unwrap().is_err());
    drop((more, parent));
}
