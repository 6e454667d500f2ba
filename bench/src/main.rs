//! The benchmark of diskchain: it and other NBD servers side by side, on the same files, in one run.
//!
//! ```text
//!   main ─▶ suite ─▶ image     the files, made once        ─▶ report   table, JSON, HTML
//!                 ├▶ server    each peer in turn
//!                 ├▶ measure ─▶ client ─▶ workload
//!                 └▶ verify    is it right, too?
//! ```

mod callgrind;
mod case;
mod client;
mod content;
mod fio;
mod footprint;
mod goals;
mod image;
mod instructions;
mod limit;
mod machine;
mod measure;
mod neighbours;
mod process;
mod program;
mod report;
mod server;
mod socket;
mod statistics;
mod suite;
mod verify;
mod workload;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::case::{Case, Peer};
use crate::goals::{Comparison, Others};
use crate::measure::Lengths;
use crate::report::Report;
use crate::suite::Plan;

/// Measures diskchain and other NBD servers side by side.
#[derive(Debug, Parser)]
#[command(name = "diskchain-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start each server in turn, measure, check, and report
    Run(RunArgs),
    /// Measure what is wanted of the daemon, and tell which goals are met
    #[command(args_override_self = true)]
    Goals(GoalsArgs),
    /// Measure the daemon's memory, its start, and what one client makes of another's latency
    Footprint(FootprintArgs),
    /// Count the instructions of the daemon for a request, and compare with those that are recorded
    Instructions(InstructionsArgs),
    /// Serve a raw file on a Unix socket by a bare batch loop: the limit that the others are compared with
    Limit {
        /// The file.
        file: PathBuf,
        /// The socket.
        socket: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The daemon's binary
    #[arg(long, env = "DISKCHAIN_BIN")]
    diskchain: PathBuf,
    /// Only what proves that it runs, in little time
    #[arg(long)]
    short: bool,
    /// How often each case is measured [default: 5, short: 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds of each measurement [default: 1000, short: 150]
    #[arg(long)]
    window: Option<u64>,
    /// Mebibytes of each image [default: 1024, short: 64]
    #[arg(long)]
    size: Option<u64>,
    /// Only cases whose name contains this
    #[arg(long)]
    only: Vec<String>,
    /// Only these peers, by parts of their names; diskchain always takes part
    #[arg(long)]
    peer: Vec<String>,
    /// Where the images on a file system in memory go
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// Where the images on a disk go
    #[arg(long, default_value = "/var/tmp")]
    disk: PathBuf,
    /// Where results.json and results.html go
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct GoalsArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Put the result into this document, between the marks that it has for it
    #[arg(long)]
    write: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct FootprintArgs {
    /// The daemon's binary
    #[arg(long, env = "DISKCHAIN_BIN")]
    diskchain: PathBuf,
    /// Where the images go, on a file system in memory
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
}

#[derive(Debug, Args)]
struct InstructionsArgs {
    /// The daemon's binary, a release build
    #[arg(long, env = "DISKCHAIN_BIN")]
    diskchain: PathBuf,
    /// Where the recorded counts are
    #[arg(long, default_value = "bench/instructions.json")]
    baseline: PathBuf,
    /// Record the counts instead of comparing them
    #[arg(long)]
    record: bool,
    /// Tell which source files they are in, too
    #[arg(long)]
    files: bool,
    /// Where the images go, on a file system in memory
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
}

impl RunArgs {
    /// Whether the case is among those that were asked for.
    fn names(&self, case: &Case) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| case.name().contains(part))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Goals(args) => goals(&args),
        Command::Footprint(args) => {
            let dir = tempfile::Builder::new().prefix("diskchain-bench").tempdir_in(&args.memory)?;
            let diskchain = fs::canonicalize(&args.diskchain)?;
            let footprint = footprint::measure(&diskchain, dir.path())?;
            let neighbours = neighbours::measure(&diskchain, dir.path())?;
            let found = serde_json::json!({ "footprint": footprint, "neighbours": neighbours });
            println!("{found:#}");
            Ok(())
        }
        Command::Instructions(args) => {
            let dir = tempfile::Builder::new().prefix("diskchain-bench").tempdir_in(&args.memory)?;
            let diskchain = fs::canonicalize(&args.diskchain)?;
            Ok(instructions::run(&diskchain, dir.path(), &args.baseline, args.record, args.files)?)
        }
        Command::Limit { file, socket } => Ok(limit::bind(&file, &socket)?.serve()?),
    }
}

