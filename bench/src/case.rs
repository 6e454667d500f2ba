//! What is measured: the cases, and who takes part in each.

use serde::Serialize;

use crate::program::Program;
use crate::workload::{Pattern, Workload};

/// What lies under the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Image {
    /// A raw file.
    Raw,
    /// A dynamic VDI whose blocks are all there.
    Vdi,
    /// A dynamic VDI without any block, new for every run.
    EmptyVdi,
    /// A VDI and nine differencing ones over it, the blocks spread evenly over all ten.
    Chain,
}

/// Where the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A file system in memory.
    Memory,
    /// A file system on a disk.
    Disk,
}

/// Whether the host's page cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// It is, and holds all of the file.
    Page,
    /// It is passed by (O_DIRECT).
    Direct,
}

/// How clients connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// A Unix socket.
    Unix,
    /// TCP over the loopback interface.
    Tcp,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// This project's daemon, with tracking, accounts and a throttle that is never reached.
    Diskchain,
    /// The daemon over the single VDI, to compare a chain with.
    DiskchainOneImage,
    /// A bare batch loop over a raw file: see `limit`.
    Limit,
    /// nbdkit with its file plugin.
    Nbdkit,
    /// qemu-nbd with its thread pool.
    QemuThreads,
    /// qemu-nbd with io_uring.
    QemuUring,
    /// nbd-server of the NBD project.
    NbdServer,
    /// No server at all: fio's io_uring engine on the file itself.
    FioFile,
}

impl Peer {
    /// All, in the order of the tables.
    pub const ALL: [Peer; 8] = [
        Peer::Diskchain,
        Peer::DiskchainOneImage,
        Peer::Limit,
        Peer::Nbdkit,
        Peer::QemuThreads,
        Peer::QemuUring,
        Peer::NbdServer,
        Peer::FioFile,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Diskchain => "diskchain",
            Peer::DiskchainOneImage => "diskchain, one image",
            Peer::Limit => "limit",
            Peer::Nbdkit => "nbdkit file",
            Peer::QemuThreads => "qemu-nbd threads",
            Peer::QemuUring => "qemu-nbd io_uring",
            Peer::NbdServer => "nbd-server",
            Peer::FioFile => "fio on the file",
        }
    }

    /// Whether it can take part.
    pub fn can(self, case: &Case) -> bool {
        let raw = case.image == Image::Raw;
        let cached = case.cache == Cache::Page;
        match self {
            Peer::Diskchain => true,
            Peer::DiskchainOneImage => case.image == Image::Chain,
            Peer::Limit => {
                let own = case.program == Program::Own;
                let plain =
                    own && case.transport == Transport::Unix && case.workload.pattern != Pattern::Trim;
                raw && cached && plain
            }
            Peer::Nbdkit => raw && cached,
            Peer::QemuThreads | Peer::QemuUring => case.image != Image::Chain,
            Peer::NbdServer => raw && cached && !case.structured,
            Peer::FioFile => {
                let plain = case.workload.pattern == Pattern::Read;
                raw && !cached && plain
            }
        }
    }
}

/// One comparison.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Case {
    /// What lies under the export.
    pub image: Image,
    /// Where the files are.
    pub place: Place,
    /// Whether the host's page cache is used.
    pub cache: Cache,
    /// How clients connect.
    pub transport: Transport,
    /// Whether reads are answered in chunks.
    pub structured: bool,
    /// Who asks.
    pub program: Program,
    /// What is asked.
    pub workload: Workload,
}

impl Case {
    /// The name in tables.
    pub fn name(&self) -> String {
        let Workload { pattern, bytes, depth, connections } = self.workload;
        let image = match self.image {
            Image::Raw => "raw",
            Image::Vdi => "VDI",
            Image::EmptyVdi => "empty VDI",
            Image::Chain => "chain of 10 VDI",
        };
        let place = match (self.place, self.cache) {
            (Place::Memory, _) => "tmpfs",
            (Place::Disk, Cache::Page) => "disk, page cache",
            (Place::Disk, Cache::Direct) => "disk, O_DIRECT",
        };
        let pattern = match pattern {
            Pattern::Read => "read",
            Pattern::ReadSequential => "sequential read",
            Pattern::Write => "write",
            Pattern::WriteSequential => "sequential write",
            Pattern::Mixed => "70 % read, 30 % write",
            Pattern::WriteFlush => "write, flush every 32",
            Pattern::Trim => "trim",
            Pattern::Fill => "sequential write into nothing",
            Pattern::Allocate => "write into a new block each",
        };
        let size =
            if bytes < 1 << 20 { format!("{} KiB", bytes >> 10) } else { format!("{} MiB", bytes >> 20) };
        let mut name = format!("{image}, {place}: {pattern} {size} × {depth}");
        if connections > 1 {
            name += &format!(" × {connections} connections");
        }
        if self.transport == Transport::Tcp {
            name += ", TCP";
        }
        if self.structured {
            name += ", structured";
        }
        if self.program != Program::Own {
            name = format!("{}: {name}", self.program.name());
        }
        name
    }

    /// The simplest case: in memory, through the page cache, over one Unix socket.
    pub fn new(image: Image, pattern: Pattern, kib: u64, depth: usize) -> Self {
        Case {
            image,
            place: Place::Memory,
            cache: Cache::Page,
            transport: Transport::Unix,
            structured: false,
            program: Program::Own,
            workload: Workload { pattern, bytes: kib << 10, depth, connections: 1 },
        }
    }

