//! Who asks: the identity that requests are listed under, and the news that nobody waits for their answers any more.
//!
//! Invariant: once a client is gone, none of its requests that still waits for the throttle or for its turn starts.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Bug, planted};
use crate::sync::AtomicBool;

/// A source of requests: one connection, or the daemon itself.
#[derive(Debug, Clone)]
pub struct Client {
    id: u64,
    departure: Arc<Departure>,
}

#[derive(Debug, Default)]
struct Departure {
    /// For the many who only look: a look at the token takes a lock.
    gone: AtomicBool,
    /// For those who wait.
    told: CancellationToken,
}

impl Client {
    /// A new client with a number of its own, 1 or more.
    #[expect(clippy::new_without_default, reason = "every client is another one")]
    pub fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Client { id: LAST.fetch_add(1, Ordering::Relaxed) + 1, departure: Arc::default() }
    }

    /// Its number, unique in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// From now on its requests that have not started never will: a client that connects again sends them again, and
    /// they must not overtake what it writes then.
    pub fn leave(&self) {
        self.departure.gone.store(true, Ordering::Release);
        self.departure.told.cancel();
    }

    /// Waits for something that may take long, unless the client leaves first.
    pub(crate) async fn unless_gone<T>(&self, waiting: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.departure.told.cancelled(), if !planted(Bug::ReconnectZombie) => Err(Error::new(ErrorKind::Cancelled, "the client is gone")),
            outcome = waiting => Ok(outcome),
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.departure.gone.load(Ordering::Acquire) && !planted(Bug::ReconnectZombie)
    }
}
