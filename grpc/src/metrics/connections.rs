//! The numbers of connections. Must only read.

use super::{
    Collector,
    page::{Number, Page, counter, gauge},
};
use crate::transport::{ConnectionCounts, Connections};
use futures_util::future::{LocalBoxFuture, ready};

const NUMBERS: [Number<ConnectionCounts>; 5] = [
    (gauge("ringforge_connections", "Client connections that are open."), |all| all.open as f64),
    (gauge("ringforge_connections_max", "Client connections that may be open."), |all| {
        all.open_max as f64
    }),
    (
        counter("ringforge_connections_accepted_total", "Client connections that were accepted."),
        |all| all.accepted as f64,
    ),
    (
        counter(
            "ringforge_connections_refused_total",
            "Client connections that were closed at once, because there were too many.",
        ),
        |all| all.refused as f64,
    ),
    (
        counter(
            "ringforge_connections_strange_total",
            "Client connections that were closed for their TLS, for want of it, or for their \
             certificate.",
        ),
        |all| all.strange as f64,
    ),
];

impl Collector for Connections {
    fn collect<'a>(&'a self, page: &'a mut Page) -> LocalBoxFuture<'a, ()> {
        page.set_all(&NUMBERS, &self.counts(), &[]);
        Box::pin(ready(()))
    }
}
