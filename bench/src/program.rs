//! Clients that users have: nbdcopy, qemu-img and fio, each as it comes.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde::Serialize;

use crate::case::Case;
use crate::content::Record;
use crate::fio;
use crate::measure::{Lengths, Sample};
use crate::server::{EXPORT, Server};
use crate::workload::Pattern;

/// Who sends the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// The load generator of this benchmark.
    Own,
    /// nbdcopy, from the disk to nowhere or from a raw file to the disk.
    Nbdcopy,
    /// qemu-img convert, the same.
    QemuImg,
    /// fio's NBD engine.
    Fio,
}

impl Program {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Program::Own => "own",
            Program::Nbdcopy => "nbdcopy",
            Program::QemuImg => "qemu-img convert",
            Program::Fio => "fio",
        }
    }
}

/// Runs the program of `case` against `server`. `source` is a raw file full of generation 0 for those that write.
/// `None` if nothing was answered while it counted.
///
/// # Errors
/// If the program fails.
pub fn measure(
    server: &Server,
    case: &Case,
    source: &Path,
    record: &mut Record,
    lengths: Lengths,
    round: usize,
) -> io::Result<Option<Sample>> {
    let uri = server.address().uri(EXPORT);
    let writes = case.workload.pattern == Pattern::WriteSequential;
    let source = source.as_os_str();
    let mut command = match (case.program, writes) {
        (Program::Own | Program::Fio, _) => return fio::measure_export(&uri, case, server, lengths, round),
        (Program::Nbdcopy, false) => command("nbdcopy", [uri.as_ref(), "null:".as_ref()]),
        (Program::Nbdcopy, true) => command("nbdcopy", [source, uri.as_ref()]),
        (Program::QemuImg, false) => {
            let target = format!("driver=null-co,size={}", record.size());
            let mut command =
                command("qemu-img", ["convert", "-n", "-W", "-m", "16", "-f", "raw"].map(str::as_ref));
            command.arg(&uri).arg("--target-image-opts").arg(target);
            command
        }
        (Program::QemuImg, true) => {
            let options = ["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw"];
            let mut command = command("qemu-img", options.map(str::as_ref));
            command.arg(source).arg(&uri);
            command
        }
    };
    let cpu = server.usage().cpu;
    let began = Instant::now();
    let output = command.output()?;
    let seconds = began.elapsed().as_secs_f64();
    let used = server.usage();
    if !output.status.success() {
        return Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))));
    }
    if writes {
        record.written(0, record.size(), 0);
    }
    let requests = record.size() as f64 / case.workload.bytes as f64;
    Ok(Some(Sample {
        round,
        per_second: requests / seconds,
        mebibytes_per_second: record.size() as f64 / seconds / (1 << 20) as f64,
        server_cpu: (used.cpu - cpu).as_secs_f64() * 1e6 / requests,
        peak_resident: used.peak_resident as f64,
        ..Sample::unknown()
    }))
}

fn command<const N: usize>(program: &str, args: [&std::ffi::OsStr; N]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}
