//! All cases, each peer in turn, round after round.
//!
//! ```text
//!   round 1   case a: peer 1, peer 2, peer 3    case b: peer 1, …
//!   round 2   case a: peer 2, peer 3, peer 1    …
//! ```
//! A ratio is made of two runs of the same case in the same round, seconds apart: what else the machine does changes
//! slower than that, and its effect on the ratio shows as the spread over the rounds.
//!
//! Invariant: every peer's answers were checked, in full, at least once in every case.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::case::{Case, Peer};
use crate::content::Content;
use crate::fio;
use crate::image::Images;
use crate::measure::{Lengths, Sample, measure, until_answered};
use crate::program::{self, Program};
use crate::server::Server;
use crate::verify::verify;
use crate::workload::Pattern;

/// What a run of the whole benchmark is given.
pub struct Plan {
    /// The daemon's binary.
    pub diskchain: PathBuf,
    /// A folder on a file system in memory.
    pub memory: PathBuf,
    /// A folder on a disk.
    pub disk: PathBuf,
    /// Bytes of each image.
    pub size: u64,
    /// How often each case is measured.
    pub rounds: usize,
    /// How long each run lasts.
    pub lengths: Lengths,
    /// What is measured, and who takes part.
    pub cases: Vec<(Case, Vec<Peer>)>,
}

/// What a case brought.
#[derive(Debug, Serialize)]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// What was measured.
    pub case: Case,
    /// The runs of each peer, in the order of the rounds.
    pub peers: BTreeMap<Peer, Vec<Sample>>,
    /// What went wrong; nothing was measured then.
    pub failures: Vec<String>,
}

/// Measures everything. A run fails if its server does not start, hangs, fails a request or answers with wrong data.
pub fn run(plan: &Plan) -> Vec<CaseResult> {
    let content = Content::new();
    let mut images = Images::new(&plan.diskchain, &plan.memory, &plan.disk, plan.size);
    let empty = |case: &Case| CaseResult {
        name: case.name(),
        case: *case,
        peers: BTreeMap::new(),
        failures: Vec::new(),
    };
    let mut results: Vec<CaseResult> = plan.cases.iter().map(|(case, _)| empty(case)).collect();
    for round in 0..plan.rounds {
        for (result, (_, peers)) in results.iter_mut().zip(&plan.cases) {
            let mut peers = peers.clone();
            let count = peers.len().max(1);
            peers.rotate_left(round % count);
            for peer in peers {
                let outcome = one(plan, &mut images, &content, &result.case, peer, round);
                progress(plan, result, peer, round, &outcome);
                // After a failure it is not known what was written, and holes that a trim made would be read faster
                // than data.
                if outcome.is_err() || result.case.workload.pattern == Pattern::Trim {
                    images.forget(&result.case, peer);
                }
                match outcome {
                    Ok(sample) => result.peers.entry(peer).or_default().push(sample),
                    Err(error) => result.failures.push(format!("{}: {error}", peer.name())),
                }
            }
        }
    }
    results
}

/// One run, and the check of what it left in the first and the last round.
fn one(
    plan: &Plan,
    images: &mut Images,
    content: &Content,
    case: &Case,
    peer: Peer,
    round: usize,
) -> io::Result<Sample> {
    let source = images.source(content)?;
    let (files, record) = images.get(case, peer, content)?;
    if peer == Peer::FioFile {
        return until_answered(plan.lengths, |lengths| fio::measure_file(files.top(), case, lengths, round));
    }
    // Sockets and logs stay off the disk under test.
    let server = Server::start(&plan.diskchain, peer, case, files, &plan.memory)?;
    let sample = until_answered(plan.lengths, |lengths| match case.program {
        Program::Own => measure(&server, case, content, record, lengths, round),
        _ => program::measure(&server, case, &source, record, lengths, round),
    })?;
    let last = round + 1 == plan.rounds && case.workload.pattern.changes();
    if round == 0 || last {
        verify(server.address(), case.structured, content, record)?;
    }
    Ok(sample)
}

fn progress(plan: &Plan, result: &CaseResult, peer: Peer, round: usize, outcome: &io::Result<Sample>) {
    let what = match outcome {
        Ok(sample) => format!("{:.0}/s, {:.1} µs CPU", sample.per_second, sample.server_cpu),
        Err(error) => format!("FAILED: {error}"),
    };
    // Nobody may be looking.
    let _ =
        writeln!(io::stderr(), "[{}/{}] {}: {}: {what}", round + 1, plan.rounds, result.name, peer.name());
}
