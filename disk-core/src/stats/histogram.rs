//! Histograms of bounded memory: durations in eight buckets an octave, sizes in one.
//!
//! Invariant: bucket `i` of a [`Durations`] counts what is above `upper(i - 1)` and not above `upper(i)`, so a
//! cumulative count up to a bucket's bound is exact, and a quantile is known to within an eighth of its value.

use std::time::Duration;

const PER_OCTAVE_LOG2: u32 = 3;
const PER_OCTAVE: usize = 1 << PER_OCTAVE_LOG2;

/// The first bucket holds everything up to 2⁷ ns = 128 ns: nothing that moves a block is faster.
const FIRST_OCTAVE: u32 = 7;

/// The last bucket holds everything above 2⁴⁰ ns = 1100 s: by then clients have given up.
const LAST_OCTAVE: u32 = 40;

/// Number of buckets.
const BUCKETS: usize = (LAST_OCTAVE - FIRST_OCTAVE) as usize * PER_OCTAVE + 2;

/// A histogram of durations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durations(Box<[u64; BUCKETS]>);

impl Default for Durations {
    fn default() -> Self {
        Durations(Box::new([0; BUCKETS]))
    }
}

impl Durations {
    /// Counts one more.
    pub(super) fn record(&mut self, duration: Duration) {
        // 2⁶⁴ nanoseconds are 584 years.
        self.0[index(duration.as_nanos() as u64)] += 1;
    }

    /// Durations that were counted.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Durations that were not above `bound`. Exact if the bound is a power of two of nanoseconds from 128 ns to
    /// 1100 s (or any eighth between two of them); otherwise that of the next such bound below.
    pub fn count_up_to(&self, bound: Duration) -> u64 {
        let nanoseconds = bound.as_nanos();
        (0..BUCKETS - 1)
            .take_while(|&bucket| u128::from(upper(bucket)) <= nanoseconds)
            .map(|bucket| self.0[bucket])
            .sum()
    }

    /// The bounds (above, up to) between which the `quantile` (0 to 1) of all durations lies: at most an eighth
    /// apart, except below 128 ns and above 1100 s. `None` when nothing was counted.
    pub fn quantile(&self, quantile: f64) -> Option<(Duration, Duration)> {
        let count = self.count();
        // The smallest duration that at least this many are not above.
        let rank = ((count as f64 * quantile.clamp(0.0, 1.0)).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let bucket = self.0.iter().position(|&here| {
            seen += here;
            seen >= rank
        })?;
        let lower = bucket.checked_sub(1).map_or(0, upper);
        Some((Duration::from_nanos(lower), Duration::from_nanos(upper(bucket))))
    }

    /// Adds what another histogram has counted.
    pub fn merge(&mut self, other: &Durations) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0.iter()) {
            *mine += theirs;
        }
    }
}

/// The bucket that a duration is counted in.
fn index(nanoseconds: u64) -> usize {
    // Upper bounds are inclusive, as in OpenMetrics; shifting by one makes the lower ones so, which bits can tell.
    let value = nanoseconds.saturating_sub(1);
    if value < 1 << FIRST_OCTAVE {
        return 0;
    }
    let octave = value.ilog2();
    if octave >= LAST_OCTAVE {
        return BUCKETS - 1;
    }
    let eighth = (value >> (octave - PER_OCTAVE_LOG2)) as usize % PER_OCTAVE;
    (octave - FIRST_OCTAVE) as usize * PER_OCTAVE + eighth + 1
}

/// Upper bound of a bucket, nanoseconds, inclusive.
fn upper(bucket: usize) -> u64 {
    let Some(bucket) = bucket.checked_sub(1) else { return 1 << FIRST_OCTAVE };
    if bucket + 2 == BUCKETS {
        return u64::MAX;
    }
    let octave = FIRST_OCTAVE + (bucket / PER_OCTAVE) as u32;
    ((PER_OCTAVE + bucket % PER_OCTAVE + 1) as u64) << (octave - PER_OCTAVE_LOG2)
}

/// Upper bounds of request sizes, bytes: 512 B, 1 KiB … 32 MiB; what is larger comes after them.
pub const SIZE_BOUNDS: [u64; 17] = {
    let mut bounds = [512; 17];
    let mut at = 1;
    while at < bounds.len() {
        bounds[at] = bounds[at - 1] * 2;
        at += 1;
    }
    bounds
};

/// Requests by size: up to each of [`SIZE_BOUNDS`] and above the one before; the last counts those above all.
pub type Sizes = [u64; SIZE_BOUNDS.len() + 1];

/// The place in [`Sizes`] where a request of so many bytes is counted.
pub(super) fn size_index(bytes: u64) -> usize {
    let above_first = bytes.saturating_sub(1) / SIZE_BOUNDS[0];
    let bucket = above_first.checked_ilog2().map_or(0, |octave| octave as usize + 1);
    bucket.min(SIZE_BOUNDS.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Durations of every magnitude.
    fn durations() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec((0u32..46, any::<u64>()).prop_map(|(bits, v)| v & ((1 << bits) - 1)), 1..300)
    }

    fn histogram(values: &[u64]) -> Durations {
        let mut histogram = Durations::default();
        values.iter().for_each(|&value| histogram.record(Duration::from_nanos(value)));
        histogram
    }

    proptest! {
        #[test]
        fn a_quantile_lies_between_its_bounds_and_they_are_close(mut values in durations(), quantile in 0.0f64..=1.0) {
            let histogram = histogram(&values);
            values.sort_unstable();
            let rank = ((values.len() as f64 * quantile).ceil() as usize).max(1);
            let exact = values[rank - 1];
            let (above, up_to) = histogram.quantile(quantile).unwrap();
            let (above, up_to) = (above.as_nanos() as u64, up_to.as_nanos() as u64);
            prop_assert!((above < exact || exact == 0) && exact <= up_to, "{} in {}..={}", exact, above, up_to);
            if exact > 128 && exact <= 1 << LAST_OCTAVE {
                prop_assert!(up_to - above <= above / 8, "{}..={} is too wide", above, up_to);
            }
        }

        #[test]
        fn cumulative_counts_and_merged_histograms_are_exact(left in durations(), right in durations(), octave in 7u32..=40) {
            let mut both = histogram(&left);
            both.merge(&histogram(&right));
            let all: Vec<u64> = left.into_iter().chain(right).collect();
            prop_assert_eq!(both.count(), all.len() as u64);
            let bound = 1u64 << octave;
            let expected = all.iter().filter(|&&value| value <= bound).count();
            prop_assert_eq!(both.count_up_to(Duration::from_nanos(bound)), expected as u64);
        }

        #[test]
        fn a_size_is_counted_below_its_bound(bytes in 0u64..1 << 40) {
            let expected = SIZE_BOUNDS.iter().position(|&bound| bytes <= bound).unwrap_or(SIZE_BOUNDS.len());
            prop_assert_eq!(size_index(bytes), expected);
        }
    }

    #[test]
    fn buckets_are_adjacent_and_each_holds_its_own_bounds() {
        for bucket in 0..BUCKETS {
            assert_eq!(index(upper(bucket)), bucket, "upper bound of {bucket}");
            if bucket > 0 {
                assert_eq!(index(upper(bucket - 1) + 1), bucket, "lower bound of {bucket}");
            }
        }
        assert_eq!(upper(BUCKETS - 2), 1 << LAST_OCTAVE);
        assert_eq!(index(0), 0);
    }

    #[test]
    fn an_empty_histogram_has_no_quantiles() {
        assert_eq!(Durations::default().quantile(0.5), None);
    }
}
