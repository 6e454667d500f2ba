//! The bytes of a VDI header, of both versions, as they lie in the file. What they mean is in `header`.
//!
//! ```text
//!   0x000  text, 64 bytes                     v0.2: 348 bytes follow      v1.1: 384 or 400 bytes follow
//!   0x040  signature, version        0x048 ─▶ type, flags, comment …      size, type, flags, comment …
//!                                    0x1A4 ─▶ block map at once           0x1C8 ─▶ LCHS geometry (400 only)
//! ```
//! All numbers are little-endian. UUIDs keep the byte order of VirtualBox's RTUUID: the first three fields
//! little-endian, the rest as printed.
//!
//! Invariant: a struct here has the size and field offsets of the format; the tests hold them.

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Marks a VDI at offset 0x40.
pub const SIGNATURE: u32 = 0xbeda_107f;
/// Version word of the first format.
pub const VERSION_0_2: u32 = 0x0000_0002;
/// Version word of the format of today.
pub const VERSION_1_1: u32 = 0x0001_0001;
/// Bytes of the header of version 1.1 without the LCHS geometry, counted from the end of the pre-header.
pub const HEADER_LEN_OLD: u32 = 0x180;
/// The same with it: what VirtualBox writes today.
pub const HEADER_LEN_PLUS: u32 = 0x190;
/// Bytes at the start of the file that are left to the header; VirtualBox lengthens old headers in there.
pub const HEADER_AREA: usize = 512;

/// What every version starts with.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PreHeader {
    pub text: [u8; 64],
    pub signature: U32,
    pub version: U32,
}

/// A disk geometry.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawGeometry {
    pub cylinders: U32,
    pub heads: U32,
    pub sectors: U32,
    pub sector_size: U32,
}

/// The header of version 0.2. The block map follows at once, and the data follows the map.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HeaderV0 {
    pub kind: U32,
    pub flags: U32,
    pub comment: [u8; 256],
    pub geometry: RawGeometry,
    pub disk_size: U64,
    pub block_size: U32,
    pub blocks: U32,
    pub blocks_allocated: U32,
    pub uuid_create: [u8; 16],
    pub uuid_modify: [u8; 16],
    pub uuid_link: [u8; 16],
}

/// The header of version 1.1, up to what both of its lengths have.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HeaderV1 {
    /// Bytes of the header, this field included.
    pub header_size: U32,
    pub kind: U32,
    pub flags: U32,
    pub comment: [u8; 256],
    pub map_offset: U32,
    pub data_offset: U32,
    pub geometry: RawGeometry,
    pub dummy: U32,
    pub disk_size: U64,
    pub block_size: U32,
    /// Bytes in front of the data of each block.
    pub block_extra: U32,
    pub blocks: U32,
    pub blocks_allocated: U32,
    pub uuid_create: [u8; 16],
    pub uuid_modify: [u8; 16],
    pub uuid_link: [u8; 16],
    pub uuid_parent_modify: [u8; 16],
}

/// The two fields that change while an image is in use, in the header's bytes.
pub struct Changing<'a> {
    pub blocks_allocated: &'a mut U32,
    pub uuid_modify: &'a mut [u8; 16],
}

/// Finds the changing fields in bytes that [`Header::parse`](super::header::Header::parse) has accepted.
pub fn changing(area: &mut [u8]) -> Changing<'_> {
    const WHOLE: &str = "the header was parsed from bytes as long as these";
    let (pre, rest) = PreHeader::mut_from_prefix(area).expect(WHOLE);
    if pre.version.get() == VERSION_0_2 {
        let (header, _) = HeaderV0::mut_from_prefix(rest).expect(WHOLE);
        return Changing {
            blocks_allocated: &mut header.blocks_allocated,
            uuid_modify: &mut header.uuid_modify,
        };
    }
    let (header, _) = HeaderV1::mut_from_prefix(rest).expect(WHOLE);
    Changing { blocks_allocated: &mut header.blocks_allocated, uuid_modify: &mut header.uuid_modify }
}

/// An RTUUID as a UUID; `None` if it is null.
pub fn uuid_of(raw: [u8; 16]) -> Option<Uuid> {
    Some(Uuid::from_bytes_le(raw)).filter(|uuid| !uuid.is_nil())
}

/// A UUID as an RTUUID; null for `None`.
pub fn raw_uuid(uuid: Option<Uuid>) -> [u8; 16] {
    uuid.unwrap_or(Uuid::nil()).to_bytes_le()
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn the_headers_have_the_lengths_and_offsets_of_the_format() {
        const PRE: usize = size_of::<PreHeader>();
        assert_eq!(PRE, 0x48);
        assert_eq!(size_of::<HeaderV0>(), 348);
        assert_eq!(PRE + offset_of!(HeaderV0, geometry), 0x150);
        assert_eq!(PRE + offset_of!(HeaderV0, disk_size), 0x160);
        assert_eq!(PRE + offset_of!(HeaderV0, uuid_create), 0x174);
        assert_eq!(size_of::<HeaderV1>(), HEADER_LEN_OLD as usize);
        assert_eq!(
            size_of::<HeaderV1>() + size_of::<RawGeometry>(),
            HEADER_LEN_PLUS as usize,
            "the LCHS geometry is all that the longer header has more"
        );
        assert_eq!(PRE + offset_of!(HeaderV1, map_offset), 0x154);
        assert_eq!(PRE + offset_of!(HeaderV1, geometry), 0x15c);
        assert_eq!(PRE + offset_of!(HeaderV1, disk_size), 0x170);
        assert_eq!(PRE + offset_of!(HeaderV1, blocks_allocated), 0x184);
        assert_eq!(PRE + offset_of!(HeaderV1, uuid_link), 0x1a8);
        assert_eq!(PRE + size_of::<HeaderV1>(), 0x1c8);
    }

    #[test]
    fn the_first_three_fields_of_a_uuid_are_swapped_in_the_file() {
        let uuid = Uuid::from_u128(0x00112233_4455_6677_8899_aabbccddeeff);
        let raw = raw_uuid(Some(uuid));
        assert_eq!(raw[..8], [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(raw[8..], [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        assert_eq!(uuid_of(raw), Some(uuid));
        assert_eq!(uuid_of([0; 16]), None);
    }
}
