//! Keys of the configuration, each by what it does to a disk as its clients and its images see it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use diskchain_tests::control::Control;
use diskchain_tests::server::{Server, diskchain};
use diskchain_tests::tool::{Tool, sha256, wait_until};

const MIB: u64 = 1 << 20;

/// Serves a configuration; `dir` stands for the folder of the test.
#[track_caller]
fn serve(dir: &Path, disks: &str) -> Server {
    let place = dir.display();
    let config = format!(
        "[server]\nlisten = [\"unix:{place}/diskchain.sock\"]\ncontrol = \"unix:{place}/control.sock\"\nimage_dirs = [\"{place}\"]\n\
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

/// How many blocks the image has now.
#[track_caller]
fn blocks(image: &Path) -> u64 {
    let info = diskchain(&["image", "info", "--json"]).arg(image).run().json();
    info["format-specific"]["data"]["blocks-allocated"].as_u64().expect("a number of blocks")
}

/// What was written, zeroed and left out, as the daemon counts it.
#[track_caller]
fn counted(dir: &Path, key: &str) -> u64 {
    Control::of(dir).get("/v1/disks/vm/stats")[key].as_u64().expect("a number of bytes")
}

/// A base of 16 MiB whose first half holds 5, in `base.vdi`, and a child of it, in `child.vdi`.
#[track_caller]
fn base_and_child(dir: &Path) {
    let (base, child) = (dir.join("base.vdi"), dir.join("child.vdi"));
    diskchain(&["image", "create", "--size", "16MiB"]).arg(&base).run();
    Tool::new("qemu-io").args(["-f", "vdi", "-c", "write -P 5 0 8M"]).arg(&base).run();
    diskchain(&["image", "create", "--parent"]).arg(&base).arg(&child).run();
}

const CHILD: &str = "[disk.vm]\nfile = \"child.vdi\"\nparents = \"auto\"\n";

#[test]
fn written_zeroes_take_blocks_only_where_they_are_honored_and_hide_the_parent_in_either_case() {
    for (honor, taken) in [(false, 1), (true, 2)] {
        let dir = tempfile::tempdir().expect("a folder");
        base_and_child(dir.path());
        let disk = format!("{CHILD}honor_zeroes = {honor}\n");
        let server = serve(dir.path(), &disk);
        // Over data of the parent, over a part of it, and over nothing: that the parent has zeroes there already is a
        // matter of honor_same.
        qemu_io(&server, "vm", &["write -P 0 1M 1M", "write -P 0 3M 64k", "write -P 0 12M 1M", "flush"]);
        let suppressed = counted(dir.path(), "zeroes");
        server.stop();
        // A block that is zero in parts only cannot be a mark in the map: it is taken in either case.
        assert_eq!(blocks(&dir.path().join("child.vdi")), taken, "honor_zeroes = {honor}");
        let expected = if honor { 0 } else { 2 * MIB + (64 << 10) };
        assert_eq!(suppressed, expected, "honor_zeroes = {honor}: bytes that took no space");
        let server = serve(dir.path(), &disk);
        let reads = ["read -P 5 0 1M", "read -P 0 1M 1M", "read -P 0 3M 64k", "read -P 5 3136k 960k"];
        qemu_io(&server, "vm", &reads);
        qemu_io(&server, "vm", &["read -P 0 12M 1M"]);
        server.stop();
        diskchain(&["image", "check"]).arg(dir.path().join("child.vdi")).run();
    }
}

#[test]
fn a_write_of_what_the_parent_has_takes_a_block_only_where_it_is_honored() {
    for honor in [false, true] {
        let dir = tempfile::tempdir().expect("a folder");
        base_and_child(dir.path());
        let server = serve(dir.path(), &format!("{CHILD}honor_same = {honor}\n"));
        qemu_io(&server, "vm", &["write -P 5 0 2M", "write -P 5 3M 4k", "flush"]);
        let suppressed = counted(dir.path(), "same");
        let depth = ["nbdinfo", "--json", "--map=qemu:allocation-depth", &server.uri("vm")];
        let map = Tool::new(depth[0]).args(&depth[1..]).run().json();
        let first = (map[0]["offset"].as_u64(), map[0]["type"].as_u64());
        // What differs by one byte is never left out.
        qemu_io(&server, "vm", &["write -P 6 5M 512", "read -P 5 0 5M", "read -P 6 5M 512"]);
        server.stop();
        let taken = if honor { 4 } else { 1 };
        assert_eq!(blocks(&dir.path().join("child.vdi")), taken, "honor_same = {honor}");
        assert_eq!(suppressed, if honor { 0 } else { 2 * MIB + 4096 }, "honor_same = {honor}");
        let depth = if honor { 1 } else { 2 };
        assert_eq!(first, (Some(0), Some(depth)), "honor_same = {honor}: depth of the first block in {map}");
    }
}

#[test]
fn detected_zeroes_stay_data_or_take_no_data_or_free_their_block_as_the_word_says() {
    for (word, taken, detected) in [("off", 4, 0), ("on", 4, 4 * MIB), ("unmap", 0, 4 * MIB)] {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = format!(
            "[disk.vm]\nfile = \"vm.vdi\"\ncreate = {{ size = \"16MiB\", format = \"vdi\" }}\n\
             detect_zeroes = \"{word}\"\n"
        );
        let image = dir.path().join("vm.vdi");
        let server = serve(dir.path(), &disk);
        qemu_io(&server, "vm", &["write -P 7 0 4M", "flush"]);
        assert_eq!(counted(dir.path(), "zeroes"), 0);
        qemu_io(&server, "vm", &["write -P 0 0 4M", "flush", "read -P 0 0 16M"]);
        assert_eq!(counted(dir.path(), "zeroes"), detected, "detect_zeroes = {word}");
        server.stop();
        assert_eq!(blocks(&image), taken, "detect_zeroes = {word}");
        Tool::new("qemu-img").args(["check", "-f", "vdi"]).arg(&image).run();
        Tool::new("qemu-io").args(["-f", "vdi", "-c", "read -P 0 0 16M"]).arg(&image).run();
    }
}

const EPHEMERAL: &str = "ephemeral = true\n";

#[test]
fn an_ephemeral_disk_is_shared_by_its_clients_and_forgets_all_with_the_last_of_them() {
    let dir = tempfile::tempdir().expect("a folder");
    base_and_child(dir.path());
    let child = dir.path().join("child.vdi");
    let before = sha256(&child);
    let files = || fs::read_dir(dir.path()).expect("the folder").count();
    let server = serve(dir.path(), &format!("{CHILD}{EPHEMERAL}"));
    let named = files();
    let (mut first, mut second) = (server.connect("vm"), server.connect("vm"));
    first.write(0, &[9; 4096]).expect("write");
    assert_eq!(second.read(0, 4096).expect("read"), [9; 4096], "clients at the same time share one overlay");
    first.disconnect().expect("a goodbye");
    assert_eq!(second.read(0, 4096).expect("read"), [9; 4096], "it stays while one is left");
    assert_eq!(files(), named, "the overlay has no name");
    let chain = Control::of(dir.path()).get("/v1/disks/vm/chain");
    assert_eq!(chain.as_array().map(Vec::len), Some(3), "the overlay is the third image: {chain}");
    // The last one goes without a goodbye: the daemon says when it has noticed.
    drop(second);
    let clients = || Control::of(dir.path()).get("/v1/clients");
    wait_until("the list of clients is empty", 20, || clients().as_array().is_some_and(Vec::is_empty));
    assert_eq!(server.connect("vm").read(0, 4096).expect("read"), [5; 4096], "nothing is left");
    server.stop();
    assert_eq!(sha256(&child), before, "no image was changed");
}

#[test]
fn whoever_saw_the_last_connection_of_an_ephemeral_disk_close_gets_a_new_overlay() {
    let dir = tempfile::tempdir().expect("a folder");
    base_and_child(dir.path());
    let server = serve(dir.path(), &format!("{CHILD}{EPHEMERAL}"));
    let stop = AtomicBool::new(false);
    let looks = thread::scope(|scope| {
        // Whoever only looks at the disk does not keep the overlay.
        let lookers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut looks = 0;
                    while !stop.load(Ordering::Relaxed) {
                        Control::of(dir.path()).get("/v1/disks/vm");
                        looks += 1;
                    }
                    looks
                })
            })
            .collect();
        for round in 0..150 {
            let mut client = server.connect("vm");
            let found = client.read(0, 512).expect("read");
            if found != [5; 512] {
                stop.store(true, Ordering::Relaxed);
                panic!("round {round}: the overlay of the client before is still there");
            }
            client.write(0, &[9; 512]).expect("write");
            client.disconnect().expect("a goodbye, answered by the end of the connection");
        }
        stop.store(true, Ordering::Relaxed);
        lookers.into_iter().map(|looker| looker.join().expect("a thread")).sum::<u32>()
    });
    assert!(looks > 20, "it was looked at all the time: {looks}");
    server.stop();
}
