//! An endless, or at least long enough, supply of operations for one row on one server. Must make
//! each operation cheaply: the client shares the machine with the server.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use prost::Message;
use proto::reapi;

use crate::{
    call::{Call, Expect},
    client::Method,
    payload::{Blob, Lane, Source, digest_of},
    rows::{BATCH_BLOB_LEN, BATCH_BLOBS, FIND_DIGESTS, Kind, LARGE_LEN, Row},
    setup::{Setup, encoded, result_key, unique},
};

/// Different requests of a row that repeats its requests, at most.
const REQUESTS: u64 = 100;
/// Different FindMissingBlobs requests: each is 0.7 MB.
const FIND_REQUESTS: u64 = 4;
/// Different blobs of a row that reads streams: small and large.
const STREAM_BLOBS: (u64, u64) = (1_000, 4);

/// One operation, ready to be sent.
#[derive(Clone)]
pub(crate) struct Shot {
    pub call: Call,
    pub expect: Expect,
    /// Payload that it sends, in bytes.
    pub sent: u64,
}

/// The operations of one row.
pub(crate) struct Work {
    row: Row,
    setup: Setup,
    supply: Supply,
    next: u64,
}

enum Supply {
    /// The same requests again and again, in turn.
    Repeat(Vec<Shot>),
    /// New blobs, in batches.
    Batches(Source),
    /// New blobs, as streams.
    Writes(Source),
    /// Actions that the server has and has not run, and what the next ones are made of.
    Actions { ready: VecDeque<Shot>, command: reapi::Digest, root: reapi::Digest },
}

impl Work {
    /// Uploads what the row needs.
    pub(crate) async fn prepare(row: Row, setup: Setup) -> Result<Self> {
        let supply = match row.kind {
            Kind::Capabilities => capabilities(&setup),
            Kind::FindMissing { present } => find_missing(&setup, present).await?,
            Kind::BatchRead => batch_read(&setup).await?,
            Kind::StreamRead { len } => stream_read(&setup, len).await?,
            Kind::ActionHit { outputs } => action_hit(&setup, row.name, outputs).await?,
            Kind::BatchUpdate => Supply::Batches(source(&setup, BATCH_BLOB_LEN)),
            Kind::StreamWrite { len } => Supply::Writes(source(&setup, len)),
            Kind::Execute { inputs } => {
                let (command, root) = setup.store_true(inputs).await?;
                Supply::Actions { ready: VecDeque::new(), command, root }
            }
        };
        Ok(Self { row, setup, supply, next: 0 })
    }

    /// Makes sure that `count` operations are there, which must be bounded for rows that write.
    pub(crate) async fn refill(&mut self, count: u64) -> Result<()> {
        let Supply::Actions { ready, command, root } = &mut self.supply else { return Ok(()) };
        let mut blobs = Vec::new();
        while (ready.len() as u64) < count {
            let action = Blob::whole(encoded(&reapi::Action {
                command_digest: Some(command.clone()),
                input_root_digest: Some(root.clone()),
                do_not_cache: true,
                salt: unique(self.setup.seed, self.row.name, self.next),
                ..Default::default()
            }));
            self.next += 1;
            let request = encoded(&reapi::ExecuteRequest {
                instance_name: self.setup.instance.clone(),
                action_digest: Some(action.digest.clone()),
                skip_cache_lookup: true,
                ..Default::default()
            });
            blobs.push(action);
            ready.push_back(Shot { call: Call::Execute(request), expect: Expect::Ran, sent: 0 });
        }
        self.setup.store(blobs).await.context("storing actions")
    }

    /// The next operation; none when the supply is used up.
    pub(crate) fn take(&mut self) -> Option<Shot> {
        if let Supply::Actions { ready, .. } = &mut self.supply {
            return ready.pop_front();
        }
        let at = self.next;
        self.next += 1;
        Some(match &self.supply {
            Supply::Actions { .. } => return None,
            Supply::Repeat(shots) => shots[(at % shots.len() as u64) as usize].clone(),
            Supply::Batches(source) => self.batch(source, at),
            Supply::Writes(source) => {
                let blob = source.blob(at);
                let size = blob.digest.size_bytes;
                let call = Call::Write(self.setup.write(&blob));
                Shot { call, expect: Expect::Committed(size), sent: size.unsigned_abs() }
            }
        })
    }

    fn batch(&self, source: &Source, at: u64) -> Shot {
        let count = BATCH_BLOBS as u64;
        let blobs = (at * count..(at + 1) * count).map(|index| source.blob(index)).collect();
        let call = Call::Unary(Method::BatchUpdateBlobs, self.setup.batch_update(blobs));
        let sent = (BATCH_BLOBS * BATCH_BLOB_LEN) as u64;
        Shot { call, expect: Expect::Stored { count: BATCH_BLOBS }, sent }
    }
}

