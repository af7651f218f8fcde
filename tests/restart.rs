//! Starting and stopping, again and again: what was acknowledged stays, what runs is drained, what
//! can't work is refused in one line. Must never leave a process behind.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod restart {
    pub(crate) mod crash;
    pub(crate) mod drain;
    pub(crate) mod kill;
    pub(crate) mod process;
    pub(crate) mod refused;
    pub(crate) mod shards;
}
