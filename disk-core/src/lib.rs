//! The block layer of diskchain: bytes, images, requests. No TOML, no sockets, no NBD.
//!
//! ```text
//!   device   the life of a request: ticket, throttle, turn, work, accounts
//!     ├─ throttle, tracker
//!     └─ chain      read, write with copy-on-write, zero, discard, status, over layers
//!          └─ format     where bytes are: raw, vdi      ◀─ open   from file names to the layers of a chain
//!               └─ storage    bytes in a file: engines, cache modes, alignment, locks
//!                    └─ stats, buf, clock, range, op, sync, error
//! ```
//! A module names only modules below it; `planted`, for tests, is named wherever a bug is planted. `unsafe` is denied except in `buf` and `storage::uring`.

pub mod buf;
pub mod chain;
pub mod client;
pub mod clock;
pub mod condition;
pub mod device;
pub mod error;
pub mod format;
pub mod op;
pub mod open;
pub mod planted;
pub mod range;
pub mod stats;
pub mod storage;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
pub mod throttle;
pub mod tracker;

pub use error::{Error, ErrorKind, Result};
pub use range::ByteRange;
