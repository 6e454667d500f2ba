//! The arithmetic of throttling: leaky buckets as QEMU's throttle groups have them. No clock, no lock: the time is
//! an argument, in nanoseconds since any fixed moment.
//!
//! ```text
//!      request's cost ──▶ ┌──────────┐  level: what went through and has not leaked yet
//!                         │          │  size:  avg/10, or max × length with bursts
//!                         └────┬─────┘
//!                              ▼ leaks avg a second
//! ```
//! With a burst length of more than a second a second bucket (size max/10, leaking max) keeps the burst itself at
//! its rate. A request goes when no bucket of its direction is above its size; only then its cost is added,
//! however large: a request larger than the bucket passes, and those after it pay.
//!
//! Invariant: levels are never negative, and time that goes backwards leaks nothing.

use std::time::Duration;

use super::limits::{Dimension, Direction, Limits, Rate};

const NANOSECONDS: f64 = 1e9;

/// The buckets of one [`Limits`].
#[derive(Debug)]
pub(super) struct Buckets {
    buckets: [Option<Bucket>; 6],
    iops_size: u64,
    leaked_at: u64,
}

impl Buckets {
    /// Empty buckets. `now` is nanoseconds.
    pub(super) fn new(limits: &Limits, now: u64) -> Self {
        let buckets = Dimension::ALL.map(|dimension| Bucket::new(limits.rate(dimension)));
        Buckets { buckets, iops_size: limits.iops_size(), leaked_at: now }
    }

    /// Other limits from `now` on. Full buckets stay full, so that changing limits again and again gives no free
    /// bursts; but none starts above its new size, so that nobody waits for what old limits allowed.
    pub(super) fn set(&mut self, limits: &Limits, now: u64) {
        self.leak(now);
        let old = std::mem::replace(self, Buckets::new(limits, now));
        for (new, old) in self.buckets.iter_mut().zip(&old.buckets) {
            if let (Some(new), Some(old)) = (new, old) {
                new.inherit(old);
            }
        }
    }

    /// What a request of this direction has to wait for at `now` (nanoseconds): the dimension with the longest
    /// wait, and that wait. `None`: it may go.
    pub(super) fn wait(&mut self, direction: Direction, now: u64) -> Option<(Dimension, Duration)> {
        self.leak(now);
        Dimension::of(direction)
            .into_iter()
            .filter_map(|dimension| Some((dimension, self.buckets[dimension as usize].as_ref()?.wait()?)))
            .max_by_key(|&(_, nanoseconds)| nanoseconds)
            .map(|(dimension, nanoseconds)| (dimension, Duration::from_nanos(nanoseconds)))
    }

    /// Whether a request of this direction may go at `now` (nanoseconds).
    pub(super) fn lets_go(&mut self, direction: Direction, now: u64) -> bool {
        self.leak(now);
        let mut buckets =
            Dimension::of(direction).into_iter().map(|dimension| &self.buckets[dimension as usize]);
        buckets.all(|bucket| bucket.as_ref().is_none_or(|bucket| bucket.wait().is_none()))
    }

    /// Adds the cost of a request that goes now.
    pub(super) fn charge(&mut self, direction: Direction, bytes: u64) {
        let operations = self.operations(bytes);
        for dimension in Dimension::of(direction) {
            if let Some(bucket) = &mut self.buckets[dimension as usize] {
                bucket.add(if dimension.counts_operations() { operations } else { bytes as f64 });
            }
        }
    }

    /// Operations that a request counts as: one, or its share of `iops_size` when it is larger.
    fn operations(&self, bytes: u64) -> f64 {
        if self.iops_size > 0 && bytes > self.iops_size { bytes as f64 / self.iops_size as f64 } else { 1.0 }
    }

    fn leak(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.leaked_at);
        if elapsed > 0 {
            self.leaked_at = now;
            self.buckets.iter_mut().flatten().for_each(|bucket| bucket.leak(elapsed as f64));
        }
    }
}

/// The bucket of one dimension, with that of its burst.
#[derive(Debug)]
struct Bucket {
    sustained: Level,
    burst: Option<Level>,
}

impl Bucket {
    fn new(Rate { avg, max, max_length }: Rate) -> Option<Bucket> {
        let (avg, max) = (avg as f64, max as f64);
        let seconds = max_length.as_secs_f64().max(1.0);
        if avg == 0.0 {
            None
        } else if max == 0.0 {
            Some(Bucket { sustained: Level::new(avg, avg / 10.0), burst: None })
        } else {
            let burst = (seconds > 1.0).then(|| Level::new(max, max / 10.0));
            Some(Bucket { sustained: Level::new(avg, max * seconds), burst })
        }
    }

