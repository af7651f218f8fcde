//! What a node makes of a cache below that contradicts itself, changes its mind or can't be
//! written to for a while: nobody is told that a blob is kept which is nowhere, and who has the
//! right bytes can always bring them. Must never let a limit of time decide a test.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

use bytes::Bytes;
use proto::{
    bytestream::WriteRequest,
    reapi::{
        ActionResult, Digest, Directory, FileNode, OutputDirectory, Tree, UpdateActionResultRequest,
    },
};
use ringforge_tests::{
    Node,
    action::{Folder, Job},
    client::{Client, digest},
    is_root,
    liar::{Failing, Liar, When, WrongBytes, WrongMissing},
    until,
};
use tempfile::TempDir;
use tonic::{Code, Status};

/// A node before the liar, and a client of it.
struct Front {
    client: Client,
    _node: Node,
    _parent: TempDir,
}

impl Front {
    async fn before(liar: &Liar, settings: &[(&str, &str)]) -> Self {
        let url = format!("grpc://{}", liar.address());
        // What is remembered is remembered for longer than a test runs.
        let mut all = vec![("BACKING__URL", url.as_str()), ("BACKING__ABSENT_KEPT", "1m")];
        all.extend(settings);
        let parent = tempfile::tempdir().unwrap();
        let node = Node::start_with(&parent.path().join("store"), &all);
        let client = Client::connect(&node.address()).await;
        Self { client, _node: node, _parent: parent }
    }

    async fn reads(&self, digest: &Digest) -> Result<Bytes, Code> {
        self.client.read(digest).await.map_err(|failed| failed.code())
    }

    async fn missing(&self, digest: &Digest) -> bool {
        !self.client.missing(vec![digest.clone()]).await.unwrap().is_empty()
    }

    /// One blob by ByteStream, in two messages.
    async fn write(&self, blob: &Bytes) -> Result<i64, Status> {
        let Digest { hash, size_bytes } = digest(blob);
        let resource_name = format!("uploads/{hash}/blobs/{hash}/{size_bytes}");
        let (first, rest) = (blob.slice(..blob.len() / 2), blob.slice(blob.len() / 2..));
        let offset = i64::try_from(first.len()).unwrap();
        let message = |write_offset, finish_write, data| WriteRequest {
            resource_name: resource_name.clone(),
            write_offset,
            finish_write,
            data,
        };
        self.client.write(vec![message(0, false, first), message(offset, true, rest)]).await
    }
}

