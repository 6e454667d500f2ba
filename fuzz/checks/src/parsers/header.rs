//! Headers of VDI images: sound ones of every version, tampered with, and those that the product itself makes.
//!
//! Invariant: [`Head::wrongs`] reads the bytes by the offsets and rules of the format alone, in numbers that cannot
//! overflow; it shares nothing with the product.

use std::sync::Arc;

use arbitrary::Arbitrary;
use disk_core::error::ErrorKind;
use disk_core::format::vdi::Vdi;
use disk_core::format::{
    CreateOptions, Description, Format, LayerInfo, ParentIdentity, Repair, Value, Variant, probe,
};
use disk_core::storage::{MemStorage, Storage};
use futures_util::FutureExt;
use uuid::Uuid;

use crate::{Many, Number, Reached};

const SIGNATURE: u32 = 0xbeda_107f;
const NAME: &str = "image";
/// Bytes at the start of a file that are the header's.
const AREA: usize = 512;
const SECTOR: u64 = 512;
const BLOCK_MIN: u64 = 128 << 10;
const BLOCK_MOST: u64 = 128 << 20;
const BLOCKS_MOST: u64 = 1 << 31;
const DISK_MOST: u64 = (4 << 50) - (3 << 20);
/// Blocks of an image that is made here: the map is written, and read again.
const MADE_MOST: u64 = 4096;

/// Where a version has its fields. What it does not have is `None`.
pub struct Places {
    version: u32,
    header_size: Option<usize>,
    kind: usize,
    flags: usize,
    comment: usize,
    map: Option<usize>,
    data: Option<usize>,
    sector: usize,
    disk_size: usize,
    pub block_size: usize,
    pub block_extra: Option<usize>,
    pub blocks: usize,
    pub allocated: usize,
    /// Identities: its own, of its state, its parent's, of its parent's state.
    uuids: [Option<usize>; 4],
    end: usize,
}

static OLD: Places = Places {
    version: 2,
    header_size: None,
    kind: 0x48,
    flags: 0x4c,
    comment: 0x50,
    map: None,
    data: None,
    sector: 0x15c,
    disk_size: 0x160,
    block_size: 0x168,
    block_extra: None,
    blocks: 0x16c,
    allocated: 0x170,
    uuids: [Some(0x174), Some(0x184), Some(0x194), None],
    end: 0x1a4,
};

static NEW: Places = Places {
    version: 0x1_0001,
    header_size: Some(0x48),
    kind: 0x4c,
    flags: 0x50,
    comment: 0x54,
    map: Some(0x154),
    data: Some(0x158),
    sector: 0x168,
    disk_size: 0x170,
    block_size: 0x178,
    block_extra: Some(0x17c),
    blocks: 0x180,
    allocated: 0x184,
    uuids: [Some(0x188), Some(0x198), Some(0x1a8), Some(0x1b8)],
    end: 0x1c8,
};

/// The three forms that there are.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Version {
    /// 0.2: the map follows the header, the data follows the map.
    Old,
    /// 1.1 without a logical geometry.
    Short,
    /// 1.1 as it is written today.
    Long,
}

/// One input: a sound header and what was done to it.
#[derive(Debug, Arbitrary)]
pub struct Input {
    version: Version,
    kind: u8,
    blocks: u16,
    changes: Many<Change, 6>,
    len: Len,
}

#[derive(Debug, Arbitrary)]
enum Change {
    /// A number of the header.
    Field(u8, Number),
    /// The size of the disk.
    Size(u64),
    /// Bytes anywhere in it.
    Bytes(u16, Vec<u8>),
    /// Number of blocks and places follow from the sizes again.
    Fit,
}

/// Length of the file.
#[derive(Debug, Arbitrary)]
enum Len {
    /// Up to the end of the map, and so much less or more.
    Map(i8),
    Short(u16),
    Any(u64),
}

/// A header, as bytes.
pub struct Head {
    pub bytes: Vec<u8>,
}

impl Head {
    /// The sound header of an image of `blocks` blocks of the smallest size; `kind` is taken modulo those there are.
    pub fn sound(version: Version, kind: u8, blocks: u32) -> Head {
        let mut head = Head { bytes: vec![0; AREA] };
        head.bytes[..32].copy_from_slice(b"<<< a hostile disk image, >>>\n\0\0");
        head.put(0x40, SIGNATURE);
        let places: &Places = if matches!(version, Version::Old) { &OLD } else { &NEW };
        head.put(0x44, places.version);
        if let Some(at) = places.header_size {
            head.put(at, if matches!(version, Version::Short) { 0x180 } else { 0x190 });
        }
        head.put(places.kind, u32::from(kind % 4) + 1);
        head.put(places.sector, 512);
        head.put(places.block_size, BLOCK_MIN as u32);
        head.put_size(u64::from(blocks) * BLOCK_MIN);
        for (at, byte) in places.uuids.iter().flatten().zip(1..) {
            // Only those with a parent name one.
            if byte < 3 || kind % 4 >= 2 {
                head.bytes[*at..*at + 16].fill(byte);
            }
        }
        head.fit();
        head
    }

