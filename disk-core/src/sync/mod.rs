//! Locks, tasks and time of those parts whose orders of threads are explored: the tracker, the throttle, clients.
//!
//! It is the standard library and tokio. With the feature `shuttle`, which only `tests/schedules.rs` has, a scheduler of
//! the tests decides at every lock, unlock and look at an atomic which thread goes on, and time passes when it says so.
//!
//! Invariant: without that feature nothing here is a type or a function of its own.

#[cfg(not(feature = "shuttle"))]
pub(crate) use {
    std::sync::atomic::AtomicBool,
    std::sync::{Mutex, MutexGuard},
    tokio::task::{JoinHandle, spawn, yield_now},
    tokio::time::{Instant, timeout},
};

#[cfg(feature = "shuttle")]
pub(crate) mod explored;

#[cfg(feature = "shuttle")]
pub(crate) use {
    explored::time::{Instant, timeout},
    explored::{Mutex, MutexGuard},
    shuttle::future::{JoinHandle, spawn, yield_now},
    shuttle::sync::atomic::AtomicBool,
};
