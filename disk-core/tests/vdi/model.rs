//! Random work against a model, with shorter and shorter examples when it fails.

use std::sync::Arc;

use disk_core::storage::MemStorage;
use proptest::prelude::*;

use crate::disk::{Disk, Rng, SECTORS, SETUPS, Setup, Stamp, Step, after, judge, same_maps, touched};

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(any::<u64>().prop_map(|seed| Step::random(&mut Rng(seed))), 1..80)
}

async fn follow(setup: Setup, steps: &[Step]) {
    let image = Arc::new(setup.image().await);
    let mut disk = Disk::open(setup, image.clone(), false).await.expect("a new image");
    let mut expected = setup.inherited();
    for (step, serial) in steps.iter().zip(2..) {
        disk.act(step, serial).await.expect("nothing fails in memory");
        for sectors in touched(step) {
            let now = disk.read(sectors.clone()).await.expect("readable");
            for (sector, is) in sectors.zip(now) {
                let old = &mut expected[sector as usize];
                let right: Vec<Stamp> = match after(step, sector, serial) {
                    Some(new) => vec![new],
                    None => vec![*old, 0],
                };
                assert!(right.contains(&is), "{step:?}: sector {sector} is {is:#x}, not one of {right:#x?}");
                *old = is;
            }
        }
        judge(&image, &format!("after {step:?}"));
        same_maps(&disk, &image, setup).await;
    }
    let wrong = |read: Vec<Stamp>| (0..SECTORS as usize).find(|&sector| read[sector] != expected[sector]);
    assert_eq!(wrong(disk.read_all().await.expect("readable")), None, "live");
    disk.top.settle().await.expect("settled");
    let file: MemStorage = image.snapshot();
    let judged = judge(&file, "settled");
    assert_eq!(judged.counter, judged.allocated, "no holes are left");
    if setup != Setup::Device {
        assert_eq!(judged.len, judged.data + u64::from(judged.allocated) * crate::disk::BLOCK);
    }
    let again = Disk::open(setup, Arc::new(file), true).await.expect("an image");
    assert_eq!(wrong(again.read_all().await.expect("readable")), None, "opened again");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_image_is_the_disk_that_was_written_whatever_is_done_to_it(steps in steps(), setup in 0..3usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(follow(SETUPS[setup], &steps));
    }
}
