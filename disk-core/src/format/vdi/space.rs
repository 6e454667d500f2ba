//! Which slots can be handed out, and which must wait until a power cut cannot bring their old life back. No I/O.
//!
//! ```text
//!                       map entry written                flush              punched             flush
//!   in a block ──clear, move──▶ unreferenced ─────────────▶ detached ─────────▶ punched ──────────▶ free
//!                                                            ▲    │ cannot be punched
//!   reserved ──dropped──────────────────────────────────────┘    └─────────▶ rough
//! ```
//! A `free` slot reads as zeroes, durably. A `rough` one holds old bytes that no block names, durably.
//!
//! Invariant: a slot is in one of the sets, or reserved, or in a block, or in doubt; never in two of them. All are
//! below `end`, and a header and file length that cover `end` are durable.

use std::ops::Range;

use super::header::Slot;
use super::slots::SlotSet;
use crate::planted::{Bug, planted};

/// A slot to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vacancy {
    pub slot: Slot,
    /// It reads as zeroes, durably.
    pub zeroed: bool,
}

/// The slots of an image that no block is in.
#[derive(Debug)]
pub struct Space {
    end: u32,
    /// `end` stays below this: other programs refuse images with more slots than blocks.
    limit: u32,
    unreferenced: SlotSet,
    detached: SlotSet,
    punched: SlotSet,
    free: SlotSet,
    rough: SlotSet,
    /// Flushes and punches under way; the slots that they are about are in no set.
    under_way: usize,
    /// Slots that the next growth adds.
    batch: u32,
    max_batch: u32,
}

/// What a flush that has been started will make durable.
#[derive(Debug, Default)]
pub struct Flushing {
    unreferenced: SlotSet,
    punched: SlotSet,
}

impl Space {
    /// The space of an image whose blocks are below `end`. `vacant` are the slots among them that no block is in, as
    /// the file was read: it may not be durable like that.
    pub fn new(end: u32, blocks: u32, vacant: SlotSet, max_batch: u32) -> Space {
        Space {
            end,
            limit: blocks.max(end),
            unreferenced: vacant,
            detached: SlotSet::default(),
            punched: SlotSet::default(),
            free: SlotSet::default(),
            rough: SlotSet::default(),
            under_way: 0,
            batch: 1,
            max_batch,
        }
    }

    /// One more than the highest slot that may be in use.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Takes a slot to put a block into.
    pub fn take(&mut self) -> Option<Vacancy> {
        let zeroed = self.free.pop_first().map(|slot| Vacancy { slot, zeroed: true });
        zeroed.or_else(|| self.rough.pop_first().map(|slot| Vacancy { slot, zeroed: false }))
    }

