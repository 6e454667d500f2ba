//! The block map in memory: for each block of the disk absent, zero, or the slot that it is in.
//!
//! ```text
//!   pages of 1024 blocks:   [ all absent ] [ all zero ] [ 5 | absent | 6 | 7 | … ]
//! ```
//! A page whose entries are all absent or all zero takes no space until one of them changes, so the map of an empty
//! image of 100 TiB takes 3 MiB. Reading takes no lock.
//!
//! Invariant: an entry is what the file has for it, unless the layer has noted it as in doubt.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::header::Slot;

/// Blocks of one page; their entries fill 4096 bytes of the file.
pub const PAGE: u32 = 1024;

const ABSENT: u32 = 0xffff_ffff;
const ZERO: u32 = 0xffff_fffe;

/// What the map says of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// No data here: the parent has it, or it reads as zeroes.
    Absent,
    /// Reads as zeroes and hides the parent.
    Zero,
    /// The block is in this slot.
    Slot(Slot),
}

impl Entry {
    /// The entry for a number of the file.
    pub fn from_raw(raw: u32) -> Entry {
        match raw {
            ABSENT => Entry::Absent,
            ZERO => Entry::Zero,
            slot => Entry::Slot(Slot(slot)),
        }
    }

    /// The number for it in the file.
    pub fn raw(self) -> u32 {
        match self {
            Entry::Absent => ABSENT,
            Entry::Zero => ZERO,
            Entry::Slot(Slot(slot)) => slot,
        }
    }

    /// The entry `blocks` further on, if the run goes on there.
    fn after(self, blocks: u32) -> Entry {
        match self {
            Entry::Slot(Slot(slot)) => Entry::Slot(Slot(slot.saturating_add(blocks))),
            same => same,
        }
    }
}

/// The block map.
pub struct Map {
    pages: Box<[Page]>,
}

struct Page {
    /// What all entries are while there are no `entries`.
    uniform: u32,
    entries: OnceLock<Box<[AtomicU32]>>,
}

impl Map {
    /// A map without any block, to be filled page by page; see [`MapBuilder::push`].
    pub fn builder(blocks: u32) -> MapBuilder {
        MapBuilder { pages: Vec::with_capacity(blocks.div_ceil(PAGE) as usize), blocks }
    }

    /// What it says of a block.
    pub fn entry(&self, block: u32) -> Entry {
        let page = &self.pages[(block / PAGE) as usize];
        Entry::from_raw(match page.entries.get() {
            Some(entries) => entries[(block % PAGE) as usize].load(Ordering::Acquire),
            None => page.uniform,
        })
    }

    /// Changes one entry. The caller sees to it that nobody else changes the same one.
    pub fn set(&self, block: u32, entry: Entry) {
        let page = &self.pages[(block / PAGE) as usize];
        let fill = || (0..PAGE).map(|_| AtomicU32::new(page.uniform)).collect();
        let entries = page.entries.get_or_init(fill);
        entries[(block % PAGE) as usize].store(entry.raw(), Ordering::Release);
    }

    /// What it says of the first block of a non-empty range, and for how many blocks that goes on: alike, or in
    /// slots one after the other.
    pub fn run(&self, first: u32, end: u32) -> (Entry, u32) {
        let start = self.entry(first);
        let mut next = first + 1;
        while next < end {
            let page = &self.pages[(next / PAGE) as usize];
            if next.is_multiple_of(PAGE) && page.entries.get().is_none() {
                if page.uniform != start.raw() {
                    break;
                }
                next = (next + PAGE).min(end);
            } else if self.entry(next) == start.after(next - first) {
                next += 1;
            } else {
                break;
            }
        }
        (start, next - first)
    }

    /// Every block that is in a slot, with it, in the order of the blocks.
    pub fn allocated(&self) -> impl Iterator<Item = (u32, Slot)> {
        self.pages.iter().enumerate().flat_map(|(index, page)| {
            let first = index as u32 * PAGE;
            let entries = page.entries.get().map_or(&[][..], |entries| entries);
            entries.iter().zip(first..).filter_map(|(raw, block)| {
                match Entry::from_raw(raw.load(Ordering::Acquire)) {
                    Entry::Slot(slot) => Some((block, slot)),
                    Entry::Absent | Entry::Zero => None,
                }
            })
        })
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("pages", &self.pages.len()).finish_non_exhaustive()
    }
}

