//! The language: every section, every key, its kind, range, default and meaning.
//!
//! Invariant: this is the only list of keys. Reading, defaults, messages and the documentation all come
//! from it, so a key that is not here is unknown and a key that is here is documented.

use std::fmt;
use std::time::Duration;

use crate::plan::{
    CacheMode, DetectZeroes, Discard, Format, IoEngine, Locking, LogFormat, LogLevel, OnRwFailure, Variant,
};
use crate::units::{format_duration, format_rate, format_size};

/// A table of the configuration.
#[derive(Debug)]
pub struct Section {
    /// Its header, with `NAME` where the user names it: `disk.NAME.throttle`. Empty for the top of the file.
    pub path: &'static str,
    /// What may stand in it.
    pub keys: &'static [Key],
}

/// A key of a [`Section`].
#[derive(Debug)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// The value that holds when the key is absent, as TOML; `None` when there is none.
    pub default: Option<&'static str>,
    /// What it is for, in Markdown.
    pub about: &'static str,
}

/// What a value may be. Its `Display` says so to people.
#[derive(Debug)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// An integer between two bounds, both included.
    Count(u64, u64),
    /// One of a few integers.
    OneOf(&'static [u64]),
    /// Bytes between two bounds, both included, in multiples of the third.
    Size(u64, u64, u64),
    /// Bytes a second, from 0 to the bound.
    Rate(u64),
    /// A length of time between two bounds, both included.
    Duration(Duration, Duration),
    /// One of a few words.
    Word(&'static [&'static str]),
    /// Free text of at most so many bytes.
    Text(usize),
    /// The name of a disk, an export or a throttle group.
    Name,
    /// A path; a relative one starts from the folder of the file it stands in.
    Path,
    /// A UUID, not nil.
    Uuid,
    /// `unix:PATH` or `tcp:HOST:PORT`.
    Listen,
    /// `unix:PATH`, or `off`.
    Control,
    /// A list of values of one kind.
    List(&'static Kind),
    /// A table with fixed keys.
    Table(&'static Section),
    /// Tables with fixed keys under names of the user's choice.
    Named(&'static Section),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Boolean => f.write_str("`true` or `false`"),
            Kind::Count(min, max) if min == max => write!(f, "{min}"),
            Kind::Count(min, max) => write!(f, "integer from {min} to {max}"),
            Kind::OneOf(values) => alternatives(f, values),
            Kind::Size(min, max, 1) => write!(f, "size from {} to {}", format_size(*min), format_size(*max)),
            Kind::Size(min, max, step) => {
                let [min, max, step] = [min, max, step].map(|bytes| format_size(*bytes));
                write!(f, "size from {min} to {max} in multiples of {step}")
            }
            Kind::Rate(max) => write!(f, "rate up to {}", format_rate(*max)),
            Kind::Duration(min, max) => {
                write!(f, "duration from {} to {}", format_duration(*min), format_duration(*max))
            }
            Kind::Word(words) => alternatives(f, words),
            Kind::Text(max) => write!(f, "text of at most {max} bytes"),
            Kind::Name => f.write_str("name"),
            Kind::Path => f.write_str("path"),
            Kind::Uuid => f.write_str("UUID"),
            Kind::Listen => f.write_str("address"),
            Kind::Control => f.write_str("address or `off`"),
            Kind::List(kind) => write!(f, "list; each: {kind}"),
            Kind::Table(_) => f.write_str("table"),
            Kind::Named(_) => f.write_str("tables by name"),
        }
    }
}

/// `` `a`, `b` or `c` ``
fn alternatives(f: &mut fmt::Formatter<'_>, words: &[impl fmt::Display]) -> fmt::Result {
    for (i, word) in words.iter().enumerate() {
        let between = match i {
            0 => "",
            _ if i + 1 == words.len() => " or ",
            _ => ", ",
        };
        write!(f, "{between}`{word}`")?;
    }
    Ok(())
}

impl Section {
    /// The key of this name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The header as people write it: `[disk.NAME]`, or `the top of the file`.
    pub fn header(&self) -> String {
        if self.path.is_empty() { "the top of the file".to_string() } else { format!("[{}]", self.path) }
    }
}

/// Every section, in the order of the documentation.
pub static SECTIONS: &[&Section] =
    &[&ROOT, &SERVER, &LOG, &DEFAULTS, &DISK, &LAYER, &CREATE, &GROUP, &DISK_THROTTLE, &EXPORT];

const fn key(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default: Some(default), about }
}

