//! Test doubles of the block layer. Compiled with the feature `testing` only, never into a release binary.
//!
//! ```text
//!   CrashStorage   records what is written and builds what a power cut could have left
//!   Faults         fails, tears or delays chosen operations of the storage below
//!   Hold           keeps chosen operations waiting until the test lets them go
//!   Jitter         makes operations take random times
//!   model          what a disk must read, whatever was done to it
//!   trials         one case of each campaign
//! ```
//! They are storages around storages and can be stacked: `Hold` over `Faults` over `CrashStorage`.

pub mod crash;
pub mod faults;
pub mod hold;
pub mod jitter;
pub mod model;
pub mod trials;

pub use crash::CrashStorage;
pub use faults::{Fault, Faults};
pub use hold::Hold;
pub use jitter::Jitter;

use futures_util::FutureExt;

use crate::error::Result;
use crate::storage::{Completer, Completion};

/// The operations of a [`Storage`](crate::storage::Storage) that can be singled out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// [`read`](crate::storage::Storage::read)
    Read,
    /// [`write`](crate::storage::Storage::write)
    Write,
    /// [`zero`](crate::storage::Storage::zero)
    Zero,
    /// [`discard`](crate::storage::Storage::discard)
    Discard,
    /// [`status`](crate::storage::Storage::status)
    Status,
    /// [`flush`](crate::storage::Storage::flush)
    Flush,
    /// [`resize`](crate::storage::Storage::resize)
    Resize,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 7] = [Op::Read, Op::Write, Op::Zero, Op::Discard, Op::Status, Op::Flush, Op::Resize];
}

/// Passes what `turn` makes of an outcome on when it is there; at once if it is there already, so that a test in
/// memory stays in order.
fn forward<A: Send + 'static, B: Send + 'static>(
    mut from: Completion<A>,
    to: Completer<B>,
    turn: impl FnOnce(Result<A>) -> Result<B> + Send + 'static,
) {
    match (&mut from).now_or_never() {
        Some(outcome) => to.complete(turn(outcome)),
        None => {
            tokio::spawn(async move { to.complete(turn(from.await)) });
        }
    }
}

/// SplitMix64: a well spread number that depends on both.
fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
