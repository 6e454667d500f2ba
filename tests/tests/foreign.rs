//! Programs that others wrote judge the exports, and the VDI images that come of their writing.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::rng::Rng;
use diskchain_tests::server::{Server, diskchain};
use diskchain_tests::sparse::SparseDisk;
use diskchain_tests::test_dependency;
use diskchain_tests::tool::{Tool, sha256, wait_until};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Patches of data in a disk that is mostly holes, some inside a block, some across blocks.
fn patchwork(name: &str, size: u64) -> SparseDisk {
    let mut rng = Rng::for_test(name);
    let mut disk = SparseDisk::new(size);
    for _ in 0..40 {
        let offset = rng.below(size - MIB);
        let len = rng.within(1..3 * MIB / 2).min(size - offset);
        let data = rng.bytes(len as usize);
        disk.write(offset, &data);
    }
    let tail = rng.bytes(1000);
    disk.write(size - 1000, &tail);
    disk.zero(size / 2, 8 * MIB);
    disk
}

#[track_caller]
fn nbdinfo(server: &Server) -> Value {
    let info = Tool::new("nbdinfo").args(["--json", &server.uri("")]).run().json();
    info["exports"][0].clone()
}

#[track_caller]
fn qemu_io(server: &Server, commands: &[&str]) -> String {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let qemu_io = Tool::new("qemu-io").args(["-f", "raw", "-d", "unmap"]).args(commands);
    let ended = qemu_io.arg(server.uri("")).run();
    let text = ended.text();
    assert!(!text.contains("verification failed"), "{ended}");
    text
}

/// Extents of a map as (start, length, is a hole), neighbours of the same kind joined.
fn extents(map: &Value, start: &str, hole: impl Fn(&Value) -> bool) -> Vec<(u64, u64, bool)> {
    let mut joined: Vec<(u64, u64, bool)> = Vec::new();
    for extent in map.as_array().expect("a map is a list") {
        let number = |key: &str| extent[key].as_u64().unwrap_or_else(|| panic!("no {key} in {extent}"));
        let (start, length, hole) = (number(start), number("length"), hole(extent));
        match joined.last_mut() {
            Some(last) if last.2 == hole && last.0 + last.1 == start => last.1 += length,
            _ => joined.push((start, length, hole)),
        }
    }
    joined
}

#[track_caller]
fn map_by_nbdinfo(server: &Server) -> Vec<(u64, u64, bool)> {
    let map = Tool::new("nbdinfo").args(["--json", "--map=base:allocation", &server.uri("")]).run().json();
    extents(&map, "offset", |extent| extent["type"].as_u64().is_some_and(|flags| flags & 3 == 3))
}

#[track_caller]
fn map_by_qemu(file: &str, format: &str) -> Vec<(u64, u64, bool)> {
    let map = Tool::new("qemu-img").args(["map", "--output=json", "-f", format, file]).run().json();
    extents(&map, "start", |extent| extent["zero"] == true && extent["data"] == false)
}

#[test]
fn nbdinfo_tells_the_size_the_flags_and_the_contexts_of_a_vdi() {
    let chain = Chain::new(Base::Vdi, 100 * MIB);
    let server = chain.serve();
    let info = nbdinfo(&server);
    assert_eq!(info["export-size"], 100 * MIB, "{info:#}");
    assert_eq!(info["is_read_only"], false, "{info:#}");
    for flag in ["flush", "fua", "trim", "zero", "fast_zero", "df", "cache", "multi_conn"] {
        assert_eq!(info[format!("can_{flag}")], true, "can_{flag} in {info:#}");
    }
    let contexts = info["contexts"].as_array().expect("a list of contexts");
    assert!(contexts.iter().any(|name| name == "base:allocation"), "{info:#}");
    let depth = Tool::new("nbdinfo").args(["--map=qemu:allocation-depth", &server.uri("")]).run();
    assert!(depth.text().contains("absent"), "{depth}");
    server.stop();
}

