//! The self-test: a second implementation of NBD, the `nbd` crate, reads a disk's first and last block through the very
//! code that serves clients. The daemon runs it when it starts, and when the control API asks for it.
//!
//! Invariant: nothing is written, and a disk that does not answer fails the test in bounded time.

use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

use nbd_wire::consts::{handshake_flags, option};
use nbd_wire::{Command, CommandFlags, HeaderStyle, Request};

use crate::server::{Caller, Server};
use crate::socket::Socket;

/// How long one disk has to answer. A disk on slow storage takes a second or two for two cold reads.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads the first and the last block of an export.
///
/// # Errors
/// What went wrong, in words.
pub async fn run(server: &Arc<Server>, export: &str) -> Result<(), String> {
    let (ours, theirs) = tokio::net::UnixStream::pair().map_err(|error| error.to_string())?;
    server.adopt(Socket::Unix(ours), Caller::SelfTest);
    let theirs = theirs.into_std().map_err(|error| error.to_string())?;
    let name = export.to_owned();
    let test = tokio::task::spawn_blocking(move || {
        theirs.set_nonblocking(false)?;
        theirs.set_read_timeout(Some(PATIENCE))?;
        theirs.set_write_timeout(Some(PATIENCE))?;
        read_ends(theirs, &name)
    });
    match test.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("export {export}: the self-test failed: {error}")),
        Err(_) => Err(format!("export {export}: the self-test was interrupted")),
    }
}

/// The crate's client writes its headers field by field, and reads as it likes: both are gathered here.
struct Gathered<S> {
    reader: BufReader<S>,
    unsent: Vec<u8>,
}

impl<S: Read + Write> Read for Gathered<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.flush()?;
        self.reader.read(into)
    }
}

impl<S: Read + Write> Write for Gathered<S> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.unsent.extend_from_slice(from);
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.reader.get_mut().write_all(&self.unsent)?;
        self.unsent.clear();
        Ok(())
    }
}

/// Reads the first and the last block of an export over a connected socket, which has time-outs.
fn read_ends(socket: impl Read + Write, export: &str) -> io::Result<()> {
    let mut socket = Gathered { reader: BufReader::new(socket), unsent: Vec::new() };
    let export = nbd::client::handshake(&mut socket, export.as_bytes())?;
    let size = export.size;
    let mut disk = nbd::client::NbdClient::new(&mut socket, &export);
    let mut block = vec![0; size.min(512) as usize];
    if !block.is_empty() {
        disk.read_exact(&mut block)?;
        disk.seek(SeekFrom::Start(size - block.len() as u64))?;
        disk.read_exact(&mut block)?;
    }
    // The crate's client has no way to say goodbye.
    let goodbye = Request {
        flags: CommandFlags::default(),
        command: Command::Disconnect,
        cookie: 0,
        offset: 0,
        length: 0,
    };
    let mut bytes = Vec::new();
    goodbye.encode(HeaderStyle::Compact, &mut bytes);
    socket.write_all(&bytes)?;
    socket.flush()
}

/// Comes as a client does and leaves in due form without an export, over a connected socket, which has time-outs.
///
/// # Errors
/// What went wrong.
pub fn greet(mut socket: impl Read + Write) -> io::Result<()> {
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting)?;
    let flags = nbd_wire::client::greeting(&greeting).map_err(io::Error::other)?;
    let mut leave = u32::from(flags & (handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES))
        .to_be_bytes()
        .to_vec();
    nbd_wire::client::option(option::ABORT, &[], &mut leave);
    socket.write_all(&leave)?;
    // Until it has heard of it: to close at once could be taken for a broken connection.
    socket.take(4096).read_to_end(&mut Vec::new()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use disk_core::format;
    use disk_core::storage::MemStorage;
    use disk_core::throttle::Throttle;
    use diskchain_config::DefaultSockets;

    use super::*;
    use crate::disk::Disk;
    use crate::manager::Manager;

    async fn server() -> Arc<Server> {
        let text = "[disk.disk]\nfile = \"/disk\"\n".to_owned();
        let checked = diskchain_config::check(Path::new("/c.toml"), text, &DefaultSockets::system());
        let plan = checked.expect("a good configuration").plan;
        let storage = Arc::new(MemStorage::new(1 << 20));
        let layer = format::find("raw").expect("a format").open(storage, false).await.expect("it opens");
        let top = plan.disk("disk").expect("it is there").clone();
        let (files, throttle) = (vec![top.top().file.clone()], Throttle::new(Default::default(), None));
        let disk =
            Disk::new(top, files, vec![layer], throttle.into(), Default::default(), Default::default());
        Server::new(Arc::new(Manager::new(plan.server, vec![disk], Default::default(), plan.exports)))
    }

    /// Whoever has an ephemeral disk goes by the list: what is not in it holds no overlay.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_self_test_is_in_the_list_of_clients_as_long_as_it_holds_the_disk() {
        let server = server().await;
        let (ours, theirs) = tokio::net::UnixStream::pair().expect("a socket pair");
        server.adopt(Socket::Unix(ours), Caller::SelfTest);
        let theirs = theirs.into_std().expect("a socket");
        let connected = tokio::task::spawn_blocking(move || {
            theirs.set_nonblocking(false).expect("a blocking socket");
            let mut socket = Gathered { reader: BufReader::new(theirs), unsent: Vec::new() };
            let export = nbd::client::handshake(&mut socket, b"disk").expect("a handshake");
            let mut disk = nbd::client::NbdClient::new(&mut socket, &export);
            disk.read_exact(&mut [0; 512]).expect("it is being served");
            socket
        });
        let connected = connected.await.expect("no panic");
        assert_eq!(server.manager().clients().len(), 1);
        drop(connected);
        while !server.manager().clients().is_empty() {
            tokio::task::yield_now().await;
        }
        run(&server, "disk").await.expect("the disk can be read");
    }
}
