//! kill -9 under mixed load, again and again, with an oracle that remembers every acknowledgement:
//! nothing acknowledged is lost where everything fits, nothing wrong is served where it does not,
//! and no result is an older one than was acknowledged.

use super::crash::{blob, output_of, try_put_result};
use bytes::Bytes;
use proto::reapi::Digest;
use ringforge_tests::{
    Node,
    client::{Client, digest},
};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::task::JoinHandle;
use tonic::Code;

/// Cycles, unless RESTART_KILLS says another number.
const KILLS: u64 = 15;
/// Cycles after which a store begins anew, so that it does not fill the disk.
const CYCLES_PER_STORE: u64 = 25;
/// Actions whose results are overwritten.
const ACTIONS: u64 = 12;

/// What a client was told, and what it said without an answer.
#[derive(Default)]
struct Oracle {
    blobs: HashMap<String, (Digest, Bytes)>,
    results: HashMap<u64, Said>,
}

/// What was said of one action.
#[derive(Clone, Default)]
struct Said {
    /// Whether one was ever acknowledged.
    acknowledged: bool,
    /// That one, and those said since without an answer.
    outputs: Vec<Digest>,
}

type Shared = Arc<Mutex<Oracle>>;

/// One that is told by each cycle what to do next.
struct Load {
    client: Client,
    oracle: Shared,
    cycle: u64,
    writer: u64,
}

impl Load {
    /// Goes on until the node is gone.
    fn start(self) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut step = 0;
            while self.step(step).await.is_some() {
                step += 1;
            }
        })
    }

    async fn step(&self, step: u64) -> Option<()> {
        let Self { cycle, writer, .. } = self;
        let size = [300, 9000, 90_000, 40, 250_000][usize::try_from(step % 5).unwrap()];
        let blob = blob(&format!("{cycle} {writer} {step}"), size);
        let digest = digest(&blob);
        let resource_name = format!("uploads/{writer}/blobs/{}/{}", digest.hash, digest.size_bytes);
        let data = blob.clone();
        let message = proto::bytestream::WriteRequest {
            resource_name,
            write_offset: 0,
            finish_write: true,
            data,
        };
        self.client.write(vec![message]).await.ok()?;
        let kept = (digest.clone(), blob);
        self.oracle.lock().unwrap().blobs.insert(digest.hash.clone(), kept);
        // Each writer has actions of its own: what comes last is known.
        let action = step % (ACTIONS / 3) + writer * (ACTIONS / 3);
        let said = digest.clone();
        self.oracle.lock().unwrap().results.entry(action).or_default().outputs.push(said);
        let name = action_name(action);
        try_put_result(&self.client, &name, &digest).await.ok()?;
        let said = Said { acknowledged: true, outputs: vec![digest] };
        self.oracle.lock().unwrap().results.insert(action, said);
        Some(())
    }
}

fn action_name(action: u64) -> Digest {
    digest(format!("action {action}").as_bytes())
}

/// Looks at everything that the oracle knows; what is not `bounded` has to be there.
async fn check(client: &Client, oracle: &Shared, bounded: bool, cycle: u64) {
    let (blobs, results) = {
        let oracle = oracle.lock().unwrap();
        (oracle.blobs.values().cloned().collect::<Vec<_>>(), oracle.results.clone())
    };
    let mut lost = 0;
    for (digest, blob) in &blobs {
        match client.read(digest).await {
            Ok(read) => assert!(read == *blob, "cycle {cycle}: {digest:?} is wrong"),
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "cycle {cycle}: {status}");
                lost += 1;
            }
        }
    }
    assert!(bounded || lost == 0, "cycle {cycle}: {lost} of {} are lost", blobs.len());
    for (action, said) in results {
        match output_of(client, &action_name(action)).await {
            Ok(output) => assert!(said.outputs.contains(&output), "cycle {cycle}: an older one"),
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "cycle {cycle}: {status}");
                assert!(bounded || !said.acknowledged, "cycle {cycle}: a result is lost");
            }
        }
    }
}

async fn kill_again_and_again(parent: &Path, bounded: bool, kills: u64) {
    let mut oracle = Shared::default();
    let bounds =
        [("STORE__BYTES_MAX", "12MiB"), ("STORE__SEGMENT_BYTES", "2MiB"), ("STORE__LEASE", "0s")];
    let settings: &[(&str, &str)] = if bounded { &bounds } else { &bounds[1..2] };
    let store = |cycle: u64| parent.join(format!("store{}", cycle / CYCLES_PER_STORE));
    for cycle in 0..kills {
        if cycle.is_multiple_of(CYCLES_PER_STORE) {
            oracle = Shared::default();
            let _ = std::fs::remove_dir_all(store(cycle.saturating_sub(1)));
        }
        let node = Node::start_with(&store(cycle), settings);
        let client = Client::connect(&node.address()).await;
        check(&client, &oracle, bounded, cycle).await;
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (client, oracle) = (client.clone(), oracle.clone());
                Load { client, oracle, cycle, writer }.start()
            })
            .collect();
        // Not for how long, but where it ends: somewhere else each time.
        tokio::time::sleep(Duration::from_millis(20 + cycle * 37 % 230)).await;
        node.kill();
        for writer in writers {
            writer.await.unwrap();
        }
    }
}

fn kills() -> u64 {
    std::env::var("RESTART_KILLS").map_or(KILLS, |said| said.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_acknowledged_is_lost_by_any_kill() {
    let parent = tempfile::tempdir().unwrap();
    kill_again_and_again(parent.path(), false, kills()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_wrong_is_served_after_any_kill_of_a_store_that_evicts() {
    let parent = tempfile::tempdir().unwrap();
    kill_again_and_again(parent.path(), true, kills()).await;
}
