//! A REAPI client that says what a test wants said, right or wrong. Must never repair a request.

use super::action::Job;
use bytes::{Bytes, BytesMut};
use prost::Message;
use proto::{
    bytestream::{ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient},
    longrunning::{Operation, operation, operations_client::OperationsClient},
    reapi::{
        ActionResult, BatchUpdateBlobsRequest, Digest, ExecuteOperationMetadata, ExecuteRequest,
        ExecuteResponse, FindMissingBlobsRequest, GetCapabilitiesRequest,
        action_cache_client::ActionCacheClient, batch_update_blobs_request,
        capabilities_client::CapabilitiesClient,
        content_addressable_storage_client::ContentAddressableStorageClient,
        execution_client::ExecutionClient, execution_stage::Value as Stage,
    },
    rpc,
};
use sha2::Digest as _;
use tonic::{
    Status, Streaming,
    transport::{Channel, ClientTlsConfig},
};

/// A connection, and a client of each service on it.
#[derive(Clone)]
pub struct Client {
    /// The connection.
    pub channel: Channel,
    /// ContentAddressableStorage.
    pub cas: ContentAddressableStorageClient<Channel>,
    /// ByteStream.
    pub byte_stream: ByteStreamClient<Channel>,
    /// ActionCache.
    pub action_cache: ActionCacheClient<Channel>,
    /// Execution.
    pub execution: ExecutionClient<Channel>,
    /// Operations.
    pub operations: OperationsClient<Channel>,
    /// Capabilities.
    pub capabilities: CapabilitiesClient<Channel>,
}

