//! The wire of the Network Block Device protocol, both directions: bytes to types and back. No I/O, no disks.
//!
//! ```text
//!   handshake  options and their replies ─▶ Session      request ─▶ Session::admit ─▶ reply
//!      └─ option                              what was negotiated decides what is allowed
//! ```
//! Source of every fact: doc/proto.md of the NBD project; extended headers as in its draft of April 2023, which QEMU
//! speaks since 8.2.
//!
//! Invariant: nothing here allocates by a number that a peer sent before that number met a limit.

pub mod client;
pub mod consts;
mod error;
mod export;
mod handshake;
mod option;
mod reply;
mod request;
mod session;

pub use consts::{Abilities, Command, CommandFlags, Errno, TransmissionFlags};
pub use error::Violation;
pub use export::{BlockSize, Denial, ExportInfo, Exports};
pub use handshake::{Handshake, Progress};
pub use option::{Context, ContextId};
pub use reply::{Descriptor, Header, Reply};
pub use request::{HeaderStyle, Request};
pub use session::{Admitted, Refusal, Refused, Session};
