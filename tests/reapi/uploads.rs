//! Writes that do not go smoothly: broken off, gone on with, repeated, many at once.

use crate::{
    byte_stream::{messages, write_name},
    shared::{Connected, assert_refused, eventually, own, shared},
};
use proto::bytestream::{QueryWriteStatusRequest, QueryWriteStatusResponse, WriteRequest};
use ringforge_tests::{
    client::{Client, digest},
    noise,
};
use std::fs;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

async fn status(client: &Client, name: &str) -> Result<QueryWriteStatusResponse, Status> {
    let request = QueryWriteStatusRequest { resource_name: name.to_owned() };
    Ok(client.byte_stream.clone().query_write_status(request).await?.into_inner())
}

/// A write whose client stays silent after these messages, until it is dropped.
struct Open {
    more: mpsc::Sender<WriteRequest>,
    answer: tokio::task::JoinHandle<Result<i64, Status>>,
}

impl Open {
    async fn new(client: &Client, messages: &[WriteRequest]) -> Self {
        let (more, sent) = mpsc::channel(64);
        let mut byte_stream = client.byte_stream.clone();
        let answer = tokio::spawn(async move {
            let written = byte_stream.write(ReceiverStream::new(sent)).await?;
            Ok(written.into_inner().committed_size)
        });
        for message in messages {
            more.send(message.clone()).await.unwrap();
        }
        Self { more, answer }
    }

    /// Goes away without a word.
    async fn abort(self) {
        self.answer.abort();
        assert!(self.answer.await.unwrap_err().is_cancelled());
    }

    async fn end(self) -> Result<i64, Status> {
        drop(self.more);
        self.answer.await.unwrap()
    }
}

async fn until_committed(client: &Client, name: &str, bytes: i64) {
    eventually("the bytes are committed", async || {
        status(client, name).await.is_ok_and(|status| status.committed_size >= bytes)
    })
    .await;
}

#[tokio::test]
async fn the_status_grows_with_the_write_and_ends_complete() {
    let node = shared().await;
    let blob = noise("status", 300_000);
    let name = write_name("status", &digest(&blob));
    assert_refused(status(&node, &name).await, Code::NotFound, "no such write");
    let all = messages(&name, &blob, 100_000);
    let open = Open::new(&node, &all[..1]).await;
    until_committed(&node, &name, 100_000).await;
    let said = status(&node, &name).await.unwrap();
    assert_eq!((said.committed_size, said.complete), (100_000, false));
    open.more.send(all[1].clone()).await.unwrap();
    until_committed(&node, &name, 200_000).await;
    open.more.send(all[2].clone()).await.unwrap();
    assert_eq!(open.end().await.unwrap(), 300_000);
    let said = status(&node, &name).await.unwrap();
    assert_eq!((said.committed_size, said.complete), (300_000, true));
}

#[tokio::test]
async fn a_write_goes_on_where_it_broke_off() {
    let node = shared().await;
    for (case, size) in [("small", 3000), ("large", 3_000_000)] {
        let blob = noise(case, size);
        let name = write_name(case, &digest(&blob));
        let all = messages(&name, &blob, size / 3);
        let open = Open::new(&node, &all[..1]).await;
        until_committed(&node, &name, all[1].write_offset).await;
        open.abort().await;
        let committed = status(&node, &name).await.unwrap().committed_size;
        assert_eq!(committed, all[1].write_offset);
        let mut rest = all[1..].to_vec();
        rest[0].resource_name.clone_from(&name);
        assert_eq!(node.write(rest).await.unwrap(), i64::try_from(size).unwrap());
        assert!(node.read(&digest(&blob)).await.unwrap() == blob);
    }
}

