//! How fast a client takes replies or sends payloads: who stands still while others wait for the memory is dropped.

use std::time::Duration;

use disk_core::clock::Moment;

/// How long a client may take for the next [`STALL_BYTES`] of a payload or of replies (or for all of it, if that is less)
/// while others wait for the memory it holds. One byte now and then is not enough, or a few such clients could hold all
/// memory for ever.
pub const STALL_MOST: Duration = Duration::from_secs(10);

/// See [`STALL_MOST`]: a link of a megabit a second manages.
const STALL_BYTES: usize = 1 << 20;

/// How fast bytes move that others may be waiting for.
pub struct Pace {
    since: Moment,
    bytes: usize,
}

impl Pace {
    /// From `now` on.
    pub fn start(now: Moment) -> Self {
        Pace { since: now, bytes: 0 }
    }

    /// So many bytes have moved.
    pub fn moved(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= STALL_BYTES {
            *self = Pace::start(Moment::now());
        }
    }

    /// Whether too few have moved for too long.
    pub fn stands(&self, now: Moment) -> bool {
        now.since(self.since) > STALL_MOST
    }
}