const fn without_default(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, kind, default: None, about }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// The most bytes of a name. NBD allows 4096 in an export's name; a metric's label and a line of a log should
/// stay readable.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// The most bytes that NBD allows in one string, an export's description among them.
const MAX_TEXT_BYTES: usize = 4096;

/// QEMU's bound for a rate, and for a burst's rate times its length.
pub(crate) const MAX_RATE: u64 = 1_000_000_000_000_000;

/// The largest size of a disk. Offsets are signed in every system call, so 8 EiB would be too much.
const MAX_DISK_BYTES: u64 = 1 << 62;

/// The top of a file.
pub(crate) static ROOT: Section = Section {
    path: "",
    keys: &[
        key("version", Kind::Count(1, 1), "1", "The version of this language."),
        key(
            "include",
            Kind::List(&Kind::Path),
            "[]",
            "Files that are read as if they were part of this one. `*` and `?` in the last part of a path \
             match any file names; they may match none. Not allowed in an included file.",
        ),
        key("server", Kind::Table(&SERVER), "{}", "What belongs to the daemon and not to one disk."),
        key("log", Kind::Table(&LOG), "{}", "What is logged, and how."),
        key("defaults", Kind::Table(&DEFAULTS), "{}", "Values for keys that a disk leaves out."),
        key("throttle", Kind::Named(&GROUP), "{}", "Throttle groups: the disks of one share its limits."),
        key("disk", Kind::Named(&DISK), "{}", "The disks."),
        key("export", Kind::Named(&EXPORT), "{}", "Further exports, or other settings for a disk's own."),
    ],
};

static SERVER: Section = Section {
    path: "server",
    keys: &[
        // The socket that the systemd unit makes, so that both ways of starting serve the same address.
        key(
            "listen",
            Kind::List(&Kind::Listen),
            "[\"unix:/run/diskchain-nbd.sock\"]",
            "Where NBD clients connect: `unix:PATH` or `tcp:HOST:PORT` (port 10809 when left out). Not used \
             for sockets handed in by systemd.",
        ),
        // The same path as the systemd unit's, so that the command line finds it without being told.
        key(
            "control",
            Kind::Control,
            "\"unix:/run/diskchain-control.sock\"",
            "The Unix socket of the control API, which `diskchain ls` and its kind talk to.",
        ),
        key(
            "image_dirs",
            Kind::List(&Kind::Path),
            "[]",
            "The only directories where an image, or what an image refers to, may live. Empty: anywhere.",
        ),
        without_default("default_export", Kind::Name, "The export that the empty export name means."),
        key("list_exports", Kind::Boolean, "true", "Whether a client may list the exports."),
        // Enough for a host full of guests; each costs one file descriptor and a few KiB.
        key("max_connections", Kind::Count(1, 65536), "256", "Clients at once, all exports together."),
        // What every NBD client may assume without asking.
        key(
            "max_request_size",
            Kind::Size(64 * KIB, GIB, 4 * KIB),
            "\"32MiB\"",
            "The largest read or write that a client may ask for.",
        ),
        // Eight of the largest requests, or thousands of usual ones.
        key(
            "max_buffer_memory",
            Kind::Size(MIB, 1 << 40, 1),
            "\"256MiB\"",
            "Bound for the request buffers of the whole daemon; beyond it requests wait. At least \
             `max_request_size`.",
        ),
        key(
            "handshake_timeout",
            Kind::Duration(Duration::from_millis(100), HOUR),
            "\"10s\"",
            "How long a client may take from connecting to choosing an export.",
        ),
        // Below systemd's usual patience with a stop.
        key(
            "drain_timeout",
            Kind::Duration(Duration::ZERO, HOUR),
            "\"30s\"",
            "How long a stop waits for requests in flight before it cuts their clients off.",
        ),
        // What a client on the same host takes from a reply to its next request, twice over.
        key(
            "busy_poll",
            Kind::Duration(Duration::ZERO, Duration::from_millis(1)),
            "\"50us\"",
            "How long a connection looks for the next request before it sleeps, after a client came back that \
             quickly and while there are cores to spare. Requests that come one by one are answered a third \
             sooner or more, for processor time meanwhile. `\"0s\"`: never.",
        ),
        key(
            "io_engine",
            Kind::Word(IoEngine::WORDS),
            "\"auto\"",
            "How files are read and written. `auto` takes io_uring where the kernel allows it.",
        ),
        key(
            "insecure",
            Kind::Boolean,
            "false",
            "Allows `tcp:` off the loopback interface, where anyone who can connect can read and write the \
             disks.",
        ),
    ],
};

