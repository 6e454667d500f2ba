//! The limit: what a server could do at best that only moves bytes of one raw file. No tracking, no accounts, no
//! throttle, no formats; system calls may block the connection's thread.
//!
//! Many requests in one receive, `pread` straight into the reply buffer, one send for all replies of a batch.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nbd_wire::{
    Abilities, BlockSize, Command, Denial, ExportInfo, Exports, Handshake, HeaderStyle, Progress, Request,
    Session,
};

/// Bytes of input that are kept: the largest write and a batch of small requests.
const INPUT: usize = 2 << 20;

/// Bytes of replies after which they are sent.
const REPLIES: usize = 1 << 20;

/// A raw file and the socket that it is served on.
pub struct Limit {
    file: File,
    size: u64,
    listener: UnixListener,
}

/// Opens `file` and listens on the Unix socket `path`.
///
/// # Errors
/// If the file cannot be opened or the socket not be made.
pub fn bind(file: &Path, path: &Path) -> io::Result<Limit> {
    let file = File::options().read(true).write(true).open(file)?;
    Ok(Limit { size: file.metadata()?.len(), file, listener: UnixListener::bind(path)? })
}

impl Limit {
    /// Serves, a thread for each connection, until the process ends.
    ///
    /// # Errors
    /// If no more connection can be taken.
    pub fn serve(&self) -> io::Result<()> {
        let size = self.size;
        for socket in self.listener.incoming() {
            let (socket, file) = (socket?, self.file.try_clone()?);
            std::thread::spawn(move || {
                // A client that breaks off is none of the limit's business.
                let _ =
                    negotiate(&socket, size).and_then(|(session, rest)| talk(socket, &file, &session, &rest));
            });
        }
        Ok(())
    }
}

struct OneExport(u64);

impl Exports for OneExport {
    fn list(&self) -> Option<Vec<(String, String)>> {
        None
    }

    fn find(&self, _: &str) -> Result<ExportInfo, Denial> {
        Ok(ExportInfo {
            name: String::new(),
            description: String::new(),
            size: self.0,
            abilities: Abilities { multi_conn: true, ..Abilities::default() },
            block_size: BlockSize { minimum: 1, preferred: 4096, maximum: 1 << 20 },
            contexts: Vec::new(),
        })
    }
}

fn negotiate(mut socket: &UnixStream, size: u64) -> io::Result<(Session, Vec<u8>)> {
    socket.write_all(&Handshake::greeting())?;
    let mut handshake = Handshake::default();
    let (mut input, mut output) = (Vec::new(), Vec::new());
    loop {
        let start = input.len();
        input.resize(start + 4096, 0);
        let received = socket.read(&mut input[start..])?;
        input.truncate(start + received);
        let (taken, progress) =
            handshake.feed(&input, &OneExport(size), &mut output).map_err(io::Error::other)?;
        socket.write_all(&output)?;
        output.clear();
        input.drain(..taken);
        match progress {
            Progress::Chosen(session) => return Ok((session, input)),
            Progress::More if received > 0 => {}
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn talk(mut socket: UnixStream, file: &File, session: &Session, rest: &[u8]) -> io::Result<()> {
    let mut input = vec![0; INPUT];
    input[..rest.len()].copy_from_slice(rest);
    let (mut start, mut end) = (0, rest.len());
    let mut replies = Replies { bytes: vec![0; 2 * REPLIES + 64], filled: 0 };
    loop {
        while let Some((request, header)) =
            Request::parse(&input[start..end], HeaderStyle::Compact).map_err(io::Error::other)?
        {
            let len = request.length as usize;
            let payload = if request.command == Command::Write { len } else { 0 };
            let Some(data) = input[start..end].get(header..header + payload) else { break };
            let reply = session.reply(request.cookie, request.offset);
            match request.command {
                Command::Read => {
                    replies.put(&reply.data(request.length));
                    file.read_exact_at(replies.room(len), request.offset)?;
                }
                Command::Write => {
                    file.write_all_at(data, request.offset)?;
                    replies.put(&reply.done());
                }
                Command::Flush => {
                    file.sync_data()?;
                    replies.put(&reply.done());
                }
                Command::Disconnect => return Ok(()),
                _ => return Err(io::ErrorKind::Unsupported.into()),
            }
            start += header + payload;
            if replies.filled >= REPLIES {
                replies.send(&mut socket)?;
            }
        }
        replies.send(&mut socket)?;
        input.copy_within(start..end, 0);
        (start, end) = (0, end - start);
        match socket.read(&mut input[end..])? {
            0 => return Ok(()),
            received => end += received,
        }
    }
}

struct Replies {
    bytes: Vec<u8>,
    filled: usize,
}

impl Replies {
    fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    fn room(&mut self, len: usize) -> &mut [u8] {
        let start = self.filled;
        self.filled += len;
        &mut self.bytes[start..self.filled]
    }

    fn send(&mut self, socket: &mut UnixStream) -> io::Result<()> {
        socket.write_all(&self.bytes[..self.filled])?;
        self.filled = 0;
        Ok(())
    }
}
