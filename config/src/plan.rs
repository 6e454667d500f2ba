//! The meaning of a configuration: plain values that are complete and fit together.
//!
//! Invariant: a [`Plan`] made by this crate cannot be wrong on its own terms. Every path is absolute, every
//! name is unique and every name that is referred to exists, no chain holds a file twice, every number is in
//! its range and every default has been filled in. What only the images can tell (their format, their
//! parents, whether they exist at all) is checked by whoever opens them.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

/// Everything the daemon is asked to do.
///
/// ```text
/// Plan ── server, log
///   ├── groups   name → Throttle          shared by the disks that name the group
///   ├── disks    Disk ── layers (base first), throttle, group?
///   └── exports  Export ── disk           every disk is exported under its own name, and more if asked
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What belongs to the process and not to one disk.
    pub server: Server,
    /// What is logged, and how.
    pub log: Log,
    /// Throttle groups by name. The disks of a group share its limits.
    pub groups: BTreeMap<String, Throttle>,
    /// The disks, sorted by name. May be empty.
    pub disks: Vec<Disk>,
    /// The exports, sorted by name, those included that every disk has under its own name.
    pub exports: Vec<Export>,
}

impl Plan {
    /// The disk of this name.
    pub fn disk(&self, name: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.name == name)
    }

    /// The export that a client means by `name`; the empty name is the default export.
    pub fn export(&self, name: &str) -> Option<&Export> {
        let name = if name.is_empty() { self.server.default_export.as_deref()? } else { name };
        self.exports.iter().find(|export| export.name == name)
    }
}

/// `[server]`: sockets, limits and times of the process.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Where to listen for NBD clients. Not used for sockets that systemd hands in; empty means only those.
    pub listen: Vec<Listen>,
    /// The Unix socket of the control API; `None` when it is switched off.
    pub control: Option<PathBuf>,
    /// The only directories where an image, or what an image refers to, may live. Empty: anywhere, and
    /// then no disk has [`Parents::Auto`].
    pub image_dirs: Vec<PathBuf>,
    /// The export that the empty name means; it is one of [`Plan::exports`].
    pub default_export: Option<String>,
    /// Whether a client may ask for the list of exports.
    pub list_exports: bool,
    /// Clients at once, all exports together.
    pub max_connections: NonZeroU32,
    /// Bytes in the largest read or write; a multiple of 4096, at most [`Server::max_buffer_memory`].
    pub max_request_size: u32,
    /// Bytes of request buffers of the whole process; beyond it requests wait.
    pub max_buffer_memory: u64,
    /// From a connection's first byte to the end of its handshake.
    pub handshake_timeout: Duration,
    /// How long a stop waits for the requests in flight.
    pub drain_timeout: Duration,
    /// How long the thread of a connection looks for the next request of a quick client before it sleeps.
    pub busy_poll: Duration,
    /// How files are read and written.
    pub io_engine: IoEngine,
    /// Plain TCP off the loopback interface was allowed.
    pub insecure: bool,
}

/// One address to listen on: `unix:/run/nbd.sock`, `tcp:127.0.0.1:10809`, `tcp:[::1]:10809`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// A Unix socket; the path is absolute and fits a socket address (107 bytes).
    Unix(PathBuf),
    /// TCP: a host name or an address without brackets, and the port (10809 when none was written).
    Tcp(String, u16),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Tcp(host, port) if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Listen::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// `[log]`: what is logged, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// A request that takes longer is logged with where its time went; `None` logs none.
    pub slow_io: Option<Duration>,
}

