//! kill -9: nothing that was acknowledged is lost, nothing wrong is ever read.

use bytes::Bytes;
use proto::{
    bytestream::{QueryWriteStatusRequest, WriteRequest},
    reapi::{
        ActionResult, Digest, GetActionResultRequest, OutputFile, UpdateActionResultRequest,
        execution_stage::Value as Stage,
    },
};
use ringforge_tests::{
    Node,
    action::{Folder, Job},
    client::{Client, digest},
    is_root,
};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tonic::Code;

/// How often the node is killed in a loop.
const KILLS: usize = 5;

/// A blob that differs by its name: small ones, and ones with a file of their own.
pub(crate) fn blob(name: &str, size: usize) -> Bytes {
    let line = format!("{name}\n");
    line.bytes().cycle().take(size.max(line.len())).collect::<Vec<u8>>().into()
}

/// Stores the result of an action that made this blob.
pub(crate) async fn put_result(client: &Client, action: &Digest, output: &Digest) {
    try_put_result(client, action, output).await.unwrap();
}

/// The same where the node may go away meanwhile.
pub(crate) async fn try_put_result(
    client: &Client,
    action: &Digest,
    output: &Digest,
) -> Result<(), tonic::Status> {
    let file =
        OutputFile { path: "o".to_owned(), digest: Some(output.clone()), ..Default::default() };
    let request = UpdateActionResultRequest {
        action_digest: Some(action.clone()),
        action_result: Some(ActionResult { output_files: vec![file], ..Default::default() }),
        ..Default::default()
    };
    client.action_cache.clone().update_action_result(request).await.map(drop)
}

/// The digest in the result of an action.
pub(crate) async fn output_of(client: &Client, action: &Digest) -> Result<Digest, tonic::Status> {
    let request =
        GetActionResultRequest { action_digest: Some(action.clone()), ..Default::default() };
    let result = client.action_cache.clone().get_action_result(request).await?.into_inner();
    Ok(result.output_files[0].digest.clone().unwrap())
}

/// Every process of this machine that was started as `sleep SECONDS`.
pub(crate) fn sleepers(seconds: &str) -> usize {
    let line = format!("sleep\0{seconds}\0").into_bytes();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .filter(|found| *found == line)
        .count()
}

