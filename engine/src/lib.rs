//! What a node does, without sockets, protocol or YAML.
//!
//! The map, from the bottom up; a row uses only rows above it, and `env` from anywhere:
//!
//! - [`digest`] what names a blob, and which shard owns it
//! - [`limits`] every bound of a node
//! - [`mod@env`] time and disk, as values
//! - [`blob`] the verbs of a store, and the layers around a shard
//! - [`shard`] one range of digests, on one disk, by one core
//! - [`cores`] one CPU each: a store, an inbox, a pump; [`cores::Cores`] is the handle to all
//! - [`tier`] another cache below this node: read through, written through
//! - [`exec`] from an Action to an ActionResult
//! - [`control`] slow decisions, never on a request's path: who is in the cluster
//!
//! Five ideas: a digest has one owner; a boundary is owner – request – handle; a store is three
//! verbs, wrapped; the world comes in through `Env`; what could hurt has an address.

pub mod blob;
pub mod control;
pub mod cores;
pub mod digest;
pub mod env;
pub mod exec;
pub mod limits;
pub mod shard;
pub mod tier;
