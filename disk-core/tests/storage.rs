//! Every storage behaves alike: memory, files by each engine in each cache mode, on a disk file system and in memory.
//! And what only files can do: share a sector, be dropped with work under way, be refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk_core::buf::{Buf, Pool};
use disk_core::storage::{CacheMode, IoEngine, MemStorage, OpenOptions, Storage, Zero, create, open};
use disk_core::{ByteRange, ErrorKind};
use proptest::prelude::*;
use tempfile::TempDir;

/// A storage and the directory it lives in.
struct Fixture {
    storage: Arc<dyn Storage>,
    _dir: Option<TempDir>,
}

async fn memory() -> Fixture {
    Fixture { storage: Arc::new(MemStorage::new(0)), _dir: None }
}

/// A directory on a disk file system: beside the build, because /tmp is memory on many systems.
fn on_disk() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory beside the build")
}

fn in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").expect("a temporary directory in memory")
}

fn options(engine: IoEngine, cache: CacheMode) -> OpenOptions {
    OpenOptions { engine, cache, ..OpenOptions::read_write() }
}

async fn file(dir: TempDir, engine: IoEngine, cache: CacheMode) -> Fixture {
    let storage = create(dir.path().join("disk"), &options(engine, cache)).await.expect("a new file");
    let wanted = if engine == IoEngine::Threads { "threads" } else { "io_uring" };
    assert_eq!(storage.engine(), wanted);
    let direct = matches!(cache, Direct | Directsync) && !dir.path().starts_with("/dev/shm");
    assert_eq!(storage.limits().alignment > 1, direct, "direct I/O asks for alignment");
    Fixture { storage: Arc::new(storage), _dir: Some(dir) }
}

async fn write(storage: &dyn Storage, at: u64, bytes: &[u8]) {
    storage.write(at, Buf::copy_from(bytes)).await.expect("a write");
}

async fn read(storage: &dyn Storage, at: u64, len: usize) -> Vec<u8> {
    let mut into = Pool::global().take(len);
    into.fill(0xEE);
    storage.read(at, into).await.expect("a read").to_vec()
}

const FREE: Zero = Zero { may_free: true, fast_only: false };
const KEEP: Zero = Zero { may_free: false, fast_only: false };

async fn behaves(fixture: Fixture) {
    let storage = &*fixture.storage;
    assert!(storage.is_empty() && !storage.name().is_empty());

    // It grows, with zeroes before and between.
    write(storage, 5000, b"hello").await;
    assert_eq!(storage.len(), 5005);
    assert_eq!(read(storage, 4998, 7).await, b"\0\0hello");
    assert_eq!(read(storage, 0, 5000).await, vec![0; 5000]);
    write(storage, 700_001, &[7; 100_000]).await;
    assert_eq!(storage.len(), 800_001);
    assert_eq!(read(storage, 5000, 6).await, b"hello\0");
    assert_eq!(read(storage, 700_000, 100_001).await, [&[0][..], &[7; 100_000]].concat());

    // Its end is an end.
    let past = storage.read(800_000, Pool::global().take(2)).await.expect_err("a read past the end");
    assert_eq!(past.kind(), ErrorKind::Io, "{past}");
    assert!(past.to_string().contains("800000"), "names the offset: {past}");
    assert_eq!(storage.read(u64::MAX, Pool::global().take(2)).await.expect_err("far").kind(), ErrorKind::Io);

    // Zeroes, with and without keeping the space, stop where they should and do not change the length.
    storage.zero(ByteRange::new(700_100, 700_200), KEEP).await.expect("zero");
    storage.zero(ByteRange::new(720_000, 790_000), FREE).await.expect("zero");
    storage.zero(ByteRange::new(800_000, 900_000), FREE).await.expect("zero over the end");
    assert_eq!(storage.len(), 800_001);
    let after = read(storage, 700_001, 100_000).await;
    for (n, &byte) in after.iter().enumerate() {
        let at = 700_001 + n as u64;
        let zero = (700_100..700_200).contains(&at) || (720_000..790_000).contains(&at) || at == 800_000;
        assert_eq!(byte, if zero { 0 } else { 7 }, "byte {at}");
    }

    // The host is asked what it knows, and what it says is true.
    let hole = storage.status(ByteRange::new(8192, 600_000)).await.expect("status");
    assert!(!hole.data && hole.len == 600_000 - 8192, "{hole:?}");
    let data = storage.status(ByteRange::new(704_512, 712_704)).await.expect("status");
    assert!(data.data && data.len == 712_704 - 704_512, "{data:?}");

    // A discard reads as before or as zeroes, and gives space back where that is promised.
    let before = storage.allocated();
    storage.discard(ByteRange::new(700_001, 800_001)).await.expect("discard");
    assert!(read(storage, 790_000, 10_000).await.iter().all(|&b| b == 0 || b == 7));
    if storage.limits().can_discard {
        assert!(storage.allocated() < before, "{} of {before}", storage.allocated());
    }

    // Length goes both ways and reveals nothing.
    write(storage, 0, &[9; 10_000]).await;
    storage.resize(3).await.expect("shrink");
    storage.resize(20_000).await.expect("grow");
    assert_eq!(read(storage, 0, 20_000).await, [&[9; 3][..], &[0; 19_997]].concat());
    storage.flush().await.expect("flush");
    storage.flush().await.expect("a second flush");
    storage.prefetch(ByteRange::new(0, 1 << 40));
    assert_eq!(read(storage, 0, 0).await, b"");
    write(storage, 50, b"").await;
    assert_eq!(storage.len(), 20_000);
}