impl Client {
    /// Connects to a node at HOST:PORT.
    ///
    /// # Panics
    /// Where nobody answers.
    pub async fn connect(address: &str) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
        Self::over(endpoint.connect().await.expect("the node answers"))
    }

    /// One that connects with its first call, and again after a loss; nobody need be there yet.
    /// Within a runtime only.
    ///
    /// # Panics
    /// Where that is no address.
    #[must_use]
    pub fn lazy(address: &str) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
        Self::over(endpoint.connect_lazy())
    }

    /// One of a node with TLS, at HOST:PORT.
    ///
    /// # Panics
    /// Where that is no address, or those are no certificates.
    #[must_use]
    pub fn secured(address: &str, tls: ClientTlsConfig) -> Self {
        let endpoint = Channel::from_shared(format!("https://{address}")).expect("an address");
        Self::over(endpoint.tls_config(tls).expect("certificates").connect_lazy())
    }

    /// Whether the node answers.
    ///
    /// # Errors
    /// What is said instead, with its causes.
    pub async fn answers(&self) -> Result<(), String> {
        let mut client = self.capabilities.clone();
        let asked = client.get_capabilities(GetCapabilitiesRequest::default()).await;
        let Err(status) = asked else { return Ok(()) };
        let mut said = status.to_string();
        let mut cause = std::error::Error::source(&status);
        while let Some(error) = cause {
            said.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Err(said)
    }

    fn over(channel: Channel) -> Self {
        let bound = 64 << 20;
        Self {
            cas: ContentAddressableStorageClient::new(channel.clone())
                .max_decoding_message_size(bound),
            byte_stream: ByteStreamClient::new(channel.clone()).max_decoding_message_size(bound),
            action_cache: ActionCacheClient::new(channel.clone()),
            execution: ExecutionClient::new(channel.clone()),
            operations: OperationsClient::new(channel.clone()),
            capabilities: CapabilitiesClient::new(channel.clone()),
            channel,
        }
    }

    /// Uploads blobs in one batch.
    ///
    /// # Panics
    /// Where one is refused.
    pub async fn put(&self, blobs: impl IntoIterator<Item = Bytes>) -> Vec<Digest> {
        let blobs: Vec<(Digest, Bytes)> =
            blobs.into_iter().map(|blob| (digest(&blob), blob)).collect();
        let digests = blobs.iter().map(|(digest, _)| digest.clone()).collect();
        let requests = blobs.into_iter().map(|(digest, data)| {
            batch_update_blobs_request::Request { digest: Some(digest), data, compressor: 0 }
        });
        let request =
            BatchUpdateBlobsRequest { requests: requests.collect(), ..Default::default() };
        let response = self.cas.clone().batch_update_blobs(request).await.expect("an upload");
        for one in response.into_inner().responses {
            let status = one.status.unwrap_or_default();
            assert_eq!(status.code, 0, "{}", status.message);
        }
        digests
    }

    /// Uploads a message.
    ///
    /// # Panics
    /// Where it is refused.
    pub async fn put_message(&self, message: &impl Message) -> Digest {
        self.put([Bytes::from(message.encode_to_vec())]).await.remove(0)
    }

    /// Those that the node does not have.
    ///
    /// # Errors
    /// What the node says.
    pub async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Status> {
        let request = FindMissingBlobsRequest { blob_digests: digests, ..Default::default() };
        let response = self.cas.clone().find_missing_blobs(request).await?;
        Ok(response.into_inner().missing_blob_digests)
    }

    /// Executes an action to its end.
    ///
    /// # Errors
    /// What the node says instead of accepting it.
    ///
    /// # Panics
    /// Where the stream of operations is not as REAPI says.
    pub async fn execute(&self, request: ExecuteRequest) -> Result<ExecuteResponse, Status> {
        self.begin(request).await?.end().await
    }

    /// Executes an action, and goes on while it runs.
    ///
    /// # Errors
    /// What the node says instead of accepting it.
    pub async fn begin(&self, request: ExecuteRequest) -> Result<Watched, Status> {
        let stream = self.execution.clone().execute(request).await?.into_inner();
        Watched::new(stream).await
    }

    /// Uploads all that a job needs, and executes it to its end.
    ///
    /// # Panics
    /// Where it is not accepted.
    pub async fn run(&self, job: &Job) -> ExecuteResponse {
        self.put(job.blobs()).await;
        self.execute(job.request()).await.expect("the job is accepted")
    }

    /// The same for one that has to succeed.
    ///
    /// # Panics
    /// Where it does not.
    pub async fn result(&self, job: &Job) -> ActionResult {
        let response = self.run(job).await;
        let status = response.status.clone().unwrap_or_default();
        assert_eq!(status.code, 0, "{}", status.message);
        let result = response.result.expect("a result");
        if result.exit_code != 0 {
            let said = result.stderr_digest.clone().unwrap_or_default();
            let said = self.read(&said).await.unwrap_or_default();
            panic!("exit code {}: {}", result.exit_code, String::from_utf8_lossy(&said));
        }
        result
    }

    /// How a job ends that must not succeed: refused at once, or in its response.
    ///
    /// # Panics
    /// Where it succeeds.
    pub async fn failure(&self, job: &Job) -> rpc::Status {
        self.put(job.blobs()).await;
        let status = self.outcome(job.request()).await;
        assert_ne!(status.code, 0, "it succeeded");
        status
    }

    /// The status of an execution, wherever the node puts it.
    pub async fn outcome(&self, request: ExecuteRequest) -> rpc::Status {
        match self.execute(request).await {
            Ok(response) => response.status.unwrap_or_default(),
            Err(refused) => wire(&refused),
        }
    }

    /// The text that a job prints.
    ///
    /// # Panics
    /// Where the job fails, or prints no text.
    pub async fn printed(&self, job: &Job) -> String {
        let result = self.result(job).await;
        let Some(stdout) = result.stdout_digest else { return String::new() };
        let bytes = self.read(&stdout).await.expect("stdout is kept");
        String::from_utf8(bytes.into()).expect("text")
    }

    /// A blob, by ByteStream.
    ///
    /// # Errors
    /// What the node says.
    pub async fn read(&self, digest: &Digest) -> Result<Bytes, Status> {
        self.read_range(&format!("blobs/{}/{}", digest.hash, digest.size_bytes), 0, 0).await
    }

    /// A part of what a name names, by ByteStream.
    ///
    /// # Errors
    /// What the node says.
    pub async fn read_range(
        &self,
        name: &str,
        read_offset: i64,
        read_limit: i64,
    ) -> Result<Bytes, Status> {
        let request = ReadRequest { resource_name: name.to_owned(), read_offset, read_limit };
        let mut stream = self.byte_stream.clone().read(request).await?.into_inner();
        let mut whole = BytesMut::new();
        while let Some(message) = stream.message().await? {
            whole.extend_from_slice(&message.data);
        }
        Ok(whole.freeze())
    }

    /// These messages as one write; the committed size.
    ///
    /// # Errors
    /// What the node says.
    pub async fn write(&self, messages: Vec<WriteRequest>) -> Result<i64, Status> {
        let stream = tonic::codegen::tokio_stream::iter(messages);
        Ok(self.byte_stream.clone().write(stream).await?.into_inner().committed_size)
    }
}

