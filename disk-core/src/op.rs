//! The kinds of requests that a disk knows.
//!
//! Invariant: each has one name, which status, logs and metrics share.

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Reads bytes.
    Read,
    /// Writes bytes.
    Write,
    /// Makes a range read as zeroes.
    WriteZeroes,
    /// Gives a range's space back.
    Discard,
    /// Makes everything that completed before durable.
    Flush,
    /// Brings a range into the host's memory.
    Cache,
    /// Asks which parts of a range hold data.
    BlockStatus,
    /// Moves blocks inside the image to give space back; the daemon's own work.
    Compact,
}

impl Op {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Op; 8] = [
        Op::Read,
        Op::Write,
        Op::WriteZeroes,
        Op::Discard,
        Op::Flush,
        Op::Cache,
        Op::BlockStatus,
        Op::Compact,
    ];

    /// The name that status, logs and metrics use.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::WriteZeroes => "write_zeroes",
            Op::Discard => "discard",
            Op::Flush => "flush",
            Op::Cache => "cache",
            Op::BlockStatus => "block_status",
            Op::Compact => "compact",
        }
    }

    /// Whether it changes what its range holds, so that it shares the range with nobody.
    pub fn is_exclusive(self) -> bool {
        matches!(self, Op::Write | Op::WriteZeroes | Op::Discard | Op::Compact)
    }
}
