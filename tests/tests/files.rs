//! What the daemon does to its files, seen from outside: who may open them, whose sockets they are, and when they are
//! synced.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::Request;
use diskchain_tests::control::Control;
use diskchain_tests::server::{Server, diskchain};
use diskchain_tests::tool::{Tool, sha256};

const MIB: u64 = 1 << 20;

fn qemu_io(file: &Path, format: &str, options: &[&str]) -> Tool {
    Tool::new("qemu-io").args(options).args(["-f", format, "-c", "read 0 512"]).arg(file)
}

#[test]
fn a_second_writer_is_refused_until_the_first_is_gone_even_by_kill_9() {
    for (base, format) in [(Base::Vdi, "vdi"), (Base::Raw, "raw")] {
        let chain = Chain::new(base, 8 * MIB);
        let first = chain.serve();
        let other = tempfile::tempdir().unwrap();
        let second = Server::try_diskchain(other.path(), &[chain.top()], &["--format", format]);
        let refused = second.err().expect("a second daemon is refused");
        assert!(refused.said.contains(chain.top().to_str().unwrap()), "names the file: {refused}");
        assert_eq!(refused.status.code(), Some(5), "busy or locked: {refused}");
        qemu_io(chain.top(), format, &[]).run_refused();
        Tool::new("qemu-img").args(["info", "-U", "-f", format]).arg(chain.top()).run();
        first.kill();
        qemu_io(chain.top(), format, &[]).run();
        chain.serve().stop();
    }
}

#[test]
fn a_parent_may_be_shared_by_children_but_not_written_by_anybody() {
    let mut chain = Chain::new(Base::Vdi, 8 * MIB);
    chain.push_child();
    let served = chain.serve();
    qemu_io(chain.base(), "vdi", &[]).run_refused();
    qemu_io(chain.base(), "vdi", &["-r"]).run();
    let other = tempfile::tempdir().unwrap();
    let writer = Server::try_diskchain(other.path(), &[chain.base()], &["--format", "vdi"]);
    assert!(writer.is_err(), "the parent of a served disk is not writable");
    let options = ["--format", "vdi", "--read-only"];
    Server::diskchain(other.path(), &[chain.base()], &options).stop();
    served.stop();
}

#[test]
fn qemu_holding_an_image_keeps_the_daemon_out() {
    let chain = Chain::new(Base::Vdi, 8 * MIB);
    let other = tempfile::tempdir().unwrap();
    let holder = Server::qemu_nbd(other.path(), chain.top(), "vdi");
    let refused = Server::try_diskchain(chain.dir(), &[chain.top()], &["--format", "vdi"]);
    let refused = refused.err().expect("the daemon is refused");
    assert!(refused.said.contains(chain.top().to_str().unwrap()), "names the file: {refused}");
    holder.stop();
    chain.serve().stop();
}

#[test]
fn a_second_daemon_of_the_same_configuration_ends_and_leaves_the_first_its_sockets() {
    let chain = Chain::new(Base::Vdi, 8 * MIB);
    let (listen, control) = (chain.dir().join("diskchain.sock"), chain.dir().join("control.sock"));
    let address = |path: &Path| format!("unix:{}", path.display());
    let inodes = || [&listen, &control].map(|path| fs::metadata(path).expect("the socket is there").ino());
    for read_only in [false, true] {
        // Readers share an image: then the sockets alone tell the second that it is not the first.
        let keys = if read_only { "read_only = true\n" } else { "" };
        let config = chain.config().replace("[disk.disk]\n", &format!("[disk.disk]\n{keys}"));
        assert_eq!(config.contains(keys) && !keys.is_empty(), read_only, "the scenario");
        let first = Server::diskchain_config(chain.dir(), &config);
        let before = inodes();
        let mut client = first.connect("disk");
        let second = |options: &[&str]| {
            let serve = diskchain(&["serve", "--config"]).arg(chain.dir().join("diskchain.toml"));
            let ended = serve.args(options).run_refused();
            assert_eq!(ended.status.code(), Some(5), "busy: {ended}");
            ended.text() + &ended.stderr
        };
        let contested = if read_only { &listen } else { chain.top() };
        let said = second(&[]);
        assert!(said.contains(contested.to_str().unwrap()), "names {}: {said}", contested.display());
        if read_only {
            // It has its own socket, and has to give that up again.
            let other = chain.dir().join("other.sock");
            let said = second(&["--listen", &address(&other)]);
            assert!(said.contains(control.to_str().unwrap()), "names {}: {said}", control.display());
            assert!(!other.exists(), "nothing is left of the second");
        }
        assert_eq!(inodes(), before, "the sockets are the first one's");
        client.read(0, 512).expect("who was connected is served");
        first.connect("disk").read(0, 512).expect("who connects now is served");
        assert_eq!(Control::of(chain.dir()).get("/v1/disks")[0]["name"], "disk");
        drop(client);
        first.stop();
        assert!(!listen.exists() && !control.exists(), "the sockets go with their daemon");
    }
}

