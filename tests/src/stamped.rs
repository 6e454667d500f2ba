//! A disk of which every sector says what it is: its own number and that of the write it comes from.
//!
//! ```text
//!   drawn ──▶ sent ──▶ acknowledged      the sectors hold this write
//!                └───▶ failed, or never answered: each sector is old or new
//! ```
//! Invariant: no two writes put the same into a sector, so a stale, a foreign and a torn sector are all told apart.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use crate::client::{Client, FLAG_SEND_TRIM, Request};
use crate::rng::Rng;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// The number of the write that a sector's content comes from; 0 for zeroes.
type WriteNumber = u32;

/// What each sector of a disk may hold now.
pub struct StampedDisk {
    sectors: Vec<Vec<WriteNumber>>,
    writes: WriteNumber,
}

/// A request that has not been answered.
pub struct Unanswered {
    sectors: Range<u64>,
    becomes: WriteNumber,
    /// A trim may also leave what was there.
    binding: bool,
}

impl Unanswered {
    fn overlaps(&self, sectors: &Range<u64>) -> bool {
        self.sectors.start < sectors.end && sectors.start < self.sectors.end
    }
}

impl StampedDisk {
    /// A disk of `size` bytes, whole sectors, all zero.
    pub fn new(size: u64) -> StampedDisk {
        StampedDisk { sectors: vec![vec![0]; (size / SECTOR) as usize], writes: 0 }
    }

    /// Draws a flush, a trim, a write of zeroes or, most often, a write whose sectors no request of `busy` touches, and
    /// counts it as sent; `None` if what was drawn is in somebody's way.
    pub fn draw<'a>(
        &mut self,
        rng: &mut Rng,
        may_trim: bool,
        busy: impl IntoIterator<Item = &'a Unanswered>,
    ) -> Option<(Request, Unanswered)> {
        // Mostly small; sometimes over several blocks of 1 MiB.
        let len = if rng.one_in(10) { rng.within(1..5000) } else { rng.within(1..256) };
        let first = rng.below(self.sectors.len() as u64 - len);
        let sectors = first..first + len;
        if busy.into_iter().any(|other| other.overlaps(&sectors)) {
            return None;
        }
        self.writes += 1;
        let number = self.writes;
        let (offset, len) = (first * SECTOR, (len * SECTOR) as u32);
        let unanswered = |becomes, binding| Unanswered { sectors: sectors.clone(), becomes, binding };
        let (request, unanswered) = match rng.below(20) {
            0 => (Request::Flush, Unanswered { sectors: 0..0, becomes: 0, binding: true }),
            1 | 2 if may_trim => (Request::Trim { offset, len }, unanswered(0, false)),
            3 | 4 => (Request::WriteZeroes { offset, len, no_hole: rng.one_in(2) }, unanswered(0, true)),
            _ => {
                let data = sectors.clone().flat_map(|sector| content(sector, number)).collect();
                (Request::Write { offset, data, fua: rng.one_in(10) }, unanswered(number, true))
            }
        };
        for sector in unanswered.sectors.clone() {
            self.sectors[sector as usize].push(unanswered.becomes);
        }
        Some((request, unanswered))
    }

    /// The request took effect.
    pub fn acknowledged(&mut self, request: &Unanswered) {
        for sector in request.sectors.clone().filter(|_| request.binding) {
            self.sectors[sector as usize] = vec![request.becomes];
        }
    }

    /// Reads the whole disk; from now on each sector holds what was found.
    ///
    /// # Panics
    /// When a sector holds what it cannot hold; the message says `when`. When the disk cannot be read.
    #[track_caller]
    pub fn verify(&mut self, client: &mut Client, when: &str) {
        self.try_verify(client, when).expect("read the disk");
    }

    /// The same, where the connection may break.
    ///
    /// # Errors
    /// When it does, or a read fails.
    #[track_caller]
    pub fn try_verify(&mut self, client: &mut Client, when: &str) -> io::Result<()> {
        let end = self.sectors.len() as u64;
        for start in (0..end).step_by(2048) {
            let sectors = start..end.min(start + 2048);
            let len = (sectors.end - sectors.start) * SECTOR;
            let data = client.read(start * SECTOR, len as u32)?;
            self.verify_read(sectors, &data, when);
        }
        Ok(())
    }

    #[track_caller]
    fn verify_read(&mut self, sectors: Range<u64>, data: &[u8], when: &str) {
        for (sector, found) in sectors.zip(data.as_chunks::<{ SECTOR as usize }>().0) {
            let possible = &mut self.sectors[sector as usize];
            let held = possible.iter().find(|write| *found == content(sector, **write));
            *possible = vec![*held.unwrap_or_else(|| {
                let stamp = u64::from_le_bytes(*found.first_chunk().expect("8 bytes"));
                panic!(
                    "{when}: sector {sector} may hold the writes {possible:?}, but begins with the stamp of \
                     write {} to sector {}",
                    stamp as u32,
                    stamp >> 32
                )
            })];
        }
    }
}

