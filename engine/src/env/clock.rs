//! The one place that knows what time it is. Wall time must never decide anything: it is for
//! metadata only, because it jumps.

use std::time::{Duration, Instant, SystemTime};

/// [`Clock::seconds`] at the start: what was used before it has a time as well.
const SECONDS_AT_START: u32 = 1 << 30;

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

    /// Monotonic whole seconds; 0 is free to mean "never".
    #[must_use]
    pub fn seconds(&self) -> u32 {
        let since = u32::try_from(self.now().as_secs()).unwrap_or(u32::MAX);
        SECONDS_AT_START.saturating_add(since)
    }

    /// What [`Clock::seconds`] would have been this long before the start; at least 1.
    #[must_use]
    pub fn seconds_before_start(age: Duration) -> u32 {
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        SECONDS_AT_START.saturating_sub(age).max(1)
    }

    /// Wall time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one legal place")]
    pub fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