/// An execution that may still run.
pub struct Watched {
    stream: Streaming<Operation>,
    /// The operation as it was last said to be.
    pub last: Operation,
}

impl Watched {
    /// The stream of an Execute or a WaitExecution.
    ///
    /// # Errors
    /// What the node says instead of a first operation.
    pub async fn new(mut stream: Streaming<Operation>) -> Result<Self, Status> {
        let last = stream.message().await?.ok_or_else(|| Status::internal("no operation"))?;
        Ok(Self { stream, last })
    }

    /// Waits until it is at least as far.
    ///
    /// # Panics
    /// Where the stream ends before.
    pub async fn until(&mut self, stage: Stage) {
        while metadata(&self.last).stage < stage as i32 {
            let next = self.stream.message().await.expect("the stream goes on");
            self.last = next.expect("the stream does not end before the operation is done");
        }
    }

    /// Takes the next message of one that is not done.
    ///
    /// # Errors
    /// What ends the stream instead.
    pub async fn next(&mut self) -> Result<(), Status> {
        let next = self.stream.message().await?;
        self.last = next.ok_or_else(|| Status::unavailable("the stream ended early"))?;
        Ok(())
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What ends the stream instead.
    ///
    /// # Panics
    /// Where the stream of operations is not as REAPI says.
    pub async fn end(mut self) -> Result<ExecuteResponse, Status> {
        loop {
            let completed = metadata(&self.last).stage == Stage::Completed as i32;
            assert_eq!(completed, self.last.done, "{:?}", self.last);
            let Some(next) = self.stream.message().await? else { break };
            assert!(!self.last.done, "an operation after the last one");
            assert_eq!(next.name, self.last.name, "one stream is one operation");
            self.last = next;
        }
        Ok(response(&self.last))
    }
}

/// What an operation says of itself.
///
/// # Panics
/// Where it says nothing.
#[must_use]
pub fn metadata(operation: &Operation) -> ExecuteOperationMetadata {
    let any = operation.metadata.as_ref().expect("metadata");
    let name = "/build.bazel.remote.execution.v2.ExecuteOperationMetadata";
    assert!(any.type_url.ends_with(name), "{}", any.type_url);
    ExecuteOperationMetadata::decode(&*any.value).expect("an ExecuteOperationMetadata")
}

/// A status with its details, as it travels inside a message.
#[must_use]
pub fn wire(status: &Status) -> rpc::Status {
    let mut wire = rpc::Status::decode(status.details()).unwrap_or_default();
    wire.code = status.code() as i32;
    status.message().clone_into(&mut wire.message);
    wire
}

/// The response of an operation that is done.
///
/// # Panics
/// Where it is not done, or `Operation.error` is set.
#[must_use]
pub fn response(operation: &Operation) -> ExecuteResponse {
    assert!(operation.done, "{operation:?}");
    match &operation.result {
        Some(operation::Result::Response(any)) => {
            assert!(any.type_url.ends_with("/build.bazel.remote.execution.v2.ExecuteResponse"));
            ExecuteResponse::decode(&*any.value).expect("an ExecuteResponse")
        }
        other => panic!("no response: {other:?}"),
    }
}

/// The digest of these bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    let hash = sha2::Sha256::digest(bytes);
    let hash = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Digest { hash, size_bytes: i64::try_from(bytes.len()).expect("a test's blob") }
}
