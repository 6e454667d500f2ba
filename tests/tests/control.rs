//! The control API, the commands that use it, and the demo, from outside: what they say is what clients did, what they
//! change takes effect, and who may change it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use diskchain_tests::client::{Client, Request};
use diskchain_tests::project_root;
use diskchain_tests::server::{Server, diskchain, diskchain_binary};
use diskchain_tests::tool::{Tool, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A daemon with a chain of two VDI, `vm1`, in a throttle group, and a raw disk, `vol1`.
struct Served {
    server: Server,
    dir: TempDir,
}

impl Served {
    #[track_caller]
    fn new() -> Served {
        Served::with("")
    }

    /// The same, with more lines in the configuration.
    #[track_caller]
    fn with(more: &str) -> Served {
        let dir = TempDir::new().expect("a folder");
        let path = dir.path().display();
        let config = format!(
            "[server]\nlisten = [\"unix:{path}/diskchain.sock\"]\ncontrol = \"unix:{path}/control.sock\"\n\
             image_dirs = [\"{path}\"]\n\
             [throttle.tenant-a]\niops_total = 100_000\n\
             [disk.vm1]\ndescription = \"root disk\"\nlayers = [\n  \
             {{ file = \"golden.vdi\", create = {{ size = \"20GiB\", format = \"vdi\" }} }},\n  \
             {{ file = \"vm1.vdi\", create = {{ format = \"vdi\" }} }},\n]\n\
             [disk.vm1.throttle]\ngroup = \"tenant-a\"\n\
             [disk.vol1]\nfile = \"vol1.raw\"\ncreate = {{ size = \"64MiB\", format = \"raw\" }}\n{more}"
        );
        let server = Server::diskchain_config(dir.path(), &config);
        Served { dir, server }
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// Status, content type and body of an answer.
    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &str) -> (u64, String, String) {
        let curl = Tool::new("curl").args(["--silent", "--max-time", "20", "--request", method]);
        let curl = if body.is_empty() { curl } else { curl.args(["--data-binary", body]) };
        let curl = curl.arg("--unix-socket").arg(self.control());
        let curl = curl.args(["--write-out", "\n%{http_code} %{content_type}"]);
        let text = curl.arg(format!("http://localhost{path}")).run().text();
        let (body, last) = text.rsplit_once('\n').expect("a line of our own");
        let (status, content_type) = last.split_once(' ').expect("two words");
        (status.parse().expect("a status"), content_type.to_owned(), body.to_owned())
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let (status, content_type, body) = self.ask("GET", path, "");
        assert_eq!((status, content_type.as_str()), (200, "application/json"), "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    #[track_caller]
    fn put(&self, path: &str, body: &Value) -> Value {
        let (status, _, answer) = self.ask("PUT", path, &body.to_string());
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).expect("JSON")
    }

    fn command(&self, args: &[&str]) -> Tool {
        diskchain(args).env("DISKCHAIN_CONTROL", self.control())
    }
}

#[track_caller]
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect()
}

#[test]
fn every_path_answers_with_the_keys_that_are_promised() {
    let served = Served::new();
    let mut client = served.server.connect("vm1");
    client.write(4096, &[7; 4096]).expect("write");
    assert_eq!(served.ask("GET", "/livez", ""), (200, "text/plain; charset=utf-8".into(), "ok\n".into()));
    assert_eq!(served.ask("GET", "/readyz", "").0, 200);
    assert_eq!(served.get("/v1/version"), json!({ "version": env!("CARGO_PKG_VERSION"), "api": "v1" }));

    let status = served.get("/v1/status");
    assert_eq!(status["pid"], served.server.pid());
    assert_eq!((&status["disks"], &status["exports"], &status["clients"]), (&json!(2), &json!(2), &json!(1)));
    assert_eq!(status["ready"], true);
    assert!(status["started"].as_str().is_some_and(|text| text.ends_with('Z')), "{status}");

    let disks = served.get("/v1/disks");
    assert_eq!([&disks[0]["name"], &disks[1]["name"]], ["vm1", "vol1"]);
    assert_eq!((&disks[0]["layers"], &disks[0]["connections"]), (&json!(2), &json!(1)));

    let disk = served.get("/v1/disks/vm1");
    let all = [
        "chain",
        "clients",
        "condition",
        "description",
        "ephemeral",
        "exports",
        "name",
        "options",
        "read_only",
        "requests",
        "size",
        "stats",
        "throttle",
        "uuid",
    ];
    assert_eq!(keys(&disk), all);
    assert_eq!((&disk["size"], &disk["description"]), (&json!(20_u64 << 30), &json!("root disk")));
    assert_eq!(disk["exports"], json!(["vm1"]));
    assert_eq!(disk["options"]["cache"], "writeback");
    let [base, top] = [&disk["chain"][0], &disk["chain"][1]];
    assert!(base["file"].as_str().is_some_and(|file| file.ends_with("/golden.vdi")), "{base}");
    assert_eq!((&base["variant"], &base["read_only"]), (&json!("dynamic"), &json!(true)));
    assert_eq!((&top["variant"], &top["parent_uuid"]), (&json!("differencing"), &base["uuid"]));
    assert_eq!(disk["clients"][0]["export"], "vm1");
    assert_eq!(disk["clients"][0]["transport"], "unix");
    assert_eq!(disk["stats"]["highest_written"], 8192);
    let write = &disk["stats"]["operations"]["write"];
    assert_eq!(keys(write), ["bytes", "completed", "errors", "failed", "latency", "time"]);
    assert_eq!(keys(&write["latency"]), ["p50", "p90", "p99", "p999"]);
    assert_eq!(keys(&write["time"]), ["overlap", "throttle", "total", "working"]);

    for part in ["chain", "requests"] {
        assert_eq!(served.get(&format!("/v1/disks/vm1/{part}")), disk[part], "{part}");
    }
    assert_eq!(keys(&served.get("/v1/disks/vm1/stats")), keys(&disk["stats"]));
    assert_eq!(served.get("/v1/disks/vm1/throttle"), disk["throttle"]);
    assert_eq!(disk["throttle"]["group"], "tenant-a");
    let group = served.get("/v1/throttles/tenant-a");
    assert_eq!(served.get("/v1/throttles"), json!([group]));
    assert_eq!((&group["limits"]["iops_total"], &group["members"]), (&json!(100_000), &json!(["vm1"])));
    assert_eq!(served.get("/v1/clients")[0]["disk"], "vm1");
    assert_eq!(served.get("/v1/exports/vm1/check"), json!({ "name": "vm1", "readable": true }));
    let exports = served.get("/v1/exports");
    assert_eq!((&exports[0]["name"], &exports[0]["connections"]["unix"]), (&json!("vm1"), &json!(1)));
    served.server.stop();
}

#[test]
fn whatever_cannot_be_done_is_a_problem_with_a_code_and_changes_nothing() {
    let served = Served::new();
    let too_long = format!("{{\"{}\": 1}}", "x".repeat(70_000));
    for (method, path, body, status, code) in [
        ("GET", "/", "", 404, "unknown_path"),
        ("GET", "/v1/nothing", "", 404, "unknown_path"),
        ("GET", "/v1/disks/vm", "", 404, "unknown_disk"),
        ("GET", "/v1/disks/vm/stats", "", 404, "unknown_disk"),
        ("GET", "/v1/disks/%ff", "", 400, "bad_path"),
        ("GET", "/v1/exports/vm/check", "", 404, "unknown_export"),
        ("GET", "/v1/throttles/tenant-b", "", 404, "unknown_group"),
        ("POST", "/v1/disks", "{}", 405, "method_not_allowed"),
        ("DELETE", "/v1/disks/vm1", "", 405, "method_not_allowed"),
        ("PUT", "/metrics", "{}", 405, "method_not_allowed"),
        ("PUT", "/v1/disks/vm1/throttle", "{", 400, "bad_json"),
        ("PUT", "/v1/disks/vm1/throttle", "7", 400, "bad_json"),
        ("PUT", "/v1/disks/vm1/throttle", "{\"iops_total\": \"many\"}", 422, "invalid_limits"),
        (
            "PUT",
            "/v1/disks/vm1/throttle",
            "{\"iops_total\": 5, \"iops_write_max\": 7}",
            422,
            "invalid_limits",
        ),
        ("PUT", "/v1/disks/vm1/throttle", &too_long, 413, "body_too_large"),
        ("PUT", "/v1/disks/vm/throttle", "{}", 404, "unknown_disk"),
    ] {
        let (answered, content_type, text) = served.ask(method, path, body);
        let what = format!("{method} {path} {text}");
        assert_eq!((answered, content_type.as_str()), (status, "application/problem+json"), "{what}");
        let problem: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&problem["code"], &problem["status"]), (&json!(code), &json!(status)), "{what}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{what}");
    }
    assert_eq!(served.get("/v1/disks/vm1/throttle")["limits"]["iops_total"], 0, "nothing was changed");
    let (_, _, text) = served.ask("PUT", "/v1/disks/vm1/throttle", "{\"iops_totl\": 5, \"iops_size\": 4096}");
    let problem: Value = serde_json::from_str(&text).expect("JSON");
    let pointers: Vec<_> =
        problem["errors"].as_array().expect("errors").iter().map(|e| &e["pointer"]).collect();
    assert_eq!(pointers, ["#/iops_totl", "#/iops_size"], "each mistake is named");
    served.server.stop();
}

