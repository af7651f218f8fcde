//! Blobs of other nodes: by their homes, and through a cache that all have below them.

use bytes::Bytes;
use proto::{bytestream::ReadRequest, reapi::Digest};
use ringforge_tests::{
    Node,
    action::{Folder, Job},
    client::Client,
    cluster::{Cluster, eventually, succeeded, together, until_spread, worker},
    is_root,
};
use std::collections::BTreeSet;
use tonic::{Code, Request, Status};

/// Enough for each of three nodes to be the home of some.
const BLOBS: u32 = 60;

async fn readable(client: &Client, digests: &[Digest]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for digest in digests {
        match client.read(digest).await {
            Ok(_) => found.insert(digest.hash.clone()),
            Err(absent) => {
                assert_eq!(absent.code(), Code::NotFound, "{absent:?}");
                continue;
            }
        };
    }
    found
}

fn texts(of: &str) -> Vec<Bytes> {
    (0..BLOBS).map(|number| Bytes::from(format!("{of} {number}"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_found_by_all_at_its_home_and_nobody_asks_a_third() {
    let cluster = Cluster::start(3, &[("CLUSTER__SHARE", "true")]);
    let [first, second, third] = [1, 2, 3].map(|i| cluster.client(i));
    // What is looked for before the nodes know each other is remembered as absent, for a while.
    let early = first.put(texts("early")).await;
    for client in [&second, &third] {
        eventually("the first node is known", async || {
            client.missing(early.clone()).await.unwrap().len() < early.len()
        })
        .await;
    }
    let digests = first.put(texts("late")).await;
    let asked_as_peer = asked_as_peer(&second, &digests).await;
    assert_eq!(asked_as_peer, 0, "a peer's question goes no further");
    let missing = second.missing(digests.clone()).await.unwrap();
    let missing: BTreeSet<String> = missing.into_iter().map(|digest| digest.hash).collect();
    let found = readable(&second, &digests).await;
    let all: BTreeSet<String> = digests.iter().map(|digest| digest.hash.clone()).collect();
    assert_eq!(all.difference(&missing).cloned().collect::<BTreeSet<_>>(), found);
    assert!(!found.is_empty() && found.len() < all.len(), "{} of {BLOBS}", found.len());
    assert_eq!(readable(&third, &digests).await, found, "all nodes know the same homes");
    assert_eq!(readable(&first, &digests).await, all, "what is here needs no home");
}

/// How many of these a node has itself: it answers a peer no other ones.
async fn asked_as_peer(client: &Client, digests: &[Digest]) -> usize {
    let mut found = 0;
    for digest in digests {
        let read = async {
            let resource_name = format!("blobs/{}/{}", digest.hash, digest.size_bytes);
            let mut request = Request::new(ReadRequest { resource_name, ..Default::default() });
            request.metadata_mut().insert("ringforge-peer", "v1 n3 0 -".parse().unwrap());
            let mut stream = client.byte_stream.clone().read(request).await?.into_inner();
            stream.message().await.map(drop)
        };
        let read: Result<(), Status> = read.await;
        match read {
            Ok(()) => found += 1,
            Err(absent) => assert_eq!(absent.code(), Code::NotFound, "{absent:?}"),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_is_gone_has_nothing_and_holds_nobody_up() {
    let mut cluster = Cluster::start(3, &[("CLUSTER__SHARE", "true")]);
    let [first, second] = [1, 2].map(|i| cluster.client(i));
    let early = first.put(texts("early")).await;
    eventually("the first node is known", async || {
        second.missing(early.clone()).await.unwrap().len() < early.len()
    })
    .await;
    let digests = first.put(texts("late")).await;
    cluster.kill(1);
    assert_eq!(readable(&second, &digests).await, BTreeSet::new());
    let own = second.put(texts("own")).await;
    assert_eq!(readable(&second, &own).await.len(), own.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actions_at_peers_read_from_the_cache_below_and_their_outputs_go_there() {
    if !is_root("actions_at_peers_read_from_the_cache_below_and_their_outputs_go_there") {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let below = Node::start_with(&parent.path().join("below"), &[("EXECUTION__ENABLED", "false")]);
    let url = format!("grpc://{}", below.address());
    for share in ["false", "true"] {
        let settings = [("BACKING__URL", &*url), ("CLUSTER__SHARE", share)];
        let cluster = Cluster::start(3, &settings);
        let client = cluster.client(1);
        until_spread(&client, 3).await;
        let below = Client::lazy(&below.address());
        let jobs: Vec<Job> = (0..9).map(|number| copy(share, number)).collect();
        for job in &jobs {
            // No node has been given it.
            below.put(job.inputs.blobs.clone()).await;
        }
        let jobs: Vec<Job> = jobs.into_iter().map(without_blobs).collect();
        let mut seen = BTreeSet::new();
        for end in together(&client, &jobs).await {
            let response = end.unwrap();
            seen.insert(worker(succeeded(&response)));
            let out = response.result.unwrap().output_files[0].digest.clone().unwrap();
            assert_eq!(below.read(&out).await.unwrap(), client.read(&out).await.unwrap());
        }
        assert_eq!(seen.len(), 3, "share: {share} {seen:?}");
        // Another node has what the first one was told, by way of what is below both.
        let again = cluster.client(2).execute(jobs[0].request()).await.unwrap();
        assert!(again.cached_result, "share: {share}");
    }
}

fn copy(share: &str, number: u32) -> Job {
    let inputs = Folder::new().file("in", format!("only below, {share} {number}"));
    Job::shell("sleep 0.3; cat in > out; echo more >> out").with(inputs).outputs(&["out"])
}

fn without_blobs(mut job: Job) -> Job {
    job.inputs.blobs.clear();
    job
}
