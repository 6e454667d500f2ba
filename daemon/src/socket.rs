//! A connected stream socket, Unix or TCP, for the batch loop: try first, then wait for readiness.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

/// A client's socket.
#[derive(Debug)]
pub enum Socket {
    /// On a Unix socket.
    Unix(UnixStream),
    /// On TCP.
    Tcp(TcpStream),
}

/// Bytes that a Unix socket is asked to take at once, as far as the system allows: otherwise 208 KiB, less than the replies
/// to 64 reads of 4 KiB. TCP finds the right size by itself.
const SEND_BUFFER: usize = 512 << 10;

impl Socket {
    /// Makes it hold larger batches of replies than it usually does.
    pub fn widen(&self) {
        if let Socket::Unix(stream) = self
            && let Err(error) = sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER)
        {
            // It is a wish: everything works as before, in smaller steps.
            tracing::debug!(%error, "the send buffer keeps its size");
        }
    }

    /// Reads what is there, without waiting. 0 is the end of the stream.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut received = 0;
        let receive = || {
            received = self.receive_now(into)?;
            // Less than there was room for: there is no more. The runtime is told so, and the next call need not ask the
            // kernel; what comes meanwhile is news to it.
            if received > 0 && received < into.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        };
        let outcome = match self {
            Socket::Unix(stream) => stream.try_io(Interest::READABLE, receive),
            Socket::Tcp(stream) => stream.try_io(Interest::READABLE, receive),
        };
        match outcome {
            Err(error) if received == 0 => Err(error),
            _ => Ok(received),
        }
    }

    /// The same past the runtime, which may not have heard yet of what is there.
    pub fn receive_now(&self, into: &mut [u8]) -> io::Result<usize> {
        let (_, received) = rustix::net::recv(self, into, RecvFlags::DONTWAIT)?;
        Ok(received)
    }

    /// Writes what there is room for, without waiting.
    pub fn try_write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.try_write_vectored(from),
            Socket::Tcp(stream) => stream.try_write_vectored(from),
        }
    }

    /// The same as [`Socket::try_write`] for a thread that is not the runtime's.
    pub fn send_now(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::sendmsg(self, from, &mut SendAncillaryBuffer::default(), flags)?)
    }

    /// Waits until reading or writing is worth a try.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Socket::Unix(stream) => stream.ready(interest).await,
            Socket::Tcp(stream) => stream.ready(interest).await,
        }
    }

    /// Reads at least one byte; 0 is the end of the stream.
    pub async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            self.ready(Interest::READABLE).await?;
            match self.try_read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
        }
    }

    /// Writes all of `from`.
    pub async fn write_all(&self, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            self.ready(Interest::WRITABLE).await?;
            match self.try_write(&[IoSlice::new(from)]) {
                Ok(written) => from = &from[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the other end is closed, without reading what may still be there.
    pub fn is_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(self, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(gone)
    }

    /// Whether something has come that was not read yet.
    pub fn holds_more(&self) -> bool {
        self.unread() > 0
    }

    fn unread(&self) -> usize {
        rustix::io::ioctl_fionread(self).map_or(0, |unread| usize::try_from(unread).unwrap_or(0))
    }

    /// What has come and was not read yet, which stays there.
    pub fn peek_all(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.unread()];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (_, len) = rustix::net::recv(self, &mut bytes[..], flags).unwrap_or((0, 0));
        bytes.truncate(len);
        bytes
    }

    /// The transport's name for status and metrics.
    pub fn transport(&self) -> &'static str {
        match self {
            Socket::Unix(_) => "unix",
            Socket::Tcp(_) => "tcp",
        }
    }

    /// Who is at the other end: address and port, or the process of a Unix socket.
    pub fn peer(&self) -> String {
        match self {
            Socket::Unix(stream) => match stream.peer_cred() {
                Ok(credentials) => match credentials.pid() {
                    Some(pid) => format!("pid {pid} uid {}", credentials.uid()),
                    None => format!("uid {}", credentials.uid()),
                },
                Err(_) => "unknown".into(),
            },
            Socket::Tcp(stream) => {
                stream.peer_addr().map_or_else(|_| "unknown".into(), |address| address.to_string())
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(stream) => stream.as_fd(),
            Socket::Tcp(stream) => stream.as_fd(),
        }
    }
}
