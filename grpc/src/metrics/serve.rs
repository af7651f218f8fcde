//! The listener where numbers are asked for, by HTTP/1. Whoever can reach it may read them and
//! nothing else. Must never hold more than its bounds say, whoever asks and however slowly.

use super::{Collector, page::Page};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use http_body::Body;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::TEXT_FORMAT;
use std::{collections::VecDeque, convert::Infallible, rc::Rc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, spawn_local},
    time::{sleep, timeout},
};

/// Connections at once. One more ends the oldest, so that whoever only holds connections open
/// keeps nobody else out.
const CONNECTIONS_MAX: usize = 16;
/// Bytes of one request's line and headers; hyper takes no smaller bound.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Headers of one request.
const HEADERS_MAX: usize = 64;
/// Until the last byte of a request's headers.
const HEADER_WAIT: Duration = Duration::from_secs(5);
/// From the first byte to the last one of the answer. Each connection is asked once.
const CONNECTION_WAIT: Duration = Duration::from_secs(15);
/// How long to wait when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const PLAIN: &str = "text/plain; charset=utf-8";

/// What is asked here.
struct Site {
    collectors: Vec<Box<dyn Collector>>,
    draining: watch::Receiver<bool>,
}

/// Serves as long as it is polled, within a `LocalSet`: while the node drains, too. Without a
/// listener there is nothing to do.
pub(crate) async fn serve(
    listener: Option<std::net::TcpListener>,
    collectors: Vec<Box<dyn Collector>>,
    draining: watch::Receiver<bool>,
) {
    let Some(listener) = listener else { return };
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "metrics can't be served"),
    };
    let site = Rc::new(Site { collectors, draining });
    let mut open = VecDeque::with_capacity(CONNECTIONS_MAX);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                make_room(&mut open);
                open.push_back(spawn_local(serve_one(site.clone(), stream)));
            }
            Err(error) => {
                tracing::warn!(%error, "accept, metrics");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn make_room(open: &mut VecDeque<JoinHandle<()>>) {
    open.retain(|connection| !connection.is_finished());
    if open.len() >= CONNECTIONS_MAX
        && let Some(oldest) = open.pop_front()
    {
        oldest.abort();
    }
}

async fn serve_one(site: Rc<Site>, stream: TcpStream) {
    let answer = |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(&request).await) }
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    match timeout(CONNECTION_WAIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics ended"),
        Err(_) => tracing::debug!("a connection for metrics took too long"),
    }
}

impl Site {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
            return plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        if !request.body().is_end_stream() {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "a question has no body here\n");
        }
        match path {
            "/healthz" => plain(StatusCode::OK, "alive\n"),
            "/readyz" if *self.draining.borrow() => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
            }
            "/readyz" => plain(StatusCode::OK, "serving\n"),
            _ => self.page().await,
        }
    }

    async fn page(&self) -> Response<Full<Bytes>> {
        let mut page = Page::default();
        for collector in &self.collectors {
            collector.collect(&mut page).await;
        }
        match page.into_text() {
            Ok(text) => reply(StatusCode::OK, TEXT_FORMAT, text.into()),
            Err(error) => {
                tracing::error!(%error, "metrics can't be written");
                plain(StatusCode::INTERNAL_SERVER_ERROR, "the page can't be written\n")
            }
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    reply(status, PLAIN, Bytes::from_static(text.as_bytes()))
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // What was true a moment ago is of no use to anybody.
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
