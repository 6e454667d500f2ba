//! Block maps of VDI images under sound headers: what the entries say is told by a plain list of them.
//!
//! Invariant: nothing is read but the tables, so the data of an image of gigabytes is a hole.

use std::collections::HashSet;

use arbitrary::Arbitrary;
use disk_core::error::ErrorKind;
use disk_core::format::vdi::Vdi;
use disk_core::format::{CheckReport, Format, Layer, Mapping, Place, Repair, Space};
use disk_core::range::ByteRange;
use disk_core::storage::Storage;

use super::header::{Head, Version, at_once, file};
use crate::{Many, Number, Rare, Reached};

const ABSENT: u32 = 0xffff_ffff;
const ZERO: u32 = 0xffff_fffe;
const SECTOR: u64 = 512;
const BLOCK: u64 = 128 << 10;
/// Slots of the largest file, so that honest work on all of them stays short.
const SLOTS_MOST: u64 = 4096;

/// One input.
#[derive(Debug, Arbitrary)]
pub struct Input {
    version: Version,
    kind: u8,
    blocks: u8,
    /// Of some pages of the map. Rarely, as each costs as much as a hundred small ones.
    more_blocks: Rare<u16>,
    /// Entries behind those of the disk.
    spare: u8,
    /// Sectors that the last block lacks.
    lacking: u8,
    /// Sectors in front of each block's data.
    extra: u8,
    fill: Fill,
    runs: Many<Run, 12>,
    counter: Option<Number>,
    len: Len,
    look: (u16, u16),
}

/// What the entries are at first.
#[derive(Debug, Arbitrary)]
enum Fill {
    Absent,
    Zero,
    InOrder,
    Backwards,
    /// In slots that are so far from each other, around the end.
    Spread(u8),
}

/// Entries one after the other that are something else.
#[derive(Debug, Arbitrary)]
struct Run {
    first: u16,
    len: u8,
    what: What,
}

#[derive(Debug, Arbitrary)]
enum What {
    Absent,
    Zero,
    /// Slots from this one on.
    From(u16),
    Same(Number),
}

/// Length of the file.
#[derive(Debug, Arbitrary)]
enum Len {
    /// Up to the end of the last slot, or as far as files go here.
    Whole,
    Less(u32),
    More(u32),
    Slots(u16),
    /// So many bytes after the start of the map.
    Tables(u16),
}

impl Input {
    fn blocks(&self) -> u32 {
        u32::from(self.blocks % 40) + 1 + self.more_blocks.0.map_or(0, |more| u32::from(more) % 2200)
    }

    fn entries(&self) -> Vec<u32> {
        let all = self.blocks() + u32::from(self.spare % 4);
        let fill = |block: u32| match self.fill {
            Fill::Absent => ABSENT,
            Fill::Zero => ZERO,
            Fill::InOrder => block,
            Fill::Backwards => all - 1 - block,
            Fill::Spread(step) => (block * u32::from(step)) % all,
        };
        let mut entries: Vec<u32> = (0..all).map(fill).collect();
        for run in self.runs.iter() {
            let first = usize::from(run.first) % entries.len();
            let end = (first + usize::from(run.len) + 1).min(entries.len());
            for (entry, nth) in entries[first..end].iter_mut().zip(0..) {
                *entry = match &run.what {
                    What::Absent => ABSENT,
                    What::Zero => ZERO,
                    What::From(slot) => u32::from(*slot) + nth,
                    What::Same(number) => number.value(),
                };
            }
        }
        entries
    }

    fn head(&self, entries: &[u32]) -> Head {
        let mut head = Head::sound(self.version, self.kind, self.blocks());
        let places = head.places().expect("a sound header");
        head.put_size(u64::from(self.blocks()) * BLOCK - u64::from(self.lacking) * SECTOR);
        head.put(places.blocks, entries.len() as u32);
        head.fit_places();
        if let (Some(at), 1..=64) = (places.block_extra, self.extra) {
            head.put(at, u32::from(self.extra) * SECTOR as u32);
        }
        let end = entries.iter().filter(|entry| **entry < ZERO).max().map_or(0, |slot| slot + 1);
        head.put(places.allocated, self.counter.as_ref().map_or(end, Number::value));
        head
    }
}

