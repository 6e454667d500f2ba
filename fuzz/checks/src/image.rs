//! VDI images that somebody has tampered with: opened, read, described, checked, repaired and written, none of which
//! panics, hangs or takes much memory.
//!
//! ```text
//!   template ─ mutations ─▶ image ─┬▶ describe, check, open for reading, read
//!                                  ├▶ repair: what could be read before reads the same, and no contradiction is left
//!                                  └▶ open for writing: refused, or a disk like any other, through reopening
//! ```
//! Invariant: time is tokio's paused clock, so waiting for what never comes shows at once.

mod tamper;
mod trial;

use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use disk_core::format::vdi::Vdi;
use disk_core::format::{Format, HEAD_LEN, Repair, Severity};
use disk_core::storage::MemStorage;
use tamper::Tampering;
use trial::{Step, Trial};

use crate::{Many, Reached};

/// One input.
#[derive(Debug, Arbitrary)]
struct Input {
    tampering: Tampering,
    places: [u32; 8],
    steps: Many<Step, 20>,
}

/// See the module.
pub fn check(input: &[u8], reached: &mut Reached) {
    let mut input = Unstructured::new(input);
    let Ok(Input { tampering, places, steps }) = Input::arbitrary(&mut input) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let work = judge(tampering.image(), &places, &steps, reached);
        tokio::time::timeout(Duration::from_secs(60), work).await.expect("something waits for ever");
    });
}

async fn judge(image: MemStorage, places: &[u32], steps: &[Step], reached: &mut Reached) {
    let copy = || Arc::new(image.snapshot());
    let head = trial::head(&image, HEAD_LEN).await;
    let identified = Vdi.identify(&head, disk_core::storage::Storage::len(&image), "image");
    let described = Vdi.describe(copy()).await;
    assert_eq!(identified.is_ok(), described.is_ok(), "{:?} {:?}", identified.err(), described.err());
    let examined = Vdi.check(copy(), Repair::Nothing).await;
    let looked_at = copy();
    let Ok(layer) = Vdi.open(looked_at.clone(), true).await else {
        reached.add("images refused", 1);
        assert!(examined.is_err(), "what cannot be opened cannot be checked");
        assert!(Vdi.open(copy(), false).await.is_err());
        return;
    };
    let report = examined.expect("what can be opened can be checked");
    reached.add("images read", 1);
    let damaged = report.found(Severity::Error) > 0;
    let before = Trial::read_only(layer, places, steps).await;
    assert!(trial::same(&looked_at, &image).await, "looking changes nothing");

    let repaired = copy();
    if let Ok(repair) = Vdi.check(repaired.clone(), Repair::Everything).await {
        reached.add("images repaired", usize::from(damaged));
        let left = Vdi.check(repaired.clone(), Repair::Nothing).await.expect("still an image");
        for (kind, finding) in &repair.findings {
            let left = left.findings.get(kind).map_or(0, |left| left.count);
            assert_eq!(finding.count - finding.repaired, left, "{kind}: what is said to be repaired is");
        }
        let layer = Vdi.open(repaired, true).await.expect("still an image");
        before.expect_preserved(layer).await;
    }

    let written = copy();
    match Vdi.open(written.clone(), false).await {
        Ok(layer) => {
            before.write(layer, written, &image, steps).await;
            reached.add("images written", 1);
        }
        Err(_) => assert!(damaged, "an image without any contradiction was refused"),
    }
}