static LOG: Section = Section {
    path: "log",
    keys: &[
        key("level", Kind::Word(LogLevel::WORDS), "\"info\"", "The least severe level that is logged."),
        key(
            "format",
            Kind::Word(LogFormat::WORDS),
            "\"auto\"",
            "`auto`: journald under systemd, pretty on a terminal, JSON otherwise.",
        ),
        key(
            "slow_io",
            Kind::Duration(Duration::ZERO, HOUR),
            "\"250ms\"",
            "A request that takes longer is logged with where its time went. `\"0s\"` logs none.",
        ),
    ],
};

static DEFAULTS: Section = Section {
    path: "defaults",
    keys: &[key(
        "disk",
        Kind::Table(&DISK),
        "{}",
        "Any key of `[disk.NAME]`, `[disk.NAME.throttle]` included, except `uuid`, `file`, `layers` and \
         `create`, which are about one disk.",
    )],
};

/// The keys of a disk that make no sense for several.
pub(crate) const ONE_DISK_ONLY: &[&str] = &["uuid", "file", "layers", "create"];

pub(crate) static DISK: Section = Section {
    path: "disk.NAME",
    keys: &[
        without_default(
            "file",
            Kind::Path,
            "The image, or the top image when `parents` is \"auto\". A disk has either `file` or `layers`.",
        ),
        without_default(
            "format",
            Kind::Word(Format::WORDS),
            "The format of `file`. Left out: recognised by the file's signature; a raw image has none, so a \
             raw image that is written must say `format = \"raw\"`.",
        ),
        without_default(
            "layers",
            Kind::List(&Kind::Table(&LAYER)),
            "The whole chain, base first; the last is the top, which is written.",
        ),
        key(
            "parents",
            Kind::Word(&["auto", "none"]),
            "\"none\"",
            "`auto`: the parents of `file` are searched by identity inside `image_dirs`. `none`: a \
             differencing image is refused, with the `layers` to write in the message.",
        ),
        without_default("create", Kind::Table(&CREATE), "Makes `file` once, when it is missing."),
        without_default("uuid", Kind::Uuid, "The identity of the disk, not of an image."),
        key("description", Kind::Text(MAX_TEXT_BYTES), "\"\"", "Text for people; NBD clients see it."),
        key("read_only", Kind::Boolean, "false", "No client may write, and the image is opened read-only."),
        key(
            "ephemeral",
            Kind::Boolean,
            "false",
            "Writes go to a private overlay that vanishes with the last client. No image is changed.",
        ),
        key(
            "on_rw_failure",
            Kind::Word(OnRwFailure::WORDS),
            "\"fail\"",
            "When the top image cannot be opened for writing: `fail` does not serve the disk, `readonly` \
             serves it read-only and logs it.",
        ),
        key(
            "locking",
            Kind::Word(Locking::WORDS),
            "\"on\"",
            "Whether the images are locked, so that this daemon, QEMU and qemu-img keep out of each other's way. \
             `off` is for file systems that cannot lock: nothing notices a second writer then, who destroys the \
             image.",
        ),
        key(
            "cache",
            Kind::Word(CacheMode::WORDS),
            "\"writeback\"",
            "QEMU's cache modes: `writeback` and `writethrough` use the host's page cache, `none` and \
             `directsync` do not. Writes are durable after a flush, with `writethrough` and `directsync` at \
             once; `unsafe` ignores flushes.",
        ),
        key(
            "discard",
            Kind::Word(Discard::WORDS),
            "\"unmap\"",
            "What a trim does: gives the space back, or nothing.",
        ),
        key(
            "detect_zeroes",
            Kind::Word(DetectZeroes::WORDS),
            "\"off\"",
            "What a write does whose bytes are all zero: `on` writes zeroes without data, `unmap` gives the \
             space back too (needs `discard = \"unmap\"`).",
        ),
        key("honor_zeroes", Kind::Boolean, "false", "An all-zero write allocates a block like any other."),
        key(
            "honor_same",
            Kind::Boolean,
            "false",
            "A write of what is already there allocates a block in a differencing image.",
        ),
        // What every guest can boot from.
        key(
            "logical_block_size",
            Kind::OneOf(&[512, 4096]),
            "512",
            "Bytes in the smallest unit that the guest is told of.",
        ),
        // What one connection of the Linux kernel's client has in flight.
        key(
            "max_in_flight",
            Kind::Count(1, 65536),
            "128",
            "Requests of one connection that are worked on at once; further ones wait.",
        ),
        key("throttle", Kind::Table(&DISK_THROTTLE), "{}", "Limits of this disk, and its group."),
    ],
};

