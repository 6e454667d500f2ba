//! What Prometheus reads: a snapshot of the whole daemon as OpenMetrics text.
//!
//! ```text
//!   disks, exports, process ──▶ Snapshot (plain numbers) ──▶ families ──▶ text
//! ```
//! Names mirror node_exporter's `node_disk_*` where it has one. Times are seconds, sizes are bytes.
//!
//! Invariant: every sample of a scrape comes from one snapshot, and each family is written once, whole.

mod process;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Error;
use std::time::Duration;

use disk_core::condition::Condition;
use disk_core::op::Op;
use disk_core::stats::{DiskStats, OpStats, SIZE_BOUNDS};
use disk_core::throttle::{Dimension, ThrottleStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

pub use process::Process;

use crate::errno::errno;

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The operations of clients; what they ask about a disk moves nothing and is left out.
const OPS: [Op; 5] = [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes];

/// Bounds of request durations: powers of two of nanoseconds, where counts are exact, from 4 µs to 17 s.
const DURATION_BOUNDS_LOG2: std::ops::RangeInclusive<u32> = 12..=34;

/// All numbers of the daemon at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Version of the program.
    pub version: &'static str,
    /// Name of the I/O engine in use: `io_uring` or `threads`.
    pub io_engine: &'static str,
    /// The disks that are open.
    pub disks: Vec<Disk>,
    /// Every export.
    pub exports: Vec<Export>,
    /// Handshakes that failed, by reason (a few fixed words).
    pub handshake_failures: Vec<(&'static str, u64)>,
    /// File systems that images live on, and bytes that are free there.
    pub host_free: Vec<(String, u64)>,
    /// The process itself; `None` if `/proc` cannot be read.
    pub process: Option<Process>,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// Its accounts.
    pub stats: DiskStats,
    /// Its throttle.
    pub throttle: ThrottleStatus,
    /// Its size, bytes.
    pub size: u64,
    /// Bytes that its images take up, all layers together.
    pub allocated: u64,
    /// Images of its chain.
    pub layers: usize,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The worst that happened to it.
    pub condition: Condition,
}

/// An export.
#[derive(Debug)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// Clients connected over Unix sockets now.
    pub unix: u64,
    /// Clients connected over TCP now.
    pub tcp: u64,
    /// Connections so far.
    pub connected: u64,
    /// Connections that were refused because there were too many.
    pub refused: u64,
}

/// The snapshot as OpenMetrics text, of media type [`CONTENT_TYPE`].
pub fn render(snapshot: Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("a String takes everything");
    text
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut families = Families { encoder };
        self.disk_io(&mut families)?;
        self.requests(&mut families)?;
        self.throttles(&mut families)?;
        self.images(&mut families)?;
        self.connections(&mut families)?;
        self.process(&mut families)
    }
}

impl Snapshot {
    /// The mirrors of `node_disk_*`. As in the kernel's own counters, zeroing counts as writing.
    fn disk_io(&self, families: &mut Families<'_>) -> Result<(), Error> {
        for (op, completed, bytes, time, what) in [
            (Op::Read, "reads_completed", "read", "read_time", "reads"),
            (Op::Write, "writes_completed", "written", "write_time", "writes and zeroings"),
        ] {
            let each = || self.disks.iter().map(|disk| (of(disk), completed_as(disk, op)));
            families.counter(
                &format!("diskchain_disk_{completed}"),
                &format!("Number of {what} that succeeded"),
                None,
                each().map(|(labels, done)| (labels, done.operations)),
            )?;
            families.counter(
                &format!("diskchain_disk_{bytes}"),
                &format!("Bytes of {what}"),
                BYTES,
                each().map(|(labels, done)| (labels, done.bytes)),
            )?;
            families.counter(
                &format!("diskchain_disk_{time}"),
                &format!("Time of all {what} together"),
                SECONDS,
                each().map(|(labels, done)| (labels, done.time.as_secs_f64())),
            )?;
        }
        let disks = || self.disks.iter();
        families.counter(
            "diskchain_disk_discards_completed",
            "Number of discards that succeeded",
            None,
            disks().map(|disk| (of(disk), disk.stats.of(Op::Discard).operations)),
        )?;
        families.counter(
            "diskchain_disk_flush_requests",
            "Number of flushes that succeeded",
            None,
            disks().map(|disk| (of(disk), disk.stats.of(Op::Flush).operations)),
        )?;
        families.gauge(
            "diskchain_disk_io_now",
            "Requests in flight",
            None,
            disks().map(|disk| (of(disk), disk.stats.in_flight)),
        )?;
        families.counter(
            "diskchain_disk_io_time",
            "Time in which at least one request was in flight",
            SECONDS,
            disks().map(|disk| (of(disk), disk.stats.busy.as_secs_f64())),
        )?;
        families.counter(
            "diskchain_disk_io_time_weighted",
            "Time of all requests together",
            SECONDS,
            disks().map(|disk| (of(disk), disk.stats.weighted().as_secs_f64())),
        )
    }

