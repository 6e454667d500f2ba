//! `diskchain demo`: the first thing that a new user sees. What it prints, what it makes, and that other programs read
//! it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diskchain_tests::client::Client;
use diskchain_tests::server::{diskchain, diskchain_binary};
use diskchain_tests::tool::{Tool, sha256, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A demo that runs, with all of a user's folders in a place of its own.
struct Demo {
    child: Child,
    said: PathBuf,
}

impl Demo {
    /// Starts a demo and waits until it says how to stop it.
    #[track_caller]
    fn start(home: &Path) -> Demo {
        let said = home.join("said");
        let output = File::create(&said).expect("a file for what it says");
        let mut command = Command::new(diskchain_binary());
        command.arg("demo").env("XDG_STATE_HOME", home.join("state")).env_remove("XDG_RUNTIME_DIR");
        let errors = output.try_clone().expect("duplicate a descriptor");
        let child =
            command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().expect("start the demo");
        let mut demo = Demo { child, said };
        let began = Instant::now();
        while !demo.text().contains("Press Ctrl-C to stop") {
            let ended = demo.child.try_wait().expect("a child can be waited for");
            assert!(
                ended.is_none() && began.elapsed() < Duration::from_secs(30),
                "{ended:?}: {}",
                demo.text()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        demo
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.said).expect("what it says")
    }

    /// Ends it as Ctrl-C does.
    #[track_caller]
    fn stop(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal a child");
        let status = wait_for(&mut self.child, Duration::from_secs(40)).expect("it ends");
        assert!(status.success(), "{signal:?} ended it with {status}: {}", self.text());
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The file that the demo's disk holds, read by a foreign NBD client and a foreign FAT implementation.
#[track_caller]
fn readme(home: &Path, uri: &str) -> String {
    let copy = home.join("copy.raw");
    Tool::new("nbdcopy").arg(uri).arg(&copy).run();
    let checked = Tool::new("fsck.fat").args(["-n"]).arg(&copy).run().text();
    assert!(checked.contains("2 files, 1/32749 clusters"), "{checked}");
    Tool::new("mtype").args(["-i"]).arg(&copy).arg("::README.TXT").run().text()
}

#[test]
fn the_demo_makes_a_chain_once_and_serves_it_again_with_what_was_written() {
    let home = TempDir::new().expect("a folder");
    let home = home.path();
    let folder = home.join("state/diskchain");
    let (base, top, socket) =
        (folder.join("demo-base.vdi"), folder.join("demo.vdi"), folder.join("nbd.sock"));
    let uri = format!("nbd+unix:///demo?socket={}", socket.display());

    let demo = Demo::start(home);
    let expected = format!(
        "  created   {base}   256 MiB VDI, FAT file system with README.TXT\n  \
           created   {top}        differencing image over it\n  \
           serving   demo   read-write   {uri}\n  \
           self-test ok: a second NBD implementation read the first and last block\n  \
           Try:   qemu-system-x86_64 -drive 'file={uri},format=raw,if=virtio'\n         \
                  sudo nbd-client -unix {socket} -N demo /dev/nbd0\n         \
                  nbdinfo '{uri}'\n         \
                  diskchain show demo --control {control}\n  \
           Press Ctrl-C to stop; nothing outside {folder} was touched.\n",
        base = base.display(),
        top = top.display(),
        socket = socket.display(),
        control = folder.join("control.sock").display(),
        folder = folder.display(),
    );
    assert_eq!(demo.text(), expected);
    assert!(readme(home, &uri).contains("This is the demo disk of diskchain."));
    // The commands that it names work.
    assert!(Tool::new("nbdinfo").arg(&uri).run().text().contains("export-size: 268435456"));
    let shown = diskchain(&["show", "demo", "--control"]).arg(folder.join("control.sock")).run().text();
    assert!(shown.contains("demo-base.vdi") && shown.contains("read-write"), "{shown}");
    let before = sha256(&base);
    let mut client = Client::connect(&socket, "demo").expect("connect");
    client.write(100 * MIB, b"left by a guest").expect("write");
    drop(client);

    let second = diskchain(&["demo"]).env("XDG_STATE_HOME", home.join("state")).env("XDG_RUNTIME_DIR", "");
    let refused = second.run_refused();
    assert_eq!(refused.status.code(), Some(5), "{refused}");
    assert!(refused.stderr.contains("another demo") && refused.stderr.contains("nbd.sock"), "{refused}");

    demo.stop(Signal::INT);
    assert!(!socket.exists() && !folder.join("control.sock").exists(), "the sockets are gone");
    // QEMU opens no differencing VDI.
    Tool::new("qemu-img").args(["check", "-f", "vdi"]).arg(&base).run();
    diskchain(&["image", "check", "--chain"]).arg(&top).run();

    let demo = Demo::start(home);
    let text = demo.text();
    assert!(text.starts_with(&format!("  using     {}", base.display())), "{text}");
    assert_eq!(text.matches("using").count(), 2, "{text}");
    let mut client = Client::connect(&socket, "demo").expect("connect");
    assert_eq!(client.read(100 * MIB, 15).expect("read"), b"left by a guest");
    drop(client);
    demo.stop(Signal::TERM);
    assert_eq!(sha256(&base), before, "the base is never written");
    let mut left: Vec<_> = fs::read_dir(&folder)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["demo-base.vdi", "demo.vdi"], "nothing else is left");
}

#[test]
fn the_demo_without_its_base_says_what_to_delete_and_needs_a_place_to_be() {
    let home = TempDir::new().expect("a folder");
    let home = home.path();
    Demo::start(home).stop(Signal::INT);
    fs::remove_file(home.join("state/diskchain/demo-base.vdi")).expect("remove the base");
    let demo = || diskchain(&["demo"]).env("XDG_RUNTIME_DIR", "");
    let refused = demo().env("XDG_STATE_HOME", home.join("state")).run_refused();
    assert_eq!(refused.status.code(), Some(4), "{refused}");
    assert!(refused.stderr.contains("demo.vdi is there") && refused.stderr.contains("delete"), "{refused}");
    let homeless = demo().env("XDG_STATE_HOME", "").env("HOME", "").run_refused();
    assert_eq!(homeless.status.code(), Some(1), "{homeless}");
    assert!(homeless.stderr.contains("XDG_STATE_HOME"), "{homeless}");
}
