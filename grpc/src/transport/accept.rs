//! One listener for all cores: each connection goes to the core that has the fewest. Clients of
//! this protocol open few and keep them long, so the kernel's hashing would leave cores idle.
//! Must never hold more connections than its bound.

use super::complaints::Complaints;
use crossbeam_utils::CachePadded;
use socket2::{SockRef, TcpKeepalive};
use std::{
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch};

/// Accepted connections that wait for their core.
const HANDED_OVER_MAX: usize = 64;
/// How long a peer may be silent before the kernel asks whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long to wait when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where accepted connections go: one queue for each core, and how many each serves.
#[derive(Clone)]
pub(crate) struct Connections {
    queues: Arc<[async_channel::Sender<TcpStream>]>,
    counts: Arc<[CachePadded<AtomicUsize>]>,
    connections_max: usize,
    passed: Arc<Passed>,
}

/// What came by since the start.
#[derive(Default)]
struct Passed {
    accepted: AtomicU64,
    refused: AtomicU64,
    complaints: Complaints,
}

/// Connections at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionCounts {
    /// Those that are open.
    pub(crate) open: usize,
    /// As many may be.
    pub(crate) open_max: usize,
    /// Those that were given to a core since the start.
    pub(crate) accepted: u64,
    /// Those that were closed instead.
    pub(crate) refused: u64,
    /// Those that began otherwise than they have to here: TLS, or a certificate.
    pub(crate) strange: u64,
}

impl Connections {
    /// The sending side, and the receiving side of each core.
    pub(crate) fn new(
        cores: u16,
        connections_max: usize,
    ) -> (Self, Vec<async_channel::Receiver<TcpStream>>) {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..cores).map(|_| async_channel::bounded(HANDED_OVER_MAX)).unzip();
        let counts = (0..cores).map(|_| CachePadded::default()).collect();
        let passed = Arc::default();
        (Self { queues: senders.into(), counts, connections_max, passed }, receivers)
    }

    /// Hands a connection to the least-loaded core; closes it where all are full.
    pub(super) fn hand_over(&self, stream: TcpStream) {
        let loads = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let Some((core, _)) = loads.clone().enumerate().min_by_key(|(_, load)| *load) else {
            return;
        };
        if loads.sum::<usize>() >= self.connections_max {
            self.passed.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(limit = self.connections_max, "connection refused: too many");
            return;
        }
        self.counts[core].fetch_add(1, Ordering::Relaxed);
        if self.queues[core].try_send(stream).is_err() {
            self.counts[core].fetch_sub(1, Ordering::Relaxed);
            self.passed.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(core, "connection refused: its core is too far behind");
            return;
        }
        self.passed.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there are and were.
    pub(crate) fn counts(&self) -> ConnectionCounts {
        ConnectionCounts {
            open: self.open(),
            open_max: self.connections_max,
            accepted: self.passed.accepted.load(Ordering::Relaxed),
            refused: self.passed.refused.load(Ordering::Relaxed),
            strange: self.passed.complaints.all(),
        }
    }

    /// What is said of clients that get nowhere.
    pub(super) fn complaints(&self) -> &Complaints {
        &self.passed.complaints
    }

    /// Connections that are open, on all cores.
    pub(crate) fn open(&self) -> usize {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Tells every core that no further connection comes. The accepting task may end unheard, so
    /// whoever stops the node says it too.
    pub(crate) fn close(&self) {
        for queue in self.queues.iter() {
            queue.close();
        }
    }

    /// A core is done with a connection.
    pub(crate) fn closed(&self, core: u16) {
        self.counts[usize::from(core)].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts until `draining` says so.
pub(crate) async fn accept(
    listener: TcpListener,
    connections: Connections,
    mut draining: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => {
                if let Err(error) = tune(&stream) {
                    tracing::debug!(%error, "socket options");
                }
                connections.hand_over(stream);
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
}

fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    // Paced congestion control, a common default, halves what one CPU sends on fast networks.
    socket.set_tcp_congestion(b"cubic")
}
