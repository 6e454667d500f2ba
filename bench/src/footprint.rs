//! What the daemon takes when little happens and when too much is asked of it, and how fast it starts.
//!
//! Invariant: every figure is of a daemon of its own.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::case::{Case, Image};
use crate::client::{Client, Window};
use crate::content::Content;
use crate::server::{EXPORT, Server};
use crate::socket::Address;
use crate::statistics::Spread;
use crate::workload::{Pattern, Steps, Workload};

/// Disks of the idle daemon.
pub const DISKS: usize = 10;

/// Connections that do nothing.
pub const CONNECTIONS: usize = 200;

/// Disks of the daemon that is started, and bytes of each.
pub const MANY: usize = 100;
const LARGE: u64 = 100 << 30;

/// `max_buffer_memory` of the daemon that is asked for too much, mebibytes.
pub const BUDGET_MIB: u64 = 64;

/// Connections that ask for too much: half read, half write, 1 MiB, this many at once.
pub const GREEDY: usize = 32;
const GREEDY_DEPTH: usize = 16;

/// How often it is started.
const STARTS: usize = 5;

/// Enough for a request or some.
const SOON: Duration = Duration::from_millis(2);

/// What was found.
#[derive(Debug, Serialize)]
pub struct Footprint {
    /// Resident bytes of a daemon with ten disks and no client.
    pub idle: f64,
    /// Resident bytes that a connection adds that has read once and does nothing now.
    pub connection: f64,
    /// The most resident bytes of a daemon whose clients ask for eight times its `max_buffer_memory`.
    pub greedy: f64,
    /// Milliseconds from the start of the process to the first greeting, with 100 VDI disks of 100 GiB.
    pub start: Spread,
}

/// Measures all of it, with files in `dir`.
///
/// # Errors
/// If the daemon does not do what it is asked to.
pub fn measure(diskchain: &Path, dir: &Path) -> io::Result<Footprint> {
    let address = Address::Unix(dir.join("nbd.sock"));
    let (idle, connection) = idle(diskchain, dir, &address)?;
    let greedy = greedy(diskchain, dir, &address)?;
    let disks = images(diskchain, dir, "large", MANY, LARGE)?;
    let starts: Vec<f64> = (0..STARTS)
        .map(|_| {
            let began = Instant::now();
            let server = Server::daemon(diskchain, "", &config(&disks, "vdi"), &address, dir)?;
            let taken = began.elapsed().as_secs_f64() * 1e3;
            drop(server);
            Ok(taken)
        })
        .collect::<io::Result<_>>()?;
    let start = Spread::of(starts).ok_or_else(|| io::Error::other("nothing was measured"))?;
    Ok(Footprint { idle, connection, greedy, start })
}

fn idle(diskchain: &Path, dir: &Path, address: &Address) -> io::Result<(f64, f64)> {
    let disks = images(diskchain, dir, "small", DISKS, 1 << 30)?;
    let server = Server::daemon(diskchain, "", &config(&disks, "vdi"), address, dir)?;
    let settled = || {
        std::thread::sleep(Duration::from_millis(500));
        server.usage().resident as f64
    };
    let idle = settled();
    let content = Content::new();
    let workload = Workload { pattern: Pattern::Read, bytes: 4096, depth: 1, connections: 1 };
    let clients: Vec<Client> = (0..CONNECTIONS)
        .map(|_| {
            let client = Client::connect(address, false)?;
            let steps = Steps::new(workload, 0, 0, client.size);
            let now = Instant::now();
            client.run(&workload, steps, 0, &content, Some(Window { from: now, until: now + SOON }))?;
            Ok(client)
        })
        .collect::<io::Result<_>>()?;
    let busy = settled();
    drop(clients);
    Ok((idle, (busy - idle).max(0.0) / CONNECTIONS as f64))
}

fn greedy(diskchain: &Path, dir: &Path, address: &Address) -> io::Result<f64> {
    let content = Content::new();
    let path = dir.join("greedy.raw");
    let size = 64 << 20;
    content.fill(&path, size)?;
    let settings = format!("max_buffer_memory = \"{BUDGET_MIB}MiB\"\n");
    let server = Server::daemon(diskchain, &settings, &config(&[path], "raw"), address, dir)?;
    let now = Instant::now();
    let window = Window { from: now, until: now + Duration::from_secs(1) };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..GREEDY)
            .map(|number| {
                let content = &content;
                scope.spawn(move || {
                    let pattern = if number % 2 == 0 { Pattern::Read } else { Pattern::Write };
                    let workload = Case::new(Image::Raw, pattern, 1024, GREEDY_DEPTH).workload;
                    let client = Client::connect(address, false)?;
                    client
                        .run(&workload, Steps::new(workload, 0, 1, size), 1, content, Some(window))
                        .map(drop)
                })
            })
            .collect();
        runs.into_iter().try_for_each(|run| run.join().expect("a client does not panic"))
    })?;
    Ok(server.usage().peak_resident as f64)
}

fn images(diskchain: &Path, dir: &Path, name: &str, count: usize, size: u64) -> io::Result<Vec<PathBuf>> {
    (0..count)
        .map(|number| {
            let path = dir.join(format!("{name}-{number}.vdi"));
            let mut command = Command::new(diskchain);
            command.args(["image", "create"]).arg(&path).arg("--size").arg(size.to_string());
            let output = command.output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(io::Error::other(format!("{command:?}: {said}")));
            }
            Ok(path)
        })
        .collect()
}

/// A disk for each file; the first is the export that clients ask for.
pub fn config(files: &[PathBuf], format: &str) -> String {
    let mut text = String::new();
    for (number, file) in files.iter().enumerate() {
        let name = if number == 0 { EXPORT.to_owned() } else { format!("{EXPORT}{number}") };
        let _ = writeln!(text, "[disk.{name}]\nfile = {:?}\nformat = {format:?}", file.display().to_string());
    }
    text
}
