//! google.longrunning.Operations over this node's executions. Must never know of an operation
//! what the executions do not.

use super::{Node, execution::plain_operation};
use crate::{
    backing::channel::Connection,
    peer::{Asking, Link},
    status,
};
use engine::exec::Stage;
use futures_util::future::{Either, select};
use proto::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, Operation, WaitOperationRequest, operations_client::OperationsClient,
    operations_server::Operations,
};
use std::{pin::pin, time::Duration};
use tonic::{Request, Response, Status};

/// Operations in one answer, where the client asks for no fewer.
const PAGE_MAX: usize = 1000;
/// How long WaitOperation waits where the client does not say, and at most.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// The service.
#[derive(Clone)]
pub(crate) struct OperationsService {
    pub(crate) node: Node,
}

#[tonic::async_trait]
impl Operations for OperationsService {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let request = request.into_inner();
        if !request.filter.is_empty() {
            return Err(Status::unimplemented("operations can't be filtered"));
        }
        let asked = usize::try_from(request.page_size)
            .map_err(|_| Status::invalid_argument("page_size is negative"))?;
        let page = if asked == 0 { PAGE_MAX } else { asked.min(PAGE_MAX) };
        let listed = self.node.executions()?.list().await;
        let mut states = listed.map_err(|error| status::exec_status(&error))?;
        states.sort_by(|a, b| a.name.cmp(&b.name));
        // A token is the last name of the page before: it stays valid when operations go.
        states.retain(|state| *state.name > *request.page_token);
        let more = states.len() > page;
        states.truncate(page);
        let next_page_token = match states.last() {
            Some(last) if more => last.name.to_string(),
            _ => String::new(),
        };
        let mut operations = Vec::with_capacity(states.len());
        for state in &states {
            operations.push(plain_operation(&self.node, state).await);
        }
        Ok(Response::new(ListOperationsResponse { operations, next_page_token }))
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let asking = Asking::of(&metadata, &extensions);
        if let Some((peering, link)) = self.node.origin(&request.name, asking)? {
            let mut there = there(&link);
            return peering.ask_there(async move { there.get_operation(request).await }).await;
        }
        let listening = self.node.executions()?.wait(&request.name).await;
        let listening = listening.map_err(|error| status::exec_status(&error))?;
        let state = listening.borrow().clone();
        Ok(Response::new(plain_operation(&self.node, &state).await))
    }

    async fn delete_operation(
        &self,
        _: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("operations are forgotten by themselves"))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let asking = Asking::of(&metadata, &extensions);
        if let Some((peering, link)) = self.node.origin(&request.name, asking)? {
            let mut there = there(&link);
            return peering.ask_there(async move { there.cancel_operation(request).await }).await;
        }
        let cancelled = self.node.executions()?.cancel(&request.name).await;
        cancelled.map_err(|error| status::exec_status(&error))?;
        Ok(Response::new(()))
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let asking = Asking::of(&metadata, &extensions);
        if let Some((peering, link)) = self.node.origin(&request.name, asking)? {
            let mut there = there(&link);
            return peering.ask_there(async move { there.wait_operation(request).await }).await;
        }
        let asked = request.timeout.map(Duration::try_from);
        let wait = match asked {
            Some(Ok(asked)) => asked.min(WAIT_MAX),
            Some(Err(_)) => return Err(Status::invalid_argument("timeout is negative")),
            None => WAIT_MAX,
        };
        let listening = self.node.executions()?.wait(&request.name).await;
        let mut listening = listening.map_err(|error| status::exec_status(&error))?;
        {
            let done = pin!(listening.wait_for(|state| state.stage == Stage::Completed));
            match select(done, pin!(self.node.sleep(wait))).await {
                Either::Left(_) | Either::Right(_) => {}
            }
        }
        let state = listening.borrow().clone();
        Ok(Response::new(plain_operation(&self.node, &state).await))
    }
}

/// The same service of another node.
fn there(link: &Link) -> OperationsClient<Connection> {
    OperationsClient::new(link.connection.clone()).max_decoding_message_size(usize::MAX)
}
