//! Caches below this node, as tiers of the engine: one file a kind. Must never hash, retry or
//! queue; layers around a tier do.

pub(crate) mod channel;
mod object;
pub(crate) mod remote;
mod zstd;
