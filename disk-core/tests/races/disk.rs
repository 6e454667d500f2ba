//! The disk that the races run on: a VDI over a raw parent full of data, both with storages that can be held.

use std::sync::Arc;
use std::time::Duration;

use disk_core::buf::Buf;
use disk_core::chain::{Chain, ChainOptions, DetectZeroes};
use disk_core::client::Client;
use disk_core::device::{Device, DeviceOptions};
use disk_core::format::raw::Raw;
use disk_core::format::vdi::Vdi;
use disk_core::format::{CreateOptions, Format, ParentIdentity, Variant};
use disk_core::range::ByteRange;
use disk_core::storage::{Limits, MemStorage, Storage};
use disk_core::testing::model::stamp;
use disk_core::testing::model::target::flat;
use disk_core::testing::{Faults, Hold};
use disk_core::throttle::{self, Throttle};
use disk_core::{Result, tracker::Stage};
use tokio::task::JoinHandle;

pub const BLOCK: u64 = 128 << 10;
/// Blocks of the disk.
pub const BLOCKS: u64 = 6;
const PARENT: u32 = 1;

/// A disk whose storages can be held and can fail.
pub struct Disk {
    pub device: Arc<Device>,
    /// The parent's storage.
    pub parent: Arc<Hold>,
    /// The top's storage.
    pub top: Arc<Hold>,
    pub faults: Arc<Faults>,
    /// The top's file.
    pub file: Arc<MemStorage>,
    pub client: Client,
}

impl Disk {
    /// An empty differencing image in a file.
    pub async fn new() -> Disk {
        Disk::on(MemStorage::new(0), throttle::Limits::default()).await
    }

    /// The same on a block device with as many slots as the disk has blocks, full of old bytes.
    pub async fn on_device() -> Disk {
        let plain = MemStorage::from_bytes(&vec![0xdb; ((2 << 20) + BLOCKS * BLOCK) as usize]);
        let limits = Limits { grows_with_zeroes: false, ..plain.limits() };
        Disk::on(plain.with_limits(limits), throttle::Limits::default()).await
    }

    pub async fn throttled(limits: throttle::Limits) -> Disk {
        Disk::on(MemStorage::new(0), limits).await
    }

    pub async fn that_unmaps_zeroes() -> Disk {
        let disk = Disk::new().await;
        let options = ChainOptions { detect_zeroes: DetectZeroes::Unmap, ..ChainOptions::default() };
        Disk::open_with(disk.file, throttle::Limits::default(), options).await
    }

    async fn on(file: MemStorage, limits: throttle::Limits) -> Disk {
        let file = Arc::new(file);
        let options = CreateOptions {
            size: BLOCKS * BLOCK,
            variant: Variant::Differencing,
            parent: Some(ParentIdentity { uuid: None, modification_uuid: None }),
            block_size: Some(BLOCK),
            uuid: None,
            comment: None,
        };
        Vdi.create(file.clone(), options).await.expect("an empty file");
        Disk::open(file, limits).await
    }

    /// Opens the image in `file`.
    pub async fn open(file: Arc<MemStorage>, limits: throttle::Limits) -> Disk {
        Disk::open_with(file, limits, ChainOptions::default()).await
    }

    async fn open_with(file: Arc<MemStorage>, limits: throttle::Limits, options: ChainOptions) -> Disk {
        let parent = Arc::new(Hold::new(Arc::new(MemStorage::from_bytes(&below(0, BLOCKS * BLOCK)))));
        let faults = Arc::new(Faults::new(file.clone()));
        let top = Arc::new(Hold::new(faults.clone()));
        let layers = vec![
            Raw.open(parent.clone(), true).await.expect("raw always opens"),
            Vdi.open(top.clone(), false).await.expect("an image"),
        ];
        let chain = Chain::new(layers, options);
        let throttle = Arc::new(Throttle::new(limits, None));
        let device = Arc::new(Device::new("disk".into(), chain, throttle, DeviceOptions::default()));
        Disk { device, parent, top, faults, file, client: Client::new() }
    }

    /// Writes a stamp, in a task of its own.
    pub fn start_write(&self, at: u64, len: u64, serial: u32) -> JoinHandle<Result<()>> {
        self.start_write_as(&self.client, at, len, serial)
    }

    pub fn start_write_as(&self, client: &Client, at: u64, len: u64, serial: u32) -> JoinHandle<Result<()>> {
        let (device, client) = (self.device.clone(), client.clone());
        let data = Buf::copy_from(&stamp(at, len, serial));
        tokio::spawn(async move { device.write(&client, at, data, false).await })
    }

    pub async fn write(&self, at: u64, len: u64, serial: u32) {
        self.start_write(at, len, serial).await.expect("no panic").expect("written");
    }

    pub fn start_discard(&self, range: ByteRange) -> JoinHandle<Result<()>> {
        let (device, client) = (self.device.clone(), self.client.clone());
        tokio::spawn(async move { device.discard(&client, range, false).await })
    }

    pub async fn discard(&self, range: ByteRange) {
        self.start_discard(range).await.expect("no panic").expect("discarded");
    }

    pub fn start_read(&self, at: u64, len: u64) -> JoinHandle<Result<Vec<u8>>> {
        let (device, client) = (self.device.clone(), self.client.clone());
        tokio::spawn(
            async move { device.read(&client, ByteRange::at(at, len)).await.map(|pieces| flat(&pieces)) },
        )
    }

    pub async fn read(&self, at: u64, len: u64) -> Vec<u8> {
        self.start_read(at, len).await.expect("no panic").expect("read")
    }

    pub async fn flush(&self) {
        self.device.flush(&self.client).await.expect("flushed");
    }

    /// Requests in this stage.
    pub fn in_stage(&self, stage: Stage) -> usize {
        self.device.requests().iter().filter(|request| request.stage == stage).count()
    }
}

/// What the parent holds.
pub fn below(at: u64, len: u64) -> Vec<u8> {
    stamp(at, len, PARENT)
}

/// The range of a block.
pub fn block(number: u64) -> ByteRange {
    ByteRange::at(number * BLOCK, BLOCK)
}

/// Lets every task go as far as it can. On a paused clock: until all wait for something.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
