//! A storage whose operations take random times, so that they overtake each other.
//!
//! On tokio's paused clock that costs no time, and on one thread the same seed gives the same order of events.
//!
//! Invariant: an operation takes effect in one moment between its call and its completion.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::buf::{Buf, BufMut};
use crate::range::ByteRange;
use crate::storage::{Completion, HostExtent, Limits, Storage, Zero};
use crate::testing::mix;

/// A storage around `inner` that takes its time. Needs a tokio runtime.
#[derive(Debug)]
pub struct Jitter {
    inner: Arc<dyn Storage>,
    most: Duration,
    seed: u64,
    operations: AtomicU64,
}

impl Jitter {
    /// Every operation takes up to `most` before its effect and as long after it; every fourth takes no time.
    pub fn new(inner: Arc<dyn Storage>, most: Duration, seed: u64) -> Self {
        Jitter { inner, most, seed, operations: AtomicU64::new(0) }
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Storage) -> Completion<T> + Send + 'static,
    ) -> Completion<T> {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        let dice = |salt| mix(self.seed ^ salt, number) % 1024;
        if dice(0) < 256 {
            return work(&*self.inner);
        }
        let (before, after) = (self.most * dice(1) as u32 / 1024, self.most * dice(2) as u32 / 1024);
        let (completer, completion) = Completion::pending();
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            tokio::time::sleep(before).await;
            let outcome = work(&*inner).await;
            tokio::time::sleep(after).await;
            completer.complete(outcome);
        });
        completion
    }
}

impl Storage for Jitter {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn allocated(&self) -> u64 {
        self.inner.allocated()
    }

    fn read(&self, at: u64, into: BufMut) -> Completion<BufMut> {
        self.run(move |inner| inner.read(at, into))
    }

    fn write(&self, at: u64, from: Buf) -> Completion<()> {
        self.run(move |inner| inner.write(at, from))
    }

    fn zero(&self, range: ByteRange, how: Zero) -> Completion<()> {
        self.run(move |inner| inner.zero(range, how))
    }

    fn discard(&self, range: ByteRange) -> Completion<()> {
        self.run(move |inner| inner.discard(range))
    }

    fn status(&self, range: ByteRange) -> Completion<HostExtent> {
        self.run(move |inner| inner.status(range))
    }

    fn prefetch(&self, range: ByteRange) {
        self.inner.prefetch(range);
    }

    fn flush(&self) -> Completion<()> {
        self.run(|inner| inner.flush())
    }

    fn resize(&self, len: u64) -> Completion<()> {
        self.run(move |inner| inner.resize(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemStorage;

    /// What was in the file after each of twenty writes, in the order in which they are waited for.
    fn order(seed: u64) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let below = Arc::new(MemStorage::new(1));
            let jitter = Jitter::new(below.clone(), Duration::from_millis(50), seed);
            let writes: Vec<_> = (0..20u8).map(|n| jitter.write(0, Buf::copy_from(&[n]))).collect();
            let mut seen = Vec::new();
            for write in writes {
                write.await.expect("memory");
                seen.extend(below.to_vec());
            }
            seen
        })
    }

    #[test]
    fn operations_overtake_each_other_and_one_seed_gives_one_order() {
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert!((1..9).any(|seed| order(seed).last() != Some(&19)), "the last was never overtaken");
    }
}
