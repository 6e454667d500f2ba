//! What is wanted of the daemon's speed and size, measured in one run: a table of goals, each met or not.
//!
//! ```text
//!   comparisons ─▶ suite ─▶ ratios of runs next to each other ┐
//!   instructions, footprint, neighbours                       ┴▶ goals ─▶ docs/performance.md, between two marks
//! ```
//! Invariant: a goal is judged by the median of its rounds, and one that was not measured is not met.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::case::{Cache, Case, Image, Peer};
use crate::footprint::{BUDGET_MIB, CONNECTIONS, DISKS, Footprint, GREEDY, MANY};
use crate::instructions::Count;
use crate::measure::Sample;
use crate::neighbours::Neighbours;
use crate::report::{self, Report};
use crate::statistics::Spread;
use crate::workload::Pattern;

/// What stands before and behind the part of a document that a run writes.
const MARKS: [&str; 2] =
    ["<!-- measured: from here on written by `diskchain-bench goals` -->", "<!-- measured: until here -->"];

/// Most resident memory of an idle daemon, bytes.
const IDLE: f64 = 20.0 * MIB;

/// What a connection may have beside `max_buffer_memory`, bytes: its own buffers, 128 KiB, and what it receives into.
const CONNECTION_BUSY: f64 = 192.0 * KIB;

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

/// One goal and what came of it.
#[derive(Debug, Serialize)]
pub struct Goal {
    /// What is measured.
    pub what: String,
    /// How much of it there should be.
    pub wanted: Wanted,
    /// In what it is told.
    pub unit: Unit,
    /// How much of it there is.
    pub measured: Option<Spread>,
    /// The same ratio with the limit in the daemon's place: as good as it can get here.
    pub limit: Option<Spread>,
    /// Why it was not measured.
    pub problem: Option<String>,
}

/// A bound, in the goal's unit.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// One over the other.
    Ratio,
    /// Bytes, told in KiB.
    Kibibytes,
    /// Bytes, told in MiB.
    Mebibytes,
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
}

impl Goal {
    fn new(what: String, wanted: Wanted, unit: Unit, measured: Option<Spread>) -> Self {
        Goal { what, wanted, unit, measured, limit: None, problem: None }
    }

    /// Whether it is reached.
    pub fn is_met(&self) -> bool {
        self.measured.is_some_and(|Spread { median, .. }| match self.wanted {
            Wanted::AtLeast(bound) => median >= bound,
            Wanted::AtMost(bound) => median <= bound,
        })
    }
}

/// A case, and what is wanted of its figures.
pub struct Comparison {
    case: Case,
    wishes: Vec<Wish>,
}

/// A figure of ours over that of the best of them.
struct Wish {
    figure: Figure,
    over: &'static [Peer],
    wanted: Wanted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    /// Requests a second.
    Speed,
    /// Processor time of the server for a request.
    Cpu,
    /// Median latency.
    P50,
}

impl Figure {
    fn of(self, sample: &Sample) -> f64 {
        match self {
            Figure::Speed => sample.per_second,
            Figure::Cpu => sample.server_cpu,
            Figure::P50 => sample.p50,
        }
    }

    fn better(self, a: f64, b: f64) -> f64 {
        if self == Figure::Speed { a.max(b) } else { a.min(b) }
    }

    fn name(self) -> &'static str {
        match self {
            Figure::Speed => "requests/s",
            Figure::Cpu => "server CPU a request",
            Figure::P50 => "p50",
        }
    }
}

