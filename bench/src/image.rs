//! The files that servers are measured on: made once, full of generation 0, and their records.
//!
//! Invariant: all peers of a case get the same file, one after the other.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_wire::client::ReplyHeader;
use nbd_wire::{Command as NbdCommand, HeaderStyle};

use crate::case::{Case, Image, Peer, Place};
use crate::client::{Client, request};
use crate::content::{Content, REQUEST_MOST, Record};
use crate::server::Server;
use crate::workload::Pattern;

/// Images of a chain.
const HEIGHT: usize = 10;

/// The files of an image, base first.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    /// Base first.
    pub layers: Vec<PathBuf>,
    /// `raw` or `vdi`.
    pub format: &'static str,
}

impl ImageFiles {
    fn one(path: PathBuf, format: &'static str) -> Self {
        ImageFiles { layers: vec![path], format }
    }

    /// The file that is written.
    pub fn top(&self) -> &Path {
        self.layers.last().expect("an image has a file")
    }
}

/// All images of a run.
pub struct Images {
    diskchain: PathBuf,
    memory: PathBuf,
    disk: PathBuf,
    size: u64,
    made: HashMap<(Image, Place), (ImageFiles, Record)>,
}

impl Images {
    /// Images of `size` bytes in two folders, made by the daemon's binary when they are first wanted.
    pub fn new(diskchain: &Path, memory: &Path, disk: &Path, size: u64) -> Self {
        Images {
            diskchain: diskchain.to_owned(),
            memory: memory.to_owned(),
            disk: disk.to_owned(),
            size,
            made: HashMap::new(),
        }
    }

    /// The image that `peer` is to serve in `case`, and what stands on it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn get(
        &mut self,
        case: &Case,
        peer: Peer,
        content: &Content,
    ) -> io::Result<&mut (ImageFiles, Record)> {
        let key = key(case, peer);
        if key.0 == Image::EmptyVdi || !self.made.contains_key(&key) {
            let made = self.make(key.0, key.1, content)?;
            self.made.insert(key, made);
        }
        Ok(self.made.get_mut(&key).expect("it was made"))
    }

    /// The next one who wants this image gets a new one.
    pub fn forget(&mut self, case: &Case, peer: Peer) {
        for path in self.made.remove(&key(case, peer)).into_iter().flat_map(|(files, _)| files.layers) {
            // It may not have come to be.
            let _ = fs::remove_file(path);
        }
    }

    /// A raw file full of generation 0 that no server is given.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn source(&self, content: &Content) -> io::Result<PathBuf> {
        let path = self.memory.join("source.raw");
        if !path.exists() {
            content.fill(&path, self.size)?;
        }
        Ok(path)
    }

    fn make(&self, image: Image, place: Place, content: &Content) -> io::Result<(ImageFiles, Record)> {
        let dir = if place == Place::Memory { &self.memory } else { &self.disk };
        let full = Record::full(self.size);
        match image {
            Image::Raw => {
                let path = dir.join("image.raw");
                content.fill(&path, self.size)?;
                Ok((ImageFiles::one(path, "raw"), full))
            }
            Image::Vdi => {
                let files = ImageFiles::one(dir.join("image.vdi"), "vdi");
                self.create(&files.layers[0], None)?;
                self.write(&files, content, |_| true)?;
                Ok((files, full))
            }
            Image::EmptyVdi => {
                let path = dir.join("empty.vdi");
                let _ = fs::remove_file(&path);
                self.create(&path, None)?;
                Ok((ImageFiles::one(path, "vdi"), Record::empty(self.size)))
            }
            Image::Chain => {
                let mut files = ImageFiles { layers: Vec::new(), format: "vdi" };
                for height in 0..HEIGHT {
                    let path = dir.join(format!("chain-{height}.vdi"));
                    self.create(&path, files.layers.last().map(PathBuf::as_path))?;
                    files.layers.push(path);
                    self.write(&files, content, |number| number % HEIGHT == height)?;
                }
                Ok((files, full))
            }
        }
    }

    fn create(&self, path: &Path, parent: Option<&Path>) -> io::Result<()> {
        let mut command = Command::new(&self.diskchain);
        command.args(["image", "create"]).arg(path);
        match parent {
            Some(parent) => command.arg("--parent").arg(parent),
            None => command.arg("--size").arg(self.size.to_string()),
        };
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))))
    }

    /// Writes generation 0 to those mebibytes of an image that are `wanted`, through the daemon.
    fn write(&self, files: &ImageFiles, content: &Content, wanted: impl Fn(usize) -> bool) -> io::Result<()> {
        let case = Case::new(Image::Vdi, Pattern::WriteSequential, REQUEST_MOST as u64 >> 10, 1);
        let server = Server::start(&self.diskchain, Peer::Diskchain, &case, files, &self.memory)?;
        let mut client = Client::connect(server.address(), false)?;
        for (number, at) in (0..self.size).step_by(REQUEST_MOST).enumerate() {
            if wanted(number) {
                let len = REQUEST_MOST.min((self.size - at) as usize);
                write(&mut client, at, content.at(0, at, len))?;
            }
        }
        client.leave()
    }
}

fn key(case: &Case, peer: Peer) -> (Image, Place) {
    (if peer == Peer::DiskchainOneImage { Image::Vdi } else { case.image }, case.place)
}

/// Writes, and waits for the answer.
fn write(client: &mut Client, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::new();
    request(NbdCommand::Write, 0, offset, data.len() as u64).encode(HeaderStyle::Compact, &mut bytes);
    client.socket.write_all(&bytes)?;
    client.socket.write_all(data)?;
    let mut reply = [0; 16];
    io::Read::read_exact(&mut client.socket, &mut reply)?;
    match ReplyHeader::parse(&reply).map_err(io::Error::other)? {
        Some((ReplyHeader::Simple { errno: 0, .. }, _)) => Ok(()),
        other => Err(io::Error::other(format!("a write was answered by {other:?}"))),
    }
}
