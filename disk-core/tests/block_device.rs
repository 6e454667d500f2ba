//! Block devices, as loop devices over files. Needs root: the tests fail without it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use disk_core::buf::{Buf, Pool};
use disk_core::storage::{CacheMode, FileStorage, IoEngine, OpenOptions, Storage, Zero, open};
use disk_core::{ByteRange, ErrorKind};
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;

/// A loop device over a file; detached when dropped.
struct Loop {
    path: PathBuf,
}

impl Loop {
    fn over(file: &Path, sector: u32) -> Loop {
        let sector = sector.to_string();
        let output =
            Command::new("losetup").args(["--find", "--show", "--sector-size", &sector]).arg(file).output();
        let output = output.expect("losetup runs");
        assert!(output.status.success(), "loop devices need root: {output:?}");
        let path = String::from_utf8(output.stdout).expect("a path").trim().into();
        Loop { path }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

struct Device {
    device: Loop,
    _dir: TempDir,
}

impl Device {
    fn new(sector: u32) -> Device {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
        let file = dir.path().join("backing");
        File::create(&file).and_then(|file| file.set_len(SIZE)).expect("a file");
        Device { device: Loop::over(&file, sector), _dir: dir }
    }

    async fn open(&self, engine: IoEngine, cache: CacheMode) -> FileStorage {
        let options = OpenOptions { engine, cache, ..OpenOptions::read_write() };
        open(&self.device.path, &options).await.expect("the device opens")
    }
}

async fn write(storage: &FileStorage, at: u64, bytes: &[u8]) {
    storage.write(at, Buf::copy_from(bytes)).await.expect("write");
}

async fn read(storage: &FileStorage, at: u64, len: usize) -> Vec<u8> {
    storage.read(at, Pool::global().take(len)).await.expect("read").to_vec()
}

const FREE: Zero = Zero { may_free: true, fast_only: false };
const KEEP: Zero = Zero { may_free: false, fast_only: false };

#[tokio::test]
async fn a_block_device_takes_any_offset_in_every_mode_and_has_a_fixed_length() {
    for sector in [512, 4096] {
        let device = Device::new(sector);
        for engine in [IoEngine::Threads, IoEngine::IoUring] {
            for cache in [CacheMode::Writeback, CacheMode::None, CacheMode::Directsync] {
                let storage = device.open(engine, cache).await;
                let direct = cache != CacheMode::Writeback;
                assert_eq!(storage.limits().alignment, if direct { sector } else { 1 });
                assert_eq!((storage.len(), storage.allocated()), (SIZE, SIZE));
                assert!(!storage.limits().grows_with_zeroes);

                write(&storage, 0, &vec![0xAA; 1 << 20]).await;
                write(&storage, 777, b"unaligned").await;
                assert_eq!(read(&storage, 776, 11).await, b"\xAAunaligned\xAA");
                storage.zero(ByteRange::new(10_001, 300_003), KEEP).await.expect("zero");
                storage.zero(ByteRange::new(400_001, 500_003), FREE).await.expect("zero");
                storage.discard(ByteRange::new(600_001, 700_003)).await.expect("discard");
                let all = read(&storage, 0, 1 << 20).await;
                for (at, &byte) in all.iter().enumerate().skip(1000) {
                    let zero = (10_001..300_003).contains(&at) || (400_001..500_003).contains(&at);
                    let discarded = (600_001..700_003).contains(&at);
                    assert!(
                        byte == if zero { 0 } else { 0xAA } || (discarded && byte == 0),
                        "byte {at}: {byte}"
                    );
                }
                let extent = storage.status(ByteRange::new(0, SIZE)).await.expect("status");
                assert!(extent.data && extent.len == SIZE);

                write(&storage, SIZE - 5, b"final").await;
                assert_eq!(read(&storage, SIZE - 5, 5).await, b"final");
                let past =
                    storage.write(SIZE - 5, Buf::copy_from(b"finale")).await.expect_err("past the end");
                assert_eq!(past.kind(), ErrorKind::NoSpace, "{past}");
                assert_eq!(storage.resize(1).await.expect_err("fixed").kind(), ErrorKind::Unsupported);
                storage.flush().await.expect("flush");
            }
        }
    }
}

#[tokio::test]
async fn a_block_device_that_is_claimed_is_refused_for_writing() {
    let device = Device::new(512);
    let _held = device.open(IoEngine::Threads, CacheMode::Writeback).await;
    for options in [OpenOptions::read_write(), OpenOptions { lock: false, ..OpenOptions::read_write() }] {
        let error = open(&device.device.path, &options).await.map(|_| ()).expect_err("it is in use");
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    }
}

/// A tmpfs of 1 MiB; unmounted when dropped.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn new() -> SmallDisk {
        let dir = TempDir::new().expect("a temporary directory");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(dir.path()).status();
        assert!(mounted.expect("mount runs").success(), "mounting needs root");
        SmallDisk { dir }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
    }
}

