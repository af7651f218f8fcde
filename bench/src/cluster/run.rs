//! Actions for a cluster, and what became of each. Must count none as run that a cache answered.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message;
use proto::{longrunning, reapi};

use crate::{
    client::{Client, Method},
    payload::Blob,
    setup::{Setup, encoded, unique},
};

/// Makes actions that no other one equals.
pub(super) struct Actions {
    setup: Setup,
    root: reapi::Digest,
    next: u64,
}

/// An action that ran.
#[derive(Debug)]
pub(super) struct Ran {
    /// From the request to the end of its stream.
    pub(super) took: Duration,
    /// Who ran it.
    pub(super) worker: String,
    /// When that one began with it and was done, by its own clock.
    pub(super) started: SystemTime,
    pub(super) completed: SystemTime,
}

impl Actions {
    /// Uploads what all of them need.
    pub(super) async fn prepare(setup: Setup) -> Result<Self> {
        let (_, root) = setup.store_true(1).await?;
        Ok(Self { setup, root, next: 0 })
    }

    pub(super) fn client(&self) -> Client {
        self.setup.client.clone()
    }

    /// Requests for so many runs of `/bin/true`.
    pub(super) async fn tiny(&mut self, count: u64) -> Result<Vec<Bytes>> {
        self.store(vec!["/bin/true".to_owned()], count).await
    }

    /// Requests for so many actions that take so many seconds.
    pub(super) async fn long(&mut self, count: u64, seconds: u64) -> Result<Vec<Bytes>> {
        self.store(vec!["/bin/sleep".to_owned(), seconds.to_string()], count).await
    }

    async fn store(&mut self, arguments: Vec<String>, count: u64) -> Result<Vec<Bytes>> {
        let command = Blob::whole(encoded(&reapi::Command { arguments, ..Default::default() }));
        let mut requests = Vec::new();
        let mut blobs = vec![command.clone()];
        for _ in 0..count {
            let action = Blob::whole(encoded(&reapi::Action {
                command_digest: Some(command.digest.clone()),
                input_root_digest: Some(self.root.clone()),
                do_not_cache: true,
                salt: unique(self.setup.seed, "cluster", self.next),
                ..Default::default()
            }));
            self.next += 1;
            requests.push(encoded(&reapi::ExecuteRequest {
                instance_name: self.setup.instance.clone(),
                action_digest: Some(action.digest.clone()),
                skip_cache_lookup: true,
                ..Default::default()
            }));
            blobs.push(action);
        }
        self.setup.store(blobs).await.context("storing actions")?;
        Ok(requests)
    }
}

/// Executes and waits for the end of the stream.
pub(super) async fn run(client: &Client, request: Bytes) -> Result<Ran> {
    let began = Instant::now();
    let mut stream = client.download(Method::Execute, request).await?;
    let mut last = None;
    // Ends with the server's stream.
    while let Some(message) = stream.next().await? {
        last = Some(message);
    }
    let took = began.elapsed();
    ran(took, last.context("Execute ended without any operation")?)
}

fn ran(took: Duration, operation: Bytes) -> Result<Ran> {
    let operation = longrunning::Operation::decode(operation)?;
    let Some(longrunning::operation::Result::Response(any)) = operation.result else {
        anyhow::bail!("Execute ended without a response");
    };
    let response = reapi::ExecuteResponse::decode(any.value.as_slice())?;
    let status = response.status.unwrap_or_default();
    ensure!(status.code == 0, "Execute ended with code {}: {}", status.code, status.message);
    ensure!(!response.cached_result, "Execute answered from the cache, and ran nothing");
    let result = response.result.context("Execute gave no result")?;
    ensure!(result.exit_code == 0, "the program ended with {}", result.exit_code);
    let metadata = result.execution_metadata.context("a result without metadata")?;
    let at = |time: Option<prost_types::Timestamp>| {
        let time = time.context("a result without the times of its worker")?;
        SystemTime::try_from(time).context("a time that is none")
    };
    Ok(Ran {
        took,
        worker: metadata.worker,
        started: at(metadata.worker_start_timestamp)?,
        completed: at(metadata.worker_completed_timestamp)?,
    })
}
