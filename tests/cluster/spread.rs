//! What is sent to one node is done by all, and everything is then found where it was asked for.

use bytes::Bytes;
use prost::Message;
use proto::reapi::{ActionResult, GetActionResultRequest, Tree, execution_stage::Value as Stage};
use ringforge_tests::{
    action::{Folder, Job},
    client::{Client, digest},
    cluster::{
        Cluster, begin_elsewhere, eventually, runs_on, sleepers, succeeded, together, until_spread,
        worker, workers,
    },
    is_root,
};
use std::{collections::BTreeSet, time::Duration};
use tonic::{Code, Status};

async fn cached(client: &Client, job: &Job) -> Result<ActionResult, Status> {
    let request =
        GetActionResultRequest { action_digest: Some(job.digest()), ..Default::default() };
    Ok(client.action_cache.clone().get_action_result(request).await?.into_inner())
}

fn numbered(number: u32) -> Job {
    let input = format!("input {number} of a file that only the first node was given\n");
    let script = "sleep 0.3; cat in/file > out; mkdir -p tree/below; cp in/file tree/below/copy; \
                  cat in/file; cat in/file >&2";
    let inputs = Folder::new().folder("in", Folder::new().file("file", input));
    Job::shell(script).with(inputs).outputs(&["out", "tree"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_do_what_is_sent_to_one_and_it_has_all_that_comes_of_it() {
    if !is_root("all_nodes_do_what_is_sent_to_one_and_it_has_all_that_comes_of_it") {
        return;
    }
    let cluster = Cluster::start(3, &[]);
    let client = cluster.client(1);
    until_spread(&client, 3).await;
    let jobs: Vec<Job> = (0..12).map(numbered).collect();
    let ends = together(&client, &jobs).await;
    let mut seen = BTreeSet::new();
    for (job, end) in jobs.iter().zip(ends) {
        let response = end.unwrap();
        succeeded(&response);
        seen.insert(worker(&response));
        let result = response.result.unwrap();
        let said: &Bytes = &job.inputs.blobs[1];
        check_outputs(&client, &result, said).await;
        let kept = cached(&client, job).await.unwrap();
        assert_eq!(kept.output_files, result.output_files);
        assert_eq!(kept.output_directories, result.output_directories);
        let again = client.execute(job.request()).await.unwrap();
        assert!(again.cached_result, "the origin keeps what a peer did");
    }
    assert_eq!(seen, ["n1", "n2", "n3"].map(str::to_owned).into());
}

async fn check_outputs(client: &Client, result: &ActionResult, said: &Bytes) {
    let out = result.output_files[0].digest.clone().unwrap();
    assert_eq!(out, digest(said));
    for blob in [Some(out), result.stdout_digest.clone(), result.stderr_digest.clone()] {
        assert_eq!(client.read(&blob.unwrap()).await.unwrap(), said);
    }
    let tree = result.output_directories[0].tree_digest.clone().unwrap();
    let tree = Tree::decode(client.read(&tree).await.unwrap()).unwrap();
    let copy = &tree.children[0].files[0];
    assert_eq!((&*copy.name, copy.digest.clone().unwrap()), ("copy", digest(said)));
    assert_eq!(client.read(copy.digest.as_ref().unwrap()).await.unwrap(), said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_end_comes_back_from_a_peer() {
    if !is_root("every_kind_of_end_comes_back_from_a_peer") {
        return;
    }
    let cluster = Cluster::start(3, &[]);
    let client = cluster.client(1);
    until_spread(&client, 3).await;
    failing_processes(&client).await;
    results_that_are_not_kept(&cluster).await;
    // One that takes the slot of the node that is asked.
    let seconds = format!("71{}", std::process::id());
    let bounded = Job::new(&["sleep", &seconds]).timeout(Duration::from_secs(2));
    let (here, there) = begin_elsewhere(&client, &bounded, "8").await;
    assert_ne!(runs_on(&there), "n1");
    eventually("its process lives", async || sleepers(&seconds) == 1).await;
    let status = there.end().await.unwrap().status.unwrap();
    assert_eq!(status.code, Code::DeadlineExceeded as i32, "{status:?}");
    eventually("its process is dead", async || sleepers(&seconds) == 0).await;
    succeeded(&here.end().await.unwrap());
    an_absent_input(&client).await;
}

async fn failing_processes(client: &Client) {
    let jobs: Vec<Job> = (0..9).map(|_| Job::shell("sleep 0.2; echo why >&2; exit 3")).collect();
    let mut seen = BTreeSet::new();
    for (job, end) in jobs.iter().zip(together(client, &jobs).await) {
        let response = end.unwrap();
        assert_eq!(response.status.clone().unwrap_or_default().code, 0);
        seen.insert(worker(&response));
        let result = response.result.unwrap();
        assert_eq!(result.exit_code, 3);
        assert_eq!(client.read(&result.stderr_digest.unwrap()).await.unwrap(), "why\n");
        assert_eq!(cached(client, job).await.unwrap_err().code(), Code::NotFound);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

async fn results_that_are_not_kept(cluster: &Cluster) {
    let job = || Job::shell("sleep 0.2; echo x > out").outputs(&["out"]).do_not_cache();
    let jobs: Vec<Job> = (0..9).map(|_| job()).collect();
    let seen = workers(&cluster.client(1), &jobs).await;
    assert_eq!(seen.len(), 3, "{seen:?}");
    for i in 1..=3 {
        for job in &jobs {
            let kept = cached(&cluster.client(i), job).await;
            assert_eq!(kept.unwrap_err().code(), Code::NotFound, "n{i}");
        }
    }
}

/// Jobs whose inputs nobody has end with what is missing, whoever finds that out.
async fn an_absent_input(client: &Client) {
    let blocker = Job::shell("sleep 2");
    client.put(blocker.blobs()).await;
    let mut here = client.begin(blocker.request()).await.unwrap();
    here.until(Stage::Executing).await;
    let inputs = Folder::new().file("absent", "nobody was given this");
    let job = Job::new(&["cat", "absent"]).with(inputs);
    client.put([job.encoded(), job.encoded_command(), job.inputs.encoded()]).await;
    let status = client.outcome(job.request()).await;
    assert_eq!(status.code, Code::FailedPrecondition as i32, "{status:?}");
    succeeded(&here.end().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_of_any_size_go_to_a_peer_and_come_back() {
    if !is_root("blobs_of_any_size_go_to_a_peer_and_come_back") {
        return;
    }
    let cluster = Cluster::start(2, &[]);
    let client = cluster.client(1);
    until_spread(&client, 2).await;
    // Empty, small, in a batch, beyond a batch.
    for (number, size) in [0_usize, 1, 70 << 10, 3 << 20, 9 << 20].into_iter().enumerate() {
        let seed = u8::try_from(number).unwrap() + 1;
        let input: Vec<u8> = (0..size).map(|at| seed.wrapping_mul((at % 251) as u8)).collect();
        put_large(&client, &input).await;
        let mut job = Job::shell("cat in in > out; cat in").outputs(&["out"]);
        job.inputs = Folder::new().file("in", input.clone());
        job.inputs.blobs.clear();
        let (here, there) = begin_elsewhere(&client, &job, "1").await;
        assert_eq!(runs_on(&there), "n2");
        let response = there.end().await.unwrap();
        let result = succeeded(&response).result.clone().unwrap();
        let out = result.output_files[0].digest.clone().unwrap();
        let twice = [&*input, &*input].concat();
        assert_eq!(out, digest(&twice));
        assert!(client.read(&out).await.unwrap() == twice, "{size}");
        succeeded(&here.end().await.unwrap());
    }
}

async fn put_large(client: &Client, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let named = digest(bytes);
    let name = format!("uploads/u/blobs/{}/{}", named.hash, named.size_bytes);
    let pieces: Vec<&[u8]> = bytes.chunks(1 << 20).collect();
    let messages =
        pieces.iter().enumerate().map(|(number, piece)| proto::bytestream::WriteRequest {
            resource_name: name.clone(),
            write_offset: i64::try_from(number << 20).unwrap(),
            finish_write: number + 1 == pieces.len(),
            data: Bytes::copy_from_slice(piece),
        });
    let committed = client.write(messages.collect()).await.unwrap();
    assert_eq!(committed, named.size_bytes);
}
