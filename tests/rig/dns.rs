//! The DNS server, asked by a client that knows the wire as little as it does.

use ringforge_tests::dns::{Dns, Mood};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    time::Duration,
};

const A: u8 = 1;
const AAAA: u8 = 28;

/// Code and addresses.
fn asked(dns: &Dns, name: &str, kind: u8) -> Option<(u8, Vec<IpAddr>)> {
    asked_for(dns, name, kind, Duration::from_secs(60))
}

fn asked_for(dns: &Dns, name: &str, kind: u8, patience: Duration) -> Option<(u8, Vec<IpAddr>)> {
    let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, kind, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send_to(&query, dns.address()).unwrap();
    let mut answer = [0; 512];
    let len = socket.recv(&mut answer).ok()?;
    assert_eq!(answer[..2], query[..2], "the identity of the question");
    let mut addresses = Vec::new();
    let mut rest = &answer[query.len()..len];
    for _ in 0..answer[7] {
        let len = usize::from(rest[11]);
        let bytes = &rest[12..12 + len];
        addresses.push(match <[u8; 4]>::try_from(bytes) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
        });
        rest = &rest[12 + len..];
    }
    assert_eq!(rest, b"", "nothing after the last answer");
    Some((answer[3] & 15, addresses))
}

#[test]
fn answers_change_while_it_runs() {
    let dns = Dns::start();
    let v4 = |i| IpAddr::from(Ipv4Addr::new(10, 77, 0, i));
    let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    assert_eq!(asked(&dns, "nodes.test", A), Some((3, vec![])));
    dns.set("nodes.test", &[v4(1), v6, v4(2)]);
    assert_eq!(asked(&dns, "Nodes.TEST", A), Some((0, vec![v4(1), v4(2)])));
    assert_eq!(asked(&dns, "nodes.test", AAAA), Some((0, vec![v6])));
    dns.set("nodes.test", &[v4(3)]);
    assert_eq!(asked(&dns, "nodes.test", A), Some((0, vec![v4(3)])));
    assert_eq!(asked(&dns, "nodes.test", AAAA), Some((0, vec![])));
    dns.mood(Mood::Fails);
    assert_eq!(asked(&dns, "nodes.test", A), Some((2, vec![])));
    dns.mood(Mood::Silent);
    assert_eq!(asked_for(&dns, "nodes.test", A, Duration::from_millis(200)), None);
    dns.mood(Mood::Answers);
    dns.remove("nodes.test");
    assert_eq!(asked(&dns, "nodes.test", A), Some((3, vec![])));
    assert_eq!(dns.asked("nodes.test"), 8);
}
