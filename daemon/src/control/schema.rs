//! What the control API says, as JSON: the stable schema.
//!
//! Sizes and offsets are bytes, times are seconds, moments are RFC 3339 in UTC. What is not known is `null`; a key is
//! never left out.
//!
//! Invariant: a key keeps its name and meaning; new ones may come, so readers ignore those that they do not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::limits::Words;

/// `GET /v1/version`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Of the program.
    pub version: String,
    /// Of this API.
    pub api: String,
}

/// `GET /v1/status`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// When it started.
    pub started: String,
    /// Seconds since then.
    pub uptime: f64,
    /// Whether clients are served: the start is over and the end has not begun.
    pub ready: bool,
    /// Where NBD clients can connect: `unix:PATH`, `tcp:HOST:PORT`.
    pub listen: Vec<String>,
    /// `io_uring` or `threads`.
    pub io_engine: String,
    /// Disks.
    pub disks: usize,
    /// Exports.
    pub exports: usize,
    /// NBD clients that are connected.
    pub clients: usize,
    /// NBD connections so far, the daemon's own self-tests included.
    pub connections_accepted: u64,
    /// Handshakes that failed so far, by reason.
    pub handshake_failures: BTreeMap<String, u64>,
    /// Requests in flight, of all disks.
    pub in_flight: u64,
    /// Memory for request buffers.
    pub buffer_memory: BufferMemory,
}

/// Memory for request buffers, bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BufferMemory {
    /// In use.
    pub used: u64,
    /// Bound; requests beyond it wait.
    pub limit: u64,
}

/// One of `GET /v1/disks`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskSummary {
    /// Name in the configuration.
    pub name: String,
    /// Identity in the configuration.
    pub uuid: Option<Uuid>,
    /// Text for people.
    pub description: String,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether all writes are refused.
    pub read_only: bool,
    /// Whether writes vanish with the last client.
    pub ephemeral: bool,
    /// The worst that happened to it since it was opened: `sound`, `flush-failed`, `corrupt`, `frozen`.
    pub condition: String,
    /// Images of its chain.
    pub layers: usize,
    /// Bytes that all its images take up on the host.
    pub allocated: u64,
    /// NBD clients connected to any of its exports.
    pub connections: usize,
    /// Requests in flight.
    pub in_flight: u64,
}

/// `GET /v1/disks/NAME`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// Name in the configuration.
    pub name: String,
    /// Identity in the configuration.
    pub uuid: Option<Uuid>,
    /// Text for people.
    pub description: String,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether all writes are refused.
    pub read_only: bool,
    /// Whether writes vanish with the last client.
    pub ephemeral: bool,
    /// The worst that happened to it since it was opened: `sound`, `flush-failed`, `corrupt`, `frozen`.
    pub condition: String,
    /// Images, base first.
    pub chain: Vec<Image>,
    /// How requests are treated, in the words of the configuration.
    pub options: Options,
    /// Names that it is exported under.
    pub exports: Vec<String>,
    /// What was done.
    pub stats: Stats,
    /// Requests in flight, oldest first.
    pub requests: Vec<Request>,
    /// NBD clients connected to any of its exports.
    pub clients: Vec<Client>,
    /// Its limits.
    pub throttle: Throttle,
}

/// One of `GET /v1/disks/NAME/chain`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The file; `null` for the overlay of an ephemeral disk, which has no name.
    pub file: Option<String>,
    /// `raw`, `vdi`.
    pub format: String,
    /// Kind within the format: `dynamic`, `fixed`, `differencing`, `undo`; empty for raw.
    pub variant: String,
    /// Bytes of the disk that it describes.
    pub size: u64,
    /// Bytes of a block.
    pub block_size: u64,
    /// Length of the file, bytes.
    pub file_size: u64,
    /// Bytes that the file takes up on the host.
    pub allocated: u64,
    /// Whether it was opened without the right to write; parents always are.
    pub read_only: bool,
    /// Identity of the image.
    pub uuid: Option<Uuid>,
    /// Changes whenever the content does.
    pub modification_uuid: Option<Uuid>,
    /// Identity of the parent that it names.
    pub parent_uuid: Option<Uuid>,
    /// Modification identity that the parent had then.
    pub parent_modification_uuid: Option<Uuid>,
}

/// Options of a disk, in the words of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// `writeback`, `writethrough`, `none`, `directsync` or `unsafe`.
    pub cache: String,
    /// `unmap` or `ignore`.
    pub discard: String,
    /// `off`, `on` or `unmap`.
    pub detect_zeroes: String,
    /// A write of zeroes allocates.
    pub honor_zeroes: bool,
    /// A write of what is there already allocates in a differencing image.
    pub honor_same: bool,
    /// Bytes of the smallest unit that clients are told of.
    pub logical_block_size: u32,
    /// Requests of one connection that are worked on at once.
    pub max_in_flight: u32,
}

