//! The command line. Must never read anything but its arguments.

use crate::config::Flags;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// A Remote Execution API cache and executor node for Linux.
///
/// Bazel, Buck2, Pants, BuildStream, recc and siso use it as remote cache and remote executor
/// over gRPC. Without any option it serves on 127.0.0.1:8980 and keeps its data in ./data.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Signals: SIGTERM and SIGINT drain the node within server.grace; \
    a second one ends it at once.\nEvery setting is described in config.yaml; each can be \
    overridden by a variable RINGFORGE__SECTION__KEY."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve until a signal ends it
    Serve {
        /// Settings, in YAML or, where the name ends in .toml, in TOML
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags,
    },
    /// Look at the settings and the files that they name, as at a start, without starting
    Check {
        /// Settings, in YAML or, where the name ends in .toml, in TOML
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags,
    },
    /// Show the cluster as one of its nodes sees it
    Cluster {
        /// Where that node serves: HOST:PORT, or grpcs://HOST:PORT where it has TLS
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8980")]
        address: String,
        #[command(flatten)]
        tls: ClientTls,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Look at a store that no node has at the moment
    Store {
        #[command(subcommand)]
        command: StoreCommand,
        /// Settings, in YAML or, where the name ends in .toml, in TOML
        #[arg(long, value_name = "FILE", global = true)]
        config: Option<PathBuf>,
        /// Directory of the store, instead of store.directory
        #[arg(long, value_name = "DIR", global = true)]
        data: Option<String>,
    },
    /// Look at the settings
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// How to know a node that has TLS, and to be known there.
#[derive(Debug, clap::Args)]
pub(crate) struct ClientTls {
    /// Who may have signed the node's certificate (PEM), instead of the public authorities
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Certificate to show where the node asks for one (PEM)
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// What is in it, and how much of its segments is used
    Stat {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Read everything and name what is damaged; fails where something is
    Verify,
    /// Write a blob to a file, or to standard output
    Get {
        /// Which: HASH or HASH/SIZE
        #[arg(value_name = "DIGEST")]
        digest: String,
        /// Where to; must not exist
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every setting with its value and who said it
    Print {
        /// Settings, in YAML or, where the name ends in .toml, in TOML
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags,
    },
}
