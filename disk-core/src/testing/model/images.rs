//! Chains of images, drawn at random and built in memory.
//!
//! Every image is filled through the chain that it was once the top of, so parents hold data, zero markers and holes,
//! and the model of the whole chain grows with them.
//!
//! Invariant: once a chain is built nothing but its top changes.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::request::{Request, Shape};
use super::target::{Target, data_of, flat};
use super::witness::{self, Image};
use super::{Model, SECTOR, stamp};
use crate::buf::is_zero;
use crate::chain::{Chain, ChainOptions, DetectZeroes, StatusExtent};
use crate::error::Result;
use crate::format::raw::Raw;
use crate::format::vdi::Vdi;
use crate::format::{CreateOptions, Format, Layer, ParentIdentity, Repair, Severity, Variant};
use crate::open::check_link;
use crate::range::ByteRange;
use crate::storage::{Limits, MemStorage, Storage};

/// Most bytes of a disk; a test reads all of it often.
const MAX_SIZE: u64 = 3 << 20;

/// What kind of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the kinds of image that there are")]
pub enum Kind {
    Raw,
    Vdi { variant: Variant, block_size: u64 },
}

/// What an image lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A file on a usual file system.
    File,
    /// A file on one that can neither zero in place nor give space back.
    PlainFile,
    /// A block device full of old bytes, just large enough.
    Device,
}

/// An image of a chain.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    /// What kind.
    pub kind: Kind,
    /// What it lies on.
    pub medium: Medium,
    /// Bytes of its disk.
    pub size: u64,
    /// What it was asked when it was the top.
    pub past: Vec<Request>,
}

/// A chain to be built.
#[derive(Debug, Clone)]
pub struct ChainSpec {
    /// Base first.
    pub images: Vec<ImageSpec>,
    /// For the top.
    pub options: ChainOptions,
}

impl ImageSpec {
    fn format(&self) -> &'static dyn Format {
        match self.kind {
            Kind::Raw => &Raw,
            Kind::Vdi { .. } => &Vdi,
        }
    }

    /// Requests for this image have this shape, if they are to start and end on multiples of `unit`.
    pub fn shape(&self, unit: u64) -> Shape {
        let block = match self.kind {
            Kind::Raw => 64 << 10,
            Kind::Vdi { block_size, .. } => block_size,
        };
        Shape { size: self.size, unit, block }
    }

    fn medium(&self) -> MemStorage {
        let file = MemStorage::new(0).limits();
        match self.medium {
            Medium::File => MemStorage::new(0),
            Medium::PlainFile => {
                MemStorage::new(0).with_limits(Limits { fast_zero: false, can_discard: false, ..file })
            }
            Medium::Device => {
                let len = match self.kind {
                    Kind::Raw => self.size,
                    Kind::Vdi { block_size, .. } => (2 << 20) + self.size.next_multiple_of(block_size),
                };
                let old = stamp(1 << 38, len, 0xdb_dbdb);
                MemStorage::from_bytes(&old).with_limits(Limits { grows_with_zeroes: false, ..file })
            }
        }
    }

    async fn create(&self, parent: Option<&dyn Layer>) -> Result<MemStorage> {
        let storage = Arc::new(self.medium());
        let options = |variant, block_size| CreateOptions {
            size: self.size,
            variant,
            parent: parent.map(|parent| ParentIdentity {
                uuid: parent.info().uuid,
                modification_uuid: parent.info().modification_uuid,
            }),
            block_size,
            uuid: None,
            comment: None,
        };
        match self.kind {
            // A block device is a raw disk as it is.
            Kind::Raw if self.medium == Medium::Device => {}
            Kind::Raw => Raw.create(storage.clone(), options(Variant::Dynamic, None)).await?,
            Kind::Vdi { variant, block_size } => {
                Vdi.create(storage.clone(), options(variant, Some(block_size))).await?;
            }
        }
        Ok(Arc::into_inner(storage).expect("creation is over"))
    }
}

/// A chain of images in memory.
#[derive(Debug)]
pub struct Images {
    /// What they are.
    pub spec: ChainSpec,
    /// The files of all but the top, base first. They never change.
    parents: Vec<Arc<MemStorage>>,
    /// The new top.
    pub top: MemStorage,
    /// What the disk reads.
    pub model: Model,
}