/// Sends writes of 1 MiB one after the other, and does not wait for them.
#[track_caller]
fn send_writes(client: &mut Client, count: u64) {
    for index in 0..count {
        let data = vec![index as u8 + 1; MIB as usize];
        client.send(&Request::Write { offset: index * MIB, data, fua: false }).expect("send");
    }
}

#[test]
fn a_throttled_client_is_listed_and_goes_on_at_once_when_its_limit_is_lifted() {
    let served = Served::new();
    let limits = served.put("/v1/disks/vol1/throttle", &json!({ "bps_write": 100_000 }))["limits"].clone();
    assert_eq!((&limits["bps_write"], &limits["bps_read"]), (&json!(100_000), &json!(0)));
    let mut client = served.server.connect("vol1");
    // 8 MiB at 100 kB/s take 84 seconds.
    send_writes(&mut client, 8);
    let began = Instant::now();
    let waiting = loop {
        let requests = served.get("/v1/disks/vol1/requests");
        let waiting: Vec<Value> = requests.as_array().expect("a list").clone();
        if waiting.len() == 7 {
            break waiting;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "seven of eight writes wait: {requests}");
    };
    let id = &served.get("/v1/clients")[0]["id"];
    for (request, index) in waiting.iter().zip(1..) {
        assert_eq!(keys(request), ["age", "client", "id", "length", "offset", "op", "stage", "waiting_for"]);
        assert_eq!((&request["stage"], &request["op"]), (&json!("throttle"), &json!("write")));
        assert_eq!((&request["offset"], &request["length"]), (&json!(index * MIB), &json!(MIB)));
        assert_eq!((&request["client"], &request["waiting_for"]), (id, &Value::Null));
        assert!(request["age"].as_f64().is_some_and(|age| age > 0.0 && age < 60.0), "{request}");
    }
    let disk = served.get("/v1/disks/vol1");
    assert_eq!((&disk["throttle"]["waiting"], &disk["clients"][0]["in_flight"]), (&json!(7), &json!(7)));
    let shown = served.command(&["show", "vol1"]).run().text();
    assert!(shown.contains("requests in flight") && shown.contains("throttle"), "{shown}");

    served.put("/v1/disks/vol1/throttle", &json!({}));
    for _ in 0..8 {
        client.receive().expect("a reply").1.expect("the write succeeds");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "it went on after {:?} only", began.elapsed());
    let throttle = served.get("/v1/disks/vol1/throttle");
    assert_eq!(throttle["waiting"], 0);
    assert!(throttle["waited"]["bps_write"].as_f64().is_some_and(|waited| waited > 0.1), "{throttle}");
    served.server.stop();
}

