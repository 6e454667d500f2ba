//! The disk of a session: raw or VDI in memory, full of data that tells where it belongs.

use std::sync::Arc;
use std::time::Duration;

use disk_core::buf::Buf;
use disk_core::chain::{Chain, ChainOptions};
use disk_core::client::Client;
use disk_core::device::{Device, DeviceOptions};
use disk_core::format::raw::Raw;
use disk_core::format::vdi::Vdi;
use disk_core::format::{CreateOptions, Format, Layer, ParentIdentity, Variant};
use disk_core::range::ByteRange;
use disk_core::storage::{MemStorage, Storage};
use disk_core::testing::Jitter;
use disk_core::testing::model::target::flat;
use disk_core::throttle::{Limits, Throttle};
use nbd_wire::{Abilities, BlockSize, Context, Denial, ExportInfo, Exports};

use super::script::{Image, Script};

/// The smallest block of a VDI.
const BLOCK: u64 = 128 << 10;
/// Blocks of the disk, the odd end left out.
const BLOCKS: u64 = 2;
/// Blocks that hold data at first.
const FILLED: u64 = 1;
/// Largest payload of a request, less than the disk.
pub const PAYLOAD_MOST: u32 = 192 << 10;
/// Longest time that the slow storage takes.
const SLOWNESS: Duration = Duration::from_micros(1500);

/// The one export of the disk.
#[derive(Debug, Clone)]
pub struct Shelf {
    pub info: ExportInfo,
}

impl Shelf {
    pub fn new(script: &Script, device: &Arc<Device>) -> Self {
        let minimum = if script.large_sectors() { 4096 } else { 1 };
        Shelf {
            info: ExportInfo {
                name: "disk".to_owned(),
                description: String::new(),
                size: device.size(),
                abilities: Abilities {
                    read_only: script.read_only(),
                    trim: true,
                    fast_zero: true,
                    multi_conn: true,
                },
                block_size: BlockSize { minimum, preferred: 4096, maximum: PAYLOAD_MOST },
                contexts: vec![Context::Allocation, Context::AllocationDepth],
            },
        }
    }
}

impl Exports for Shelf {
    fn list(&self) -> Option<Vec<(String, String)>> {
        Some(vec![(self.info.name.clone(), String::new())])
    }

    fn find(&self, name: &str) -> Result<ExportInfo, Denial> {
        if name == self.info.name { Ok(self.info.clone()) } else { Err(Denial::Unknown) }
    }
}

/// The disk of a script, and what is on it.
pub async fn make(script: &Script) -> (Arc<Device>, Vec<u8>) {
    let unit: u64 = if script.large_sectors() { 4096 } else { 512 };
    let size = BLOCKS * BLOCK + u64::from(script.odd % 9) * unit;
    let mut content = vec![0; size as usize];
    for (at, byte) in content[..(FILLED * BLOCK) as usize].iter_mut().enumerate() {
        *byte = (at as u64 / 512) as u8 | 1;
    }
    let raw = |bytes: &[u8]| Arc::new(MemStorage::from_bytes(bytes)) as Arc<dyn Storage>;
    let mut layers = Vec::new();
    let top = match script.image {
        Image::Raw => raw(&content),
        Image::Dynamic => vdi(size, Variant::Dynamic).await,
        Image::Child => {
            layers.push(Raw.open(raw(&content), true).await.expect("any bytes are raw"));
            vdi(size, Variant::Differencing).await
        }
    };
    let top = if script.is_slow() { Arc::new(Jitter::new(top, SLOWNESS, script.odd.into())) } else { top };
    let format: &dyn Format = if matches!(script.image, Image::Raw) { &Raw } else { &Vdi };
    let layer: Arc<dyn Layer> = format.open(top, script.read_only()).await.expect("an image just made");
    if matches!(script.image, Image::Dynamic) && !script.read_only() {
        let chain = Chain::new(vec![Arc::clone(&layer)], ChainOptions::default());
        let filled = Buf::copy_from(&content[..(FILLED * BLOCK) as usize]);
        chain.write(ByteRange::new(0, FILLED * BLOCK), filled).await.expect("written");
    } else if matches!(script.image, Image::Dynamic) {
        content.fill(0);
    }
    layers.push(layer);
    let chain = Chain::new(layers, ChainOptions::default());
    let options = DeviceOptions { logical_block_size: unit, ..DeviceOptions::default() };
    let throttle = Arc::new(Throttle::new(Limits::UNLIMITED, None));
    (Arc::new(Device::new("disk".to_owned(), chain, throttle, options)), content)
}

async fn vdi(size: u64, variant: Variant) -> Arc<dyn Storage> {
    let storage: Arc<dyn Storage> = Arc::new(MemStorage::new(0));
    let parent =
        (variant == Variant::Differencing).then_some(ParentIdentity { uuid: None, modification_uuid: None });
    let options = CreateOptions { size, variant, parent, block_size: Some(BLOCK), uuid: None, comment: None };
    Vdi.create(Arc::clone(&storage), options).await.expect("a lawful image");
    storage
}

/// Everything on the disk, past all clients.
pub async fn content(device: &Arc<Device>) -> Vec<u8> {
    let pieces = device.read(&Client::new(), ByteRange::new(0, device.size())).await;
    flat(&pieces.expect("a disk in memory can be read"))
}
