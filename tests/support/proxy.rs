//! A TCP proxy whose faults are switched while it runs: what lies between a node and whatever it
//! talks to. Must never alter a byte that it passes.

use bytes::Bytes;
use rustix::net::sockopt::set_socket_linger;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc as std_mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way in one direction of one connection: what a delay may keep in flight.
const CHUNKS_MAX: usize = 64;
/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: u32 = 1024;
/// Slowness is made of this many steps a second.
const STEPS_PER_SECOND: u64 = 50;

/// What goes wrong. Connections that exist follow at once; what the proxy has read and not yet
/// passed on is subject to the new fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// As if the program behind had been killed: nobody listens (ECONNREFUSED), and connections
    /// that exist are reset.
    Refuse,
    /// Connections are accepted and stay open; nothing passes in either direction, no end either.
    Hang,
    /// Connections are accepted and reset; those that exist too.
    Reset,
    /// Each direction of each connection passes so much.
    Slow {
        /// At least 1.
        bytes_per_second: u64,
    },
    /// Each connection is reset once so many bytes went towards the client, counted from its
    /// start, or from this switch where it was open before.
    CutAfter {
        /// What the client gets at most.
        bytes: u64,
    },
    /// Each direction takes so much longer: a round trip twice that.
    Delay {
        /// One way.
        latency: Duration,
    },
    /// One direction passes, the other one does not.
    OneWay {
        /// Where bytes still go.
        towards: Towards,
    },
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// To whoever connected to the proxy.
    Client,
    /// To what the proxy stands before.
    Target,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    open: AtomicU64,
    to_client: AtomicU64,
    to_target: AtomicU64,
}

/// A switch, and whom to tell that it is thrown.
type Order = (Fault, std_mpsc::Sender<()>);

/// A running proxy. Dropped, it takes its connections with it.
pub struct FaultProxy {
    address: SocketAddr,
    orders: Option<mpsc::UnboundedSender<Order>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// One before `target`, on a port of 127.0.0.1, without a fault. The target need not be there
    /// yet: it is connected to anew for every connection.
    ///
    /// # Panics
    /// Where loopback has no port.
    #[must_use]
    pub fn start(target: SocketAddr) -> Self {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), target)
    }

    /// The same on an address of choice. Called inside `Space::enter`, it stays in there.
    ///
    /// # Panics
    /// Where the address can't be had.
    #[must_use]
    pub fn start_on(listen: SocketAddr, target: SocketAddr) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (ready, address) = std_mpsc::channel();
        let counts = Arc::new(Counts::default());
        let own = Arc::clone(&counts);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                // Bound and never listening, it keeps the port while nobody listens.
                let holder = socket(listen).expect("the proxy's address");
                let address = holder.local_addr().expect("a bound socket");
                ready.send(address).expect("the starter waits");
                accept(address, target, inbox, own).await;
                drop(holder);
            });
        };
        let thread = thread::Builder::new().name("proxy".into()).spawn(run).expect("a thread");
        let address = address.recv().expect("the proxy's address can be had");
        let proxy = Self { address, orders: Some(orders), counts, thread: Some(thread) };
        proxy.set(Fault::None); // it listens once this returns
        proxy
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Throws the switch. Bytes sent after this has returned meet the new fault.
    ///
    /// # Panics
    /// Where the proxy has died.
    pub fn set(&self, fault: Fault) {
        let (done, thrown) = std_mpsc::channel();
        let orders = self.orders.as_ref().expect("only a drop takes it");
        orders.send((fault, done)).expect("the proxy lives");
        thrown.recv().expect("the proxy lives");
    }

    /// Connections accepted so far, those that were reset at once too.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Bytes passed so far.
    #[must_use]
    pub fn bytes(&self, towards: Towards) -> u64 {
        self.counts.passed(towards).load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the proxy was printed where it happened.
            let _ = thread.join();
        }
    }
}

