//! Sending on another core: while a connection works on the rest of a batch, a thread sends the replies that are ready.
//!
//! ```text
//!   connection ── hand over ──▶ lane ──▶ helper ── all is sent ───────────────▶ the connection may send again
//!                                          └────── the socket is full or broken ─▶ back to the connection, and so is the rest
//! ```
//! Worth it only where a core has nothing else to do: a reply of 4 KiB costs about as much to send as to make.
//!
//! Invariant: while a helper has the lane, nobody else sends; a helper never waits for a client.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::helpers::Helpers;
use crate::outbox::Outbox;
use crate::socket::Socket;

/// One connection's way to a helper and back.
#[derive(Debug)]
pub struct Lane(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: Arc<Socket>,
    state: Mutex<State>,
    /// Bytes that were handed over and are not sent.
    queued: AtomicU64,
    /// Bytes that helpers have sent and the connection has not heard of.
    sent: AtomicUsize,
    /// Told when a helper could not send all, and when fewer bytes than this are queued (0: never).
    waker: AtomicWaker,
    wake_below: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// A helper has the lane.
    helped: bool,
    waiting: VecDeque<Outbox>,
    /// What broke the socket.
    error: Option<io::Error>,
    /// Empty ones, to be used again.
    spare: Vec<Outbox>,
}

impl Lane {
    /// Of the connection on `socket`.
    pub fn new(socket: Arc<Socket>) -> Self {
        Lane(Arc::new(Shared {
            socket,
            state: Mutex::default(),
            queued: AtomicU64::new(0),
            sent: AtomicUsize::new(0),
            waker: AtomicWaker::new(),
            wake_below: AtomicU64::new(0),
        }))
    }

    /// Bytes that were handed over and are not sent.
    pub fn queued(&self) -> u64 {
        self.0.queued.load(Ordering::Relaxed)
    }

    /// Bytes that helpers have sent since this was asked.
    pub fn take_sent(&self) -> usize {
        self.0.sent.swap(0, Ordering::Relaxed)
    }

    /// Hands over what is in `outbox`, behind what was handed over before. With `starts` a helper is looked for if none
    /// has the lane. Returns whether that was done; otherwise nothing has changed, and nobody has the lane.
    pub fn hand_over(&self, outbox: &mut Outbox, starts: bool) -> bool {
        let mut state = self.0.lock();
        // What came back is for the connection to send, and goes before this.
        let can_start = starts && state.waiting.is_empty() && state.error.is_none();
        let had_helper = mem::replace(&mut state.helped, true);
        if !had_helper && !can_start {
            state.helped = false;
            return false;
        }
        let spare = state.spare.pop().unwrap_or_default();
        let full = mem::replace(outbox, spare);
        self.0.queued.fetch_add(full.queued(), Ordering::Relaxed);
        state.waiting.push_back(full);
        drop(state);
        // Without the lock, or the first thing that the helper does is to wait for it.
        let shared = Arc::clone(&self.0);
        if had_helper || Helpers::get().try_start(move || shared.send_all()) {
            return true;
        }
        let mut state = self.0.lock();
        state.helped = false;
        let full = state.waiting.pop_back().expect("nobody has taken it");
        self.0.queued.fetch_sub(full.queued(), Ordering::Relaxed);
        state.spare.push(mem::replace(outbox, full));
        false
    }

    /// Keeps nothing for later use.
    pub fn release(&self) {
        self.0.lock().spare = Vec::new();
    }

    /// What a helper could not send, in order, once it has come to its end: `None` as long as one has the lane.
    ///
    /// # Errors
    /// What broke the socket, once.
    pub fn take_back(&self) -> io::Result<Option<VecDeque<Outbox>>> {
        let mut state = self.0.lock();
        if state.helped {
            return Ok(None);
        }
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        self.0.queued.store(0, Ordering::Relaxed);
        Ok(Some(mem::take(&mut state.waiting)))
    }

