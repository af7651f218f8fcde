//! The program `ringforge`: what was asked on the command line, and nothing else.

mod backing;
mod cli;
mod cluster_view;
mod config;
mod deadline;
mod front;
mod metrics;
mod node;
mod peer;
mod resource_name;
mod self_test;
mod services;
mod status;
mod store_view;
mod tls;
mod transport;

use clap::Parser;
use cli::{Cli, Command, ConfigCommand};
use config::{Config, Flags};
use std::process::ExitCode;

/// Requests allocate many small, short-lived values: half of glibc's cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == sandbox::SPAWNER_ARGUMENT) {
        sandbox::spawner_main();
    }
    set_umask();
    end_by_any_panic();
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ringforge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Inputs, execution roots and blobs are read by other users, whatever the shell that started the
/// node wishes for its own files. Once, before any thread exists: it belongs to the process.
fn set_umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

/// A thread that panics takes the node with it: a core that is gone would leave its digests without
/// an owner and its clients without an answer, while a restart takes a second.
fn end_by_any_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Serve { config, flags } => {
            let config = Config::load(config.as_deref(), flags, config::environment())?;
            node::serve(config)
        }
        Command::Check { config, flags } => {
            let config = Config::load(config.as_deref(), flags, config::environment())?;
            println!("{}", node::check(&config)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Cluster { address, tls, json } => {
            cluster_view::print(&address, tls, json)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Store { command, config, data } => {
            let flags = Flags { data, ..Flags::default() };
            let config = Config::load(config.as_deref(), flags, config::environment())?;
            store_view::run(&config, &command)
        }
        Command::Config { command: ConfigCommand::Print { config, flags } } => {
            let config = Config::load(config.as_deref(), flags, config::environment())?;
            print!("{}", config.printed);
            Ok(ExitCode::SUCCESS)
        }
    }
}