#[tokio::test]
async fn a_client_that_closes_early_is_told_what_is_committed() {
    let node = shared().await;
    let blob = noise("closes early", 100_000);
    let name = write_name("early", &digest(&blob));
    let all = messages(&name, &blob, 40_000);
    assert_eq!(node.write(all[..1].to_vec()).await.unwrap(), 40_000);
    assert_eq!(node.missing(vec![digest(&blob)]).await.unwrap().len(), 1);
    let mut rest = all[1..].to_vec();
    rest[0].resource_name = name;
    assert_eq!(node.write(rest).await.unwrap(), 100_000);
    assert!(node.read(&digest(&blob)).await.unwrap() == blob);
}

#[tokio::test]
async fn a_client_that_begins_anew_under_the_same_name_succeeds() {
    let node = shared().await;
    let blob = noise("anew", 200_000);
    let name = write_name("anew", &digest(&blob));
    let all = messages(&name, &blob, 70_000);
    let open = Open::new(&node, &all[..2]).await;
    until_committed(&node, &name, 140_000).await;
    open.abort().await;
    // In other pieces than before, so that their borders lie elsewhere.
    assert_eq!(node.write(messages(&name, &blob, 33_333)).await.unwrap(), 200_000);
    assert!(node.read(&digest(&blob)).await.unwrap() == blob);
}

#[tokio::test]
async fn a_wrong_beginning_does_not_spoil_the_digest_for_others() {
    let node = shared().await;
    let blob = noise("spoiled", 100_000);
    let digest = digest(&blob);
    let forged = messages(&write_name("forger", &digest), &noise("forged", 100_000), 60_000);
    assert_eq!(node.write(forged[..1].to_vec()).await.unwrap(), 60_000);
    let honest = messages(&write_name("honest", &digest), &blob, 60_000);
    assert_eq!(node.write(honest).await.unwrap(), 100_000);
    assert!(node.read(&digest).await.unwrap() == blob);
}

#[tokio::test]
async fn the_status_of_what_another_wrote_is_complete() {
    let node = shared().await;
    let kept = node.put([noise("written by another", 500)]).await.remove(0);
    let said = status(&node, &write_name("never", &kept)).await.unwrap();
    assert_eq!((said.committed_size, said.complete), (500, true));
    for name in ["", "nonsense", "uploads/u/blobs/zz/1", "blobs/../1"] {
        assert_refused(status(&node, name).await, Code::InvalidArgument, name);
    }
}

#[tokio::test]
async fn many_clients_may_write_one_blob_at_once() {
    let node = shared().await;
    let blob = noise("at once", 2_000_000);
    let digest = digest(&blob);
    let writes = (0..8).map(|n| {
        // Two of a kind under each name.
        let all = messages(&write_name(&format!("{}", n / 2), &digest), &blob, 100_000 + n);
        let client = (*node).clone();
        tokio::spawn(async move { client.write(all).await })
    });
    let mut succeeded = 0;
    for write in writes.collect::<Vec<_>>() {
        match write.await.unwrap() {
            Ok(committed) => {
                assert_eq!(committed, digest.size_bytes);
                succeeded += 1;
            }
            // One that shares its name with another may be told to come again, never that its
            // bytes are wrong.
            Err(status) => {
                let again = [Code::Aborted, Code::Unavailable, Code::ResourceExhausted];
                assert!(again.contains(&status.code()), "{status:?}");
            }
        }
    }
    assert!(succeeded >= 4, "{succeeded}");
    assert!(node.read(&digest).await.unwrap() == blob);
}

#[tokio::test]
async fn a_write_ends_when_another_has_brought_the_blob() {
    let node = shared().await;
    let blob = noise("overtaken", 500_000);
    let digest = digest(&blob);
    let all = messages(&write_name("slow", &digest), &blob, 100_000);
    let slow = Open::new(&node, &all[..2]).await;
    until_committed(&node, &write_name("slow", &digest), 200_000).await;
    node.put([blob.clone()]).await;
    for message in &all[2..] {
        // An error means that it was answered already.
        let _ = slow.more.send(message.clone()).await;
    }
    assert_eq!(slow.end().await.unwrap(), digest.size_bytes);
    assert!(node.read(&digest).await.unwrap() == blob);
}

