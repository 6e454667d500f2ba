//! The outcome of one storage operation: there already, or coming from an engine.
//!
//! Invariant: a completion resolves exactly once; if its engine dies first it resolves to an error.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};

/// A future for the outcome of a storage operation. Dropping it stops nothing.
#[derive(Debug)]
#[must_use = "an operation's outcome, its failure above all, must be looked at"]
pub struct Completion<T>(State<T>);

#[derive(Debug)]
enum State<T> {
    Ready(Option<Result<T>>),
    Pending(oneshot::Receiver<Result<T>>),
}

impl<T> Completion<T> {
    /// An outcome that is known.
    pub fn ready(outcome: Result<T>) -> Self {
        Completion(State::Ready(Some(outcome)))
    }

    /// The outcome, if it is there already. To be asked once, before it is awaited.
    pub fn now(&mut self) -> Option<Result<T>> {
        match &mut self.0 {
            State::Ready(outcome) => outcome.take(),
            State::Pending(_) => None,
        }
    }

    /// An outcome that somebody else will bring.
    pub fn pending() -> (Completer<T>, Self) {
        let (sender, receiver) = oneshot::channel();
        (Completer(sender), Completion(State::Pending(receiver)))
    }
}

impl<T> Unpin for Completion<T> {}

impl<T> Future for Completion<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        match &mut self.0 {
            State::Ready(outcome) => Poll::Ready(outcome.take().expect("polled after it was ready")),
            State::Pending(receiver) => Poll::Ready(
                ready!(Pin::new(receiver).poll(cx))
                    .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "the I/O engine stopped"))),
            ),
        }
    }
}

/// The other end of a pending [`Completion`].
#[derive(Debug)]
pub struct Completer<T>(oneshot::Sender<Result<T>>);

impl<T> Completer<T> {
    /// Delivers the outcome. If nobody waits any more it is dropped.
    pub fn complete(self, outcome: Result<T>) {
        let _ = self.0.send(outcome);
    }
}