    /// Where the fields are, if the version is a known one.
    pub fn places(&self) -> Option<&'static Places> {
        [&OLD, &NEW]
            .into_iter()
            .find(|places| self.bytes.get(0x44..0x48) == Some(&places.version.to_le_bytes()))
    }

    pub fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    pub fn put(&mut self, at: usize, word: u32) {
        self.bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }

    fn size(&self, places: &Places) -> u64 {
        u64::from(self.word(places.disk_size + 4)) << 32 | u64::from(self.word(places.disk_size))
    }

    /// Sets the size of the disk, bytes.
    pub fn put_size(&mut self, size: u64) {
        if let Some(places) = self.places() {
            self.bytes[places.disk_size..places.disk_size + 8].copy_from_slice(&size.to_le_bytes());
        }
    }

    /// Makes the number of blocks and the places of map and data those that follow from the sizes.
    pub fn fit(&mut self) {
        let Some(places) = self.places() else { return };
        let block = u64::from(self.word(places.block_size)).max(1);
        self.put(places.blocks, self.size(places).div_ceil(block) as u32);
        self.fit_places();
    }

    /// Makes the places of map and data those that follow from the number of blocks.
    pub fn fit_places(&mut self) {
        let Some(places) = self.places() else { return };
        if let (Some(map), Some(data)) = (places.map, places.data) {
            self.put(map, AREA as u32);
            let end = self.map_end(places).next_multiple_of(SECTOR.into());
            self.put(data, end as u32);
        }
    }

    fn field(&self, place: Option<usize>) -> u64 {
        place.map_or(0, |at| self.word(at).into())
    }

    fn map_start(&self, places: &Places) -> u64 {
        if places.map.is_some() { self.field(places.map) } else { places.end as u64 }
    }

    fn map_end(&self, places: &Places) -> u128 {
        u128::from(self.map_start(places)) + 4 * u128::from(self.word(places.blocks))
    }

    /// Where the map is, and where the data begins.
    pub fn tables(&self) -> (u64, u64) {
        let places = self.places().expect("a known version");
        let data = if places.data.is_some() { self.field(places.data) } else { self.map_end(places) as u64 };
        (self.map_start(places), data)
    }

    /// What the rules of the format have against it as the head of a file of `len` bytes, each in words that a message
    /// about it has to hold.
    fn wrongs(&self, len: u64) -> Vec<&'static str> {
        const CUT: &str = "the file ends inside";
        if self.bytes.len() < 0x48 {
            return vec![CUT];
        }
        if self.word(0x40) != SIGNATURE {
            return vec!["signature"];
        }
        let Some(places) = self.places() else { return vec!["version"] };
        if self.bytes.len() < places.end {
            return vec![CUT];
        }
        let mut wrongs = Vec::new();
        let mut rule = |holds: bool, words| {
            if !holds {
                wrongs.push(words);
            }
        };
        let header_size = self.field(places.header_size);
        rule(places.header_size.is_none() || header_size >= 0x180, "header size");
        let kind = self.word(places.kind);
        rule((1..=4).contains(&kind), "image type");
        let size = self.size(places);
        rule((SECTOR..=DISK_MOST).contains(&size), "disk size");
        let block = u64::from(self.word(places.block_size));
        rule(block.count_ones() == 1 && (BLOCK_MIN..=BLOCK_MOST).contains(&block), "block size");
        rule(self.field(places.block_extra) <= block, "block extra size");
        rule(self.word(places.sector) == 512, "sector size");
        let blocks = u64::from(self.word(places.blocks));
        rule(blocks <= BLOCKS_MOST, "blocks are more than");
        rule(u128::from(blocks) * u128::from(block) >= u128::from(size / SECTOR * SECTOR), "too few");
        let (map, data) = (self.map_start(places), self.tables().1);
        if places.map.is_some() {
            rule(map >= 0x48 + header_size && map % SECTOR == 0, "block map offset");
            rule(u128::from(data) >= self.map_end(places) && data % SECTOR == 0, "data offset");
        }
        rule(self.map_end(places) <= len.into(), "past the end of the file");
        let parent = places.uuids[2].is_some_and(|at| self.bytes[at..at + 16] != [0; 16]);
        rule(kind > 2 || !parent, "has no parent");
        wrongs
    }

    /// Compares with what was read of it: written back, it is the same bytes.
    fn expect_encoded(&self, read: &Description) {
        let places = self.places().expect("a known version");
        let Description { info, facts } = read;
        let fact = |key: &str| facts.iter().find(|(known, _)| *known == key).map(|(_, value)| value);
        let number = |key: &str| match fact(key) {
            Some(Value::Number(number) | Value::Bytes(number)) => Some(*number),
            _ => None,
        };
        let word = |at: usize, key: &str| {
            assert_eq!(number(key), Some(self.word(at).into()), "{key}");
        };
        if let Some(at) = places.header_size {
            word(at, "header-size");
        }
        word(places.flags, "flags");
        word(places.blocks, "blocks");
        word(places.allocated, "blocks-allocated");
        assert_eq!(number("block-extra"), Some(self.field(places.block_extra)));
        let (map, data) = self.tables();
        assert_eq!((number("map-offset"), number("data-offset")), (Some(map), Some(data)));
        let size = self.size(places);
        assert_eq!(info.size, size / SECTOR * SECTOR, "the disk has whole sectors");
        assert_eq!(number("size-before-rounding").unwrap_or(info.size), size);
        assert_eq!(info.block_size, u64::from(self.word(places.block_size)));
        let kinds = ["dynamic", "fixed", "undo", "differencing"];
        assert_eq!(info.variant, kinds[self.word(places.kind) as usize - 1]);
        assert_eq!(info.differencing, self.word(places.kind) > 2);
        let version = format!("{}.{}", places.version >> 16, places.version & 0xffff);
        assert_eq!(fact("version"), Some(&Value::Text(version)));
        let uuids = [info.uuid, info.modification_uuid, info.parent_uuid, info.parent_modification_uuid];
        for (uuid, at) in uuids.into_iter().zip(places.uuids) {
            assert!(uuid.is_none_or(|uuid| !uuid.is_nil()), "no identity is none");
            let raw = uuid.unwrap_or(Uuid::nil()).to_bytes_le();
            assert!(at.map_or([0; 16], |at| self.bytes[at..at + 16].try_into().expect("16 bytes")) == raw);
        }
        for (at, len, key) in [(places.comment, 256, "comment"), (0, 64, "creator")] {
            let field = &self.bytes[at..at + len];
            let field = &field[..field.iter().position(|byte| *byte == 0).unwrap_or(len)];
            let Some(Value::Text(text)) = fact(key) else {
                assert!(field.is_empty(), "{key}");
                continue;
            };
            if let Ok(field) = std::str::from_utf8(field) {
                // Who made it is said without the end of the line.
                assert_eq!(text, if key == "creator" { field.trim_end() } else { field }, "{key}");
            }
        }
    }
}

