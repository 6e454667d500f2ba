//! Work that many want at once and one does for all: a round takes up everybody who has come by its start; who comes
//! later waits for the next round. Rounds follow one another, never two at once.
//!
//! Invariant: a round runs to its end whether or not anybody still waits for it, and everybody in it gets its outcome.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};

/// Rounds of one kind of work, each over the items of those who joined it.
pub struct Group<T> {
    state: Arc<Mutex<State<T>>>,
}

struct State<T> {
    running: bool,
    joined: Vec<(T, oneshot::Sender<Result<()>>)>,
}

impl<T: Send + 'static> Group<T> {
    /// No round under way.
    pub fn new() -> Self {
        Group { state: Arc::new(Mutex::new(State { running: false, joined: Vec::new() })) }
    }

    /// Joins the next round and returns its outcome. `work` does a round; it is the same for all who join. The round
    /// counts on `item` from this call on, whether or not the future is awaited.
    pub fn join<W>(&self, item: T, work: W) -> impl Future<Output = Result<()>> + Send + use<T, W>
    where
        W: Fn(Vec<T>) -> BoxFuture<'static, Result<()>> + Send + 'static,
    {
        let (sender, outcome) = oneshot::channel();
        let mut state = lock(&self.state);
        state.joined.push((item, sender));
        if !std::mem::replace(&mut state.running, true) {
            tokio::spawn(run(Running { state: Arc::clone(&self.state), ended: false }, work));
        }
        drop(state);
        async move {
            outcome.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Fault, "the image's writer stopped")))
        }
    }
}

async fn run<T, W>(mut running: Running<T>, work: W)
where
    W: Fn(Vec<T>) -> BoxFuture<'static, Result<()>>,
{
    while let Some((items, waiting)) = running.next() {
        let outcome = work(items).await;
        for waiter in waiting {
            // Who no longer waits does not hear of it.
            let _ = waiter.send(outcome.clone());
        }
    }
}

/// The right to run rounds. If it is dropped early, by a panic, those who wait get an error and others may go on.
struct Running<T> {
    state: Arc<Mutex<State<T>>>,
    ended: bool,
}

/// The items of a round, and those who wait for its outcome.
type Round<T> = (Vec<T>, Vec<oneshot::Sender<Result<()>>>);

impl<T> Running<T> {
    /// Everybody who has joined by now; `None` ends the running.
    fn next(&mut self) -> Option<Round<T>> {
        let mut state = lock(&self.state);
        state.running = !state.joined.is_empty();
        self.ended = !state.running;
        state.running.then(|| state.joined.drain(..).unzip())
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if !self.ended {
            let mut state = lock(&self.state);
            state.running = false;
            state.joined.clear();
        }
    }
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