impl Images {
    /// Builds a chain.
    ///
    /// # Errors
    /// In words, if anything on the way was wrong.
    pub async fn build(spec: &ChainSpec) -> Result<Images, String> {
        let mut built: Option<Images> = None;
        let mut serial = 1 << 20;
        for (height, image) in (1..).zip(&spec.images) {
            let below = match built.take() {
                Some(below) => Some(below.fill(&mut serial).await?),
                None => None,
            };
            built = Some(Images::add(below, image, spec, height).await?);
        }
        built.ok_or_else(|| "a chain has at least a base".into())
    }

    async fn add(
        below: Option<Images>,
        image: &ImageSpec,
        spec: &ChainSpec,
        height: usize,
    ) -> Result<Images, String> {
        let parent = match &below {
            Some(below) => Some(below.open_read_only().await?),
            None => None,
        };
        let top = image.create(parent.as_ref().map(Chain::top)).await.map_err(|error| error.to_string())?;
        let model = match (&below, image.kind, image.medium) {
            (Some(below), ..) => below.model.child(image.size),
            (None, Kind::Raw, Medium::Device) => {
                let mut model = Model::new(image.size);
                model.write(0, &top.to_vec());
                model
            }
            (None, ..) => Model::new(image.size),
        };
        let parents = below
            .map_or(Vec::new(), |below| below.parents.into_iter().chain([Arc::new(below.top)]).collect());
        let spec = ChainSpec { images: spec.images[..height].to_vec(), options: spec.options };
        Ok(Images { spec, parents, top, model })
    }

    /// Carries the past of the top out.
    async fn fill(mut self, serial: &mut u32) -> Result<Images, String> {
        let top = Arc::new(self.top.snapshot());
        let chain = self.open(top.clone()).await?;
        let old = self.model.clone();
        for request in &self.top_spec().past.clone() {
            *serial += 1;
            let data = data_of(&chain, request, *serial, &old).await?;
            let answer = chain.ask(request, data.clone()).await;
            if !matches!(request, Request::Status { .. }) {
                self.model.judge(request, &data, &answer)?;
            }
        }
        chain.top().settle().await.map_err(|error| error.to_string())?;
        self.model.settle(0, &read_all(&chain).await?).map_err(|difference| difference.to_string())?;
        self.top = top.snapshot();
        Ok(self)
    }

    /// What the top is.
    pub fn top_spec(&self) -> &ImageSpec {
        self.spec.images.last().expect("a chain has at least a base")
    }

    /// Opens the chain for writing, over its top as it is in `top`.
    ///
    /// # Errors
    /// In words.
    pub async fn open(&self, top: Arc<dyn Storage>) -> Result<Chain, String> {
        self.open_as(top, false).await
    }

    /// Opens the chain for reading only.
    ///
    /// # Errors
    /// In words.
    pub async fn open_read_only(&self) -> Result<Chain, String> {
        self.open_as(Arc::new(self.top.snapshot()), true).await
    }

    /// Opens the chain over its top as it is in `top`.
    ///
    /// # Errors
    /// In words.
    pub async fn open_as(&self, top: Arc<dyn Storage>, read_only: bool) -> Result<Chain, String> {
        self.open_over(self.parents(), top, read_only).await
    }

    /// The files of all but the top, base first.
    pub fn parents(&self) -> Vec<Arc<dyn Storage>> {
        self.parents.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect()
    }

    /// Opens the chain over its parents and its top as they are in these files.
    ///
    /// # Errors
    /// In words.
    pub async fn open_over(
        &self,
        parents: Vec<Arc<dyn Storage>>,
        top: Arc<dyn Storage>,
        read_only: bool,
    ) -> Result<Chain, String> {
        let mut layers: Vec<Arc<dyn Layer>> = Vec::new();
        for (image, file) in self.spec.images.iter().zip(parents) {
            let layer = image.format().open(file, true).await;
            layers.push(layer.map_err(|error| format!("opening a parent: {error}"))?);
        }
        let layer = self.top_spec().format().open(top, read_only).await;
        layers.push(layer.map_err(|error| format!("opening the top: {error}"))?);
        for pair in layers.windows(2) {
            let (parent, child) = (pair[0].info(), pair[1].info());
            check_link((Path::new("child"), child), (Path::new("parent"), parent))
                .map_err(|error| error.to_string())?;
        }
        Ok(Chain::new(layers, self.spec.options))
    }

