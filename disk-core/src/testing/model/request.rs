//! What can be asked of a disk, drawn at random and made smaller by proptest when it fails.
//!
//! Invariant: every range lies inside the disk that it was drawn for.

use proptest::prelude::*;

use crate::chain::ZeroRequest;
use crate::range::ByteRange;

/// What a write writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Bytes that no other write writes.
    New,
    /// Zeroes.
    Zeroes,
    /// What the range reads already.
    Same,
    /// What the range read before anything was asked of the disk: what the images below hold there.
    Old,
    /// New bytes with zeroes between them, 4096 of each.
    Striped,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the requests of the device, with its words")]
pub enum Request {
    Read(ByteRange),
    Write { range: ByteRange, content: Content, fua: bool },
    Zero { range: ByteRange, how: ZeroRequest, fua: bool },
    Discard { range: ByteRange, fua: bool },
    Status { range: ByteRange, most: usize },
    Cache(ByteRange),
    Flush,
}

/// One thing to do to a disk under test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// One request, alone.
    One(Request),
    /// Requests that are all under way at one time, in this order of arrival.
    Together(Vec<Request>),
    /// The top image moves blocks into its holes.
    Compact,
    /// The top image is left as other programs like it, and goes on.
    Settle,
    /// The disk is opened anew: closed in order before, or its process killed.
    Reopen {
        /// Closed in order.
        clean: bool,
    },
}

/// The disk that requests are drawn for.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Bytes of the disk.
    pub size: u64,
    /// Requests start and end on multiples of this many bytes, or at the end of the disk.
    pub unit: u64,
    /// Bytes of a block, on whose borders things happen.
    pub block: u64,
}

impl Shape {
    /// Ranges of the disk: mostly short, often on or near the borders of blocks, sometimes long, rarely empty.
    pub fn ranges(self) -> BoxedStrategy<ByteRange> {
        let Shape { size, unit, block } = self;
        let near = move |(border, off): (u64, i64)| {
            (border * block).saturating_add_signed(off * unit as i64).min(size)
        };
        let edge = prop_oneof![
            3 => (0..=size / unit).prop_map(move |number| number * unit),
            3 => (0..=size / block, Just(0i64)).prop_map(near),
            2 => (0..=size / block, -3i64..=3).prop_map(near),
            1 => Just(size),
        ];
        let len = prop_oneof![
            9 => (1..=(32 << 10) / unit).prop_map(move |units| units * unit),
            2 => (1..=3u64).prop_map(move |blocks| blocks * block),
            1 => (0..=size / unit).prop_map(move |units| units * unit),
        ];
        (edge, len)
            .prop_map(move |(start, len)| {
                // From the end of the disk there is only backwards.
                let end = (start + len).min(size);
                if start == size {
                    ByteRange::new(size.saturating_sub(len), size)
                } else {
                    ByteRange::new(start, end)
                }
            })
            .boxed()
    }

    /// Requests of all kinds.
    pub fn requests(self) -> BoxedStrategy<Request> {
        let (range, fua) = (self.ranges(), prop::bool::weighted(0.1));
        let content = prop_oneof![
            7 => Just(Content::New),
            2 => Just(Content::Zeroes),
            1 => Just(Content::Same),
            2 => Just(Content::Old),
            2 => Just(Content::Striped),
        ];
        let how = (any::<bool>(), prop::bool::weighted(0.25))
            .prop_map(|(may_free, fast_only)| ZeroRequest { may_free, fast_only });
        prop_oneof![
            5 => range.clone().prop_map(Request::Read),
            10 => (range.clone(), content, fua).prop_map(|(range, content, fua)| Request::Write { range, content, fua }),
            4 => (range.clone(), how, fua).prop_map(|(range, how, fua)| Request::Zero { range, how, fua }),
            4 => (range.clone(), fua).prop_map(|(range, fua)| Request::Discard { range, fua }),
            2 => (range.clone(), 1..20usize).prop_map(|(range, most)| Request::Status { range, most }),
            1 => range.prop_map(Request::Cache),
            1 => Just(Request::Flush),
        ]
        .boxed()
    }

    /// Steps with one request at a time.
    pub fn steps(self) -> BoxedStrategy<Step> {
        prop_oneof![
            30 => self.requests().prop_map(Step::One),
            2 => Just(Step::Compact),
            1 => Just(Step::Settle),
            2 => any::<bool>().prop_map(|clean| Step::Reopen { clean }),
        ]
        .boxed()
    }

    /// Steps of which most are of several requests at a time.
    pub fn crowded_steps(self) -> BoxedStrategy<Step> {
        prop_oneof![
            2 => self.steps(),
            3 => prop::collection::vec(self.requests(), 2..12).prop_map(Step::Together),
        ]
        .boxed()
    }
}