/// A map that is being read from a file.
pub struct MapBuilder {
    pages: Vec<Page>,
    blocks: u32,
}

impl MapBuilder {
    /// Adds the entries of the next page, as the file has them: 4096 bytes, the last page of the map maybe fewer.
    /// Returns the first block of the page and, unless the page is uniform, its entries.
    pub fn push(&mut self, raw: &[u8]) -> (u32, &[AtomicU32]) {
        let first = self.pages.len() as u32 * PAGE;
        let uniform = [ABSENT, ZERO].into_iter().find(|kind| is_filled_with(raw, *kind));
        let entries = OnceLock::new();
        if uniform.is_none() {
            let read = raw.chunks_exact(4).map(|entry| {
                AtomicU32::new(u32::from_le_bytes(entry.try_into().expect("chunks of four bytes")))
            });
            let padding = (raw.len() / 4..PAGE as usize).map(|_| AtomicU32::new(ABSENT));
            entries.get_or_init(|| read.chain(padding).collect());
        }
        self.pages.push(Page { uniform: uniform.unwrap_or(ABSENT), entries });
        let entries = self.pages[self.pages.len() - 1].entries.get().map_or(&[][..], |entries| entries);
        (first, &entries[..entries.len().min(raw.len() / 4)])
    }

    /// The map, once every page was added.
    pub fn build(self) -> Map {
        assert_eq!(self.pages.len(), self.blocks.div_ceil(PAGE) as usize, "every page is added once");
        Map { pages: self.pages.into() }
    }
}

/// Whether a page holds nothing but the marker `kind`, whose last three bytes are alike.
fn is_filled_with(raw: &[u8], kind: u32) -> bool {
    const WHOLE: usize = PAGE as usize * 4;
    static ALL_ABSENT: [u8; WHOLE] = [0xff; WHOLE];
    static ALL_ZERO: [u8; WHOLE] = {
        let mut page = [0xff; WHOLE];
        let mut at = 0;
        while at < WHOLE {
            page[at] = 0xfe;
            at += 4;
        }
        page
    };
    let whole = if kind == ABSENT { &ALL_ABSENT } else { &ALL_ZERO };
    raw == &whole[..raw.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map_of(entries: &[u32]) -> Map {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let mut builder = Map::builder(entries.len() as u32);
        for page in bytes.chunks(PAGE as usize * 4) {
            builder.push(page);
        }
        builder.build()
    }

    #[test]
    fn a_run_goes_on_over_pages_that_are_alike_and_stops_at_the_first_difference() {
        let mut entries = vec![ABSENT; 5000];
        entries[4500] = 7;
        let map = map_of(&entries);
        assert_eq!(map.run(3, 5000), (Entry::Absent, 4497));
        assert_eq!(map.run(3, 2000), (Entry::Absent, 1997));
        assert_eq!(map.run(4501, 5000), (Entry::Absent, 499));
    }

    #[test]
    fn slots_one_after_the_other_are_one_run_even_across_pages() {
        let entries: Vec<u32> = (0..2048).map(|block| if block == 2000 { 9 } else { 100 + block }).collect();
        let map = map_of(&entries);
        assert_eq!(map.run(1000, 2048), (Entry::Slot(Slot(1100)), 1000));
        assert_eq!(map.run(2000, 2048), (Entry::Slot(Slot(9)), 1));
    }

    #[test]
    fn a_run_of_slots_does_not_end_in_a_marker_that_follows_the_highest_slot() {
        let map = map_of(&[ZERO - 1, ZERO, ABSENT]);
        assert_eq!(map.run(0, 3), (Entry::Slot(Slot(ZERO - 1)), 1));
    }

    #[test]
    fn uniform_pages_take_no_space_until_an_entry_changes() {
        let map = map_of(&[vec![ZERO; 1024], vec![ABSENT; 1030]].concat());
        assert!(map.pages.iter().all(|page| page.entries.get().is_none()));
        map.set(1500, Entry::Slot(Slot(0)));
        assert_eq!(map.entry(1499), Entry::Absent);
        assert_eq!(map.entry(1023), Entry::Zero);
        assert_eq!(map.allocated().collect::<Vec<_>>(), [(1500, Slot(0))]);
        assert_eq!(map.pages.iter().filter(|page| page.entries.get().is_some()).count(), 1);
    }
}
