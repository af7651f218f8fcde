//! A tier that is another server of the Remote Execution API, asked by gRPC. Must never hash,
//! retry or queue (layers around it do), and must believe nothing of an answer but its form.

mod batch;
mod failure;
mod offer;
mod pace;
mod payload;
mod read;
mod write;

#[cfg(test)]
pub(crate) mod tests;

use self::{failure::below_error, offer::Offers};
use super::channel::{Connection, Target};
use bytes::Bytes;
use engine::{
    digest::Digest,
    tier::{Below, BelowError, BelowResult, Incoming, Outgoing},
};
use futures_util::{FutureExt, future::BoxFuture};
use prost::Message;
use proto::reapi::{
    self, ActionResult, GetActionResultRequest, UpdateActionResultRequest,
    action_cache_client::ActionCacheClient,
    content_addressable_storage_client::ContentAddressableStorageClient, digest_function,
};
use std::{sync::Arc, time::Duration};
use tonic::{Code, Request, Response, Status};

/// Largest message sent: what gRPC servers take unless told otherwise.
const SENT_BYTES_MAX: usize = 4 << 20;
/// Largest message taken: batches are asked for in smaller ones, but results of actions with much
/// output inline, and pieces of streams, are as large as a server likes.
const RECEIVED_BYTES_MAX: usize = 16 << 20;
/// Blobs below this are not packed: they fit into a few packets as they are.
const PACKED_BLOB_BYTES_MIN: u64 = 64 << 10;

/// How another server is used.
#[derive(Clone, Debug)]
pub(crate) struct RemoteSettings {
    /// Its instance, under which all blobs lie; may be empty.
    pub(crate) instance: String,
    /// Whether large blobs travel as zstd where it can do that.
    pub(crate) compression: bool,
    /// How long an answer may take, or the first piece of a stream.
    pub(crate) call_deadline: Duration,
    /// How long a stream may take for each [`pace::PACE_BYTES`], or its end.
    pub(crate) idle_deadline: Duration,
}

/// Another server. Results of actions lie under this tier's instance joined with the client's, so
/// that those of different instances never mix; blobs, which prove themselves, all lie under this
/// tier's.
#[derive(Debug)]
pub(crate) struct Remote {
    name: String,
    settings: RemoteSettings,
    /// Answers that are small and soon there.
    calls: Connection,
    /// Blobs on their way here and there have connections of their own: what a server grants one
    /// connection (often 64 KiB in all) is used up by one stream that it does not read, and a
    /// lost packet holds up all that follow it.
    reads: Connection,
    writes: Connection,
    offers: Arc<Offers>,
}

impl Remote {
    /// Connects when first asked. Within a tokio runtime only.
    pub(crate) fn new(target: &Target, settings: RemoteSettings) -> Self {
        let name = match settings.instance.as_str() {
            "" => target.name().to_owned(),
            instance => format!("{}/{instance}", target.name()),
        };
        Self {
            name,
            calls: target.open(),
            reads: target.open(),
            writes: target.open(),
            offers: Arc::default(),
            settings,
        }
    }

    /// A small request, which says how long its answer is waited for.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.settings.call_deadline);
        request
    }

    /// The answer to one call, within its time.
    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> BelowResult<T> {
        match tokio::time::timeout(self.settings.call_deadline, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.offers.heard(below_error(&status))),
            Err(_) => Err(BelowError::TimedOut),
        }
    }

    /// Whether a blob travels packed.
    async fn is_packed(&self, digest: Digest) -> bool {
        let worth = self.settings.compression && digest.size() >= PACKED_BLOB_BYTES_MIN;
        worth && self.offer().await.zstd
    }

    /// `before` with the instance in front of it.
    fn resource_name(&self, rest: &str) -> String {
        match self.settings.instance.as_str() {
            "" => rest.to_owned(),
            instance => format!("{instance}/{rest}"),
        }
    }

    fn cas(&self) -> ContentAddressableStorageClient<Connection> {
        ContentAddressableStorageClient::new(self.calls.clone())
            .max_decoding_message_size(RECEIVED_BYTES_MAX)
    }

    fn action_cache(&self) -> ActionCacheClient<Connection> {
        ActionCacheClient::new(self.calls.clone()).max_decoding_message_size(RECEIVED_BYTES_MAX)
    }

    async fn action_of(&self, instance: &str, action: Digest) -> BelowResult<Option<ActionResult>> {
        let request = GetActionResultRequest {
            instance_name: joined(&self.settings.instance, instance),
            action_digest: Some(to_wire(action)),
            digest_function: SHA256,
            ..Default::default()
        };
        match self.answer(self.action_cache().get_action_result(self.request(request))).await {
            Ok(result) => Ok(Some(result)),
            Err(BelowError::Absent) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn keep_action(
        &self,
        instance: &str,
        action: Digest,
        result: ActionResult,
    ) -> BelowResult<()> {
        let request = UpdateActionResultRequest {
            instance_name: joined(&self.settings.instance, instance),
            action_digest: Some(to_wire(action)),
            action_result: Some(result),
            digest_function: SHA256,
            ..Default::default()
        };
        let size = request.encoded_len();
        if size > SENT_BYTES_MAX {
            // Many servers would say RESOURCE_EXHAUSTED, which sounds as if waiting helped.
            return Err(BelowError::Refused(format!("a result of {size} bytes fits no message")));
        }
        let mut client = self.action_cache();
        self.answer(client.update_action_result(self.request(request))).await.map(drop)
    }
}

impl Below for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn batch_bytes_max(&self) -> u64 {
        self.offers.last().batch_bytes_max
    }

    fn probe(&self) -> BoxFuture<'_, BelowResult<()>> {
        self.ask_offer().map(|asked| asked.map(drop)).boxed()
    }

    fn find_missing(&self, digests: Vec<Digest>) -> BoxFuture<'_, BelowResult<Vec<Digest>>> {
        self.missing_of(digests).boxed()
    }

    fn read(&self, digest: Digest, offset: u64) -> BoxFuture<'_, BelowResult<Incoming>> {
        self.receive(digest, offset).boxed()
    }

    fn read_many(
        &self,
        digests: Vec<Digest>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<Bytes>>>> {
        self.receive_many(digests).boxed()
    }

    fn write(&self, digest: Digest, bytes: Outgoing) -> BoxFuture<'_, BelowResult<()>> {
        self.send(digest, bytes).boxed()
    }

    fn write_many(
        &self,
        blobs: Vec<(Digest, Bytes)>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<()>>>> {
        self.send_many(blobs).boxed()
    }

    fn get_action<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
    ) -> BoxFuture<'a, BelowResult<Option<ActionResult>>> {
        self.action_of(instance, action).boxed()
    }

    fn put_action<'a>(
        &'a self,
        instance: &'a str,
        action: Digest,
        result: ActionResult,
    ) -> BoxFuture<'a, BelowResult<()>> {
        self.keep_action(instance, action, result).boxed()
    }
}

/// The one digest function there is, as the wire has it.
const SHA256: i32 = digest_function::Value::Sha256 as i32;

fn to_wire(digest: Digest) -> reapi::Digest {
    reapi::Digest { hash: digest.hex(), size_bytes: digest.size_i64() }
}

/// Two instances as one.
fn joined(own: &str, client: &str) -> String {
    match (own, client) {
        ("", one) | (one, "") => one.to_owned(),
        _ => format!("{own}/{client}"),
    }
}

/// Whether a server says that it has what it was given already.
fn is_kept(code: Code) -> bool {
    matches!(code, Code::Ok | Code::AlreadyExists)
}
