//! What a server tells of an export during the handshake.

use crate::consts::Abilities;
use crate::option::Context;

/// Sizes of blocks that a client is told of, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize {
    /// Smallest unit of requests: a power of two up to 64 KiB.
    pub minimum: u32,
    /// Unit that is served best: a power of two, at least the minimum and 512.
    pub preferred: u32,
    /// Largest payload.
    pub maximum: u32,
}

impl BlockSize {
    /// The same as the specification allows it: the preferred size is not above the maximum and not below the minimum
    /// or 512. The maximum leaves room for what stands in front of data in a chunk, whose length has 32 bits.
    pub(crate) fn lawful(self) -> Self {
        let maximum = self.maximum.clamp(512, 1 << 31);
        let preferred = self.preferred.min(1 << maximum.ilog2()).max(self.minimum).max(512);
        BlockSize { preferred, maximum, ..self }
    }
}

/// An export as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its own name, whatever name it was asked for by.
    pub name: String,
    /// A few words for people; may be empty.
    pub description: String,
    /// Bytes of the disk.
    pub size: u64,
    /// What can be done with it.
    pub abilities: Abilities,
    /// Block sizes.
    pub block_size: BlockSize,
    /// Contexts that it knows.
    pub contexts: Vec<Context>,
}

/// Why a client does not get an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// There is none of that name.
    Unknown,
    /// It exists, and this client may not have it now, for the reason given.
    Policy(String),
    /// The server is stopping.
    Shutdown,
}

/// The exports of a server.
pub trait Exports {
    /// Whether the server is stopping: every option but ABORT is then refused.
    fn is_stopping(&self) -> bool {
        false
    }
    /// Names and descriptions, or `None` if they are not to be listed.
    fn list(&self) -> Option<Vec<(String, String)>>;
    /// The export that a client means by `name`; the empty name is the default.
    ///
    /// # Errors
    /// Why the client does not get it.
    fn find(&self, name: &str) -> Result<ExportInfo, Denial>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_block_lies_between_the_minimum_and_the_largest_payload() {
        let told = |minimum, preferred, maximum| BlockSize { minimum, preferred, maximum }.lawful().preferred;
        assert_eq!(told(1, 4096, 32 << 20), 4096);
        assert_eq!(told(1, 1 << 20, 96 << 10), 64 << 10);
        assert_eq!(told(4096, 512, 32 << 20), 4096);
        assert_eq!(told(1, 1, 32 << 20), 512);
        assert_eq!(told(1, 4096, u32::MAX), 4096);
    }
}
