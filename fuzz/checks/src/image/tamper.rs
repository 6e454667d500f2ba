//! Images that were right, and what was done to them.

use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use disk_core::format::vdi::Vdi;
use disk_core::format::{CreateOptions, Format, ParentIdentity, Variant};
use disk_core::storage::{MemStorage, Storage};

use crate::{Many, Number};

/// The smallest block of a VDI.
const BLOCK: u64 = 128 << 10;
/// Blocks of the templates; the last is not whole.
const BLOCKS: u64 = 9;
const SIZE: u64 = (BLOCKS - 1) * BLOCK + 1536;
/// Where the templates' map and data are.
const MAP: u64 = 1 << 20;
const DATA: u64 = 2 << 20;
/// Longest file, so that honest work on a whole one stays short.
const LEN_MOST: u64 = 64 << 20;

/// Offsets of the header's numbers, version 1.1: sizes, places, counts, geometry, identities.
const FIELDS: [u64; 22] = [
    0x40, 0x44, 0x48, 0x4c, 0x50, 0x154, 0x158, 0x15c, 0x160, 0x164, 0x168, 0x16c, 0x170, 0x174, 0x178,
    0x17c, 0x180, 0x184, 0x188, 0x198, 0x1a8, 0x1b8,
];

/// A template and changes.
#[derive(Debug, Arbitrary)]
pub struct Tampering {
    template: Template,
    changes: Many<Change, 8>,
}

#[derive(Debug, Arbitrary)]
enum Template {
    Dynamic,
    Fixed,
    Differencing,
    /// Version 0.2, whose map is not aligned.
    Old,
    /// Just these bytes.
    Raw(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Change {
    /// A number of the header.
    Field(u8, Number),
    /// An entry of the map.
    Entry(u8, Number),
    /// Bytes near the start.
    Bytes(u16, Vec<u8>),
    /// The length of the file, in units of 512 bytes.
    Length(u16),
    /// The same, far beyond its end.
    Stretch(u32),
}

impl Tampering {
    pub fn image(&self) -> MemStorage {
        let image = match &self.template {
            Template::Raw(bytes) => MemStorage::from_bytes(bytes),
            Template::Old => old().snapshot(),
            Template::Dynamic => made(Variant::Dynamic).snapshot(),
            Template::Fixed => made(Variant::Fixed).snapshot(),
            Template::Differencing => made(Variant::Differencing).snapshot(),
        };
        let is_old = matches!(self.template, Template::Old);
        for change in self.changes.iter() {
            match change {
                Change::Field(field, number) => {
                    let at = FIELDS[usize::from(*field) % FIELDS.len()];
                    put(&image, at, &number.value().to_le_bytes());
                }
                Change::Entry(block, number) => {
                    let map = if is_old { 420 } else { MAP };
                    put(&image, map + u64::from(*block) % (BLOCKS + 1) * 4, &number.value().to_le_bytes());
                }
                Change::Bytes(at, bytes) => put(&image, (*at).into(), bytes),
                Change::Length(sectors) => resize(&image, u64::from(*sectors) * 512),
                Change::Stretch(bytes) => resize(&image, (image.len() + u64::from(*bytes)).min(LEN_MOST)),
            }
        }
        image.named("image")
    }
}

fn put(image: &MemStorage, at: u64, bytes: &[u8]) {
    // Memory is never slow.
    let written = image.write(at, disk_core::buf::Buf::copy_from(bytes));
    futures_util::FutureExt::now_or_never(written).expect("at once").expect("memory can be written");
}

fn resize(image: &MemStorage, len: u64) {
    futures_util::FutureExt::now_or_never(image.resize(len))
        .expect("at once")
        .expect("memory has any length");
}

/// A sound image of that kind, most of its blocks in slots, in an order of their own.
fn made(variant: Variant) -> &'static MemStorage {
    static MADE: [OnceLock<MemStorage>; 3] = [const { OnceLock::new() }; 3];
    let index = match variant {
        Variant::Dynamic => 0,
        Variant::Fixed => 1,
        Variant::Differencing => 2,
    };
    MADE[index].get_or_init(|| {
        let image = Arc::new(MemStorage::new(0));
        let parent = (variant == Variant::Differencing)
            .then_some(ParentIdentity { uuid: Some(uuid::Uuid::from_u128(7)), modification_uuid: None });
        let options = CreateOptions {
            size: SIZE,
            variant,
            parent,
            block_size: Some(BLOCK),
            uuid: Some(uuid::Uuid::from_u128(9)),
            comment: None,
        };
        let creating = Vdi.create(image.clone(), options);
        futures_util::FutureExt::now_or_never(creating).expect("at once").expect("a lawful image");
        put(&image, 0x198, &[5; 16]);
        if variant == Variant::Fixed {
            fill(&image, DATA, BLOCKS);
        } else {
            // Block 4 is absent, block 7 zero; the slots of the others are not in order.
            let entries: [u32; BLOCKS as usize] = [2, 0, 1, 6, u32::MAX, 5, 3, u32::MAX - 1, 4];
            let map: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            put(&image, MAP, &map);
            put(&image, 0x184, &7u32.to_le_bytes());
            fill(&image, DATA, 7);
        }
        image.snapshot()
    })
}

/// Slots whose every sector is another.
fn fill(image: &MemStorage, data: u64, slots: u64) {
    resize(image, data + slots * BLOCK);
    for slot in 0..slots {
        // A few sectors of each, as a page of memory is all that a template should take.
        put(image, data + slot * BLOCK, &[slot as u8 + 1; 1024]);
        put(image, data + (slot + 1) * BLOCK - 512, &[slot as u8 + 65; 512]);
    }
}

/// A sound image of version 0.2.
fn old() -> &'static MemStorage {
    static OLD: OnceLock<MemStorage> = OnceLock::new();
    OLD.get_or_init(|| {
        let mut head = b"<<< innotek VirtualBox Disk Image >>>\n".to_vec();
        head.resize(0x40, 0);
        let entries: [u32; BLOCKS as usize] = [2, 0, 1, u32::MAX, 3, u32::MAX - 1, 4, 5, 6];
        for word in [0xbeda_107f, 2, 1, 0] {
            head.extend_from_slice(&u32::to_le_bytes(word));
        }
        head.resize(0x50 + 256, 0);
        for word in [0, 0, 0, 512, SIZE as u32, 0, BLOCK as u32, BLOCKS as u32, 7] {
            head.extend_from_slice(&u32::to_le_bytes(word));
        }
        head.extend_from_slice(&[3; 32]);
        head.resize(420, 0);
        head.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        let image = MemStorage::from_bytes(&head);
        fill(&image, head.len() as u64, 7);
        image
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk_core::format::Repair;

    #[tokio::test]
    async fn the_templates_are_sound() {
        for template in [Template::Dynamic, Template::Fixed, Template::Differencing, Template::Old] {
            let image = Arc::new(Tampering { template, changes: Many(Vec::new()) }.image());
            let report = Vdi.check(image.clone(), Repair::Nothing).await.expect("an image");
            assert!(report.findings.is_empty(), "{report:?}");
            let layer = Vdi.open(image, false).await.expect("an image that can be written");
            assert_eq!(layer.info().size, SIZE);
        }
    }
}
