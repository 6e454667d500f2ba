//! What must hold whatever a client, an image or a configuration says. Each check takes any bytes, makes of them an
//! input that is mostly well formed, runs the product's own code on it, and panics where a promise is broken.
//!
//! ```text
//!   bytes ─▶ arbitrary ─▶ options       handshake  (nbd-wire)
//!                         transmission  handshake, connections, device (daemon, nbd-wire, disk-core)
//!                         image         VDI: open, read, check, describe, repair, write (disk-core)
//!                         settings      configuration (config)
//!                         parsers       what all of those read with, by itself: headers, maps, requests, quantities
//! ```
//! The same checks are the bodies of the cargo-fuzz targets beside this crate, and run on seeded bytes with the other
//! tests.
//!
//! Invariant: a check depends on its bytes alone, so that what it finds can be found again.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};

pub mod image;
pub mod options;
pub mod parsers;
pub mod settings;
pub mod transmission;

/// One check: panics if `input` shows a broken promise. Counts what it came to.
pub type Check = fn(input: &[u8], reached: &mut Reached);

/// How often something was reached, by a few words: a check that reaches nothing proves nothing.
#[derive(Debug, Default)]
pub struct Reached(pub BTreeMap<&'static str, u64>);

impl Reached {
    fn add(&mut self, what: &'static str, times: usize) {
        *self.0.entry(what).or_default() += times as u64;
    }
}

/// The checks by name: that of the fuzz target, and of the folder of its corpus.
pub const CHECKS: [(&str, Check); 5] = [
    ("options", options::check),
    ("transmission", transmission::check),
    ("image", image::check),
    ("settings", settings::check),
    ("parsers", parsers::check),
];

/// Up to `MOST` things. Random bytes make long lists of it, where those that the derived code makes mostly end at once.
#[derive(Debug)]
pub struct Many<T, const MOST: usize>(Vec<T>);

impl<T, const MOST: usize> std::ops::Deref for Many<T, MOST> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'a, T: Arbitrary<'a>, const MOST: usize> Arbitrary<'a> for Many<T, MOST> {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mut many = Vec::new();
        for _ in 0..input.int_in_range(0..=MOST)? {
            if input.is_empty() {
                break;
            }
            many.push(input.arbitrary()?);
        }
        Ok(Many(many))
    }
}

/// Something that is there in one of sixteen inputs: where it is, little of the rest is looked at.
#[derive(Debug)]
struct Rare<T>(Option<T>);

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Rare<T> {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Rare(if one_in(16, input)? { Some(input.arbitrary()?) } else { None }))
    }
}

/// A number that is near some bound more often than not.
#[derive(Debug, Arbitrary)]
enum Number {
    Small(u8),
    Any(u32),
    PowerOfTwo(u8),
    /// Below a power of two by so much.
    Below(u8, u8),
}

impl Number {
    fn value(&self) -> u32 {
        match *self {
            Number::Small(value) => value.into(),
            Number::Any(value) => value,
            Number::PowerOfTwo(bit) => 1 << (bit % 32),
            Number::Below(bit, less) => {
                (1u32.checked_shl((bit % 33).into()).unwrap_or(0)).wrapping_sub(less.into())
            }
        }
    }
}

/// One in `n`, roughly.
fn one_in(n: u8, input: &mut Unstructured<'_>) -> arbitrary::Result<bool> {
    input.ratio(1, n)
}