#[test]
fn a_limit_that_is_set_holds_from_the_next_request_on_for_a_disk_and_for_its_group() {
    let served = Served::new();
    let mut client = served.server.connect("vm1");
    let mut thirty_reads = || {
        let began = Instant::now();
        for index in 0..30 {
            client.read(index * 4096, 4096).expect("read");
        }
        began.elapsed()
    };
    let unlimited = thirty_reads();
    assert!(unlimited < Duration::from_secs(1), "30 reads without a limit took {unlimited:?}");
    for path in ["/v1/disks/vm1/throttle", "/v1/throttles/tenant-a"] {
        served.put(path, &json!({ "iops_read": 20 }));
        // A tenth of a second's worth goes at once, the rest at its rate.
        let limited = thirty_reads();
        assert!(limited > Duration::from_millis(1100), "{path}: 30 reads at 20 a second took {limited:?}");
        assert!(limited < Duration::from_secs(10), "{path}: 30 reads at 20 a second took {limited:?}");
        served.put(path, &json!({}));
    }
    served.server.stop();
}

#[test]
fn counters_equal_what_a_client_did() {
    let served = Served::new();
    let operations = || served.get("/v1/disks/vm1/stats")["operations"].clone();
    let before = operations();
    let mut qemu_io = Tool::new("qemu-io").args(["-f", "raw"]);
    for index in 0..20 {
        qemu_io = qemu_io.args(["-c", &format!("write -P 5 {}k 64k", index * 100)]);
    }
    for command in ["read 0 4k", "read 1M 512k", "discard 10M 2M", "write -z 30M 1M", "flush"] {
        qemu_io = qemu_io.args(["-c", command]);
    }
    qemu_io.arg(served.server.uri("vm1")).run();
    let after = operations();
    let done = |op: &str, key: &str| {
        after[op][key].as_u64().expect("a number") - before[op][key].as_u64().expect("a number")
    };
    assert_eq!((done("write", "completed"), done("write", "bytes")), (20, 20 << 16));
    assert_eq!((done("read", "completed"), done("read", "bytes")), (2, (4 + 512) << 10));
    assert_eq!((done("discard", "completed"), done("discard", "bytes")), (1, 2 * MIB));
    assert_eq!((done("write_zeroes", "completed"), done("write_zeroes", "bytes")), (1, MIB));
    assert!(done("flush", "completed") >= 1);
    assert!(after.as_object().expect("by operation").values().all(|operation| operation["failed"] == 0));
    assert!(after["write"]["latency"]["p50"].as_f64() <= after["write"]["latency"]["p999"].as_f64());

    // The metrics are the same numbers, in the kernel's way of counting: zeroing is writing.
    let (status, content_type, text) = served.ask("GET", "/metrics", "");
    assert_eq!(status, 200);
    assert!(content_type.starts_with("application/openmetrics-text"), "{content_type}");
    for line in [
        "diskchain_disk_writes_completed_total{disk=\"vm1\"} 21".to_owned(),
        format!("diskchain_disk_written_bytes_total{{disk=\"vm1\"}} {}", (20 << 16) + MIB),
        "diskchain_disk_discards_completed_total{disk=\"vm1\"} 1".to_owned(),
        "diskchain_handshake_failures_total{reason=\"violation\"} 0".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let free =
        text.lines().find(|line| line.starts_with("diskchain_host_free_bytes{path=")).expect("free space");
    assert!(
        free.rsplit(' ').next().and_then(|bytes| bytes.parse::<f64>().ok()).is_some_and(|free| free > 0.0)
    );
    assert!(text.contains("process_resident_memory_bytes ") && text.ends_with("# EOF\n"));
    served.server.stop();
}

#[test]
fn a_handshake_that_fails_and_a_client_too_many_are_counted_by_reason() {
    let served = Served::with("[export.once]\ndisk = \"vol1\"\nmax_connections = 1\n");
    use std::io::{Read, Write};
    let mut stranger = std::os::unix::net::UnixStream::connect(served.server.socket()).expect("connect");
    stranger.read_exact(&mut [0; 18]).expect("a greeting");
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("send");
    let _ = stranger.read_to_end(&mut Vec::new());
    let first = served.server.connect("once");
    Client::connect(served.server.socket(), "once").err().expect("one client is allowed");
    let (_, _, text) = served.ask("GET", "/metrics", "");
    for line in [
        "diskchain_handshake_failures_total{reason=\"violation\"} 1",
        "diskchain_connections_total{export=\"once\",result=\"refused\"} 1",
        "diskchain_connections{export=\"once\",transport=\"unix\",tls=\"false\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    drop(first);
    served.server.stop();
}

/// The command as another user, who may reach the sockets.
fn as_nobody(served: &Served, program: &str) -> Tool {
    let open =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    open(served.dir.path(), 0o755);
    open(&served.control(), 0o666);
    let root = rustix::process::geteuid().is_root();
    let tool = if root { Tool::new("setpriv") } else { Tool::new("sudo").args(["-n", "setpriv"]) };
    tool.args(["--reuid=65534", "--regid=65534", "--clear-groups", program])
}

#[test]
fn another_user_may_look_and_may_not_change_anything() {
    let served = Served::new();
    let curl = |args: &[&str]| {
        let curl =
            as_nobody(&served, "curl").args(["--silent", "--write-out", "\n%{http_code}", "--unix-socket"]);
        curl.arg(served.control()).args(args).run().text()
    };
    let disks = curl(&["http://localhost/v1/disks"]);
    assert!(disks.contains("\"vm1\"") && disks.ends_with("\n200"), "{disks}");
    let refused = curl(&["-X", "PUT", "-d", "{\"iops_total\": 1}", "http://localhost/v1/disks/vm1/throttle"]);
    assert!(refused.contains("\"code\":\"forbidden\"") && refused.ends_with("\n403"), "{refused}");
    let refused = curl(&["-X", "PUT", "-d", "{}", "http://localhost/v1/throttles/tenant-a"]);
    assert!(refused.ends_with("\n403"), "{refused}");
    assert_eq!(served.get("/v1/disks/vm1/throttle")["limits"]["iops_total"], 0);
    assert_eq!(served.get("/v1/throttles/tenant-a")["limits"]["iops_total"], 100_000);
    served.put("/v1/disks/vm1/throttle", &json!({ "iops_total": 1000 }));
    served.server.stop();
}

#[test]
fn idle_and_slow_control_clients_keep_nobody_from_being_served() {
    use std::io::Write;
    let served = Served::new();
    let slow: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = std::os::unix::net::UnixStream::connect(served.control()).expect("connect");
            stream.write_all(b"GET /v1/disks HTTP/1.1\r\nHost: ").expect("half a request");
            stream
        })
        .collect();
    assert_eq!(served.get("/v1/status")["ready"], true);
    let mut client = served.server.connect("vol1");
    client.write(0, &[1; 4096]).expect("write");
    drop(slow);
    served.server.stop();
}