    /// Whether [`Space::take`] has something.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || !self.rough.is_empty()
    }

    /// Takes the lowest slot that a block can be moved into, if it is below `below`: any that is durably left.
    pub fn take_below(&mut self, below: Slot) -> Option<Vacancy> {
        let sets = [
            (&mut self.free, true),
            (&mut self.rough, false),
            (&mut self.detached, false),
            (&mut self.punched, false),
        ];
        let (set, zeroed) = sets
            .into_iter()
            .filter(|(set, _)| set.first().is_some_and(|slot| slot < below))
            .min_by_key(|(set, _)| set.first())?;
        Some(Vacancy { slot: set.pop_first()?, zeroed })
    }

    /// The lowest slots that [`Space::take_below`] would find, `most` of them at most.
    pub fn lowest(&self, most: usize) -> Vec<Slot> {
        let sets = [&self.free, &self.rough, &self.detached, &self.punched];
        let mut slots: Vec<Slot> = sets.into_iter().flat_map(|set| set.iter().take(most)).collect();
        slots.sort_unstable();
        slots.truncate(most);
        slots
    }

    /// A block has left this slot; the map entry that says so is written but not durable.
    pub fn unreferenced(&mut self, slot: Slot) {
        let free = planted(Bug::FreeBeforeDurable);
        if free { &mut self.rough } else { &mut self.unreferenced }.insert(slot);
    }

    /// A reserved slot is given back. No map entry ever named it.
    pub fn give_back(&mut self, slot: Slot) {
        self.detached.insert(slot);
    }

    /// To be called before a flush: what it will cover.
    pub fn before_flush(&mut self) -> Flushing {
        self.under_way += 1;
        Flushing {
            unreferenced: std::mem::take(&mut self.unreferenced),
            punched: std::mem::take(&mut self.punched),
        }
    }

    /// To be called after that flush.
    pub fn after_flush(&mut self, flushing: Flushing, durable: bool) {
        self.under_way -= 1;
        let Flushing { unreferenced, punched } = flushing;
        if durable {
            self.detached.append(unreferenced);
            self.free.append(punched);
        } else {
            self.unreferenced.append(unreferenced);
            self.punched.append(punched);
        }
    }

    /// Takes a range of slots to be punched; [`Space::punched`] brings it back.
    pub fn take_detached(&mut self) -> Option<Range<u32>> {
        let range = self.detached.pop_first_range()?;
        self.under_way += 1;
        Some(range)
    }

    /// A range is punched, or cannot be.
    pub fn punched(&mut self, range: Range<u32>, reads_as_zeroes: bool) {
        self.under_way -= 1;
        if reads_as_zeroes { &mut self.punched } else { &mut self.rough }.insert_range(range);
    }

    /// Nobody knows what became of a range that was to be punched, or whether it still will be: nobody gets it.
    pub fn punch_lost(&mut self) {
        self.under_way -= 1;
    }

    /// Whether a flush or a punch under way may bring slots back.
    pub fn awaits_slots(&self) -> bool {
        self.under_way > 0
    }

    /// Makes slots that wait to be punched, or for that to be durable, available as they are.
    pub fn use_as_they_are(&mut self) {
        self.rough.append(std::mem::take(&mut self.detached));
        self.rough.append(std::mem::take(&mut self.punched));
    }

    /// The slots to grow by: at least `wanted` if the limit allows, more the more often it has grown. Empty at the
    /// limit.
    pub fn next_batch(&self, wanted: u32) -> Range<u32> {
        let more = self.batch.max(wanted).min(self.max_batch.max(wanted));
        self.end..self.end.saturating_add(more).min(self.limit)
    }

    /// The image has grown to `end`, durably.
    pub fn grown(&mut self, end: u32, zeroed: bool) {
        if zeroed { &mut self.free } else { &mut self.rough }.insert_range(self.end..end);
        self.end = end;
        self.batch = self.batch.saturating_mul(2).min(self.max_batch);
    }

    /// Cuts the slots at the end off that no block names, durably. Returns the new end.
    pub fn trim(&mut self) -> u32 {
        while let Some(range) = [&mut self.free, &mut self.rough, &mut self.detached, &mut self.punched]
            .into_iter()
            .find_map(|set| set.pop_range_before(self.end))
        {
            self.end = range.start;
        }
        self.batch = 1;
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vacant(range: Range<u32>) -> SlotSet {
        let mut set = SlotSet::default();
        set.insert_range(range);
        set
    }

    fn flush(space: &mut Space) {
        let flushing = space.before_flush();
        space.after_flush(flushing, true);
    }

    #[test]
    fn a_slot_that_was_left_is_handed_out_only_two_flushes_and_a_punch_later() {
        let mut space = Space::new(10, 100, SlotSet::default(), 64);
        space.unreferenced(Slot(3));
        assert_eq!((space.take(), space.take_detached()), (None, None), "the map entry is not durable");
        flush(&mut space);
        assert_eq!((space.take(), space.take_detached()), (None, Some(3..4)), "it holds old bytes");
        space.punched(3..4, true);
        assert_eq!(space.take(), None, "the zeroes are not durable");
        flush(&mut space);
        assert_eq!(space.take(), Some(Vacancy { slot: Slot(3), zeroed: true }));
    }

    #[test]
    fn what_leaves_a_slot_while_a_flush_is_under_way_waits_for_the_next() {
        let mut space = Space::new(10, 100, SlotSet::default(), 64);
        let flushing = space.before_flush();
        space.unreferenced(Slot(1));
        space.after_flush(flushing, true);
        assert_eq!(space.take_detached(), None);
        let failed = space.before_flush();
        space.after_flush(failed, false);
        assert_eq!(space.take_detached(), None, "a failed flush makes nothing durable");
        flush(&mut space);
        assert_eq!(space.take_detached(), Some(1..2));
    }

    #[test]
    fn slots_that_a_flush_or_a_punch_is_about_are_awaited_until_it_has_ended() {
        let mut space = Space::new(10, 10, SlotSet::default(), 64);
        space.give_back(Slot(3));
        assert!(!space.awaits_slots());
        let range = space.take_detached().unwrap();
        assert!(!space.has_room() && space.awaits_slots());
        space.punched(range, true);
        let flushing = space.before_flush();
        assert!(!space.has_room() && space.awaits_slots());
        space.after_flush(flushing, true);
        assert!(space.has_room() && !space.awaits_slots());
    }

    #[test]
    fn growth_doubles_up_to_its_bound_and_ends_at_the_number_of_blocks() {
        let mut space = Space::new(0, 20, SlotSet::default(), 4);
        let mut ends = Vec::new();
        while !space.next_batch(1).is_empty() {
            let end = space.next_batch(1).end;
            space.grown(end, true);
            ends.push(end);
        }
        assert_eq!(ends, [1, 3, 7, 11, 15, 19, 20]);
        assert_eq!(
            Space::new(0, 20, SlotSet::default(), 4).next_batch(9),
            0..9,
            "all that wait are served at once"
        );
    }

    #[test]
    fn the_end_is_cut_off_down_to_the_first_slot_in_use_or_not_durably_left() {
        let mut space = Space::new(10, 100, vacant(2..4), 64);
        space.grown(14, true);
        for slot in [9, 7] {
            space.give_back(Slot(slot));
        }
        assert_eq!(space.trim(), 9);
        space.unreferenced(Slot(8));
        assert_eq!(space.trim(), 9);
        flush(&mut space);
        assert_eq!(space.trim(), 7);
        assert_eq!(space.lowest(9), [Slot(2), Slot(3)]);
    }

    #[test]
    fn a_block_moves_only_downwards_and_into_what_is_durably_left() {
        let mut space = Space::new(10, 100, vacant(2..3), 64);
        assert_eq!(space.take_below(Slot(9)), None);
        flush(&mut space);
        assert_eq!(space.take_below(Slot(1)), None);
        assert_eq!(space.take_below(Slot(9)), Some(Vacancy { slot: Slot(2), zeroed: false }));
        assert_eq!(space.take_below(Slot(9)), None);
    }
}
