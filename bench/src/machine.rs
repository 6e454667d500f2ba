//! What the figures were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// The machine and the versions of those who were measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Bytes of memory, in words.
    pub memory: String,
    /// The kernel's version.
    pub kernel: String,
    /// The file systems of the images.
    pub file_systems: [String; 2],
    /// Processes that wanted a core in the last minute, before the first run: 0 is a quiet machine.
    pub load_before: String,
    /// Versions, one program each.
    pub versions: Vec<String>,
}

impl Machine {
    /// Looks at this machine, at the two folders of the images and at the programs.
    pub fn look(memory: &Path, disk: &Path, diskchain: &Path) -> Self {
        let diskchain = diskchain.to_string_lossy().into_owned();
        let versions: [&[&str]; 5] = [
            &[&diskchain, "--version"],
            &["qemu-nbd", "--version"],
            &["nbdkit", "--version"],
            &["nbd-server", "-V"],
            &["fio", "--version"],
        ];
        Machine {
            processor: line_of("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory: gibibytes(&line_of("/proc/meminfo", "MemTotal")),
            kernel: kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()),
            file_systems: [memory, disk].map(file_system),
            load_before: load(),
            versions: versions.into_iter().map(first_line).collect(),
        }
    }
}

/// Processes that wanted a core in the last minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn line_of(file: &str, key: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_once(':')).map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

/// "24684096 kB" in the usual unit.
fn gibibytes(kibibytes: &str) -> String {
    let number = kibibytes.split(' ').next().and_then(|number| number.parse::<f64>().ok());
    number.map_or_else(|| kibibytes.to_owned(), |number| format!("{:.0} GiB", number / f64::from(1 << 20)))
}

/// The numbers of a kernel's version; what its builder added says nothing.
fn kernel(release: &str) -> String {
    release.split(|c: char| c != '.' && !c.is_ascii_digit()).next().unwrap_or_default().to_owned()
}

fn file_system(folder: &Path) -> String {
    let output = Command::new("stat").args(["--file-system", "--format=%T"]).arg(folder).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn first_line(command: &[&str]) -> String {
    let Ok(output) = Command::new(command[0]).args(&command[1..]).output() else {
        return format!("{}: not there", command[0]);
    };
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}