#[test]
fn a_read_only_export_says_so_and_refuses_to_be_written() {
    let chain = Chain::from_content(Base::Vdi, &patchwork("read-only", 20 * MIB));
    let before = sha256(chain.top());
    let server = chain.serve_with(&["--read-only"]);
    assert_eq!(nbdinfo(&server)["is_read_only"], true);
    let write = ["-f", "raw", "-c", "write 0 512"];
    Tool::new("qemu-io").args(write).arg(server.uri("")).run_refused();
    server.stop();
    assert_eq!(sha256(chain.top()), before, "serving read-only changes no byte");
}

#[test]
fn nbdinfo_lists_every_file_by_its_stem_and_the_first_is_the_empty_name() {
    let dir = tempfile::tempdir().unwrap();
    let images = [("first.vdi", 8 * MIB), ("second.vdi", 9 * MIB)];
    let files = images.map(|(name, size)| {
        let file = dir.path().join(name);
        diskchain(&["image", "create"]).arg(&file).args(["--size", &size.to_string()]).run();
        file
    });
    let server = Server::diskchain(dir.path(), &[&files[0], &files[1]], &["--format", "vdi"]);
    let list = Tool::new("nbdinfo").args(["--json", "--list", &server.uri("")]).run().json();
    let exports = list["exports"].as_array().expect("a list of exports");
    let mut names: Vec<&str> = exports.iter().filter_map(|export| export["export-name"].as_str()).collect();
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    assert_eq!(names, ["first", "second"]);
    for (name, size) in [("", 8 * MIB), ("first", 8 * MIB), ("second", 9 * MIB)] {
        let told = Tool::new("nbdinfo").args(["--size", &server.uri(name)]).run().text();
        assert_eq!(told.trim(), size.to_string(), "size of {name:?}");
    }
    Tool::new("nbdinfo").args(["--size", &server.uri("third")]).run_refused();
    server.stop();
}

#[test]
fn nbdcopy_brings_a_disk_in_and_out_over_four_connections() {
    let content = patchwork("nbdcopy", 96 * MIB);
    for base in [Base::Raw, Base::Vdi, Base::FixedVdi] {
        let chain = Chain::new(base, content.size());
        let (source, copy) = (chain.dir().join("source.img"), chain.dir().join("copy.img"));
        content.write_raw(&source).unwrap();
        let server = chain.serve();
        let nbdcopy = || Tool::new("nbdcopy").args(["--connections=4", "--requests=32", "--flush"]);
        nbdcopy().arg(&source).arg(server.uri("")).run();
        nbdcopy().arg(server.uri("")).arg(&copy).run();
        assert_eq!(sha256(&source), sha256(&copy), "{base:?}");
        server.stop();
        chain.check();
    }
}

#[test]
fn qemu_io_reads_back_what_it_wrote_zeroed_and_discarded() {
    let mut chain = Chain::new(Base::Vdi, 16 * MIB);
    for layer in ["base", "child"] {
        let server = chain.serve();
        qemu_io(
            &server,
            &[
                "write -P 5 0 3M",
                "read -P 5 0 3M",
                "write -z -u 1088k 64k",
                "read -P 0 1088k 64k",
                "read -P 5 1152k 1M",
                "write -z 2M 1M",
                "read -P 0 2M 1M",
                "discard 0 1M",
                "read -P 0 0 1M",
                "write -P 9 511 1026",
                "read -P 9 511 1026",
                "read -P 0 0 511",
                "read -P 0 1537 1022k",
                "flush",
                "write -f -P 7 15M 1M",
                "aio_write -P 1 4M 1M",
                "aio_write -P 2 4608k 1M",
                "aio_flush",
                "read -P 1 4M 512k",
                "read -P 2 4608k 1M",
            ],
        );
        server.stop();
        chain.check();
        if layer == "base" {
            chain.push_child();
        }
    }
}

