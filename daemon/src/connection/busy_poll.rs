//! Whether a connection looks for its client's next request for a moment before its thread goes to sleep.
//!
//! To go to sleep and to be woken takes longer than a small request does, at both ends of the socket, and a client that
//! asks for one thing after the other pays it for each. Who looked in vain sleeps until the client is that quick again.
//!
//! Invariant: a client that lets more time than that pass between its requests is looked for in vain once at most.

use std::time::{Duration, Instant};

/// The time from when there is nothing to do until the client sends more.
pub struct BusyPoll {
    /// How long it is worth looking; zero if never.
    most: Duration,
    /// The client's last pause was that short.
    pays: bool,
    /// When the pause began that has not ended.
    since: Option<Instant>,
}

impl BusyPoll {
    /// For a client that nothing is known of. Looks no longer than `most` each time.
    pub fn new(most: Duration) -> Self {
        BusyPoll { most, pays: false, since: None }
    }

    /// At `now` there is nothing to do until the client sends more. Returns until when to look for it, if at all.
    pub fn pause(&mut self, now: Instant) -> Option<Instant> {
        let since = *self.since.get_or_insert(now);
        // Once a pause: it is not looked for again by who was woken for something else meanwhile.
        std::mem::take(&mut self.pays).then_some(since + self.most)
    }

    /// Something came.
    #[inline]
    pub fn ended(&mut self) {
        if let Some(since) = self.since.take() {
            self.pays = since.elapsed() < self.most;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(3600);

    #[test]
    fn a_client_is_looked_for_after_a_short_pause_and_once_in_a_pause() {
        let (mut poll, now) = (BusyPoll::new(MOST), Instant::now());
        poll.ended();
        assert_eq!(poll.pause(now), None, "nothing is known of it");
        poll.ended();
        assert_eq!(poll.pause(now), Some(now + MOST), "its pause was a short one");
        assert_eq!(poll.pause(now + MOST), None, "it was looked for in vain");
        poll.ended();
        assert_eq!(poll.pause(now), Some(now + MOST), "it came soon after all");
    }

    #[test]
    fn a_client_that_takes_its_time_is_not_looked_for() {
        let mut poll = BusyPoll::new(Duration::from_nanos(1));
        for _ in 0..3 {
            assert_eq!(poll.pause(Instant::now()), None);
            std::thread::sleep(Duration::from_millis(1));
            poll.ended();
        }
        let mut never = BusyPoll::new(Duration::ZERO);
        for _ in 0..3 {
            assert_eq!(never.pause(Instant::now()), None);
            never.ended();
        }
    }
}
