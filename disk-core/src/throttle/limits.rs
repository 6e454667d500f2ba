//! What a throttle may let through, in the words of QEMU's throttle groups, checked once when it is made.
//!
//! Invariant: a [`Limits`] never contradicts itself, so the arithmetic below it needs no errors.

use std::ops::{Index, IndexMut};
use std::time::Duration;

/// What a limit counts, and for which requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// Operations a second, reads and writes together.
    IopsTotal,
    /// Reads a second.
    IopsRead,
    /// Writes a second.
    IopsWrite,
    /// Bytes a second, reads and writes together.
    BpsTotal,
    /// Bytes read a second.
    BpsRead,
    /// Bytes written a second.
    BpsWrite,
}

impl Dimension {
    /// Every dimension; `ALL[d as usize] == d`.
    pub const ALL: [Dimension; 6] = [
        Dimension::IopsTotal,
        Dimension::IopsRead,
        Dimension::IopsWrite,
        Dimension::BpsTotal,
        Dimension::BpsRead,
        Dimension::BpsWrite,
    ];

    /// Its name in configuration, control interface and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Dimension::IopsTotal => "iops_total",
            Dimension::IopsRead => "iops_read",
            Dimension::IopsWrite => "iops_write",
            Dimension::BpsTotal => "bps_total",
            Dimension::BpsRead => "bps_read",
            Dimension::BpsWrite => "bps_write",
        }
    }

    /// Counts operations rather than bytes.
    pub(super) fn counts_operations(self) -> bool {
        matches!(self, Dimension::IopsTotal | Dimension::IopsRead | Dimension::IopsWrite)
    }

    /// The dimensions that requests of one direction are counted in.
    pub(super) fn of(direction: Direction) -> [Dimension; 4] {
        match direction {
            Direction::Read => {
                [Dimension::IopsTotal, Dimension::IopsRead, Dimension::BpsTotal, Dimension::BpsRead]
            }
            Direction::Write => {
                [Dimension::IopsTotal, Dimension::IopsWrite, Dimension::BpsTotal, Dimension::BpsWrite]
            }
        }
    }
}

/// Which limits a request is held against. As in QEMU, discards and zeroing count as writes; flushes are never
/// throttled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Reads.
    Read,
    /// Writes, and whatever else changes the disk.
    Write,
}

impl Direction {
    /// The other one.
    pub(super) fn other(self) -> Direction {
        match self {
            Direction::Read => Direction::Write,
            Direction::Write => Direction::Read,
        }
    }
}

/// The limit of one dimension. Units are operations or bytes a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Sustained rate; 0 = no limit.
    pub avg: u64,
    /// Rate during a burst, at least `avg`; 0 = no bursts beyond a tenth of a second's worth of `avg`.
    pub max: u64,
    /// How long a burst may last after an idle time, at least a second; zero = not given, which means one second.
    pub max_length: Duration,
}

/// One [`Rate`] for every [`Dimension`], as written by a user and not checked yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates([Rate; 6]);

impl Index<Dimension> for Rates {
    type Output = Rate;

    fn index(&self, dimension: Dimension) -> &Rate {
        &self.0[dimension as usize]
    }
}

impl IndexMut<Dimension> for Rates {
    fn index_mut(&mut self, dimension: Dimension) -> &mut Rate {
        &mut self.0[dimension as usize]
    }
}

/// Largest rate and largest burst (rate times length), as in QEMU: beyond it the arithmetic would lose bytes.
pub const LARGEST: u64 = 1_000_000_000_000_000;

/// Limits that do not contradict each other. The default is no limit at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    rates: Rates,
    iops_size: u64,
}

impl Limits {
    /// No limit at all.
    pub const UNLIMITED: Limits =
        Limits { rates: Rates([Rate { avg: 0, max: 0, max_length: Duration::ZERO }; 6]), iops_size: 0 };

    /// Checks `rates` and `iops_size` against each other. `iops_size` is bytes: a request larger than it counts as
    /// `bytes / iops_size` operations (6 KiB are one and a half of 4 KiB); 0 = every request is one operation.
    ///
    /// # Errors
    /// Every rule that is broken, in the order of [`Dimension::ALL`].
    pub fn new(rates: Rates, iops_size: u64) -> Result<Limits, Vec<Violation>> {
        let mut violations: Vec<Violation> = Dimension::ALL
            .into_iter()
            .filter_map(|dimension| Some(Violation { dimension, rule: broken_rule(&rates, dimension)? }))
            .collect();
        if iops_size > 0 && Dimension::ALL.iter().all(|&d| !d.counts_operations() || rates[d].avg == 0) {
            violations.push(Violation { dimension: Dimension::IopsTotal, rule: Rule::SizeNeedsIops });
        }
        if violations.is_empty() { Ok(Limits { rates, iops_size }) } else { Err(violations) }
    }

    /// The limit of one dimension.
    pub fn rate(&self, dimension: Dimension) -> Rate {
        self.rates[dimension]
    }

    /// All of them.
    pub fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Bytes that count as one operation; 0 = every request is one.
    pub fn iops_size(&self) -> u64 {
        self.iops_size
    }

    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.rates.0.iter().all(|rate| rate.avg == 0)
    }
}

/// A rule that limits break, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}: {rule}", dimension.name())]
pub struct Violation {
    /// The dimension whose limit breaks it.
    pub dimension: Dimension,
    /// The rule.
    pub rule: Rule,
}