static LAYER: Section = Section {
    path: "disk.NAME.layers[]",
    keys: &[
        without_default("file", Kind::Path, "The image. Required."),
        without_default("format", Kind::Word(Format::WORDS), "As `format` of a disk."),
        without_default(
            "create",
            Kind::Table(&CREATE),
            "Makes the image once, when it is missing: a differencing image if there is a layer below it.",
        ),
    ],
};

static CREATE: Section = Section {
    path: "disk.NAME.create",
    keys: &[
        without_default(
            "size",
            Kind::Size(512, MAX_DISK_BYTES, 512),
            "The size of the disk. A differencing image takes its parent's when it is left out.",
        ),
        without_default(
            "format",
            Kind::Word(Format::WORDS),
            "The format of the new image. Left out: `format` beside `create`, which must be the same when \
             both are there.",
        ),
        without_default(
            "variant",
            Kind::Word(Variant::WORDS),
            "`dynamic` allocates blocks when they are first written, `fixed` all at once, `differencing` holds only \
             what differs from the layer below. Left out: `differencing` over another layer, `dynamic` otherwise.",
        ),
    ],
};

/// The keys of a group, and after them what only a disk has.
macro_rules! throttle_keys {
    ($($more:expr)?) => {
        &[
            limit("iops_total", IOPS, "Requests a second. Not together with `iops_read` or `iops_write`."),
            limit("iops_read", IOPS, "Reads a second."),
            limit("iops_write", IOPS, "Writes a second."),
            limit("bps_total", BPS, "Bytes a second. Not together with `bps_read` or `bps_write`."),
            limit("bps_read", BPS, "Bytes read a second."),
            limit("bps_write", BPS, "Bytes written a second."),
            limit("iops_total_max", IOPS, "`iops_total` in a burst; at least `iops_total`."),
            limit("iops_read_max", IOPS, "`iops_read` in a burst."),
            limit("iops_write_max", IOPS, "`iops_write` in a burst."),
            limit("bps_total_max", BPS, "`bps_total` in a burst."),
            limit("bps_read_max", BPS, "`bps_read` in a burst."),
            limit("bps_write_max", BPS, "`bps_write` in a burst."),
            length("iops_total_max_length", "How long a burst of `iops_total_max` may last."),
            length("iops_read_max_length", "How long a burst of `iops_read_max` may last."),
            length("iops_write_max_length", "How long a burst of `iops_write_max` may last."),
            length("bps_total_max_length", "How long a burst of `bps_total_max` may last."),
            length("bps_read_max_length", "How long a burst of `bps_read_max` may last."),
            length("bps_write_max_length", "How long a burst of `bps_write_max` may last."),
            key(
                "iops_size",
                Kind::Size(0, GIB, 1),
                "0",
                "A longer request counts for as many operations as it is times this size; needs an `iops` limit. 0: every request is one.",
            ),
            $($more)?
        ]
    };
}

const IOPS: Kind = Kind::Count(0, MAX_RATE);
const BPS: Kind = Kind::Rate(MAX_RATE);

const fn limit(name: &'static str, kind: Kind, about: &'static str) -> Key {
    key(name, kind, "0", about)
}

const fn length(name: &'static str, about: &'static str) -> Key {
    key(name, Kind::Duration(SECOND, HOUR), "\"1s\"", about)
}

static DISK_THROTTLE: Section = Section {
    path: "disk.NAME.throttle",
    keys: throttle_keys!(without_default(
        "group",
        Kind::Name,
        "The group `[throttle.NAME]` that this disk is a member of. Both limits hold."
    )),
};

static GROUP: Section = Section { path: "throttle.NAME", keys: throttle_keys!() };

static EXPORT: Section = Section {
    path: "export.NAME",
    keys: &[
        without_default("disk", Kind::Name, "The disk. Left out: the disk of the same name."),
        key(
            "read_only",
            Kind::Boolean,
            "false",
            "No client of this export may write. Implied by the disk's.",
        ),
        // All connections reach one device, whose flush covers them all.
        key(
            "multi_conn",
            Kind::Boolean,
            "true",
            "Clients are told that a flush on one connection covers all, so they may open several.",
        ),
        without_default(
            "max_connections",
            Kind::Count(1, 65536),
            "Clients of this export at once, within the server's own limit.",
        ),
        without_default(
            "description",
            Kind::Text(MAX_TEXT_BYTES),
            "Text for NBD clients. Left out: the disk's.",
        ),
    ],
};
