//! The handshake over a socket: bytes in, answers out, within a bounded time and memory.
//!
//! Invariant: a client that has not chosen an export costs one descriptor, a task and at most one option's data, and no
//! longer than the handshake time-out, however slowly it sends.

use std::io;
use std::time::Duration;

use nbd_wire::{Exports, Handshake, Progress, Session, Violation};

use crate::socket::Socket;

/// Bytes of one receive; few handshakes send more in all.
const RECEIVE: usize = 4096;

/// How a handshake ended without an export.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The client broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The socket broke, or the client closed it.
    #[error("the connection ended: {0}")]
    Socket(#[from] io::Error),
    /// It took too long.
    #[error("no export was chosen within {0:?}")]
    TimedOut(Duration),
    /// The client left in due form.
    #[error("the client left")]
    Aborted,
}

impl Failure {
    /// The reasons that are counted. Leaving in due form is none.
    pub const REASONS: [&str; 3] = ["violation", "socket", "timeout"];

    /// The word that metrics count it under.
    pub fn reason(&self) -> &'static str {
        match self {
            Failure::Violation(_) => "violation",
            Failure::Socket(_) => "socket",
            Failure::TimedOut(_) => "timeout",
            Failure::Aborted => "aborted",
        }
    }
}

/// Negotiates with a client until it has chosen an export. Returns what was agreed, and bytes that came behind it.
///
/// # Errors
/// Why there is no session.
pub async fn negotiate(
    socket: &Socket,
    exports: &(impl Exports + Sync),
    most: Duration,
) -> Result<(Session, Vec<u8>), Failure> {
    tokio::time::timeout(most, talk(socket, exports)).await.unwrap_or(Err(Failure::TimedOut(most)))
}

async fn talk(socket: &Socket, exports: &(impl Exports + Sync)) -> Result<(Session, Vec<u8>), Failure> {
    socket.write_all(&Handshake::greeting()).await?;
    let mut handshake = Handshake::default();
    let mut input = Vec::new();
    loop {
        let start = input.len();
        input.resize(start + RECEIVE, 0);
        let len = socket.read(&mut input[start..]).await?;
        input.truncate(start + len);
        if len == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut answers = Vec::new();
        let outcome = handshake.feed(&input, exports, &mut answers);
        // Also when the handshake fails: the client may learn from them why.
        let sent = socket.write_all(&answers).await;
        let (taken, progress) = outcome?;
        input.drain(..taken);
        match progress {
            Progress::More => sent?,
            Progress::Chosen(session) => {
                sent?;
                return Ok((session, input));
            }
            // A client may close right after ABORT, without waiting for the answer.
            Progress::Aborted => return Err(Failure::Aborted),
        }
    }
}
