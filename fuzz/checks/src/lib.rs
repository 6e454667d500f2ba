//! What must hold whatever a client, an image or a configuration says. Each check takes any bytes, makes of them an
//! input that is mostly well formed, runs the product's own code on it, and panics where a promise is broken.
//!
//! ```text
//!   bytes ─▶ arbitrary ─▶ options       handshake  (nbd-wire)
//!                         transmission  handshake, connections, device (daemon, nbd-wire, disk-core)
//!                         image         VDI: open, read, check, describe, repair, write (disk-core)
//!                         settings      configuration (config)
//! ```
//! The same checks are the bodies of the cargo-fuzz targets beside this crate, and run on seeded bytes with the other
//! tests.
//!
//! Invariant: a check depends on its bytes alone, so that what it finds can be found again.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};

pub mod image;
pub mod options;
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
pub const CHECKS: [(&str, Check); 4] = [
    ("options", options::check),
    ("transmission", transmission::check),
    ("image", image::check),
    ("settings", settings::check),
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

/// One in `n`, roughly.
fn one_in(n: u8, input: &mut Unstructured<'_>) -> arbitrary::Result<bool> {
    input.ratio(1, n)
}
