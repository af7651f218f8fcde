//! The bounds of the layer around one tier. Must never hold a default: those stand in the
//! configuration, where people read them.

use super::{breaker::BreakerConfig, latency::HedgeConfig, retry::RetryConfig};
use std::time::Duration;

/// How one tier is guarded.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    /// Where the chance of pauses comes from.
    pub seed: u64,
    /// What a whole call may take, waiting and retries included; of a stream, what may pass until
    /// its first piece, and between its last piece and the acknowledgement.
    pub timeout: Duration,
    /// What may pass until the next piece of a stream.
    pub idle_timeout: Duration,
    /// Calls in flight, streams being read included.
    pub concurrency_max: usize,
    /// Calls that may wait for their turn; further ones are refused as busy.
    pub waiting_max: usize,
    /// When the tier counts as down.
    pub breaker: BreakerConfig,
    /// How failed questions are asked again.
    pub retry: RetryConfig,
    /// How slow questions are asked twice.
    pub hedge: HedgeConfig,
}
