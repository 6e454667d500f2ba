//! Which parts of a chain hold data, which read as zeroes, and how deep they lie.

use super::{Chain, Extent, Origin};
use crate::error::Result;
use crate::range::ByteRange;

/// Places that one request looks at, each of which may cost a question to the host: a disk of a million scattered blocks
/// is one extent, and one request must not go through all of it.
const LOOKS: usize = 4096;

/// A part of the disk that is alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes.
    pub len: u64,
    /// It takes space somewhere in the chain; false is a hole.
    pub data: bool,
    /// It is known to read as zeroes.
    pub zero: bool,
    /// Layer that decides it: 1 is the top, 2 the one below …; 0 if no layer knows anything of it. The count is
    /// that of QEMU's `qemu:allocation-depth`.
    pub depth: u32,
}

impl Chain {
    /// What a range holds, in order, in at most `most` extents (at least 1): fewer bytes than asked for if there are
    /// more, or if finding out takes long. Comes from the layers' maps; inside their data the host's holes are found as well.
    ///
    /// # Errors
    /// What the storage says.
    pub async fn status(&self, range: ByteRange, most: usize) -> Result<Vec<StatusExtent>> {
        let mut found: Vec<StatusExtent> = Vec::new();
        let mut rest = range;
        for _ in 0..LOOKS {
            if rest.is_empty() {
                break;
            }
            let extent = self.status_of_first(rest).await?;
            (_, rest) = rest.split_at(extent.len);
            let full = found.len() == most.max(1);
            match found.last_mut() {
                Some(last) if last.alike(&extent) => last.len += extent.len,
                _ if full => break,
                _ => found.push(extent),
            }
        }
        Ok(found)
    }

    /// What the first bytes of a range hold.
    async fn status_of_first(&self, range: ByteRange) -> Result<StatusExtent> {
        loop {
            let extent = self.locate(self.layers.len(), range);
            let status = self.status_of(extent).await;
            // Nobody holds a turn: if a block has moved meanwhile, the host was asked about a place that is another
            // block's by now, or nobody's.
            let told = status.as_ref().map_or(extent.range.len(), |status| status.len);
            if self.locate(self.layers.len(), range).still_holds(&extent, told) {
                return status;
            }
        }
    }

    async fn status_of(&self, extent: Extent<'_>) -> Result<StatusExtent> {
        let len = extent.range.len();
        let depth = |index: usize| (self.layers.len() - index) as u32;
        match extent.origin {
            Origin::Zero { index } => {
                Ok(StatusExtent { len, data: false, zero: true, depth: index.map_or(0, depth) })
            }
            Origin::Data { storage, at, index } => {
                let host = storage.status(ByteRange::at(at, len)).await?;
                let len = host.len.clamp(1, len);
                Ok(StatusExtent { len, data: host.data, zero: !host.data, depth: depth(index) })
            }
        }
    }
}

impl Extent<'_> {
    /// Whether the first `len` bytes, of a block or of many that lie together, are where they were `before`.
    fn still_holds(&self, before: &Extent<'_>, len: u64) -> bool {
        match (before.origin, self.origin) {
            (Origin::Data { at: a, index: i, .. }, Origin::Data { at: b, index: j, .. }) => {
                (a, i) == (b, j) && self.range.len() >= len
            }
            // What the maps say of zeroes was true when they said it.
            (Origin::Zero { .. }, _) => true,
            (Origin::Data { .. }, Origin::Zero { .. }) => false,
        }
    }
}

impl StatusExtent {
    fn alike(&self, other: &StatusExtent) -> bool {
        (self.data, self.zero, self.depth) == (other.data, other.zero, other.depth)
    }
}
