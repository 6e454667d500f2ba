//! A file or block device as a [`Storage`]: answers at once what needs no waiting and hands the rest to an engine.
//!
//! ```text
//!   read, write ──▶ in the page cache or in memory ──▶ done on the caller's thread
//!                └▶ the rest ──▶ the writer thread, for cached writes that the kernel does one after the other
//!                            └─▶ else the ring (if there is one and the transfer fits) or a thread
//!   zero, discard, status, flush, resize ──▶ a thread
//! ```
//! Invariant: no method blocks.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::buf::{Buf, BufMut};
use crate::error::Result;
use crate::range::ByteRange;
use crate::storage::align::Turn;
use crate::storage::host::HostFile;
use crate::storage::threads::Threads;
use crate::storage::uring::{Entrance, Op, Request, Ring};
use crate::storage::{Completer, Completion, HostExtent, Limits, Storage, Zero};

/// Requests of one storage that can be blocked in the kernel at once, its writer's aside. A device that gains from
/// more wants io_uring.
const THREADS: usize = 15;

/// Hints to read ahead that are followed at once. The kernel reads all that they name before it returns, and nobody waits
/// for them: more would fill the queue without a bound and keep every thread from real work.
const PREFETCHES: usize = 2;

/// An open file or block device. Dropping it lets what was begun finish; then the file is closed and unlocked.
#[derive(Debug)]
pub struct FileStorage {
    host: Arc<HostFile>,
    threads: Threads,
    /// One thread: writes that exclude each other in the kernel only get in each other's way on more.
    writer: Threads,
    ring: Option<Ring>,
    flushes: Arc<Flushes>,
    /// Under way now.
    prefetches: Arc<AtomicUsize>,
}

/// Flushes that wait for their sync. One sync runs at a time; all that came before it started share it.
#[derive(Debug, Default)]
struct Flushes(Mutex<FlushQueue>);

#[derive(Debug, Default)]
struct FlushQueue {
    waiting: Vec<Completer<()>>,
    running: bool,
}

impl FileStorage {
    pub(super) fn new(host: HostFile, ring: Option<Ring>) -> Self {
        let (threads, writer) = (Threads::new(THREADS), Threads::new(1));
        let host = Arc::new(host);
        FileStorage { host, threads, writer, ring, flushes: Arc::default(), prefetches: Arc::default() }
    }

    /// A place in the ring, if it can do this transfer.
    fn ring_for(&self, at: u64, bytes: &[u8]) -> Option<Entrance<'_>> {
        let ring = self.ring.as_ref()?;
        let fits = self.host.direct().is_none_or(|direct| direct.fits(at, bytes));
        if fits { ring.enter() } else { None }
    }

    fn read_rest(&self, at: u64, mut into: BufMut, done: usize) -> Completion<BufMut> {
        let host = Arc::clone(&self.host);
        let Some(entrance) = self.ring_for(at, &into) else {
            return self.threads.run(move || host.read(at + done as u64, &mut into[done..]).map(|()| into));
        };
        let (completer, completion) = Completion::pending();
        let finish = move |op: Op, outcome: Result<(), Errno>| {
            let Op::Read(into) = op else { unreachable!("an operation comes back as it went") };
            let outcome = match outcome {
                Ok(()) => Ok(into),
                Err(errno) => Err(host.failed(errno, "read", at, into.len() as u64)),
            };
            drop(host);
            completer.complete(outcome);
        };
        let fd = self.host.raw_fd();
        entrance.submit(Request { fd, at, op: Op::Read(into), done, finish: Box::new(finish) });
        completion
    }

    fn write_rest(&self, at: u64, from: Buf, done: usize) -> Completion<()> {
        let host = Arc::clone(&self.host);
        if host.writes_in_line() {
            return self.writer.run(move || host.write(at + done as u64, &from[done..]));
        }
        let Some((entrance, turn)) = self.ring_for_write(at, &from) else {
            return self.threads.run(move || host.write(at + done as u64, &from[done..]));
        };
        let (completer, completion) = Completion::pending();
        let len = from.len() as u64;
        let finish = move |_: Op, outcome: Result<(), Errno>| {
            let outcome = match outcome {
                Ok(()) => {
                    host.written(at + len);
                    Ok(())
                }
                Err(errno) => {
                    host.changed();
                    Err(host.write_failed(errno, at, len))
                }
            };
            drop((turn, host));
            completer.complete(outcome);
        };
        let op = Op::Write { from, durable: self.host.write_through() };
        entrance.submit(Request { fd: self.host.raw_fd(), at, op, done, finish: Box::new(finish) });
        completion
    }

    /// A place in the ring and, for direct I/O, the turn to write there. If somebody else has it now, a thread can
    /// wait for it.
    fn ring_for_write(&self, at: u64, from: &[u8]) -> Option<(Entrance<'_>, Option<Turn>)> {
        let range = ByteRange::at(at, from.len() as u64);
        let turn = match self.host.direct() {
            Some(direct) => Some(direct.try_turn(range)?),
            None => None,
        };
        Some((self.ring_for(at, from)?, turn))
    }
}

impl Storage for FileStorage {
    fn limits(&self) -> Limits {
        self.host.limits()
    }

