//! Malformed and damaged images: refused with the field and its value, or readable as far as they are right, and
//! repaired without losing what is there.

use std::sync::Arc;

use disk_core::format::vdi::Vdi;
use disk_core::format::{CheckReport, CreateOptions, Format, ParentIdentity, Repair, Severity, Variant};
use disk_core::storage::{MemStorage, Storage};
use disk_core::{ByteRange, ErrorKind};

use crate::images::{chain_of, clean_for_qemu, dynamic, made, open, patch, read, try_read, word, write};

const MIB: u64 = 1 << 20;
const MAP: u64 = 1 << 20;
const DATA: u64 = 2 << 20;

/// A disk of 4 MiB whose block n is full of n + 1; block 2 is absent. Block 3 is in slot 0, block 0 in slot 1, block 1
/// in slot 2.
async fn good() -> Arc<MemStorage> {
    let storage = made(dynamic(4 * MIB)).await;
    let layer = open(&storage, false).await.unwrap();
    let chain = chain_of(&[&layer]);
    for block in [3, 0, 1] {
        write(&chain, block * MIB, &vec![block as u8 + 1; MIB as usize]).await;
    }
    layer.settle().await.unwrap();
    let entries: Vec<u32> = (0..4).map(|block| word(&storage, MAP as usize + 4 * block)).collect();
    assert_eq!(entries, [1, 2, u32::MAX, 0]);
    storage
}

async fn first_bytes(storage: &Arc<MemStorage>, read_only: bool) -> [u8; 4] {
    let layer = open(storage, read_only).await.unwrap();
    let bytes = read(&chain_of(&[&layer]), ByteRange::new(0, 4 * MIB)).await;
    for block in bytes.chunks(MIB as usize) {
        assert!(block.iter().all(|byte| *byte == block[0]));
    }
    [0, 1, 2, 3].map(|block| bytes[block << 20])
}

#[tokio::test]
async fn every_field_that_cannot_be_right_is_refused_by_name_and_value() {
    let cases: [(u64, &[u8], &str); 23] = [
        (0x40, &0xbeda_107e_u32.to_le_bytes(), "signature 0xbeda107e"),
        (0x44, &0x2_0000_u32.to_le_bytes(), "version 2.0"),
        (0x48, &100u32.to_le_bytes(), "header size 100"),
        (0x48, &u32::MAX.to_le_bytes(), "is inside the header"),
        (0x4c, &9u32.to_le_bytes(), "image type 9"),
        (0x154, &(MAP as u32 + 1).to_le_bytes(), "block map offset 1048577 is not a multiple of 512"),
        (0x154, &0xffff_fe00_u32.to_le_bytes(), "is inside the block map"),
        (0x154, &0u32.to_le_bytes(), "block map offset 0 is inside the header"),
        (0x158, &(MAP as u32).to_le_bytes(), "data offset 1048576 is inside the block map"),
        (0x158, &(DATA as u32 + 7).to_le_bytes(), "data offset 2097159 is not a multiple of 512"),
        (0x168, &4096u32.to_le_bytes(), "sector size 4096"),
        (0x170, &(1u64 << 63).to_le_bytes(), "disk size 9223372036854775808"),
        (0x170, &(u64::MAX - 511).to_le_bytes(), "disk size 18446744073709551104"),
        (0x170, &511u64.to_le_bytes(), "disk size 511"),
        (0x178, &0u32.to_le_bytes(), "block size 0"),
        (0x178, &3u32.to_le_bytes(), "block size 3"),
        (0x178, &(1u32 << 16).to_le_bytes(), "block size 65536"),
        (0x178, &(1u32 << 31).to_le_bytes(), "block size 2147483648"),
        (0x17c, &(2 * MIB as u32).to_le_bytes(), "block extra size 2097152"),
        (0x180, &u32::MAX.to_le_bytes(), "4294967295 blocks"),
        (0x180, &(1u32 << 30).to_le_bytes(), "is inside the block map"),
        (0x180, &2u32.to_le_bytes(), "2 blocks are too few"),
        (0x1a8, &[1; 16], "a dynamic image has no parent"),
    ];
    let image = good().await;
    for (at, bytes, words) in cases {
        let storage = Arc::new(image.snapshot().named("bad.vdi"));
        patch(&storage, at, bytes).await;
        let error = open(&storage, true).await.expect_err(words);
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{words}");
        assert!(error.to_string().starts_with("bad.vdi: ") && error.to_string().contains(words), "{error}");
        let head = storage.to_vec()[..4096].to_vec();
        let told = Vdi.identify(&head, storage.len(), "bad.vdi").expect_err("the header is wrong");
        assert_eq!(told.to_string(), error.to_string());
        assert_eq!(Vdi.check(storage, Repair::Nothing).await.unwrap_err().kind(), ErrorKind::InvalidImage);
    }
    // Past the end of the file: a map of 4 GiB that lies between header and data, in a file of 5 MiB.
    let storage = Arc::new(image.snapshot());
    patch(&storage, 0x170, &(1u64 << 50).to_le_bytes()).await;
    patch(&storage, 0x180, &((1u32 << 30) - (1 << 20)).to_le_bytes()).await;
    patch(&storage, 0x178, &(2 * MIB as u32).to_le_bytes()).await;
    patch(&storage, 0x158, &0xffff_fe00_u32.to_le_bytes()).await;
    let error = open(&storage, true).await.unwrap_err();
    assert!(error.to_string().contains("past the end of the file"), "{error}");
}