/// Neighbours that share sectors write at once; every byte must arrive.
async fn keeps_neighbours(fixture: Fixture) {
    const PIECE: usize = 100;
    const PIECES: usize = 300;
    let storage = fixture.storage;
    write(&*storage, 0, &[0xFF; PIECE * PIECES + 77]).await;
    for round in 1..5u8 {
        // Odd pieces and a few aligned pages in between that overlap none of them.
        let writes: Vec<_> = (0..PIECES)
            .map(|n| storage.write((n * PIECE) as u64, Buf::copy_from(&[round ^ n as u8; PIECE])))
            .collect();
        let page = storage.write(65_536, Buf::copy_from(&[round; 4096]));
        for write in writes {
            write.await.expect("a write");
        }
        page.await.expect("a write");
        let all = read(&*storage, 0, PIECE * PIECES).await;
        for (n, piece) in all.chunks(PIECE).enumerate() {
            assert_eq!(piece, [round ^ n as u8; PIECE], "piece {n} in round {round}");
        }
        assert_eq!(read(&*storage, (PIECE * PIECES) as u64, 77).await, [0xFF; 77]);
        storage.resize((PIECE * PIECES + 77) as u64).await.expect("resize");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { at: u64, len: usize, fill: u8 },
    Zero { at: u64, len: u64, may_free: bool },
    Discard { at: u64, len: u64 },
    Resize { len: u64 },
    Read { at: u64, len: usize },
    Flush,
}

/// Offsets and lengths that like sectors, pages and their neighbourhood.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..60_000, (0u64..100).prop_map(|n| n * 512), (0u64..15).prop_map(|n| n * 4096)]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1u64..2000, 1u64..40_000, (1u64..10).prop_map(|n| n * 4096)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (offset(), length(), 1u8..).prop_map(|(at, len, fill)| Step::Write { at, len: len as usize, fill }),
        2 => (offset(), length(), any::<bool>()).prop_map(|(at, len, may_free)| Step::Zero { at, len, may_free }),
        1 => (offset(), length()).prop_map(|(at, len)| Step::Discard { at, len }),
        1 => offset().prop_map(|len| Step::Resize { len }),
        3 => (offset(), length()).prop_map(|(at, len)| Step::Read { at, len: len as usize }),
        1 => Just(Step::Flush),
    ]
}

