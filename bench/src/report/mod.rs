//! What is told of a run: tables, and the same as JSON and as a page with plots.

mod html;

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::case::{Case, Peer};
use crate::machine::{self, Machine};
use crate::measure::{Lengths, Sample};
use crate::statistics::Spread;
use crate::suite::{CaseResult, Plan};

pub use html::html;

/// All of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// On what.
    pub machine: Machine,
    /// Processes that wanted a core in the last minute, after the last run.
    pub load_after: String,
    /// Bytes of each image.
    pub size: u64,
    /// How often each case was measured.
    pub rounds: usize,
    /// How long each run lasted.
    pub lengths: Lengths,
    /// What came of it.
    pub cases: Vec<CaseReport>,
}

/// One case.
#[derive(Debug, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub name: String,
    /// What was measured.
    pub case: Case,
    /// Each peer's figures.
    pub peers: Vec<PeerReport>,
    /// All runs.
    pub samples: BTreeMap<Peer, Vec<Sample>>,
    /// Runs that failed, and why.
    pub failures: Vec<String>,
}

/// One peer in one case.
#[derive(Debug, Serialize)]
pub struct PeerReport {
    /// Who.
    pub peer: Peer,
    /// Requests a second.
    pub per_second: Spread,
    /// Mebibytes a second.
    pub mebibytes_per_second: Spread,
    /// Microseconds.
    pub p50: Option<Spread>,
    /// Microseconds.
    pub p99: Option<Spread>,
    /// Microseconds.
    pub p999: Option<Spread>,
    /// Microseconds of the server's cores for a request.
    pub server_cpu: Option<Spread>,
    /// Microseconds of the client's cores for a request.
    pub client_cpu: Option<Spread>,
    /// Most memory, bytes.
    pub peak_resident: Option<Spread>,
    /// diskchain's requests a second over this one's.
    pub speed_ratio: Option<Spread>,
    /// diskchain's processor time for a request over this one's.
    pub cpu_ratio: Option<Spread>,
    /// diskchain's median latency over this one's.
    pub p50_ratio: Option<Spread>,
}

impl Report {
    /// Puts together what there is to tell.
    pub fn new(machine: Machine, plan: &Plan, cases: Vec<CaseResult>) -> Self {
        Report {
            machine,
            load_after: machine::load(),
            size: plan.size,
            rounds: plan.rounds,
            lengths: plan.lengths,
            cases: cases.into_iter().map(CaseReport::new).collect(),
        }
    }

    /// Runs that failed.
    pub fn failures(&self) -> usize {
        self.cases.iter().map(|case| case.failures.len()).sum()
    }
}

impl CaseReport {
    fn new(result: CaseResult) -> Self {
        let CaseResult { name, case, peers: samples, failures } = result;
        let ours = samples.get(&Peer::Diskchain).map_or(&[][..], Vec::as_slice);
        let peers =
            samples.iter().filter_map(|(&peer, theirs)| PeerReport::new(peer, ours, theirs)).collect();
        CaseReport { name, case, peers, samples, failures }
    }
}

impl PeerReport {
    fn new(peer: Peer, ours: &[Sample], theirs: &[Sample]) -> Option<Self> {
        let spread = |figure: fn(&Sample) -> f64| Spread::of(theirs.iter().map(figure));
        let ratio = |figure: fn(&Sample) -> f64| Spread::ratio(ours, theirs, figure);
        Some(PeerReport {
            peer,
            per_second: spread(|sample| sample.per_second)?,
            mebibytes_per_second: spread(|sample| sample.mebibytes_per_second)?,
            p50: spread(|sample| sample.p50),
            p99: spread(|sample| sample.p99),
            p999: spread(|sample| sample.p999),
            server_cpu: spread(|sample| sample.server_cpu),
            client_cpu: spread(|sample| sample.client_cpu),
            peak_resident: spread(|sample| sample.peak_resident),
            speed_ratio: ratio(|sample| sample.per_second),
            cpu_ratio: ratio(|sample| sample.server_cpu),
            p50_ratio: ratio(|sample| sample.p50),
        })
    }
}

