//! Raw images: the disk is the file, and a last sector that the file has only a part of.

use std::sync::Arc;

use disk_core::ByteRange;
use disk_core::buf::Pool;
use disk_core::format::{
    CreateOptions, FORMATS, Layer, Mapping, Place, Repair, Reserved, Severity, Space, Variant, find, probe,
};
use disk_core::storage::{MemStorage, Storage};

async fn open(storage: &Arc<MemStorage>, read_only: bool) -> Arc<dyn Layer> {
    let raw = find("raw").unwrap();
    raw.open(Arc::clone(storage) as Arc<dyn Storage>, read_only).await.unwrap()
}

#[tokio::test]
async fn every_byte_of_the_disk_is_in_the_file_at_its_own_offset() {
    let storage = Arc::new(MemStorage::new(8192));
    let layer = open(&storage, false).await;
    assert_eq!((layer.info().size, layer.info().space), (8192, Space::Host));
    assert_eq!(layer.lookup(ByteRange::new(100, 8192)), Mapping { len: 8092, place: Place::Data(100) });
}

#[tokio::test]
async fn a_file_that_ends_inside_a_sector_is_a_disk_of_whole_sectors_with_a_zero_end() {
    let storage = Arc::new(MemStorage::from_bytes(&[7; 1000]));
    let layer = open(&storage, true).await;
    assert_eq!(layer.info().size, 1024, "as QEMU rounds it");
    assert_eq!(layer.lookup(ByteRange::new(512, 1024)), Mapping { len: 488, place: Place::Data(512) });
    assert_eq!(layer.lookup(ByteRange::new(1000, 1024)), Mapping { len: 24, place: Place::Zero });
    assert_eq!(storage.len(), 1000, "reading changes nothing");
}

#[tokio::test]
async fn the_first_change_gives_the_last_sector_its_missing_bytes() {
    let storage = Arc::new(MemStorage::from_bytes(&[7; 1000]));
    let layer = open(&storage, false).await;
    assert!(matches!(layer.reserve(ByteRange::new(1000, 1024)).await, Ok(Reserved::Mapped)));
    layer.begin_changes().await.unwrap();
    assert_eq!(layer.lookup(ByteRange::new(0, 1024)), Mapping { len: 1024, place: Place::Data(0) });
    let last = storage.read(512, Pool::global().take(512)).await.unwrap();
    assert_eq!((last[487], last[488], last[511]), (7, 0, 0));
}

#[tokio::test]
async fn a_new_raw_image_is_all_hole() {
    let storage = Arc::new(MemStorage::new(0));
    let raw = find("RAW").expect("names are found in upper case, too");
    let options = CreateOptions {
        size: 1 << 20,
        variant: Variant::Dynamic,
        parent: None,
        block_size: None,
        uuid: None,
        comment: None,
    };
    raw.create(Arc::clone(&storage) as Arc<dyn Storage>, options).await.unwrap();
    assert_eq!((storage.len(), storage.allocated()), (1 << 20, 0));
}

#[tokio::test]
async fn a_check_of_a_raw_image_has_nothing_to_find() {
    let storage = Arc::new(MemStorage::new(1536));
    let report = find("raw").unwrap().check(storage, Repair::Nothing).await.unwrap();
    assert_eq!((report.total_blocks, report.found(Severity::Error), report.found(Severity::Leak)), (3, 0, 0));
}

#[test]
fn no_content_is_recognised_as_raw() {
    assert!(probe(&[0; 4096]).is_none());
    assert!(FORMATS.iter().any(|format| format.name() == "raw"), "but it is a format");
}