/// `[disk.NAME]`: a chain of images that the guest sees as one disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    /// Unique among the disks: 1 to 255 bytes without `/` or control characters.
    pub name: String,
    /// The identity given to the disk, unique among the disks. Not an image's own UUID.
    pub uuid: Option<Uuid>,
    /// Free text for people; empty when none was given.
    pub description: String,
    /// The images that were named, base first; the last is the writable top. Never empty.
    pub layers: Vec<Layer>,
    /// Where the parents of `layers[0]` come from.
    pub parents: Parents,
    /// No client may write.
    pub read_only: bool,
    /// How writes reach the host's storage.
    pub cache: CacheMode,
    /// What a trim does.
    pub discard: Discard,
    /// What a write of zeroes does. [`DetectZeroes::Unmap`] comes only with [`Discard::Unmap`].
    pub detect_zeroes: DetectZeroes,
    /// A write of zeroes allocates a block, as other data would.
    pub honor_zeroes: bool,
    /// A write of what is already there allocates a block in a differencing image.
    pub honor_same: bool,
    /// Bytes in the smallest unit that the guest is told of: 512 or 4096.
    pub logical_block_size: u32,
    /// Writes go to a private overlay that vanishes with the last client; no image is written.
    pub ephemeral: bool,
    /// What happens when the top image cannot be opened for writing.
    pub on_rw_failure: OnRwFailure,
    /// Whether its images are locked against other programs.
    pub locking: Locking,
    /// The limits of this disk alone.
    pub throttle: Throttle,
    /// The throttle group it is a member of, one of [`Plan::groups`]. Both limits hold.
    pub group: Option<String>,
    /// Requests of one connection that are worked on at once; further ones wait.
    pub max_in_flight: NonZeroU32,
}

impl Disk {
    /// Whether requests of clients change the top image.
    pub fn writes_top(&self) -> bool {
        !self.read_only && !self.ephemeral
    }

    /// The image that writes go to.
    pub fn top(&self) -> &Layer {
        self.layers.last().expect("a disk of a plan has at least one layer")
    }
}

/// One image of a chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Absolute, without `.` and `..`; symbolic links are not resolved here.
    pub file: PathBuf,
    /// `None`: recognise it by its signature. A file without one may be raw, which is never guessed for an
    /// image that is written.
    pub format: Option<Format>,
    /// How to make the image when the file does not exist. An existing file is never changed by it.
    pub create: Option<Create>,
}

/// `create = { … }`: an image to be made once, when its file is missing.
#[derive(Clone, Debug, PartialEq)]
pub struct Create {
    /// Bytes, a multiple of 512. `None` only with [`Variant::Differencing`]: the size of its parent.
    pub size: Option<u64>,
    /// Equal to the layer's [`Layer::format`].
    pub format: Format,
    /// [`Variant::Differencing`] exactly for a layer that has one below it.
    pub variant: Variant,
}

/// Where the parents of a chain come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parents {
    /// [`Disk::layers`] is the whole chain, spelled out.
    Listed,
    /// The one layer's parents are searched by identity inside [`Server::image_dirs`].
    Auto,
    /// The one layer must have no parent; a differencing image is refused.
    None,
}

/// Limits of a disk or of a group. A field that is `None` limits nothing.
///
/// `iops_total` comes without `iops_read` and `iops_write`, `bps_total` without `bps_read` and `bps_write`;
/// `iops_size` comes only with an `iops` limit. These are the rules of QEMU's throttle groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    /// Requests a second, all kinds.
    pub iops_total: Option<Limit>,
    /// Reads a second.
    pub iops_read: Option<Limit>,
    /// Writes a second.
    pub iops_write: Option<Limit>,
    /// Bytes a second, both directions.
    pub bps_total: Option<Limit>,
    /// Bytes read a second.
    pub bps_read: Option<Limit>,
    /// Bytes written a second.
    pub bps_write: Option<Limit>,
    /// Bytes: a longer request counts for as many operations as it is times this size, against the `iops` limits.
    pub iops_size: Option<NonZeroU64>,
}

/// One limit: a rate that holds in the long run, and a burst above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Requests or bytes a second; at most 10^15.
    pub rate: NonZeroU64,
    /// Allowed after a pause.
    pub burst: Option<Burst>,
}