    fn name(&self) -> &str {
        self.host.name()
    }

    fn len(&self) -> u64 {
        self.host.len()
    }

    fn allocated(&self) -> u64 {
        self.host.allocated()
    }

    fn read(&self, at: u64, mut into: BufMut) -> Completion<BufMut> {
        if let Err(error) = self.host.check_read(at, into.len()) {
            return Completion::ready(Err(error));
        }
        let done = self.host.read_now(at, &mut into);
        if done == into.len() {
            return Completion::ready(Ok(into));
        }
        self.read_rest(at, into, done)
    }

    fn write(&self, at: u64, from: Buf) -> Completion<()> {
        if let Err(error) = self.host.check_write(at, from.len()) {
            return Completion::ready(Err(error));
        }
        let done = self.host.write_now(at, &from);
        if done == from.len() {
            return Completion::ready(Ok(()));
        }
        self.write_rest(at, from, done)
    }

    fn zero(&self, range: ByteRange, how: Zero) -> Completion<()> {
        self.change(move |host| host.zero(range, how))
    }

    fn discard(&self, range: ByteRange) -> Completion<()> {
        self.change(move |host| host.discard(range))
    }

    fn status(&self, range: ByteRange) -> Completion<HostExtent> {
        let host = Arc::clone(&self.host);
        self.threads.run(move || host.status(range))
    }

    fn prefetch(&self, range: ByteRange) {
        let free = |now: usize| (now < PREFETCHES).then_some(now + 1);
        if self.prefetches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).is_err() {
            return;
        }
        let (host, prefetches) = (Arc::clone(&self.host), Arc::clone(&self.prefetches));
        self.threads.spawn(move || {
            host.prefetch(range);
            prefetches.fetch_sub(1, Ordering::Relaxed);
        });
    }

    fn flush(&self) -> Completion<()> {
        if let Some(outcome) = self.host.sync_now() {
            return Completion::ready(outcome);
        }
        let (completer, completion) = Completion::pending();
        let mut queue = self.flushes.queue();
        queue.waiting.push(completer);
        if !mem::replace(&mut queue.running, true) {
            drop(queue);
            let (host, flushes) = (Arc::clone(&self.host), Arc::clone(&self.flushes));
            self.threads.spawn(move || flushes.run(host));
        }
        completion
    }

    fn resize(&self, len: u64) -> Completion<()> {
        self.change(move |host| host.resize(len))
    }

    fn ping(&self) -> Completion<()> {
        let (completer, completion) = Completion::pending();
        let all = Arc::new(Answers(Some(completer)));
        for pool in [&self.threads, &self.writer] {
            let answer = Arc::clone(&all);
            pool.ping(move || drop(answer));
        }
        if let Some(ring) = &self.ring {
            ring.ping(move || drop(all));
        }
        completion
    }

    fn engine(&self) -> &'static str {
        if self.ring.is_some() { "io_uring" } else { "threads" }
    }
}

/// Shared by all engines that were pinged; the last to let go of it has answered last.
struct Answers(Option<Completer<()>>);

impl Drop for Answers {
    fn drop(&mut self) {
        if let Some(completer) = self.0.take() {
            completer.complete(Ok(()));
        }
    }
}

impl FileStorage {
    fn change(&self, work: impl FnOnce(&HostFile) -> Result<()> + Send + 'static) -> Completion<()> {
        if let Err(error) = self.host.check_writable() {
            return Completion::ready(Err(error));
        }
        let host = Arc::clone(&self.host);
        self.threads.run(move || work(&host))
    }
}

impl Flushes {
    fn queue(&self) -> MutexGuard<'_, FlushQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs until nobody waits any more. Whoever came during one sync is served by the next.
    fn run(&self, host: Arc<HostFile>) {
        let mut host = Some(host);
        while let Some(file) = host.take() {
            let served = mem::take(&mut self.queue().waiting);
            let outcome = file.sync();
            let mut queue = self.queue();
            queue.running = !queue.waiting.is_empty();
            // The last one to be told may close the file and open it anew: let go of it before.
            host = queue.running.then_some(file);
            drop(queue);
            for completer in served {
                completer.complete(outcome.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::storage::{OpenOptions, create};

    #[tokio::test]
    async fn hints_to_read_ahead_do_not_pile_up_while_nobody_is_free() {
        let dir = tempfile::tempdir().expect("a directory");
        let storage = create(dir.path().join("disk"), &OpenOptions::read_write()).await.expect("a file");
        storage.resize(1 << 20).await.expect("a length");
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..THREADS {
            let gate = Arc::clone(&gate);
            storage.threads.spawn(move || {
                let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
            });
        }
        for _ in 0..10_000 {
            storage.prefetch(ByteRange::new(0, 1 << 20));
        }
        assert_eq!(storage.prefetches.load(Ordering::Relaxed), PREFETCHES);
        let queued = format!("{:?}", storage.threads);
        drop(open);
        let (_, number) = queued.split_once("queued: ").expect("it says how many are queued");
        let number: usize = number.trim_end_matches(" }").parse().expect("a number");
        assert!(number <= THREADS + PREFETCHES, "{queued}");
        // The two that were taken come to their end, and the next ones are taken again.
        while storage.prefetches.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}
