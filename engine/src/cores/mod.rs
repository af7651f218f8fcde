//! One CPU each: a store, an inbox, a pump; and the handle through which all others ask.
//!
//! Invariants:
//! - submission is synchronous; only the reply is awaited;
//! - a core never asks another core while serving;
//! - one path: a request to this very core goes through its inbox too;
//! - nothing is spawned; requests and uploads in service are bounded.

mod fill;
mod follow;
mod handle;
pub mod placement;
mod pump;
mod request;
mod start;
mod stream;

pub(crate) use self::handle::LossCounter;
pub use self::{
    fill::{Fill, Growing},
    handle::Cores,
    request::{CoreCounts, InboxCounts, StoredAction},
    start::{CoreContext, Front, RunningCores, StartError, WaitingCores, prepare, start},
    stream::{BlobReader, Upload},
};
