//! Stream sockets, Unix and TCP, for both ends of the benchmark.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

/// A server that is silent for longer while requests are in flight, or takes nothing of one, hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port of this machine.
    Tcp(SocketAddr),
}

impl Address {
    /// The URI of an export, as libnbd and QEMU take it.
    pub fn uri(&self, export: &str) -> String {
        match self {
            Address::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Address::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// On a Unix socket.
    Unix(UnixStream),
    /// On TCP.
    Tcp(TcpStream),
}

impl Socket {
    /// Connects.
    ///
    /// # Errors
    /// What the system says.
    pub fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Socket::Unix(stream))
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Socket::Tcp(stream))
            }
        }
    }

    /// Receives what is there; waits for the first byte if `wait`. 0 is the end of the stream.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::WouldBlock`] if nothing is there, [`io::ErrorKind::TimedOut`] if nothing
    /// came however long it waited.
    pub fn receive(&self, into: &mut [u8], wait: bool) -> io::Result<usize> {
        let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        match recv(self, into, flags) {
            Ok((received, _)) => Ok(received),
            Err(Errno::AGAIN) if wait => Err(silence()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends what there is room for, without waiting.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::WouldBlock`] if there is no room.
    pub fn send(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(sendmsg(self, from, &mut SendAncillaryBuffer::default(), flags)?)
    }

    /// Waits until something can be received or, if `sends`, sent.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&self, sends: bool) -> io::Result<()> {
        let flags = if sends { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        match poll(&mut [PollFd::new(self, flags)], Some(&patience))? {
            0 => Err(silence()),
            _ => Ok(()),
        }
    }
}

fn silence() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("the server did nothing for {PATIENCE:?}"))
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(stream) => stream.as_fd(),
            Socket::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.read(into),
            Socket::Tcp(stream) => stream.read(into),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.write(from),
            Socket::Tcp(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
