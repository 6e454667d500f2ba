//! Looking for what is wrong with an image's metadata, and putting it right.
//!
//! Repair is the work of an opened layer, in the same order against power cuts: blocks that share a slot get one each
//! with the same bytes, entries that name nothing are cleared, then holes are filled, counter and length set.
//!
//! Invariant: no byte that some block can be read from is lost, and what an intact block reads stays as it is; so the
//! modification identity stays too, and children of the image with it.

use std::sync::Arc;

use super::claim::Claim;
use super::compact;
use super::entries::Change;
use super::header::{Header, Slot};
use super::layer::Inner;
use super::load::{self, Census, Damage};
use super::map::{Entry, Map};
use crate::error::Result;
use crate::format::{CheckReport, Repair, Severity};
use crate::storage::Storage;

/// Two blocks name one slot.
const SHARED: &str = "shared-slot";
/// A block's slot is not in the file.
const PAST_END: &str = "entry-past-end";
/// The file ends inside a block.
const CUT_OFF: &str = "block-cut-off";
/// A program that appends where the counter says would overwrite blocks.
const COUNTER_BEHIND: &str = "counter-behind";
/// The counter says more than there is.
const COUNTER_AHEAD: &str = "counter-ahead";
/// Slots between others that no block is in.
const UNUSED_SLOT: &str = "unused-slot";
/// The file goes on after the last slot in use.
const UNUSED_END: &str = "unused-end";

/// Checks an image. See [`Format::check`](crate::format::Format::check).
pub async fn check(storage: Arc<dyn Storage>, repair: Repair) -> Result<CheckReport> {
    let examined = examine(&*storage).await?;
    if repair == Repair::Nothing || examined.report.findings.is_empty() {
        return Ok(examined.report);
    }
    let found = examined.report.clone();
    let inner = mend(Arc::clone(&storage), examined).await?;
    reclaim(&inner).await?;
    drop(inner);
    let left = examine(&*storage).await?.report;
    let mut report = CheckReport { findings: found.findings, ..left };
    for (kind, finding) in &mut report.findings {
        let remains = left.findings.get(kind).map_or(0, |left| left.count);
        finding.repaired = finding.count.saturating_sub(remains);
    }
    Ok(report)
}

/// An image that was looked at.
struct Examined {
    header: Header,
    head: Vec<u8>,
    map: Map,
    census: Census,
    damage: Vec<Damage>,
    report: CheckReport,
}

async fn examine(storage: &dyn Storage) -> Result<Examined> {
    let (header, head) = load::read_header(storage).await?;
    let shape = header.shape;
    let map = load::read_map(storage, &shape).await?;
    let len = storage.len();
    let mut damage = Vec::new();
    let census = load::census(&map, &shape, len, |found| damage.push(found));
    let mut report = CheckReport {
        total_blocks: shape.disk_blocks().into(),
        allocated_blocks: census.allocated,
        end_offset: shape.end_of(census.end),
        ..CheckReport::default()
    };
    for found in &damage {
        report.add(kind_of(found), Severity::Error, || load::told(*found, &map, &shape, len));
    }
    let (counter, end) = (header.blocks_allocated, census.end);
    if counter != end {
        let behind = counter < end;
        let (kind, severity) =
            if behind { (COUNTER_BEHIND, Severity::Error) } else { (COUNTER_AHEAD, Severity::Leak) };
        report.add(kind, severity, || format!("the header counts {counter} blocks, the map ends at {end}"));
    }
    for slots in census.vacant.ranges() {
        report.add_each(UNUSED_SLOT, Severity::Leak, slots, |slot| {
            format!("slot {slot}, at {}, is no block's", shape.data_of(Slot(slot)))
        });
    }
    if storage.limits().grows_with_zeroes && len > shape.end_of(end) {
        report.add(UNUSED_END, Severity::Leak, || {
            format!("the file has {} bytes after its last block", len - shape.end_of(end))
        });
    }
    Ok(Examined { header, head, map, census, damage, report })
}

fn kind_of(damage: &Damage) -> &'static str {
    match damage {
        Damage::Shared { .. } => SHARED,
        Damage::PastEnd { .. } => PAST_END,
        Damage::CutOff { .. } => CUT_OFF,
    }
}

/// Rids the image of its damage. Returns it opened.
async fn mend(storage: Arc<dyn Storage>, examined: Examined) -> Result<Arc<Inner>> {
    let Examined { header, head, map, census, damage, .. } = examined;
    // Damaged entries leave the map in memory first: their slots are others', or nobody's.
    let cleared = if header.kind.has_parent() { Entry::Zero } else { Entry::Absent };
    for found in &damage {
        if let Damage::Shared { block, .. } | Damage::PastEnd { block, .. } = *found {
            map.set(block, cleared);
        }
    }
    let inner = Arc::new(Inner::new(storage, &header, head, map, census, false));
    // This lengthens a file that was cut off, with zeroes.
    inner.make_ready().await?;
    let mut changes = Vec::new();
    for found in damage {
        changes.extend(match found {
            Damage::PastEnd { block, .. } => Some(Change { block, entry: cleared, claim: None }),
            Damage::Shared { block, slot } => Some(separate(&inner, block, slot).await?),
            Damage::CutOff { .. } => None,
        });
    }
    inner.barrier().await?;
    // All at once: a page of the map is written whole, and must not show one of the others as memory has it now.
    inner.write_entries(changes).await?;
    Ok(inner)
}

/// Copies the bytes of a block into a slot of its own. Returns the entry to be written for it.
async fn separate(inner: &Arc<Inner>, block: u32, shared: Slot) -> Result<Change> {
    let alone = Claim::of(block, &inner.claims, &inner.space, || true).await;
    let mut claim = alone.expect("nobody else knows of this layer");
    let vacancy = inner.fill(&mut claim).await?;
    compact::copy(&*inner.storage, &inner.shape, shared, vacancy).await?;
    Ok(Change { block, entry: Entry::Slot(vacancy.slot), claim: Some(claim) })
}

/// Fills holes with the last blocks, and sets counter and length.
async fn reclaim(inner: &Arc<Inner>) -> Result<()> {
    inner.make_ready().await?;
    loop {
        inner.flush().await?;
        let blocks = inner.compactable();
        if blocks.is_empty() {
            return inner.settle().await;
        }
        inner.compact(&blocks).await?;
    }
}
