//! Clients that speak otherwise than the port, or do not go on.

use crate::Place;
use ringforge_tests::{Node, client::Client, cluster::eventually, until};
use std::{
    io::{Read, Write},
    net::TcpStream,
};

#[tokio::test]
async fn who_speaks_otherwise_than_the_port_is_closed_with_one_line_that_names_the_remedy() {
    let place = Place::new();
    let secured = place.node(&place.settings("server", "none"));
    let clear = Node::start(&place.directory.path().join("clear"));
    let trust = place.certificates.client("ca", None);
    for _ in 0..5 {
        Client::lazy(&secured.address()).answers().await.unwrap_err();
        Client::secured(&clear.address(), trust.clone()).answers().await.unwrap_err();
    }
    for (node, line, remedy) in [
        (&secured, "a client without TLS was refused", "use grpcs://"),
        (&clear, "a client with TLS was refused", "set tls.certificate and tls.key"),
    ] {
        until("it is said", || node.log().contains(line));
        let log = node.log();
        let said: Vec<_> = log.lines().filter(|said| said.contains(line)).collect();
        assert_eq!(said.len(), 1, "{log}");
        assert!(said[0].contains(remedy) && said[0].contains("127.0.0.1:"), "{log}");
    }
    Client::secured(&secured.address(), trust).answers().await.unwrap();
    Client::lazy(&clear.address()).answers().await.unwrap();
}

#[tokio::test]
async fn handshakes_that_do_not_go_on_stand_in_nobodys_way() {
    let place = Place::new();
    let mut settings = place.settings("server", "none");
    settings.push(("SERVER__CONNECTIONS_MAX".to_owned(), "20".to_owned()));
    let node = place.node(&settings);
    let client = Client::secured(&node.address(), place.certificates.client("ca", None));
    let mut held = Vec::new();
    for turn in 0_usize..60 {
        let mut stream = TcpStream::connect(node.address()).unwrap();
        // Nothing, a record's header, and one that promises more than it brings.
        let begun: &[u8] =
            [&b""[..], b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01"][turn % 3];
        stream.write_all(begun).unwrap();
        held.push(stream);
        if turn % 10 == 9 {
            let fresh = Client::secured(&node.address(), place.certificates.client("ca", None));
            // What was given up to make room may take a moment to be gone.
            eventually("it is let in", async || fresh.answers().await.is_ok()).await;
        }
    }
    client.answers().await.unwrap();
}

#[test]
fn what_is_no_handshake_is_closed_and_who_only_looks_is_not_worth_a_line() {
    let place = Place::new();
    let node = place.node(&place.settings("server", "verify"));
    for said in [&b""[..], b"\x16", b"\x16\x03\x01"] {
        let mut stream = TcpStream::connect(node.address()).unwrap();
        stream.write_all(said).unwrap();
        drop(stream);
    }
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x00\x02\xff\xff", &[0x16; 99_999]] {
        let mut stream = TcpStream::connect(node.address()).unwrap();
        // An error means that it was closed meanwhile.
        let _ = stream.write_all(said);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 100, "{answer:?}");
    }
    let log = node.log();
    assert_eq!(log.matches("WARN").count(), 2, "{log}");
    assert!(node.stop().success());
}