/// A higher rate for a while, as QEMU's `-max` and `-max-length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Requests or bytes a second, at least the limit's rate; times `length` in whole seconds at most 10^15.
    pub rate: NonZeroU64,
    /// How long the burst may last: one second or more, one when none was given.
    pub length: Duration,
}

/// `[export.NAME]`, or the export that every disk has under its own name.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// What clients ask for: unique among the exports, with the same rules as a disk's name.
    pub name: String,
    /// The disk, one of [`Plan::disks`].
    pub disk: String,
    /// No client of this export may write; always set when the disk is read-only.
    pub read_only: bool,
    /// Clients are told that several connections see one another's flushes.
    pub multi_conn: bool,
    /// Clients of this export at once; `None`: only the server's own limit holds.
    pub max_connections: Option<NonZeroU32>,
    /// What clients are told about the export; the disk's own description when none was given.
    pub description: String,
}

/// Declares an enum whose variants are words of the configuration, and both directions between them.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$meaning])* $variant,)+
        }

        impl $name {
            /// The words of the configuration, in the order of the variants.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The value that a word of the configuration stands for.
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The word of the configuration.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

words! {
    /// How files are read and written.
    IoEngine {
        /// io_uring where the kernel allows it, threads elsewhere.
        Auto = "auto",
        /// io_uring, or the start fails.
        IoUring = "io_uring",
        /// A bounded pool of threads.
        Threads = "threads",
    }
}

words! {
    /// The format of an image.
    Format {
        /// The bytes of the disk and nothing else: a file or a block device.
        Raw = "raw",
        /// VirtualBox's disk image.
        Vdi = "vdi",
    }
}

words! {
    /// How an image that is made uses the host's space.
    Variant {
        /// Blocks are allocated when they are first written.
        Dynamic = "dynamic",
        /// All blocks are allocated at once.
        Fixed = "fixed",
        /// Holds only what differs from its parent.
        Differencing = "differencing",
    }
}

words! {
    /// How writes reach the host's storage; QEMU's cache modes.
    CacheMode {
        /// The host's page cache; durable after a flush.
        Writeback = "writeback",
        /// The host's page cache; every write is durable before it is acknowledged.
        Writethrough = "writethrough",
        /// Around the page cache (`O_DIRECT`); durable after a flush.
        None = "none",
        /// Around the page cache, and every write is durable before it is acknowledged.
        Directsync = "directsync",
        /// The host's page cache, and flushes are ignored: a crash of the host loses data.
        Unsafe = "unsafe",
    }
}

words! {
    /// What a trim does.
    Discard {
        /// Gives the space back to the host.
        Unmap = "unmap",
        /// Nothing.
        Ignore = "ignore",
    }
}

words! {
    /// What a write whose bytes are all zero does.
    DetectZeroes {
        /// It is a write like any other.
        Off = "off",
        /// It becomes a write of zeroes, which needs no data.
        On = "on",
        /// It becomes a write of zeroes that gives space back.
        Unmap = "unmap",
    }
}

words! {
    /// What happens when the top image cannot be opened for writing.
    OnRwFailure {
        /// The disk is not served.
        Fail = "fail",
        /// The disk is served read-only, and the log says so.
        Readonly = "readonly",
    }
}

words! {
    /// Whether images are locked against other programs.
    Locking {
        /// An image that cannot be locked is not opened.
        On = "on",
        /// Nothing is locked: for file systems that cannot.
        Off = "off",
    }
}

words! {
    /// The least severe level that is logged.
    LogLevel {
        /// Something failed.
        Error = "error",
        /// Something is odd.
        Warn = "warn",
        /// What an operator would act on.
        Info = "info",
        /// What a developer asks for.
        Debug = "debug",
        /// Every request.
        Trace = "trace",
    }
}

words! {
    /// How a line of the log looks.
    LogFormat {
        /// Journald under systemd, pretty on a terminal, JSON otherwise.
        Auto = "auto",
        /// Fields for systemd's journal.
        Journald = "journald",
        /// Lines for people.
        Pretty = "pretty",
        /// One JSON object a line.
        Json = "json",
    }
}