    fn requests(&self, families: &mut Families<'_>) -> Result<(), Error> {
        let each = || {
            self.disks.iter().flat_map(|disk| OPS.map(|op| (with(disk, "op", op.name()), disk.stats.of(op))))
        };
        families.histogram(
            "diskchain_request_duration",
            "Time from the arrival of a request in the block layer to its end, of those that succeeded",
            SECONDS,
            each().map(|(labels, stats)| (labels, durations(stats))),
        )?;
        families.histogram(
            "diskchain_request_size",
            "Bytes that a request is about, of those that succeeded",
            BYTES,
            each().filter(|(_, stats)| stats.op != Op::Flush).map(|(labels, stats)| (labels, sizes(stats))),
        )?;
        let errors: Vec<_> = self.disks.iter().flat_map(errors).collect();
        families.counter(
            "diskchain_request_errors",
            "Requests that failed",
            None,
            errors.iter().map(|([disk, op], errno, count)| {
                ([("disk", *disk), ("op", *op), ("errno", errno.as_str())], *count)
            }),
        )?;
        families.gauge(
            "diskchain_requests_in_flight",
            "Requests that have arrived and not ended",
            None,
            self.disks.iter().map(|disk| (of(disk), disk.stats.in_flight)),
        )?;
        families.counter(
            "diskchain_request_stage",
            "Where the time of requests went",
            SECONDS,
            self.disks.iter().flat_map(|disk| {
                stages(&disk.stats).map(|(stage, time)| (with(disk, "stage", stage), time.as_secs_f64()))
            }),
        )
    }

    fn throttles(&self, families: &mut Families<'_>) -> Result<(), Error> {
        families.counter(
            "diskchain_throttle_wait",
            "Time that requests waited for a limit of their disk or its group",
            SECONDS,
            self.disks.iter().flat_map(|disk| {
                Dimension::ALL.map(|dimension| {
                    let waited = disk.throttle.waited[dimension as usize];
                    (with(disk, "dimension", dimension.name()), waited.as_secs_f64())
                })
            }),
        )?;
        families.gauge(
            "diskchain_throttle_limit",
            "Limit of a disk, operations or bytes a second; without a limit there is no sample",
            None,
            self.disks.iter().flat_map(|disk| {
                let limits = Dimension::ALL.map(|dimension| {
                    (with(disk, "dimension", dimension.name()), disk.throttle.limits.rate(dimension).avg)
                });
                limits.into_iter().filter(|&(_, avg)| avg > 0)
            }),
        )?;
        families.gauge(
            "diskchain_throttle_queue_length",
            "Requests that wait for a limit of their disk or its group",
            None,
            self.disks.iter().map(|disk| (of(disk), disk.throttle.waiting)),
        )
    }

    fn images(&self, families: &mut Families<'_>) -> Result<(), Error> {
        let mut gauge = |name, help, unit, value: fn(&Disk) -> u64| {
            families.gauge(name, help, unit, self.disks.iter().map(|disk| (of(disk), value(disk))))
        };
        gauge("diskchain_disk_size", "Size of the disk", BYTES, |disk| disk.size)?;
        gauge("diskchain_disk_allocated", "Space that all images of the disk take up", BYTES, |disk| {
            disk.allocated
        })?;
        gauge("diskchain_disk_layers", "Images of the disk's chain", None, |disk| disk.layers as u64)?;
        gauge("diskchain_disk_read_only", "1 if writes are refused", None, |disk| disk.read_only.into())?;
        families.gauge(
            "diskchain_disk_condition",
            "1 for the worst that happened to the disk since it was opened, 0 for the others",
            None,
            self.disks.iter().flat_map(|disk| {
                Condition::ALL.map(|condition| {
                    (with(disk, "condition", condition.name()), u64::from(disk.condition == condition))
                })
            }),
        )?;
        families.counter(
            "diskchain_cow_copied",
            "Bytes that copy-on-write copied from parents",
            BYTES,
            self.disks.iter().map(|disk| (of(disk), disk.stats.copied)),
        )?;
        families.gauge(
            "diskchain_host_free",
            "Free space of the file system that images are on",
            BYTES,
            self.host_free.iter().map(|(path, free)| ([("path", path.as_str())], *free)),
        )
    }

    fn connections(&self, families: &mut Families<'_>) -> Result<(), Error> {
        families.gauge(
            "diskchain_connections",
            "Clients that are connected",
            None,
            self.exports.iter().flat_map(|export| {
                [("unix", export.unix), ("tcp", export.tcp)].map(|(transport, count)| {
                    ([("export", export.name.as_str()), ("transport", transport), ("tls", "false")], count)
                })
            }),
        )?;
        // A counter would be a family of the same name as the gauge. Prometheus takes a sample as it is named.
        families.plain(
            MetricType::Unknown,
            "diskchain_connections_total",
            "Clients that asked for an export so far",
            None,
            self.exports.iter().flat_map(|export| {
                [("ok", export.connected), ("refused", export.refused)]
                    .map(|(result, count)| ([("export", export.name.as_str()), ("result", result)], count))
            }),
        )?;
        families.counter(
            "diskchain_handshake_failures",
            "Connections that ended before an export was agreed on",
            None,
            self.handshake_failures.iter().map(|&(reason, count)| ([("reason", reason)], count)),
        )
    }

