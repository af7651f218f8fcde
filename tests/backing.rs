//! A node with a cache below it, from outside: what is read through it, what a write promises,
//! what lies and outages below come to. Must never let a limit of time decide more than that
//! something hangs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod backing {
    pub(crate) mod front;
    pub(crate) mod lies;
    pub(crate) mod outages;
    pub(crate) mod reads;
    pub(crate) mod servers;
    pub(crate) mod sharing;
    pub(crate) mod trust;
    pub(crate) mod writes;
}
