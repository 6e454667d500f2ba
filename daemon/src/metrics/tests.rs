//! A scrape is read back by the rules of OpenMetrics 1.0 and compared with what went in.

use std::collections::{BTreeMap, BTreeSet};

use disk_core::ErrorKind;
use disk_core::condition::Condition;
use disk_core::stats::Outcome;
use disk_core::throttle::{Limits, Rate, Rates};

use super::*;

type Labels = BTreeMap<String, String>;

/// A scrape as a strict reader understands it.
#[derive(Debug, Default)]
struct Scrape {
    types: BTreeMap<String, String>,
    samples: BTreeMap<(String, Labels), f64>,
}

impl Scrape {
    /// # Panics
    /// On anything that OpenMetrics forbids.
    fn parse(text: &str) -> Scrape {
        let mut scrape = Scrape::default();
        let mut family = String::new();
        let mut reserved = BTreeSet::new();
        let body = text.strip_suffix("# EOF\n").expect("a scrape ends with EOF");
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let (kind, rest) = comment.split_once(' ').expect("a comment has a keyword");
                let (name, value) = rest.split_once(' ').expect("a comment names a family");
                match kind {
                    "HELP" => {
                        family = name.to_owned();
                        assert!(!value.is_empty(), "{line}");
                    }
                    "TYPE" => {
                        assert_eq!(name, family, "{line}");
                        assert!(
                            scrape.types.insert(name.to_owned(), value.to_owned()).is_none(),
                            "twice: {line}"
                        );
                        let names: BTreeSet<String> = suffixes(value)
                            .iter()
                            .chain(&[""])
                            .map(|suffix| format!("{name}{suffix}"))
                            .collect();
                        assert!(reserved.is_disjoint(&names), "two families clash: {line}");
                        reserved.extend(names);
                    }
                    "UNIT" => assert!(name == family && name.ends_with(&format!("_{value}")), "{line}"),
                    _ => panic!("{line}"),
                }
            } else {
                scrape.sample(&family, line);
            }
        }
        scrape.check_histograms();
        scrape
    }

    fn sample(&mut self, family: &str, line: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, parse_labels(labels)),
            None => (series, Labels::new()),
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
        assert!(name.chars().all(valid) && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
        let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} is outside of its family"));
        assert!(
            suffixes(&self.types[family]).contains(&suffix),
            "{line} does not fit {}",
            self.types[family]
        );
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(value >= 0.0, "{line}");
        assert!(self.samples.insert((name.to_owned(), labels), value).is_none(), "twice: {line}");
    }

    fn check_histograms(&self) {
        for family in self.types.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
            let series = self.samples.iter().filter(|((name, _), _)| *name == format!("{family}_count"));
            for ((_, labels), count) in series {
                assert!(
                    self.samples.contains_key(&(format!("{family}_sum"), labels.clone())),
                    "{family} {labels:?}"
                );
                let mut buckets: Vec<(f64, f64)> = self
                    .samples
                    .iter()
                    .filter(|((name, with_le), _)| {
                        let mut without = with_le.clone();
                        without.remove("le");
                        *name == format!("{family}_bucket") && without == *labels
                    })
                    .map(|((_, labels), value)| (labels["le"].parse().expect("a bound is a number"), *value))
                    .collect();
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{family} {labels:?}: {buckets:?}");
                assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{family} {labels:?}");
            }
        }
    }

    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let key = (name.to_owned(), labels);
        *self.samples.get(&key).unwrap_or_else(|| panic!("no sample {key:?}"))
    }
}

/// What a sample's name has after that of its family.
fn suffixes(kind: &str) -> &'static [&'static str] {
    match kind {
        "counter" => &["_total"],
        "gauge" | "unknown" => &[""],
        "info" => &["_info"],
        "histogram" => &["_bucket", "_sum", "_count"],
        _ => panic!("no such type: {kind}"),
    }
}

/// Labels after their opening brace.
fn parse_labels(text: &str) -> Labels {
    let mut labels = Labels::new();
    let mut rest = text;
    while rest != "}" {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("labels {text}"));
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().unwrap_or_else(|| panic!("labels {text}")) {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, quoted @ ('"' | '\\'))) => quoted,
                    other => panic!("escape {other:?} in {text}"),
                }),
                (_, character) => value.push(character),
            }
        };
        assert!(labels.insert(name.to_owned(), value).is_none(), "label twice: {text}");
        rest = after[end + 1..].strip_prefix(',').unwrap_or(&after[end + 1..]);
    }
    labels
}

/// A name that only a writer who escapes gets through.
const ODD: &str = "a \"b\"\\c\nd}e,f=";