/// All comparisons that goals are about.
pub fn comparisons() -> Vec<Comparison> {
    use Figure::{Cpu, P50, Speed};
    use Image::{Chain, EmptyVdi, Raw, Vdi};
    use Pattern::{Allocate, Read, ReadSequential, Write, WriteSequential};
    use Wanted::{AtLeast, AtMost};
    const NBDKIT: &[Peer] = &[Peer::Nbdkit];
    const QEMU: &[Peer] = &[Peer::QemuThreads, Peer::QemuUring];
    const LIMIT: &[Peer] = &[Peer::Limit];
    let wish = |figure, over, wanted| Wish { figure, over, wanted };
    let small = |read_or_write, over_nbdkit, over_qemu| Comparison {
        case: Case::new(Raw, read_or_write, 4, 64),
        wishes: vec![
            wish(Speed, NBDKIT, AtLeast(over_nbdkit)),
            wish(Speed, QEMU, AtLeast(over_qemu)),
            wish(Cpu, NBDKIT, AtMost(0.45)),
            wish(Cpu, LIMIT, AtMost(1.5)),
        ],
    };
    let one = |case, figure, over, wanted| Comparison { case, wishes: vec![wish(figure, over, wanted)] };
    let mut all = vec![
        small(Read, 2.5, 5.0),
        small(Write, 1.8, 6.0),
        one(Case::new(Vdi, Read, 4, 64), Speed, QEMU, AtLeast(8.0)),
        one(Case::new(Vdi, Write, 4, 64), Speed, QEMU, AtLeast(8.0)),
        one(Case::new(EmptyVdi, Allocate, 4, 64), Speed, QEMU, AtLeast(3.0)),
        one(Case::new(Chain, Read, 4, 64), Speed, &[Peer::DiskchainOneImage], AtLeast(0.8)),
        one(Case::new(Raw, Read, 4, 1), P50, NBDKIT, AtMost(1.0)),
        one(Case::new(Raw, Write, 4, 1), P50, NBDKIT, AtMost(1.0)),
    ];
    for (pattern, kib, depth) in [
        (Read, 64, 16),
        (Write, 64, 16),
        (ReadSequential, 1024, 4),
        (WriteSequential, 1024, 4),
        (ReadSequential, 1024, 16),
        (WriteSequential, 1024, 16),
    ] {
        all.push(one(Case::new(Raw, pattern, kib, depth), Speed, NBDKIT, AtLeast(1.1)));
    }
    for pattern in [Read, Write] {
        all.push(one(Case::new(Raw, pattern, 4, 64).connections(4), Speed, NBDKIT, AtLeast(2.5)));
    }
    let direct = Case::new(Raw, Read, 4, 64).on_disk(Cache::Direct);
    all.push(one(direct, Speed, &[Peer::FioFile], AtLeast(0.95)));
    all
}

impl Comparison {
    /// The case, and who has to take part in it.
    pub fn case(&self) -> (Case, Vec<Peer>) {
        let mut peers = vec![Peer::Diskchain];
        peers.extend(self.wishes.iter().flat_map(|wish| wish.over));
        peers.push(Peer::Limit);
        peers.retain(|peer| peer.can(&self.case));
        peers.sort();
        peers.dedup();
        (self.case, peers)
    }

    fn goals<'a>(&'a self, samples: &'a BTreeMap<Peer, Vec<Sample>>) -> impl Iterator<Item = Goal> + 'a {
        self.wishes.iter().map(|wish| {
            let over: Vec<&str> = wish.over.iter().map(|peer| peer.name()).collect();
            let over = if over.len() > 1 { "the faster qemu-nbd".to_owned() } else { over.concat() };
            let what = format!("{}: {} over {over}", self.case.name(), wish.figure.name());
            let mut goal = Goal::new(what, wish.wanted, Unit::Ratio, wish.ratio(samples, Peer::Diskchain));
            if wish.over != [Peer::Limit] {
                goal.limit = wish.ratio(samples, Peer::Limit);
            }
            goal
        })
    }
}

impl Wish {
    /// The figure of `ours` over the best of the others in the same round.
    fn ratio(&self, samples: &BTreeMap<Peer, Vec<Sample>>, ours: Peer) -> Option<Spread> {
        let in_round = |peer: &Peer, round: usize| {
            samples
                .get(peer)?
                .iter()
                .find(|sample| sample.round == round)
                .map(|sample| self.figure.of(sample))
        };
        Spread::of(samples.get(&ours)?.iter().filter_map(|our| {
            let theirs = self.over.iter().filter_map(|peer| in_round(peer, our.round));
            Some(self.figure.of(our) / theirs.reduce(|a, b| self.figure.better(a, b))?)
        }))
    }
}

/// What was measured beside the comparisons.
pub struct Others<'a> {
    /// Instructions of each subject; the first is the read of 4 KiB that the first comparison times.
    pub counts: &'a [Count],
    /// Memory and start.
    pub footprint: &'a Footprint,
    /// Latency beside others.
    pub neighbours: &'a Neighbours,
}

