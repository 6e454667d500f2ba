//! Sets of slots: as ranges for the few that wait for something, as bits for the many that are in use.
//!
//! Invariant of [`SlotSet`]: its ranges are not empty, do not overlap and do not touch.

use std::collections::BTreeMap;
use std::ops::Range;

use super::header::Slot;

/// Slots as ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotSet {
    /// First slot of each range to one past its last.
    ranges: BTreeMap<u32, u32>,
}

impl SlotSet {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds a slot that is not in the set.
    pub fn insert(&mut self, slot: Slot) {
        self.insert_range(slot.0..slot.0 + 1);
    }

    /// Adds a range of slots of which none is in the set.
    pub fn insert_range(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        if let Some((&before, &before_end)) = self.ranges.range(..end).next_back() {
            assert!(before_end <= start, "slots {start}..{end} are in the set already");
            if before_end == start {
                start = before;
            }
        }
        if let Some(after_end) = self.ranges.remove(&end) {
            end = after_end;
        }
        self.ranges.insert(start, end);
    }

    /// Adds all slots of another set, which has none in common with this one.
    pub fn append(&mut self, other: SlotSet) {
        for (start, end) in other.ranges {
            self.insert_range(start..end);
        }
    }

    /// Its ranges, lowest first.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u32>> {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// Its slots, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        self.ranges().flatten().map(Slot)
    }

    /// The lowest slot.
    pub fn first(&self) -> Option<Slot> {
        self.ranges.first_key_value().map(|(&start, _)| Slot(start))
    }

    /// Takes the lowest slot out.
    pub fn pop_first(&mut self) -> Option<Slot> {
        let (start, end) = self.ranges.pop_first()?;
        if start + 1 < end {
            self.ranges.insert(start + 1, end);
        }
        Some(Slot(start))
    }

    /// Takes the lowest range out.
    pub fn pop_first_range(&mut self) -> Option<Range<u32>> {
        self.ranges.pop_first().map(|(start, end)| start..end)
    }

    /// Takes the highest range out if it ends at `end`.
    pub fn pop_range_before(&mut self, end: u32) -> Option<Range<u32>> {
        let last = self.ranges.last_entry().filter(|last| *last.get() == end)?;
        let (start, end) = last.remove_entry();
        Some(start..end)
    }
}

/// Slots of one page of bits.
const PAGE: u32 = 1 << 15;

/// Slots as bits, in pages of 4 KiB that are there once one of their slots is.
#[derive(Default)]
pub struct SlotBits {
    pages: Vec<Option<Box<[u64; PAGE as usize / 64]>>>,
}

impl SlotBits {
    /// Adds a slot. False if it was there already.
    pub fn insert(&mut self, slot: Slot) -> bool {
        let (page, bit) = ((slot.0 / PAGE) as usize, slot.0 % PAGE);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let words = self.pages[page].get_or_insert_with(|| Box::new([0; PAGE as usize / 64]));
        let word = &mut words[(bit / 64) as usize];
        let mask = 1 << (bit % 64);
        let new = *word & mask == 0;
        *word |= mask;
        new
    }

    /// The slots below `end` that are not in the set.
    pub fn missing(&self, end: u32) -> SlotSet {
        let mut missing = SlotSet::default();
        let mut start = 0;
        for slot in self.iter().take_while(|slot| slot.0 < end) {
            missing.insert_range(start..slot.0);
            start = slot.0 + 1;
        }
        missing.insert_range(start..end.max(start));
        missing
    }

    fn iter(&self) -> impl Iterator<Item = Slot> {
        let pages = self.pages.iter().enumerate().filter_map(|(n, page)| Some((n, page.as_ref()?)));
        let words = pages.flat_map(|(n, page)| {
            page.iter().zip((n as u32 * PAGE..).step_by(64)).filter(|(word, _)| **word != 0)
        });
        words.flat_map(|(&word, first)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| Slot(first + bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut set = SlotSet::default();
        set.insert_range(0..2);
        set.insert_range(4..6);
        set.insert_range(2..4);
        assert_eq!(set.ranges().next(), Some(0..6));
        assert_eq!(set.pop_first(), Some(Slot(0)));
        assert_eq!(set.pop_range_before(7), None);
        assert_eq!(set.pop_range_before(6), Some(1..6));
        assert!(set.is_empty());
    }

    proptest! {
        #[test]
        fn bits_know_what_is_missing(slots in proptest::collection::btree_set(0u32..100_000, 0..60)) {
            let mut bits = SlotBits::default();
            for &slot in &slots {
                prop_assert!(bits.insert(Slot(slot)));
                prop_assert!(!bits.insert(Slot(slot)));
            }
            let end = slots.last().map_or(70_000, |last| last + 1);
            let missing = bits.missing(end);
            let expected: Vec<u32> = (0..end).filter(|slot| !slots.contains(slot)).collect();
            prop_assert_eq!(missing.iter().map(|slot| slot.0).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn a_set_of_slots_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0u32..40), 0..80)) {
            let (mut set, mut model) = (SlotSet::default(), BTreeSet::new());
            for (add, slot) in steps {
                if add && model.insert(slot) {
                    set.insert(Slot(slot));
                } else if !add {
                    prop_assert_eq!(set.pop_first().map(|slot| slot.0), model.pop_first());
                }
                prop_assert_eq!(set.iter().map(|slot| slot.0).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
