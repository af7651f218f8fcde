//! Tests of what other tests stand on: the proxy, the liar, the net and the DNS server do what
//! they are told, and nothing else. Must never test a node.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

#[path = "rig/dns.rs"]
mod dns;
#[path = "rig/liar.rs"]
mod liar;
#[path = "rig/net.rs"]
mod net;
#[path = "rig/proxy.rs"]
mod proxy;
