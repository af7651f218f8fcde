//! What the queue is told, and what it answers. Must never hold a rule: those are the queue's.

use crate::tier::backlog::{Item, log::Numbered};
use std::{sync::Arc, time::Duration};

/// Bounds of what is in flight.
#[derive(Clone, Copy, Debug)]
pub(in crate::tier::backlog) struct Config {
    /// Items that may be pending; beyond it pushes are refused.
    pub(in crate::tier::backlog) items_max: usize,
    /// Flights at the same time.
    pub(in crate::tier::backlog) flights_max: usize,
    /// Blobs in one flight.
    pub(in crate::tier::backlog) batch_len_max: usize,
    /// Bytes of all small blobs in one flight.
    pub(in crate::tier::backlog) batch_bytes_max: u64,
    /// Bytes up to which a blob is small: read whole, and sent together with others.
    pub(in crate::tier::backlog) small_bytes_max: u64,
}

/// What happened.
#[derive(Clone, Debug)]
pub(in crate::tier::backlog) enum Event {
    /// These lie on disk, in order of their numbers.
    Written(Vec<Numbered>),
    /// How a flight ended, for each of its items.
    Landed(Vec<(u64, Outcome)>),
    /// Nothing, but time went by.
    Tick,
}

/// How an attempt at one item ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::tier::backlog) enum Outcome {
    /// Below has it.
    Kept,
    /// This node does not have it any more.
    Lost,
    /// It will not be taken, now or soon.
    Refused(String),
    /// It was not taken this time.
    Failed {
        /// What is said about it.
        why: String,
        /// When below may be asked again, if it says.
        retry_after: Option<Duration>,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::tier::backlog) enum Effect {
    /// These are to be written below together: small blobs, or one of any other kind.
    Fly(Vec<Numbered>),
    /// These are settled and leave the disk.
    Settle(Vec<u64>),
    /// This can't be written any more.
    ReportLost(Arc<Item>),
    /// This was refused; further ones for a while are not reported.
    ReportRefused(Arc<Item>, String),
    /// Below is out, for the first time since it did something.
    ReportOutage(String),
    /// Below does something again.
    ReportRecovery,
}

/// Counts since the start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::tier::backlog) struct Counts {
    /// Items that were sent below, each time.
    pub(in crate::tier::backlog) attempts: u64,
    /// Those that were not taken.
    pub(in crate::tier::backlog) failures: u64,
    /// Items that below has.
    pub(in crate::tier::backlog) written: u64,
    /// Items that this node did not have any more.
    pub(in crate::tier::backlog) lost: u64,
}
