//! Attaches an export to /dev/nbdN through the kernel's netlink interface, which can replace dead
//! connections under a mounted file system: what nbd-client cannot do.
//!
//! ```text
//! nbd-attach connect     N SOCKET EXPORT CONNECTIONS    requests of dead connections wait a minute
//! nbd-attach reconfigure N SOCKET EXPORT CONNECTIONS    new connections take dead ones' places
//! nbd-attach disconnect  N
//! ```
//! Numbers are those of the kernel's linux/nbd-netlink.h and linux/genetlink.h. Invariant: the kernel
//! holds its own reference to the sockets, so this program ends when they are handed over.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use diskchain_tests::client::Client;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};

const GENERIC_CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_ATTR_FAMILY_ID: u16 = 1;
const CONTROL_ATTR_FAMILY_NAME: u16 = 2;

const NBD_CONNECT: u8 = 1;
const NBD_DISCONNECT: u8 = 2;
const NBD_RECONFIGURE: u8 = 3;
const NBD_ATTR_INDEX: u16 = 1;
const NBD_ATTR_SIZE_BYTES: u16 = 2;
const NBD_ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const NBD_ATTR_TIMEOUT: u16 = 4;
const NBD_ATTR_SERVER_FLAGS: u16 = 5;
const NBD_ATTR_SOCKETS: u16 = 7;
const NBD_ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const NBD_SOCK_ITEM: u16 = 1;
const NBD_SOCK_FD: u16 = 1;

const NETLINK_ERROR: u16 = 2;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const ATTR_NESTED: u16 = 1 << 15;
/// Netlink and generic netlink header.
const HEADER: usize = 16 + 4;

/// The kernel sends a request that was in flight on a dead connection again only after this long.
const REQUEST_SECONDS: u64 = 5;
const DEAD_CONNECTION_SECONDS: u64 = 60;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["connect", index, rest @ ..] => attach(NBD_CONNECT, index, rest),
        ["reconfigure", index, rest @ ..] => attach(NBD_RECONFIGURE, index, rest),
        ["disconnect", index] => detach(index),
        _ => Err(io::Error::other("usage: connect|reconfigure N SOCKET EXPORT CONNECTIONS, disconnect N")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd-attach: {error}");
            ExitCode::FAILURE
        }
    }
}

fn attach(command: u8, index: &str, rest: &[&str]) -> io::Result<()> {
    let [path, export, connections] = rest else { return Err(io::Error::other("too few arguments")) };
    let clients: Vec<Client> = (0..number(connections)?)
        .map(|_| Client::connect(Path::new(path), export))
        .collect::<io::Result<_>>()?;
    let first = clients.first().ok_or_else(|| io::Error::other("no connection asked for"))?;
    let (size, flags) = (first.size(), first.flags());
    let items: Vec<u8> = (clients.iter())
        .flat_map(|client| {
            let socket = client.as_raw_fd().cast_unsigned();
            attribute(NBD_SOCK_ITEM | ATTR_NESTED, &attribute(NBD_SOCK_FD, &socket.to_ne_bytes()))
        })
        .collect();
    let mut attributes = attribute(NBD_ATTR_INDEX, &(number(index)? as u32).to_ne_bytes());
    attributes.extend(attribute(NBD_ATTR_SIZE_BYTES, &size.to_ne_bytes()));
    attributes.extend(attribute(NBD_ATTR_BLOCK_SIZE_BYTES, &4096_u64.to_ne_bytes()));
    attributes.extend(attribute(NBD_ATTR_SERVER_FLAGS, &u64::from(flags).to_ne_bytes()));
    attributes.extend(attribute(NBD_ATTR_TIMEOUT, &REQUEST_SECONDS.to_ne_bytes()));
    attributes.extend(attribute(NBD_ATTR_DEAD_CONN_TIMEOUT, &DEAD_CONNECTION_SECONDS.to_ne_bytes()));
    attributes.extend(attribute(NBD_ATTR_SOCKETS | ATTR_NESTED, &items));
    Netlink::open()?.nbd(command, &attributes)
}

fn detach(index: &str) -> io::Result<()> {
    let index = number(index)? as u32;
    Netlink::open()?.nbd(NBD_DISCONNECT, &attribute(NBD_ATTR_INDEX, &index.to_ne_bytes()))
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| io::Error::other(format!("no number: {text}")))
}

/// One netlink attribute: length, kind, payload, padding to four bytes.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + payload.len()).expect("a short attribute");
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A generic netlink socket.
struct Netlink(OwnedFd);

impl Netlink {
    fn open() -> io::Result<Netlink> {
        Ok(Netlink(socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::GENERIC))?))
    }

    /// Sends `command` to the kernel's NBD driver and waits for its verdict.
    fn nbd(&self, command: u8, attributes: &[u8]) -> io::Result<()> {
        let family = self.nbd_family()?;
        self.request(family, FLAG_ACK, command, attributes)?;
        // NBD_CONNECT is answered with the device's index before its verdict.
        while self.answer()?.0 != NETLINK_ERROR {}
        Ok(())
    }

    fn nbd_family(&self) -> io::Result<u16> {
        let name = attribute(CONTROL_ATTR_FAMILY_NAME, b"nbd\0");
        self.request(GENERIC_CONTROL, 0, CONTROL_GET_FAMILY, &name)?;
        let (_, attributes) = self.answer()?;
        let mut rest = attributes.as_slice();
        while let [a, b, c, d, payload @ ..] = rest {
            let len = usize::from(u16::from_ne_bytes([*a, *b]));
            if u16::from_ne_bytes([*c, *d]) == CONTROL_ATTR_FAMILY_ID {
                let id = payload.first_chunk().ok_or_else(|| io::Error::other("a short family id"))?;
                return Ok(u16::from_ne_bytes(*id));
            }
            rest = rest.get(len.max(4).next_multiple_of(4)..).unwrap_or(&[]);
        }
        Err(io::Error::other("the kernel names no NBD family: is its nbd module loaded?"))
    }

    fn request(&self, family: u16, flags: u16, command: u8, attributes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(HEADER + attributes.len()).expect("a short message");
        let mut message = Vec::new();
        message.extend(len.to_ne_bytes());
        message.extend(family.to_ne_bytes());
        message.extend((FLAG_REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([command, 1, 0, 0]);
        message.extend(attributes);
        send(&self.0, &message, SendFlags::empty())?;
        Ok(())
    }

    /// The next message's kind and attributes; an error message that is no success is an error.
    fn answer(&self) -> io::Result<(u16, Vec<u8>)> {
        let mut message = [0; 8192];
        let (len, _) = recv(&self.0, &mut message[..], RecvFlags::empty())?;
        let message = &message[..len];
        let short = || io::Error::other("a short netlink message");
        let kind = message.get(4..6).ok_or_else(short)?;
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        if kind == NETLINK_ERROR {
            let error = message.get(16..).and_then(|rest| rest.first_chunk()).ok_or_else(short)?;
            return match i32::from_ne_bytes(*error) {
                0 => Ok((kind, Vec::new())),
                error => Err(io::Error::from_raw_os_error(-error)),
            };
        }
        Ok((kind, message.get(HEADER..).ok_or_else(short)?.to_vec()))
    }
}
