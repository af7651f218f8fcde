//! Nodes that find each other by a name whose addresses change.

use ringforge_tests::{
    cluster::{Cluster, until_spread},
    dns::Dns,
    is_root,
    netns::Net,
    until,
};
use std::net::{IpAddr, SocketAddr};

#[test]
fn nodes_find_each_other_by_a_name_whose_addresses_change() {
    if !is_root("nodes_find_each_other_by_a_name_whose_addresses_change") {
        return;
    }
    let net = Net::new(3);
    let server = IpAddr::from(net.client().v4());
    let dns = net.client().enter(|| Dns::start_on(SocketAddr::from((server, 53))));
    for i in 1..=3 {
        net.node(i).resolve_at(server);
    }
    let v4 = |i: u8| IpAddr::from(net.node(i).v4());
    let mut cluster = Cluster::start_on(&net, 3, Some("nodes.test:7946"));
    // Nobody has the name yet, or only somebody who is not there.
    until("the name was asked for", || dns.asked("nodes.test") > 3);
    dns.set("nodes.test", &[IpAddr::from([10, 77, 0, 77])]);
    net.client().run(async || until_spread(&cluster.client(1), 1).await);
    dns.set("nodes.test", &[v4(1)]);
    net.client().run(async || cluster.until_whole().await);
    // One that comes later finds another one.
    cluster.kill(1);
    dns.set("nodes.test", &[v4(2), IpAddr::from(net.node(3).v6()), v4(3)]);
    cluster.restart_on(Some(&net), 1);
    net.client().run(async || cluster.until_whole().await);
}
