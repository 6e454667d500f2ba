//! Moments of the monotonic clock as one number: a request has several, and compares and subtracts them all the time.

use std::sync::LazyLock;
use std::time::Duration;

use crate::sync::Instant;

/// A moment, in nanoseconds since one that is the same for the whole process. Good for 584 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// A clock that a test has stopped may have been stopped before anybody asked for a moment.
const BEFORE: Duration = Duration::from_secs(24 * 60 * 60);

impl Moment {
    /// The present.
    #[inline]
    pub fn now() -> Moment {
        static ORIGIN: LazyLock<Instant> = LazyLock::new(|| {
            let now = Instant::now();
            now.checked_sub(BEFORE).unwrap_or(now)
        });
        // The origin first: it is in no later one's future then.
        let origin = *ORIGIN;
        Moment(Instant::now().saturating_duration_since(origin).as_nanos() as u64)
    }

    /// Time from `earlier` to this; none if that is not earlier.
    #[inline]
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Time from this to the present.
    #[inline]
    pub fn elapsed(self) -> Duration {
        Moment::now().since(self)
    }

    /// The moment that is `time` later.
    #[inline]
    #[must_use]
    pub fn after(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(time.as_nanos() as u64))
    }

    /// Nanoseconds since the process's origin of moments.
    #[inline]
    pub(crate) fn nanoseconds(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn moments_stand_still_and_go_on_with_the_clock_of_the_runtime() {
        let first = Moment::now();
        assert_eq!(first.elapsed(), Duration::ZERO);
        tokio::time::advance(Duration::from_millis(1500)).await;
        let second = Moment::now();
        assert_eq!(second.since(first), Duration::from_millis(1500));
        assert_eq!(first.since(second), Duration::ZERO, "time does not go backwards");
        assert_eq!(first.after(Duration::from_millis(1500)), second);
    }
}
