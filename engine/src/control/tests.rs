//! Several nodes in one process, on real sockets of 127.0.0.1 and ::1. Must never measure time:
//! each waits until it is so, or fails after a minute.

use super::*;
use std::{
    io::Write,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
};
use tokio::{sync::watch, task::LocalSet, time::Instant};

const V4: std::net::IpAddr = std::net::IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: std::net::IpAddr = std::net::IpAddr::V6(Ipv6Addr::LOCALHOST);
const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const KEY_2: &str = "AQAAAAAAAAAAAAAAAAAAAA==";

struct Node {
    membership: Rc<Membership>,
    peers: Peers,
    own: watch::Sender<OwnState>,
    running: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(config: ClusterConfig) -> Self {
        let (own, seen) = watch::channel(OwnState { slots: 4, ..OwnState::default() });
        let (peers, membership) = start(config, seen).await.unwrap();
        let membership = Rc::new(membership);
        let runs = membership.clone();
        let running = tokio::task::spawn_local(async move { runs.run().await });
        Self { membership, peers, own, running }
    }

    /// As if the machine had lost power.
    async fn kill(self) {
        self.running.abort();
        self.membership.stop().await;
    }

    async fn leave(self) {
        self.membership.leave(Duration::from_secs(5)).await;
        self.running.abort();
    }

    fn sees(&self, ids: &[&str]) -> bool {
        let snapshot = self.peers.snapshot();
        let all = snapshot.peers.values().all(|peer| peer.state.is_some());
        all && snapshot.peers.keys().map(|id| &**id).eq(ids.iter().copied())
    }
}