/// Waits until `holds`; what never does is a failure.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_was_acknowledged_survives_every_kill() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let mut kept: Vec<(Digest, Bytes)> = Vec::new();
    let mut actions: Vec<(Digest, Digest)> = Vec::new();
    for round in 0..=KILLS {
        let node = Node::start(&store);
        let client = Client::connect(&node.address()).await;
        for (digest, blob) in &kept {
            assert!(client.read(digest).await.unwrap() == *blob, "{round}");
        }
        for (action, output) in &actions {
            assert_eq!(output_of(&client, action).await.unwrap(), *output, "{round}");
        }
        let sizes = [1, 100, 5000, 65_536, 65_537, 300_000];
        let blobs = sizes.map(|size| blob(&format!("round {round} {size}"), size));
        let digests = client.put(blobs.clone()).await;
        // Over an older result too.
        for (action, output) in [(b"same".to_vec(), 0), (format!("{round}").into_bytes(), 5)] {
            let action = digest(&action);
            put_result(&client, &action, &digests[output]).await;
            actions.retain(|(known, _)| *known != action);
            actions.push((action, digests[output].clone()));
        }
        kept.extend(digests.into_iter().zip(blobs));
        node.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_kill_in_the_middle_of_writes_leaves_whole_blobs_or_none() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    for round in 0..KILLS {
        let node = Node::start(&store);
        let client = Client::connect(&node.address()).await;
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (client, acknowledged) = (client.clone(), acknowledged.clone());
                tokio::spawn(async move {
                    for n in 0..10_000 {
                        let size = [500, 70_000, 20, 400_000][n % 4];
                        let blob = blob(&format!("{round} {writer} {n}"), size);
                        let digest = digest(&blob);
                        let name = format!("uploads/u/blobs/{}/{}", digest.hash, digest.size_bytes);
                        let message = WriteRequest {
                            resource_name: name,
                            write_offset: 0,
                            finish_write: true,
                            data: blob.clone(),
                        };
                        if client.write(vec![message]).await.is_err() {
                            return;
                        }
                        acknowledged.lock().unwrap().push((digest, blob));
                    }
                })
            })
            .collect();
        let wanted = 20 + 13 * round;
        eventually("enough is written", || acknowledged.lock().unwrap().len() >= wanted).await;
        node.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        let node = Node::start(&store);
        let client = Client::connect(&node.address()).await;
        let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
        for (digest, blob) in acknowledged {
            assert!(client.read(&digest).await.unwrap() == blob, "{round}");
        }
        node.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unfinished_upload_does_not_survive_and_can_begin_anew() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let node = Node::start(&store);
    let client = Client::connect(&node.address()).await;
    let blob = blob("unfinished", 200_000);
    let digest = digest(&blob);
    let resource_name = format!("uploads/u/blobs/{}/{}", digest.hash, digest.size_bytes);
    let half = WriteRequest {
        resource_name: resource_name.clone(),
        data: blob.slice(..100_000),
        ..Default::default()
    };
    assert_eq!(client.write(vec![half]).await.unwrap(), 100_000);
    node.kill();
    let node = Node::start(&store);
    let client = Client::connect(&node.address()).await;
    let request = QueryWriteStatusRequest { resource_name: resource_name.clone() };
    let status = client.byte_stream.clone().query_write_status(request).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.missing(vec![digest.clone()]).await.unwrap().len(), 1);
    let whole = WriteRequest {
        resource_name,
        data: blob.clone(),
        finish_write: true,
        ..Default::default()
    };
    assert_eq!(client.write(vec![whole]).await.unwrap(), 200_000);
    assert!(client.read(&digest).await.unwrap() == blob);
    node.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn actions_die_with_their_node_and_leave_nothing_to_the_next() {
    if !is_root("actions_die_with_their_node_and_leave_nothing_to_the_next") {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let seconds = format!("61{}", std::process::id());
    let node = Node::start(&store);
    let client = Client::connect(&node.address()).await;
    let script =
        format!("mkdir -p deep/er; echo > deep/er/f; (setsid sleep {seconds} &); sleep {seconds}");
    let job = Job::shell(&script).with(Folder::new().file("i", "i"));
    client.put(job.blobs()).await;
    let mut running = client.begin(job.request()).await.unwrap();
    running.until(Stage::Executing).await;
    eventually("its processes live", || sleepers(&seconds) == 2).await;
    let name = running.last.name.clone();
    node.kill();
    eventually("its processes are dead", || sleepers(&seconds) == 0).await;
    let node = Node::start(&store);
    let client = Client::connect(&node.address()).await;
    assert_eq!(fs::read_dir(store.join("exec")).unwrap().count(), 0);
    let request = proto::reapi::WaitExecutionRequest { name };
    let answer = client.execution.clone().wait_execution(request).await;
    assert_eq!(answer.map(drop).unwrap_err().code(), Code::NotFound);
    assert_eq!(client.printed(&Job::shell("echo again")).await, "again\n");
    node.kill();
}

/// Every file of the store that is not empty.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let kind = entry.metadata().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.len() > 0 {
            found.push(entry.path());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_damaged_blob_is_never_read_as_if_it_were_whole() {
    let parent = tempfile::tempdir().unwrap();
    let store = parent.path().join("store");
    let node = Node::start(&store);
    let client = Client::connect(&node.address()).await;
    let blobs = [100, 5000, 200_000, 3_000_000].map(|size| blob(&format!("damaged {size}"), size));
    for blob in &blobs {
        client.put([blob.clone()]).await;
    }
    assert!(node.stop().success());
    // One byte of each blob, wherever it lies.
    for path in files(&store) {
        let bytes = fs::read(&path).unwrap();
        for blob in &blobs {
            let needle = &blob[..90];
            if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
                let file = File::options().write(true).open(&path).unwrap();
                file.write_all_at(b"!", (at + 50) as u64).unwrap();
            }
        }
    }
    let node = Node::start(&store);
    let client = Client::connect(&node.address()).await;
    for blob in &blobs {
        let digest = digest(blob);
        let size = blob.len();
        let code = client.read(&digest).await.expect_err("it is damaged").code();
        assert!(
            matches!(code, Code::NotFound | Code::DataLoss | Code::Unavailable),
            "{size} {code}"
        );
        // Uploaded again, it is healed.
        client.put([blob.clone()]).await;
        assert!(client.read(&digest).await.unwrap() == *blob, "{size}");
    }
    node.kill();
}