/// Judges all goals.
pub fn judge(comparisons: &[Comparison], report: &Report, others: &Others<'_>) -> Vec<Goal> {
    use Wanted::AtMost;
    let compared = comparisons.iter().zip(&report.cases);
    let mut goals: Vec<Goal> =
        compared.flat_map(|(comparison, case)| comparison.goals(&case.samples)).collect();
    let Others { counts, footprint, neighbours } = others;
    let user = report.cases.first().and_then(|case| {
        Spread::of(case.samples.get(&Peer::Diskchain)?.iter().map(|sample| sample.server_user))
    });
    let share = counts.first().and_then(|count| Some(count.layer()? / count.total()));
    let layer = user.zip(share).map(|(user, share)| user.each(|micros| micros * share));
    goals.push(Goal::new(
        "ticket, throttle, turn and lookup of a 4 KiB read".to_owned(),
        AtMost(0.5),
        Unit::Micros,
        layer,
    ));
    let just = |figure: f64| Spread::of([figure]);
    goals.push(Goal::new(
        format!("resident memory, idle, {DISKS} disks"),
        AtMost(IDLE),
        Unit::Mebibytes,
        just(footprint.idle),
    ));
    goals.push(Goal::new(
        format!("more for each of {CONNECTIONS} idle connections"),
        AtMost(64.0 * KIB),
        Unit::Kibibytes,
        just(footprint.connection),
    ));
    goals.push(Goal::new(
        format!(
            "peak with `max_buffer_memory` of {BUDGET_MIB} MiB and {GREEDY} connections that ask for 16 × 1 MiB each"
        ),
        AtMost(IDLE + BUDGET_MIB as f64 * MIB + GREEDY as f64 * CONNECTION_BUSY),
        Unit::Mebibytes,
        just(footprint.greedy),
    ));
    goals.push(Goal {
        problem: neighbours.hanging.as_ref().err().cloned(),
        ..Goal::new(
            "p99 of a 4 KiB reader beside a disk that hangs, over that without".to_owned(),
            AtMost(1.2),
            Unit::Ratio,
            neighbours.hanging.as_ref().ok().copied(),
        )
    });
    goals.push(Goal::new(
        "p99 of a 4 KiB reader beside a client of 1 MiB × 16, over that alone".to_owned(),
        AtMost(3.0),
        Unit::Ratio,
        Some(neighbours.large),
    ));
    goals.push(Goal::new(
        format!("start with {MANY} VDI disks of 100 GiB, to the first greeting"),
        AtMost(1000.0),
        Unit::Millis,
        Some(footprint.start),
    ));
    goals
}

/// All of it as Markdown: the machine, the goals, what they were judged by, and the instructions.
pub fn text(goals: &[Goal], report: &Report, others: &Others<'_>) -> String {
    let mut text = report::machine(report);
    write(goals, report, others, &mut text).expect("a string takes everything");
    text
}

fn write(goals: &[Goal], report: &Report, others: &Others<'_>, text: &mut String) -> std::fmt::Result {
    let met = goals.iter().filter(|goal| goal.is_met()).count();
    writeln!(text, "\n### Goals: {met} of {} met\n", goals.len())?;
    writeln!(text, "| | goal | measured | with the limit instead | met |\n|---|--:|--:|--:|---|")?;
    for goal in goals {
        let (sign, bound) = match goal.wanted {
            Wanted::AtLeast(bound) => ('≥', bound),
            Wanted::AtMost(bound) => ('≤', bound),
        };
        let measured = match (&goal.measured, &goal.problem) {
            (Some(measured), _) => told(measured, goal.unit),
            (None, Some(problem)) => format!("not measured: {problem}"),
            (None, None) => "not measured".to_owned(),
        };
        let limit = goal.limit.as_ref().map_or_else(String::new, |limit| told(limit, goal.unit));
        let bound = told(&Spread { median: bound, least: bound, most: bound }, goal.unit);
        let met = if goal.is_met() { "yes" } else { "**no**" };
        writeln!(text, "| {} | {sign} {bound} | {measured} | {limit} | {met} |", goal.what)?;
    }
    let elsewhere = told(&others.neighbours.large_elsewhere, Unit::Ratio);
    writeln!(
        text,
        "\nThe same 4 KiB reader beside the same client of 1 MiB × 16 that another process serves: {elsewhere}."
    )?;
    writeln!(text, "\n### What they were judged by\n")?;
    report::compact(report, text)?;
    writeln!(text, "\n### Instructions\n")?;
    writeln!(
        text,
        "| 4 KiB | instructions a request | of them ticket, throttle, turn, lookup |\n|---|--:|--:|"
    )?;
    for count in others.counts {
        let layer = count.layer().map_or_else(|| "–".to_owned(), |layer| format!("{layer:.0}"));
        writeln!(text, "| {} | {:.0} | {layer} |", count.subject.name, count.total())?;
    }
    Ok(())
}

