//! Power cuts and kills at every moment of random work.
//!
//! For each seed: random steps run on a recording storage. Then the power is cut at moments of that past, in many ways
//! each, and every file that may be left is opened, read, recovered, read again and used on.

use std::sync::Arc;

use disk_core::storage::MemStorage;
use disk_core::testing::CrashStorage;
use disk_core::testing::model::campaign;

use crate::disk::{Disk, Rng, SECTORS, Setup, Stamp, Step, after, judge, same_maps, touched};

/// Pasts that the power is cut in, unless more effort is asked for, and cuts in each.
const SEEDS: u64 = 8;
const CUTS: usize = 12;

/// What may be read after a power cut, and what must be after a kill.
struct History {
    /// Moments in order: position of the storage after a step, and what every sector read then.
    moments: Vec<(usize, Vec<Stamp>)>,
    /// Moments (indices) at which everything before was flushed.
    flushed: Vec<usize>,
    /// What each step, numbered like the moment after it, put where, whether or not it got that far.
    put: Vec<Vec<(u64, Stamp)>>,
}

impl History {
    /// What each sector may hold if the power is cut at position `cut`.
    fn allowed(&self, cut: usize) -> Vec<Vec<Stamp>> {
        let since = self.flushed.iter().rev().find(|moment| self.moments[**moment].0 <= cut);
        let since = *since.expect("the first moment counts as flushed");
        let mut allowed: Vec<Vec<Stamp>> = self.moments[since].1.iter().map(|stamp| vec![*stamp]).collect();
        for moment in since + 1..self.moments.len() {
            // A step may have had effects as soon as the one before it was over.
            if self.moments[moment - 1].0 > cut {
                break;
            }
            for (sector, stamp) in &self.put[moment] {
                allowed[*sector as usize].push(*stamp);
            }
        }
        allowed
    }
}

async fn work(setup: Setup, seed: u64, steps: &[Step]) -> (Arc<CrashStorage>, History) {
    let storage = Arc::new(CrashStorage::new(setup.image().await));
    let mut disk = Disk::open(setup, storage.clone(), false).await.expect("a new image");
    let mut history =
        History { moments: vec![(0, setup.inherited())], flushed: vec![0], put: vec![Vec::new()] };
    for (step, serial) in steps.iter().zip(2..) {
        disk.act(step, serial).await.unwrap_or_else(|error| panic!("seed {seed}, {step:?}: {error}"));
        let now = disk.read_all().await.expect("readable");
        let mut expected = history.moments.last().expect("there is one").1.clone();
        let mut put = Vec::new();
        for sector in touched(step).into_iter().flatten() {
            let new = after(step, sector, serial).unwrap_or(now[sector as usize]);
            assert!(
                after(step, sector, serial).is_some() || [0, expected[sector as usize]].contains(&new),
                "seed {seed}: a discard of {sector} made it {new:#x}"
            );
            expected[sector as usize] = new;
            put.push((sector, new));
        }
        let wrong = (0..SECTORS as usize).find(|&sector| now[sector] != expected[sector]);
        assert_eq!(wrong, None, "seed {seed}: wrong sector after {step:?}");
        let moment = history.moments.len();
        history.moments.push((storage.position(), now));
        history.put.push(put);
        if matches!(step, Step::Flush | Step::Settle) {
            history.flushed.push(moment);
        }
        let killed = storage.killed(storage.position());
        judge(&killed, &format!("seed {seed} after {step:?}"));
        same_maps(&disk, &killed, setup).await;
    }
    (storage, history)
}

/// Opens what a power cut left, and uses it on.
async fn survives(setup: Setup, state: MemStorage, allowed: &[Vec<Stamp>], rng: &mut Rng) {
    let what = disk_core::storage::Storage::name(&state).to_owned();
    let before = judge(&state, &what);
    let state = Arc::new(state);
    let disk =
        Disk::open(setup, state.clone(), false).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let read = disk.read_all().await.unwrap_or_else(|error| panic!("{what}: {error}"));
    for (sector, (stamp, allowed)) in read.iter().zip(allowed).enumerate() {
        assert!(
            allowed.contains(stamp),
            "{what}: sector {sector} holds {stamp:#x}, not one of {allowed:#x?}"
        );
    }
    // Closing at once leaves nothing to be desired; that it changes nothing that can be read shows below.
    disk.top.settle().await.expect("settled");
    let settled = judge(&state.snapshot(), &what);
    assert_eq!((settled.counter, settled.allocated), (before.allocated, before.allocated), "{what}");
    // New blocks after the accident: nothing else changes, and they are there.
    let mut expected = read;
    for serial in [1000, 1001] {
        let start = rng.below(SECTORS);
        let sectors = start..(start + 1 + rng.below(400)).min(SECTORS);
        disk.write(&sectors, serial).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        for sector in sectors {
            expected[sector as usize] = crate::disk::stamp(sector, serial);
        }
    }
    disk.chain.flush().await.expect("flushed");
    judge(&state.snapshot(), &what);
    let again = Disk::open(setup, state.clone(), true).await.expect("still an image");
    assert!(
        again.read_all().await.expect("readable") == expected,
        "{what}: using it on changed other sectors"
    );
}

