//! Throttles and accounts, measured by fio.

use std::collections::BTreeMap;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::server::Server;
use diskchain_tests::tool::Tool;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A VDI of 64 MiB, all of it written, whose config ends with `disk_keys`.
fn served(disk_keys: &str) -> (Chain, Server) {
    let chain = Chain::new(Base::Vdi, 64 * MIB);
    let fill = chain.serve();
    let mut client = fill.connect("");
    for start in (0..64 * MIB).step_by(16 << 20) {
        client.write(start, &[3; 16 << 20]).expect("fill the disk");
    }
    drop(client);
    fill.stop();
    let server = Server::diskchain_config(chain.dir(), &(chain.config() + disk_keys));
    (chain, server)
}

/// fio's report of one group of jobs.
#[track_caller]
fn fio(server: &Server, words: &[&str]) -> Value {
    let fio = Tool::new("fio").args(["--name=job", "--ioengine=nbd", "--size=64M", "--group_reporting"]);
    let fio = fio.args(["--output-format=json", "--randseed=7"]).args(words);
    let ended = fio.arg(format!("--uri={}", server.uri(""))).run();
    // fio prints notes before its JSON.
    let text = ended.text();
    let json = text.find("{\n").map_or("", |start| &text[start..]);
    let report: Value = serde_json::from_str(json).unwrap_or_else(|_| panic!("{ended}"));
    let job = report["jobs"][0].clone();
    assert_eq!(job["error"], 0, "{job:#}");
    job
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[track_caller]
fn within_3_percent(measured: f64, limit: f64) {
    assert!((measured / limit - 1.0).abs() < 0.03, "measured {measured} a second, the limit is {limit}");
}

const TEN_SECONDS: [&str; 4] = ["--time_based", "--runtime=10", "--iodepth=16", "--numjobs=2"];

#[test]
fn a_limit_of_operations_holds_within_3_percent_over_10_seconds() {
    let (_chain, server) = served("[disk.disk.throttle]\niops_total = 600\n");
    let job = fio(&server, &[&TEN_SECONDS[..], &["--rw=randrw", "--bs=4k"]].concat());
    let operations = number(&job["read"]["total_ios"]) + number(&job["write"]["total_ios"]);
    within_3_percent(operations / (number(&job["job_runtime"]) / 2000.0), 600.0);
    server.stop();
}

#[test]
fn a_limit_of_bytes_holds_within_3_percent_over_10_seconds() {
    let (_chain, server) = served("[disk.disk.throttle]\nbps_write = \"8MiB/s\"\n");
    let job = fio(&server, &[&TEN_SECONDS[..], &["--rw=randwrite", "--bs=64k"]].concat());
    let bytes = number(&job["write"]["io_bytes"]);
    within_3_percent(bytes / (number(&job["job_runtime"]) / 2000.0), (8 * MIB) as f64);
    server.stop();
}

/// The samples of `disk` in the daemon's metrics, by name.
#[track_caller]
fn metrics(chain: &Chain) -> BTreeMap<String, u64> {
    let curl = Tool::new("curl").args(["--silent", "--fail", "--unix-socket"]);
    let text = curl.arg(chain.dir().join("control.sock")).arg("http://localhost/metrics").run().text();
    let samples = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once("{disk=\"disk\"} ")?;
        Some((name.to_owned(), rest.split(' ').next()?.parse::<f64>().ok()? as u64))
    });
    samples.collect()
}

#[test]
fn the_accounts_of_a_disk_equal_fios_own() {
    let (chain, server) = served("");
    let before = metrics(&chain);
    let words = ["--rw=randrw", "--bsrange=4k-64k", "--iodepth=16", "--numjobs=2", "--fsync=16"];
    let job = fio(&server, &words);
    let after = metrics(&chain);
    for (metric, told) in [
        ("diskchain_disk_reads_completed_total", &job["read"]["total_ios"]),
        ("diskchain_disk_read_bytes_total", &job["read"]["io_bytes"]),
        ("diskchain_disk_writes_completed_total", &job["write"]["total_ios"]),
        ("diskchain_disk_written_bytes_total", &job["write"]["io_bytes"]),
        ("diskchain_disk_flush_requests_total", &job["sync"]["total_ios"]),
    ] {
        let sample = |samples: &BTreeMap<String, u64>| {
            *samples.get(metric).unwrap_or_else(|| panic!("no {metric} among {samples:?}"))
        };
        let counted = sample(&after) - sample(&before);
        assert!(counted > 0, "{metric}");
        assert_eq!(Some(counted), told.as_u64(), "{metric}");
    }
    server.stop();
}