    /// Looks at a disk that stands still from all sides: its bytes, its status, the files of its images, and what
    /// another opening of them finds. `top` is the top's file.
    ///
    /// # Errors
    /// In words: the first thing that is wrong.
    pub async fn inspect(&self, chain: &Chain, top: &MemStorage, model: &mut Model) -> Result<(), String> {
        let bytes = read_all(chain).await?;
        model.settle(0, &bytes).map_err(|difference| format!("the disk {difference}"))?;
        let status = status_all(chain).await?;
        model.judge_status(ByteRange::new(0, chain.size()), usize::MAX, &status)?;
        self.check(top).await?;
        self.witness(top, chain, &bytes, &status)?;
        let fresh = self.open_as(Arc::new(top.snapshot()), true).await?;
        model
            .settle(0, &read_all(&fresh).await?)
            .map_err(|difference| format!("opened anew {difference}"))?;
        let fresh_status = status_all(&fresh).await?;
        if fresh_status != status {
            return Err(format!("status was {status:?}, opened anew it is {fresh_status:?}"));
        }
        Ok(())
    }

    async fn check(&self, top: &MemStorage) -> Result<(), String> {
        let report = self.top_spec().format().check(Arc::new(top.snapshot()), Repair::Nothing).await;
        let report = report.map_err(|error| format!("check: {error}"))?;
        match report.found(Severity::Error) {
            0 => Ok(()),
            _ => Err(format!("check: {:?}", report.findings)),
        }
    }

    /// Compares a disk with what its files say to the witness.
    fn witness(
        &self,
        top: &MemStorage,
        chain: &Chain,
        bytes: &[u8],
        status: &[StatusExtent],
    ) -> Result<(), String> {
        let files = self.parents.iter().map(|file| file.snapshot()).chain([top.snapshot()]);
        let images = self.spec.images.iter().zip(files).map(|(image, file)| match image.kind {
            Kind::Raw => Ok(Image::raw(file)),
            Kind::Vdi { .. } => Image::vdi(file),
        });
        let images = images.collect::<Result<Vec<_>, _>>()?;
        let mut status = status.iter();
        let mut said = *status.next().ok_or("no status")?;
        for found in witness::read(&images) {
            let part = &bytes[found.range.start() as usize..found.range.end() as usize];
            if !found.bytes.as_ref().map_or_else(|| is_zero(part), |bytes| bytes == part) {
                return Err(format!("{} is not what the files hold", found.range));
            }
            let mut rest = found.range.len();
            while rest > 0 {
                if said.len == 0 {
                    said = *status.next().ok_or_else(|| format!("no status for {}", found.range))?;
                }
                if said.depth != found.depth || (said.data && found.bytes.is_none()) {
                    return Err(format!(
                        "status {said:?}, but the files have {} at depth {}",
                        found.range, found.depth
                    ));
                }
                let step = rest.min(said.len);
                (rest, said.len) = (rest - step, said.len - step);
            }
        }
        let table = images.last().and_then(Image::table);
        let allocated = table.map(|table| table.slots().count() as u64 * table.block_size);
        match allocated {
            Some(allocated) if allocated != chain.top().allocated() => {
                Err(format!("{allocated} bytes are allocated, not {}", chain.top().allocated()))
            }
            _ => Ok(()),
        }
    }
}

/// All bytes of a disk.
///
/// # Errors
/// In words, if it cannot be read.
pub async fn read_all(chain: &Chain) -> Result<Vec<u8>, String> {
    let pieces = chain.read(ByteRange::new(0, chain.size())).await;
    Ok(flat(&pieces.map_err(|error| format!("reading it all: {error}"))?))
}

