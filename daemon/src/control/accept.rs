//! Connections of the control API: how many there may be, how long one may take, and who is at the other end.
//!
//! Invariant: a connection has [`PATIENCE`] from one answer to the next, however slowly it sends or reads, so that the
//! [`MOST`] places cannot be held by those who do nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Connections at once; others wait in the kernel's queue. Each costs a descriptor and some tens of KiB.
const MOST: usize = 64;

/// Time for a request to come in and its answer to be taken. Requests have a few hundred bytes and no handler works
/// longer than five seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause after a fault of accepting that a retry at once would only repeat.
const PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end, as the kernel knows it (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The process, if it can be told.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: u32,
}

impl Connected<IncomingStream<'_, Accept>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Accept>) -> Self {
        *stream.remote_addr()
    }
}

/// A listening socket with a bounded number of connections.
#[derive(Debug)]
pub struct Accept {
    listener: UnixListener,
    places: Arc<Semaphore>,
}

impl Accept {
    /// Over a listening socket.
    pub fn new(listener: UnixListener) -> Self {
        Accept { listener, places: Arc::new(Semaphore::new(MOST)) }
    }
}

impl Listener for Accept {
    type Io = Connection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Connection, Peer) {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the places are never closed");
        loop {
            let accepted = match self.listener.accept().await {
                Ok((stream, _)) => stream.peer_cred().map(|credentials| (stream, credentials)),
                Err(error) => Err(error),
            };
            match accepted {
                Ok((stream, credentials)) => {
                    let peer = Peer { pid: credentials.pid(), uid: credentials.uid() };
                    return (Connection::new(stream, place), peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept control connections for now");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { pid: None, uid: rustix::process::geteuid().as_raw() })
    }
}

/// A connection that breaks when its time is over.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Only bytes that are sent move it on: what a client sends byte by byte is no progress.
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: UnixStream, place: OwnedSemaphorePermit) -> Self {
        Connection { stream, end: Box::pin(tokio::time::sleep(PATIENCE)), _place: place }
    }

    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn sent(&mut self, outcome: io::Result<usize>) -> io::Result<usize> {
        if outcome.is_ok() {
            self.end.as_mut().reset(Instant::now() + PATIENCE);
        }
        outcome
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        let outcome = ready!(Pin::new(&mut self.stream).poll_write(cx, from));
        Poll::Ready(self.sent(outcome))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        let outcome = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, from));
        Poll::Ready(self.sent(outcome))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn pair(accept: &mut Accept, path: &std::path::Path) -> (UnixStream, Connection) {
        let (client, (connection, _)) =
            tokio::join!(async { UnixStream::connect(path).await.unwrap() }, accept.accept());
        (client, connection)
    }

    fn listen() -> (tempfile::TempDir, std::path::PathBuf, Accept) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let accept = Accept::new(UnixListener::bind(&path).unwrap());
        (dir, path, accept)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_byte_by_byte_is_cut_off_and_one_that_is_answered_is_not() {
        let (_dir, path, mut accept) = listen();
        let (mut client, mut connection) = pair(&mut accept, &path).await;
        let mut byte = [0];
        for second in 0..90 {
            client.write_all(b"x").await.unwrap();
            if second % 20 == 0 {
                connection.write_all(b"answer").await.unwrap();
            }
            connection.read_exact(&mut byte).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(PATIENCE).await;
        client.write_all(b"x").await.unwrap();
        let error = connection.read_exact(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn there_are_so_many_places_and_one_that_ends_frees_its_own() {
        let (_dir, path, mut accept) = listen();
        let mut open = Vec::new();
        for _ in 0..MOST {
            open.push(pair(&mut accept, &path).await);
        }
        let _one_more = UnixStream::connect(&path).await.unwrap();
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, accept.accept()).await.is_err(), "all places are taken");
        open.pop();
        accept.accept().await;
    }
}
