//! Keys of the configuration, each by what it does to a disk as its clients and its images see it.

use std::fs;
use std::path::Path;

use diskchain_tests::server::{Server, diskchain};
use diskchain_tests::tool::Tool;

const MIB: u64 = 1 << 20;

/// Serves a configuration; `dir` stands for the folder of the test.
#[track_caller]
fn serve(dir: &Path, disks: &str) -> Server {
    let place = dir.display();
    let config = format!(
        "[server]\nlisten = [\"unix:{place}/diskchain.sock\"]\ncontrol = \"off\"\nimage_dirs = [\"{place}\"]\n\
         [log]\nslow_io = \"100ms\"\nformat = \"json\"\n{disks}"
    );
    Server::diskchain_config(dir, &config)
}

#[track_caller]
fn qemu_io(server: &Server, export: &str, commands: &[&str]) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let ended = Tool::new("qemu-io").args(["-f", "raw"]).args(commands).arg(server.uri(export)).run();
    assert!(!ended.text().contains("verification failed"), "{ended}");
}

#[test]
fn every_cache_mode_reads_back_what_was_written_and_leaves_a_clean_image() {
    for cache in ["writeback", "writethrough", "none", "directsync", "unsafe"] {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = format!(
            "[disk.vm]\nfile = \"vm.vdi\"\ncreate = {{ size = \"16MiB\", format = \"vdi\" }}\ncache = \"{cache}\"\n"
        );
        let server = serve(dir.path(), &disk);
        qemu_io(&server, "vm", &["write -P 7 1000 5000", "write -P 8 3M 2M", "flush", "read -P 7 1000 5000"]);
        server.stop();
        let server = serve(dir.path(), &disk);
        qemu_io(&server, "vm", &["read -P 7 1000 5000", "read -P 8 3M 2M", "read -P 0 8M 8M"]);
        server.stop();
        Tool::new("qemu-img").args(["check", "-f", "vdi"]).arg(dir.path().join("vm.vdi")).run();
    }
}

#[test]
fn detected_zeroes_take_no_space_and_a_block_of_4096_is_told_to_clients() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(
        dir.path(),
        "[disk.vm]\nfile = \"vm.vdi\"\ncreate = { size = \"64MiB\", format = \"vdi\" }\n\
         detect_zeroes = \"unmap\"\nlogical_block_size = 4096\n",
    );
    qemu_io(&server, "vm", &["write -P 1 0 32M", "flush"]);
    let image = dir.path().join("vm.vdi");
    let full = fs::metadata(&image).expect("the image").len();
    assert!(full > 32 * MIB, "{full} bytes hold the data");
    qemu_io(&server, "vm", &["write -P 0 0 32M", "flush", "read -P 0 0 64M"]);
    let info = Tool::new("nbdinfo").args(["--json", &server.uri("vm")]).run().json();
    assert_eq!(info["exports"][0]["block_size_minimum"], 4096);
    server.stop();
    let empty = fs::metadata(&image).expect("the image").len();
    assert!(empty < 4 * MIB, "{empty} bytes hold nothing");
}

#[test]
fn a_slow_request_is_logged_with_where_its_time_went() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    diskchain(&["image", "create", &path("base.vdi"), "--size", "16MiB"]).run();
    diskchain(&["image", "create", &path("child.vdi"), "--parent", &path("base.vdi")]).run();
    let server = serve(
        dir.path(),
        "[disk.vm]\nfile = \"child.vdi\"\nparents = \"auto\"\n[disk.vm.throttle]\niops_write = 5\n",
    );
    let writes = ["aio_write 0 4k", "aio_write 8k 4k", "aio_write 16k 4k", "aio_write 24k 4k", "aio_flush"];
    qemu_io(&server, "vm", &writes);
    let log = server.log();
    let slow: Vec<serde_json::Value> = log
        .lines()
        .filter(|line| line.contains("slow request"))
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    assert!(slow.len() >= 2, "four writes at five a second, one of them free: {log}");
    for line in &slow {
        let time = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"));
        assert_eq!((line["diskchain.disk"].as_str(), line["op"].as_str()), (Some("vm"), Some("write")));
        assert!(time("throttle_ms") > 90.0 && time("total_ms") >= time("throttle_ms"), "{line}");
    }
    server.stop();
}
