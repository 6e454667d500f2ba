//! What the daemon takes when little happens, and what one client makes of another's latency.

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
const DISKS: usize = 10;

/// Connections that do nothing.
const CONNECTIONS: usize = 200;

/// Disks of the daemon that is started, and bytes of each.
const MANY: usize = 100;
const LARGE: u64 = 100 << 30;

/// How often it is started, and how often the neighbours are measured.
const ROUNDS: usize = 5;

/// How long neighbours are measured.
const WINDOW: Duration = Duration::from_millis(700);

/// What was found.
#[derive(Debug, Serialize)]
pub struct Footprint {
    /// Resident bytes of a daemon with ten disks and no client.
    pub idle: u64,
    /// Resident bytes that a connection adds that has read once and does nothing now.
    pub connection: u64,
    /// Milliseconds from the start of the process to the first greeting, with 100 VDI disks of 100 GiB.
    pub start: Spread,
    /// 99th percentile of a client that reads 4 KiB one by one, alone, microseconds.
    pub alone: Spread,
    /// The same while another client reads 1 MiB, 16 at once.
    pub beside: Spread,
    /// The second over the first.
    pub ratio: Spread,
}

/// Measures all of it, with files in `dir`.
///
/// # Errors
/// If the daemon does not do what it is asked to.
pub fn measure(diskchain: &Path, dir: &Path) -> io::Result<Footprint> {
    let address = Address::Unix(dir.join("nbd.sock"));
    let (idle, connection) = memory(diskchain, dir, &address)?;
    let disks = images(diskchain, dir, "large", MANY, LARGE)?;
    let starts: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            let server = Server::daemon(diskchain, &config(&disks, "vdi"), &address, dir)?;
            let taken = began.elapsed().as_secs_f64() * 1e3;
            drop(server);
            Ok(taken)
        })
        .collect::<io::Result<_>>()?;
    let neighbours = neighbours(diskchain, dir, &address)?;
    let spread = |figures: &mut dyn Iterator<Item = f64>| {
        Spread::of(figures).ok_or_else(|| io::Error::other("nothing was measured"))
    };
    Ok(Footprint {
        idle,
        connection,
        start: spread(&mut starts.into_iter())?,
        alone: spread(&mut neighbours.iter().map(|(alone, _)| *alone))?,
        beside: spread(&mut neighbours.iter().map(|(_, beside)| *beside))?,
        ratio: spread(&mut neighbours.iter().map(|(alone, beside)| beside / alone))?,
    })
}

fn memory(diskchain: &Path, dir: &Path, address: &Address) -> io::Result<(u64, u64)> {
    let disks = images(diskchain, dir, "small", DISKS, 1 << 30)?;
    let server = Server::daemon(diskchain, &config(&disks, "vdi"), address, dir)?;
    let settled = || {
        std::thread::sleep(Duration::from_millis(500));
        server.usage().resident
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
    Ok((idle, busy.saturating_sub(idle) / CONNECTIONS as u64))
}

/// Enough for a request or some.
const SOON: Duration = Duration::from_millis(2);

/// The 99th percentiles alone and beside another one, microseconds, of each round.
fn neighbours(diskchain: &Path, dir: &Path, address: &Address) -> io::Result<Vec<(f64, f64)>> {
    let content = Content::new();
    let path = dir.join("neighbours.raw");
    let size = 256 << 20;
    content.fill(&path, size)?;
    let server = Server::daemon(diskchain, &config(&[path], "raw"), address, dir)?;
    let small = Case::new(Image::Raw, Pattern::Read, 4, 1).workload;
    let large = Case::new(Image::Raw, Pattern::ReadSequential, 1024, 16).workload;
    let run = |workload: Workload, window: Window| {
        let client = Client::connect(server.address(), false)?;
        client.run(&workload, Steps::new(workload, 0, 1, size), 0, &content, Some(window))
    };
    let percentile = |window: Window| {
        let latency = run(small, window)?.latency;
        Ok::<f64, io::Error>(latency.value_at_quantile(0.99) as f64 / 1e3)
    };
    let window = || {
        let now = Instant::now();
        Window { from: now + WINDOW / 7, until: now + WINDOW }
    };
    (0..ROUNDS)
        .map(|_| {
            let alone = percentile(window())?;
            let window = window();
            let beside = std::thread::scope(|scope| {
                let other = scope.spawn(|| run(large, window).map(drop));
                let beside = percentile(window);
                other.join().expect("a client does not panic").and(beside)
            })?;
            Ok((alone, beside))
        })
        .collect()
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
fn config(files: &[PathBuf], format: &str) -> String {
    let mut text = String::new();
    for (number, file) in files.iter().enumerate() {
        let name = if number == 0 { EXPORT.to_owned() } else { format!("{EXPORT}{number}") };
        let _ = writeln!(text, "[disk.{name}]\nfile = {:?}\nformat = {format:?}", file.display().to_string());
    }
    text
}
