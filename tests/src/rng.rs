//! Random numbers that a seed repeats.
//!
//! A test's seed is fixed, so that a run is the same everywhere; DISKCHAIN_TEST_SEED gives another.
//! Every use prints its seed, and the test runner shows that line when the test fails.

/// A splitmix64 generator.
pub struct Rng(u64);

impl Rng {
    /// The generator of the test `name`: seeded by its name and by DISKCHAIN_TEST_SEED (0 if unset).
    ///
    /// # Panics
    /// When DISKCHAIN_TEST_SEED is not a number.
    pub fn for_test(name: &str) -> Rng {
        let seed: u64 = match std::env::var("DISKCHAIN_TEST_SEED") {
            Ok(text) => text.parse().expect("DISKCHAIN_TEST_SEED is a number"),
            Err(_) => 0,
        };
        println!("{name}: DISKCHAIN_TEST_SEED={seed}");
        let mut rng = Rng(seed);
        for byte in name.bytes() {
            rng.0 = rng.0.wrapping_add(u64::from(byte));
            rng.next();
        }
        rng
    }

    /// The generator that `seed` names.
    pub fn seeded(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "an endless generator is no iterator here")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number of `range`, which must not be empty.
    pub fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// `len` bytes that hold no run of zeroes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next() | 0x0101_0101_0101_0101);
        words.flat_map(u64::to_le_bytes).take(len).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_gives_the_same_numbers_and_another_name_gives_others() {
        let take = |name| {
            let mut rng = Rng::for_test(name);
            [rng.next(), rng.next(), rng.below(1000)]
        };
        assert_eq!(take("a"), take("a"));
        assert_ne!(take("a"), take("b"));
    }

    #[test]
    fn random_bytes_have_the_length_asked_for_and_no_zero() {
        let bytes = Rng::for_test("bytes").bytes(1001);
        assert_eq!(bytes.len(), 1001);
        assert!(bytes.iter().all(|byte| *byte != 0));
    }
}
