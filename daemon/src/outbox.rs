//! Replies on their way out: small headers, buffers and runs of zeroes, gathered into one vectored send.
//!
//! Invariant: bytes leave in the order they were put in, and a reply's buffer and its lease on memory live until its
//! last byte has been handed to the kernel.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use disk_core::buf::Buf;
use smallvec::SmallVec;

use crate::memory::Lease;

/// Parts that one send carries at most; the kernel takes 1024.
const AT_ONCE: usize = 256;

/// Header bytes after which those that were sent are forgotten.
const HEADERS_KEPT: usize = 64 << 10;

/// Zeroes to send for holes to clients that cannot be told of them.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The parts of one send.
pub type Slices<'a> = SmallVec<[IoSlice<'a>; 128]>;

/// Replies that have not been sent yet.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Headers, one after the other, and all of them in a segment.
    headers: Vec<u8>,
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are sent.
    sent: u64,
    /// Bytes not sent yet.
    queued: u64,
}

/// Some headers and what follows the last of them: a reply with data, or any number of replies without.
#[derive(Debug)]
struct Segment {
    /// Where they are.
    headers: Range<usize>,
    body: Body,
    /// Given back when the segment is sent.
    lease: Option<Lease>,
}

#[derive(Debug)]
enum Body {
    Nothing,
    Data(Buf),
    Zeroes(u64),
}

impl Segment {
    fn len(&self) -> u64 {
        let body = match &self.body {
            Body::Nothing => 0,
            Body::Data(bytes) => bytes.len() as u64,
            Body::Zeroes(len) => *len,
        };
        self.headers.len() as u64 + body
    }

    /// Whether more can be added to it.
    fn is_open(&self) -> bool {
        matches!(self.body, Body::Nothing) && self.lease.is_none()
    }
}

impl Outbox {
    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes that have not been sent.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Adds a few bytes, by copy.
    #[inline]
    pub fn header(&mut self, bytes: &[u8]) {
        self.add_header(bytes);
    }

    /// Adds a buffer, by reference.
    pub fn data(&mut self, bytes: Buf) {
        self.queued += bytes.len() as u64;
        self.open_segment().body = Body::Data(bytes);
    }

    /// Adds a few bytes and a buffer, and keeps `lease` until they are sent.
    #[inline]
    pub fn reply(&mut self, header: &[u8], bytes: Buf, lease: Lease) {
        self.queued += bytes.len() as u64;
        let segment = self.add_header(header);
        segment.body = Body::Data(bytes);
        segment.lease = Some(lease);
    }

    /// Adds `len` zeroes.
    pub fn zeroes(&mut self, len: u64) {
        self.queued += len;
        self.open_segment().body = Body::Zeroes(len);
    }

    /// Keeps `lease` until everything that was added so far is sent.
    pub fn hold(&mut self, lease: Lease) {
        // Replies without a buffer stay one segment: a client that never reads could queue hundreds of thousands.
        if let Some(last) = self.segments.back_mut().filter(|_| !lease.is_nothing()) {
            last.lease = Some(lease);
        }
    }

    #[inline]
    fn add_header(&mut self, bytes: &[u8]) -> &mut Segment {
        self.headers.extend_from_slice(bytes);
        self.queued += bytes.len() as u64;
        let segment = self.open_segment();
        segment.headers.end += bytes.len();
        segment
    }

    /// The last segment if more can be added to it, or a new one.
    fn open_segment(&mut self) -> &mut Segment {
        if !self.segments.back().is_some_and(Segment::is_open) {
            let end = self.segments.back().map_or(0, |last| last.headers.end);
            self.segments.push_back(Segment { headers: end..end, body: Body::Nothing, lease: None });
        }
        self.segments.back_mut().expect("there is one now")
    }

