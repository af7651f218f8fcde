//! Several nodes, from outside: work and blobs go round, whoever dies is missed, strangers are not
//! believed. Must never look at how nodes talk to each other, nor leave a process behind.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod cluster {
    pub(crate) mod build;
    pub(crate) mod cuts;
    pub(crate) mod deaths;
    pub(crate) mod discovery;
    pub(crate) mod kinds;
    pub(crate) mod names;
    pub(crate) mod share;
    pub(crate) mod spread;
    pub(crate) mod trust;
}