fn snapshot() -> Snapshot {
    let mut stats = DiskStats::default();
    let ms = Duration::from_millis;
    let outcome = |op, bytes, total| Outcome { op, bytes, end: bytes, total, ..Outcome::default() };
    for (bytes, time) in [(4096, ms(1)), (4096, ms(20)), (1 << 20, ms(100))] {
        stats.record(&outcome(Op::Read, bytes, time));
    }
    stats.record(&Outcome { throttled: ms(3), waited: ms(2), ..outcome(Op::Write, 8192, ms(10)) });
    stats.record(&outcome(Op::WriteZeroes, 65536, ms(4)));
    stats.record(&outcome(Op::Flush, 0, ms(50)));
    stats.record(&outcome(Op::Discard, 1 << 30, ms(5)));
    stats.record(&outcome(Op::BlockStatus, 1 << 40, ms(7)));
    for kind in [ErrorKind::Io, ErrorKind::Corrupt, ErrorKind::NoSpace] {
        stats.record(&Outcome { error: Some(kind), ..outcome(Op::Write, 512, ms(1)) });
    }
    let mut rates = Rates::default();
    rates[Dimension::IopsTotal].avg = 2000;
    rates[Dimension::BpsWrite] = Rate { avg: 1 << 20, max: 1 << 21, max_length: Duration::ZERO };
    let disk = |name: &str, stats: &DiskStats, limits| Disk {
        name: name.to_owned(),
        stats: stats.clone(),
        throttle: ThrottleStatus {
            limits,
            waiting: 7,
            waited: [ms(3), ms(0), ms(0), ms(0), ms(0), ms(1500)],
        },
        size: 20 << 30,
        allocated: 5 << 30,
        layers: 3,
        read_only: false,
        condition: Condition::FlushFailed,
    };
    Snapshot {
        version: "1.2.3",
        io_engine: "io_uring",
        disks: vec![
            disk("vm1", &stats, Limits::new(rates, 0).unwrap()),
            Disk { read_only: true, ..disk(ODD, &DiskStats::default(), Limits::default()) },
        ],
        exports: vec![
            Export { name: "vm1".into(), unix: 2, tcp: 1, connected: 9, refused: 4 },
            Export { name: ODD.into(), unix: 0, tcp: 0, connected: 0, refused: 0 },
        ],
        handshake_failures: vec![("timeout", 3), ("protocol", 1)],
        host_free: vec![("/srv/images".into(), 123 << 30)],
        process: Some(Process {
            cpu: ms(1230),
            resident: 50 << 20,
            virtual_memory: 900 << 20,
            open_files: 33,
            max_open_files: 1 << 20,
            started: Duration::from_millis(1_700_000_000_250),
        }),
    }
}

/// Name and labels of every sample that a user may build a dashboard on.
const PROMISED: &[(&str, &[&str])] = &[
    ("diskchain_disk_reads_completed_total", &["disk"]),
    ("diskchain_disk_read_bytes_total", &["disk"]),
    ("diskchain_disk_read_time_seconds_total", &["disk"]),
    ("diskchain_disk_writes_completed_total", &["disk"]),
    ("diskchain_disk_written_bytes_total", &["disk"]),
    ("diskchain_disk_write_time_seconds_total", &["disk"]),
    ("diskchain_disk_discards_completed_total", &["disk"]),
    ("diskchain_disk_flush_requests_total", &["disk"]),
    ("diskchain_disk_io_now", &["disk"]),
    ("diskchain_disk_io_time_seconds_total", &["disk"]),
    ("diskchain_disk_io_time_weighted_seconds_total", &["disk"]),
    ("diskchain_request_duration_seconds_bucket", &["disk", "le", "op"]),
    ("diskchain_request_duration_seconds_count", &["disk", "op"]),
    ("diskchain_request_duration_seconds_sum", &["disk", "op"]),
    ("diskchain_request_size_bytes_bucket", &["disk", "le", "op"]),
    ("diskchain_request_size_bytes_count", &["disk", "op"]),
    ("diskchain_request_size_bytes_sum", &["disk", "op"]),
    ("diskchain_request_errors_total", &["disk", "errno", "op"]),
    ("diskchain_requests_in_flight", &["disk"]),
    ("diskchain_request_stage_seconds_total", &["disk", "stage"]),
    ("diskchain_throttle_wait_seconds_total", &["dimension", "disk"]),
    ("diskchain_throttle_limit", &["dimension", "disk"]),
    ("diskchain_throttle_queue_length", &["disk"]),
    ("diskchain_disk_size_bytes", &["disk"]),
    ("diskchain_disk_allocated_bytes", &["disk"]),
    ("diskchain_disk_layers", &["disk"]),
    ("diskchain_disk_read_only", &["disk"]),
    ("diskchain_disk_condition", &["condition", "disk"]),
    ("diskchain_cow_copied_bytes_total", &["disk"]),
    ("diskchain_host_free_bytes", &["path"]),
    ("diskchain_connections", &["export", "tls", "transport"]),
    ("diskchain_connections_total", &["export", "result"]),
    ("diskchain_handshake_failures_total", &["reason"]),
    ("diskchain_build_info", &["version"]),
    ("diskchain_io_engine_info", &["engine"]),
    ("process_cpu_seconds_total", &[]),
    ("process_resident_memory_bytes", &[]),
    ("process_virtual_memory_bytes", &[]),
    ("process_open_fds", &[]),
    ("process_max_fds", &[]),
    ("process_start_time_seconds", &[]),
];

