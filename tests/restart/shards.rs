//! The number of shards is no property of the data: it may change between two starts.

use super::crash::{blob, output_of, put_result};
use bytes::Bytes;
use proto::reapi::Digest;
use ringforge_tests::{
    Node,
    action::{Folder, Job},
    client::{Client, digest},
    is_root,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_store_is_served_by_any_number_of_shards() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let mut kept: Vec<(Digest, Bytes)> = Vec::new();
    let mut actions: Vec<(Digest, Digest)> = Vec::new();
    for (round, shards) in ["1", "2", "8", "1", "8", "2", "3"].into_iter().enumerate() {
        let node = Node::start_with(&store, &[("CPUS__SHARDS", shards)]);
        let client = Client::connect(&node.address()).await;
        let asked: Vec<Digest> = kept.iter().map(|(digest, _)| digest.clone()).collect();
        assert_eq!(client.missing(asked).await.unwrap(), [], "{shards}");
        for (digest, blob) in &kept {
            assert!(client.read(digest).await.unwrap() == *blob, "{shards}");
        }
        for (action, output) in &actions {
            assert_eq!(output_of(&client, action).await.unwrap(), *output, "{shards}");
        }
        let blobs: Vec<Bytes> = (0..40)
            .map(|n| blob(&format!("{round} {n}"), if n % 8 == 0 { 100_000 } else { 100 * n + 1 }))
            .collect();
        let digests = client.put(blobs.clone()).await;
        for (n, output) in digests.iter().enumerate() {
            // Every second one is over the result of the round before.
            let name = if n % 2 == 0 { format!("{round} {n}") } else { format!("{n}") };
            let action = digest(name.as_bytes());
            put_result(&client, &action, output).await;
            actions.retain(|(known, _)| *known != action);
            actions.push((action, output.clone()));
        }
        kept.extend(digests.into_iter().zip(blobs));
        // By turns stopped and killed.
        if round % 2 == 0 {
            drop(client);
            assert!(node.stop().success());
        } else {
            node.kill();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_service_works_across_eight_shards() {
    let test = "every_service_works_across_eight_shards";
    if !is_root(test) {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let node = Node::start_with(&parent.path().join("store"), &[("CPUS__SHARDS", "8")]);
    let client = Client::connect(&node.address()).await;
    let inputs = (0..50).fold(Folder::new(), |folder, n| {
        folder.file(
            &format!("f{n:02}"),
            blob(&format!("input {n}"), if n % 10 == 0 { 90_000 } else { 50 }),
        )
    });
    let job = Job::shell("mkdir o; for f in f*; do cp $f o/$f; done; cat f*")
        .with(inputs)
        .outputs(&["o"]);
    let result = client.result(&job).await;
    assert_eq!(result.output_directories.len(), 1);
    let again = client.execute(job.request()).await.unwrap();
    assert!(again.cached_result);
    assert_eq!(again.result.unwrap(), result);
}
