//! A REAPI client that says what a test wants said, right or wrong. Must never repair a request.

use bytes::Bytes;
use proto::{
    bytestream::byte_stream_client::ByteStreamClient,
    longrunning::{Operation, operation, operations_client::OperationsClient},
    reapi::{
        BatchUpdateBlobsRequest, Digest, ExecuteRequest, ExecuteResponse, FindMissingBlobsRequest,
        action_cache_client::ActionCacheClient, batch_update_blobs_request,
        capabilities_client::CapabilitiesClient,
        content_addressable_storage_client::ContentAddressableStorageClient,
        execution_client::ExecutionClient,
    },
};
use prost::Message;
use sha2::Digest as _;
use tonic::{Status, transport::Channel};

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
        let channel = endpoint.connect().await.expect("the node answers");
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
        let mut stream = self.execution.clone().execute(request).await?.into_inner();
        let mut last: Option<Operation> = None;
        while let Some(operation) = stream.message().await? {
            let done_before = last.as_ref().is_some_and(|last| last.done);
            assert!(!done_before, "an operation after the last one");
            last = Some(operation);
        }
        Ok(response(&last.expect("at least one operation")))
    }
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
