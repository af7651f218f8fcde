//! What the log says of clients that get nowhere: one line a minute for each reason, because they
//! come again and again. Must never be a way to fill a disk.

use std::{
    fmt,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Between two lines about the same.
const PAUSE: Duration = Duration::from_secs(60);

/// Why a client got nowhere.
#[derive(Clone, Copy, Debug)]
pub(super) enum Complaint {
    /// It speaks no TLS where TLS is spoken.
    ClearOnTls,
    /// It speaks TLS where none is.
    TlsOnClear,
    /// Its handshake, or its certificate, is not as it has to be.
    Refused,
}

impl Complaint {
    const COUNT: usize = 3;

    const fn remedy(self) -> &'static str {
        match self {
            Self::ClearOnTls => {
                "a client without TLS was refused: use grpcs:// there (tls.certificate is set here)"
            }
            Self::TlsOnClear => {
                "a client with TLS was refused: use grpc:// there, or set tls.certificate and \
                 tls.key here"
            }
            Self::Refused => "a TLS handshake failed",
        }
    }
}

/// All complaints of a node. Shared by all cores.
pub(super) struct Complaints {
    begun: Instant,
    lines: [Line; Complaint::COUNT],
}

#[derive(Default)]
struct Line {
    /// Milliseconds from the beginning until the next line may come.
    next: AtomicU64,
    /// Those of which nothing was said.
    untold: AtomicU64,
    /// All of them.
    all: AtomicU64,
}

impl Default for Complaints {
    fn default() -> Self {
        Self { begun: Instant::now(), lines: Default::default() }
    }
}

impl Complaints {
    /// Says it, unless the same was said a moment ago.
    pub(super) fn say(&self, complaint: Complaint, client: Option<SocketAddr>, why: &str) {
        let Some(untold) = self.turn(complaint, self.begun.elapsed()) else {
            return tracing::debug!(?client, why, "{}", complaint.remedy());
        };
        let client = client.as_ref().map_or(&"?" as &dyn fmt::Display, |client| client);
        tracing::warn!(%client, why, untold, "{}", complaint.remedy());
    }

    /// Clients that were refused, for whatever reason.
    pub(super) fn all(&self) -> u64 {
        self.lines.iter().map(|line| line.all.load(Ordering::Relaxed)).sum()
    }

    /// How many were passed over since the last line, where it is time for another.
    fn turn(&self, complaint: Complaint, now: Duration) -> Option<u64> {
        let line = &self.lines[complaint as usize];
        line.all.fetch_add(1, Ordering::Relaxed);
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let next = line.next.load(Ordering::Relaxed);
        let pause = u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX);
        let after = now.saturating_add(pause);
        let ours = now >= next
            && line
                .next
                .compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if !ours {
            line.untold.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(line.untold.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_repeated_once_a_minute_with_how_many_there_were() {
        let complaints = Complaints::default();
        for (seconds, complaint, expect) in [
            (0, Complaint::Refused, Some(0)),
            (1, Complaint::Refused, None),
            (2, Complaint::ClearOnTls, Some(0)),
            (59, Complaint::Refused, None),
            (60, Complaint::Refused, Some(2)),
            (61, Complaint::TlsOnClear, Some(0)),
            (119, Complaint::Refused, None),
            (500, Complaint::Refused, Some(1)),
        ] {
            let told = complaints.turn(complaint, Duration::from_secs(seconds));
            assert_eq!(told, expect, "{complaint:?} at {seconds} s");
        }
        assert_eq!(complaints.all(), 8);
    }
}
