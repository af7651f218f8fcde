//! Actions that are given to peers: executed there, their outputs brought here. Must never end an
//! errand well before everything that its result names is here.

use super::{Link, Peering, outcome};
use engine::{
    exec::{Errand, ErrandEnd, ExecError, ExecuteOutcome, Prepared},
    tier::action_cache::{self, TreeBounds},
};
use futures_util::future::{Either, select};
use prost::Message;
use proto::{
    longrunning::{
        CancelOperationRequest, Operation, operation, operations_client::OperationsClient,
    },
    reapi::{
        ActionResult, ExecuteOperationMetadata, ExecuteRequest, ExecuteResponse, ExecutionPolicy,
        digest_function, execution_client::ExecutionClient, execution_stage::Value as Stage,
    },
};
use std::{pin::pin, sync::Arc, time::Duration};
use tonic::Streaming;

/// How long a peer may take to hear that an action is not wanted any more.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest message of a peer: a result, with all it names.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Takes errands as long as there is a schedule that sends them; on the runtime of calls to peers.
pub(crate) async fn run(
    errands: async_channel::Receiver<Errand>,
    peering: Arc<Peering>,
    bounds: TreeBounds,
) {
    // As many as the scheduler has credit for; each ends by itself.
    while let Ok(mut errand) = errands.recv().await {
        let peering = peering.clone();
        tokio::spawn(async move {
            let end = match peering.link(&errand.peer) {
                Some(link) => perform(&link, &mut errand, bounds).await,
                None => ErrandEnd::Unreached("there is no way to it".to_owned()),
            };
            errand.end(end).await;
        });
    }
}

async fn perform(link: &Link, errand: &mut Errand, bounds: TreeBounds) -> ErrandEnd {
    let mut client =
        ExecutionClient::new(link.connection.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let asked = client.execute(request(errand));
    let asked = match select(pin!(asked), pin!(errand.unwanted())).await {
        Either::Left((asked, _)) => asked,
        // The call is dropped with its stream: nobody listens there.
        Either::Right(_) => return cancelled(),
    };
    let mut stream = match asked {
        Ok(response) => response.into_inner(),
        Err(status) => return outcome::of_refusal(&status),
    };
    let response = match follow(link, errand, &mut stream).await {
        Ok(response) => response,
        Err(end) => return end,
    };
    match outcome::of_response(response) {
        ErrandEnd::Finished(outcome) => bring(link, errand, outcome, bounds).await,
        other => other,
    }
}

fn request(errand: &Errand) -> ExecuteRequest {
    let prepared = &errand.prepared;
    ExecuteRequest {
        instance_name: prepared.instance.clone(),
        // Who asked this node has been told what its cache has.
        skip_cache_lookup: true,
        action_digest: Some(crate::services::to_wire(&prepared.digest)),
        execution_policy: Some(ExecutionPolicy { priority: errand.priority }),
        digest_function: digest_function::Value::Sha256 as i32,
        ..ExecuteRequest::default()
    }
}

/// Relays the stages, to the last word.
async fn follow(
    link: &Link,
    errand: &mut Errand,
    stream: &mut Streaming<Operation>,
) -> Result<ExecuteResponse, ErrandEnd> {
    let mut name = None;
    loop {
        let message = match select(pin!(stream.message()), pin!(errand.unwanted())).await {
            Either::Left((message, _)) => message,
            Either::Right(_) => {
                cancel(link, name).await;
                return Err(cancelled());
            }
        };
        let operation = match message {
            Ok(Some(operation)) => operation,
            Ok(None) => return Err(ErrandEnd::Returned("its stream ended early".to_owned())),
            Err(status) => {
                return Err(ErrandEnd::Returned(crate::status::short(status.to_string())));
            }
        };
        if name.is_none() {
            errand.accepted().await;
            name = Some(operation.name);
        }
        if let Some(operation::Result::Response(any)) = &operation.result {
            let response = ExecuteResponse::decode(&*any.value);
            return response.map_err(|error| ErrandEnd::Returned(error.to_string()));
        }
        let metadata = operation.metadata.as_ref();
        let metadata = metadata.and_then(|any| ExecuteOperationMetadata::decode(&*any.value).ok());
        if let Some(metadata) = metadata
            && metadata.stage == Stage::Executing as i32
        {
            errand.executing(metadata.partial_execution_metadata.as_ref()).await;
        }
    }
}

/// Tells the peer that nobody wants the action any more; it would notice late by itself.
async fn cancel(link: &Link, name: Option<String>) {
    let Some(name) = name else { return };
    let mut client = OperationsClient::new(link.connection.clone());
    let cancel = client.cancel_operation(CancelOperationRequest { name });
    // An error, or none in time: it is a courtesy.
    let _ = tokio::time::timeout(CANCEL_TIMEOUT, cancel).await;
}

fn cancelled() -> ErrandEnd {
    let error = Some(ExecError::Cancelled);
    ErrandEnd::Finished(Box::new(ExecuteOutcome { error, ..ExecuteOutcome::default() }))
}

/// Brings here what the result names, and keeps the result.
async fn bring(
    link: &Link,
    errand: &mut Errand,
    outcome: Box<ExecuteOutcome>,
    bounds: TreeBounds,
) -> ErrandEnd {
    let Some(result) = &outcome.result else { return ErrandEnd::Finished(outcome) };
    let prepared = errand.prepared.clone();
    let brought = bring_all(link, &prepared, result, bounds);
    match select(pin!(brought), pin!(errand.unwanted())).await {
        Either::Left((Ok(()), _)) => {}
        Either::Left((Err(why), _)) => return ErrandEnd::Returned(why),
        Either::Right(_) => return cancelled(),
    }
    if outcome.error.is_none()
        && let Err(error) = prepared.keep(result, bounds).await
    {
        tracing::warn!(action = %prepared.digest, %error, "a result was not kept");
    }
    ErrandEnd::Finished(outcome)
}

async fn bring_all(
    link: &Link,
    prepared: &Prepared,
    result: &ActionResult,
    bounds: TreeBounds,
) -> Result<(), String> {
    let blobs = prepared.blobs().clone().with_peer(link.tier.clone());
    let named = action_cache::closure(&blobs, result, bounds).await;
    let named = named.map_err(|error| error.to_string())?;
    let named = named.ok_or_else(|| "its result names a tree that it does not have".to_owned())?;
    let missing = blobs.bring(named.into_iter().collect()).await;
    let missing = missing.map_err(|error| error.to_string())?;
    match missing.first() {
        None => Ok(()),
        Some(digest) => Err(format!("its result names {digest}, which it does not give")),
    }
}
