//! Clients that leave while their requests wait for the throttle, for their turn or for the storage, and come again at
//! once: what the new connection writes is never overwritten by what the old one had asked for.
//!
//! Invariant: what the new connection was told is written stays, whatever happens to the old one's requests.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;

use crate::buf::Buf;
use crate::client::Client;
use crate::device::{Device, DeviceOptions};
use crate::error::{ErrorKind, Result};
use crate::range::ByteRange;
use crate::testing::Jitter;
use crate::testing::model::campaign::Figures;
use crate::testing::model::images::{self, ChainSpec, Images};
use crate::testing::model::target::flat;
use crate::testing::model::{SECTOR, stamp};
use crate::throttle::{Dimension, Limits, Rates, Throttle};

/// Connections of a case, one after the other.
const ROUNDS: u32 = 6;

/// A disk and the clients that come and leave.
#[derive(Debug, Clone)]
pub struct Case {
    chain: ChainSpec,
    /// Operations of the storage take up to so many milliseconds.
    jitter: u64,
    /// Writes that the throttle lets through in a second; 0: all.
    rate: u64,
    /// For each round: where the client writes, and after how many milliseconds it leaves.
    rounds: Vec<(Vec<ByteRange>, u64)>,
    seed: u64,
}

/// Cases over chains of all kinds.
pub fn cases() -> BoxedStrategy<Case> {
    let rate = prop_oneof![1 => Just(0), 2 => 1..40u64];
    (images::any_chain(), 1..200u64, rate, any::<u64>())
        .prop_flat_map(|(chain, jitter, rate, seed)| {
            let size = chain.images.last().expect("a chain has at least a base").size;
            let hot = (size / SECTOR).min(64);
            let range = (0..hot, 1..16u64)
                .prop_map(move |(at, len)| ByteRange::new(at * SECTOR, (at + len).min(hot) * SECTOR));
            let round = (prop::collection::vec(range, 1..10), 0..400u64);
            let rounds = prop::collection::vec(round, 1..=ROUNDS as usize);
            (Just((chain, jitter, rate, seed)), rounds)
        })
        .prop_map(|((chain, jitter, rate, seed), rounds)| Case { chain, jitter, rate, rounds, seed })
        .boxed()
}

/// How many requests of clients that had left were dropped, and how many had started before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Left {
    /// They never started.
    pub dropped: u64,
    /// They were carried out.
    pub done: u64,
}

/// Lets clients come and leave, and looks after each whether the next one's writes stay.
///
/// # Errors
/// In words: what came back.
pub fn trial(case: &Case, left: &std::cell::Cell<Left>) -> Result<Figures, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let images = Images::build(&case.chain).await?;
        let storage =
            Jitter::new(Arc::new(images.top.snapshot()), Duration::from_millis(case.jitter), case.seed);
        let chain = images.open(Arc::new(storage)).await?;
        let mut rates = Rates::default();
        rates[Dimension::IopsWrite].avg = case.rate;
        let limits = Limits::new(rates, 0).expect("a rate alone is valid");
        let throttle = Arc::new(Throttle::new(limits, None));
        let device = Arc::new(Device::new("disk".into(), chain, throttle, DeviceOptions::default()));
        let mut figures = Figures { schedules: 1, ..Figures::default() };
        for (number, (ranges, patience)) in (0..).zip(&case.rounds) {
            figures.operations += 2 * ranges.len() as u64;
            let wrong = |what: String| format!("round {number}: {what}");
            round(&device, ranges, *patience, 2 * number + 1, left).await.map_err(wrong)?;
        }
        device.close().await.map_err(|error| format!("closing: {error}"))?;
        Ok(figures)
    })
}

/// A client asks for writes and leaves without waiting; the next one writes to the same places.
async fn round(
    device: &Arc<Device>,
    ranges: &[ByteRange],
    patience: u64,
    serial: u32,
    left: &std::cell::Cell<Left>,
) -> Result<(), String> {
    let (old, new) = (Client::new(), Client::new());
    let write = |client: &Client, range: ByteRange, serial: u32| {
        let (device, client) = (Arc::clone(device), client.clone());
        let data = Buf::copy_from(&stamp(range.start(), range.len(), serial));
        async move { device.write(&client, range.start(), data, false).await }
    };
    let asked: Vec<_> = ranges.iter().map(|range| tokio::spawn(write(&old, *range, serial))).collect();
    tokio::time::sleep(Duration::from_millis(patience)).await;
    old.leave();
    for answer in join_all(ranges.iter().map(|range| write(&new, *range, serial + 1))).await {
        answer.map_err(|error| format!("the new connection: {error}"))?;
    }
    let stays = async |when: &str| {
        for range in ranges {
            let bytes = flat(&device.read(&new, *range).await.map_err(|error| error.to_string())?);
            if bytes != stamp(range.start(), range.len(), serial + 1) {
                return Err(format!("{range} is not what the new connection wrote, {when}"));
            }
        }
        Ok(())
    };
    stays("right after its answers").await?;
    for answer in join_all(asked).await {
        let mut count = left.get();
        match answer.map_err(|error| error.to_string())? {
            Ok(()) => count.done += 1,
            Err(error) if error.kind() == ErrorKind::Cancelled => count.dropped += 1,
            Err(error) => return Err(format!("the old connection: {error}")),
        }
        left.set(count);
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    stays("when the old one's requests had ended").await
}
