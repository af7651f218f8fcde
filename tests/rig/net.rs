//! Hosts of a net reach each other, and no longer where a link is cut.

use ringforge_tests::{
    Node,
    client::Client,
    dns::Dns,
    is_root,
    netns::{Net, Space},
    until,
};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};

/// After so long, a packet is taken to be lost.
const QUIET: Duration = Duration::from_millis(150);

/// Whether datagrams from one host arrive at the other one, by IPv4 and by IPv6.
fn arrives(from: &Space, to: &Space) -> [bool; 2] {
    static PORT: AtomicU16 = AtomicU16::new(2000);
    let arrives = |source: IpAddr, target: IpAddr| {
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        let target = SocketAddr::from((target, port));
        let receiver = to.enter(|| UdpSocket::bind(target)).unwrap();
        let sender = from.enter(|| UdpSocket::bind((source, 0))).unwrap();
        sender.send_to(b"datagram", target).expect("the sender sees no error");
        receiver.set_read_timeout(Some(QUIET)).unwrap();
        receiver.recv(&mut [0; 16]).is_ok()
    };
    [arrives(from.v4().into(), to.v4().into()), arrives(from.v6().into(), to.v6().into())]
}

/// Of all directions between hosts 1, 2 and 3, these do not work and all others do.
fn check_lost(net: &Net, lost: &[(u8, u8)]) {
    for (i, j) in (1..=3).flat_map(|i| (1..=3).map(move |j| (i, j))).filter(|(i, j)| i != j) {
        let arrives = || arrives(net.node(i), net.node(j));
        if lost.contains(&(i, j)) {
            assert_eq!(arrives(), [false; 2], "{i} to {j} is cut");
        } else {
            until(&format!("{i} reaches {j}"), || arrives() == [true; 2]);
        }
    }
}

#[test]
fn links_are_cut_as_told_and_heal() {
    if !is_root("links_are_cut_as_told_and_heal") {
        return;
    }
    let net = Net::new(3);
    check_lost(&net, &[]);
    until("the client and a host reach each other", || {
        let (client, node) = (net.client(), net.node(3));
        arrives(client, node) == [true; 2] && arrives(node, client) == [true; 2]
    });
    net.cut_one_way(1, 2);
    check_lost(&net, &[(1, 2)]);
    net.heal_one_way(1, 2);
    net.cut_pair(2, 3);
    check_lost(&net, &[(2, 3), (3, 2)]);
    net.heal_pair(2, 3);
    net.cut(1);
    check_lost(&net, &[(1, 2), (1, 3), (2, 1), (3, 1)]);
    net.heal(1);
    check_lost(&net, &[]);
}

#[test]
fn a_connection_stands_still_while_its_link_is_cut() {
    if !is_root("a_connection_stands_still_while_its_link_is_cut") {
        return;
    }
    let net = Net::new(2);
    let listener = net.node(2).enter(|| TcpListener::bind((net.node(2).v4(), 2000))).unwrap();
    let mut sender = net.node(1).enter(|| TcpStream::connect((net.node(2).v4(), 2000))).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    for (cut, heal) in [
        (Net::cut as fn(&Net, u8), Net::heal as fn(&Net, u8)),
        (|net, i| net.cut_one_way(i, 2), |net, i| net.heal_one_way(i, 2)),
    ] {
        cut(&net, 1);
        sender.write_all(b"late").unwrap();
        receiver.set_read_timeout(Some(QUIET)).unwrap();
        receiver.read(&mut [0; 4]).unwrap_err();
        heal(&net, 1);
        receiver.set_read_timeout(None).unwrap();
        let mut late = [0; 4];
        receiver.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"late");
    }
}

#[test]
fn a_net_leaves_nothing_behind_even_after_a_panic() {
    if !is_root("a_net_leaves_nothing_behind_even_after_a_panic") {
        return;
    }
    let (name, program) = thread::spawn(|| {
        let net = Net::new(1);
        let name = net.node(1).name().to_owned();
        net.node(1).resolve_at([127, 0, 0, 1].into());
        let program = net.node(1).command("sleep").arg("600").spawn().unwrap();
        until("it is inside", || {
            let path = format!("/proc/{}/comm", program.id());
            std::fs::read_to_string(path).unwrap() == "sleep\n"
        });
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _net = net;
            std::panic::resume_unwind(Box::new("no message wanted"));
        }));
        panic.unwrap_err();
        (name, program)
    })
    .join()
    .unwrap();
    let mut program = program;
    program.wait().unwrap();
    for path in ["/run/netns", "/etc/netns"] {
        assert!(!Path::new(path).join(&name).exists());
    }
}

#[test]
fn what_a_killed_run_has_left_is_removed_by_the_next() {
    if !is_root("what_a_killed_run_has_left_is_removed_by_the_next") {
        return;
    }
    // No process has such a number: the kernel's own bound is 2^22.
    let name = "rftest-99999999-0-1";
    let added = std::process::Command::new("ip").args(["netns", "add", name]).status();
    assert!(added.unwrap().success());
    let _net = Net::new(0);
    assert!(!Path::new("/run/netns").join(name).exists());
}

#[test]
fn a_delay_is_either_there_or_said_not_to_be() {
    if !is_root("a_delay_is_either_there_or_said_not_to_be") {
        return;
    }
    let net = Net::new(1);
    match net.delay(1, 20) {
        Ok(()) => net.delay(1, 0).unwrap(),
        Err(unsupported) => assert!(!unsupported.0.is_empty()),
    }
}

#[test]
fn programs_of_a_host_resolve_names_at_a_server_of_the_net() {
    if !is_root("programs_of_a_host_resolve_names_at_a_server_of_the_net") {
        return;
    }
    let net = Net::new(1);
    let server = IpAddr::from(net.client().v4());
    let dns = net.client().enter(|| Dns::start_on(SocketAddr::from((server, 53))));
    net.node(1).resolve_at(server);
    let resolved = || {
        let output = net.node(1).command("getent").args(["ahosts", "nodes.test"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert_eq!(resolved(), "");
    for i in [7, 8] {
        dns.set("nodes.test", &[IpAddr::from([10, 77, 0, i])]);
        let address = format!("10.77.0.{i} ");
        until("the name has its new address", || resolved().starts_with(&address));
    }
}

#[test]
fn a_node_on_a_host_serves_the_client_until_it_is_cut_off() {
    if !is_root("a_node_on_a_host_serves_the_client_until_it_is_cut_off") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let net = Net::new(1);
    let node = Node::start_in(net.node(1), &directory.path().join("node"), &[]);
    let address = node.address();
    net.client().run(async || {
        let client = Client::connect(&address).await;
        let digests = client.put([bytes::Bytes::from_static(b"blob")]).await;
        assert_eq!(client.missing(digests.clone()).await.unwrap(), []);
        let six = Client::connect(&format!("[{}]:{}", net.node(1).v6(), node.port())).await;
        assert_eq!(six.read(&digests[0]).await.unwrap(), "blob");
        net.cut(1);
        let cut_off = tokio::time::timeout(QUIET, client.missing(digests.clone())).await;
        assert!(cut_off.is_err(), "an answer through a link that is cut");
        net.heal(1);
        assert_eq!(client.missing(digests).await.unwrap(), []);
    });
}
