//! Whatever a power cut or a kill leaves of a disk at work: it opens, what was flushed is there, every other sector is
//! old or new, and it can be used on.

use disk_core::testing::model::campaign::{self, Figures};
use disk_core::testing::model::images::{self, ChainSpec};
use disk_core::testing::trials::crash;
use proptest::prelude::*;

fn campaign(name: &str, cases: u32, chains: BoxedStrategy<ChainSpec>) -> Figures {
    campaign::run(name, cases, &crash::cases(chains), |case| crash::trial(&case))
}

#[test]
fn a_chain_survives_power_cuts_and_kills_at_any_moment() {
    let figures = campaign("power cuts, chain", 80, images::chain());
    assert!(figures.cuts > 1500 && figures.states > 4000 && figures.moves > 0, "{figures}");
}

#[test]
fn a_single_image_survives_power_cuts_and_kills_at_any_moment() {
    let single = prop_oneof![1 => images::raw(), 3 => images::vdi()].boxed();
    let figures = campaign("power cuts, single image", 40, single);
    assert!(figures.cuts > 800 && figures.states > 2000 && figures.moves > 0, "{figures}");
}