fn source(setup: &Setup, len: usize) -> Source {
    Source::new(setup.seed, Lane::Fresh(len), len)
}

fn capabilities(setup: &Setup) -> Supply {
    let request = reapi::GetCapabilitiesRequest { instance_name: setup.instance.clone() };
    let call = Call::Unary(Method::GetCapabilities, encoded(&request));
    Supply::Repeat(vec![Shot { call, expect: Expect::Capabilities, sent: 0 }])
}

/// Blobs that are there: `count` of `len` bytes, from number 0 on.
async fn present(setup: &Setup, count: u64, len: usize) -> Result<Vec<reapi::Digest>> {
    let source = Source::new(setup.seed, Lane::Present, len);
    let mut digests = Vec::new();
    for first in (0..count).step_by(1_000) {
        let blobs: Vec<Blob> =
            (first..count.min(first + 1_000)).map(|index| source.blob(index)).collect();
        digests.extend(blobs.iter().map(|blob| blob.digest.clone()));
        setup.store(blobs).await.context("storing the blobs to be read")?;
    }
    Ok(digests)
}

async fn find_missing(setup: &Setup, is_present: bool) -> Result<Supply> {
    let there = if is_present {
        present(setup, FIND_DIGESTS as u64, BATCH_BLOB_LEN).await?
    } else {
        Vec::new()
    };
    let shot = |turn: u64| {
        let blob_digests = if is_present {
            there.clone()
        } else {
            let first = turn * FIND_DIGESTS as u64;
            let absent = |index| digest_of(&setup.seed.bytes(Lane::Absent, index, 1_000));
            (first..first + FIND_DIGESTS as u64).map(absent).collect()
        };
        let missing_blob_digests = if is_present { Vec::new() } else { blob_digests.clone() };
        let count = missing_blob_digests.len();
        let encoded_len = reapi::FindMissingBlobsResponse { missing_blob_digests }.encoded_len();
        let request = reapi::FindMissingBlobsRequest {
            instance_name: setup.instance.clone(),
            blob_digests,
            ..Default::default()
        };
        let call = Call::Unary(Method::FindMissingBlobs, encoded(&request));
        Shot { call, expect: Expect::Missing { count, encoded_len }, sent: 0 }
    };
    let turns = if is_present { 1 } else { FIND_REQUESTS };
    Ok(Supply::Repeat((0..turns).map(shot).collect()))
}

async fn batch_read(setup: &Setup) -> Result<Supply> {
    let digests = present(setup, REQUESTS * BATCH_BLOBS as u64, BATCH_BLOB_LEN).await?;
    let shot = |digests: &[reapi::Digest]| {
        let request = reapi::BatchReadBlobsRequest {
            instance_name: setup.instance.clone(),
            digests: digests.to_vec(),
            ..Default::default()
        };
        let call = Call::Unary(Method::BatchReadBlobs, encoded(&request));
        Shot { call, expect: Expect::Blobs { count: BATCH_BLOBS, len: BATCH_BLOB_LEN }, sent: 0 }
    };
    Ok(Supply::Repeat(digests.chunks(BATCH_BLOBS).map(shot).collect()))
}

async fn stream_read(setup: &Setup, len: usize) -> Result<Supply> {
    let count = if len < LARGE_LEN { STREAM_BLOBS.0 } else { STREAM_BLOBS.1 };
    let digests = present(setup, count, len).await?;
    let shot = |digest: reapi::Digest| {
        let call = Call::Read(setup.read(&digest));
        Shot { call, expect: Expect::Stream(digest), sent: 0 }
    };
    Ok(Supply::Repeat(digests.into_iter().map(shot).collect()))
}

async fn action_hit(setup: &Setup, row: &str, outputs: usize) -> Result<Supply> {
    let there = present(setup, REQUESTS * outputs as u64, BATCH_BLOB_LEN).await?;
    let mut shots = Vec::new();
    for (at, outputs) in (0..).zip(there.chunks(outputs)) {
        let key = result_key(setup.seed, row, at);
        setup.store_result(&key, outputs).await.context("storing an action result")?;
        let request = reapi::GetActionResultRequest {
            instance_name: setup.instance.clone(),
            action_digest: Some(key),
            ..Default::default()
        };
        let call = Call::Unary(Method::GetActionResult, encoded(&request));
        shots.push(Shot { call, expect: Expect::Outputs(outputs.len()), sent: 0 });
    }
    Ok(Supply::Repeat(shots))
}
