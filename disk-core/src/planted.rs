//! Known bugs that the tests plant to show that they would find them.
//!
//! Each stands in the product as one condition on [`planted`], which is a constant false unless the crate is built with
//! the feature `planted-bugs`; only `tests/planted_bugs.rs` and `tests/schedules.rs` are.
//!
//! Invariant: no bug is there that the running thread has not planted.

/// A bug that another block layer had, or that this one could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bug {
    /// A VDI does not flush between data and map entry of a block that hides a parent's data; a raw image answers a
    /// flush without one.
    SkipBarrier,
    /// The map entry of a block is in the file before the data.
    PublishBeforeData,
    /// A slot is handed out before the header's counter covers it.
    CounterAfterMap,
    /// The map in memory changes although the write that should persist it has failed, and is not put back.
    MemoryBeforeDisk,
    /// A slot that a block has left is used by another before that is durable.
    FreeBeforeDurable,
    /// A free slot is handed out while its hole is still being punched.
    PunchAfterReuse,
    /// After a flush has failed the next one succeeds.
    LieAfterFailedSync,
    /// A write of zeroes with FUA is answered before it is durable.
    DropFuaOnZeroes,
    /// A write is answered while its map entry is in memory only. (There is no redo log: the map entry in the file is
    /// what makes an answer outlive the process.)
    AckBeforeEntry,
    /// Two ranges that have one byte in common do not count as overlapping.
    OverlapOffByOne,
    /// Requests of a client that has left start all the same.
    ReconnectZombie,
    /// Zeroing a block of a child notes it as absent, so that its parent's data is back.
    StaleParentAfterZero,
    /// Who waits for its turn looks whether it has come, and leaves its waker under the lock taken anew: a wake-up in
    /// between is lost.
    WakerAfterLook,
    /// The throttle's dispatcher ends without saying so under the lock: who comes just then waits for ever.
    DispatcherEndsUnseen,
    /// Who comes when there are tokens goes before those who wait for them.
    NewcomersFirst,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 15] = [
        Bug::SkipBarrier,
        Bug::PublishBeforeData,
        Bug::CounterAfterMap,
        Bug::MemoryBeforeDisk,
        Bug::FreeBeforeDurable,
        Bug::PunchAfterReuse,
        Bug::LieAfterFailedSync,
        Bug::DropFuaOnZeroes,
        Bug::AckBeforeEntry,
        Bug::OverlapOffByOne,
        Bug::ReconnectZombie,
        Bug::StaleParentAfterZero,
        Bug::WakerAfterLook,
        Bug::DispatcherEndsUnseen,
        Bug::NewcomersFirst,
    ];
}

/// Whether a bug is planted.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted-bugs")]
pub use here::{Planted, plant};

#[cfg(feature = "planted-bugs")]
pub(crate) use here::planted;

#[cfg(feature = "planted-bugs")]
mod here {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug for this thread, for as long as the value lives. Work on other threads does not have it.
    #[must_use]
    pub fn plant(bug: Bug) -> Planted {
        PLANTED.set(Some(bug));
        Planted(())
    }

    /// While it lives a bug is planted.
    #[derive(Debug)]
    pub struct Planted(());

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
}