async fn status_all(chain: &Chain) -> Result<Vec<StatusExtent>, String> {
    let status = chain.status(ByteRange::new(0, chain.size()), usize::MAX).await;
    status.map_err(|error| format!("status of it all: {error}"))
}

/// Options of all kinds.
pub fn options() -> impl Strategy<Value = ChainOptions> {
    let detect = prop_oneof![
        4 => Just(DetectZeroes::Off),
        1 => Just(DetectZeroes::On),
        1 => Just(DetectZeroes::Unmap),
    ];
    let odd = || prop::bool::weighted(0.3);
    (odd(), odd(), detect).prop_map(|(honor_zeroes, honor_same, detect_zeroes)| ChainOptions {
        honor_zeroes,
        honor_same,
        detect_zeroes,
    })
}

/// A single raw image.
pub fn raw() -> BoxedStrategy<ChainSpec> {
    sizes()
        .prop_flat_map(|size| chain_of(image(Just(Kind::Raw), Just(size)).prop_map(|image| vec![image])))
        .boxed()
}

/// A single VDI.
pub fn vdi() -> BoxedStrategy<ChainSpec> {
    let variant = prop_oneof![3 => Just(Variant::Dynamic), 1 => Just(Variant::Fixed)];
    sizes()
        .prop_flat_map(move |size| {
            chain_of(image(vdi_of(variant.clone()), Just(size)).prop_map(|image| vec![image]))
        })
        .boxed()
}

/// Two to five images: a raw or VDI base and differencing VDIs, of one size or of several.
pub fn chain() -> BoxedStrategy<ChainSpec> {
    let base = prop_oneof![
        1 => Just(Kind::Raw),
        1 => vdi_of(prop_oneof![3 => Just(Variant::Dynamic), 1 => Just(Variant::Fixed)]),
    ];
    let child = vdi_of(Just(Variant::Differencing));
    let images = sizes().prop_flat_map(move |size| {
        let any_size = || prop_oneof![3 => Just(size), 1 => sizes()];
        let base = image(base.clone(), any_size());
        let children = prop::collection::vec(image(child.clone(), any_size()), 1..=4);
        (base, children).prop_map(|(base, children)| [vec![base], children].concat())
    });
    chain_of(images).boxed()
}

/// A chain of any kind.
pub fn any_chain() -> BoxedStrategy<ChainSpec> {
    prop_oneof![1 => raw(), 2 => vdi(), 4 => chain()].boxed()
}

fn chain_of(images: impl Strategy<Value = Vec<ImageSpec>>) -> impl Strategy<Value = ChainSpec> {
    (images, options()).prop_map(|(images, options)| ChainSpec { images, options })
}

fn vdi_of(variant: impl Strategy<Value = Variant> + Clone) -> impl Strategy<Value = Kind> + Clone {
    let block_size = prop_oneof![
        6 => Just(128u64 << 10),
        2 => Just(256 << 10),
        1 => Just(512 << 10),
        1 => Just(1 << 20),
    ];
    (variant, block_size).prop_map(|(variant, block_size)| Kind::Vdi { variant, block_size })
}

/// Disks of some blocks and a bit, or of a few sectors.
fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (1..=MAX_SIZE / (128 << 10), 0..256u64).prop_map(|(blocks, sectors)| blocks * (128 << 10) - sectors * SECTOR),
        1 => (1..=MAX_SIZE / (128 << 10)).prop_map(|blocks| blocks * (128 << 10)),
        1 => (1..600u64).prop_map(|sectors| sectors * SECTOR),
    ]
    .prop_map(|size| size.max(SECTOR))
}

fn image(
    kind: impl Strategy<Value = Kind>,
    size: impl Strategy<Value = u64>,
) -> impl Strategy<Value = ImageSpec> {
    let medium = prop_oneof![
        4 => Just(Medium::File),
        1 => Just(Medium::PlainFile),
        2 => Just(Medium::Device),
    ];
    (kind, medium, size).prop_flat_map(|(kind, medium, size)| {
        let image = ImageSpec { kind, medium, size, past: Vec::new() };
        let past = prop::collection::vec(image.shape(SECTOR).requests(), 0..8);
        past.prop_map(move |past| ImageSpec { past, ..image.clone() })
    })
}
