//! Throttles and accounts, measured by fio, and by the Linux kernel's driver in a guest whose clock jumps.

use std::collections::BTreeMap;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::guest::Guest;
use diskchain_tests::server::{Server, diskchain_binary};
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

/// A burst of 40 operations, then 2 a second: a small part of what a guest without KVM can do.
const JUMPS_CONFIG: &str = r#"
[server]
listen = ["unix:/run/nbd.sock"]
[disk.disk]
file = "/tmp/disk.raw"
format = "raw"
create = { size = "16MiB", format = "raw" }
[disk.disk.throttle]
iops_total = 2
iops_total_max = 20
iops_total_max_length = "2s"
"#;

/// Reads without a pause while the guest's clock is set. Time is told by /proc/uptime, which that does not change.
const JUMPS_STORY: &str = r#"
trap 'cat /run/server.log' EXIT
cat >/run/diskchain.toml <<END
CONFIG
END
uptime() { read seconds rest </proc/uptime; echo $seconds; }
completed() { read reads rest </sys/block/nbd0/stat; echo $reads; }
report started $(uptime)
/tools/diskchain serve --config /run/diskchain.toml >>/run/server.log 2>&1 &
server=$!
await_socket /run/nbd.sock
/tools/nbd-client -unix /run/nbd.sock -N disk /dev/nbd0
for reader in 0 1; do
    while [ ! -e /run/enough ]; do
        dd if=/dev/nbd0 of=/dev/null bs=4k count=8 iflag=direct 2>/dev/null
    done &
    readers="${readers:-} $!"
done
while [ $(completed) -lt 40 ]; do sleep 0.1; done
sleep 2

# No jump, an hour forth, back again, and an hour back.
for jump in 0 3600 -3600 -3600; do
    phase=$((${phase:-0} + 1))
    report from$phase $(uptime) $(completed) $(date +%s)
    [ $jump = 0 ] || date -s @$(($(date +%s) + jump)) >/dev/null
    sleep 4
    # The host may have been busy with something else all the time. An hour it is not.
    enough=$(($(completed) + 4))
    tries=0
    while [ $(completed) -lt $enough ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ]
        sleep 0.3
    done
    # In this order: no operation counts that came after the time that it is counted for.
    reads=$(completed)
    report to$phase $(uptime) $reads $(date +%s)
done
touch /run/enough
wait $readers
/tools/nbd-client -d /dev/nbd0
kill -TERM $server
wait $server
"#;

#[test]
fn a_clock_that_jumps_by_an_hour_makes_a_limit_neither_stall_nor_allow_more() {
    let outcome = Guest::new()
        .program(diskchain_binary())
        .program("nbd-client")
        .modules(&["nbd"])
        .run(&JUMPS_STORY.replace("CONFIG", JUMPS_CONFIG));
    let numbers = |key: &str| -> Vec<f64> {
        let text = outcome.report(key);
        text.split(' ').map(|word| word.parse().unwrap_or_else(|_| panic!("{key} {text}"))).collect()
    };
    let started = numbers("started")[0];
    for (phase, jump) in (1..).zip([0.0, 3600.0, -3600.0, -3600.0]) {
        let (from, to) = (numbers(&format!("from{phase}")), numbers(&format!("to{phase}")));
        let took = to[0] - from[0];
        let jumped = to[2] - from[2] - took;
        assert!((jumped - jump).abs() < 10.0, "the scenario: the clock was to jump by {jump}, not {jumped}");
        let (before, completed) = (from[1], to[1] - from[1]);
        assert!(before >= 40.0, "the scenario: the burst is over after {before} operations");
        let console = &outcome.console;
        assert!(completed >= 4.0, "phase {phase}: {completed} operations in {took} s\n{console}");
        // Whatever the clock says: the burst, the rate since the daemon started, and what was in flight.
        let most = 40.0 + 2.0 * (to[0] - started) + 5.0;
        assert!(to[1] <= most, "phase {phase}: {} operations, {most} are allowed\n{console}", to[1]);
    }
}
