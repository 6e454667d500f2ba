//! `diskchain ls`: the disks of the running daemon.

use clap::Args;
use serde_json::Value;

use super::daemon::{DaemonArgs, refused};
use super::output::{Columns, print, print_json, short_size};
use crate::control::client;
use crate::control::schema::DiskSummary;
use crate::exit::Exit;

/// Arguments of `diskchain ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Print JSON, as `GET /v1/disks` of the control API
    #[arg(long)]
    json: bool,
}

/// Runs `diskchain ls`.
pub async fn run(args: LsArgs) -> Exit {
    let socket = args.daemon.socket();
    if args.json {
        return match client::get::<Value>(&socket, "/v1/disks").await {
            Ok(disks) => print_json(&disks),
            Err(failure) => refused(&failure),
        };
    }
    match client::get::<Vec<DiskSummary>>(&socket, "/v1/disks").await {
        Ok(disks) => print(&table(disks)),
        Err(failure) => refused(&failure),
    }
}

fn table(disks: Vec<DiskSummary>) -> String {
    let mut columns =
        Columns::new(&["NAME", "SIZE", "MODE", "CONDITION", "LAYERS", "ALLOCATED", "CLIENTS", "IN-FLIGHT"]);
    for disk in disks {
        let mode = mode(disk.read_only, disk.ephemeral);
        columns.row([
            disk.name,
            short_size(disk.size),
            mode.into(),
            disk.condition,
            disk.layers.to_string(),
            short_size(disk.allocated),
            disk.connections.to_string(),
            disk.in_flight.to_string(),
        ]);
    }
    columns.to_string()
}

/// What clients may do with a disk.
pub fn mode(read_only: bool, ephemeral: bool) -> &'static str {
    match (read_only, ephemeral) {
        (true, _) => "read-only",
        (false, true) => "ephemeral",
        (false, false) => "read-write",
    }
}