#[test]
fn qemu_img_finds_an_export_equal_to_what_it_converted_into_it() {
    let content = patchwork("qemu-img", 64 * MIB);
    let mut chain = Chain::new(Base::Vdi, content.size());
    chain.push_child();
    let source = chain.dir().join("source.img");
    content.write_raw(&source).unwrap();
    let server = chain.serve();
    let convert = ["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw"];
    Tool::new("qemu-img").args(convert).arg(&source).arg(server.uri("")).run();
    let compare = || Tool::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&source);
    compare().arg(server.uri("")).run();
    qemu_io(&server, &["write -P 1 31M 1"]);
    compare().arg(server.uri("")).run_refused();
    server.stop();
    chain.check();
}

#[test]
fn nbdinfo_and_qemu_img_see_the_same_holes_as_qemu_img_sees_in_the_file() {
    let mut content = SparseDisk::new(32 * MIB);
    for (offset, len) in [(0, 4096), (5 * MIB - 1, 2), (20 * MIB, 3 * MIB), (32 * MIB - 1, 1)] {
        content.write(offset, &vec![7; len as usize]);
    }
    let chain = Chain::from_content(Base::Vdi, &content);
    let in_file = map_by_qemu(&chain.top().display().to_string(), "vdi");
    let data = in_file.iter().filter(|extent| !extent.2).map(|extent| extent.1).sum::<u64>();
    assert_eq!(data, 7 * MIB, "seven blocks of the image hold data: {in_file:?}");
    let server = chain.serve();
    assert_eq!(map_by_nbdinfo(&server), in_file, "libnbd, structured replies");
    assert_eq!(map_by_qemu(&server.uri(""), "raw"), in_file, "QEMU, extended headers");
    server.stop();
}

#[test]
fn allocation_depth_names_the_layer_and_a_hole_over_data_is_no_hole() {
    let mut content = SparseDisk::new(8 * MIB);
    content.write(2 * MIB, &[1; 4096]);
    let mut chain = Chain::from_content(Base::Vdi, &content);
    chain.push_child();
    let server = chain.serve();
    qemu_io(&server, &["write -P 3 5M 1M"]);
    let map = Tool::new("nbdinfo").args(["--json", "--map=qemu:allocation-depth", &server.uri("")]);
    let map = map.run().json();
    let depths: Vec<(u64, u64, u64)> = (map.as_array().expect("a list").iter())
        .map(|extent| ["offset", "length", "type"].map(|key| extent[key].as_u64().expect("a number")).into())
        .collect();
    let expected =
        [(0, 2 * MIB, 0), (2 * MIB, MIB, 2), (3 * MIB, 2 * MIB, 0), (5 * MIB, MIB, 1), (6 * MIB, 2 * MIB, 0)];
    assert_eq!(depths, expected);
    let holes: Vec<u64> = map_by_nbdinfo(&server).iter().filter(|e| e.2).map(|e| e.0).collect();
    assert_eq!(holes, [0, 3 * MIB, 6 * MIB]);
    server.stop();
}

#[test]
fn discard_gives_the_space_of_a_vdi_back_and_block_status_says_hole() {
    let chain = Chain::new(Base::Vdi, 64 * MIB);
    let server = chain.serve();
    qemu_io(&server, &["write -P 5 0 32M", "flush"]);
    let full = fs::metadata(chain.top()).unwrap().len();
    assert!(full > 32 * MIB, "32 blocks are in the file: {full}");
    qemu_io(&server, &["discard 0 31M", "flush"]);
    assert_eq!(
        map_by_nbdinfo(&server),
        [(0, 31 * MIB, true), (31 * MIB, MIB, false), (32 * MIB, 32 * MIB, true)]
    );
    wait_until("one block is left, and the file is cut", 10, || {
        fs::metadata(chain.top()).unwrap().len() < 4 * MIB
    });
    qemu_io(&server, &["read -P 5 31M 1M", "read -P 0 0 31M"]);
    server.stop();
    chain.check();
}

