//! The one place that knows what time it is. Wall time must never decide anything: it is for
//! metadata only, because it jumps.

use std::time::{Duration, Instant, SystemTime};

/// Monotonic time since a start, and wall time for what is shown to people.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts at zero.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one legal place")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Monotonic time since the start.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one legal place")]
    pub fn now(&self) -> Duration {
        Instant::now().duration_since(self.start)
    }

    /// Monotonic whole seconds since the start, from 1: 0 is free to mean "never".
    #[must_use]
    pub fn seconds(&self) -> u32 {
        u32::try_from(self.now().as_secs()).unwrap_or(u32::MAX - 1).saturating_add(1)
    }

    /// Wall time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one legal place")]
    pub fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