#[tokio::test]
async fn after_one_failed_flush_every_flush_fails_until_the_file_is_opened_anew() {
    let disk = SmallDisk::new();
    let backing = disk.dir.path().join("backing");
    File::create(&backing).and_then(|file| file.set_len(SIZE)).expect("a sparse file");
    let filler = disk.dir.path().join("filler");
    fs::write(&filler, vec![1; 900 << 10]).expect("most of the room");
    let device = Loop::over(&backing, 512);

    let storage = open(&device.path, &OpenOptions::read_write()).await.expect("open");
    storage.flush().await.expect("nothing is lost yet");
    write(&storage, 0, &vec![7; 2 << 20]).await;
    let first = storage.flush().await.expect_err("the backing file system is full");
    fs::remove_file(&filler).expect("room again");
    write(&storage, 3 << 20, b"this one would fit").await;
    let second = storage.flush().await.expect_err("the first loss is not forgotten");
    assert_eq!(
        (first.kind(), second.kind()),
        (ErrorKind::FlushFailed, ErrorKind::FlushFailed),
        "{first}; {second}"
    );

    drop(storage);
    let storage = open(&device.path, &OpenOptions::read_write()).await.expect("open anew");
    write(&storage, 0, b"fits").await;
    storage.flush().await.expect("a new start");
}

#[tokio::test]
async fn the_cache_mode_decides_when_a_lost_write_shows() {
    use CacheMode::{Directsync, None as Direct, Unsafe, Writeback, Writethrough};
    for engine in [IoEngine::Threads, IoEngine::IoUring] {
        for (cache, write_fails, flush_fails) in [
            (Writeback, false, true),
            (Writethrough, true, true),
            (Unsafe, false, false),
            // Past the page cache nobody takes it and loses it later: the device says at once that it has no space.
            (Direct, true, false),
            (Directsync, true, false),
        ] {
            let disk = SmallDisk::new();
            let backing = disk.dir.path().join("backing");
            File::create(&backing).and_then(|file| file.set_len(SIZE)).expect("a sparse file");
            fs::write(disk.dir.path().join("filler"), vec![1; 2 << 20]).expect_err("all of the room");
            let device = Loop::over(&backing, 512);
            let options = OpenOptions { engine, cache, ..OpenOptions::read_write() };
            let storage = open(&device.path, &options).await.expect("open");
            assert_eq!(storage.limits().write_through, matches!(cache, Writethrough | Directsync));
            let outcome = storage.write(8192, Buf::copy_from(&vec![7; 1 << 20])).await;
            assert_eq!(outcome.is_err(), write_fails, "{engine:?} {cache:?}: {outcome:?}");
            let outcome = storage.flush().await;
            assert_eq!(outcome.is_err(), flush_fails, "{engine:?} {cache:?}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn a_full_file_system_is_no_space_and_does_no_harm() {
    let disk = SmallDisk::new();
    let path = disk.dir.path().join("disk");
    let options = OpenOptions { engine: IoEngine::Threads, ..OpenOptions::read_write() };
    let storage = disk_core::storage::create(&path, &options).await.expect("create");
    write(&storage, 0, &[1; 4096]).await;
    let error = storage.write(4096, Buf::copy_from(&vec![2; 2 << 20])).await.expect_err("too much");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(read(&storage, 0, 4096).await, [1; 4096]);
    storage.discard(ByteRange::new(4096, SIZE)).await.expect("give the rest back");
    storage.flush().await.expect("nothing is lost");
}