#[test]
fn ls_show_and_throttle_tell_people_and_programs_the_same() {
    let served = Served::new();
    let ls = served.command(&["ls"]).run().text();
    let lines: Vec<Vec<&str>> = ls.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..5], ["NAME", "SIZE", "MODE", "CONDITION", "LAYERS"], "{ls}");
    assert_eq!(lines[1][..5], ["vm1", "20", "GiB", "read-write", "sound"], "{ls}");
    assert_eq!(served.command(&["ls", "--json"]).run().json(), served.get("/v1/disks"));
    let show = served.command(&["show", "vm1"]).run().text();
    for part in [
        "root disk",
        "20 GiB (21474836480 bytes)",
        "golden.vdi",
        "vdi differencing",
        "throttle group  tenant-a",
    ] {
        assert!(show.contains(part), "{part} is not in\n{show}");
    }
    assert_eq!(
        served.command(&["show", "vm1", "--json"]).run().json()["chain"],
        served.get("/v1/disks/vm1/chain")
    );

    let set = ["throttle", "set", "vm1", "iops_total=200", "bps_write=1MiB/s", "bps_write_max=2MiB/s"];
    served.command(&set).run();
    served.command(&["throttle", "set", "vm1", "bps_write_max_length=3s"]).run();
    let limits = &served.get("/v1/disks/vm1/throttle")["limits"];
    assert_eq!((&limits["iops_total"], &limits["bps_write"]), (&json!(200), &json!(MIB)), "others stay");
    assert_eq!((&limits["bps_write_max"], &limits["bps_write_max_length"]), (&json!(2 * MIB), &json!(3.0)));
    let shown = served.command(&["throttle", "show", "vm1"]).run().text();
    assert!(shown.contains("bps_write_max         2MiB/s"), "{shown}");
    served.command(&["throttle", "set", "vm1", "bps_write=0"]).run();
    let limits = &served.get("/v1/disks/vm1/throttle")["limits"];
    assert_eq!(
        (&limits["bps_write_max"], &limits["iops_total"]),
        (&json!(0), &json!(200)),
        "its burst went with it"
    );
    served.command(&["throttle", "clear", "tenant-a", "--group"]).run();
    assert_eq!(served.get("/v1/throttles/tenant-a")["limits"]["iops_total"], 0);
    served.server.stop();
}

