//! Reads diskchain's configuration: TOML in, a [`Plan`] that cannot be wrong out.
//!
//! This crate reads text and builds values. It opens no image and starts nothing.
//!
//! ```text
//! load ──── files ──► file ──── typed TOML, ──► shape ──── settings, each ──► resolve ──► Plan
//! includes            merged    with places     (keys,     of its kind         cross-checks
//!                                                units)
//!            └───────────────────────┴──── findings ────────┴────────────────────┴──► Diagnostics
//! ```
//! Every step goes on after an error, so one run shows all errors of all files.

mod address;
mod codes;
mod command_line;
mod diagnostics;
mod file;
pub mod keys;
mod load;
pub mod plan;
mod resolve;
mod shape;
mod source;
mod suggest;
pub mod units;

pub use codes::{CODES, Code, explain};
pub use command_line::FilesToServe;
pub use diagnostics::{Diagnostic, Diagnostics, Severity};
pub use load::{Checked, DefaultSockets, check, load};
pub use plan::Plan;
pub use suggest::nearest;