    /// What to send next, in one call.
    pub fn slices(&self) -> Slices<'_> {
        let mut slices = Slices::new();
        let mut skip = self.sent;
        for segment in &self.segments {
            if slices.len() + 2 > AT_ONCE {
                break;
            }
            let headers = &self.headers[segment.headers.clone()];
            match headers.get(skip as usize..) {
                Some([]) | None => skip -= headers.len() as u64,
                Some(unsent) => {
                    slices.push(IoSlice::new(unsent));
                    skip = 0;
                }
            }
            match &segment.body {
                Body::Nothing => {}
                Body::Data(bytes) => slices.push(IoSlice::new(&bytes[skip as usize..])),
                Body::Zeroes(len) => {
                    let mut left = len - skip;
                    while left > 0 && slices.len() < AT_ONCE {
                        let part = left.min(ZEROES.len() as u64);
                        slices.push(IoSlice::new(&ZEROES[..part as usize]));
                        left -= part;
                    }
                    if left > 0 {
                        break;
                    }
                }
            }
            skip = 0;
        }
        slices
    }

    /// Forgets `written` bytes that were sent.
    pub fn advance(&mut self, written: usize) {
        self.queued -= written as u64;
        self.sent += written as u64;
        while let Some(first) = self.segments.front() {
            let len = first.len();
            if self.sent < len {
                return self.forget_sent_headers();
            }
            self.sent -= len;
            self.segments.pop_front();
        }
        self.headers.clear();
    }

    /// Keeps the header bytes few while the outbox never runs empty.
    fn forget_sent_headers(&mut self) {
        if self.headers.len() < HEADERS_KEPT {
            return;
        }
        let Some(first) = self.segments.front_mut() else { return };
        let sent = self.sent.min(first.headers.len() as u64);
        self.sent -= sent;
        first.headers.start += sent as usize;
        let gone = first.headers.start;
        if gone < self.headers.len() / 2 {
            // Moving more than is forgotten, again and again, would take a slow reader's time squared.
            return;
        }
        for Segment { headers, .. } in &mut self.segments {
            *headers = headers.start - gone..headers.end - gone;
        }
        self.headers.drain(..gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(outbox: &mut Outbox, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !outbox.is_empty() {
            let bytes: Vec<u8> = outbox.slices().iter().flat_map(|slice| slice.to_vec()).collect();
            let part = bytes.len().min(step);
            all.extend_from_slice(&bytes[..part]);
            outbox.advance(part);
        }
        all
    }

    #[test]
    fn bytes_leave_in_order_however_the_socket_cuts_them() {
        for (step, zeroes) in [(1, 300), (3, 300), (7, 300), (5000, 70_000), (1 << 20, 70_000)] {
            let mut outbox = Outbox::default();
            outbox.header(b"one");
            outbox.header(b"two");
            outbox.data(Buf::copy_from(b"DATA"));
            outbox.zeroes(zeroes);
            outbox.header(b"end");
            assert_eq!(outbox.queued(), 6 + 4 + zeroes + 3);
            let mut expected = b"onetwoDATA".to_vec();
            expected.resize(10 + zeroes as usize, 0);
            expected.extend_from_slice(b"end");
            assert_eq!(drain(&mut outbox, step), expected, "{step} bytes at a time");
            assert_eq!(outbox.queued(), 0);
        }
    }

    #[test]
    fn a_lease_is_given_back_when_its_last_byte_is_sent() {
        let budget = crate::memory::Budget::new(1 << 20);
        let allowance = crate::memory::Allowance::new(budget.clone());
        let mut outbox = Outbox::default();
        outbox.data(Buf::copy_from(&[1; 10]));
        outbox.hold(allowance.try_take(1 << 20).unwrap());
        outbox.advance(9);
        assert_eq!(budget.used(), 1 << 20);
        outbox.advance(1);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn replies_without_a_buffer_leave_as_one_part() {
        let mut outbox = Outbox::default();
        for n in 0..1000u32 {
            outbox.header(&n.to_be_bytes());
            outbox.hold(Lease::nothing());
        }
        assert_eq!(outbox.slices().len(), 1);
        assert_eq!(outbox.queued(), 4000);
    }

    #[test]
    fn an_outbox_that_never_runs_empty_forgets_the_headers_that_are_gone() {
        let mut outbox = Outbox::default();
        let (mut put, mut got) = (0u64, 0u64);
        let mut left: Vec<u8> = Vec::new();
        for _ in 0..20_000 {
            outbox.header(&put.to_be_bytes());
            outbox.data(Buf::copy_from(b"x"));
            put += 1;
            if put - got > 3 {
                left.extend(outbox.slices().iter().flat_map(|slice| slice.to_vec()).take(10));
                outbox.advance(10);
            }
            while left.len() >= 9 {
                assert_eq!(left[..8], got.to_be_bytes());
                left.drain(..9);
                got += 1;
            }
        }
        assert!(got > 19_000 && !outbox.is_empty());
        assert!(outbox.headers.len() < 2 * HEADERS_KEPT, "{} header bytes", outbox.headers.len());
    }

    #[test]
    fn headers_that_are_one_part_are_forgotten_as_they_leave() {
        let mut outbox = Outbox::default();
        let mut got = Vec::new();
        for n in 0..100_000u32 {
            outbox.header(&n.to_be_bytes());
            outbox.hold(Lease::nothing());
            if n >= 3 {
                got.extend_from_slice(&outbox.slices()[0][..4]);
                outbox.advance(4);
            }
        }
        assert!(outbox.headers.len() <= 2 * HEADERS_KEPT, "{} header bytes", outbox.headers.len());
        got.extend(drain(&mut outbox, 5));
        assert!(got == (0..100_000u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>());
    }

    #[test]
    fn more_parts_than_one_send_takes_come_in_several() {
        let mut outbox = Outbox::default();
        for n in 0..1000u32 {
            outbox.data(Buf::copy_from(&n.to_be_bytes()));
        }
        assert!(outbox.slices().len() <= AT_ONCE);
        let expected: Vec<u8> = (0..1000u32).flat_map(u32::to_be_bytes).collect();
        assert_eq!(drain(&mut outbox, 5000), expected);
    }
}
