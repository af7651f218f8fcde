//! `ringforge cluster` from outside: what it shows of one node and of three, and how it says that
//! it can't. Must never rest on how soon a cluster agrees.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

use ringforge_tests::{Node, binary, until};
use serde_json::Value;
use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

fn cluster(arguments: &[&str]) -> Output {
    Command::new(binary()).arg("cluster").args(arguments).output().expect("the program runs")
}

/// What is printed by a command that goes well.
fn printed(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = cluster(arguments);
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn json(node: &Node) -> Value {
    serde_json::from_str(&printed(&["--json", "--address", &node.address()])).unwrap()
}

fn members(view: &Value) -> &[Value] {
    view["members"].as_array().unwrap()
}

/// The members of whom more is known than that they are there, in their order.
fn known(view: &Value) -> Vec<&str> {
    let known = members(view).iter().filter(|member| !member["slots"].is_null());
    known.map(|member| member["node_id"].as_str().unwrap()).collect()
}

/// Three nodes that are told of each other's addresses.
fn three(directory: &Path) -> (Vec<Node>, Vec<String>) {
    // Held until all are known, so that they differ.
    let held: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let gossip: Vec<String> =
        held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    drop(held);
    let peers = gossip.join(",");
    let start = |at: usize| {
        let name = format!("n{}", at + 1);
        let settings = [
            ("EXECUTION__NODE_ID", name.as_str()),
            ("CLUSTER__LISTEN", &gossip[at]),
            ("CLUSTER__PEERS", &peers),
        ];
        Node::start_with(&directory.join(&name), &settings)
    };
    ((0..3).map(start).collect(), gossip)
}

#[test]
fn a_node_without_a_cluster_shows_itself() {
    let directory = tempfile::tempdir().unwrap();
    let settings = [("EXECUTION__NODE_ID", "alone"), ("EXECUTION__SLOTS", "3")];
    let node = Node::start_with(&directory.path().join("store"), &settings);
    let view = json(&node);
    assert_eq!(view["node_id"], "alone");
    assert_eq!(view["clustered"], false);
    assert_eq!(known(&view), ["alone"]);
    let own = &members(&view)[0];
    assert_eq!((&own["own"], &own["slots"]), (&true.into(), &3.into()), "{own}");
    let table = printed(&["--address", &node.address()]);
    assert!(table.lines().nth(1).unwrap().starts_with("* alone "), "{table}");
    assert!(table.ends_with("(cluster.listen is empty)\n"), "{table}");
}

#[test]
fn three_nodes_see_each_other_and_one_that_was_killed_vanishes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut nodes, gossip) = three(directory.path());
    for (at, node) in nodes.iter().enumerate() {
        let name = format!("n{}", at + 1);
        until("all three know each other", || known(&json(node)).len() == 3);
        let view = json(node);
        assert_eq!(view["clustered"], true);
        assert_eq!((view["node_id"].as_str(), known(&view)[0]), (Some(&*name), &*name));
        let table = printed(&["--address", &node.address()]);
        assert_eq!(table.lines().count(), 4, "{table}");
        for (other, address) in nodes.iter().zip(&gossip) {
            let line = table.lines().find(|line| line.contains(address)).unwrap();
            assert!(line.contains(&other.address()), "{table}");
            assert_eq!(line.starts_with("* "), other.pid() == node.pid(), "{table}");
        }
        for member in members(&view) {
            assert_eq!(member["own"], member["node_id"] == name.as_str());
            assert_eq!(member["draining"], false);
            assert_eq!(member["version"], env!("CARGO_PKG_VERSION"));
        }
    }
    nodes.pop().unwrap().kill();
    for node in &nodes {
        until("the dead one is missed", || members(&json(node)).len() == 2);
        // Of those that are well, none is missed with it.
        let view = json(node);
        let mut names = known(&view);
        names.sort_unstable();
        assert_eq!(names, ["n1", "n2"]);
        let log = node.log();
        assert!(log.contains("a node left the cluster, or died"), "{log}");
        assert!(!log.contains("memberlist"), "{log}");
    }
}

#[test]
fn who_can_not_be_asked_is_named_in_one_line() {
    for (address, cause) in [
        // A reserved port that nobody uses, where any other may be taken by another test.
        ("127.0.0.1:1", "refused"),
        ("nonsense", "the port is missing"),
        ("127.0.0.1:0", "the port is none"),
        ("", "the port is missing"),
    ] {
        let Output { status, stdout, stderr } = cluster(&["--address", address]);
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{address}: {said}");
        assert!(stdout.is_empty(), "{address}");
        assert_eq!(said.lines().count(), 1, "{address}: {said}");
        assert!(said.starts_with("ringforge: ") && said.contains(cause), "{address}: {said}");
    }
}