/// What a format without I/O makes of a future that waits for nothing.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory is never slow")
}

/// A file that starts with `head` and is a hole from there on.
pub fn file(head: &[u8], len: u64) -> Arc<MemStorage> {
    let file = MemStorage::from_bytes(head).named(NAME);
    at_once(file.resize(len)).expect("memory has any length");
    Arc::new(file)
}

/// See the module.
pub fn check(input: &Input, reached: &mut Reached) {
    let mut head = Head::sound(input.version, input.kind, u32::from(input.blocks) + 1);
    for change in input.changes.iter() {
        match change {
            Change::Field(field, number) => {
                // All words but the text and the comment.
                let words = 0x40 / 4..0x54 / 4;
                let after = (0x150 - 0x54) / 4;
                let nth = usize::from(*field) % ((0x1d8 - 0x40) / 4 - after);
                head.put(
                    4 * (words.start + if nth < words.len() { nth } else { nth + after }),
                    number.value(),
                );
            }
            Change::Size(size) => head.put_size(*size),
            Change::Bytes(at, bytes) => {
                let at = usize::from(*at) % AREA;
                let len = bytes.len().min(AREA - at);
                head.bytes[at..at + len].copy_from_slice(&bytes[..len]);
            }
            Change::Fit => head.fit(),
        }
    }
    let map_end = head.places().map_or(0, |places| head.map_end(places) as u64);
    let len = match input.len {
        Len::Map(more) => map_end.saturating_add_signed(more.into()),
        Len::Short(len) => len.into(),
        Len::Any(len) => len,
    };
    head.bytes.truncate(usize::try_from(len).unwrap_or(AREA).min(AREA));
    let signed = head.bytes.len() >= 0x44 && head.word(0x40) == SIGNATURE;
    assert_eq!(probe(&head.bytes).map(Format::name), signed.then_some("vdi"));
    let wrongs = head.wrongs(len);
    let described = at_once(Vdi.describe(file(&head.bytes, len)));
    match Vdi.identify(&head.bytes, len, NAME) {
        Ok(info) => {
            assert!(wrongs.is_empty(), "accepted in spite of: {wrongs:?}");
            reached.add("headers accepted", 1);
            let described = described.expect("what is identified can be described");
            assert_eq!(info, described.info);
            assert!(info.read_only, "it is not opened");
            head.expect_encoded(&described);
        }
        Err(error) => {
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::InvalidImage, "{text}");
            assert!(text.starts_with("image: "), "{text}");
            assert!(
                wrongs.iter().any(|words| text.contains(words)),
                "{text}, where only {wrongs:?} is wrong"
            );
            assert_eq!(described.expect_err("what cannot be identified").to_string(), text);
            reached.add("headers refused", 1);
        }
    }
}

