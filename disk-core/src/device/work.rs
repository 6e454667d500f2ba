//! What reads and writes do on the chain when they have their turn.

use super::Device;
use super::life::Work;
use crate::buf::Buf;
use crate::chain::{Pieces, Reading, Writing};
use crate::error::Result;
use crate::range::ByteRange;
use crate::stats::WriteEffect;

impl Work for Reading {
    type Output = Pieces;

    #[inline]
    fn begin(&mut self, device: &Device) -> Option<Result<Pieces>> {
        Reading::begin(self, &device.chain)
    }

    async fn go_on(self, device: &Device) -> Result<Pieces> {
        Reading::go_on(self, &device.chain).await
    }
}

/// A write.
pub struct Write {
    step: Step,
    /// It is to be durable.
    fua: bool,
}

enum Step {
    /// In whole logical blocks.
    Whole(Writing),
    /// In parts of some.
    Parts(ByteRange, Buf),
    /// Written, and not known to be durable.
    Written,
}

impl Write {
    pub(super) fn new(device: &Device, range: ByteRange, data: Buf, fua: bool) -> Write {
        let step = if range.is_aligned(device.options.logical_block_size) {
            Step::Whole(Writing::new(range, data))
        } else {
            Step::Parts(range, data)
        };
        Write { step, fua }
    }
}

impl Work for Write {
    type Output = ();

    #[inline]
    fn begin(&mut self, device: &Device) -> Option<Result<()>> {
        let Step::Whole(writing) = &mut self.step else { return None };
        let outcome = writing.begin(&device.chain)?.map(|effect| device.note_effect(effect));
        if self.fua && outcome.is_ok() {
            self.step = Step::Written;
            return None;
        }
        Some(outcome)
    }

    async fn go_on(self, device: &Device) -> Result<()> {
        match self.step {
            Step::Whole(writing) => device.note_effect(writing.go_on(&device.chain).await?),
            Step::Parts(range, data) => {
                device.note_effect(Box::pin(device.write_unaligned(range, data)).await?);
            }
            Step::Written => {}
        }
        if self.fua { device.sync().await } else { Ok(()) }
    }
}

impl Device {
    fn note_effect(&self, effect: WriteEffect) {
        if effect.counts() {
            self.tracker.count_effect(effect);
        }
        if effect.freed {
            self.note_clearing();
        }
    }
}
