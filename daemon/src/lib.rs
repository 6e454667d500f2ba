//! diskchain: a daemon that serves disk chains over NBD, and the commands around it.
//!
//! ```text
//!   cli ─▶ command/* ─▶ assemble (Plan → disks) ─▶ manager (names → disks) ◀─ control (HTTP on a Unix socket)
//!                                                     ▲
//!                       listener ─▶ handshake ─▶ connection (batch loop) ─▶ device
//! ```
//! This crate alone knows configuration, block layer and wire at once. It is the program's: `main.rs` calls [`main`], and
//! the fuzz checks run sessions through the public modules. Nothing in it is a stable interface.

mod assemble;
mod cli;
mod command;
pub mod connection;
mod control;
mod disk;
mod errno;
mod exit;
pub mod handshake;
mod helpers;
mod listener;
mod logging;
mod manager;
pub mod memory;
mod metrics;
mod offload;
mod outbox;
mod overlay;
mod reply;
mod request;
mod sandbox;
mod sd;
mod selftest;
mod sender;
mod server;
pub mod socket;
pub mod stop;

use clap::Parser;

use cli::{Cli, Command};
use exit::Exit;

/// Runs the command that the command line names; its exit code is what [`exit`] says.
pub fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    // A daemon's sandbox holds for threads that are started in it: before the runtime has any.
    let service = match &cli.command {
        Command::Serve(args) => match command::serve::prepare(args) {
            Ok(service) => Some(service),
            Err(exit) => return exit.into(),
        },
        _ => None,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("diskchain: cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let exit = runtime.block_on(async {
        match cli.command {
            Command::Serve(_) => command::serve::serve(service.expect("prepared above")).await,
            Command::Demo(args) => command::demo::run(args).await,
            Command::Check(args) => command::check::run(args).await,
            Command::Image(args) => command::image::run(args).await,
            Command::Formats(args) => command::formats::run(args),
            Command::Ls(args) => command::ls::run(args).await,
            Command::Show(args) => command::show::run(args).await,
            Command::Throttle(args) => command::throttle::run(args).await,
            Command::Healthcheck(args) => command::healthcheck::run(args).await,
            Command::Explain(args) => command::explain::run(args),
        }
    });
    // A request that hangs in the kernel must not keep the process: everything that can be finished is.
    runtime.shutdown_background();
    exit.into()
}
