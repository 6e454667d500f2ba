//! Bytes that were received and not parsed yet, in a buffer that is as large as the client makes use of.
//!
//! Invariant: bytes come out once and in the order in which they came in.

use std::{io, mem};

use disk_core::buf::{BufMut, Pool};

/// Bytes that one receive takes at most: what a Unix socket holds, so that a client's writes come as the batch that it
/// sent, and are answered as one.
pub const RECEIVE: usize = 256 << 10;

/// The same until a receive has filled it: most connections never send more at once, or are silent.
const RECEIVE_FIRST: usize = 16 << 10;

/// Bytes that were received and not parsed yet.
pub struct Input {
    buffer: Option<BufMut>,
    /// Bytes that the buffer should have.
    size: usize,
    start: usize,
    end: usize,
}

impl Input {
    /// Bytes that came behind the handshake.
    pub fn new(leftover: &[u8]) -> Self {
        let mut input = Input { buffer: None, size: RECEIVE_FIRST, start: 0, end: 0 };
        if !leftover.is_empty() {
            let mut buffer = Pool::global().take(leftover.len().max(input.size));
            buffer[..leftover.len()].copy_from_slice(leftover);
            (input.buffer, input.end) = (Some(buffer), leftover.len());
        }
        input
    }

    /// What is there.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether there is no room to receive into, nor will be.
    pub fn is_full(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| self.end - self.start >= buffer.len().max(self.size))
    }

    /// Forgets the first `len` bytes.
    pub fn consume(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves bytes to where they belong; returns how many.
    pub fn take_into(&mut self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.end - self.start);
        into[..len].copy_from_slice(&self.bytes()[..len]);
        self.consume(len);
        len
    }

    /// Receives up to `most` bytes more, as many as there is room for.
    pub fn fill(
        &mut self,
        most: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let buffer = self.buffer.get_or_insert_with(|| Pool::global().take(self.size));
        if self.end == buffer.len() || (self.start == self.end && buffer.len() < self.size) {
            let left = self.end - self.start;
            if buffer.len() < self.size {
                let small = mem::replace(buffer, Pool::global().take(self.size));
                buffer[..left].copy_from_slice(&small[self.start..self.end]);
            } else {
                buffer.copy_within(self.start..self.end, 0);
            }
            (self.start, self.end) = (0, left);
        }
        let room = self.end..buffer.len().min(self.end + most);
        let wanted = room.len();
        let len = read(&mut buffer[room])?;
        self.end += len;
        if len == wanted && self.end == buffer.len() {
            self.size = RECEIVE;
        }
        Ok(len)
    }

    /// Gives the buffer back while nothing is in it.
    pub fn release(&mut self) {
        if self.is_empty() {
            self.buffer = None;
            self.size = RECEIVE_FIRST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_received_in_order_into_a_buffer_that_grows_when_it_is_filled_and_shrinks_when_it_rests() {
        let mut input = Input::new(b"left");
        let (mut sent, mut taken) = (4u64, 0u64);
        let byte = |at: u64| if at < 4 { b"left"[at as usize] } else { (at % 251) as u8 };
        for round in 0..1150u64 {
            // Small ones, then floods, with all manner of leftovers.
            let come = if round < 1000 { round % 90 } else { round * 7919 % (RECEIVE as u64 + 1) } as usize;
            let most = if round % 3 == 0 { 4096 } else { RECEIVE };
            if !input.is_full() {
                let fill = |room: &mut [u8]| {
                    let len = room.len().min(come);
                    for (at, into) in (sent..).zip(&mut room[..len]) {
                        *into = byte(at);
                    }
                    Ok(len)
                };
                sent += input.fill(most, fill).expect("no error") as u64;
            }
            let consumed = (round * 104_729 % (input.bytes().len() as u64 + 1)) as usize;
            let right = (taken..).zip(&input.bytes()[..consumed]).all(|(at, &got)| got == byte(at));
            assert!(right, "round {round}");
            input.consume(consumed);
            taken += consumed as u64;
            assert_eq!(input.bytes().len() as u64, sent - taken);
            if round == 999 {
                assert_eq!(input.size, RECEIVE_FIRST, "nothing has filled it");
            }
        }
        assert_eq!(input.size, RECEIVE);
        input.consume(input.bytes().len());
        input.release();
        assert!(input.buffer.is_none() && input.size == RECEIVE_FIRST);
    }
}
