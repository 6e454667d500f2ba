//! What is known to be wrong with a disk while it is open.
//!
//! Invariant: it only ever gets worse. Opening the image anew, which checks it, is what makes it sound again.

use std::sync::atomic::{AtomicU8, Ordering};

/// The worst that happened to a disk since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Condition {
    /// Nothing.
    Sound = 0,
    /// A flush failed: of what was written since the last good one, some may be lost.
    FlushFailed = 1,
    /// An image contradicts itself. What needs the wrong part of its metadata is refused.
    Corrupt = 2,
    /// A request ended in a fault of this program. Nothing is read or written any more, as nobody knows what that
    /// would do.
    Frozen = 3,
}

impl Condition {
    /// All of them, the best first.
    pub const ALL: [Condition; 4] =
        [Condition::Sound, Condition::FlushFailed, Condition::Corrupt, Condition::Frozen];

    /// The name that status uses.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Sound => "sound",
            Condition::FlushFailed => "flush-failed",
            Condition::Corrupt => "corrupt",
            Condition::Frozen => "frozen",
        }
    }
}

/// A condition that requests look at and make worse.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU8);

impl Gauge {
    pub fn now(&self) -> Condition {
        Condition::ALL[usize::from(self.0.load(Ordering::Relaxed))]
    }

    /// Returns whether it has become worse by this.
    pub fn worsen(&self, condition: Condition) -> bool {
        self.0.fetch_max(condition as u8, Ordering::Relaxed) < condition as u8
    }
}