/// Random requests on their way to a [`StampedDisk`] over several connections.
pub struct Load {
    clients: Vec<Client>,
    depth: usize,
    /// By connection and cookie.
    busy: HashMap<(usize, u64), Unanswered>,
}

impl Load {
    /// Keeps `depth` requests in flight over `clients`, all of them connected to the disk.
    pub fn new(clients: Vec<Client>, depth: usize) -> Load {
        Load { clients, depth, busy: HashMap::new() }
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.busy.len()
    }

    /// Sends requests until `depth` are in flight, and waits for the reply to one of them: the NBD error number if it
    /// failed.
    ///
    /// # Errors
    /// When a connection breaks. What was in flight then may have happened or not.
    pub fn one_reply(&mut self, disk: &mut StampedDisk, rng: &mut Rng) -> io::Result<Result<(), u32>> {
        let may_trim = self.clients[0].flags() & FLAG_SEND_TRIM != 0;
        while self.busy.len() < self.depth {
            let Some((request, unanswered)) = disk.draw(rng, may_trim, self.busy.values()) else { break };
            let connection = rng.below(self.clients.len() as u64) as usize;
            let sent = self.clients[connection].send(&request);
            // Cookie 0 is no client's: what could not be sent is never answered.
            self.busy.insert((connection, sent.as_ref().copied().unwrap_or(0)), unanswered);
            sent?;
        }
        self.receive(disk)
    }

    /// Waits for all that is in flight; returns the NBD error numbers of what failed.
    ///
    /// # Errors
    /// As [`Load::one_reply`].
    pub fn finish(&mut self, disk: &mut StampedDisk) -> io::Result<Vec<u32>> {
        let mut failed = Vec::new();
        while !self.busy.is_empty() {
            failed.extend(self.receive(disk)?.err());
        }
        Ok(failed)
    }

    /// A connection for other requests. Nothing may be in flight.
    pub fn client(&mut self) -> &mut Client {
        assert!(self.busy.is_empty(), "requests are in flight");
        &mut self.clients[0]
    }

    fn receive(&mut self, disk: &mut StampedDisk) -> io::Result<Result<(), u32>> {
        let fullest =
            (0..self.clients.len()).max_by_key(|it| self.clients[*it].in_flight()).expect("a client");
        let (cookie, result) = self.clients[fullest].receive()?;
        let answered = self.busy.remove(&(fullest, cookie)).expect("a request in flight");
        Ok(result.map(|_| disk.acknowledged(&answered)))
    }
}

fn content(sector: u64, write: WriteNumber) -> [u8; SECTOR as usize] {
    let stamp = if write == 0 { 0 } else { sector << 32 | u64::from(write) };
    let mut content = [0; SECTOR as usize];
    content.as_chunks_mut::<8>().0.fill(stamp.to_le_bytes());
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_a_foreign_and_a_torn_sector_are_told_from_what_was_written() {
        let mut disk = StampedDisk::new(64 * SECTOR);
        disk.sectors[5] = vec![7];
        disk.verify_read(5..6, &content(5, 7), "as written");
        let mut torn = content(5, 7);
        torn[511] ^= 1;
        for (what, found) in [("stale", content(5, 6)), ("foreign", content(4, 7)), ("torn", torn)] {
            let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                disk.verify_read(5..6, &found, what);
            }));
            assert!(seen.is_err(), "{what} was not seen");
        }
    }

    #[test]
    fn a_failed_write_may_have_happened_sector_by_sector_but_is_settled_by_the_first_look() {
        let mut disk = StampedDisk::new(64 * SECTOR);
        disk.sectors[1] = vec![3, 9];
        disk.verify_read(1..2, &content(1, 9), "new");
        assert_eq!(disk.sectors[1], [9], "it cannot become old again");
    }
}
