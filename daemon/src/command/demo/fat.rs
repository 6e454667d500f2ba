//! A FAT16 file system with one file: what the demo's disk holds, so that any guest can mount it.
//!
//! ```text
//!   boot sector …reserved │ FAT │ FAT │ root directory │ clusters: 2 = the file, all others free
//! ```
//! Fields and their order: Microsoft's "FAT: General Overview of On-Disk Format", 1.03. No partition table: the whole
//! disk is the file system. What is not listed in the pieces is zero.

/// Bytes of the disk.
pub const SIZE: u64 = 256 << 20;

const SECTOR: usize = 512;
const SECTORS: u32 = (SIZE / SECTOR as u64) as u32;
const CLUSTER_SECTORS: u32 = 16;
/// So many that the clusters start at a multiple of their size.
const RESERVED_SECTORS: u32 = 16;
const FATS: u32 = 2;
/// An entry of two bytes for each of the 32749 clusters and the two that do not exist.
const FAT_SECTORS: u32 = 128;
const ROOT_ENTRIES: u32 = 512;
const ENTRY: usize = 32;
const ROOT_SECTORS: u32 = ROOT_ENTRIES * ENTRY as u32 / SECTOR as u32;
const CLUSTERS: u32 = (SECTORS - RESERVED_SECTORS - FATS * FAT_SECTORS - ROOT_SECTORS) / CLUSTER_SECTORS;
// FAT16 by definition; more or fewer clusters would be another FAT.
const _: () =
    assert!(CLUSTERS >= 4085 && CLUSTERS < 65525 && (CLUSTERS + 2) * 2 <= FAT_SECTORS * SECTOR as u32);

const FIXED_DISK: u8 = 0xf8;
const FIRST_CLUSTER: u16 = 2;
const LABEL: &[u8; 11] = b"DISKCHAIN  ";
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_ARCHIVE: u8 = 0x20;
/// 1980-01-01, the first day that FAT knows: the content depends on no clock.
const DATE: u16 = 1 << 5 | 1;

/// The pieces of a file system that holds one file, with the bytes that they start at.
///
/// # Panics
/// If the content does not fit one cluster (8 KiB).
pub fn with_file(name: &[u8; 11], content: &[u8], serial: u32) -> [(u64, Vec<u8>); 5] {
    assert!(content.len() <= CLUSTER_SECTORS as usize * SECTOR, "one cluster");
    let fat = fat();
    let first_fat = RESERVED_SECTORS;
    let root = first_fat + FATS * FAT_SECTORS;
    let clusters = root + ROOT_SECTORS;
    [
        (0, boot_sector(serial)),
        (at(first_fat), fat.clone()),
        (at(first_fat + FAT_SECTORS), fat),
        (at(root), root_directory(name, content.len() as u32)),
        (at(clusters), content.to_vec()),
    ]
}

fn at(sector: u32) -> u64 {
    u64::from(sector) * SECTOR as u64
}

fn boot_sector(serial: u32) -> Vec<u8> {
    let mut sector = Vec::with_capacity(SECTOR);
    // A jump over the parameters to code that halts: this disk does not boot.
    sector.extend([0xeb, 0x3c, 0x90]);
    sector.extend(b"DISKCHN ");
    sector.extend((SECTOR as u16).to_le_bytes());
    sector.push(CLUSTER_SECTORS as u8);
    sector.extend((RESERVED_SECTORS as u16).to_le_bytes());
    sector.push(FATS as u8);
    sector.extend((ROOT_ENTRIES as u16).to_le_bytes());
    // Sectors, if they fit 16 bits.
    sector.extend([0, 0]);
    sector.push(FIXED_DISK);
    sector.extend((FAT_SECTORS as u16).to_le_bytes());
    // Sectors a track and heads, which only the BIOS asked for.
    sector.extend(63u16.to_le_bytes());
    sector.extend(16u16.to_le_bytes());
    // Sectors before the file system.
    sector.extend(0u32.to_le_bytes());
    sector.extend(SECTORS.to_le_bytes());
    // Drive, reserved, and the signature that says that the next three are there.
    sector.extend([0x80, 0, 0x29]);
    sector.extend(serial.to_le_bytes());
    sector.extend(LABEL);
    sector.extend(b"FAT16   ");
    // hlt; jmp back
    sector.extend([0xf4, 0xeb, 0xfd]);
    sector.resize(SECTOR - 2, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// The start of a FAT: two entries that are no clusters, and the file's only one, which is its last.
fn fat() -> Vec<u8> {
    [0xff00 | u16::from(FIXED_DISK), 0xffff, 0xffff].into_iter().flat_map(u16::to_le_bytes).collect()
}

fn root_directory(name: &[u8; 11], size: u32) -> Vec<u8> {
    let label = entry(LABEL, ATTRIBUTE_LABEL, 0, 0);
    let file = entry(name, ATTRIBUTE_ARCHIVE, FIRST_CLUSTER, size);
    [label, file].concat()
}

fn entry(name: &[u8; 11], attributes: u8, cluster: u16, size: u32) -> Vec<u8> {
    let mut entry = name.to_vec();
    entry.push(attributes);
    // Reserved, time and date of creation, date of access, high half of the cluster (FAT32), time of the last write.
    entry.extend([0; 4]);
    entry.extend(DATE.to_le_bytes());
    entry.extend(DATE.to_le_bytes());
    entry.extend([0; 4]);
    entry.extend(DATE.to_le_bytes());
    entry.extend(cluster.to_le_bytes());
    entry.extend(size.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_lengths_that_the_format_says_and_do_not_overlap() {
        assert_eq!(CLUSTERS, 32749);
        let pieces = with_file(b"README  TXT", b"text", 1);
        assert_eq!(pieces[0].1.len(), SECTOR);
        assert_eq!(pieces[3].1.len(), 2 * ENTRY);
        assert!(pieces[4].0.is_multiple_of(8192), "clusters are aligned to their size");
        for pair in pieces.windows(2) {
            assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
        }
    }
}