#[test]
fn qemu_img_accepts_the_images_that_diskchain_creates() {
    let dir = tempfile::tempdir().unwrap();
    for (variant, size) in [("dynamic", 3 * MIB), ("fixed", 3 * MIB), ("dynamic", 10_000_000_000)] {
        let file = dir.path().join(format!("{variant}-{size}.vdi"));
        let size = (size / 512 * 512).to_string();
        diskchain(&["image", "create"]).arg(&file).args(["--size", &size, "--variant", variant]).run();
        let info = Tool::new("qemu-img").args(["info", "--output=json", "-f", "vdi"]).arg(&file).run().json();
        assert_eq!(info["virtual-size"].to_string(), size, "{info:#}");
        Tool::new("qemu-img").args(["check", "-f", "vdi"]).arg(&file).run();
        let own = diskchain(&["image", "info", "--json"]).arg(&file).run().json();
        assert_eq!(own["virtual-size"].to_string(), size, "{own:#}");
        assert_eq!(own["format"], "vdi", "{own:#}");
    }
}

#[test]
fn the_nbd_crates_client_reads_and_writes_by_the_legacy_handshake() {
    let chain = Chain::new(Base::Vdi, 5 * MIB + 512);
    let server = chain.serve();
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let export = nbd::client::handshake(&mut stream, b"base").expect("a handshake");
    assert_eq!((export.size, export.readonly), (5 * MIB + 512, false));
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    client.seek(SeekFrom::Start(5 * MIB)).unwrap();
    client.write_all(&[0xa5; 512]).expect("write the last sector");
    client.flush().unwrap();
    for (offset, byte) in [(0, 0), (5 * MIB, 0xa5)] {
        let mut sector = [1; 512];
        client.seek(SeekFrom::Start(offset)).unwrap();
        client.read_exact(&mut sector).expect("read a sector");
        assert_eq!(sector, [byte; 512], "at {offset}");
    }
    drop(stream);
    server.stop();
}

/// Reads the chain of `files` with dissect.hypervisor into the file `copy`.
#[track_caller]
fn read_with_dissect(files: &[std::path::PathBuf], copy: &Path) {
    let script = "import sys, shutil\n\
        from dissect.hypervisor.disk.vdi import VDI\n\
        stream = None\n\
        for name in sys.argv[2:]:\n\
        \x20   stream = VDI(open(name, 'rb'), stream).open()\n\
        with open(sys.argv[1], 'wb') as out:\n\
        \x20   shutil.copyfileobj(stream, out, 1 << 20)\n";
    let python = test_dependency("venv").join("bin/python");
    Tool::new(python).args(["-c", script]).arg(copy).args(files).run();
}

#[test]
fn dissect_reads_a_chain_of_three_vdis_that_the_daemon_wrote() {
    let content = patchwork("dissect", 24 * MIB);
    let mut chain = Chain::from_content(Base::Vdi, &content);
    let mut expected = content;
    let mut rng = Rng::for_test("dissect-children");
    for _ in 0..2 {
        chain.push_child();
        let server = chain.serve();
        let mut client = server.connect("");
        for _ in 0..10 {
            let offset = rng.below(expected.size() - 70_000);
            let data = rng.bytes(70_000);
            client.write(offset, &data).unwrap();
            expected.write(offset, &data);
        }
        qemu_io(&server, &["write -z 3M 2M"]);
        expected.zero(3 * MIB, 2 * MIB);
        client.disconnect().unwrap();
        server.stop();
    }
    let (copy, raw) = (chain.dir().join("copy.img"), chain.dir().join("expected.img"));
    read_with_dissect(chain.files(), &copy);
    expected.write_raw(&raw).unwrap();
    Tool::new("cmp").arg(&copy).arg(&raw).run();
    chain.check();
}
