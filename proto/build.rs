//! Compiles proto/ without protoc. Must never leave a CAS payload as a vector: `Bytes` is what
//! makes receiving one free of copies.

use prost::Message;
use std::{env, error::Error, fs, path::PathBuf};

/// Files that nothing else imports; the rest comes with them.
const ROOTS: [&str; 9] = [
    "build/bazel/remote/execution/v2/remote_execution.proto",
    "build/bazel/remote/asset/v1/remote_asset.proto",
    "build/bazel/remote/logstream/v1/remote_logstream.proto",
    "google/bytestream/bytestream.proto",
    "google/longrunning/operations.proto",
    "google/rpc/error_details.proto",
    "ringforge/v1/cluster.proto",
    "ringforge/v1/node_state.proto",
    "worker_protocol.proto",
];

/// Fields that hold what a blob holds.
const PAYLOADS: [&str; 7] = [
    ".google.bytestream.ReadResponse.data",
    ".google.bytestream.WriteRequest.data",
    ".build.bazel.remote.execution.v2.BatchUpdateBlobsRequest.Request.data",
    ".build.bazel.remote.execution.v2.BatchReadBlobsResponse.Response.data",
    ".build.bazel.remote.execution.v2.ActionResult.stdout_raw",
    ".build.bazel.remote.execution.v2.ActionResult.stderr_raw",
    ".build.bazel.remote.execution.v2.OutputFile.contents",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(ROOTS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut builder = tonic_prost_build::configure().build_transport(false).include_file("wire.rs");
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names().bytes(PAYLOADS);
    // Maps in a fixed order, so that equal messages have equal bytes.
    config.btree_map(["."]);
    builder = builder.emit_rerun_if_changed(false);
    builder.compile_fds_with_config(descriptors, config)?;
    Ok(())
}