#[test]
fn a_scrape_holds_exactly_the_promised_names_and_labels() {
    let scrape = Scrape::parse(&render(snapshot()));
    let found: BTreeSet<(&str, Vec<&str>)> = scrape
        .samples
        .keys()
        .map(|(name, labels)| (name.as_str(), labels.keys().map(String::as_str).collect()))
        .collect();
    let promised: BTreeSet<_> = PROMISED.iter().map(|(name, labels)| (*name, labels.to_vec())).collect();
    assert_eq!(found, promised);
}

#[test]
fn values_are_those_of_the_snapshot_in_seconds_and_bytes() {
    let scrape = Scrape::parse(&render(snapshot()));
    let disk = ("disk", "vm1");
    for (name, expected) in [
        ("diskchain_disk_reads_completed_total", 3.0),
        ("diskchain_disk_read_bytes_total", 8192.0 + 1048576.0),
        ("diskchain_disk_read_time_seconds_total", 0.121),
        ("diskchain_disk_writes_completed_total", 2.0),
        ("diskchain_disk_written_bytes_total", 8192.0 + 65536.0),
        ("diskchain_disk_write_time_seconds_total", 0.014),
        ("diskchain_disk_discards_completed_total", 1.0),
        ("diskchain_disk_flush_requests_total", 1.0),
        ("diskchain_disk_allocated_bytes", f64::from(5 << 20) * 1024.0),
        ("diskchain_throttle_queue_length", 7.0),
    ] {
        assert_eq!(scrape.value(name, &[disk]), expected, "{name}");
        assert!(scrape.value(name, &[("disk", ODD)]) >= 0.0);
    }
    for (stage, expected) in [("throttle", 0.003), ("overlap", 0.002), ("data", 0.138), ("flush", 0.05)] {
        let seconds = scrape.value("diskchain_request_stage_seconds_total", &[disk, ("stage", stage)]);
        assert!((seconds - expected).abs() < 1e-9, "{stage}: {seconds}");
    }
    let errors =
        |errno| scrape.value("diskchain_request_errors_total", &[disk, ("op", "write"), ("errno", errno)]);
    assert_eq!((errors("EIO"), errors("ENOSPC")), (2.0, 1.0), "kinds that clients cannot tell apart are one");
    for (condition, expected) in [("sound", 0.0), ("flush-failed", 1.0), ("corrupt", 0.0), ("frozen", 0.0)] {
        let value = scrape.value("diskchain_disk_condition", &[disk, ("condition", condition)]);
        assert_eq!(value, expected, "{condition}");
    }
    let limit = |dimension| scrape.value("diskchain_throttle_limit", &[disk, ("dimension", dimension)]);
    assert_eq!((limit("iops_total"), limit("bps_write")), (2000.0, 1048576.0));
    assert_eq!(scrape.value("process_start_time_seconds", &[]), 1_700_000_000.25);
    assert_eq!(
        scrape.value("diskchain_connections", &[("export", "vm1"), ("transport", "tcp"), ("tls", "false")]),
        1.0
    );
}

#[test]
fn buckets_hold_what_is_not_above_their_bound() {
    let scrape = Scrape::parse(&render(snapshot()));
    let bucket = |name: &str, op: &str, wanted: f64| {
        let (_, value) = scrape
            .samples
            .iter()
            .filter(|((sample, labels), _)| {
                *sample == format!("{name}_bucket") && labels["disk"] == "vm1" && labels["op"] == op
            })
            .map(|((_, labels), value)| (labels["le"].parse::<f64>().unwrap(), *value))
            .filter(|(le, _)| *le >= wanted)
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .expect("there is a bucket at or above every value");
        value
    };
    let durations = "diskchain_request_duration_seconds";
    assert_eq!(bucket(durations, "read", 0.0005), 0.0);
    assert_eq!(bucket(durations, "read", 0.001), 1.0);
    assert_eq!(bucket(durations, "read", 0.020), 2.0);
    assert_eq!(bucket(durations, "read", f64::INFINITY), 3.0);
    let sizes = "diskchain_request_size_bytes";
    assert_eq!(bucket(sizes, "read", 2048.0), 0.0);
    assert_eq!(bucket(sizes, "read", 4096.0), 2.0);
    assert_eq!(bucket(sizes, "discard", 33554432.0), 0.0);
    assert_eq!(bucket(sizes, "discard", f64::INFINITY), 1.0);
}

#[test]
fn a_daemon_without_disks_and_without_proc_is_still_a_valid_scrape() {
    let empty = Snapshot {
        version: "0",
        io_engine: "threads",
        disks: Vec::new(),
        exports: Vec::new(),
        handshake_failures: Vec::new(),
        host_free: Vec::new(),
        process: None,
    };
    let scrape = Scrape::parse(&render(empty));
    assert_eq!(scrape.samples.len(), 2, "build and engine: {:?}", scrape.samples);
}
