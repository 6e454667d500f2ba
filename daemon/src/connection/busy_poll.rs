//! Whether a connection looks for its client's next request for a moment before its thread goes to sleep.
//!
//! To go to sleep and to be woken takes longer than a small request does, at both ends of the socket, and a client that
//! asks for one thing after the other pays it for each. Who looked in vain sleeps until the client is that quick again. A
//! client that sends several at once pays it for all of them together, and is not looked for: that took a fifth more
//! processor time and brought nothing.
//!
//! Invariant: a client that lets more time than that pass between its requests is looked for in vain once at most, and
//! whoever else has something to do on the thread waits for [`TURN`] at most.

use std::mem;
use std::time::{Duration, Instant};

/// How long the thread is held before others get their turn and the runtime looks for news.
const TURN: Duration = Duration::from_micros(200);

/// The time from when there is nothing to do until the client sends more.
pub struct BusyPoll {
    /// How long it is worth looking; zero if never.
    most: Duration,
    /// The client's last pause was that short.
    pays: bool,
    /// When the pause began that has not ended.
    since: Option<Instant>,
    /// Requests that came since the last pause.
    requests: u32,
    /// When it was last the turn of others.
    turned: Instant,
}

impl BusyPoll {
    /// For a client that nothing is known of. Looks no longer than `most` each time.
    pub fn new(most: Duration) -> Self {
        BusyPoll { most, pays: false, since: None, requests: 0, turned: Instant::now() }
    }

    /// At `now` there is nothing to do until the client sends more. Returns until when to look for it, if at all.
    pub fn pause(&mut self, now: Instant) -> Option<Instant> {
        let since = *self.since.get_or_insert(now);
        let one_by_one = mem::take(&mut self.requests) <= 1;
        // Once a pause: it is not looked for again by who was woken for something else meanwhile.
        (mem::take(&mut self.pays) && one_by_one).then_some(since + self.most)
    }

    /// Whether others are to get their turn at `now`, before the client is looked for any longer.
    pub fn is_turn_of_others(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.turned) >= TURN;
        if due {
            self.turned = now;
        }
        due
    }

    /// A request is taken up.
    #[inline]
    pub fn took_request(&mut self) {
        self.requests = self.requests.saturating_add(1);
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
    fn a_client_that_sends_several_requests_at_once_is_not_looked_for() {
        let (mut poll, now) = (BusyPoll::new(MOST), Instant::now());
        let mut pause_after = |requests: u32| {
            poll.ended();
            (0..requests).for_each(|_| poll.took_request());
            poll.pause(now).is_some()
        };
        assert!(!pause_after(1), "nothing is known of it");
        assert!(pause_after(1));
        assert!(!pause_after(2));
        assert!(pause_after(1));
    }

    #[test]
    fn others_get_their_turn_as_often_as_promised() {
        let (mut poll, start) = (BusyPoll::new(MOST), Instant::now() + TURN);
        let turns = (0..100).filter(|&at| poll.is_turn_of_others(start + at * TURN / 10)).count();
        assert_eq!(turns, 10);
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
