//! Image locks against QEMU's: each refuses the other, readers share, and a refusal names its holder.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use disk_core::ErrorKind;
use disk_core::storage::{FileStorage, OpenOptions, open};
use tempfile::TempDir;

/// An image of 1 MiB.
struct Image {
    dir: TempDir,
    format: &'static str,
}

impl Image {
    fn new(format: &'static str) -> Image {
        let image = Image { dir: TempDir::new().expect("a temporary directory"), format };
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", format])
            .arg(image.path())
            .arg("1M")
            .status();
        assert!(made.expect("qemu-img runs").success());
        image
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    async fn open(&self, options: &OpenOptions) -> Result<FileStorage, String> {
        open(self.path(), options).await.map_err(|error| {
            assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
            error.to_string()
        })
    }

    fn qemu_io(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("qemu-io");
        command.args(["-f", self.format]).args(arguments).arg(self.path());
        command.output().expect("qemu-io runs")
    }

    fn qemu_nbd(&self, arguments: &[&str]) -> QemuNbd {
        let socket = self.dir.path().join("socket");
        let _ = fs::remove_file(&socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["-f", self.format, "--persistent", "-k"]).arg(&socket).args(arguments).arg(self.path());
        let mut process = QemuNbd(command.spawn().expect("qemu-nbd runs"));
        let deadline = Instant::now() + Duration::from_secs(20);
        // It listens before it has opened the image; its greeting comes after.
        while !greets(&socket) {
            let ended = process.0.try_wait().expect("its state");
            assert!(ended.is_none() && Instant::now() < deadline, "qemu-nbd does not serve: {ended:?}");
            thread::sleep(Duration::from_millis(10));
        }
        process
    }
}

fn greets(socket: &Path) -> bool {
    let mut greeting = [0; 8];
    let connected = UnixStream::connect(socket).and_then(|mut stream| stream.read_exact(&mut greeting));
    connected.is_ok() && greeting == *b"NBDMAGIC"
}

/// A running qemu-nbd; killed when dropped.
struct QemuNbd(Child);

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn refused(output: &Output) -> bool {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    !output.status.success() && String::from_utf8_lossy(&said).contains("lock")
}

#[tokio::test]
async fn an_image_that_we_write_to_is_refused_to_every_qemu_writer() {
    for format in ["raw", "vdi", "qcow2"] {
        let image = Image::new(format);
        let held = image.open(&OpenOptions::read_write()).await.expect("nobody else has it");
        let write = image.qemu_io(&["-c", "write 0 512"]);
        assert!(refused(&write), "{format}: {write:?}");
        let server = Command::new("qemu-nbd")
            .args(["-f", format, "-k"])
            .args([image.dir.path().join("s"), image.path()])
            .stdin(Stdio::null())
            .output();
        assert!(refused(&server.expect("qemu-nbd runs")), "{format}");
        drop(held);
        let write = image.qemu_io(&["-c", "write 0 512"]);
        assert!(write.status.success(), "{format} after we are gone: {write:?}");
    }
}

#[tokio::test]
async fn an_image_that_we_only_read_is_refused_to_qemu_writers_and_shared_with_its_readers() {
    for format in ["raw", "vdi", "qcow2"] {
        let image = Image::new(format);
        let _held = image.open(&OpenOptions::read_only()).await.expect("nobody else has it");
        let write = image.qemu_io(&["-c", "write 0 512"]);
        assert!(refused(&write), "{format}: {write:?}");
        let read = image.qemu_io(&["-r", "-c", "read 0 512"]);
        assert!(read.status.success(), "{format}: {read:?}");
        let _server = image.qemu_nbd(&["-r"]);
        let _second = image.open(&OpenOptions::read_only()).await.expect("readers share");
    }
}

#[tokio::test]
async fn an_image_that_qemu_writes_to_is_refused_to_us_with_its_pid() {
    for format in ["raw", "vdi", "qcow2"] {
        let image = Image::new(format);
        let server = image.qemu_nbd(&[]);
        for options in [OpenOptions::read_write(), OpenOptions::read_only()] {
            let error = image.open(&options).await.map(|_| ()).expect_err("qemu-nbd has it");
            let holder = format!("qemu-nbd (pid {})", server.0.id());
            assert!(error.contains(&holder) && error.contains("image"), "{format}: {error}");
        }
        // Looking at it without a lock is a matter of its own.
        let unlocked = OpenOptions { lock: false, ..OpenOptions::read_only() };
        image.open(&unlocked).await.expect("asks nobody");
        drop(server);
        image.open(&OpenOptions::read_write()).await.expect("a killed process holds nothing");
    }
}

#[tokio::test]
async fn an_image_that_qemu_reads_is_refused_to_us_for_writing() {
    for format in ["raw", "vdi", "qcow2"] {
        let image = Image::new(format);
        let server = image.qemu_nbd(&["-r"]);
        let error = image.open(&OpenOptions::read_write()).await.map(|_| ()).expect_err("qemu-nbd reads it");
        assert!(error.contains(&format!("pid {}", server.0.id())), "{format}: {error}");
    }
}

#[tokio::test]
async fn the_same_file_under_another_name_is_refused_within_one_process() {
    let image = Image::new("raw");
    let held = image.open(&OpenOptions::read_write()).await.expect("nobody else has it");
    let link = |name: &str| image.dir.path().join(name);
    symlink(image.path(), link("symbolic")).expect("a symbolic link");
    fs::hard_link(image.path(), link("hard")).expect("a hard link");
    for path in [image.path(), link("symbolic"), link("hard")] {
        for options in [OpenOptions::read_write(), OpenOptions::read_only()] {
            let error = open(&path, &options).await.map(|_| ()).expect_err("it is open here");
            assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
            assert!(error.to_string().contains("this process"), "{error}");
        }
    }
    drop(held);
    reopen(&link("hard")).await;
}

async fn reopen(path: &Path) {
    open(path, &OpenOptions::read_write()).await.expect("it is free again");
}