/// An image as a list of entries and a few sizes.
struct Image<'a> {
    entries: &'a [u32],
    size: u64,
    extra: u64,
    data: u64,
    len: u64,
}

/// What is wrong with a map, and what is right.
#[derive(Default)]
struct Verdict {
    shared: u64,
    past_end: u64,
    cut_off: u64,
    allocated: u64,
    /// One past the last slot that is right.
    end: u64,
    unused: u64,
}

impl Image<'_> {
    /// Where a slot's data begins.
    fn at(&self, slot: u32) -> u64 {
        self.data + u64::from(slot) * (BLOCK + self.extra) + self.extra
    }

    /// Bytes of the disk in a block.
    fn bytes(&self, block: usize) -> u64 {
        self.size.saturating_sub(block as u64 * BLOCK).min(BLOCK)
    }

    /// Blocks in slots.
    fn placed(&self) -> impl Iterator<Item = (usize, u32)> {
        self.entries.iter().copied().enumerate().filter(|(_, entry)| *entry < ZERO)
    }

    fn judge(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let mut taken = HashSet::new();
        for (block, slot) in self.placed() {
            if self.at(slot) >= self.len {
                verdict.past_end += 1;
            } else if !taken.insert(slot) {
                verdict.shared += 1;
            } else {
                verdict.allocated += 1;
                verdict.cut_off += u64::from(self.at(slot) + self.bytes(block) > self.len);
                verdict.end = verdict.end.max(u64::from(slot) + 1);
            }
        }
        verdict.unused = verdict.end - taken.len() as u64;
        verdict
    }

    /// The map says of a range what its entries say: all of it, and as much at once as lies together.
    fn expect_lookups(&self, layer: &dyn Layer, range: ByteRange) {
        let mut rest = range;
        let mut before: Option<Mapping> = None;
        while !rest.is_empty() {
            let found = layer.lookup(rest);
            assert!((1..=rest.len()).contains(&found.len), "{found:?} of {rest}");
            let (piece, after) = rest.split_at(found.len);
            for part in piece.blocks(BLOCK) {
                let place = match self.entries[(part.start() / BLOCK) as usize] {
                    ABSENT => Place::Absent,
                    ZERO => Place::Zero,
                    slot => Place::Data(self.at(slot) + part.start() % BLOCK),
                };
                let told = match found.place {
                    Place::Data(at) => Place::Data(at + (part.start() - piece.start())),
                    nowhere => nowhere,
                };
                assert_eq!(told, place, "{part}");
            }
            let goes_on = before.is_some_and(|before| match (before.place, found.place) {
                (Place::Data(one), Place::Data(other)) => one + before.len == other && self.extra == 0,
                (one, other) => one == other,
            });
            assert!(!goes_on, "{before:?} and {found:?} are one");
            (before, rest) = (Some(found), after);
        }
    }

    fn expect_report(&self, report: &CheckReport, verdict: &Verdict, counter: u64) {
        let count = |kind: &str| report.findings.get(kind).map_or(0, |finding| finding.count);
        assert_eq!(count("shared-slot"), verdict.shared);
        assert_eq!(count("entry-past-end"), verdict.past_end);
        assert_eq!(count("block-cut-off"), verdict.cut_off);
        assert_eq!(count("counter-behind"), u64::from(counter < verdict.end));
        assert_eq!(count("counter-ahead"), u64::from(counter > verdict.end));
        assert_eq!(count("unused-slot"), verdict.unused);
        let end = self.data + verdict.end * (BLOCK + self.extra);
        assert_eq!(count("unused-end"), u64::from(self.len > end));
        assert_eq!((report.allocated_blocks, report.end_offset), (verdict.allocated, end));
        assert_eq!(report.total_blocks, self.size.div_ceil(BLOCK));
        for (kind, finding) in &report.findings {
            let told = (finding.count as usize).min(CheckReport::EXAMPLES);
            assert_eq!((finding.examples.len(), finding.repaired), (told, 0), "{kind}");
            // Each names what it speaks of by its number.
            assert!(
                finding.examples.iter().all(|text| text.contains(|c: char| c.is_ascii_digit())),
                "{kind}"
            );
        }
    }
}