/// An image that somebody wants to be made.
#[derive(Debug, Arbitrary)]
pub struct Wish {
    size: Size,
    variant: u8,
    parent: Option<(Option<u128>, Option<u128>)>,
    matching: bool,
    block_size: Option<Number>,
    uuid: Option<u128>,
    comment: Option<String>,
}

#[derive(Debug, Arbitrary)]
enum Size {
    Sectors(u16),
    Mebibytes(u16),
    Any(u64),
}

impl Wish {
    fn options(&self) -> CreateOptions {
        let variant =
            [Variant::Dynamic, Variant::Fixed, Variant::Differencing][usize::from(self.variant % 3)];
        let identity = |id: Option<u128>| id.map(Uuid::from_u128);
        let mut parent = self
            .parent
            .map(|(uuid, state)| ParentIdentity { uuid: identity(uuid), modification_uuid: identity(state) });
        if self.matching {
            // A parent where one belongs.
            let some = parent.unwrap_or(ParentIdentity { uuid: None, modification_uuid: None });
            parent = (variant == Variant::Differencing).then_some(some);
        }
        CreateOptions {
            size: match self.size {
                Size::Sectors(sectors) => u64::from(sectors) * SECTOR,
                Size::Mebibytes(mebibytes) => u64::from(mebibytes) << 20,
                Size::Any(size) => size,
            },
            variant,
            parent,
            block_size: self.block_size.as_ref().map(|number| number.value().into()),
            uuid: identity(self.uuid),
            comment: self.comment.clone(),
        }
    }
}

/// What is made is what was asked for, or nothing is made.
pub fn check_created(wish: &Wish, reached: &mut Reached) {
    let options = wish.options();
    let block_size = options.block_size.unwrap_or(1 << 20);
    let sizes = (SECTOR..=DISK_MOST).contains(&options.size)
        && options.size.is_multiple_of(SECTOR)
        && block_size.is_power_of_two()
        && (BLOCK_MIN..=BLOCK_MOST).contains(&block_size);
    let comment = options.comment.as_deref().unwrap_or_default();
    let lawful = sizes
        && options.parent.is_some() == (options.variant == Variant::Differencing)
        && comment.len() <= 255
        && !comment.contains('\0');
    if sizes && options.size.div_ceil(block_size) > MADE_MOST {
        return;
    }
    let image = Arc::new(MemStorage::new(0).named(NAME));
    if let Err(error) = at_once(Vdi.create(image.clone(), options.clone())) {
        assert!(!lawful, "{error}");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().starts_with("image: "), "{error}");
        assert_eq!((image.len(), image.allocated()), (0, 0), "{error}, yet something was written");
        reached.add("images not made", 1);
        return;
    }
    assert!(lawful, "{options:?}");
    reached.add("images made", 1);
    let Description { info, facts } = at_once(Vdi.describe(image.clone())).expect("an image");
    let LayerInfo { uuid, modification_uuid, .. } = info;
    assert_eq!((info.size, info.block_size), (options.size, block_size));
    assert_eq!(info.variant, options.variant.name());
    let named = |id: Option<Uuid>| id.filter(|uuid| !uuid.is_nil());
    assert!(named(options.uuid).is_none_or(|wanted| uuid == Some(wanted)));
    assert!(modification_uuid.is_some());
    let parent = options.parent.map(|parent| (named(parent.uuid), named(parent.modification_uuid)));
    assert_eq!(parent.unwrap_or_default(), (info.parent_uuid, info.parent_modification_uuid));
    let kept = facts.iter().find(|(key, _)| *key == "comment").map(|(_, value)| value.clone());
    assert_eq!(kept, (!comment.is_empty()).then(|| Value::Text(comment.to_owned())));
    let report = at_once(Vdi.check(image.clone(), Repair::Nothing)).expect("an image");
    assert!(report.findings.is_empty(), "{report:?}");
    let full = if options.variant == Variant::Fixed { report.total_blocks } else { 0 };
    assert_eq!(report.allocated_blocks, full);
    assert_eq!(report.end_offset, image.len());
}
