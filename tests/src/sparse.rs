//! A disk as bytes with holes: the model that says what a read must return.
//!
//! Invariant: a page that is absent reads as zeroes, and no page holds zeroes only because it was
//! never written – so a disk of terabytes costs what was written to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: u64 = 4096;

/// The content of a disk of a fixed size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseDisk {
    size: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl SparseDisk {
    /// A disk of `size` bytes, all zero.
    pub fn new(size: u64) -> SparseDisk {
        SparseDisk { size, pages: BTreeMap::new() }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes `data` at `offset`.
    ///
    /// # Panics
    /// When that reaches past the end.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, start, range) in self.split(offset, data.len() as u64) {
            let bytes = self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into());
            bytes[start..start + range.len()].copy_from_slice(&data[range]);
        }
    }

    /// Makes `len` bytes at `offset` zero.
    ///
    /// # Panics
    /// When that reaches past the end.
    pub fn zero(&mut self, offset: u64, len: u64) {
        for (page, start, range) in self.split(offset, len) {
            if range.len() as u64 == PAGE {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[start..start + range.len()].fill(0);
            }
        }
    }

    /// The `len` bytes at `offset`.
    ///
    /// # Panics
    /// When that reaches past the end.
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(len).expect("a read fits in memory")];
        for (page, start, range) in self.split(offset, len) {
            if let Some(bytes) = self.pages.get(&page) {
                let len = range.len();
                data[range].copy_from_slice(&bytes[start..start + len]);
            }
        }
        data
    }

    /// Puts another disk's content over this one from offset 0, holes too.
    ///
    /// # Panics
    /// When the other is larger.
    pub fn overlay_whole(&mut self, other: &SparseDisk) {
        self.zero(0, other.size);
        for (page, bytes) in &other.pages {
            let len = PAGE.min(other.size - page * PAGE) as usize;
            self.write(page * PAGE, &bytes[..len]);
        }
    }

    /// Writes the disk as a sparse raw image.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_raw(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.size)?;
        for (page, bytes) in &self.pages {
            let offset = page * PAGE;
            let len = PAGE.min(self.size - offset) as usize;
            file.write_all_at(&bytes[..len], offset)?;
        }
        Ok(())
    }

    /// The pages that `len` bytes at `offset` touch: page number, first byte inside the page, and
    /// the part of the caller's buffer.
    fn split(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> + use<> {
        let end = offset.checked_add(len).expect("an offset within the disk");
        assert!(end <= self.size, "{offset}+{len} is past the end of a disk of {}", self.size);
        (offset / PAGE..end.div_ceil(PAGE)).filter(move |_| len > 0).map(move |page| {
            let from = offset.max(page * PAGE);
            let to = end.min((page + 1) * PAGE);
            (page, (from - page * PAGE) as usize, (from - offset) as usize..(to - offset) as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn a_sparse_disk_does_what_a_plain_vector_does() {
        let mut rng = Rng::for_test("sparse");
        let size = 3 * PAGE + 1000;
        let mut plain = vec![0_u8; size as usize];
        let mut disk = SparseDisk::new(size);
        for _ in 0..2000 {
            let offset = rng.below(size);
            let len = rng.below(size - offset + 1);
            let range = offset as usize..(offset + len) as usize;
            if rng.one_in(3) {
                plain[range].fill(0);
                disk.zero(offset, len);
            } else if rng.one_in(2) {
                let data = rng.bytes(len as usize);
                plain[range].copy_from_slice(&data);
                disk.write(offset, &data);
            } else {
                assert_eq!(disk.read(offset, len), plain[range]);
            }
        }
        assert_eq!(disk.read(0, size), plain);
    }

    #[test]
    fn zeroing_gives_the_memory_back() {
        let mut disk = SparseDisk::new(1 << 50);
        disk.write(1 << 49, &[7; 9000]);
        assert_eq!(disk.pages.len(), 3);
        disk.zero(1 << 49, 2 * PAGE);
        assert_eq!(disk.pages.len(), 1);
    }
}