/// The rules of QEMU's throttle groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// Total and read or write limits of one kind exclude each other.
    #[error("a total limit excludes a read or write limit of its kind")]
    TotalExcludesParts,
    /// A number above [`LARGEST`].
    #[error("limits are at most {LARGEST} a second")]
    TooLarge,
    /// A burst rate without a sustained one.
    #[error("a burst rate (_max) needs a limit to return to")]
    MaxNeedsLimit,
    /// A burst slower than the sustained rate.
    #[error("a burst rate (_max) cannot be lower than the limit")]
    MaxBelowLimit,
    /// A burst length without a burst rate.
    #[error("a burst length (_max_length) needs a burst rate (_max)")]
    LengthNeedsMax,
    /// A burst shorter than a second.
    #[error("a burst length (_max_length) is at least one second")]
    LengthTooShort,
    /// Burst rate times length above [`LARGEST`].
    #[error("the burst is too long for its rate: rate times seconds is at most {LARGEST}")]
    BurstTooLarge,
    /// An operation size without anything that counts operations.
    #[error("iops_size needs an iops limit")]
    SizeNeedsIops,
}

fn broken_rule(rates: &Rates, dimension: Dimension) -> Option<Rule> {
    let Rate { avg, max, max_length } = rates[dimension];
    let parts = match dimension {
        Dimension::IopsTotal => [Dimension::IopsRead, Dimension::IopsWrite].as_slice(),
        Dimension::BpsTotal => [Dimension::BpsRead, Dimension::BpsWrite].as_slice(),
        _ => &[],
    };
    if avg > 0 && parts.iter().any(|&part| rates[part].avg > 0) {
        Some(Rule::TotalExcludesParts)
    } else if avg > LARGEST || max > LARGEST {
        Some(Rule::TooLarge)
    } else if max > 0 && avg == 0 {
        Some(Rule::MaxNeedsLimit)
    } else if max > 0 && max < avg {
        Some(Rule::MaxBelowLimit)
    } else if max == 0 && !max_length.is_zero() {
        Some(Rule::LengthNeedsMax)
    } else if !max_length.is_zero() && max_length < Duration::from_secs(1) {
        Some(Rule::LengthTooShort)
    } else if max as f64 * max_length.as_secs_f64() > LARGEST as f64 {
        Some(Rule::BurstTooLarge)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(dimension: Dimension, avg: u64, max: u64, seconds: u64) -> Rates {
        let mut rates = Rates::default();
        rates[dimension] = Rate { avg, max, max_length: Duration::from_secs(seconds) };
        rates
    }

    fn rules(rates: Rates, iops_size: u64) -> Vec<Rule> {
        Limits::new(rates, iops_size).err().unwrap_or_default().iter().map(|v| v.rule).collect()
    }

    #[test]
    fn each_rule_of_qemu_is_kept() {
        for dimension in Dimension::ALL {
            assert_eq!(rules(with(dimension, 100, 0, 0), 0), []);
            assert_eq!(rules(with(dimension, 100, 100, 1), 0), []);
            assert_eq!(rules(with(dimension, LARGEST, LARGEST, 1), 0), []);
            assert_eq!(rules(with(dimension, LARGEST + 1, 0, 0), 0), [Rule::TooLarge]);
            assert_eq!(rules(with(dimension, 1, LARGEST + 1, 0), 0), [Rule::TooLarge]);
            assert_eq!(rules(with(dimension, 0, 100, 0), 0), [Rule::MaxNeedsLimit]);
            assert_eq!(rules(with(dimension, 100, 99, 0), 0), [Rule::MaxBelowLimit]);
            assert_eq!(rules(with(dimension, 100, 0, 2), 0), [Rule::LengthNeedsMax]);
            assert_eq!(rules(with(dimension, 1, LARGEST, 2), 0), [Rule::BurstTooLarge]);
            let iops = dimension.counts_operations();
            assert_eq!(
                rules(with(dimension, 1, 0, 0), 4096).is_empty(),
                iops,
                "iops_size with {dimension:?}"
            );
        }
        let mut short = with(Dimension::BpsRead, 1, 2, 0);
        short[Dimension::BpsRead].max_length = Duration::from_millis(999);
        assert_eq!(rules(short, 0), [Rule::LengthTooShort]);
    }

    #[test]
    fn a_total_excludes_parts_of_its_own_kind_only() {
        for (total, part, allowed) in [
            (Dimension::IopsTotal, Dimension::IopsRead, false),
            (Dimension::IopsTotal, Dimension::IopsWrite, false),
            (Dimension::BpsTotal, Dimension::BpsRead, false),
            (Dimension::BpsTotal, Dimension::BpsWrite, false),
            (Dimension::IopsTotal, Dimension::BpsRead, true),
            (Dimension::BpsTotal, Dimension::IopsWrite, true),
        ] {
            let mut rates = with(total, 10, 0, 0);
            rates[part].avg = 10;
            assert_eq!(Limits::new(rates, 0).is_ok(), allowed, "{total:?} with {part:?}");
        }
    }

    #[test]
    fn every_broken_rule_is_told_with_its_place() {
        let mut rates = with(Dimension::IopsRead, 0, 5, 0);
        rates[Dimension::BpsWrite] = Rate { avg: 10, max: 5, max_length: Duration::ZERO };
        let violations = Limits::new(rates, 512).unwrap_err();
        let texts: Vec<String> = violations.iter().map(Violation::to_string).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[0].starts_with("iops_read: "), "{texts:?}");
        assert!(texts[1].starts_with("bps_write: "), "{texts:?}");
        assert!(texts[2].contains("iops_size"), "{texts:?}");
    }
}
