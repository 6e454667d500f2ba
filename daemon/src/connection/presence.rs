//! Whether the client is still at the other end of its socket, and how it left.

use std::time::Duration;

use disk_core::clock::Moment;
use nbd_wire::{Command, HeaderStyle, Request};

use crate::socket::Socket;

/// How long a client that was there is taken to be still there. Nobody gives a connection up, sends what was in flight
/// over another one and has it acknowledged in less.
const TRUST: Duration = Duration::from_micros(100);

/// What is known of the other end of the socket.
pub struct Presence {
    /// When it was there.
    seen_at: Moment,
    /// It hung up, and what it sent does not end with a goodbye.
    gone: bool,
    /// It hung up, and its goodbye is still to be read.
    goodbye: bool,
}

impl Presence {
    /// It is there at `now`.
    pub fn new(now: Moment) -> Self {
        Presence { seen_at: now, gone: false, goodbye: false }
    }

    /// Whether the client hung up without a goodbye, looked for at most once in [`TRUST`]. `unparsed` has been received
    /// and goes before what the socket holds; `now` is a moment just passed.
    pub fn is_gone(&mut self, socket: &Socket, unparsed: &[u8], style: HeaderStyle, now: Moment) -> bool {
        if self.gone || self.goodbye {
            return self.gone;
        }
        if now.since(self.seen_at) < TRUST {
            return false;
        }
        self.seen_at = now;
        if socket.is_hung_up() {
            // Nothing will come any more, so its last words are here.
            let unread = socket.peek_all();
            let len = style.request_len();
            let words: Vec<u8> =
                unparsed[unparsed.len().saturating_sub(len)..].iter().chain(&unread).copied().collect();
            let last = words.len().checked_sub(len).map(|start| Request::parse(&words[start..], style));
            self.goodbye =
                matches!(last, Some(Ok(Some((request, _)))) if request.command == Command::Disconnect);
            self.gone = !self.goodbye;
        }
        self.gone
    }
}
