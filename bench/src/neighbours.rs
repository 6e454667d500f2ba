//! What one client makes of another's latency: beside a disk whose storage hangs, and beside large requests at full speed.
//!
//! Each figure is a ratio of 99th percentiles of a client that reads 4 KiB one by one, measured with and without the other,
//! in turn. What the other costs merely because the machine has only so many cores is measured too: the same load, served by
//! another process.
//!
//! Invariant: a ratio is of two runs right after each other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::case::{Case, Image};
use crate::client::{Client, Window};
use crate::content::Content;
use crate::footprint::config;
use crate::server::{EXPORT, Server};
use crate::socket::Address;
use crate::statistics::Spread;
use crate::workload::{Pattern, Steps};

/// How often neighbours are measured, and how long.
const ROUNDS: usize = 7;
const WINDOW: Duration = Duration::from_millis(600);

/// Bytes of a disk.
const SIZE: u64 = 256 << 20;

/// Seconds that a storage that hangs takes for an answer, and how many wait for one. All rounds pass meanwhile.
const HANGS: u64 = 10;
const HANGING: usize = 16;

/// How long a program may take to offer its file.
const MOUNT: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Debug, Serialize)]
pub struct Neighbours {
    /// 99th percentile beside large requests over that alone.
    pub large: Spread,
    /// The same if another process serves the large requests.
    pub large_elsewhere: Spread,
    /// 99th percentile beside a disk that hangs over that alone. Or why it could not be measured.
    pub hanging: Result<Spread, String>,
}

/// Measures all of it, with files in `dir`.
///
/// # Errors
/// If the daemon does not do what it is asked to.
pub fn measure(diskchain: &Path, dir: &Path) -> io::Result<Neighbours> {
    let content = Content::new();
    let (near, far) = (dir.join("near.raw"), dir.join("far.raw"));
    content.fill(&near, SIZE)?;
    content.fill(&far, SIZE)?;
    let daemon = |name: &str, files: &[&Path]| {
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let files: Vec<PathBuf> = files.iter().map(|&file| file.to_owned()).collect();
        Server::daemon(diskchain, "", &config(&files, "raw"), &Address::Unix(dir.join("nbd.sock")), &dir)
    };
    let one = daemon("one", &[&near])?;
    let other = daemon("other", &[&far])?;
    let mut ratios = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let alone = small(&one, &content)?;
        ratios.0.push(beside_large(&one, &one, &content)? / alone);
        ratios.1.push(beside_large(&one, &other, &content)? / alone);
    }
    let hanging = Hanging::start(dir).and_then(|hanging| {
        // Two daemons cannot have one file.
        drop(other);
        let stuck = daemon("stuck", &[&far, &hanging.file])?;
        beside_hanging(&one, &stuck, &content)
    });
    Ok(Neighbours {
        large: spread(ratios.0)?,
        large_elsewhere: spread(ratios.1)?,
        hanging: hanging.map_err(|error| error.to_string()),
    })
}

/// The percentile of a client of `server` while another one reads 1 MiB, 16 at once, from `busy`.
fn beside_large(server: &Server, busy: &Server, content: &Content) -> io::Result<f64> {
    let large = Case::new(Image::Raw, Pattern::ReadSequential, 1024, 16).workload;
    let client = Client::connect(busy.address(), false)?;
    let now = Instant::now();
    let window = Window { from: now, until: now + WINDOW + WINDOW / 6 };
    std::thread::scope(|scope| {
        let other = scope
            .spawn(|| client.run(&large, Steps::new(large, 0, 1, SIZE), 0, content, Some(window)).map(drop));
        let percentile = small(server, content)?;
        other.join().expect("a client does not panic").and(Ok(percentile))
    })
}

/// The percentile of a disk of `stuck`, whose other disk hangs, over that of a disk of a daemon where none does.
fn beside_hanging(free: &Server, stuck: &Server, content: &Content) -> io::Result<Spread> {
    let hung = Instant::now();
    let ratios = std::thread::scope(|scope| {
        let other = format!("{EXPORT}1");
        let waits = scope.spawn(move || {
            let workload = Case::new(Image::Raw, Pattern::Read, 4, HANGING).workload;
            let client = Client::connect_to(stuck.address(), &other, false)?;
            let now = Instant::now();
            let window = Window { from: now, until: now + Duration::from_secs(HANGS) };
            client.run(&workload, Steps::new(workload, 0, 0, client.size), 0, content, Some(window))?;
            Ok::<Duration, io::Error>(hung.elapsed())
        });
        std::thread::sleep(WINDOW / 2);
        let ratios: Vec<f64> = (0..ROUNDS)
            .map(|_| Ok(small(stuck, content)? / small(free, content)?))
            .collect::<io::Result<_>>()?;
        let all = hung.elapsed();
        let waited = waits.join().expect("a client does not panic")?;
        if waited < Duration::from_secs(HANGS) || all > waited {
            return Err(io::Error::other(format!("it hung for {waited:?}, and {all:?} were measured")));
        }
        Ok(ratios)
    })?;
    spread(ratios)
}

/// The 99th percentile of a client that reads 4 KiB one by one, microseconds.
fn small(server: &Server, content: &Content) -> io::Result<f64> {
    let workload = Case::new(Image::Raw, Pattern::Read, 4, 1).workload;
    let client = Client::connect(server.address(), false)?;
    let now = Instant::now();
    let window = Window { from: now + WINDOW / 6, until: now + WINDOW };
    let run = client.run(&workload, Steps::new(workload, 0, 1, client.size), 0, content, Some(window))?;
    Ok(run.latency.value_at_quantile(0.99) as f64 / 1e3)
}

fn spread(ratios: Vec<f64>) -> io::Result<Spread> {
    Spread::of(ratios).ok_or_else(|| io::Error::other("nothing was measured"))
}

/// A file in user space whose reads take [`HANGS`] seconds: nbdkit with its delay filter, mounted by nbdfuse.
struct Hanging {
    /// The file.
    file: PathBuf,
    programs: Vec<Child>,
}

impl Hanging {
    /// Mounts it in a folder below `dir`. Needs /dev/fuse and the right to mount.
    fn start(dir: &Path) -> io::Result<Self> {
        let (folder, socket) = (dir.join("hanging"), dir.join("hanging.sock"));
        fs::create_dir_all(&folder)?;
        let mut hanging = Hanging { file: folder.join("disk"), programs: Vec::new() };
        let mut delay = Command::new("nbdkit");
        delay.arg("--foreground").arg("--unix").arg(&socket).args(["--threads", "32", "--filter", "delay"]);
        delay.args(["memory", "64M"]).arg(format!("delay-read={HANGS}"));
        hanging.spawn(delay, |_| socket.exists())?;
        let mut fuse = Command::new("nbdfuse");
        fuse.arg(&hanging.file).arg("--unix").arg(&socket);
        hanging.spawn(fuse, |file| file.exists())?;
        Ok(hanging)
    }

    fn spawn(&mut self, mut command: Command, is_there: impl Fn(&Path) -> bool) -> io::Result<()> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.programs.push(quiet.map_err(|error| io::Error::other(format!("{command:?}: {error}")))?);
        let deadline = Instant::now() + MOUNT;
        while !is_there(&self.file) {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{} offers no file", command.get_program().display())));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        if let Some(folder) = self.file.parent() {
            // Fails only if it never was mounted. Lazily: a daemon may still be about to close it.
            let _ = Command::new("umount").arg("--lazy").arg(folder).stderr(Stdio::null()).status();
        }
        for program in self.programs.iter_mut().rev() {
            // It may have ended with its mount.
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}