impl Counts {
    const fn passed(&self, towards: Towards) -> &AtomicU64 {
        match towards {
            Towards::Client => &self.to_client,
            Towards::Target => &self.to_target,
        }
    }
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Listens, or does not, until nobody can throw a switch any more.
async fn accept(
    address: SocketAddr,
    target: SocketAddr,
    mut inbox: mpsc::UnboundedReceiver<Order>,
    counts: Arc<Counts>,
) {
    let (switch, fault) = watch::channel(Fault::None);
    let mut listener: Option<TcpListener> = None;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            order = inbox.recv() => {
                let Some((fault, done)) = order else { return };
                if fault == Fault::Refuse {
                    listener = None;
                } else if listener.is_none() {
                    let listening = socket(address).and_then(|socket| socket.listen(BACKLOG));
                    listener = Some(listening.expect("the port is kept"));
                }
                switch.send_replace(fault);
                // Who throws the switch may be gone.
                let _ = done.send(());
            }
            accepted = next(listener.as_ref()) => {
                // An error is of a connection that its client has already given up.
                let Ok(client) = accepted else { continue };
                counts.connections.fetch_add(1, Ordering::Relaxed);
                let counts = Arc::clone(&counts);
                connections.spawn(connection(client, target, fault.clone(), counts));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn next(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

/// Counts a connection as open while it lives.
struct Open(Arc<Counts>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection ended by a reset, of one side or ours.
struct Broken;

async fn connection(
    mut client: TcpStream,
    target: SocketAddr,
    fault: watch::Receiver<Fault>,
    counts: Arc<Counts>,
) {
    counts.open.fetch_add(1, Ordering::Relaxed);
    let _open = Open(Arc::clone(&counts));
    // Every way out of here is a reset, except an end that both sides agree on.
    client.set_zero_linger().expect("an option that every socket has");
    let mut watched = fault.clone();
    let broken = async {
        watched.wait_for(|fault| matches!(fault, Fault::Refuse | Fault::Reset)).await.is_ok()
    };
    let passed = async {
        // While nothing may pass, the target does not hear of the client either.
        if fault.clone().wait_for(|fault| *fault != Fault::Hang).await.is_err() {
            return;
        }
        let Ok(mut server) = TcpStream::connect(target).await else { return };
        server.set_zero_linger().expect("an option that every socket has");
        // Latency is the fault's to add.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let there = pipe(from_client, to_server, Towards::Target, fault.clone(), &counts);
        let back = pipe(from_server, to_client, Towards::Client, fault.clone(), &counts);
        // The first reset ends both directions.
        if tokio::try_join!(there, back).is_ok() {
            // What is still on its way may arrive.
            for stream in [&client, &server] {
                set_socket_linger(stream, None).expect("an option that every socket has");
            }
        }
    };
    tokio::select! {
        biased;
        _ = broken => {}
        () = passed => {}
    }
}

/// Passes one direction, from the first byte to its end.
async fn pipe(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    towards: Towards,
    fault: watch::Receiver<Fault>,
    counts: &Counts,
) -> Result<(), Broken> {
    let (chunks, inbox) = mpsc::channel(CHUNKS_MAX);
    let read = read(from, chunks, fault.clone());
    let written = Passing { to, towards, fault, counts, left: None }.run(inbox);
    tokio::try_join!(read, written).map(|_| ())
}

/// A chunk with the time before which it may not arrive; the end is an empty one.
type Chunk = (Instant, Bytes);

async fn read(
    mut from: ReadHalf<'_>,
    chunks: mpsc::Sender<Chunk>,
    fault: watch::Receiver<Fault>,
) -> Result<(), Broken> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let len = from.read(&mut buffer).await.map_err(|_| Broken)?;
        let latency = match *fault.borrow() {
            Fault::Delay { latency } => latency,
            _ => Duration::ZERO,
        };
        let chunk = (Instant::now() + latency, Bytes::copy_from_slice(&buffer[..len]));
        chunks.send(chunk).await.map_err(|_| Broken)?;
        if len == 0 {
            return Ok(());
        }
    }
}

/// The writing side of one direction.
struct Passing<'a> {
    to: WriteHalf<'a>,
    towards: Towards,
    fault: watch::Receiver<Fault>,
    counts: &'a Counts,
    /// Until the cut, and the fault that said so.
    left: Option<(Fault, u64)>,
}

impl Passing<'_> {
    async fn run(mut self, mut inbox: mpsc::Receiver<Chunk>) -> Result<(), Broken> {
        while let Some((due, mut chunk)) = inbox.recv().await {
            sleep_until(due).await;
            if chunk.is_empty() {
                self.permitted(1).await?;
                self.to.shutdown().await.map_err(|_| Broken)?;
                return Ok(());
            }
            while !chunk.is_empty() {
                let len = self.permitted(chunk.len()).await?.min(chunk.len());
                let piece = chunk.split_to(len);
                self.to.write_all(&piece).await.map_err(|_| Broken)?;
                let len = u64::try_from(len).expect("a chunk");
                self.counts.passed(self.towards).fetch_add(len, Ordering::Relaxed);
                self.pause(len).await;
            }
        }
        Err(Broken)
    }

    /// Waits until something may pass, and says how much at once.
    async fn permitted(&mut self, wanted: usize) -> Result<usize, Broken> {
        loop {
            let fault = *self.fault.borrow_and_update();
            match fault {
                Fault::None | Fault::Delay { .. } => return Ok(wanted),
                Fault::OneWay { towards } if towards == self.towards => return Ok(wanted),
                Fault::Slow { bytes_per_second } => {
                    let step = (bytes_per_second / STEPS_PER_SECOND).max(1);
                    return Ok(usize::try_from(step).unwrap_or(usize::MAX));
                }
                Fault::CutAfter { bytes } => return self.before_cut(fault, bytes, wanted),
                Fault::Refuse | Fault::Reset => return Err(Broken),
                Fault::Hang | Fault::OneWay { .. } => {
                    self.fault.changed().await.map_err(|_| Broken)?;
                }
            }
        }
    }

    fn before_cut(&mut self, fault: Fault, bytes: u64, wanted: usize) -> Result<usize, Broken> {
        if self.towards == Towards::Target {
            return Ok(wanted);
        }
        let left = match self.left {
            Some((before, left)) if before == fault => left,
            _ => bytes,
        };
        let len = left.min(u64::try_from(wanted).expect("a chunk"));
        self.left = Some((fault, left - len));
        if len == 0 { Err(Broken) } else { Ok(usize::try_from(len).expect("a chunk")) }
    }

    /// After so many bytes, if it is to be slow.
    async fn pause(&mut self, len: u64) {
        let Fault::Slow { bytes_per_second } = *self.fault.borrow_and_update() else { return };
        let nanos = len.saturating_mul(1_000_000_000) / bytes_per_second.max(1);
        tokio::select! {
            () = sleep(Duration::from_nanos(nanos)) => {}
            // Another fault need not wait for the end of this one.
            _ = self.fault.changed() => {}
        }
    }
}
