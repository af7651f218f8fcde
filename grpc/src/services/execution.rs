//! Execution: an action's life as a stream of operations. Must never set `Operation.error`
//! (REAPI), and never end a stream before its operation is done.

use super::{
    Node,
    action_cache::{Inline, cached, inline},
    digest, function, to_wire,
};
use crate::{peer::Asking, status};
use engine::{
    digest::Digest,
    exec::{ExecuteOutcome, Executions, Listening, OperationState, Stage},
    tier::Blobs,
};
use futures_util::stream::{self, Stream, StreamExt};
use proto::{
    any::any,
    longrunning::{Operation, operation},
    reapi::{
        ExecuteOperationMetadata, ExecuteRequest, ExecuteResponse, ExecutionPolicy,
        WaitExecutionRequest, digest_function, execution_server::Execution, execution_stage,
    },
};
use std::{pin::Pin, sync::Arc};
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone)]
pub(crate) struct ExecutionService {
    pub(crate) node: Node,
}

type OperationStream = Pin<Box<dyn Stream<Item = Result<Operation, Status>> + Send>>;

/// What a client wants to find inside the result.
#[derive(Clone, Default)]
struct InlineHints {
    stdout: bool,
    stderr: bool,
    files: Vec<String>,
}

#[tonic::async_trait]
impl Execution for ExecutionService {
    type ExecuteStream = OperationStream;
    type WaitExecutionStream = OperationStream;

    async fn execute(
        &self,
        request: Request<ExecuteRequest>,
    ) -> Result<Response<OperationStream>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let blobs = self.node.blobs(&request.instance_name, metadata.as_ref())?;
        let function = function(request.digest_function)?;
        let action = digest(request.action_digest.as_ref(), function)?;
        let hints = InlineHints {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: request.inline_output_files,
        };
        let executions = self.node.executions()?;
        // A peer that has given an action away has its inputs, or knows where they are.
        let caller = self.node.caller(Asking::of(&metadata, &extensions))?;
        let blobs = match &caller {
            Some(peer) => blobs.with_peer(peer.tier.clone()),
            None => blobs,
        }
        .anew();
        if !request.skip_cache_lookup
            && let Some(state) =
                self.cached(executions, &blobs, &request.instance_name, action).await?
        {
            let operation = operation_of(&self.node, &state, &hints).await;
            return Ok(Response::new(stream::iter([Ok(operation)]).boxed()));
        }
        let instance = &request.instance_name;
        let limits = executions.limits();
        let prepared = engine::exec::prepare(&blobs, instance, action, limits).await;
        let prepared = prepared.map_err(|error| status::exec_status(&error))?;
        let priority = request.execution_policy.map_or(0, |ExecutionPolicy { priority }| priority);
        let listening = executions.execute(prepared, priority, caller.is_some()).await;
        let listening = listening.map_err(|error| status::exec_status(&error))?;
        Ok(Response::new(operations(self.node.clone(), listening, hints)))
    }

    async fn wait_execution(
        &self,
        request: Request<WaitExecutionRequest>,
    ) -> Result<Response<OperationStream>, Status> {
        let (metadata, extensions, WaitExecutionRequest { name }) = request.into_parts();
        let asking = Asking::of(&metadata, &extensions);
        if let Some((peering, link)) = self.node.origin(&name, asking)? {
            return Ok(Response::new(peering.wait_there(&link, name)));
        }
        let listening = self.node.executions()?.wait(&name).await;
        let listening = listening.map_err(|error| status::exec_status(&error))?;
        Ok(Response::new(operations(self.node.clone(), listening, InlineHints::default())))
    }
}

impl ExecutionService {
    /// The operation of an action whose result is cached, done before it began.
    async fn cached(
        &self,
        executions: &Executions,
        blobs: &Blobs,
        instance: &str,
        action: Digest,
    ) -> Result<Option<OperationState>, Status> {
        let found = cached(&self.node, blobs, instance, action).await?;
        Ok(found.map(|result| OperationState {
            name: format!("{}:{}", executions.node_id(), uuid::Uuid::new_v4()).into(),
            action,
            stage: Stage::Completed,
            times: Default::default(),
            peer: None,
            outcome: Some(Arc::new(ExecuteOutcome {
                result: Some(result),
                error: None,
                cached: true,
            })),
        }))
    }
}

/// The operation now, and whenever it changes, until it is done.
fn operations(node: Node, listening: Listening, hints: InlineHints) -> OperationStream {
    let start = Some((node, listening, hints, true));
    stream::unfold(start, async |state| {
        let (node, mut listening, hints, first) = state?;
        if !first && listening.changed().await.is_err() {
            let message = "the operation was forgotten; execute again".to_owned();
            return Some((Err(status::retry(tonic::Code::Unavailable, message)), None));
        }
        let state = listening.borrow_and_update().clone();
        let operation = operation_of(&node, &state, &hints).await;
        let next = (!operation.done).then_some((node, listening, hints, false));
        Some((Ok(operation), next))
    })
    .boxed()
}

/// An operation without anything inlined, as the Operations service shows it.
pub(super) async fn plain_operation(node: &Node, state: &OperationState) -> Operation {
    operation_of(node, state, &InlineHints::default()).await
}

async fn operation_of(node: &Node, state: &OperationState, hints: &InlineHints) -> Operation {
    let stage = match state.stage {
        Stage::Queued => execution_stage::Value::Queued,
        Stage::Executing => execution_stage::Value::Executing,
        Stage::Completed => execution_stage::Value::Completed,
    };
    let own = node.executions.as_ref().map_or("", Executions::node_id);
    let worker = state.peer.as_deref().unwrap_or(own);
    let partial = match &state.outcome {
        Some(outcome) => outcome.result.as_ref().and_then(|done| done.execution_metadata.clone()),
        None => Some(state.times.metadata(worker)),
    };
    let metadata = ExecuteOperationMetadata {
        stage: stage as i32,
        action_digest: Some(to_wire(&state.action)),
        digest_function: digest_function::Value::Sha256 as i32,
        partial_execution_metadata: partial,
        ..ExecuteOperationMetadata::default()
    };
    let result = match &state.outcome {
        Some(outcome) => {
            let response = response_of(node, outcome, hints).await;
            Some(operation::Result::Response(any(&response)))
        }
        None => None,
    };
    Operation {
        name: state.name.to_string(),
        metadata: Some(any(&metadata)),
        done: result.is_some(),
        result,
    }
}

async fn response_of(
    node: &Node,
    outcome: &ExecuteOutcome,
    hints: &InlineHints,
) -> ExecuteResponse {
    let mut result = outcome.result.clone();
    if let Some(result) = &mut result {
        let InlineHints { stdout, stderr, files } = hints;
        let wanted = Inline { stdout: *stdout, stderr: *stderr, files };
        inline(&node.cores.clone().into(), result, &wanted).await;
    }
    let status = match &outcome.error {
        Some(error) => status::to_wire(&status::exec_status(error)),
        None => proto::rpc::Status::default(),
    };
    let message = status.message.clone();
    ExecuteResponse {
        result,
        cached_result: outcome.cached,
        message,
        status: Some(status),
        ..ExecuteResponse::default()
    }
}