async fn follows_the_model(storage: &dyn Storage, steps: &[Step]) {
    let mut model: Vec<u8> = Vec::new();
    for step in steps {
        match *step {
            Step::Write { at, len, fill } => {
                let end = at as usize + len;
                if model.len() < end {
                    model.resize(end, 0);
                }
                model[at as usize..end].fill(fill);
                write(storage, at, &vec![fill; len]).await;
            }
            Step::Zero { at, len, may_free } => {
                let end = model.len().min((at + len) as usize);
                model[..end].iter_mut().skip(at as usize).for_each(|b| *b = 0);
                let how = Zero { may_free, fast_only: false };
                storage.zero(ByteRange::at(at, len), how).await.expect("zero");
            }
            Step::Discard { at, len } => {
                storage.discard(ByteRange::at(at, len)).await.expect("discard");
                let now = read(storage, 0, model.len()).await;
                for (n, byte) in model.iter_mut().enumerate() {
                    let inside = (at..at + len).contains(&(n as u64));
                    assert!(now[n] == *byte || (inside && now[n] == 0), "byte {n} after {step:?}");
                    *byte = now[n];
                }
            }
            Step::Resize { len } => {
                model.resize(len as usize, 0);
                storage.resize(len).await.expect("resize");
            }
            Step::Read { at, len } => {
                let wanted = model.get(at as usize..at as usize + len);
                match storage.read(at, Pool::global().take(len)).await {
                    Ok(got) => assert!(wanted == Some(&got[..]), "{step:?}"),
                    Err(error) => assert!(wanted.is_none() && error.kind() == ErrorKind::Io, "{error}"),
                }
            }
            Step::Flush => storage.flush().await.expect("flush"),
        }
        assert_eq!(storage.len(), model.len() as u64, "after {step:?}");
        if let Ok(file) = fs::metadata(storage.name()) {
            assert_eq!(file.len(), model.len() as u64, "of the file itself after {step:?}");
        }
    }
    assert!(read(storage, 0, model.len()).await == model, "the content at the end");
    holes_are_zero(storage, &model).await;
}

