//! The least speed of a stream. Must never count time in which nobody asked for more.

use engine::tier::{BelowError, BelowResult};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Bytes that a stream must bring within its patience. A server that brings a byte a second is as
/// good as one that brings none, and holds a place that others wait for.
pub(super) const PACE_BYTES: usize = 64 << 10;

/// How much patience is left with a stream.
#[derive(Debug)]
pub(super) struct Pace {
    patience: Duration,
    left: Duration,
    bytes: usize,
}

impl Pace {
    /// For a stream that may take `patience` for each [`PACE_BYTES`].
    pub(super) const fn new(patience: Duration) -> Self {
        Self { patience, left: patience, bytes: 0 }
    }

    /// Waits for the stream.
    ///
    /// # Errors
    /// [`BelowError::TimedOut`] once patience has run out.
    pub(super) async fn wait<T>(&mut self, step: impl Future<Output = T>) -> BelowResult<T> {
        let start = Instant::now();
        let done = timeout(self.left, step).await.map_err(|_| BelowError::TimedOut)?;
        self.left = self.left.saturating_sub(start.elapsed());
        Ok(done)
    }

    /// So many bytes went through.
    pub(super) const fn moved(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= PACE_BYTES {
            self.bytes = 0;
            self.left = self.patience;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_enough_bytes_bring_patience_back() {
        for (moves, bytes, patient) in [
            (0, 0, false),
            (9, 1, false),
            (9, PACE_BYTES / 10, false),
            (10, PACE_BYTES / 10 + 1, true),
            (1, PACE_BYTES, true),
            (1, usize::MAX, true),
        ] {
            let mut pace = Pace { left: Duration::ZERO, ..Pace::new(Duration::from_secs(9)) };
            (0..moves).for_each(|_| pace.moved(bytes));
            assert_eq!(pace.left, if patient { pace.patience } else { Duration::ZERO });
            // What is there already is taken without patience.
            assert!(pace.wait(async {}).await.is_ok());
        }
    }

    #[tokio::test]
    async fn waiting_uses_patience_up() {
        let patience = Duration::from_millis(20);
        let mut pace = Pace::new(patience);
        pace.wait(tokio::time::sleep(Duration::from_millis(5))).await.ok();
        assert!(pace.left < patience);
        let silent = pace.wait(std::future::pending::<()>()).await;
        assert!(matches!(silent, Err(BelowError::TimedOut)));
    }
}