/// `GET /v1/disks/NAME/stats`: since the disk was opened
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests in flight now.
    pub in_flight: u64,
    /// Seconds in which at least one request was in flight.
    pub busy: f64,
    /// Seconds of all requests together.
    pub weighted: f64,
    /// One past the highest byte that was written or zeroed.
    pub highest_written: u64,
    /// Bytes that copy-on-write copied from parents.
    pub copied: u64,
    /// Bytes of writes that were zeroes and took no space.
    pub zeroes: u64,
    /// Bytes of writes that were there already and were left out.
    pub same: u64,
    /// By operation: `read`, `write`, `write_zeroes`, `discard`, `flush`, `cache`, `block_status`, `compact`.
    pub operations: BTreeMap<String, Operation>,
}

/// The accounts of one operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Requests that succeeded.
    pub completed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Failed requests by the error that the client got: `EIO`, `ENOSPC`, …
    pub errors: BTreeMap<String, u64>,
    /// Where the seconds of all requests went.
    pub time: Time,
    /// How long requests took that succeeded; `null` if there was none.
    pub latency: Option<Latency>,
}

/// Where the seconds of requests went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Time {
    /// All of them.
    pub total: f64,
    /// Held back by a limit.
    pub throttle: f64,
    /// Waiting for earlier requests on the same bytes.
    pub overlap: f64,
    /// At work.
    pub working: f64,
}

/// Quantiles, seconds. Each is at most an eighth above the exact value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the requests were not slower.
    pub p50: f64,
    /// 90 % were not slower.
    pub p90: f64,
    /// 99 % were not slower.
    pub p99: f64,
    /// 99.9 % were not slower.
    pub p999: f64,
}

/// One of `GET /v1/disks/NAME/requests`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Number of the request, unique within its disk.
    pub id: u64,
    /// `read`, `write`, …
    pub op: String,
    /// First byte, as the turn of the request covers it: whole logical blocks.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Number of the client; 0 is the daemon itself.
    pub client: u64,
    /// Seconds since it came.
    pub age: f64,
    /// `throttle`, `overlap` or `working`.
    pub stage: String,
    /// The request that it waits for, if it is in `overlap`.
    pub waiting_for: Option<u64>,
}

/// One of `GET /v1/clients`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// Number of the client; requests are listed under it.
    pub id: u64,
    /// Export that it chose.
    pub export: String,
    /// Disk behind that.
    pub disk: String,
    /// `unix` or `tcp`.
    pub transport: String,
    /// Process and user, or address and port.
    pub peer: String,
    /// When it connected.
    pub since: String,
    /// Its requests in flight.
    pub in_flight: usize,
}

/// One of `GET /v1/exports`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Export {
    /// What clients ask for.
    pub name: String,
    /// The disk.
    pub disk: String,
    /// Text for clients.
    pub description: String,
    /// Whether the empty name means this export.
    pub default: bool,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether all writes are refused.
    pub read_only: bool,
    /// Whether clients are told that they may use several connections.
    pub multi_conn: bool,
    /// Connections.
    pub connections: Connections,
}

/// `GET /v1/exports/NAME/check`; an export that cannot be read is a problem instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The export.
    pub name: String,
    /// Its first and last block were read.
    pub readable: bool,
}

/// Connections to an export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connections {
    /// Over Unix sockets, now.
    pub unix: u64,
    /// Over TCP, now.
    pub tcp: u64,
    /// Most at once; `null`: as many as the daemon takes.
    pub max: Option<u32>,
    /// So far, the daemon's own self-test included.
    pub total: u64,
    /// Refused so far because there were too many.
    pub refused: u64,
}

/// `GET` and `PUT /v1/disks/NAME/throttle`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Throttle {
    /// Limits of the disk itself, in the words of the configuration; 0 is no limit.
    pub limits: Words,
    /// The group that it is a member of; both limits hold.
    pub group: Option<String>,
    /// Requests that wait now, for its own limits or its group's.
    pub waiting: usize,
    /// Seconds that requests have waited so far, by limit.
    pub waited: BTreeMap<String, f64>,
}

/// One of `GET /v1/throttles`; `GET` and `PUT /v1/throttles/GROUP`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Limits that its members share; 0 is no limit.
    pub limits: Words,
    /// Requests of all members that wait now for them.
    pub waiting: usize,
    /// Disks.
    pub members: Vec<String>,
}

/// What every refusal says: a problem of RFC 9457, `application/problem+json`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The HTTP status in words.
    pub title: String,
    /// The kind of problem, for programs: `unknown_disk`, `invalid_limits`, …
    pub code: String,
    /// What is wrong, for people.
    pub detail: String,
    /// What is wrong with the body of the request, one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
}

/// One thing that is wrong with the body of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// Where, as a JSON pointer in a URI fragment: `#/iops_total`.
    pub pointer: String,
    /// The code that `diskchain explain` explains.
    pub code: String,
    /// What is wrong.
    pub detail: String,
}
