//! Operations by their names: one of another node is asked for there. Must never ask a third node,
//! and never say of an operation whose node is gone more than that it is not there.

use super::{Asking, Link, Peering};
use futures_util::stream::{self, StreamExt};
use proto::{
    longrunning::Operation,
    reapi::{WaitExecutionRequest, execution_client::ExecutionClient},
};
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// Messages of an operation on their way through this node.
const MESSAGES_MAX: usize = 16;

/// A stream of operations, from wherever.
pub(crate) type Operations = stream::BoxStream<'static, Result<Operation, Status>>;

impl Peering {
    /// The way to the node that has an operation; `None` where that is this one.
    ///
    /// # Errors
    /// NOT_FOUND where no such node is known, and where a peer asks for another's.
    pub(crate) fn origin(
        &self,
        operation: &str,
        asking: Asking<'_>,
    ) -> Result<Option<Arc<Link>>, Status> {
        let gone = || {
            let message = format!("no node has the operation {operation:?}; execute again");
            Status::not_found(crate::status::short(message))
        };
        match operation.split_once(':') {
            Some((node, _)) if node == &**self.node_id() => Ok(None),
            // Malformed: this node says so.
            None => Ok(None),
            Some(_) if self.caller(asking)?.is_some() => Err(gone()),
            Some((node, _)) => self.link(node).map(Some).ok_or_else(gone),
        }
    }

    /// The operation's life as its node tells it.
    pub(crate) fn wait_there(&self, link: &Link, name: String) -> Operations {
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let mut client =
            ExecutionClient::new(link.connection.clone()).max_decoding_message_size(usize::MAX);
        self.runtime().spawn(async move {
            let request = WaitExecutionRequest { name };
            let mut stream = match client.wait_execution(request).await {
                Ok(response) => response.into_inner(),
                Err(status) => return drop(sender.send(Err(relayed(&status))).await),
            };
            loop {
                let message = match stream.message().await {
                    Ok(Some(operation)) => Ok(operation),
                    Ok(None) => return,
                    Err(status) => Err(relayed(&status)),
                };
                let ended = message.is_err();
                // An error means that the client is gone.
                if sender.send(message).await.is_err() || ended {
                    return;
                }
            }
        });
        let messages = stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|message| (message, receiver))
        });
        messages.boxed()
    }

    /// One call to the node that has an operation.
    ///
    /// # Errors
    /// What it says, or UNAVAILABLE.
    pub(crate) async fn ask_there<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>> + Send + 'static,
    ) -> Result<tonic::Response<T>, Status> {
        match self.runtime().spawn(call).await {
            Ok(answer) => answer.map_err(|status| relayed(&status)),
            // The runtime is ending, and with it this node.
            Err(_) => Err(crate::status::retry(Code::Unavailable, "the node stops".to_owned())),
        }
    }
}

/// A status of another node, to a client: what broke on the way may be tried again.
fn relayed(status: &Status) -> Status {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Internal if status.details().is_empty() => {
            crate::status::retry(Code::Unavailable, status.message().to_owned())
        }
        code => Status::with_details(code, status.message(), status.details().to_vec().into()),
    }
}
