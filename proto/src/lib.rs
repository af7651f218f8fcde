//! The wire, compiled from `proto/`: messages, clients and servers. Must hold nothing that is not
//! generated, except names.

mod wire {
    #![expect(clippy::all, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}

pub mod any;

pub use wire::{
    blaze::worker,
    build::bazel::{
        remote::{asset::v1 as asset, execution::v2 as reapi, logstream::v1 as logstream},
        semver,
    },
    google::{bytestream, longrunning, rpc},
    ringforge::v1 as node,
};

/// Every file compiled, encoded as a `google.protobuf.FileDescriptorSet`: what reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