#[test]
fn what_is_not_there_has_its_exit_code_and_a_way_out() {
    let served = Served::new();
    for (args, code, words) in [
        (&["show", "vm"][..], 4, "did you mean `vm1`?"),
        (&["throttle", "show", "vmm1"], 4, "did you mean `vm1`?"),
        (&["throttle", "set", "vm1", "iops_totl=1"], 2, "did you mean `iops_total`?"),
        (&["throttle", "set", "vm1", "iops_total=1", "iops_read=1"], 2, "iops_total"),
        (&["ls", "--control", "/nonexistent/socket"], 9, "/nonexistent/socket"),
        (&["show", "vm1", "--control", "/nonexistent/socket"], 9, "--control PATH or DISKCHAIN_CONTROL"),
    ] {
        let ended = served.command(args).run_refused();
        assert_eq!(ended.status.code(), Some(code), "{ended}");
        assert!(ended.stderr.contains(words), "{ended}");
    }
    served.server.stop();
}

#[test]
fn a_health_check_knows_a_daemon_that_serves_from_one_that_hangs_or_is_gone() {
    use rustix::process::Signal;
    let served = Served::with("[export.once]\ndisk = \"vol1\"\nmax_connections = 1\n");
    let check = || served.command(&["healthcheck"]).seconds(15);
    check().run();
    let full = served.server.connect("once");
    check().run();
    drop(full);
    served.server.signal(Signal::STOP);
    let began = Instant::now();
    let hanging = check().run_refused();
    served.server.signal(Signal::CONT);
    assert_eq!(hanging.status.code(), Some(1), "{hanging}");
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    check().run();
    let control = served.control();
    served.server.stop();
    assert!(!control.exists(), "the socket goes with the daemon");
    let gone = diskchain(&["healthcheck", "--control"]).arg(control).run_refused();
    assert_eq!(gone.status.code(), Some(1), "{gone}");
}

