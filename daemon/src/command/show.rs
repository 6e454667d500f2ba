//! `diskchain show`: one disk of the running daemon on a page.

use clap::Args;
use serde_json::Value;

use super::daemon::{DaemonArgs, refused};
use super::ls::mode;
use super::output::{Columns, Table, print, print_json, short_size, size_text};
use super::throttle;
use crate::control::client;
use crate::control::schema::{Client, Disk, Image, Request, Stats};
use crate::exit::Exit;

/// Requests in flight that are listed; the JSON has all.
const REQUESTS_SHOWN: usize = 20;

/// Arguments of `diskchain show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The disk
    name: String,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Print JSON, as `GET /v1/disks/NAME` of the control API
    #[arg(long)]
    json: bool,
}

/// Runs `diskchain show`.
pub async fn run(args: ShowArgs) -> Exit {
    let socket = args.daemon.socket();
    let path = format!("/v1/disks/{}", client::segment(&args.name));
    if args.json {
        return match client::get::<Value>(&socket, &path).await {
            Ok(disk) => print_json(&disk),
            Err(failure) => refused(&failure),
        };
    }
    match client::get::<Disk>(&socket, &path).await {
        Ok(disk) => print(&page(&disk)),
        Err(failure) => refused(&failure),
    }
}

fn page(disk: &Disk) -> String {
    let sections = [
        facts(disk),
        section("images, base first", images(&disk.chain)),
        section("done since it was opened", operations(&disk.stats)),
        section("clients", clients(&disk.clients)),
        section("requests in flight", requests(&disk.requests)),
        throttle::page("limits", &disk.throttle.limits, disk.throttle.waiting),
    ];
    sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n")
}

fn section(heading: &str, columns: Option<Columns>) -> String {
    let Some(columns) = columns else { return String::new() };
    let lines = columns.to_string();
    format!("{heading}\n{}", lines.lines().map(|line| format!("  {line}\n")).collect::<String>())
}

fn facts(disk: &Disk) -> String {
    let mut table = Table::new(&disk.name);
    if !disk.description.is_empty() {
        table.row("description", &disk.description);
    }
    if let Some(uuid) = disk.uuid {
        table.row("uuid", uuid);
    }
    table.row("size", size_text(disk.size));
    table.row("mode", mode(disk.read_only, disk.ephemeral));
    table.row("condition", &disk.condition);
    table.row("exports", disk.exports.join(", "));
    let options = &disk.options;
    table.row("cache", &options.cache);
    table.row("discard", &options.discard);
    table.row("detect zeroes", &options.detect_zeroes);
    table.row("logical block", format!("{} bytes", options.logical_block_size));
    if disk.stats.highest_written > 0 {
        table.row("highest written", size_text(disk.stats.highest_written));
    }
    if disk.stats.copied > 0 {
        table.row("copied on write", size_text(disk.stats.copied));
    }
    if let Some(group) = &disk.throttle.group {
        table.row("throttle group", group);
    }
    table.to_string()
}

fn images(chain: &[Image]) -> Option<Columns> {
    let mut columns = Columns::new(&["", "FORMAT", "SIZE", "ALLOCATED", "MODE", "FILE"]);
    for (index, image) in chain.iter().enumerate() {
        columns.row([
            index.to_string(),
            format!("{} {}", image.format, image.variant).trim_end().into(),
            short_size(image.size),
            short_size(image.allocated),
            mode(image.read_only, false).into(),
            image.file.clone().unwrap_or_else(|| "(overlay that vanishes with the last client)".into()),
        ]);
    }
    Some(columns)
}

fn operations(stats: &Stats) -> Option<Columns> {
    let mut columns = Columns::new(&[
        "OPERATION",
        "DONE",
        "BYTES",
        "FAILED",
        "HALF WITHIN",
        "99 % WITHIN",
        "THROTTLED",
        "WAITED",
    ]);
    let mut any = false;
    for (name, operation) in &stats.operations {
        if operation.completed + operation.failed == 0 {
            continue;
        }
        any = true;
        let latency = operation.latency.as_ref();
        columns.row([
            name.clone(),
            operation.completed.to_string(),
            short_size(operation.bytes),
            operation.failed.to_string(),
            latency.map_or_else(|| "-".into(), |latency| time_text(latency.p50)),
            latency.map_or_else(|| "-".into(), |latency| time_text(latency.p99)),
            time_text(operation.time.throttle),
            time_text(operation.time.overlap),
        ]);
    }
    any.then_some(columns)
}

fn clients(clients: &[Client]) -> Option<Columns> {
    let mut columns = Columns::new(&["CLIENT", "EXPORT", "TRANSPORT", "PEER", "SINCE", "IN-FLIGHT"]);
    for client in clients {
        columns.row([
            client.id.to_string(),
            client.export.clone(),
            client.transport.clone(),
            client.peer.clone(),
            client.since.clone(),
            client.in_flight.to_string(),
        ]);
    }
    (!clients.is_empty()).then_some(columns)
}

fn requests(requests: &[Request]) -> Option<Columns> {
    let mut columns =
        Columns::new(&["ID", "OPERATION", "OFFSET", "LENGTH", "CLIENT", "AGE", "STAGE", "WAITS FOR"]);
    for request in requests.iter().take(REQUESTS_SHOWN) {
        columns.row([
            request.id.to_string(),
            request.op.clone(),
            request.offset.to_string(),
            request.length.to_string(),
            request.client.to_string(),
            time_text(request.age),
            request.stage.clone(),
            request.waiting_for.map_or_else(|| "-".into(), |id| id.to_string()),
        ]);
    }
    (!requests.is_empty()).then_some(columns)
}

/// A time as people read it: `1.25 ms`.
pub fn time_text(seconds: f64) -> String {
    let (value, unit) = match seconds {
        0.0 => return "0 s".into(),
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = 2usize.saturating_sub((value >= 10.0) as usize + (value >= 100.0) as usize);
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        let texts = [0.0, 4.1e-6, 0.000_123_4, 0.001_25, 0.0999, 1.0, 63.7, 3600.0].map(time_text);
        assert_eq!(texts, ["0 s", "4.10 µs", "123 µs", "1.25 ms", "99.9 ms", "1.00 s", "63.7 s", "3600 s"]);
    }
}
