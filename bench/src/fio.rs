//! fio: its io_uring engine on a file, as the measure of what the file itself can do, and its NBD engine as a client.

use std::io;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::case::Case;
use crate::measure::{Lengths, Sample};
use crate::server::Server;
use crate::workload::Pattern;

/// What fio prints, as far as it is of use.
#[derive(Debug, Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    read: Direction,
    write: Direction,
    usr_cpu: f64,
    sys_cpu: f64,
}

#[derive(Debug, Deserialize)]
struct Direction {
    iops: f64,
    clat_ns: Latency,
}

#[derive(Debug, Deserialize)]
struct Latency {
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, u64>,
}

/// Runs the load of `case` on `file`, past the page cache, without any server; `None` if nothing was read or written.
///
/// # Errors
/// If fio fails.
pub fn measure_file(file: &Path, case: &Case, lengths: Lengths, round: usize) -> io::Result<Option<Sample>> {
    let mut command = Command::new("fio");
    command.arg("--ioengine=io_uring").arg("--direct=1").arg(format!("--filename={}", file.display()));
    // Anything else would be found by the check of the next run.
    command.arg("--allow_file_create=0");
    sample(&mut command, case, lengths, round)
}

/// Runs the load of `case` with fio's NBD engine against the export at `uri`; `None` if nothing was answered.
///
/// # Errors
/// If fio fails.
pub fn measure_export(
    uri: &str,
    case: &Case,
    server: &Server,
    lengths: Lengths,
    round: usize,
) -> io::Result<Option<Sample>> {
    let mut command = Command::new("fio");
    command.arg("--ioengine=nbd").arg(format!("--uri={uri}"));
    let cpu = server.usage().cpu;
    let Some(sample) = sample(&mut command, case, lengths, round)? else { return Ok(None) };
    let used = server.usage();
    // fio tells nothing of what it did while it warmed up: it is taken to have done as much a second.
    let requests = sample.per_second * (lengths.warm_up + lengths.window).as_secs_f64();
    let server_cpu = (used.cpu - cpu).as_secs_f64() * 1e6 / requests;
    Ok(Some(Sample { server_cpu, peak_resident: used.peak_resident as f64, ..sample }))
}

fn sample(command: &mut Command, case: &Case, lengths: Lengths, round: usize) -> io::Result<Option<Sample>> {
    let workload = case.workload;
    let pattern = match workload.pattern {
        Pattern::Read => "randread",
        Pattern::ReadSequential => "read",
        other => return Err(io::Error::other(format!("fio has no part in {other:?}"))),
    };
    command.args(["--name=bench", "--thread", "--time_based", "--output-format=json", "--randrepeat=0"]);
    command.arg(format!("--rw={pattern}")).arg(format!("--bs={}", workload.bytes));
    command.arg(format!("--iodepth={}", workload.depth)).arg(format!("--numjobs={}", workload.connections));
    command.arg(format!("--runtime={}ms", lengths.window.as_millis()));
    command.arg(format!("--ramp_time={}ms", lengths.warm_up.as_millis())).arg("--group_reporting");
    let output = command.output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("fio: {}", String::from_utf8_lossy(&output.stderr))));
    }
    // Its report may come behind remarks about the job.
    let start = output.stdout.iter().position(|&byte| byte == b'{').unwrap_or(0);
    let report: Report = serde_json::from_slice(&output.stdout[start..])?;
    let job = report.jobs.first().ok_or_else(|| io::Error::other("fio reports nothing"))?;
    let side = if job.write.iops > job.read.iops { &job.write } else { &job.read };
    if side.iops <= 0.0 {
        return Ok(None);
    }
    let percentile = |key: &str| side.clat_ns.percentile.get(key).map_or(f64::NAN, |&ns| ns as f64 / 1e3);
    let cpu = (job.usr_cpu + job.sys_cpu) / 100.0 * 1e6 / side.iops;
    Ok(Some(Sample {
        round,
        per_second: side.iops,
        mebibytes_per_second: side.iops * workload.bytes as f64 / (1 << 20) as f64,
        p50: percentile("50.000000"),
        p99: percentile("99.000000"),
        p999: percentile("99.900000"),
        client_cpu: cpu,
        ..Sample::unknown()
    }))
}