#[tokio::test]
async fn a_file_that_ends_in_its_header_or_map_is_refused() {
    let image = good().await;
    for (len, words) in [(0, "header"), (71, "header"), (400, "header"), (511, "map"), (MAP + 6, "map")] {
        let storage = Arc::new(image.snapshot());
        storage.resize(len).await.unwrap();
        let error = open(&storage, true).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidImage);
        assert!(error.to_string().contains(words), "{len}: {error}");
    }
}

#[tokio::test]
async fn a_counter_that_lies_is_put_right_before_anything_is_written() {
    for lie in [0, 1, 1 << 31, u32::MAX] {
        let storage = good().await;
        patch(&storage, 0x184, &lie.to_le_bytes()).await;
        let layer = open(&storage, false).await.unwrap();
        write(&chain_of(&[&layer]), 2 * MIB, &vec![3; MIB as usize]).await;
        layer.settle().await.unwrap();
        assert_eq!(first_bytes(&storage, true).await, [1, 2, 3, 4], "counter {lie}");
        assert_eq!(word(&storage, 0x184), 4);
        clean_for_qemu(&storage);
    }
}

#[tokio::test]
async fn an_entry_past_the_end_is_no_bar_to_reading_the_rest_but_to_writing() {
    let storage = good().await;
    patch(&storage, MAP, &0x00ff_fff0_u32.to_le_bytes()).await;
    let error = open(&storage, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("block 0 is in slot 16777200"), "{error}");
    let layer = open(&storage, true).await.unwrap();
    let chain = chain_of(&[&layer]);
    assert_eq!(try_read(&chain, ByteRange::at(5, 1)).await.unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(read(&chain, ByteRange::at(MIB, 1)).await, [2]);
    assert_eq!(read(&chain, ByteRange::at(3 * MIB, 1)).await, [4]);
}

#[tokio::test]
async fn a_block_cut_off_by_the_end_of_the_file_reads_as_far_as_it_goes() {
    let storage = good().await;
    storage.resize(DATA + 2 * MIB + 4096).await.unwrap();
    let error = open(&storage, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("inside block 1"), "{error}");
    let layer = open(&storage, true).await.unwrap();
    let chain = chain_of(&[&layer]);
    assert_eq!(read(&chain, ByteRange::at(MIB, 4096)).await, [2; 4096]);
    assert_eq!(try_read(&chain, ByteRange::at(MIB + 4096, 1)).await.unwrap_err().kind(), ErrorKind::Io);
}

#[tokio::test]
async fn padding_of_the_last_block_may_be_missing() {
    let storage = made(dynamic(2 * MIB + 512)).await;
    let layer = open(&storage, false).await.unwrap();
    write(&chain_of(&[&layer]), 2 * MIB, &[7; 512]).await;
    layer.settle().await.unwrap();
    storage.resize(DATA + 512).await.unwrap();
    let layer = open(&storage, false).await.expect("all of the disk is there");
    write(&chain_of(&[&layer]), 0, &[8; 512]).await;
    layer.settle().await.unwrap();
    let layer = open(&storage, true).await.unwrap();
    assert_eq!(read(&chain_of(&[&layer]), ByteRange::at(2 * MIB, 512)).await, [7; 512]);
    assert_eq!(storage.len(), DATA + 2 * MIB);
    clean_for_qemu(&storage);
}

#[tokio::test]
async fn two_blocks_in_one_slot_can_be_read_but_not_written() {
    let storage = good().await;
    patch(&storage, MAP + 12, &1u32.to_le_bytes()).await;
    let error = open(&storage, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("blocks 0 and 3 are both in slot 1"), "{error}");
    assert_eq!(first_bytes(&storage, true).await, [1, 2, 0, 1]);
}

fn counts(report: &CheckReport) -> Vec<(&str, u64, u64)> {
    report.findings.iter().map(|(kind, found)| (*kind, found.count, found.repaired)).collect()
}

/// Repairs an image in which `kinds` are found, and checks that all is repaired, once and for all.
async fn repaired(storage: &Arc<MemStorage>, kinds: &[(&str, u64)]) {
    let look = Vdi.check(storage.clone(), Repair::Nothing).await.unwrap();
    let before = storage.to_vec();
    let expected: Vec<(&str, u64, u64)> = kinds.iter().map(|(kind, count)| (*kind, *count, 0)).collect();
    assert_eq!(counts(&look), expected);
    assert!(storage.to_vec() == before, "looking changes nothing");
    let repair = Vdi.check(storage.clone(), Repair::Everything).await.unwrap();
    let expected: Vec<(&str, u64, u64)> = kinds.iter().map(|(kind, count)| (*kind, *count, *count)).collect();
    assert_eq!(counts(&repair), expected);
    let after = storage.to_vec();
    let again = Vdi.check(storage.clone(), Repair::Everything).await.unwrap();
    assert_eq!(counts(&again), []);
    assert!(storage.to_vec() == after, "a repair of what is right changes nothing");
    assert_eq!(before[0x198..0x1a8], after[0x198..0x1a8], "the content of intact blocks is as before");
    clean_for_qemu(storage);
}

#[tokio::test]
async fn a_good_image_has_no_findings() {
    let storage = good().await;
    let report = Vdi.check(storage, Repair::Nothing).await.unwrap();
    assert!(report.findings.is_empty());
    assert_eq!((report.total_blocks, report.allocated_blocks, report.end_offset), (4, 3, DATA + 3 * MIB));
}

#[tokio::test]
async fn blocks_that_shared_a_slot_get_one_each_with_the_same_bytes() {
    let storage = good().await;
    patch(&storage, MAP + 8, &1u32.to_le_bytes()).await;
    patch(&storage, MAP + 12, &1u32.to_le_bytes()).await;
    repaired(&storage, &[("shared-slot", 2), ("unused-slot", 1)]).await;
    assert_eq!(first_bytes(&storage, false).await, [1, 2, 1, 1]);
}

#[tokio::test]
async fn billions_of_unused_slots_in_a_file_that_is_all_hole_are_counted_and_not_gone_through() {
    const FAR: u32 = 4_000_000_000;
    let storage = good().await;
    storage.resize(DATA + (u64::from(FAR) + 1) * MIB).await.unwrap();
    patch(&storage, MAP, &FAR.to_le_bytes()).await;
    patch(&storage, 0x184, &(FAR + 1).to_le_bytes()).await;
    let report = Vdi.check(storage, Repair::Nothing).await.unwrap();
    let unused = &report.findings["unused-slot"];
    assert_eq!((unused.count, unused.examples.len()), (u64::from(FAR) - 2, CheckReport::EXAMPLES));
    assert!(unused.examples[0].contains("slot 1,"), "{:?}", unused.examples);
}

#[tokio::test]
async fn entries_that_name_nothing_are_cleared() {
    let storage = good().await;
    patch(&storage, MAP, &77u32.to_le_bytes()).await;
    repaired(&storage, &[("entry-past-end", 1), ("unused-slot", 1)]).await;
    assert_eq!(first_bytes(&storage, false).await, [0, 2, 0, 4]);
    assert_eq!(word(&storage, MAP as usize), u32::MAX);
    assert_eq!(storage.len(), DATA + 2 * MIB, "the hole is filled");
}

#[tokio::test]
async fn a_cleared_entry_of_a_child_does_not_bring_the_parents_old_data_back() {
    let parent = Some(ParentIdentity { uuid: None, modification_uuid: None });
    let storage = made(CreateOptions { variant: Variant::Differencing, parent, ..dynamic(4 * MIB) }).await;
    patch(&storage, MAP + 4, &5u32.to_le_bytes()).await;
    let report = Vdi.check(storage.clone(), Repair::Everything).await.unwrap();
    assert_eq!(report.fixed(Severity::Error), 1);
    assert_eq!(word(&storage, MAP as usize + 4), u32::MAX - 1);
}

#[tokio::test]
async fn a_file_that_was_cut_off_gets_its_length_back_and_keeps_what_it_had() {
    let storage = good().await;
    storage.resize(DATA + 2 * MIB + 4096).await.unwrap();
    repaired(&storage, &[("block-cut-off", 1)]).await;
    let layer = open(&storage, false).await.unwrap();
    let bytes = read(&chain_of(&[&layer]), ByteRange::at(MIB, 8192)).await;
    assert_eq!(bytes, [vec![2; 4096], vec![0; 4096]].concat());
}

#[tokio::test]
async fn counters_and_unused_space_are_put_right() {
    let storage = good().await;
    patch(&storage, 0x184, &1u32.to_le_bytes()).await;
    repaired(&storage, &[("counter-behind", 1)]).await;
    patch(&storage, 0x184, &9u32.to_le_bytes()).await;
    storage.resize(storage.len() + 5000).await.unwrap();
    repaired(&storage, &[("counter-ahead", 1), ("unused-end", 1)]).await;
    patch(&storage, MAP + 4, &u32::MAX.to_le_bytes()).await;
    patch(&storage, MAP + 12, &u32::MAX.to_le_bytes()).await;
    repaired(&storage, &[("counter-ahead", 1), ("unused-end", 1), ("unused-slot", 1)]).await;
    assert_eq!(first_bytes(&storage, false).await, [1, 0, 0, 0]);
    assert_eq!(storage.len(), DATA + MIB);
}