/// A blob that travels with others, and one that travels alone; none is like another.
fn blobs(name: &str) -> [Bytes; 2] {
    [1000, 3 << 20].map(|size| name.bytes().cycle().take(size).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_is_kept_here_whatever_below_claims_to_have() {
    let liar = Liar::start();
    liar.lie(|lies| lies.missing = Some(WrongMissing::Nothing));
    let front = Front::before(&liar, &[]).await;
    for blob in blobs("claimed") {
        assert_eq!(front.write(&blob).await.unwrap(), digest(&blob).size_bytes);
        assert!(front.reads(&digest(&blob)).await.unwrap() == blob, "{}", blob.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_that_stays_here_asks_nothing_below() {
    let liar = Liar::start();
    let front = Front::before(&liar, &[("BACKING__WRITE", "local-only")]).await;
    for blob in blobs("private") {
        front.write(&blob).await.unwrap();
    }
    front.client.put(blobs("more private")).await;
    assert_eq!(liar.all_calls(), [].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_said_to_be_there_by_now_is_asked_for_again() {
    let liar = Liar::start();
    let front = Front::before(&liar, &[]).await;
    for blob in blobs("late") {
        let named = digest(&blob);
        assert_eq!(front.reads(&named).await, Err(Code::NotFound));
        liar.put(blob.clone());
        assert_eq!(front.reads(&named).await, Err(Code::NotFound), "it is remembered");
        assert!(!front.missing(&named).await);
        assert!(front.reads(&named).await.unwrap() == blob, "{}", blob.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_said_to_be_there_and_is_not_given_counts_as_missing() {
    let liar = Liar::start();
    liar.lie(|lies| lies.missing = Some(WrongMissing::Nothing));
    let front = Front::before(&liar, &[]).await;
    for blob in blobs("promised") {
        let named = digest(&blob);
        assert_eq!(front.reads(&named).await, Err(Code::NotFound));
        assert!(!front.missing(&named).await, "perhaps it came meanwhile");
        assert_eq!(front.reads(&named).await, Err(Code::NotFound));
        assert!(front.missing(&named).await, "it did not");
        front.write(&blob).await.unwrap();
        assert_eq!(liar.blobs().get(&named.hash), Some(&blob), "nor is it believed now");
        assert!(!front.missing(&named).await);
        assert!(front.reads(&named).await.unwrap() == blob);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_action_finds_what_was_uploaded_elsewhere_after_it_was_refused() {
    if !is_root("an_action_finds_what_was_uploaded_elsewhere_after_it_was_refused") {
        return;
    }
    let liar = Liar::start();
    let front = Front::before(&liar, &[]).await;
    let [small, large] = blobs("elsewhere");
    let inputs = Folder::new().folder("d", Folder::new().file("small", small).file("large", large));
    let job = Job::shell("cat d/small d/large | wc -c").with(inputs);
    let mut refused = 0;
    // First the action itself is unknown, then each of what it names.
    for blob in job.blobs() {
        let status = front.client.outcome(job.request()).await;
        assert_eq!(Code::from(status.code), Code::FailedPrecondition, "{}", status.message);
        refused += 1;
        liar.put(blob);
    }
    assert!(refused > 4);
    let response = front.client.execute(job.request()).await.unwrap();
    let result = response.result.unwrap_or_default();
    assert_eq!(result.exit_code, 0, "{:?}", response.status);
    let stdout = result.stdout_digest.unwrap();
    assert_eq!(front.reads(&stdout).await.unwrap(), "3146728\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_wrong_below_is_written_over_even_if_that_fails_at_first() {
    let liar = Liar::start();
    let front = Front::before(&liar, &[]).await;
    for (blob, method) in blobs("wrong").into_iter().zip(["BatchUpdateBlobs", "Write"]) {
        let named = liar.put(blob.clone());
        liar.lie(|lies| lies.all_bytes = Some(WrongBytes::LastByte));
        assert_eq!(front.reads(&named).await, Err(Code::NotFound));
        let failing = Failing { when: When::Next(1), ..Failing::always(Code::PermissionDenied) };
        liar.lie(|lies| lies.failing = Some(Failing { method: Some(method), ..failing }));
        assert_eq!(front.write(&blob).await.unwrap_err().code(), Code::Unavailable);
        // It is here, so nobody need send it; whoever does so brings it below.
        let before = liar.calls(method);
        front.write(&blob).await.unwrap();
        assert_eq!(liar.calls(method), before + 1, "{}", blob.len());
        liar.honest();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_wrong_below_is_written_over_in_its_own_time() {
    let liar = Liar::start();
    let front = Front::before(&liar, &[("BACKING__WRITE", "async")]).await;
    for (blob, method) in blobs("wrong later").into_iter().zip(["BatchUpdateBlobs", "Write"]) {
        let named = liar.put(blob.clone());
        liar.lie(|lies| lies.all_bytes = Some(WrongBytes::LastByte));
        assert_eq!(front.reads(&named).await, Err(Code::NotFound));
        assert!(front.missing(&named).await, "who has it is to bring it");
        let before = liar.calls(method);
        front.write(&blob).await.unwrap();
        until("it is sent below", || liar.calls(method) > before);
        liar.honest();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_result_whose_tree_is_only_below_arrives_there() {
    let liar = Liar::start();
    let front = Front::before(&liar, &[("BACKING__WRITE", "async")]).await;
    let file = liar.put("a file that somebody else made");
    let node = FileNode { name: "f".into(), digest: Some(file), ..Default::default() };
    let root = Directory { files: vec![node], ..Default::default() };
    let tree = Tree { root: Some(root), ..Default::default() };
    let tree_digest = Some(liar.put(prost::Message::encode_to_vec(&tree)));
    let directory = OutputDirectory { path: "d".into(), tree_digest, ..Default::default() };
    let result = ActionResult { output_directories: vec![directory], ..Default::default() };
    let action = digest(b"an action with a tree");
    let request = UpdateActionResultRequest {
        action_digest: Some(action.clone()),
        action_result: Some(result.clone()),
        ..Default::default()
    };
    front.client.action_cache.clone().update_action_result(request).await.unwrap();
    until("it is below", || liar.results().get(&action.hash) == Some(&result));
}