#[test]
fn health_checks_are_no_news_in_the_log_but_clients_are() {
    let served = Served::new();
    let log = || served.server.log();
    for _ in 0..3 {
        // What one found is good for a second.
        thread::sleep(Duration::from_millis(1100));
        served.command(&["healthcheck"]).run();
        served.command(&["healthcheck"]).run();
    }
    let reads = served.get("/v1/disks/vol1/stats")["operations"]["read"]["completed"].as_u64();
    // The first and the last block each time: once at the start, then once a second or more.
    assert!(reads.is_some_and(|reads| (8..=14).contains(&reads)), "the scenario: {reads:?}");
    assert!(!log().contains("connected"), "{}", log());
    // The one who waited for the daemon's greeting is the harness.
    assert!(log().matches("handshake failed").count() <= 1, "they left in due form: {}", log());
    let mut client = served.server.connect("vol1");
    client.read(0, 512).expect("read");
    client.disconnect().expect("a goodbye");
    wait_until("the client's end is in the log", 30, || log().contains("disconnected"));
    assert_eq!(log().matches("connected").count(), 2, "it came and went: {}", log());
    served.server.stop();
}

/// Runs the `console` blocks of docs/control.md one after the other: lines with `$` are commands, the lines after each
/// are what it prints, and `…` stands for anything.
#[test]
fn the_examples_of_the_manual_print_what_it_says() {
    let page = fs::read_to_string(project_root().join("docs/control.md")).expect("the manual");
    let served = Served::new();
    let binary = diskchain_binary();
    let path =
        format!("{}:{}", binary.parent().expect("a folder").display(), std::env::var("PATH").expect("PATH"));
    let mut examples = 0;
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().expect("its end");
        for example in block.split("$ ").skip(1) {
            let (command, expected) = example.split_once('\n').expect("a command and what it prints");
            let command =
                command.replace("/run/diskchain-control.sock", &served.control().display().to_string());
            let shell = Tool::new("sh").env("PATH", &path).env("DISKCHAIN_CONTROL", served.control());
            let printed = shell.args(["-c", &format!("({command}) 2>&1; echo")]).run().text();
            assert!(
                matches(printed.trim_end(), expected.trim_end()),
                "$ {command}\n{printed}\n--- expected:\n{expected}"
            );
            examples += 1;
        }
    }
    assert!(examples >= 10, "only {examples} examples were found");
    served.server.stop();
}

/// Whether `text` is `pattern` with something, or nothing, in place of every `…`.
fn matches(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty() || pattern.ends_with('…')
}
