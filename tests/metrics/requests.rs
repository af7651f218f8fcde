//! Who asks for numbers, in good and in bad faith.

use crate::Counted;
use ringforge_tests::{Node, command};
use std::{
    io::{Read, Write},
    net::TcpStream,
};

const CACHE: (&str, &str) = ("EXECUTION__ENABLED", "false");

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_not_there_is_not_found_and_what_is_can_only_be_read() {
    let node = Counted::start(&[CACHE]).await;
    let long = "x".repeat(20_000);
    let many: String = (0..200).map(|at| format!("a-{at}: b\r\n")).collect();
    for (request, status) in [
        ("GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 200),
        ("GET /metrics?name=x HTTP/1.0\r\n\r\n".to_owned(), 200),
        ("GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 200),
        ("GET /readyz HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 200),
        ("HEAD /metrics HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 200),
        ("GET / HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 404),
        ("GET /metrics/ HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 404),
        ("GET /../metrics HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 404),
        ("DELETE / HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 404),
        ("POST /metrics HTTP/1.1\r\nHost: n\r\nContent-Length: 0\r\n\r\n".to_owned(), 405),
        ("PUT /healthz HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 405),
        ("DELETE /readyz HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), 405),
        ("GET /metrics HTTP/1.1\r\nHost: n\r\nContent-Length: 9\r\n\r\n".to_owned(), 413),
        (format!("GET /metrics HTTP/1.1\r\nHost: n\r\nlong: {long}\r\n\r\n"), 431),
        (format!("GET /metrics HTTP/1.1\r\nHost: n\r\n{many}\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\nHost: n\r\n\r\n"), 431),
        ("rubbish\r\n\r\n".to_owned(), 400),
    ] {
        let answer = node.ask(&request);
        let shown: String = request.chars().take(60).collect();
        assert_eq!(answer.status, status, "{shown:?} {answer:?}");
        let allowed = answer.headers.contains("allow: get, head");
        assert_eq!(allowed, status == 405, "{shown:?} {answer:?}");
        assert!(!request.starts_with("HEAD") || answer.body.is_empty(), "{answer:?}");
    }
    // It answered all of it, and is none the worse.
    assert_eq!(node.get("/healthz").body, "alive\n");
    assert_eq!(node.get("/readyz").body, "serving\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_only_holds_connections_open_keeps_nobody_out() {
    let node = Counted::start(&[CACHE]).await;
    let slow = || {
        let mut stream = TcpStream::connect(&node.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHo").unwrap();
        stream
    };
    let mut held: Vec<TcpStream> = (0..64).map(|_| slow()).collect();
    for _ in 0..3 {
        assert_eq!(node.get("/metrics").status, 200);
        held.push(slow());
    }
    // The first ones were closed for those that came after.
    let mut rest = Vec::new();
    assert!(matches!(held[0].read_to_end(&mut rest), Ok(0) | Err(_)), "{rest:?}");
}

#[test]
fn numbers_are_shown_where_that_is_asked_for_and_nowhere_else() {
    let parent = tempfile::tempdir().unwrap();
    let node = Node::start_with(&parent.path().join("store"), &[CACHE]);
    let second = parent.path().join("second");
    let taken = [CACHE, ("METRICS__LISTEN", &node.address())];
    let refused = command(&second, 0, &taken).output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("(metrics.listen)"), "{said}");
    assert!(!node.log().contains("/metrics"), "{}", node.log());
}
