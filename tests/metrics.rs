//! Numbers from outside: that the page is one, that it moves with what clients do, that it names
//! what `docs/metrics.md` names, and that whoever asks can't hurt the node. Must never look at a
//! number that only time changes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

#[path = "metrics/drain.rs"]
mod drain;
#[path = "metrics/page.rs"]
mod page;
#[path = "metrics/requests.rs"]
mod requests;
#[path = "metrics/series.rs"]
mod series;
#[path = "metrics/tiers.rs"]
mod tiers;

use page::Page;
use ringforge_tests::{Node, client::Client, until};
use std::{
    io::{Read, Write},
    net::TcpStream,
};
use tempfile::TempDir;

/// A node whose numbers can be read, with a client.
struct Counted {
    node: Node,
    client: Client,
    /// Of its numbers, as HOST:PORT.
    address: String,
    parent: TempDir,
}

/// An answer by HTTP.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: String,
    body: String,
}

impl Counted {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let settings = [&[("METRICS__LISTEN", "127.0.0.1:0")], settings].concat();
        let node = Node::start_with(&parent.path().join("store"), &settings);
        let mut address = None;
        until("the node says where its numbers are", || {
            address = said_address(&node.log());
            address.is_some()
        });
        let client = Client::connect(&node.address()).await;
        Self { node, client, address: address.unwrap(), parent }
    }

    /// What it answers to these bytes.
    fn ask(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        // What it does not read it may refuse before it was sent.
        let _ = stream.write_all(request.as_bytes());
        let mut whole = Vec::new();
        let _ = stream.read_to_end(&mut whole);
        let whole = String::from_utf8(whole).unwrap();
        let (head, body) = whole.split_once("\r\n\r\n").unwrap_or((&whole, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer { status: status.unwrap_or(0), headers: head.to_lowercase(), body: body.to_owned() }
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n"))
    }

    /// Its numbers, once they are well-formed.
    fn page(&self) -> Page {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.headers.contains("content-type: text/plain; version=0.0.4"));
        Page::parse(&answer.body)
    }

    /// Waits until a series is at least this.
    fn until(&self, series: &str, least: f64) {
        until(series, || self.page().value(series).is_some_and(|value| value >= least));
    }
}

/// The address that the block at start names.
fn said_address(log: &str) -> Option<String> {
    let (_, after) = log.split_once("metrics      http://")?;
    let (address, _) = after.split_once("/metrics\n")?;
    Some(address.to_owned())
}