/// A median, and in brackets the least and the most if they differ.
fn told(figure: &Spread, unit: Unit) -> String {
    let (divisor, digits, name) = match unit {
        Unit::Ratio => (1.0, 2, ""),
        Unit::Kibibytes => (KIB, 1, " KiB"),
        Unit::Mebibytes => (MIB, 1, " MiB"),
        Unit::Micros => (1.0, 2, " µs"),
        Unit::Millis => (1.0, 0, " ms"),
    };
    let Spread { median, least, most } = figure.each(|figure| figure / divisor);
    if least == most {
        return format!("{median:.digits$}{name}");
    }
    format!("{median:.digits$}{name} ({least:.digits$}–{most:.digits$})")
}

/// Replaces what stands in `document` between the two marks.
///
/// # Errors
/// If it cannot be read or written, or has no marks.
pub fn insert(document: &Path, text: &str) -> io::Result<()> {
    let old = fs::read_to_string(document)?;
    let new = between_marks(&old, text)
        .ok_or_else(|| io::Error::other(format!("{}: the marks are missing", document.display())))?;
    fs::write(document, new)
}

fn between_marks(document: &str, text: &str) -> Option<String> {
    let (head, rest) = document.split_once(MARKS[0])?;
    let (_, tail) = rest.split_once(MARKS[1])?;
    Some(format!("{head}{}\n\n{}\n\n{}{tail}", MARKS[0], text.trim(), MARKS[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(round: usize, per_second: f64) -> Sample {
        Sample { round, per_second, ..Sample::unknown() }
    }

    #[test]
    fn a_ratio_is_made_within_a_round_and_over_the_faster_of_two() {
        let samples = BTreeMap::from([
            (Peer::Diskchain, vec![sample(0, 100.0), sample(1, 300.0), sample(2, 900.0)]),
            (Peer::QemuThreads, vec![sample(0, 20.0), sample(1, 30.0)]),
            (Peer::QemuUring, vec![sample(0, 10.0), sample(1, 50.0)]),
        ]);
        let wish = Wish {
            figure: Figure::Speed,
            over: &[Peer::QemuThreads, Peer::QemuUring],
            wanted: Wanted::AtLeast(5.5),
        };
        let ratio = wish.ratio(&samples, Peer::Diskchain).unwrap();
        assert_eq!((ratio.least, ratio.most), (5.0, 6.0), "nobody took part in round 2 but us");
        assert!(wish.ratio(&samples, Peer::Limit).is_none());
        let goal = |measured| Goal::new(String::new(), wish.wanted, Unit::Ratio, measured);
        assert!(goal(Some(ratio)).is_met());
        assert!(!goal(Spread::of([5.4])).is_met());
        assert!(!goal(None).is_met(), "what was not measured is not met");
    }

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let document = format!("before\n{}\nold\n{}\nbehind\n", MARKS[0], MARKS[1]);
        let once = between_marks(&document, "new\n").unwrap();
        assert!(once.starts_with("before\n") && once.ends_with("\nbehind\n"), "{once}");
        assert!(once.contains("new") && !once.contains("old"), "{once}");
        assert_eq!(between_marks(&once, "new").unwrap(), once);
        assert!(between_marks("no marks", "new").is_none());
    }

    #[test]
    fn every_peer_that_a_goal_is_about_takes_part() {
        for comparison in comparisons() {
            let (case, peers) = comparison.case();
            for wish in &comparison.wishes {
                assert!(wish.over.iter().all(|peer| peers.contains(peer)), "{}", case.name());
            }
        }
    }
}
