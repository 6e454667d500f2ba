//! Reads a whole disk from a server and compares every byte with what has to stand there.

use std::io::{self, BufReader, Read, Write};

use nbd_wire::client::{Chunk, ReplyHeader};
use nbd_wire::consts::chunk;
use nbd_wire::{Command, HeaderStyle};

use crate::client::{Client, request};
use crate::content::{Content, REQUEST_MOST, Record};
use crate::socket::Address;

/// Reads the disk behind `address` and checks it against `record`.
///
/// # Errors
/// If a byte is wrong, or the server fails.
pub fn verify(address: &Address, structured: bool, content: &Content, record: &mut Record) -> io::Result<()> {
    let mut client = Client::connect(address, structured)?;
    if client.size != record.size() {
        return Err(io::Error::other(format!("a disk of {} bytes has {}", record.size(), client.size)));
    }
    let mut data = vec![0; REQUEST_MOST];
    let mut input = BufReader::with_capacity(64 << 10, client.socket);
    for offset in (0..record.size()).step_by(REQUEST_MOST) {
        let len = REQUEST_MOST.min((record.size() - offset) as usize);
        let mut bytes = Vec::new();
        request(Command::Read, offset, offset, len as u64).encode(HeaderStyle::Compact, &mut bytes);
        input.get_mut().write_all(&bytes)?;
        receive(&mut input, offset, &mut data[..len])?;
        if !record.check(content, offset, &data[..len]) {
            return Err(io::Error::other(format!("wrong data in the mebibyte at {offset}")));
        }
    }
    client.socket = input.into_inner();
    client.leave()
}

/// Receives the reply to a read of `data.len()` bytes at `offset`, whose cookie is the offset too.
fn receive(input: &mut impl Read, offset: u64, data: &mut [u8]) -> io::Result<()> {
    let mut left = data.len();
    loop {
        match header(input)? {
            ReplyHeader::Simple { errno: 0, cookie } if cookie == offset => return input.read_exact(data),
            ReplyHeader::Chunk { flags, kind, cookie, len, .. }
                if cookie == offset && len as usize <= 8 + data.len() =>
            {
                let mut payload = vec![0; len as usize];
                input.read_exact(&mut payload)?;
                left -= match Chunk::parse(kind, &payload).map_err(io::Error::other)? {
                    Chunk::Data { offset: at, data: bytes } => {
                        place(data, at - offset, bytes.len())?.copy_from_slice(bytes);
                        bytes.len()
                    }
                    Chunk::Hole { offset: at, len } => {
                        place(data, at - offset, len as usize)?.fill(0);
                        len as usize
                    }
                    Chunk::None => 0,
                    other => return Err(io::Error::other(format!("a read was answered by {other:?}"))),
                };
                if flags & chunk::DONE != 0 {
                    return if left == 0 { Ok(()) } else { Err(io::Error::other("a read came back short")) };
                }
            }
            other => return Err(io::Error::other(format!("a read was answered by {other:?}"))),
        }
    }
}

fn place(data: &mut [u8], at: u64, len: usize) -> io::Result<&mut [u8]> {
    let range = usize::try_from(at).ok().and_then(|at| Some(at..at.checked_add(len)?));
    range.and_then(|range| data.get_mut(range)).ok_or_else(|| io::Error::other("data past the read"))
}

/// A reply's header, of which only the first bytes tell how long it is.
fn header(input: &mut impl Read) -> io::Result<ReplyHeader> {
    let mut bytes = vec![0; 16];
    input.read_exact(&mut bytes)?;
    loop {
        if let Some((header, _)) = ReplyHeader::parse(&bytes).map_err(io::Error::other)? {
            return Ok(header);
        }
        bytes.push(0);
        let last = bytes.len() - 1;
        input.read_exact(&mut bytes[last..])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_server_with_one_wrong_byte_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let (file, socket) = (dir.path().join("image.raw"), dir.path().join("socket"));
        let content = Content::new();
        let size = 3 * REQUEST_MOST as u64;
        content.fill(&file, size).unwrap();
        let listens = limit::bind(&file, &socket).unwrap();
        std::thread::spawn(move || listens.serve());
        let address = Address::Unix(socket);
        for structured in [false, true] {
            verify(&address, structured, &content, &mut Record::full(size)).unwrap();
        }
        let file = File::options().write(true).open(file).unwrap();
        file.write_all_at(b"?", size - 5000).unwrap();
        for structured in [false, true] {
            let error = verify(&address, structured, &content, &mut Record::full(size)).unwrap_err();
            assert!(error.to_string().contains("wrong data"), "{error}");
        }
    }
}
