//! A small NBD client: fixed newstyle, NBD_OPT_GO, simple replies – what the Linux kernel speaks.
//!
//! Written from the protocol text alone, independent of the daemon's own code. Invariant: every
//! request has its own cookie, and a reply is matched to its request by that cookie only, so many
//! requests may be in flight.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

/// NBD_FLAG_READ_ONLY
pub const FLAG_READ_ONLY: u16 = 1 << 1;
/// NBD_FLAG_SEND_TRIM: without it a client must not trim.
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
/// NBD_FLAG_CAN_MULTI_CONN
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

/// Nobody's reply takes longer: a server that does not answer fails the test.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A request, without its cookie. Offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// NBD_CMD_READ
    Read {
        /// Where.
        offset: u64,
        /// How much.
        len: u32,
    },
    /// NBD_CMD_WRITE
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
        /// Durable before the reply.
        fua: bool,
    },
    /// NBD_CMD_FLUSH
    Flush,
    /// NBD_CMD_TRIM
    Trim {
        /// Where.
        offset: u64,
        /// How much.
        len: u32,
    },
    /// NBD_CMD_WRITE_ZEROES
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How much.
        len: u32,
        /// NBD_CMD_FLAG_NO_HOLE: stay allocated.
        no_hole: bool,
    },
    /// Any command by its number, without payload.
    Other {
        /// The number.
        command: u16,
        /// Where.
        offset: u64,
        /// How much.
        len: u32,
    },
}

/// An answered request: its cookie, and the bytes read or the NBD error number.
pub type Reply = (u64, Result<Vec<u8>, u32>);

/// One connection in transmission phase.
pub struct Client {
    stream: UnixStream,
    size: u64,
    flags: u16,
    next_cookie: u64,
    /// The length that a read asked for, 0 for all else.
    in_flight: HashMap<u64, u32>,
}

