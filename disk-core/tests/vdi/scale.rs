//! Very large images: what opening them reads and keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use disk_core::buf::{Buf, BufMut};
use disk_core::format::raw::Raw;
use disk_core::format::vdi::Vdi;
use disk_core::format::{CreateOptions, Format, Mapping, ParentIdentity, Place, Variant};
use disk_core::storage::{Completion, HostExtent, Limits, MemStorage, Storage, Zero};
use disk_core::testing::{Faults, Op};
use disk_core::{ByteRange, ErrorKind};

use crate::images::{chain_of, dynamic, made, open, patch, read, write};

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

/// A file of which the first MiB is there and the rest reads as 0xFF: an empty block map of any size.
#[derive(Debug)]
struct Empty {
    head: MemStorage,
    len: u64,
    read: AtomicU64,
    largest: AtomicU64,
}

impl Storage for Empty {
    fn limits(&self) -> Limits {
        self.head.limits()
    }

    fn name(&self) -> &str {
        "huge.vdi"
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn allocated(&self) -> u64 {
        self.head.allocated()
    }

    fn read(&self, at: u64, mut into: BufMut) -> Completion<BufMut> {
        self.read.fetch_add(into.len() as u64, Ordering::Relaxed);
        self.largest.fetch_max(into.len() as u64, Ordering::Relaxed);
        if at < MIB {
            return self.head.read(at, into);
        }
        into.fill(0xff);
        Completion::ready(Ok(into))
    }

    fn write(&self, at: u64, from: Buf) -> Completion<()> {
        self.head.write(at, from)
    }

    fn zero(&self, range: ByteRange, how: Zero) -> Completion<()> {
        self.head.zero(range, how)
    }

    fn discard(&self, range: ByteRange) -> Completion<()> {
        self.head.discard(range)
    }

    fn status(&self, range: ByteRange) -> Completion<HostExtent> {
        self.head.status(range)
    }

    fn prefetch(&self, _range: ByteRange) {}

    fn flush(&self) -> Completion<()> {
        Completion::ready(Ok(()))
    }

    fn resize(&self, len: u64) -> Completion<()> {
        self.head.resize(len)
    }
}

async fn empty(size: u64) -> Empty {
    let head = Arc::into_inner(made(dynamic(64 * MIB)).await).expect("creation is over");
    let blocks = size / MIB;
    let data = (MIB + blocks * 4).next_multiple_of(MIB);
    patch(&head, 0x158, &(data as u32).to_le_bytes()).await;
    patch(&head, 0x170, &size.to_le_bytes()).await;
    patch(&head, 0x180, &(blocks as u32).to_le_bytes()).await;
    Empty { head, len: data, read: AtomicU64::new(0), largest: AtomicU64::new(0) }
}

/// Memory of the process that is in use, bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("the second field is a number") * 4096
}

#[tokio::test]
async fn an_empty_image_of_100_tib_opens_by_reading_its_map_once_in_pieces_and_keeping_none_of_it() {
    let storage = Arc::new(empty(100 * TIB).await);
    let (before, start) = (resident(), Instant::now());
    let layer = Vdi.open(storage.clone(), false).await.unwrap();
    let (time, memory) = (start.elapsed(), resident().saturating_sub(before));
    println!("100 TiB open in {time:?} with {} KiB more memory", memory >> 10);
    let (read, largest) = (storage.read.load(Ordering::Relaxed), storage.largest.load(Ordering::Relaxed));
    assert_eq!(read, 512 + 400 * MIB);
    assert_eq!(largest, MIB);
    // Other tests of this process run meanwhile, so this is a loose bound.
    assert!(memory < 400 * MIB, "{memory} bytes");
    let everything = layer.lookup(ByteRange::new(0, 100 * TIB));
    assert_eq!(everything, Mapping { len: 100 * TIB, place: Place::Absent });
}

#[tokio::test]
async fn a_disk_of_600_tib_opens_and_one_beyond_the_format_does_not() {
    let layer = Vdi.open(Arc::new(empty(600 * TIB).await), true).await.unwrap();
    assert_eq!(layer.info().size, 600 * TIB);
    let storage = Arc::new(empty(100 * TIB).await.head.named("huge.vdi"));
    patch(&storage, 0x170, &(4u64 << 50).to_le_bytes()).await;
    let error = open(&storage, true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidImage);
    assert!(error.to_string().contains("disk size 4503599627370496"), "{error}");
}

#[tokio::test]
async fn one_status_request_looks_at_some_thousand_places_and_no_more() {
    const BLOCK: u64 = 128 << 10;
    const BLOCKS: u64 = 5000;
    let storage = made(CreateOptions { block_size: Some(BLOCK), ..dynamic(BLOCKS * BLOCK) }).await;
    // As if the disk had been written backwards, so that no block lies behind the one before it. To the client all of it
    // is one extent.
    let slots: Vec<u8> = (0..BLOCKS as u32).rev().flat_map(u32::to_le_bytes).collect();
    patch(&storage, MIB, &slots).await;
    storage.resize(2 * MIB + BLOCKS * BLOCK).await.expect("a sparse file");
    let faults = Arc::new(Faults::new(storage));
    let chain = chain_of(&[&Vdi.open(faults.clone(), true).await.expect("an image")]);
    let all = ByteRange::new(0, BLOCKS * BLOCK);
    let before = faults.count(Op::Status);
    let first = chain.status(all, 1 << 20).await.expect("answered");
    let looks = faults.count(Op::Status) - before;
    assert_eq!(first.len(), 1, "all alike");
    assert!((1000..BLOCKS).contains(&looks), "{looks} looks");
    assert_eq!(first[0].len, looks * BLOCK, "what was not looked at is not told");
    let (_, rest) = all.split_at(first[0].len);
    let second = chain.status(rest, 1 << 20).await.expect("answered");
    assert_eq!(first[0].len + second[0].len, all.len(), "the client asks again and comes to the end");
}

#[tokio::test]
async fn a_write_that_differs_from_what_lies_below_is_not_compared_to_its_end() {
    const BLOCK: u64 = 16 * MIB;
    let below = Arc::new(Faults::new(Arc::new(MemStorage::from_bytes(&vec![1; BLOCK as usize]))));
    let parent = ParentIdentity { uuid: None, modification_uuid: None };
    let options = CreateOptions {
        variant: Variant::Differencing,
        parent: Some(parent),
        block_size: Some(BLOCK),
        ..dynamic(BLOCK)
    };
    let top = made(options).await;
    let layers =
        [&Raw.open(below.clone(), true).await.expect("raw"), &open(&top, false).await.expect("an image")];
    let chain = chain_of(&layers);
    write(&chain, 0, &vec![1; BLOCK as usize]).await;
    assert_eq!(chain.top().allocated(), 0, "the same bytes take no place, and all were compared");
    assert_eq!(below.count(Op::Read), BLOCK / MIB, "in steps that take little memory");
    write(&chain, 0, &vec![2; BLOCK as usize]).await;
    assert_eq!(below.count(Op::Read), BLOCK / MIB + 1);
    assert_eq!(chain.top().allocated(), BLOCK);
    assert!(read(&chain, ByteRange::new(0, BLOCK)).await.iter().all(|&byte| byte == 2));
}