    /// Ready when a helper could not send all, or has less than `below` bytes left to send; with 1, when it has let go.
    pub fn poll_below(&self, context: &mut Context<'_>, below: u64) -> Poll<()> {
        self.0.wake_below.store(below, Ordering::Relaxed);
        self.0.waker.register(context.waker());
        let state = self.0.lock();
        let news = if state.helped {
            below > 1 && self.queued() < below
        } else {
            below > 0 || !state.waiting.is_empty() || state.error.is_some()
        };
        if news { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A helper's work: everything that is handed over until there is no more.
    fn send_all(&self) {
        let _release = ReleaseOnPanic(self);
        loop {
            let mut state = self.lock();
            let Some(mut outbox) = state.waiting.pop_front() else {
                state.helped = false;
                drop(state);
                return self.tell();
            };
            drop(state);
            let outcome = self.send(&mut outbox);
            let mut state = self.lock();
            match outcome {
                Ok(()) => state.spare.push(outbox),
                Err(error) => {
                    state.waiting.push_front(outbox);
                    state.helped = false;
                    state.error = (error.kind() != io::ErrorKind::WouldBlock).then_some(error);
                    drop(state);
                    return self.waker.wake();
                }
            }
            drop(state);
            self.tell();
        }
    }

    /// Tells the connection if it waits for no more than what is queued now.
    fn tell(&self) {
        if self.queued.load(Ordering::Relaxed) < self.wake_below.load(Ordering::Relaxed) {
            self.waker.wake();
        }
    }

    fn send(&self, outbox: &mut Outbox) -> io::Result<()> {
        while !outbox.is_empty() {
            let sent = self.socket.send_now(&outbox.slices())?;
            outbox.advance(sent);
            self.queued.fetch_sub(sent as u64, Ordering::Relaxed);
            self.sent.fetch_add(sent, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A fault of this program must not leave a connection that waits for ever.
struct ReleaseOnPanic<'a>(&'a Shared);

impl Drop for ReleaseOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.lock();
            state.helped = false;
            state.error = Some(io::Error::other("a fault of this program"));
            drop(state);
            self.0.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use disk_core::buf::Buf;
    use futures_util::poll;
    use tokio::net::UnixStream;

    use super::*;

    /// A lane, and the other end of its socket.
    fn lane() -> (Lane, std::os::unix::net::UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let theirs = theirs.into_std().expect("a socket");
        theirs.set_nonblocking(false).expect("a blocking socket");
        (Lane::new(Arc::new(Socket::Unix(ours))), theirs)
    }

    fn outbox(byte: u8, len: usize) -> Outbox {
        let mut outbox = Outbox::default();
        outbox.header(&[byte]);
        outbox.data(Buf::copy_from(&vec![byte; len]));
        outbox
    }

    /// Hands over as soon as a helper has nothing to do.
    async fn hand_over(lane: &Lane, outbox: &mut Outbox) {
        while !lane.hand_over(outbox, true) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_handed_over_is_sent_in_order_and_the_lane_is_free_again() {
        if Helpers::get().none() {
            return;
        }
        let (lane, mut client) = lane();
        let mut received = vec![0; 20 * 1001];
        for byte in 0..20 {
            let mut outbox = outbox(byte, 1000);
            hand_over(&lane, &mut outbox).await;
            assert!(outbox.is_empty(), "it is empty, to be filled again");
        }
        client.read_exact(&mut received).expect("all of it");
        assert!(received.chunks(1001).zip(0..).all(|(part, byte)| part.iter().all(|&got| got == byte)));
        std::future::poll_fn(|context| lane.poll_below(context, 1)).await;
        assert_eq!(lane.take_back().expect("no error").expect("free").len(), 0);
        assert_eq!(lane.queued(), 0);
        assert_eq!((lane.take_sent(), lane.take_sent()), (20 * 1001, 0), "told once");
    }

    #[tokio::test]
    async fn what_the_socket_does_not_take_comes_back_in_order_and_nobody_is_waited_for() {
        if Helpers::get().none() {
            return;
        }
        let (lane, mut client) = lane();
        let mut full = outbox(1, 4 << 20);
        hand_over(&lane, &mut full).await;
        // It may have come back already; then this one is not taken.
        let mut behind = outbox(2, 10);
        let taken = lane.hand_over(&mut behind, true);
        std::future::poll_fn(|context| lane.poll_below(context, 0)).await;
        let mut back = lane.take_back().expect("no error").expect("free");
        assert_eq!(back.len(), 1 + usize::from(taken));
        let sent = (4 << 20) + 1 - back[0].queued() as usize;
        assert!(0 < sent && sent < 4 << 20, "a part of it: {sent}");
        client.read_exact(&mut vec![0; sent]).expect("that part");
        assert_eq!(lane.queued(), 0, "what is back is not the lane's");
        assert!(lane.take_back().expect("no error").expect("free").is_empty(), "once");
        back.clear();

        drop(client);
        hand_over(&lane, &mut outbox(3, 10)).await;
        std::future::poll_fn(|context| lane.poll_below(context, 0)).await;
        lane.take_back().expect_err("nobody is there any more");
    }

    #[tokio::test]
    async fn who_does_not_want_to_know_is_not_woken_by_a_good_end() {
        let (lane, _client) = lane();
        assert!(poll!(std::future::poll_fn(|context| lane.poll_below(context, 0))).is_pending());
        assert!(poll!(std::future::poll_fn(|context| lane.poll_below(context, 1))).is_ready());
    }
}
