//! Connections whose peers do not play along, on an executor of a data core.

use super::*;
use crate::tls::{Tls, tests::opened};
use bytes::Bytes;
use engine::env::Env;
use futures_util::future::pending;
use glommio::LocalExecutorBuilder;
use http_body_util::Empty;
use std::{
    convert::Infallible,
    io::{Read, Write},
    net::TcpListener,
    thread,
};

/// Never replies.
#[derive(Clone)]
struct Mute;

impl Service<http::Request<Incoming>> for Mute {
    type Response = http::Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, _: http::Request<Incoming>) -> Self::Future {
        Box::pin(pending())
    }
}

/// How long a node that hangs up may take to do so before the test has failed.
const FAR: Duration = Duration::from_secs(30);
const NEAR: Duration = Duration::from_millis(50);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// POST / of http://x, on stream 1.
const REQUEST: &[u8] = b"\0\0\x06\x01\x04\0\0\0\x01\x83\x86\x84\x41\x01x";

/// Whether a peer that says this and falls silent is hung up on.
fn is_hung_up_on(said: &[&[u8]], patience: Patience, tls: Option<Tls>) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let control = ControlTimer::new(runtime.handle().clone());
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let clock = thread::spawn(move || runtime.block_on(ended));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (connections, mut queues) = Connections::new(1, 1);
    connections.hand_over(listener.accept().unwrap().0);
    connections.close();
    let opening = Opening { tls, handshakes_max: 1 };
    let accepted = Accepted { core: 0, queue: queues.remove(0), connections, opening };
    let grace = Duration::from_millis(1);
    let config = ServeConfig { streams_max: 10, header_bytes_max: 10_000, grace, patience };
    let (draining, drain) = watch::channel(false);
    let core = LocalExecutorBuilder::default()
        .spawn(move || async move {
            let queue = accepted.connections.clone();
            let alarms = Env::real().alarms.clone();
            let timer = Timers { control, alarms: alarms.clone() };
            let served = async {
                serve(accepted, config, drain, timer, Mute).await;
                while queue.open() > 0 {
                    alarms.sleep(NEAR).await;
                }
            };
            select(pin!(served), pin!(alarms.beat())).await;
        })
        .unwrap();
    said.iter().for_each(|said| peer.write_all(said).unwrap());
    peer.set_read_timeout(Some(FAR)).unwrap();
    let closed = peer.read_to_end(&mut Vec::new()).is_ok();
    drop((peer, draining));
    core.join().unwrap();
    drop(end);
    let _ = clock.join().unwrap();
    closed
}

#[test]
fn a_connection_without_a_request_is_given_up() {
    let patience = Patience { handshake: FAR, first_request: NEAR, ping_interval: FAR, pong: FAR };
    for said in [&[][..], &[PREFACE]] {
        assert!(is_hung_up_on(said, patience, None), "{said:?}");
    }
}

#[test]
fn a_peer_that_does_not_answer_is_given_up_even_while_it_is_served() {
    let patience = Patience { handshake: FAR, first_request: FAR, ping_interval: NEAR, pong: NEAR };
    assert!(is_hung_up_on(&[PREFACE, REQUEST], patience, None));
}

#[test]
fn a_handshake_that_does_not_go_on_is_given_up() {
    let (tls, _files) = opened();
    let patience = Patience { handshake: NEAR, first_request: FAR, ping_interval: FAR, pong: FAR };
    // A record that promises more than it brings.
    for said in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        assert!(is_hung_up_on(&[said], patience, Some(tls.clone())), "{said:?}");
    }
}

#[test]
fn who_speaks_otherwise_is_hung_up_on_at_once() {
    let (tls, _files) = opened();
    let patience = Patience { handshake: FAR, first_request: FAR, ping_interval: FAR, pong: FAR };
    assert!(is_hung_up_on(&[PREFACE], patience, Some(tls)));
    assert!(is_hung_up_on(&[b"\x16\x03\x01\x02\x00\x01"], patience, None));
}
