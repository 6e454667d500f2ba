//! Claims: the right to give a block a slot. At most one at a time is out for a block; others wait for its end.
//!
//! Invariant: a claim that ends without its slot being used gives the slot back, whatever ended it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::header::Slot;
use super::space::Space;

/// The claims that are out.
#[derive(Debug, Default)]
pub struct Claims {
    blocks: Mutex<HashMap<u32, Arc<Notify>>>,
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Notify>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the claim of a block and wakes those who wait for it.
    fn end(&self, block: u32) {
        if let Some(ended) = self.lock().remove(&block) {
            ended.notify_waiters();
        }
    }
}

/// The right to give a block a slot, and the slot.
#[derive(Debug)]
pub struct Claim {
    pub block: u32,
    slot: Option<Slot>,
    /// Goes on elsewhere; see [`Claim::suspend`].
    suspended: bool,
    claims: Arc<Claims>,
    space: Arc<Mutex<Space>>,
}

impl Claim {
    /// The claim of a block, once nobody else has it. `wanted` is asked each time that it is free: false ends the
    /// wait without a claim.
    pub async fn of(
        block: u32,
        claims: &Arc<Claims>,
        space: &Arc<Mutex<Space>>,
        wanted: impl Fn() -> bool,
    ) -> Option<Claim> {
        loop {
            let ended = {
                let mut blocks = claims.lock();
                match blocks.get(&block) {
                    Some(other) => Arc::clone(other).notified_owned(),
                    // Entries change before their claims end, so this is the answer for good.
                    None if !wanted() => return None,
                    None => {
                        blocks.insert(block, Arc::default());
                        let (claims, space) = (Arc::clone(claims), Arc::clone(space));
                        return Some(Claim { block, slot: None, suspended: false, claims, space });
                    }
                }
            };
            ended.await;
        }
    }

    /// Ends this value but not the claim: [`Claim::resume`] goes on with it, exactly once.
    pub fn suspend(mut self) {
        self.suspended = true;
    }

    /// The claim of a block and its slot that was suspended.
    pub fn resume(block: u32, slot: Slot, claims: Arc<Claims>, space: Arc<Mutex<Space>>) -> Claim {
        Claim { block, slot: Some(slot), suspended: false, claims, space }
    }

    /// From now on the slot goes with the claim.
    pub fn hold(&mut self, slot: Slot) {
        debug_assert_eq!(self.slot, None);
        self.slot = Some(slot);
    }

    /// Takes the slot out: it is used, or nobody knows whether it is.
    pub fn take_slot(&mut self) -> Option<Slot> {
        self.slot.take()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.suspended {
            return;
        }
        if let Some(slot) = self.slot.take() {
            self.space.lock().unwrap_or_else(PoisonError::into_inner).give_back(slot);
        }
        self.claims.end(self.block);
    }
}