/// The report as Markdown.
pub fn tables(report: &Report) -> String {
    let mut text = String::new();
    head(report, &mut text).and_then(|()| bodies(report, &mut text)).expect("a string takes everything");
    text
}

/// What was measured on, as Markdown.
pub fn machine(report: &Report) -> String {
    let mut text = String::new();
    head(report, &mut text).expect("a string takes everything");
    text
}

/// All cases in one table.
///
/// # Errors
/// What the writer says.
pub fn compact(report: &Report, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "| | server | requests/s | p50 µs | p99 µs | p99.9 µs | server CPU µs | peak RSS MiB | speed ratio | CPU ratio |"
    )?;
    writeln!(text, "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")?;
    for case in &report.cases {
        for (number, peer) in case.peers.iter().enumerate() {
            writeln!(
                text,
                "| {} | {} | {:.0} | {} | {} | {} | {} | {} | {} | {} |",
                if number == 0 { &case.name } else { "" },
                peer.peer.name(),
                peer.per_second.median,
                median(peer.p50, 1.0, 0),
                median(peer.p99, 1.0, 0),
                median(peer.p999, 1.0, 0),
                median(peer.server_cpu, 1.0, 2),
                median(peer.peak_resident, f64::from(1 << 20), 1),
                ratio(peer, peer.speed_ratio),
                ratio(peer, peer.cpu_ratio),
            )?;
        }
        for failure in &case.failures {
            writeln!(text, "| {} | FAILED: {failure} |", case.name)?;
        }
    }
    Ok(())
}

fn head(report: &Report, text: &mut String) -> std::fmt::Result {
    let machine = &report.machine;
    writeln!(
        text,
        "- {} shared cores of {}, {}, Linux {}; images of {} MiB on {} and {}",
        machine.cores,
        machine.processor,
        machine.memory,
        machine.kernel,
        report.size >> 20,
        machine.file_systems[0],
        machine.file_systems[1]
    )?;
    writeln!(text, "- {}", machine.versions.join(" · "))?;
    writeln!(
        text,
        "- {} rounds of {} ms; processes that wanted a core: {} before, {} after",
        report.rounds,
        report.lengths.window.as_millis(),
        machine.load_before,
        report.load_after
    )?;
    writeln!(
        text,
        "- figures are medians of the rounds; ratios are diskchain's over the other's in the same round, with least and most"
    )
}

fn bodies(report: &Report, text: &mut String) -> std::fmt::Result {
    for case in &report.cases {
        writeln!(text, "\n### {}\n", case.name)?;
        writeln!(
            text,
            "| | requests/s | MiB/s | p50 µs | p99 µs | p99.9 µs | server CPU µs | client CPU µs | peak RSS MiB | speed ratio | CPU ratio |"
        )?;
        writeln!(text, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        for peer in &case.peers {
            writeln!(
                text,
                "| {} | {:.0} | {:.0} | {} | {} | {} | {} | {} | {} | {} | {} |",
                peer.peer.name(),
                peer.per_second.median,
                peer.mebibytes_per_second.median,
                median(peer.p50, 1.0, 0),
                median(peer.p99, 1.0, 0),
                median(peer.p999, 1.0, 0),
                median(peer.server_cpu, 1.0, 2),
                median(peer.client_cpu, 1.0, 2),
                median(peer.peak_resident, f64::from(1 << 20), 1),
                ratio(peer, peer.speed_ratio),
                ratio(peer, peer.cpu_ratio),
            )?;
        }
        for failure in &case.failures {
            writeln!(text, "\nFAILED: {failure}")?;
        }
    }
    Ok(())
}

fn median(figure: Option<Spread>, unit: f64, digits: usize) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| format!("{:.digits$}", figure.median / unit))
}

fn ratio(peer: &PeerReport, ratio: Option<Spread>) -> String {
    match ratio {
        Some(Spread { median, least, most }) if peer.peer != Peer::Diskchain => {
            format!("{median:.2} ({least:.2}–{most:.2})")
        }
        _ => String::new(),
    }
}