    fn inherit(&mut self, old: &Bucket) {
        self.sustained.level = old.sustained.level.min(self.sustained.size);
        if let (Some(new), Some(old)) = (&mut self.burst, &old.burst) {
            new.level = old.level.min(new.size);
        }
    }

    fn leak(&mut self, elapsed: f64) {
        self.sustained.leak(elapsed);
        if let Some(burst) = &mut self.burst {
            burst.leak(elapsed);
        }
    }

    fn add(&mut self, cost: f64) {
        self.sustained.level += cost;
        if let Some(burst) = &mut self.burst {
            burst.level += cost;
        }
    }

    /// Nanoseconds until a request may go; `None`: now.
    fn wait(&self) -> Option<u64> {
        self.sustained.wait().or_else(|| self.burst.as_ref()?.wait())
    }
}

#[derive(Debug)]
struct Level {
    level: f64,
    size: f64,
    leak_per_nanosecond: f64,
}

impl Level {
    fn new(leak_per_second: f64, size: f64) -> Level {
        Level { level: 0.0, size, leak_per_nanosecond: leak_per_second / NANOSECONDS }
    }

    fn leak(&mut self, elapsed: f64) {
        self.level = (self.level - self.leak_per_nanosecond * elapsed).max(0.0);
    }

    fn wait(&self) -> Option<u64> {
        let above = self.level - self.size;
        if above <= 0.0 {
            return None;
        }
        // Less than a nanosecond is nothing: otherwise rounding could ask for one more timer after the wait.
        let nanoseconds = (above / self.leak_per_nanosecond) as u64;
        (nanoseconds > 0).then_some(nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::Rates;
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn limits(dimension: Dimension, avg: u64, max: u64, seconds: u64) -> Limits {
        let mut rates = Rates::default();
        rates[dimension] = Rate { avg, max, max_length: Duration::from_secs(seconds) };
        Limits::new(rates, 0).unwrap()
    }

    /// Reads that go at `now` without waiting, at most `most`.
    fn take(buckets: &mut Buckets, now: u64, most: usize) -> usize {
        (0..most)
            .take_while(|_| {
                let goes = buckets.wait(Direction::Read, now).is_none();
                if goes {
                    buckets.charge(Direction::Read, 4096);
                }
                goes
            })
            .count()
    }

    fn wait(buckets: &mut Buckets, now: u64) -> Duration {
        buckets.wait(Direction::Read, now).map_or(Duration::ZERO, |(_, wait)| wait)
    }

    #[test]
    fn without_a_burst_a_tenth_of_a_second_goes_at_once_and_then_the_rate() {
        let mut buckets = Buckets::new(&limits(Dimension::IopsTotal, 100, 0, 0), 0);
        // Ten fill the bucket, and a full bucket is not above its size.
        assert_eq!(take(&mut buckets, 0, 1000), 11);
        assert_eq!(wait(&mut buckets, 0), Duration::from_millis(10));
        assert_eq!(take(&mut buckets, SECOND / 100, 1000), 1);
        assert_eq!(take(&mut buckets, 2 * SECOND, 1000), 11, "an idle time allows no more than the bucket");
    }

    #[test]
    fn with_max_alone_a_second_of_it_goes_at_once() {
        let mut buckets = Buckets::new(&limits(Dimension::IopsRead, 10, 200, 0), 0);
        assert_eq!(take(&mut buckets, 0, 1000), 201);
        assert_eq!(wait(&mut buckets, 0), Duration::from_millis(100), "one operation at ten a second");
    }

    #[test]
    fn with_a_length_the_burst_itself_is_held_to_its_rate() {
        let mut buckets = Buckets::new(&limits(Dimension::IopsRead, 10, 200, 10), 0);
        assert_eq!(take(&mut buckets, 0, 1000), 21, "a tenth of a second of the burst rate");
        assert_eq!(wait(&mut buckets, 0), Duration::from_millis(5), "one operation at two hundred a second");
        // Every 5 ms one goes, until 2000 are in the bucket that leaks 10 a second.
        let mut now = 0;
        let mut done = 21;
        while take(&mut buckets, now, 1) == 1 || wait(&mut buckets, now) <= Duration::from_millis(5) {
            now += 5_000_000;
            done += 1;
            assert!(now < 20 * SECOND, "the burst never ends");
        }
        let expected = 2000 * SECOND / 190;
        assert!(now.abs_diff(expected) < SECOND / 5, "the burst lasted {now} ns and {done} requests");
        let after: usize = (1..=1000).map(|at| take(&mut buckets, now + at * SECOND / 100, 10)).sum();
        assert!((98..=102).contains(&after), "{after} in the ten seconds after the burst");
    }

    #[test]
    fn a_request_larger_than_the_bucket_goes_and_those_after_it_pay() {
        let mut buckets = Buckets::new(&limits(Dimension::BpsWrite, 1_000_000, 0, 0), 0);
        assert!(buckets.wait(Direction::Write, 0).is_none());
        buckets.charge(Direction::Write, 32_100_000);
        assert_eq!(
            buckets.wait(Direction::Write, 0),
            Some((Dimension::BpsWrite, Duration::from_secs(32))),
            "all but a tenth of a second's worth has to leak"
        );
        assert_eq!(buckets.wait(Direction::Read, 0), None, "reads are not concerned");
    }

    #[test]
    fn requests_above_iops_size_count_as_their_share_of_it() {
        let mut rates = Rates::default();
        rates[Dimension::IopsTotal].avg = 1000;
        let limits = Limits::new(rates, 4096).unwrap();
        for (bytes, operations) in
            [(0, 1.0), (512, 1.0), (4096, 1.0), (6144, 1.5), (8192, 2.0), (1 << 20, 256.0)]
        {
            assert_eq!(Buckets::new(&limits, 0).operations(bytes), operations, "{bytes} bytes");
        }
    }

    #[test]
    fn the_dimension_with_the_longest_wait_is_named() {
        let mut rates = Rates::default();
        rates[Dimension::IopsTotal].avg = 10;
        rates[Dimension::BpsTotal].avg = 1000;
        let mut buckets = Buckets::new(&Limits::new(rates, 0).unwrap(), 0);
        buckets.charge(Direction::Read, 1100);
        buckets.charge(Direction::Read, 0);
        assert_eq!(
            buckets.wait(Direction::Write, 0),
            Some((Dimension::BpsTotal, Duration::from_secs(1))),
            "the operations would wait for 0.1 s only"
        );
    }

    #[test]
    fn other_limits_keep_full_buckets_full_but_not_above_their_size() {
        let mut buckets = Buckets::new(&limits(Dimension::IopsTotal, 10, 1000, 10), 0);
        for at in 0..50 {
            take(&mut buckets, at * SECOND / 10, 1000);
        }
        buckets.set(&limits(Dimension::IopsTotal, 20, 0, 0), 5 * SECOND);
        assert_eq!(take(&mut buckets, 5 * SECOND, 1000), 1, "no free burst, and no debt of the old limits");
        assert_eq!(wait(&mut buckets, 5 * SECOND), Duration::from_millis(50));
    }

    #[test]
    fn time_that_goes_backwards_leaks_nothing() {
        let mut buckets = Buckets::new(&limits(Dimension::IopsTotal, 100, 0, 0), SECOND);
        assert_eq!(take(&mut buckets, SECOND, 1000), 11);
        assert_eq!(take(&mut buckets, 0, 1000), 0);
        assert_eq!(take(&mut buckets, SECOND, 1000), 0);
        assert_eq!(take(&mut buckets, SECOND + SECOND / 100, 1000), 1);
    }

    /// The same rules in whole numbers, worked out from the whole history for every question. Amounts are
    /// billionths of a unit, times `iops_size`.
    struct Reference {
        rates: Rates,
        iops_size: u64,
        history: Vec<(u64, Direction, u64)>,
    }

    impl Reference {
        fn level(&self, dimension: Dimension, leak: u64, now: u64) -> u128 {
            let scale = u128::from(self.iops_size.max(1));
            let (mut level, mut last) = (0u128, 0);
            for &(at, direction, bytes) in &self.history {
                if !Dimension::of(direction).contains(&dimension) {
                    continue;
                }
                level = level.saturating_sub(u128::from(leak) * u128::from(at - last) * scale);
                last = at;
                let cost = match (dimension.counts_operations(), self.iops_size > 0 && bytes > self.iops_size)
                {
                    (true, true) => u128::from(bytes),
                    (true, false) => scale,
                    (false, _) => u128::from(bytes) * scale,
                };
                level += cost * 1_000_000_000;
            }
            level.saturating_sub(u128::from(leak) * u128::from(now - last) * scale)
        }

        /// Nanoseconds, rounded up.
        fn wait(&self, direction: Direction, now: u64) -> u64 {
            let scale = u128::from(self.iops_size.max(1));
            let mut longest = 0;
            for dimension in Dimension::of(direction) {
                let Rate { avg, max, max_length } = self.rates[dimension];
                if avg == 0 {
                    continue;
                }
                let length = max_length.as_nanos().max(1_000_000_000);
                let size = if max > 0 { u128::from(max) * length } else { u128::from(avg) * 100_000_000 };
                let above = self.level(dimension, avg, now).saturating_sub(size * scale);
                let mut wait = above.div_ceil(u128::from(avg) * scale);
                if wait == 0 && max > 0 && length > 1_000_000_000 {
                    let burst = u128::from(max) * 100_000_000;
                    let above = self.level(dimension, max, now).saturating_sub(burst * scale);
                    wait = above.div_ceil(u128::from(max) * scale);
                }
                longest = longest.max(wait as u64);
            }
            longest
        }
    }

    fn rate() -> impl Strategy<Value = Rate> {
        (1u64..5000, 0u64..4, 0u64..8000).prop_map(|(avg, bursts, milliseconds)| Rate {
            avg,
            max: avg * bursts,
            max_length: Duration::from_millis(if bursts == 0 || milliseconds < 1000 {
                0
            } else {
                milliseconds
            }),
        })
    }

    fn any_limits() -> impl Strategy<Value = Limits> {
        (prop::array::uniform6(rate()), 0u8..4, 0u8..4, prop_oneof![Just(0u64), 1u64..3000]).prop_map(
            |(each, iops, bps, iops_size)| {
                let mut rates = Rates::default();
                for (which, total) in [(iops, Dimension::IopsTotal), (bps, Dimension::BpsTotal)] {
                    let kind = total as usize;
                    let parts: &[usize] = match which {
                        0 => &[],
                        1 => &[kind],
                        2 => &[kind + 1],
                        _ => &[kind + 1, kind + 2],
                    };
                    parts.iter().for_each(|&part| rates[Dimension::ALL[part]] = each[part]);
                }
                Limits::new(rates, if iops > 0 { iops_size } else { 0 }).unwrap()
            },
        )
    }

    proptest! {
        #[test]
        fn buckets_do_as_whole_numbers_and_the_whole_history_say(
            limits in any_limits(),
            script in prop::collection::vec((0u64..400_000_000, any::<bool>(), 0u64..9000), 1..80),
        ) {
            let mut buckets = Buckets::new(&limits, 0);
            let mut reference =
                Reference { rates: *limits.rates(), iops_size: limits.iops_size(), history: Vec::new() };
            let mut now = 0;
            for (pause, read, bytes) in script {
                now += pause;
                let direction = if read { Direction::Read } else { Direction::Write };
                let expected = reference.wait(direction, now);
                let actual = buckets.wait(direction, now).map_or(0, |(_, wait)| wait.as_nanos() as u64);
                // Rounding: a nanosecond, and what a level of many digits cannot hold.
                prop_assert!(
                    actual.abs_diff(expected) <= 1 + expected / 1_000_000_000,
                    "{} ns, not {} ns, at {} ns", actual, expected, now
                );
                // Every other request goes although it should wait, so that levels above the size are met, too.
                if actual == 0 || bytes % 2 == 0 {
                    buckets.charge(direction, bytes);
                    reference.history.push((now, direction, bytes));
                }
            }
        }

        #[test]
        fn after_the_wait_the_request_goes(limits in any_limits(), costs in prop::collection::vec(0u64..100_000, 1..20)) {
            let mut buckets = Buckets::new(&limits, 0);
            costs.iter().for_each(|&bytes| buckets.charge(Direction::Write, bytes));
            let mut now = 0;
            let mut waits = 0;
            while let Some((_, wait)) = buckets.wait(Direction::Write, now) {
                now += wait.as_nanos() as u64;
                waits += 1;
                // Once for the bucket of the average, once for that of the burst, and that again for the other kind.
                prop_assert!(waits <= 4, "still {:?} after {} waits", wait, waits);
            }
        }
    }
}