/// Cuts the power during the recovery, too.
async fn recovers_again(setup: Setup, state: MemStorage, allowed: &[Vec<Stamp>], rng: &mut Rng) -> u64 {
    let storage = Arc::new(CrashStorage::new(state));
    let disk = Disk::open(setup, storage.clone(), false).await.expect("opened once before");
    disk.write(&(0..1), 2000).await.expect("writable");
    disk.top.settle().await.expect("settled");
    let mut allowed = allowed.to_vec();
    allowed[0].push(crate::disk::stamp(0, 2000));
    let mut states = 0;
    for cut in 0..=storage.position() {
        for state in storage.states(cut, rng.next()).take(3) {
            survives(setup, state, &allowed, rng).await;
            states += 1;
        }
    }
    states
}

async fn campaign(setup: Setup, seed: u64, steps: u32, cuts: usize, states_per_cut: usize) -> u64 {
    let mut rng = Rng(seed);
    let steps: Vec<Step> = (0..steps).map(|_| Step::random(&mut rng)).collect();
    let (storage, history) = work(setup, seed, &steps).await;
    let mut states = 0;
    for _ in 0..cuts {
        let cut = rng.below(storage.position() as u64 + 1) as usize;
        let allowed = history.allowed(cut);
        for state in storage.states(cut, rng.next()).take(states_per_cut) {
            if rng.chance(40) {
                states += recovers_again(setup, state.snapshot(), &allowed, &mut rng).await;
            }
            survives(setup, state, &allowed, &mut rng).await;
            states += 1;
        }
        let corners = storage.corner_states(cut).skip(rng.below(8) as usize);
        for state in corners.step_by(1 + rng.below(8) as usize).take(states_per_cut) {
            survives(setup, state, &allowed, &mut rng).await;
            states += 1;
        }
        // A kill loses nothing: what the last step before it acknowledged is there.
        let (position, read) = &history.moments[rng.below(history.moments.len() as u64) as usize];
        let killed: Vec<Vec<Stamp>> = read.iter().map(|stamp| vec![*stamp]).collect();
        survives(setup, storage.killed(*position), &killed, &mut rng).await;
        states += 1;
    }
    states
}

/// The default run is some thousand states; `DISKCHAIN_TEST_EFFORT` asks for more.
async fn campaigns(setup: Setup) {
    let seeds = SEEDS * campaign::effort();
    let (first, mut states) = (campaign::seed(), 0);
    for seed in (first..).take(usize::try_from(seeds).expect("a bearable effort")) {
        states += campaign(setup, seed, 40, CUTS, 4).await;
    }
    println!("{setup:?}: seeds from {first}, {} cuts, {states} states, 0 wrong", seeds * CUTS as u64);
    assert!(states > 60 * seeds, "only {states} states of {setup:?}");
}

#[tokio::test]
async fn whatever_a_power_cut_leaves_of_a_base_is_old_or_new_and_can_be_used_on() {
    campaigns(Setup::Base).await;
}

#[tokio::test]
async fn whatever_a_power_cut_leaves_of_a_child_is_old_or_new_and_can_be_used_on() {
    campaigns(Setup::Child).await;
}

#[tokio::test]
async fn whatever_a_power_cut_leaves_on_a_used_device_is_old_or_new_and_can_be_used_on() {
    campaigns(Setup::Device).await;
}

/// Blocks of the disk, as sectors.
fn blocks(range: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let per_block = crate::disk::BLOCK / crate::disk::SECTOR;
    range.start * per_block..range.end * per_block
}

/// Short stories in which one missing flush would do harm, cut at every moment.
async fn cut_stories(setup: Setup) {
    use Step::{Abandon, Compact, Discard, Flush, Reopen, Settle, Write, Zero};
    let stories: [&[Step]; 6] = [
        // A killed process has cleared the last block; the next one cuts the file.
        &[Write(blocks(0..2)), Flush, Discard(blocks(1..2)), Reopen, Write(0..1), Flush],
        // A slot that was left is used by another block.
        &[
            Write(blocks(0..2)),
            Flush,
            Discard(blocks(0..2)),
            Flush,
            Flush,
            Write(2000..2001),
            Write(2300..2301),
        ],
        &[Write(blocks(0..1)), Zero(blocks(0..1), true), Write(3..4), Flush, Write(2600..2601)],
        // The last blocks move into holes.
        &[Write(blocks(0..5)), Flush, Discard(blocks(0..2)), Flush, Compact, Write(blocks(4..5)), Flush],
        &[
            Write(blocks(0..5)),
            Discard(blocks(1..3)),
            Settle,
            Compact,
            Write(blocks(7..8)),
            Settle,
            Write(9..10),
        ],
        // A request fails half-way.
        &[Write(0..1), Abandon(1000), Write(1001..1002), Flush, Flush, Write(1500..1501), Flush],
    ];
    let mut states = 0;
    let mut rng = Rng(7);
    for story in stories {
        let (storage, history) = work(setup, 0, story).await;
        for cut in 0..=storage.position() {
            let allowed = history.allowed(cut);
            for state in storage.corner_states(cut).step_by(1 + rng.below(2) as usize) {
                survives(setup, state, &allowed, &mut rng).await;
                states += 1;
            }
        }
    }
    println!("{setup:?}: {states} states of stories, 0 wrong");
    assert!(states > 400, "only {states} states");
}

#[tokio::test]
async fn the_power_may_go_at_any_moment_of_a_story_of_a_base() {
    cut_stories(Setup::Base).await;
}

#[tokio::test]
async fn the_power_may_go_at_any_moment_of_a_story_of_a_child() {
    cut_stories(Setup::Child).await;
}

#[tokio::test]
async fn the_power_may_go_at_any_moment_of_a_story_on_a_used_device() {
    cut_stories(Setup::Device).await;
}