fn run(args: &RunArgs) -> Result<(), Box<dyn Error>> {
    let memory = tempfile::Builder::new().prefix("diskchain-bench").tempdir_in(&args.memory)?;
    let disk = tempfile::Builder::new().prefix("diskchain-bench").tempdir_in(&args.disk)?;
    let cases = if args.short { case::short() } else { case::all() };
    let wanted = |peer: &Peer| {
        let own = matches!(peer, Peer::Diskchain | Peer::DiskchainOneImage);
        own || args.peer.is_empty() || args.peer.iter().any(|part| peer.name().contains(part))
    };
    let peers = |case: &Case| Peer::ALL.into_iter().filter(|peer| peer.can(case) && wanted(peer)).collect();
    let cases = cases.into_iter().map(|case| (case, peers(&case))).collect();
    let plan = plan(args, cases, memory.path(), disk.path())?;
    let report = measured(&plan);
    let tables = report::tables(&report);
    keep(args, &report, &tables)?;
    print!("{tables}");
    succeeded(&report)
}

/// Measures all goals.
fn goals(args: &GoalsArgs) -> Result<(), Box<dyn Error>> {
    let memory = tempfile::Builder::new().prefix("diskchain-bench").tempdir_in(&args.run.memory)?;
    let disk = tempfile::Builder::new().prefix("diskchain-bench").tempdir_in(&args.run.disk)?;
    let mut comparisons = goals::comparisons();
    comparisons.retain(|comparison| args.run.names(&comparison.case().0));
    let cases = comparisons.iter().map(Comparison::case).collect();
    let plan = plan(&args.run, cases, memory.path(), disk.path())?;
    let report = measured(&plan);
    let aside = memory.path().join("aside");
    fs::create_dir(&aside)?;
    let others = Others {
        counts: &instructions::count_all(&plan.diskchain, &aside)?,
        footprint: &footprint::measure(&plan.diskchain, &aside)?,
        neighbours: &neighbours::measure(&plan.diskchain, &aside)?,
    };
    let goals = goals::judge(&comparisons, &report, &others);
    let text = goals::text(&goals, &report, &others);
    keep(&args.run, &report, &text)?;
    fs::write(args.run.output.join("goals.json"), serde_json::to_vec_pretty(&goals)?)?;
    if let Some(document) = &args.write {
        goals::insert(document, &text)?;
    }
    print!("{text}");
    succeeded(&report)
}

fn measured(plan: &Plan) -> Report {
    let machine = machine::Machine::look(&plan.memory, &plan.disk, &plan.diskchain);
    Report::new(machine, plan, suite::run(plan))
}

fn keep(args: &RunArgs, report: &Report, tables: &str) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(&args.output)?;
    fs::write(args.output.join("results.json"), serde_json::to_vec_pretty(report)?)?;
    fs::write(args.output.join("results.html"), report::html(report))?;
    fs::write(args.output.join("results.md"), tables)?;
    Ok(())
}

fn succeeded(report: &Report) -> Result<(), Box<dyn Error>> {
    match report.failures() {
        0 => Ok(()),
        failures => Err(format!("{failures} runs failed").into()),
    }
}

fn plan(
    args: &RunArgs,
    mut cases: Vec<(Case, Vec<Peer>)>,
    memory: &Path,
    disk: &Path,
) -> Result<Plan, Box<dyn Error>> {
    let choose =
        |given: Option<u64>, short: u64, long: u64| given.unwrap_or(if args.short { short } else { long });
    let window = Duration::from_millis(choose(args.window, 150, 1000));
    cases.retain(|(case, _)| args.names(case));
    if cases.is_empty() {
        return Err("no case has such a name".into());
    }
    Ok(Plan {
        diskchain: fs::canonicalize(&args.diskchain)
            .map_err(|error| format!("{}: {error}", args.diskchain.display()))?,
        memory: memory.to_owned(),
        disk: disk.to_owned(),
        size: choose(args.size, 64, 1024) << 20,
        rounds: args.rounds.unwrap_or(if args.short { 1 } else { 5 }),
        lengths: Lengths { warm_up: window / 5, window },
        cases,
    })
}
