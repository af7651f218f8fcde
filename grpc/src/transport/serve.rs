//! HTTP/2 on one core's connections. Bounds everything that a peer can make us keep.

use super::{
    accept::Connections,
    handshake::{Handshakes, Opened, Opening},
    timer::ControlTimer,
};
use crate::tls::ClientCertificate;
use engine::env::alarms::Alarms;
use futures_util::future::{Either, LocalBoxFuture, select};
use http_body::Body;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http2,
    service::Service,
};
use std::{
    cell::Cell,
    error::Error,
    net::TcpStream,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// What a stream may have in flight towards us, in bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The same for all streams of a connection: one stalled stream must not stall the others.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Largest frame we take: clients that honour it send large blobs in fewer frames.
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// What may wait for a slow reader, for each stream, in bytes.
const SEND_BUFFER_BYTES_MAX: usize = 1 << 20;
/// Streams that a peer may open and reset before they are looked at, after which it is cut off
/// (CVE-2023-44487); a build that is interrupted resets as many as it has at once.
const RESET_STREAMS_MAX: usize = 256;

/// How long a draining connection is without a stream before it is closed: what was written to it
/// may still be on its way to a slow reader.
const IDLE_BEFORE_CLOSE: Duration = Duration::from_millis(500);

/// Bounds that the configuration sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServeConfig {
    /// Streams that a peer may have open on one connection.
    pub(crate) streams_max: u32,
    /// Bytes of a request's headers.
    pub(crate) header_bytes_max: u32,
    /// How long connections may go on after the node began to drain.
    pub(crate) grace: Duration,
    /// What is expected of a peer that says nothing.
    pub(crate) patience: Patience,
}

/// How long a silent peer is waited for. One that is there costs little and may stay; one that is
/// gone, or came to hold a place, must not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For a handshake of TLS.
    pub(crate) handshake: Duration,
    /// Until the first request of a connection.
    pub(crate) first_request: Duration,
    /// Between two questions whether the peer is there.
    pub(crate) ping_interval: Duration,
    /// Until the answer.
    pub(crate) pong: Duration,
}

impl Patience {
    /// That of a node that serves.
    pub(crate) const LIVE: Self = Self {
        handshake: Duration::from_secs(10),
        first_request: Duration::from_secs(60),
        ping_interval: Duration::from_secs(60),
        pong: Duration::from_secs(20),
    };
}

/// What a core's connections wait by.
#[derive(Clone)]
pub(crate) struct Timers {
    /// For hyper, which wants timers that are `Send`.
    pub(crate) control: ControlTimer,
    /// For everything else.
    pub(crate) alarms: Alarms,
}

/// The connections that are handed to one core.
pub(crate) struct Accepted {
    /// Which core.
    pub(crate) core: u16,
    /// Where they come from.
    pub(crate) queue: async_channel::Receiver<TcpStream>,
    /// Where they are counted.
    pub(crate) connections: Connections,
    /// How they begin.
    pub(crate) opening: Opening,
}

/// Spawns on the executor of the calling thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        glommio::spawn_local(future).detach();
    }
}

/// Serves what arrives in `accepted` until that closes and every connection has ended.
pub(crate) async fn serve<S, B>(
    accepted: Accepted,
    config: ServeConfig,
    draining: watch::Receiver<bool>,
    timer: Timers,
    service: S,
) where
    S: Service<http::Request<Incoming>, Response = http::Response<B>> + Clone + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: 'static,
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let Accepted { core, queue, connections, opening } = accepted;
    let alarms = timer.alarms.clone();
    let handshakes = Rc::new(Handshakes::new(opening, connections.clone(), alarms.clone()));
    let open = Rc::new(Open::default());
    while let Ok(stream) = queue.recv().await {
        open.count.set(open.count.get() + 1);
        let (service, draining, timer) = (service.clone(), draining.clone(), timer.clone());
        let (open, connections) = (open.clone(), connections.clone());
        let handshakes = handshakes.clone();
        let connection = async move {
            let client = stream.peer_addr().ok();
            if let Some(opened) = opened(&handshakes, stream, config, draining.clone()).await {
                let first = opened.first.clone();
                serve_one(opened, config, draining, timer, service).await;
                handshakes.look_back(&first, client);
            }
            connections.closed(core);
            open.count.set(open.count.get() - 1);
            open.ended.notify_waiters();
        };
        glommio::spawn_local(connection).detach();
    }
    let all_ended = pin!(async {
        while open.count.get() > 0 {
            open.ended.notified().await;
        }
    });
    select(all_ended, pin!(alarms.sleep(config.grace))).await;
}