async fn holes_are_zero(storage: &dyn Storage, model: &[u8]) {
    let mut at = 0;
    while at < model.len() as u64 {
        let extent = storage.status(ByteRange::new(at, model.len() as u64)).await.expect("status");
        let end = at + extent.len;
        assert!(extent.len > 0 && end <= model.len() as u64);
        assert!(extent.data || model[at as usize..end as usize].iter().all(|&b| b == 0), "hole {at}..{end}");
        at = end;
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn model_test<F: Future<Output = Fixture>>(cases: u32, make: impl Fn() -> F) {
    let runtime = runtime();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let strategy = prop::collection::vec(step(), 1..40);
    proptest::test_runner::TestRunner::new(config)
        .run(&strategy, |steps| {
            runtime.block_on(async {
                let fixture = make().await;
                follows_the_model(&*fixture.storage, &steps).await;
            });
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

macro_rules! every_storage {
    ($($name:ident: $cases:expr, $make:expr;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test]
            async fn behaves_like_every_storage() {
                behaves($make.await).await;
            }

            #[tokio::test]
            async fn neighbours_in_one_sector_do_not_lose_each_others_bytes() {
                keeps_neighbours($make.await).await;
            }

            #[test]
            fn random_operations_leave_what_the_model_says() {
                model_test($cases, || $make);
            }
        }
    )*};
}

use CacheMode::{Directsync, None as Direct, Unsafe, Writeback, Writethrough};
use IoEngine::{IoUring, Threads};

every_storage! {
    mem: 200, memory();
    threads_writeback: 30, file(on_disk(), Threads, Writeback);
    threads_writethrough: 5, file(on_disk(), Threads, Writethrough);
    threads_direct: 60, file(on_disk(), Threads, Direct);
    threads_directsync: 5, file(on_disk(), Threads, Directsync);
    threads_unsafe: 10, file(on_disk(), Threads, Unsafe);
    threads_in_memory: 60, file(in_memory(), Threads, Writeback);
    threads_in_memory_direct: 20, file(in_memory(), Threads, Direct);
    io_uring_writeback: 30, file(on_disk(), IoUring, Writeback);
    io_uring_writethrough: 5, file(on_disk(), IoUring, Writethrough);
    io_uring_direct: 60, file(on_disk(), IoUring, Direct);
    io_uring_directsync: 5, file(on_disk(), IoUring, Directsync);
    io_uring_unsafe: 10, file(on_disk(), IoUring, Unsafe);
    io_uring_in_memory: 20, file(in_memory(), IoUring, Writeback);
}

async fn open_error(path: &Path, options: &OpenOptions) -> disk_core::Error {
    open(path, options).await.map(|_| ()).expect_err("must be refused")
}

#[tokio::test]
async fn only_files_and_block_devices_are_opened_and_nothing_else_can_hang_the_opener() {
    let dir = on_disk();
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let places: [(PathBuf, &str); 4] = [
        (dir.path().into(), "a directory"),
        (fifo, "a fifo"),
        ("/dev/zero".into(), "a character device"),
        (socket, "a socket"),
    ];
    for (path, what) in places {
        for options in [OpenOptions::read_only(), OpenOptions::read_write()] {
            let start = Instant::now();
            let error = open_error(&path, &options).await;
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains(what), "{error}");
            assert!(start.elapsed() < Duration::from_secs(1));
        }
    }
    let missing = open_error(&dir.path().join("nothing"), &OpenOptions::read_only()).await;
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
}

#[tokio::test]
async fn creating_over_an_existing_file_is_refused_and_leaves_it_alone() {
    let dir = on_disk();
    let path = dir.path().join("disk");
    fs::write(&path, b"precious").expect("a file");
    create(&path, &OpenOptions::read_write()).await.expect_err("it exists");
    assert_eq!(fs::read(&path).expect("still there"), b"precious");
}

#[tokio::test]
async fn a_read_only_file_refuses_every_change() {
    let dir = on_disk();
    let path = dir.path().join("disk");
    fs::write(&path, [1; 8192]).expect("a file");
    let storage = open(&path, &OpenOptions::read_only()).await.expect("open");
    let all = ByteRange::new(0, 8192);
    for outcome in [
        storage.write(0, Buf::copy_from(b"x")),
        storage.zero(all, FREE),
        storage.discard(all),
        storage.resize(1),
    ] {
        assert_eq!(outcome.await.expect_err("refused").kind(), ErrorKind::ReadOnly);
    }
    storage.flush().await.expect("a flush changes nothing");
    assert!(!storage.limits().can_discard && !storage.limits().fast_zero);
    assert_eq!(fs::read(&path).expect("untouched"), [1; 8192]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discard_up_to_the_end_of_a_file_spares_what_is_appended_meanwhile() {
    let storage = file(on_disk(), Threads, Writeback).await.storage;
    let mut end = 8192 + 512;
    for round in 0..5_000 {
        storage.resize(end).await.expect("resize");
        // They get in each other's way in the kernel, so that some discards come late.
        let discards: Vec<_> = (0..7).map(|_| storage.discard(ByteRange::new(end - 8192, end))).collect();
        let others =
            [storage.write(0, Buf::copy_from(&[1; 512])), storage.zero(ByteRange::new(0, 512), KEEP)];
        storage.resize(end + 4096).await.expect("grow");
        write(&*storage, end, &[7; 512]).await;
        for change in discards.into_iter().chain(others) {
            change.await.expect("changed");
        }
        assert!(read(&*storage, end, 512).await == [7; 512], "round {round}");
        storage.resize(0).await.expect("shrink");
        end = 8192 + (end + 512) % 65536;
    }
}

/// Opens a file that is unlocked when the last of what was begun on it is done.
async fn unlocked(path: &Path) -> impl Storage {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match open(path, &OpenOptions::read_only()).await {
            Ok(storage) => return storage,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test]
async fn what_was_begun_is_finished_after_the_storage_and_the_completions_are_dropped() {
    for engine in [Threads, IoUring] {
        for cache in [Writeback, Direct] {
            let dir = on_disk();
            let path = dir.path().join("disk");
            let storage = create(&path, &options(engine, cache)).await.expect("create");
            for n in 0..64u64 {
                drop(storage.write(n * 8192, Buf::copy_from(&[n as u8 + 1; 8192])));
                drop(storage.read(0, Pool::global().take(0)));
            }
            drop(storage);
            let storage = unlocked(&path).await;
            for n in 0..64u64 {
                assert_eq!(read(&storage, n * 8192, 8192).await, [n as u8 + 1; 8192], "{engine:?} {cache:?}");
            }
        }
    }
}

#[test]
fn what_is_under_way_when_the_runtime_ends_is_finished_and_the_storage_goes_on_in_another() {
    for engine in [Threads, IoUring] {
        let dir = on_disk();
        let path = dir.path().join("disk");
        let (first, second) = (runtime(), runtime());
        let storage = first.block_on(async {
            let storage = create(&path, &options(engine, Direct)).await.expect("create");
            let mut writes: Vec<_> = (0..500u64)
                .map(|n| storage.write(n << 16, Buf::copy_from(&[n as u8 | 1; 1 << 16])))
                .collect();
            let last = writes.last_mut().expect("some");
            assert!(futures_util::poll!(last).is_pending(), "{engine:?}: it ends before they do");
            storage
        });
        drop(first);
        second.block_on(async {
            write(&storage, 500 << 16, &[9; 1 << 16]).await;
            drop(storage);
            let storage = unlocked(&path).await;
            for n in 0..=500u64 {
                let byte = if n == 500 { 9 } else { n as u8 | 1 };
                assert!(read(&storage, n << 16, 1 << 16).await == [byte; 1 << 16], "{engine:?}: {n}");
            }
        });
    }
}

#[tokio::test]
async fn a_ping_is_answered_by_an_idle_storage_at_once_and_by_a_busy_one_before_its_queue_is_done() {
    for engine in [Threads, IoUring] {
        let dir = on_disk();
        let storage = create(dir.path().join("disk"), &options(engine, Direct)).await.expect("create");
        assert!(futures_util::poll!(storage.ping()).is_ready(), "{engine:?}: nobody is at work");
        let mut writes: Vec<_> =
            (0..1000u64).map(|n| storage.write(n << 16, Buf::copy_from(&[7; 1 << 16]))).collect();
        storage.ping().await.expect("an answer");
        let last = writes.last_mut().expect("a thousand");
        assert!(
            futures_util::poll!(last).is_pending(),
            "{engine:?}: the answer came before the queue was done"
        );
        for write in writes {
            write.await.expect("written");
        }
    }
}

#[tokio::test]
async fn a_file_can_be_opened_anew_the_moment_its_last_request_is_answered() {
    let dir = on_disk();
    let path = dir.path().join("disk");
    for engine in [Threads, IoUring] {
        for _ in 0..200 {
            let opened = if path.exists() {
                open(&path, &options(engine, Writeback)).await
            } else {
                create(&path, &options(engine, Writeback)).await
            };
            let storage = opened.expect("the lock of the one before is gone");
            write(&storage, 0, &[1; 4096]).await;
            storage.flush().await.expect("flush");
        }
    }
}

#[tokio::test]
async fn a_cached_read_is_answered_at_once_and_a_write_in_memory_too() {
    let dir = on_disk();
    let path = dir.path().join("disk");
    fs::write(&path, vec![3; 1 << 20]).expect("a file");
    let storage = open(&path, &OpenOptions::read_only()).await.expect("open");
    read(&storage, 0, 1 << 20).await;
    let again = storage.read(4096, Pool::global().take(4096));
    let bytes = futures_util::FutureExt::now_or_never(again).expect("ready in the first poll").expect("read");
    assert_eq!(bytes[..], [3; 4096]);

    let memory = file(in_memory(), Threads, Writeback).await;
    let put = memory.storage.write(4096, Buf::copy_from(&[4; 4096]));
    futures_util::FutureExt::now_or_never(put).expect("ready in the first poll").expect("write");
}

#[tokio::test]
async fn many_flushes_at_once_all_succeed() {
    let fixture = file(on_disk(), IoUring, Writeback).await;
    for round in 0..20u64 {
        let work: Vec<_> = (0..16)
            .map(|n| {
                let storage = Arc::clone(&fixture.storage);
                tokio::spawn(async move {
                    write(&*storage, (round * 16 + n) * 512, &[n as u8; 512]).await;
                    storage.flush().await
                })
            })
            .collect();
        for flush in work {
            flush.await.expect("no panic").expect("flush");
        }
    }
}

/// Runs this very test again as a process that may not use io_uring, like one in a container.
#[tokio::test]
async fn where_io_uring_is_forbidden_auto_uses_threads_and_io_uring_is_refused() {
    const INSIDE: &str = "DISKCHAIN_TEST_WITHOUT_IO_URING";
    if std::env::var_os(INSIDE).is_none() {
        let name = "where_io_uring_is_forbidden_auto_uses_threads_and_io_uring_is_refused";
        let output = std::process::Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=io_uring_setup", "-e", "inject=io_uring_setup:error=EPERM"])
            .arg(std::env::current_exe().expect("this test"))
            .args(["--exact", name])
            .env(INSIDE, "1")
            .output()
            .expect("strace runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("INJECTED"), "{output:?}");
        return;
    }
    let dir = on_disk();
    let path = dir.path().join("disk");
    let refused = create(&path, &options(IoUring, Writeback)).await.map(|_| ()).expect_err("forbidden");
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.to_string().contains("not permitted"), "{refused}");
    assert!(!path.exists(), "a failed create leaves nothing behind");
    let storage = create(&path, &options(IoEngine::Auto, Direct)).await.expect("threads do");
    assert_eq!(storage.engine(), "threads");
    behaves(Fixture { storage: Arc::new(storage), _dir: Some(dir) }).await;
}

/// Runs this very test again as a process whose system calls are interrupted, every second one of each kind.
#[tokio::test]
async fn system_calls_that_a_signal_interrupts_are_made_again() {
    const INSIDE: &str = "DISKCHAIN_TEST_INTERRUPTED";
    if std::env::var_os(INSIDE).is_none() {
        let calls = ["pread64", "pwrite64", "pwritev2", "fdatasync", "fallocate", "ftruncate"];
        // The first reads are the dynamic loader's, which does not make them again.
        let faults = calls.map(|call| match call {
            "pread64" => format!("inject={call}:error=EINTR:when=11+2"),
            _ => format!("inject={call}:error=EINTR:when=1+2"),
        });
        let output = std::process::Command::new("strace")
            .args(["-f", "-qq", "-e", &format!("trace={}", calls.join(","))])
            .args(faults.iter().flat_map(|fault| ["-e", fault]))
            .arg(std::env::current_exe().expect("this test"))
            .args(["--exact", "system_calls_that_a_signal_interrupts_are_made_again"])
            .env(INSIDE, "1")
            .output()
            .expect("strace runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
        for call in calls {
            let interrupted =
                said.lines().filter(|line| line.contains(call) && line.contains("INJECTED")).count();
            assert!(interrupted > 0, "no {call} was interrupted: {said}");
        }
        return;
    }
    for cache in [Writeback, Direct] {
        behaves(file(on_disk(), IoEngine::Threads, cache).await).await;
        let fixture = file(on_disk(), IoEngine::Threads, cache).await;
        for number in 0..20 {
            write(&*fixture.storage, number * 4096, &[number as u8 + 1; 4096]).await;
            fixture.storage.flush().await.expect("flushed");
        }
        // Calls are counted for each thread, and reads from the eleventh on are interrupted.
        for number in (0..20).cycle().take(200) {
            assert_eq!(read(&*fixture.storage, number * 4096, 4096).await, [number as u8 + 1; 4096]);
        }
    }
}
