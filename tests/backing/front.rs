//! The node in front, and what the tests say to it. Must never leave a process behind.

use bytes::Bytes;
use proto::{
    bytestream::WriteRequest,
    reapi::{
        ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest,
        GetActionResultRequest, OutputFile, UpdateActionResultRequest, batch_update_blobs_request,
    },
};
use ringforge_tests::{
    Node,
    client::{Client, digest},
};
use std::{
    fmt::Display,
    ops::Deref,
    path::PathBuf,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tonic::{Code, Status};

/// Longer than anything that is to come takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Between two looks at what will change.
const LOOK: Duration = Duration::from_millis(20);
/// What a large blob is sent in.
const PART_BYTES: usize = 1 << 20;

/// Settings of a node that soon gives up what does not answer, and soon tries again.
pub(crate) const IMPATIENT: [(&str, &str); 6] = [
    ("BACKING__CONNECT_TIMEOUT", "500ms"),
    ("BACKING__TIMEOUT", "1s"),
    ("BACKING__IDLE_TIMEOUT", "1s"),
    ("BACKING__OPEN_FOR", "200ms"),
    ("BACKING__ABSENT_KEPT", "1ms"),
    ("BACKING__HEDGE", "false"),
];

/// A node, its directory and a client of it.
pub(crate) struct Front {
    client: Client,
    pub(crate) node: Option<Node>,
    pub(crate) store: PathBuf,
    _parent: TempDir,
}

impl Deref for Front {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Front {
    /// A node on its own.
    pub(crate) async fn alone() -> Self {
        Self::with(&[]).await
    }

    /// A node before the REAPI server at HOST:PORT.
    pub(crate) async fn before(address: impl Display, settings: &[(&str, &str)]) -> Self {
        let url = format!("grpc://{address}");
        let mut all = vec![("BACKING__URL", url.as_str())];
        all.extend(settings);
        Self::with(&all).await
    }

    /// A node with these settings.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let store = parent.path().join("store");
        let node = Node::start_with(&store, settings);
        let client = Client::connect(&node.address()).await;
        Self { client, node: Some(node), store, _parent: parent }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        self.node.as_ref().unwrap().address()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.node.take().unwrap().kill();
    }

    /// The same node again, after it was killed.
    pub(crate) async fn again(&mut self, settings: &[(&str, &str)]) {
        let node = Node::start_with(&self.store, settings);
        self.client = Client::connect(&node.address()).await;
        self.node = Some(node);
    }
}

/// The name under which ByteStream reads a blob.
pub(crate) fn name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.hash, digest.size_bytes)
}

/// A whole blob by ByteStream, or how that ends; a hang is a failure.
pub(crate) async fn read(client: &Client, digest: &Digest) -> Result<Bytes, Status> {
    in_time("a read", client.read(digest)).await
}

/// Blobs by one BatchReadBlobs: the bytes, or the code, of each.
pub(crate) async fn batch(client: &Client, digests: &[Digest]) -> Vec<Result<Bytes, Code>> {
    let request = BatchReadBlobsRequest { digests: digests.to_vec(), ..Default::default() };
    let mut cas = client.cas.clone();
    let answer = in_time("a batch", cas.batch_read_blobs(request)).await.unwrap().into_inner();
    let each = answer.responses.into_iter().zip(digests).map(|(one, asked)| {
        assert_eq!(one.digest.as_ref(), Some(asked));
        match one.status.unwrap_or_default().code {
            0 => Ok(one.data),
            code => Err(Code::from(code)),
        }
    });
    each.collect()
}

/// One blob by BatchUpdateBlobs: its code.
pub(crate) async fn put(client: &Client, instance: &str, blob: &Bytes) -> Code {
    let request = batch_update_blobs_request::Request {
        digest: Some(digest(blob)),
        data: blob.clone(),
        compressor: 0,
    };
    let request = BatchUpdateBlobsRequest {
        instance_name: instance.to_owned(),
        requests: vec![request],
        ..Default::default()
    };
    let mut cas = client.cas.clone();
    match in_time("an upload", cas.batch_update_blobs(request)).await {
        Ok(answer) => Code::from(answer.into_inner().responses[0].status.clone().unwrap().code),
        Err(refused) => refused.code(),
    }
}

/// One blob by ByteStream, in messages of `part` bytes.
pub(crate) async fn write(
    client: &Client,
    instance: &str,
    blob: &Bytes,
    part: usize,
) -> Result<i64, Status> {
    let named = digest(blob);
    let prefix = if instance.is_empty() { String::new() } else { format!("{instance}/") };
    let resource_name =
        format!("{prefix}uploads/{}/blobs/{}/{}", named.hash, named.hash, named.size_bytes);
    let starts = (0..blob.len()).step_by(part);
    let messages = starts.map(|start| {
        let end = (start + part).min(blob.len());
        WriteRequest {
            resource_name: resource_name.clone(),
            write_offset: i64::try_from(start).unwrap(),
            finish_write: end == blob.len(),
            data: blob.slice(start..end),
        }
    });
    in_time("a write", client.write(messages.collect())).await
}

/// One blob by ByteStream, as clients send large ones.
pub(crate) async fn write_large(client: &Client, blob: &Bytes) -> Result<i64, Status> {
    write(client, "", blob, PART_BYTES).await
}

/// A result that names one file.
pub(crate) fn result_of(output: &Digest) -> ActionResult {
    let file = OutputFile { path: "o".into(), digest: Some(output.clone()), ..Default::default() };
    ActionResult { output_files: vec![file], ..Default::default() }
}

/// Stores a result.
pub(crate) async fn put_result(
    client: &Client,
    instance: &str,
    action: &Digest,
    result: ActionResult,
) -> Result<(), Status> {
    let request = UpdateActionResultRequest {
        instance_name: instance.to_owned(),
        action_digest: Some(action.clone()),
        action_result: Some(result),
        ..Default::default()
    };
    let mut cache = client.action_cache.clone();
    in_time("a result", cache.update_action_result(request)).await.map(drop)
}

/// Asks for a result.
pub(crate) async fn get_result(
    client: &Client,
    instance: &str,
    action: &Digest,
) -> Result<ActionResult, Status> {
    let request = GetActionResultRequest {
        instance_name: instance.to_owned(),
        action_digest: Some(action.clone()),
        ..Default::default()
    };
    let mut cache = client.action_cache.clone();
    let answer = in_time("a result", cache.get_action_result(request)).await;
    answer.map(tonic::Response::into_inner)
}

/// What `future` gives; that it never does is a failure.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(LONG, future).await;
    waited.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Waits until `holds`; what never does is a failure.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(LOOK).await;
    }
}
