//! The bound on request buffers: requests wait for memory, none fails for want of it.
//!
//! Every connection has a little memory of its own ([`PRIVATE`]), so that no other client can keep it from going on;
//! beyond that it takes from the daemon's budget (`max_buffer_memory`), but no more than its [`SHARE`] of that.
//!
//! Invariant: the buffers of all requests together take at most the budget and [`PRIVATE`] a connection, plus one
//! request of the largest size allowed (a request larger than the whole budget waits for all of it).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that each connection may always use: 32 requests of 4 KiB.
pub const PRIVATE: usize = 128 << 10;

/// A connection that holds this part of the budget or more gets no further memory before it gives some back, so that a
/// client that floods cannot take it all. One request is always let through, however large.
pub const SHARE: u64 = 4;

/// The unit of buffers, and so of all accounts here: a read of one byte takes a page, however many of them wait to be
/// sent. The budget is counted in pages also because a semaphore counts to 2³² only.
const PAGE: usize = 4096;

/// The budget of the daemon.
#[derive(Debug, Clone)]
pub struct Budget {
    shared: Arc<Semaphore>,
    pages: u32,
    waiting: Arc<AtomicUsize>,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let pages =
            u32::try_from(bytes / PAGE as u64).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS as u32);
        Budget { shared: Arc::new(Semaphore::new(pages as usize)), pages, waiting: Arc::default() }
    }

    /// Whether a request waits for memory now: then a connection that holds some and stands still is in the way.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Bytes of the budget that are in use.
    pub fn used(&self) -> u64 {
        (self.pages as usize - self.shared.available_permits().min(self.pages as usize)) as u64 * PAGE as u64
    }

    fn pages_for(&self, len: usize) -> u32 {
        u32::try_from(len.div_ceil(PAGE)).unwrap_or(u32::MAX).min(self.pages)
    }

    /// Waits for memory for `len` bytes, first come first served.
    async fn take(&self, len: usize) -> OwnedSemaphorePermit {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _counted = Waiting(&self.waiting);
        let pages = self.pages_for(len);
        Arc::clone(&self.shared).acquire_many_owned(pages).await.expect("the budget is never closed")
    }
}

/// Counts a waiting request down, also when its connection ends while it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to some bytes of buffer. Dropping it gives it back.
#[derive(Debug)]
pub struct Lease(Source);

#[derive(Debug)]
enum Source {
    Nothing,
    Private(#[expect(dead_code, reason = "held for its drop")] Counted),
    Shared(#[expect(dead_code, reason = "held for its drop")] (OwnedSemaphorePermit, Counted)),
}

impl Lease {
    /// For requests without a buffer.
    pub fn nothing() -> Self {
        Lease(Source::Nothing)
    }

    /// Whether it is for no buffer.
    pub fn is_nothing(&self) -> bool {
        matches!(self.0, Source::Nothing)
    }
}

/// One connection's view of the budget.
#[derive(Debug)]
pub struct Allowance {
    budget: Budget,
    /// Bytes of its own that are in use.
    private: Arc<AtomicUsize>,
    /// Bytes of the budget that it holds.
    held: Arc<AtomicUsize>,
}

impl Allowance {
    /// For a new connection.
    pub fn new(budget: Budget) -> Self {
        Allowance { budget, private: Arc::default(), held: Arc::default() }
    }

    /// Memory for `len` bytes if there is some at once: the connection's own first.
    pub fn try_take(&self, len: usize) -> Option<Lease> {
        if len == 0 {
            return Some(Lease::nothing());
        }
        let len = len.next_multiple_of(PAGE);
        // Only this connection adds; others at most give back.
        if self.private.load(Ordering::Relaxed) + len <= PRIVATE {
            return Some(Lease(Source::Private(Counted::new(len, &self.private))));
        }
        let pages = self.budget.pages_for(len);
        let permit = Arc::clone(&self.budget.shared).try_acquire_many_owned(pages).ok()?;
        Some(Lease(Source::Shared((permit, Counted::new(len, &self.held)))))
    }

    /// Waits for memory for `len` bytes, first come first served.
    pub fn take(&self, len: usize) -> impl Future<Output = Lease> + Send + use<> {
        let (budget, held, len) = (self.budget.clone(), Arc::clone(&self.held), len.next_multiple_of(PAGE));
        async move {
            let permit = budget.take(len).await;
            Lease(Source::Shared((permit, Counted::new(len, &held))))
        }
    }

    /// Whether the connection holds its share and should give some back first.
    pub fn is_used_up(&self) -> bool {
        self.held.load(Ordering::Relaxed) as u64 >= u64::from(self.budget.pages) * PAGE as u64 / SHARE
    }

    /// The daemon's budget.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
}

/// Bytes that are counted somewhere until this is dropped.
#[derive(Debug)]
struct Counted {
    len: usize,
    of: Arc<AtomicUsize>,
}

impl Counted {
    fn new(len: usize, of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(len, Ordering::Relaxed);
        Counted { len, of: Arc::clone(of) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.of.fetch_sub(self.len, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_has_its_own_memory_when_the_budget_is_used_up() {
        let budget = Budget::new(1 << 20);
        let all = budget.take(1 << 20).await;
        let allowance = Allowance::new(budget.clone());
        assert!(!allowance.is_used_up());
        let own = allowance.try_take(PRIVATE).expect("its own memory");
        assert!(allowance.try_take(1).is_none());
        drop(own);
        assert!(allowance.try_take(1).is_some());
        drop(all);
        assert!(allowance.try_take(1 << 20).is_some());
    }

    #[test]
    fn small_requests_count_by_the_pages_that_their_buffers_take() {
        let budget = Budget::new(1 << 20);
        let allowance = Allowance::new(budget.clone());
        let own: Vec<_> =
            (0..PRIVATE / PAGE).map(|_| allowance.try_take(1).expect("its own memory")).collect();
        assert_eq!(budget.used(), 0);
        let shared: Vec<_> = std::iter::from_fn(|| allowance.try_take(1)).collect();
        assert_eq!((own.len() + shared.len()) * PAGE, PRIVATE + (1 << 20), "a page for every byte");
        assert!(allowance.is_used_up());
        drop((own, shared));
        assert!(budget.used() == 0 && !allowance.is_used_up());
    }

    #[test]
    fn a_connection_that_holds_its_share_is_told_until_it_gives_some_back() {
        let budget = Budget::new(16 << 20);
        let allowance = Allowance::new(budget.clone());
        let first = allowance.try_take(3 << 20).unwrap();
        assert!(!allowance.is_used_up());
        let second = allowance.try_take(1 << 20).unwrap();
        assert!(allowance.is_used_up());
        assert!(!Allowance::new(budget).is_used_up(), "another one is not concerned");
        drop(first);
        assert!(!allowance.is_used_up());
        drop(second);
    }

    #[tokio::test]
    async fn a_request_larger_than_the_budget_waits_for_all_of_it_and_then_goes() {
        let budget = Budget::new(1 << 20);
        let small = budget.take(4096).await;
        let allowance = Allowance::new(budget.clone());
        let mut large = std::pin::pin!(allowance.take(32 << 20));
        assert!(futures_util::poll!(large.as_mut()).is_pending());
        assert!(budget.is_wanted());
        drop(small);
        let _large = large.await;
        assert!(!budget.is_wanted());
        assert_eq!(budget.used(), 1 << 20);
    }
}