    /// A case of the size and depth that the program chooses itself; they are counted in mebibytes.
    fn copy(program: Program, image: Image, pattern: Pattern) -> Self {
        Case { program, ..Case::new(image, pattern, 1024, 1) }
    }

    /// The same over that many connections.
    pub fn connections(mut self, connections: usize) -> Self {
        self.workload.connections = connections;
        self
    }

    fn structured(self) -> Self {
        Case { structured: true, ..self }
    }

    fn tcp(self) -> Self {
        Case { transport: Transport::Tcp, ..self }
    }

    /// The same with files on a disk.
    pub fn on_disk(self, cache: Cache) -> Self {
        Case { place: Place::Disk, cache, ..self }
    }
}

/// The cases of the long form.
pub fn all() -> Vec<Case> {
    use Image::{Chain, EmptyVdi, Raw, Vdi};
    use Pattern::*;
    let mut cases = vec![
        Case::new(Raw, Read, 4, 64),
        Case::new(Raw, Write, 4, 64),
        Case::new(Raw, Mixed, 4, 64),
        Case::new(Raw, WriteFlush, 4, 64),
        Case::new(Raw, Trim, 64, 64),
        Case::new(Raw, Read, 4, 64).structured(),
        Case::new(Raw, Read, 4, 64).tcp(),
        Case::new(Raw, Write, 4, 64).tcp(),
        Case::new(Raw, Read, 4, 16),
        Case::new(Raw, Write, 4, 16),
        Case::new(Raw, Read, 4, 1),
        Case::new(Raw, Write, 4, 1),
        Case::new(Raw, Read, 4, 1).tcp(),
        Case::new(Raw, Read, 4, 64).connections(4),
        Case::new(Raw, Write, 4, 64).connections(4),
        Case::new(Raw, Read, 4, 1).connections(4),
        Case::new(Raw, Read, 64, 16),
        Case::new(Raw, Write, 64, 16),
        Case::new(Raw, Read, 64, 16).tcp(),
        Case::new(Raw, Read, 64, 1),
        Case::new(Raw, ReadSequential, 1024, 16),
        Case::new(Raw, WriteSequential, 1024, 16),
        Case::new(Raw, ReadSequential, 1024, 1),
        Case::new(Raw, ReadSequential, 1024, 16).connections(4),
        Case::new(Vdi, Read, 4, 64),
        Case::new(Vdi, Write, 4, 64),
        Case::new(Vdi, Read, 64, 16),
        Case::new(EmptyVdi, Fill, 4, 64),
        Case::new(EmptyVdi, Allocate, 4, 64),
        Case::new(Chain, Read, 4, 64),
        Case::new(Chain, Read, 64, 16),
    ];
    for (pattern, kib, depth) in
        [(Read, 4, 64), (Write, 4, 64), (Read, 64, 16), (Write, 64, 16), (Read, 4, 1)]
    {
        cases.push(Case::new(Raw, pattern, kib, depth).on_disk(Cache::Page));
    }
    cases.push(Case::new(Vdi, Read, 4, 64).on_disk(Cache::Page));
    cases.push(Case::new(EmptyVdi, Fill, 4, 64).on_disk(Cache::Page));
    for (pattern, kib, depth) in [(Read, 4, 64), (Write, 4, 64), (Read, 64, 16), (Read, 4, 1)] {
        cases.push(Case::new(Raw, pattern, kib, depth).on_disk(Cache::Direct));
    }
    cases.extend(programs());
    cases
}

fn programs() -> [Case; 6] {
    let fio = Case { program: Program::Fio, ..Case::new(Image::Raw, Pattern::Read, 4, 64) };
    [
        Case::copy(Program::Nbdcopy, Image::Raw, Pattern::ReadSequential),
        Case::copy(Program::Nbdcopy, Image::Raw, Pattern::WriteSequential),
        Case::copy(Program::QemuImg, Image::Raw, Pattern::ReadSequential),
        Case::copy(Program::QemuImg, Image::Raw, Pattern::WriteSequential),
        Case::copy(Program::QemuImg, Image::Vdi, Pattern::ReadSequential),
        fio,
    ]
}

/// The cases of the short form: each image, place, pattern and transport at least once.
pub fn short() -> Vec<Case> {
    use Image::{Chain, EmptyVdi, Raw, Vdi};
    use Pattern::*;
    let mut cases = vec![
        Case::new(Raw, Read, 4, 64),
        Case::new(Raw, Write, 4, 64),
        Case::new(Raw, Mixed, 4, 16),
        Case::new(Raw, WriteFlush, 4, 64),
        Case::new(Raw, Trim, 64, 16),
        Case::new(Raw, Read, 4, 1),
        Case::new(Raw, Read, 4, 64).connections(4),
        Case::new(Raw, Read, 64, 16).tcp().structured(),
        Case::new(Raw, WriteSequential, 1024, 16),
        Case::new(Vdi, Write, 4, 64),
        Case::new(EmptyVdi, Fill, 4, 64),
        Case::new(EmptyVdi, Allocate, 4, 64),
        Case::new(Chain, Read, 4, 64),
        Case::new(Raw, Read, 4, 64).on_disk(Cache::Direct),
    ];
    cases.extend(programs());
    cases
}