/// Open files of the node that have no name.
fn unnamed_files(node: &Connected) -> usize {
    let files = format!("/proc/{}/fd", node.running.node.pid());
    let targets = fs::read_dir(files).unwrap().flatten();
    targets
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().ends_with("(deleted)"))
        .count()
}

/// Every file below the store, and its size.
fn named_files(node: &Connected) -> Vec<(String, u64)> {
    let mut waiting = vec![node.running.directory.path().to_owned()];
    let mut found = Vec::new();
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let kind = entry.metadata().unwrap();
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if entry.path().extension().is_none_or(|ending| ending != "log") {
                found.push((entry.path().to_string_lossy().into_owned(), kind.len()));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn an_upload_that_nobody_goes_on_with_leaves_nothing() {
    let node = own(&[("LIMITS__UPLOAD_IDLE", "1s")]).await;
    let before = (unnamed_files(&node), named_files(&node));
    let mut names = Vec::new();
    for (n, size) in [1000, 100_000, 3_000_000].into_iter().enumerate() {
        let blob = noise("left", size);
        let name = write_name(&n.to_string(), &digest(&blob));
        // A connection of its own, which breaks in the middle of a write.
        let client = Client::connect(&node.running.node.address()).await;
        let open = Open::new(&client, &messages(&name, &blob, size / 2)[..1]).await;
        until_committed(&node, &name, i64::try_from(size / 2).unwrap()).await;
        open.abort().await;
        drop(client);
        names.push((name, digest(&blob)));
    }
    for (name, digest) in names {
        eventually("the upload is forgotten", async || {
            status(&node, &name).await.is_err_and(|error| error.code() == Code::NotFound)
        })
        .await;
        assert_eq!(node.missing(vec![digest]).await.unwrap().len(), 1);
    }
    eventually("its files are closed", async || {
        (unnamed_files(&node), named_files(&node)) == before
    })
    .await;
}

#[tokio::test]
async fn more_open_uploads_than_the_bound_are_told_to_come_again() {
    let settings = [("LIMITS__UPLOADS_MAX", "4"), ("CPUS__SHARDS", "1")];
    let node = own(&settings).await;
    let blob = |n: usize| noise(&format!("bounded {n}"), 100_000);
    let mut open = Vec::new();
    for n in 0..4 {
        let name = write_name("u", &digest(&blob(n)));
        open.push(Open::new(&node, &messages(&name, &blob(n), 50_000)[..1]).await);
        until_committed(&node, &name, 50_000).await;
    }
    let one_more = blob(4);
    let all = messages(&write_name("u", &digest(&one_more)), &one_more, 50_000);
    assert_refused(node.write(all.clone()).await, Code::ResourceExhausted, "a fifth upload");
    let first = open.remove(0);
    let rest = messages("", &blob(0), 50_000).remove(1);
    first.more.send(rest).await.unwrap();
    assert_eq!(first.end().await.unwrap(), 100_000);
    assert_eq!(node.write(all).await.unwrap(), 100_000);
    for open in open {
        open.abort().await;
    }
}

#[tokio::test]
async fn a_write_whose_first_message_is_not_the_first_of_the_blob_needs_an_open_one() {
    let node = shared().await;
    let blob = noise("from the middle", 1000);
    let digest = digest(&blob);
    let name = write_name("middle", &digest);
    let mut rest = messages(&name, &blob, 500)[1..].to_vec();
    rest[0].resource_name.clone_from(&name);
    let code = node.write(rest).await.unwrap_err().code();
    assert!(matches!(code, Code::InvalidArgument | Code::OutOfRange | Code::NotFound), "{code}");
    let all = messages(&name, &blob, 500);
    assert_eq!(node.write(all).await.unwrap(), 1000);
    assert_eq!(node.read(&digest).await.unwrap(), blob);
}
