//! What lies below this node: another cache that knows more, asked on a miss, told of what is kept.
//!
//! Invariant: no byte from below is served before it went through its digest's hash, and no blob
//! ends well whose hash differs.
//! Invariant: nothing here is awaited by a core's pump: a tier that hangs costs the request that
//! asked, not a slot of a core.

mod backlog;
mod below;

pub use self::backlog::{
    Backlog, BacklogConfig, BacklogError, BacklogSnapshot, Drain, Item, Local, StoredResult,
};
pub use self::below::{Below, BelowError, BelowResult, Incoming, Outgoing};
