//! The end of the server, as its connections hear of it.
//!
//! Invariant: it goes one way: serving, stopping, cutting.

use tokio_util::sync::CancellationToken;

/// What every connection listens to about the end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    stopping: CancellationToken,
    cutting: CancellationToken,
}

impl Stop {
    /// From now on requests in flight are finished and answered, and new ones are not read any more.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// From now on whoever still holds on is cut off.
    pub fn cut(&self) {
        self.cutting.cancel();
    }

    /// Whether the server stops.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Whether the server has waited long enough.
    pub fn is_cutting(&self) -> bool {
        self.cutting.is_cancelled()
    }

    /// Waits until the server stops.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Waits until the server has waited long enough.
    pub async fn cutting(&self) {
        self.cutting.cancelled().await;
    }
}
