//! Listening sockets: binding them, and taking connections without ever spinning.
//!
//! Invariant: a listener never ends for a passing fault (no file descriptor left, a client that is gone already); it
//! waits and goes on.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use diskchain_config::plan::Listen;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::sd::NbdListener;
use crate::socket::Socket;

/// Connections that the kernel keeps waiting for us.
const BACKLOG: u32 = 256;

/// Pause after a fault that a retry at once would only repeat.
const PAUSE: Duration = Duration::from_millis(100);

/// Silence after which the kernel asks a TCP client for a sign of life.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Time between such questions, and how many without an answer end the connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// See [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_PROBES: u32 = 6;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// On a path; removed when dropped if we made it.
    Unix(UnixListener, #[expect(dead_code, reason = "held for its drop")] Option<BoundPath>),
    /// On TCP.
    Tcp(TcpListener),
}

/// A socket file that goes with its listener, unless another has taken its place.
#[derive(Debug)]
pub struct BoundPath {
    path: PathBuf,
    /// Which file it is, by device and inode.
    file: Option<(u64, u64)>,
}

impl BoundPath {
    fn new(path: &Path) -> BoundPath {
        BoundPath { path: path.to_owned(), file: identity(path) }
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        if identity(&self.path) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl Listener {
    /// Binds an address. A socket file that nobody listens on any more is replaced; any other file is not.
    ///
    /// # Errors
    /// What the system says; `AddrInUse` if somebody listens there.
    pub async fn bind(address: &Listen) -> io::Result<Listener> {
        match address {
            Listen::Unix(path) => {
                let (listener, bound) = bind_unix(path, 0o660).await?;
                Ok(Listener::Unix(listener, Some(bound)))
            }
            Listen::Tcp(host, port) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in tokio::net::lookup_host((host.as_str(), *port)).await? {
                    match bind_tcp(address) {
                        Ok(listener) => return Ok(Listener::Tcp(listener)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// The next connection. Only returns with one.
    pub async fn accept(&self) -> Socket {
        loop {
            let accepted = match self {
                Listener::Unix(listener, _) => {
                    listener.accept().await.map(|(stream, _)| Socket::Unix(stream))
                }
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // Replies are gathered already; waiting for more would only add to the latency.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    if let Err(error) = keep_alive(&stream) {
                        tracing::debug!(%error, "cannot have the kernel ask whether the client is still there");
                    }
                    Socket::Tcp(stream)
                }),
            };
            match accepted {
                Ok(socket) => return socket,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections for now");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The address, as a URI of the `nbd` scheme would say it, without an export name; `None` if it cannot be told.
    pub fn address(&self) -> Option<Listen> {
        match self {
            Listener::Unix(listener, _) => {
                Some(Listen::Unix(listener.local_addr().ok()?.as_pathname()?.to_owned()))
            }
            Listener::Tcp(listener) => {
                let address = listener.local_addr().ok()?;
                Some(Listen::Tcp(address.ip().to_string(), address.port()))
            }
        }
    }
}

impl TryFrom<NbdListener> for Listener {
    type Error = io::Error;

    /// A socket that the service manager listens on for us; its file is not ours to remove.
    fn try_from(inherited: NbdListener) -> io::Result<Self> {
        Ok(match inherited {
            NbdListener::Unix(listener) => Listener::Unix(UnixListener::from_std(listener)?, None),
            NbdListener::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
        })
    }
}

/// Has the kernel end the connection of a client whose machine is gone without a word: it would take a place for ever.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

/// Binds a Unix socket with the given mode.
///
/// # Errors
/// As [`Listener::bind`].
pub async fn bind_unix(path: &Path, mode: u32) -> io::Result<(UnixListener, BoundPath)> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !is_abandoned(path).await {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        outcome => outcome?,
    };
    let bound = BoundPath::new(path);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok((listener, bound))
}

/// Whether a path is a socket that a dead process left behind.
async fn is_abandoned(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .await
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn bind_tcp(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        std::net::SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
        std::net::SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The URI by which a client reaches an export at an address.
pub fn uri(address: &Listen, export: &str) -> String {
    let export = escape(export);
    match address {
        Listen::Unix(path) => format!("nbd+unix:///{export}?socket={}", escape(&path.to_string_lossy())),
        Listen::Tcp(host, port) if host.contains(':') => format!("nbd://[{host}]:{port}/{export}"),
        Listen::Tcp(host, port) => format!("nbd://{host}:{port}/{export}"),
    }
}

/// Percent-encodes what may not stand in the path or query of a URI.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/@+:".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_file_that_a_dead_daemon_left_is_replaced_but_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let address = Listen::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        let live = Listener::bind(&address).await.unwrap();
        assert_eq!(Listener::bind(&address).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(live);
        assert!(!path.exists(), "taken along");
    }

    #[tokio::test]
    async fn a_socket_of_another_daemon_that_has_taken_the_place_of_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let ours = Listener::bind(&Listen::Unix(path.clone())).await.unwrap();
        // As somebody does who takes the file for one that was left behind.
        std::fs::remove_file(&path).unwrap();
        let theirs = Listener::bind(&Listen::Unix(path.clone())).await.unwrap();
        drop(ours);
        let (_, accepted) = tokio::join!(theirs.accept(), UnixStream::connect(&path));
        accepted.expect("the other one is still reached");
        drop(theirs);
        assert!(!path.exists(), "it takes its own along");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(Listener::bind(&Listen::Unix(path.clone())).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn a_tcp_client_that_vanishes_without_a_word_is_found_out() {
        let listener = Listener::bind(&Listen::Tcp("127.0.0.1".into(), 0)).await.unwrap();
        let Some(Listen::Tcp(host, port)) = listener.address() else { panic!("it listens on TCP") };
        let (accepted, _client) = tokio::join!(listener.accept(), TcpStream::connect((host, port)));
        let Socket::Tcp(stream) = accepted else { panic!("it came by TCP") };
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), KEEPALIVE_IDLE);
    }

    #[test]
    fn uris_escape_what_a_path_may_hold() {
        let address = Listen::Unix("/run/my socks/nbd?.sock".into());
        assert_eq!(uri(&address, "a b"), "nbd+unix:///a%20b?socket=/run/my%20socks/nbd%3F.sock");
        assert_eq!(uri(&Listen::Tcp("::1".into(), 10809), "x"), "nbd://[::1]:10809/x");
    }
}
