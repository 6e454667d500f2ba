//! The command line: what can be asked for. What it does is in `command`.

use clap::{Parser, Subcommand};

use crate::command;

/// Serves disk chains (base images and differencing images over them) as block devices over NBD.
#[derive(Debug, Parser)]
#[command(name = "diskchain", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve disks over NBD until stopped
    Serve(command::serve::ServeArgs),
    /// Make a small disk chain in a folder of your own and serve it, to try things on
    Demo(command::demo::DemoArgs),
    /// Check a configuration without serving it
    Check(command::check::CheckArgs),
    /// Create, look at and check disk images
    Image(command::image::ImageArgs),
    /// List the image formats and what can be done with each
    Formats(command::formats::FormatsArgs),
    /// List the disks of the running daemon
    Ls(command::ls::LsArgs),
    /// Show one disk of the running daemon: images, clients, requests, accounts, limits
    Show(command::show::ShowArgs),
    /// Show and change the limits of a disk or a throttle group while the daemon runs
    Throttle(command::throttle::ThrottleArgs),
    /// Ask whether the running daemon serves: exit code 0 if it does, 1 if not
    Healthcheck(command::healthcheck::HealthcheckArgs),
    /// Explain an error code, such as E0107
    Explain(command::explain::ExplainArgs),
}
