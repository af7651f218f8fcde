//! What lies below this node: another cache that knows more, asked on a miss, told of what is kept.
//!
//! Invariant: no byte from below is served before it went through its digest's hash, and no blob
//! ends well whose hash differs.
//! Invariant: nothing here is awaited by a core's pump: a tier that hangs costs the request that
//! asked, not a slot of a core.

pub mod action_cache;
mod backlog;
mod batch;
mod below;
mod blobs;
mod counts;
mod fetch;
mod guard;
mod handle;
mod local;
mod memory;
mod push;
mod serve;

pub use self::{
    backlog::{
        Backlog, BacklogConfig, BacklogError, BacklogSnapshot, Drain, Item, Local, StoredResult,
    },
    below::{Below, BelowError, BelowResult, Incoming, Outgoing},
    blobs::{Backing, Blobs, WriteMode},
    counts::{Count, TierCounts},
    guard::{
        AnswerTimes, BreakerConfig, BreakerState, GuardConfig, Guarded, Health, HedgeConfig,
        Question, RetryConfig,
    },
    handle::{Following, Tier},
    local::LocalBlobs,
    push::outgoing,
    serve::TierConfig,
};