/// See the module.
pub fn check(input: &Input, reached: &mut Reached) {
    let entries = input.entries();
    let head = input.head(&entries);
    let places = head.places().expect("a sound header");
    let (map, data) = head.tables();
    let extra = places.block_extra.map_or(0, |at| head.word(at).into());
    let size = u64::from(input.blocks()) * BLOCK - u64::from(input.lacking) * SECTOR;
    let mut image = Image { entries: &entries, size, extra, data, len: 0 };
    let last = image.placed().map(|(_, slot)| u64::from(slot) + 1).filter(|end| *end <= SLOTS_MOST).max();
    let slots = |slots: u64| data + slots * (BLOCK + extra);
    let whole = slots(last.unwrap_or(0));
    image.len = match input.len {
        Len::Whole => whole,
        Len::Less(bytes) => whole.saturating_sub(bytes.into()),
        Len::More(bytes) => (whole + u64::from(bytes)).min(slots(SLOTS_MOST)),
        Len::Slots(many) => slots(u64::from(many) % SLOTS_MOST),
        Len::Tables(bytes) => map + u64::from(bytes),
    };
    let mut bytes = head.bytes[..(map as usize).min(head.bytes.len())].to_vec();
    bytes.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
    let is_whole = image.len >= bytes.len() as u64;
    let file = file(&bytes, image.len);
    let opened = at_once(Vdi.open(file.clone(), true));
    let report = at_once(Vdi.check(file.clone(), Repair::Nothing));
    if !is_whole {
        assert_eq!(opened.expect_err("the map is not there").kind(), ErrorKind::InvalidImage);
        assert_eq!(report.expect_err("the map is not there").kind(), ErrorKind::InvalidImage);
        reached.add("maps cut off", 1);
        return;
    }
    let (layer, report) = (opened.expect("a sound header"), report.expect("a sound header"));
    reached.add("maps read", 1);
    let verdict = image.judge();
    image.expect_report(&report, &verdict, head.word(places.allocated).into());
    assert_eq!(layer.allocated(), verdict.allocated * BLOCK);
    image.expect_lookups(&*layer, ByteRange::new(0, image.size));
    let (start, end) =
        (u64::from(input.look.0) * 4099 % image.size, u64::from(input.look.1) * 4099 % image.size);
    image.expect_lookups(&*layer, ByteRange::new(start.min(end), start.max(end)));

    let sound = verdict.shared + verdict.past_end + verdict.cut_off == 0;
    match at_once(Vdi.open(file.clone(), false)) {
        Ok(layer) => {
            assert!(sound, "a map with contradictions may be written to: {report:?}");
            let mut taken = HashSet::new();
            for (block, slot) in image.placed() {
                assert!(taken.insert(slot), "slot {slot} is two blocks'");
                assert!(image.at(slot) + image.bytes(block) <= image.len, "block {block} is not in the file");
            }
            let disk = &entries[..size.div_ceil(BLOCK) as usize];
            let full = input.kind % 4 == 1 && disk.iter().all(|entry| *entry < ZERO);
            let space = if full { Space::Preallocated } else { Space::Blocks };
            assert_eq!((layer.info().space, layer.info().size), (space, size));
            reached.add("maps accepted for writing", 1);
        }
        Err(error) => {
            assert!(!sound, "{error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            let text = error.to_string();
            assert!(text.starts_with("image: ") && text.contains("block"), "{text}");
            reached.add("maps refused for writing", 1);
        }
    }
    assert!(file.len() == image.len, "opening writes nothing");
}