    fn process(&self, families: &mut Families<'_>) -> Result<(), Error> {
        families.info("diskchain_build", "The program", [("version", self.version)])?;
        families.info(
            "diskchain_io_engine",
            "How files are read and written",
            [("engine", self.io_engine)],
        )?;
        let Some(process) = &self.process else { return Ok(()) };
        families.counter("process_cpu", "CPU time", SECONDS, [(NO_LABELS, process.cpu.as_secs_f64())])?;
        for (name, help, unit, value) in [
            ("process_resident_memory", "Memory in RAM", BYTES, process.resident),
            ("process_virtual_memory", "Address space", BYTES, process.virtual_memory),
            ("process_open_fds", "Open file descriptors", None, process.open_files),
            ("process_max_fds", "Most file descriptors that may be open", None, process.max_open_files),
        ] {
            families.gauge(name, help, unit, [(NO_LABELS, value)])?;
        }
        let started = process.started.as_secs_f64();
        families.gauge(
            "process_start_time",
            "When the process started, since 1970",
            SECONDS,
            [(NO_LABELS, started)],
        )
    }
}

const BYTES: Option<&Unit> = Some(&Unit::Bytes);
const SECONDS: Option<&Unit> = Some(&Unit::Seconds);
const NO_LABELS: [(&str, &str); 0] = [];

fn of(disk: &Disk) -> [(&str, &str); 1] {
    [("disk", &disk.name)]
}

fn with<'a>(disk: &'a Disk, label: &'a str, value: &'a str) -> [(&'a str, &'a str); 2] {
    [("disk", &disk.name), (label, value)]
}

/// What a disk has done that the kernel would count as `op`.
fn completed_as(disk: &Disk, op: Op) -> Completed {
    let with = if op == Op::Write { Some(Op::WriteZeroes) } else { None };
    let mut done = Completed::default();
    for stats in [Some(op), with].into_iter().flatten().map(|op| disk.stats.of(op)) {
        done.operations += stats.operations;
        done.bytes = done.bytes.wrapping_add(stats.bytes);
        done.time += stats.total;
    }
    done
}

#[derive(Default)]
struct Completed {
    operations: u64,
    bytes: u64,
    time: Duration,
}

/// Where the time of a disk's requests went.
fn stages(stats: &DiskStats) -> [(&'static str, Duration); 4] {
    let clients = || OPS.iter().map(|&op| stats.of(op));
    let data = clients().filter(|stats| stats.op != Op::Flush);
    [
        ("throttle", clients().map(|stats| stats.throttled).sum()),
        ("overlap", clients().map(|stats| stats.waited).sum()),
        ("data", data.map(OpStats::working).sum()),
        ("flush", stats.of(Op::Flush).working()),
    ]
}

/// Failed requests by operation and the number that clients got; several kinds of errors may be one number.
fn errors(disk: &Disk) -> impl Iterator<Item = ([&str; 2], String, u64)> {
    let mut counts = BTreeMap::new();
    for error in &disk.stats.errors {
        let errno = format!("{:?}", errno(error.kind));
        *counts.entry((error.op.name(), errno)).or_insert(0) += error.count;
    }
    counts.into_iter().map(|((op, errno), count)| ([disk.name.as_str(), op], errno, count))
}

/// A histogram as it is written: the sum of all values, and how many are in each bucket.
struct Histogram {
    sum: f64,
    buckets: Vec<(f64, u64)>,
}

fn durations(stats: &OpStats) -> Histogram {
    let mut below = 0;
    let mut buckets = Vec::new();
    for log2 in DURATION_BOUNDS_LOG2 {
        let bound = Duration::from_nanos(1 << log2);
        let up_to = stats.latency.count_up_to(bound);
        buckets.push((bound.as_secs_f64(), up_to - below));
        below = up_to;
    }
    buckets.push((f64::INFINITY, stats.latency.count() - below));
    Histogram { sum: stats.total.as_secs_f64(), buckets }
}

fn sizes(stats: &OpStats) -> Histogram {
    let bounds = SIZE_BOUNDS.iter().map(|&bound| bound as f64).chain([f64::INFINITY]);
    Histogram { sum: stats.bytes as f64, buckets: bounds.zip(stats.sizes).collect() }
}

/// Writes families: a name without unit and suffix, a help text, and the samples.
struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Families<'_> {
    fn counter<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> Result<(), Error> {
        let mut family = self.encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_counter::<[(&str, &str); 0], _, f64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> Result<(), Error> {
        self.plain(MetricType::Gauge, name, help, unit, samples)
    }

    /// A family whose samples have its own name.
    fn plain<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> Result<(), Error> {
        let mut family = self.encoder.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histogram<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (L, Histogram)>,
    ) -> Result<(), Error> {
        let mut family = self.encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (labels, Histogram { sum, buckets }) in samples {
            let count = buckets.iter().map(|&(_, count)| count).sum();
            family
                .encode_family(&labels)?
                .encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn info(&mut self, name: &str, help: &str, labels: [(&str, &str); 1]) -> Result<(), Error> {
        self.encoder.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }
}