/// The connection that a socket becomes; `None` where it comes to nothing before the node drains.
async fn opened(
    handshakes: &Handshakes,
    stream: TcpStream,
    config: ServeConfig,
    mut draining: watch::Receiver<bool>,
) -> Option<Opened> {
    let drain = pin!(draining.wait_for(|draining| *draining));
    let opened = pin!(handshakes.open(stream, config.patience.handshake));
    match select(opened, drain).await {
        Either::Left((opened, _)) => opened,
        Either::Right(_) => None,
    }
}

/// Returns once a connection had no stream for a moment, in which one that was on its way would
/// have come.
async fn until_idle(streams: &Streams, alarms: &Alarms) {
    loop {
        let before = streams.open.get();
        alarms.sleep(IDLE_BEFORE_CLOSE).await;
        if before == 0 && streams.open.get() == 0 {
            return;
        }
    }
}

/// Returns once a connection was without any request for too long; never where it had one.
async fn until_given_up(streams: &Streams, alarms: &Alarms, first_request: Duration) {
    alarms.sleep(first_request).await;
    if streams.any.get() {
        std::future::pending::<()>().await;
    }
}

/// The streams of one connection.
#[derive(Default)]
struct Streams {
    /// Those whose reply has not ended.
    open: Cell<usize>,
    /// Whether there ever was one.
    any: Cell<bool>,
}

/// A service that counts its streams, and tells who asks.
struct Counted<S> {
    service: S,
    streams: Rc<Streams>,
    certificate: Option<ClientCertificate>,
}

/// One stream, counted as long as this lives.
struct Stream(Rc<Streams>);

impl Stream {
    fn begin(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        streams.any.set(true);
        Self(streams.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// A reply's body, and the stream that it ends.
struct CountedBody<B> {
    body: B,
    _stream: Stream,
}

impl<B: Body + Unpin> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<S, B> Service<http::Request<Incoming>> for Counted<S>
where
    S: Service<http::Request<Incoming>, Response = http::Response<B>>,
    S::Future: 'static,
{
    type Response = http::Response<CountedBody<B>>;
    type Error = S::Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, S::Error>>;

    fn call(&self, mut request: http::Request<Incoming>) -> Self::Future {
        let stream = Stream::begin(&self.streams);
        if let Some(certificate) = &self.certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        let reply = self.service.call(request);
        Box::pin(async move { Ok(reply.await?.map(|body| CountedBody { body, _stream: stream })) })
    }
}

/// Connections that one core has open.
#[derive(Default)]
struct Open {
    count: Cell<usize>,
    ended: Notify,
}

async fn serve_one<S, B>(
    opened: Opened,
    config: ServeConfig,
    mut draining: watch::Receiver<bool>,
    timer: Timers,
    service: S,
) where
    S: Service<http::Request<Incoming>, Response = http::Response<B>> + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: 'static,
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let streams = Rc::new(Streams::default());
    let Opened { wire, certificate, .. } = opened;
    let connection = http2::Builder::new(LocalExecutor)
        .timer(timer.control)
        .keep_alive_interval(config.patience.ping_interval)
        .keep_alive_timeout(config.patience.pong)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_concurrent_streams(config.streams_max)
        .max_header_list_size(config.header_bytes_max)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(RESET_STREAMS_MAX)
        .serve_connection(wire, Counted { service, streams: streams.clone(), certificate });
    let mut connection = pin!(connection);
    let drain = pin!(draining.wait_for(|draining| *draining));
    let given_up = pin!(until_given_up(&streams, &timer.alarms, config.patience.first_request));
    let ended = match select(connection.as_mut(), select(drain, given_up)).await {
        Either::Left((ended, _)) => ended,
        Either::Right((Either::Right(_), _)) => {
            tracing::debug!("a connection without a request was given up");
            return;
        }
        Either::Right((Either::Left(_), _)) => {
            connection.as_mut().graceful_shutdown();
            // The peer of an idle connection may be asleep: nobody waits for its answer.
            match select(connection, pin!(until_idle(&streams, &timer.alarms))).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        // A peer that went away is an everyday event.
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests;