/// An address where nobody listens, neither by TCP nor by UDP.
fn free(ip: std::net::IpAddr) -> SocketAddr {
    loop {
        let tcp = TcpListener::bind((ip, 0)).unwrap();
        let address = tcp.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

fn config(id: &str, listen: SocketAddr, seeds: &[SocketAddr]) -> ClusterConfig {
    ClusterConfig {
        node_id: id.into(),
        listen,
        advertise: None,
        endpoint: format!("{id}:8980"),
        seeds: seeds.iter().map(|seed| seed.to_string().parse().unwrap()).collect(),
        resolve_every: Duration::from_secs(1),
        keys: Vec::new(),
        started: 1000,
        version: "0".to_owned(),
        wire: WIRE,
    }
}

fn with_keys(config: ClusterConfig, keys: &[&str]) -> ClusterConfig {
    ClusterConfig { keys: keys.iter().map(|key| key.parse().unwrap()).collect(), ..config }
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn three(ip: std::net::IpAddr, keys: &[&str]) -> [Node; 3] {
    let seed = free(ip);
    let a = Node::start(with_keys(config("a", seed, &[seed]), keys)).await;
    let b = Node::start(with_keys(config("b", free(ip), &[seed]), keys)).await;
    let c = Node::start(with_keys(config("c", free(ip), &[seed]), keys)).await;
    until("three nodes find each other", || {
        a.sees(&["b", "c"]) && b.sees(&["a", "c"]) && c.sees(&["a", "b"])
    })
    .await;
    [a, b, c]
}

#[test]
fn what_a_node_says_reaches_all_and_a_goodbye_too() {
    run(async {
        let [a, b, c] = three(V4, &[]).await;
        let peer = b.peers.get("c").unwrap();
        assert_eq!(peer.address, c.membership.address());
        assert_eq!(peer.state.unwrap().endpoint, "c:8980");
        let platform = vec![("os".to_owned(), "linux".to_owned())];
        for running in 1..50 {
            let platform = platform.clone();
            c.own.send_replace(OwnState {
                slots: 8,
                running,
                queued: 3,
                draining: false,
                platform,
            });
        }
        let running = |node: &Node| Some(node.peers.get("c")?.state?.running);
        until("the last of many changes", || running(&a) == Some(49) && running(&b) == Some(49))
            .await;
        let state = a.peers.get("c").unwrap().state.unwrap();
        assert_eq!((state.slots, state.queued, state.platform.len()), (8, 3, 1));
        c.leave().await;
        until("a goodbye", || a.sees(&["b"]) && b.sees(&["a"])).await;
        let mut back = config("c", free(V4), &[a.membership.address()]);
        back.started = 2000;
        let c = Node::start(back).await;
        until("it comes back from another address", || {
            a.sees(&["b", "c"]) && b.sees(&["a", "c"]) && c.sees(&["a", "b"])
        })
        .await;
    });
}

#[test]
fn a_killed_node_vanishes_and_may_come_back_anywhere() {
    run(async {
        let [a, b, c] = three(V4, &[KEY]).await;
        c.kill().await;
        until("the dead are missed", || a.sees(&["b"]) && b.sees(&["a"])).await;
        let seed = a.membership.address();
        let mut back = with_keys(config("c", free(V4), &[seed]), &[KEY]);
        back.started = 2000;
        let c = Node::start(back).await;
        let all = |c: &Node| a.sees(&["b", "c"]) && b.sees(&["a", "c"]) && c.sees(&["a", "b"]);
        until("the dead come back", || all(&c)).await;
        // Before anybody can have missed it; with a clock that went backwards.
        c.kill().await;
        let mut back = with_keys(config("c", free(V4), &[seed]), &[KEY]);
        back.started = 1500;
        let c = Node::start(back).await;
        let process = |node: &Node| node.peers.get("c").map(|peer| peer.started);
        until("the newest process is the member", || {
            all(&c) && process(&a) == Some(1500) && process(&b) == Some(1500)
        })
        .await;
        // And once more, from the same address.
        let address = c.membership.address();
        c.kill().await;
        let mut back = with_keys(config("c", address, &[seed]), &[KEY]);
        back.started = 3000;
        let c = Node::start(back).await;
        until("a restart in place", || {
            all(&c) && process(&a) == Some(3000) && process(&b) == Some(3000)
        })
        .await;
    });
}

/// The address takes packets and connections, and nothing answers: a process that hangs.
#[test]
fn a_node_that_hangs_is_missed_too() {
    run(async {
        let [a, b, c] = three(V4, &[KEY]).await;
        let address = c.membership.address();
        c.kill().await;
        let _silent = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
        until("who hangs is missed", || a.sees(&["b"]) && b.sees(&["a"])).await;
    });
}

#[test]
fn it_works_by_ipv6() {
    run(async {
        let [a, _b, c] = three(V6, &[KEY]).await;
        assert!(a.peers.get("c").unwrap().address.is_ipv6());
        c.leave().await;
        until("a goodbye", || a.sees(&["b"])).await;
    });
}

#[test]
fn without_the_key_nobody_joins() {
    run(async {
        let [a, b, c] = three(V4, &[KEY]).await;
        let seed = a.membership.address();
        let other = Node::start(with_keys(config("other", free(V4), &[seed]), &[KEY_2])).await;
        let failed = |node: &Node| node.peers.counters().joins_failed.load(Relaxed) >= 2;
        let foreign = || a.peers.counters().foreign.load(Relaxed);
        until("another key is refused", || failed(&other) && foreign() >= 2).await;
        other.membership.stop().await;
        let before = foreign();
        let none = Node::start(config("none", free(V4), &[seed])).await;
        until("plain text is refused", || failed(&none) && foreign() >= before + 2).await;
        for node in [&other, &none] {
            assert!(node.peers.snapshot().peers.is_empty());
        }
        assert!(a.sees(&["b", "c"]) && b.sees(&["a", "c"]) && c.sees(&["a", "b"]));
    });
}

#[test]
fn keys_rotate_by_restarts_while_others_run() {
    run(async {
        // Each step of a rotation, beside the one before it.
        let steps: [&[&str]; 4] = [&[KEY], &[KEY, KEY_2], &[KEY_2, KEY], &[KEY_2]];
        for two in steps.windows(2) {
            let seed = free(V4);
            let a = Node::start(with_keys(config("a", seed, &[seed]), two[0])).await;
            let b = Node::start(with_keys(config("b", free(V4), &[seed]), two[1])).await;
            until("they meet", || a.sees(&["b"]) && b.sees(&["a"])).await;
            a.own.send_replace(OwnState { running: 7, ..OwnState::default() });
            b.own.send_replace(OwnState { running: 8, ..OwnState::default() });
            let running = |node: &Node, of: &str| Some(node.peers.get(of)?.state?.running);
            until("states arrive", || running(&b, "a") == Some(7) && running(&a, "b") == Some(8))
                .await;
            a.leave().await;
            b.leave().await;
        }
    });
}

#[test]
fn another_wire_version_is_refused() {
    run(async {
        let [a, b, _c] = three(V4, &[]).await;
        let mut newer = config("newer", free(V4), &[a.membership.address()]);
        newer.wire = WIRE + 1;
        let newer = Node::start(newer).await;
        let refused = |node: &Node| node.peers.counters().refused.load(Relaxed) >= 2;
        until("both sides refuse", || refused(&a) && refused(&newer)).await;
        assert!(newer.peers.snapshot().peers.is_empty());
        assert!(a.sees(&["b", "c"]) && b.sees(&["a", "c"]));
    });
}

#[test]
fn of_two_nodes_with_one_name_the_second_is_refused() {
    run(async {
        let [a, b, c] = three(V4, &[]).await;
        let mut second = config("c", free(V4), &[a.membership.address()]);
        second.started = 9000;
        let second = Node::start(second).await;
        let conflicts = |node: &Node| node.peers.counters().conflicts.load(Relaxed) >= 2;
        until("both sides say so", || conflicts(&a) && conflicts(&second)).await;
        for node in [&a, &b] {
            let peer = node.peers.get("c").unwrap();
            assert_eq!((peer.address, peer.started), (c.membership.address(), 1000));
        }
    });
}

#[test]
fn what_is_no_gossip_is_ignored() {
    run(async {
        let [a, b, c] = three(V4, &[KEY]).await;
        let target = a.membership.address();
        let socket = UdpSocket::bind((V4, 0)).unwrap();
        let mut streams = Vec::new();
        for first in 0..=20_u8 {
            // What would be a length of 4 GiB in any of the kinds.
            let bytes = [first, 2, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3];
            socket.send_to(&bytes, target).unwrap();
            let bytes = [first, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
            for length in 1..bytes.len() {
                socket.send_to(&bytes[..length], target).unwrap();
            }
            let mut stream = TcpStream::connect(target).unwrap();
            stream.write_all(&bytes).unwrap();
            streams.push(stream);
        }
        until("all are counted", || a.peers.counters().foreign.load(Relaxed) >= 200).await;
        a.own.send_replace(OwnState { running: 7, ..OwnState::default() });
        let running = |node: &Node| Some(node.peers.get("a")?.state?.running);
        until("states arrive", || running(&b) == Some(7) && running(&c) == Some(7)).await;
    });
}

#[test]
fn a_list_begun_anew_is_the_same_list() {
    run(async {
        let [a, b, c] = three(V4, &[KEY]).await;
        let told = |node: &Node, id: &str| node.peers.get(id)?.state.map(|state| state.generation);
        let before = told(&b, "a");
        a.membership.renew().await;
        until("all see all", || a.sees(&["b", "c"]) && b.sees(&["a", "c"]) && c.sees(&["a", "b"]))
            .await;
        until("it goes on to tell", || told(&b, "a") > before && told(&c, "a") > before).await;
        c.leave().await;
        until("it goes on to hear", || a.sees(&["b"])).await;
    });
}

#[test]
fn what_can_t_be_is_refused_at_the_start() {
    run(async {
        let refused = |change: fn(&mut ClusterConfig)| async move {
            let mut config = config("a", free(V4), &[]);
            change(&mut config);
            let (_own, seen) = watch::channel(OwnState::default());
            start(config, seen).await.err().expect("it can't be").to_string()
        };
        assert_eq!(refused(|c| c.node_id = "".into()).await, "a node's name has 1 to 128 bytes");
        assert_eq!(
            refused(|c| c.listen.set_port(0)).await,
            "gossip needs a port that others can know"
        );
        let long = refused(|c| c.endpoint = "a".repeat(2000)).await;
        assert!(long.contains("of 1024 in a packet"), "{long}");
        let many = refused(|c| c.keys = vec![KEY.parse().unwrap(); KEYS_MAX + 1]).await;
        assert_eq!(many, "9 keys, at most 8");
        let elsewhere = refused(|c| c.listen = "192.0.2.1:7946".parse().unwrap()).await;
        assert!(elsewhere.starts_with("gossip on 192.0.2.1:7946: "), "{elsewhere}");
        assert!("c2hvcnQ=".parse::<Key>().is_err());
        assert_eq!(format!("{:?}", KEY.parse::<Key>().unwrap()), "Key(…)");
    });
}
