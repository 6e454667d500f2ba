//! What stands in for the standard library and tokio while a scheduler of the tests decides who goes on.
//!
//! `tokio::sync::Notify`, its one-shot channels and the cancellation tokens stay what they are: they never block a
//! thread, so a call of theirs is one step. What lies between two such steps is taken apart by the locks around them.
//!
//! Invariant: all threads of an execution are one thread of the system, and nobody is switched away from inside a call
//! into this file but at a lock or an unlock.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{LockResult, PoisonError};

use shuttle::sync::atomic::AtomicBool;

/// A lock after whose release others may go on before its owner does: what the owner does next, waking somebody say,
/// they can come before.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    inner: shuttle::sync::Mutex<T>,
    released: AtomicBool,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex { inner: shuttle::sync::Mutex::new(value), released: AtomicBool::new(false) }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let guard = |inner| MutexGuard { inner: Some(inner), released: &self.released };
        match self.inner.lock() {
            Ok(inner) => Ok(guard(inner)),
            Err(poisoned) => Err(PoisonError::new(guard(poisoned.into_inner()))),
        }
    }
}

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    inner: Option<shuttle::sync::MutexGuard<'a, T>>,
    released: &'a AtomicBool,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_ref().expect("it is there until it is dropped")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("it is there until it is dropped")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        drop(self.inner.take());
        if !std::thread::panicking() {
            // A look at an atomic is a moment at which others may go on; shuttle's own lock has one before its release.
            self.released.load(Ordering::SeqCst);
        }
    }
}

/// A clock that stands still until somebody [passes](time::pass) the time.
pub(crate) mod time {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::{Poll, Waker};
    use std::time::Duration;

    thread_local! {
        static CLOCK: RefCell<Clock> = RefCell::default();
    }

    #[derive(Default)]
    struct Clock {
        now: Duration,
        timers: BTreeMap<(Duration, u64), Waker>,
        last: u64,
        /// Who passes the time, when there is no timer.
        idle: Option<Waker>,
    }

    /// A moment of that clock.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Instant(Duration);

    impl Instant {
        pub(crate) fn now() -> Self {
            CLOCK.with_borrow(|clock| Instant(clock.now))
        }

        /// Time before the clock's start is its start.
        pub(crate) fn checked_sub(self, time: Duration) -> Option<Self> {
            Some(Instant(self.0.saturating_sub(time)))
        }

        pub(crate) fn saturating_duration_since(self, earlier: Instant) -> Duration {
            self.0.saturating_sub(earlier.0)
        }
    }

    /// Puts the clock back to its start. Whoever begins an execution does so first.
    pub(crate) fn reset() {
        // A waker of the last execution may look at the clock when it is dropped.
        drop(CLOCK.take());
    }

    /// Passes the time until the next timer, as soon as there is one.
    pub(crate) async fn pass() {
        poll_fn(|cx| {
            let due = CLOCK.with_borrow_mut(|clock| {
                let Some(((at, _), waker)) = clock.timers.pop_first() else {
                    clock.idle = Some(cx.waker().clone());
                    return None;
                };
                clock.now = clock.now.max(at);
                Some(waker)
            });
            match due {
                Some(waker) => {
                    waker.wake();
                    Poll::Ready(())
                }
                None => Poll::Pending,
            }
        })
        .await;
    }

    /// As tokio's: the outcome of `future`, or an error after `limit`.
    pub(crate) async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, ()> {
        let mut future = pin!(future);
        let (at, number) = CLOCK.with_borrow_mut(|clock| {
            clock.last += 1;
            (clock.now + limit, clock.last)
        });
        let _timer = Timer(at, number);
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(outcome));
            }
            if Instant::now().0 >= at {
                return Poll::Ready(Err(()));
            }
            let idle = CLOCK.with_borrow_mut(|clock| {
                clock.timers.insert((at, number), cx.waker().clone());
                clock.idle.take()
            });
            idle.into_iter().for_each(Waker::wake);
            Poll::Pending
        })
        .await
    }

    struct Timer(Duration, u64);

    impl Drop for Timer {
        fn drop(&mut self) {
            let waker = CLOCK.with_borrow_mut(|clock| clock.timers.remove(&(self.0, self.1)));
            drop(waker);
        }
    }
}