/// Where a VDI's header has its modification UUID.
const MODIFICATION_UUID: u64 = 0x198;

#[test]
fn a_parent_that_was_changed_after_its_child_was_made_is_refused_with_the_names_of_both() {
    let mut chain = Chain::new(Base::Vdi, 8 * MIB);
    chain.push_child();
    let served = chain.serve();
    served.connect("").write(MIB, &[1; 4096]).expect("the child is written");
    served.stop();
    let refused = |how: &str| {
        let before = chain.files().iter().map(|file| sha256(file)).collect::<Vec<_>>();
        let refused = Server::try_diskchain_config(chain.dir(), &chain.config()).err();
        let refused = refused.unwrap_or_else(|| panic!("served over a parent that was changed {how}"));
        assert_eq!(refused.status.code(), Some(1), "{refused}");
        for words in ["its parent was changed", chain.base().to_str().unwrap(), chain.top().to_str().unwrap()]
        {
            assert!(refused.said.contains(words), "{how}: tells {words:?}: {refused}");
        }
        let after = chain.files().iter().map(|file| sha256(file)).collect::<Vec<_>>();
        assert_eq!(before, after, "neither image was touched");
    };
    let image = fs::File::options().read(true).write(true).open(chain.base()).expect("open the parent");
    let mut identity = [0; 16];
    image.read_exact_at(&mut identity, MODIFICATION_UUID).expect("read the modification UUID");
    image.write_all_at(&[7; 16], MODIFICATION_UUID).expect("another program's change");
    refused("by a program that gives the image a new modification UUID");
    image.write_all_at(&identity, MODIFICATION_UUID).expect("as it was");
    chain.serve().stop();

    let other = tempfile::tempdir().expect("a folder");
    let parent = Server::diskchain(other.path(), &[chain.base()], &["--format", "vdi"]);
    parent.connect("").write(0, &[2; 4096]).expect("the parent is written");
    parent.stop();
    refused("by diskchain");
}

/// How many syncs of a file strace has seen so far.
fn syncs(trace: &Path) -> usize {
    let text = fs::read_to_string(trace).expect("read strace's output");
    text.lines().filter(|line| line.contains("sync") && line.ends_with("= 0")).count()
}

#[test]
fn flush_and_fua_reach_the_disk_before_their_reply_from_any_connection() {
    for base in [Base::Raw, Base::Vdi] {
        let chain = Chain::new(base, 8 * MIB);
        // The ring's syncs are no system calls.
        let config = chain.config().replace("[server]\n", "[server]\nio_engine = \"threads\"\n");
        let trace = chain.dir().join("strace");
        let server = Server::diskchain_config_traced(chain.dir(), &config, &trace);
        let (mut writer, mut other) = (server.connect(""), server.connect(""));
        for round in 0..3 {
            writer.write(round * MIB, &[1; 4096]).unwrap();
            let before = syncs(&trace);
            other.flush().unwrap();
            assert!(syncs(&trace) > before, "{base:?}: a flush by another connection syncs");
            let before = syncs(&trace);
            let fua = Request::Write { offset: round * MIB + 8192, data: vec![2; 512], fua: true };
            writer.call(&fua).unwrap();
            assert!(syncs(&trace) > before, "{base:?}: a write with FUA syncs");
        }
        server.stop();
    }
}