impl Client {
    /// Connects to the server on `socket` and asks for `export`.
    ///
    /// # Errors
    /// When the connection breaks, or the server refuses (kind `Other`, with the server's words).
    pub fn connect(socket: &Path, export: &str) -> io::Result<Client> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        greet(&mut stream)?;
        let (size, flags) = go(&mut stream, export)?;
        Ok(Client { stream, size, flags, next_cookie: 1, in_flight: HashMap::new() })
    }

    /// The export's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The transmission flags.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// How many requests wait for their reply.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends `request` and returns its cookie without waiting.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn send(&mut self, request: &Request) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let (command, flags, offset, len, data): (u16, u16, u64, u32, &[u8]) = match request {
            Request::Read { offset, len } => (0, 0, *offset, *len, &[]),
            Request::Write { offset, data, fua } => {
                let len = u32::try_from(data.len()).expect("a write of less than 4 GiB");
                (1, u16::from(*fua), *offset, len, data)
            }
            Request::Flush => (3, 0, 0, 0, &[]),
            Request::Trim { offset, len } => (4, 0, *offset, *len, &[]),
            Request::WriteZeroes { offset, len, no_hole } => {
                (6, u16::from(*no_hole) << 1, *offset, *len, &[])
            }
            Request::Other { command, offset, len } => (*command, 0, *offset, *len, &[]),
        };
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend(REQUEST_MAGIC.to_be_bytes());
        message.extend(flags.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(len.to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)?;
        let expected = if matches!(request, Request::Read { .. }) { len } else { 0 };
        self.in_flight.insert(cookie, expected);
        Ok(cookie)
    }

    /// Waits for the next reply, of whichever request.
    ///
    /// # Errors
    /// When the connection breaks, or the server sends what is no reply to a request in flight.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let magic = u32::from_be_bytes(self.take()?);
        let error = u32::from_be_bytes(self.take()?);
        let cookie = u64::from_be_bytes(self.take()?);
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(invalid(format!("reply magic {magic:#x}")));
        }
        let len = self
            .in_flight
            .remove(&cookie)
            .ok_or_else(|| invalid(format!("a reply to cookie {cookie}, which is not in flight")))?;
        if error != 0 {
            return Ok((cookie, Err(error)));
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok((cookie, Ok(data)))
    }

    /// The connection itself, for what no well-behaved client does.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends `request` and waits for its answer. No other request may be in flight.
    ///
    /// # Errors
    /// When the connection breaks, or the server answers with an error (kind `Other`).
    pub fn call(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        assert!(self.in_flight.is_empty(), "call() waits for one request only");
        self.send(request)?;
        let (_, result) = self.receive()?;
        result.map_err(|error| {
            let mut request = format!("{request:?}");
            request.truncate(120);
            io::Error::other(format!("NBD error {error} to {request}"))
        })
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn read(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        self.call(&Request::Read { offset, len })
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(&Request::Write { offset, data: data.to_vec(), fua: false }).map(drop)
    }

    /// Makes all that was acknowledged durable.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.call(&Request::Flush).map(drop)
    }

    /// Says goodbye (NBD_CMD_DISC) and waits until the server has closed.
    ///
    /// # Errors
    /// When the connection breaks in another way.
    pub fn disconnect(mut self) -> io::Result<()> {
        let mut message = Vec::with_capacity(28);
        message.extend(REQUEST_MAGIC.to_be_bytes());
        message.extend(2_u32.to_be_bytes());
        message.extend([0; 20]);
        self.stream.write_all(&message)?;
        match self.stream.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(invalid("a reply to NBD_CMD_DISC".to_owned())),
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        take(&mut self.stream)
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// Reads the server's greeting and agrees on fixed newstyle without the zero padding.
fn greet(stream: &mut UnixStream) -> io::Result<()> {
    let magics = (u64::from_be_bytes(take(stream)?), u64::from_be_bytes(take(stream)?));
    if magics != (NBD_MAGIC, OPTION_MAGIC) {
        return Err(invalid(format!("greeting {magics:x?}")));
    }
    let server_flags = u16::from_be_bytes(take(stream)?);
    if server_flags & 3 != 3 {
        return Err(invalid(format!("handshake flags {server_flags:#x}")));
    }
    stream.write_all(&3_u32.to_be_bytes())
}

/// NBD_OPT_GO: the export's size and transmission flags.
fn go(stream: &mut UnixStream, export: &str) -> io::Result<(u64, u16)> {
    let name_len = u32::try_from(export.len()).expect("a short export name");
    let mut message = Vec::new();
    message.extend(OPTION_MAGIC.to_be_bytes());
    message.extend(OPT_GO.to_be_bytes());
    message.extend((name_len + 6).to_be_bytes());
    message.extend(name_len.to_be_bytes());
    message.extend(export.as_bytes());
    message.extend(0_u16.to_be_bytes());
    stream.write_all(&message)?;
    let mut info = None;
    loop {
        let (kind, data) = option_reply(stream)?;
        match (kind, data.as_slice()) {
            (REP_ACK, _) => {
                return info.ok_or_else(|| invalid("NBD_REP_ACK without NBD_INFO_EXPORT".into()));
            }
            (REP_INFO, [high, low, rest @ ..]) if u16::from_be_bytes([*high, *low]) == INFO_EXPORT => {
                let (size, flags) =
                    rest.split_first_chunk().ok_or_else(|| invalid("short NBD_INFO_EXPORT".into()))?;
                let flags = flags.try_into().map_err(|_| invalid("odd NBD_INFO_EXPORT".into()))?;
                info = Some((u64::from_be_bytes(*size), u16::from_be_bytes(flags)));
            }
            (REP_INFO, _) => {}
            (kind, words) if kind & REP_ERROR != 0 => {
                let words = String::from_utf8_lossy(words);
                return Err(io::Error::other(format!("NBD_OPT_GO refused: {kind:#x} {words}")));
            }
            (kind, _) => return Err(invalid(format!("option reply {kind:#x}"))),
        }
    }
}

fn option_reply(stream: &mut UnixStream) -> io::Result<(u32, Vec<u8>)> {
    let magic = u64::from_be_bytes(take(stream)?);
    let option = u32::from_be_bytes(take(stream)?);
    let kind = u32::from_be_bytes(take(stream)?);
    let len = u32::from_be_bytes(take(stream)?);
    if magic != OPTION_REPLY_MAGIC || option != OPT_GO || len > 65536 {
        return Err(invalid(format!("option reply {magic:#x} to {option} of {len} bytes")));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
