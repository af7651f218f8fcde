//! The protocol, from outside: every RPC in scope, good and bad, against the real program. Must
//! never look inside the node except at what it leaves on disk.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod action_cache;
mod batches;
mod byte_stream;
mod capabilities;
mod cas;
mod digests;
mod environment;
mod execution;
mod hostile;
mod inputs;
mod instances;
mod isolation;
mod operations;
mod output_kinds;
mod outputs;
mod queue;
mod raw;
mod reads;
mod shared;
mod trees;
mod uploads;
