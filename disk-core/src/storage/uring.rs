//! io_uring: one ring a storage, for reads and writes.
//!
//! ```text
//!   submit ──▶ queue ──▶ drive: to the kernel, and what it reports back ──▶ finish(op, outcome)
//!                          ▲
//!                reaper ───┘ a task, woken by the runtime when the kernel reports
//! ```
//! The reaper is a task of the runtime that serves the disk. So no other thread has to wake up before a request is with
//! the kernel, nor before the task that waits for it hears of its end. Whoever has queued several drives the ring
//! himself, unless somebody is at it, who then does it for him. The ring is made for the first request. Flushes and
//! holes are not its business: the kernel would hand each to a thread of its own, which the pool of the storage does
//! as well.
//!
//! The kernel does not wait for a device when it takes a request, but for what a file system looks up before: ext4 reads
//! an extent that is not in memory there and then. One thread of the runtime for each ring can be held up by that.
//!
//! Invariant: a request, and with it its buffer and its file, stays in the ring's table until the kernel has reported
//! it done. Nothing but that report takes it out, not even a panic.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::buf::{Buf, BufMut};

/// Requests of one storage that the kernel has at once; more wait in the queue. Twice what a client of ours keeps in
/// flight.
const DEPTH: usize = 128;

/// Largest transfer of one submission, bytes: the kernel stops a little below 2 GiB.
const TRANSFER_MAX: usize = 1 << 30;

/// How long to wait before the kernel is asked again that did not take what it was given, for want of memory.
const PAUSE: Duration = Duration::from_millis(1);

/// So many requests are handed to the kernel at once while more may be on their way: it tells the device of them once.
/// Fewer wait for the task that queues them to pause, which is when the reaper has its turn.
const PIECE: usize = 8;

/// How often whoever submits looks for what others have queued meanwhile, before he leaves it to the reaper: he has
/// requests of his own to see to.
const ROUNDS: usize = 8;

/// What is to be moved.
#[derive(Debug)]
pub(super) enum Op {
    Read(BufMut),
    /// If `durable`, it completes only when the bytes are on stable storage.
    Write {
        from: Buf,
        durable: bool,
    },
    /// Nothing.
    Ping,
}

/// A transfer on its way through the ring.
pub(super) struct Request {
    /// Stays open until `finish` is dropped: that closure owns the file.
    pub(super) fd: RawFd,
    pub(super) at: u64,
    pub(super) op: Op,
    /// Bytes that have been moved already.
    pub(super) done: usize,
    /// Called by whoever drives the ring: short, and never blocking. Must keep `fd` open as long as it exists.
    pub(super) finish: Box<dyn FnOnce(Op, Result<(), Errno>) + Send>,
}

/// The way into the ring. Dropping it lets what was submitted finish.
pub(super) struct Ring {
    shared: Arc<Shared>,
    runtime: Handle,
}

struct Shared {
    state: Mutex<State>,
    /// Tells the reaper that there is something to do that no report will tell of.
    poke: Notify,
}

#[derive(Default)]
struct State {
    /// Not with the kernel yet.
    requests: VecDeque<Request>,
    /// Is not here while somebody drives it, nor before the first request.
    kernel: Option<Box<Kernel>>,
    /// It was made.
    made: bool,
    /// Whoever drives is to look again before he stops.
    again: bool,
    /// The reaper is there.
    reaped: bool,
    closing: bool,
}

/// Whether this kernel lets this process use io_uring, and if not, why. Asked once a process.
pub(super) fn available() -> Result<(), &'static str> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER.get_or_init(probe).as_ref().map(|_| ()).map_err(String::as_str)
}

fn probe() -> Result<(), String> {
    let ring = IoUring::new(4).map_err(|error| format!("io_uring_setup: {error}"))?;
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|error| format!("io_uring_register: {error}"))?;
    let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Nop::CODE];
    if !needed.iter().all(|&code| known.is_supported(code)) {
        return Err("this kernel's io_uring is too old".into());
    }
    Ok(())
}

impl Ring {
    /// A ring for a storage of the runtime that this is called in, which must have I/O and time enabled.
    pub(super) fn new() -> Ring {
        let shared = Shared { state: Mutex::default(), poke: Notify::new() };
        Ring { shared: Arc::new(shared), runtime: Handle::current() }
    }

    /// The right to queue one request, with the ring there; none if it is not to be had (no memory, no descriptors).
    pub(super) fn enter(&self) -> Option<Entrance<'_>> {
        let mut state = self.shared.state();
        if !state.made {
            match Kernel::new() {
                Ok(kernel) => (state.kernel, state.made) = (Some(Box::new(kernel)), true),
                Err(error) => {
                    tracing::warn!(%error, "no io_uring for now, using threads");
                    return None;
                }
            }
        }
        if !state.reaped {
            let kernel = state.kernel.as_ref()?;
            let reports = match self.watch(&kernel.ring) {
                Ok(reports) => reports,
                Err(error) => {
                    tracing::warn!(%error, "no io_uring for now, using threads");
                    return None;
                }
            };
            state.reaped = true;
            drop(state);
            // Without the lock: in a runtime that ends, the reaper ends here and now.
            self.runtime.spawn(Reaper { reports, shared: Arc::clone(&self.shared) }.run());
            state = self.shared.state();
        }
        Some(Entrance { shared: &self.shared, state })
    }

    /// The runtime's view of whether the kernel has reported something.
    fn watch(&self, ring: &IoUring) -> io::Result<AsyncFd<OwnedFd>> {
        // SAFETY: the ring is open as long as it is borrowed, and so is its descriptor.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        let _inside = self.runtime.enter();
        // SAFETY: it owns the descriptor, which is open and stays so until it is dropped.
        Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
    }

    /// Runs `answer`, which must be short, as soon as the kernel takes something new: here and now if there is no ring
    /// yet, otherwise before what is queued.
    pub(super) fn ping(&self, answer: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state();
        if !state.reaped {
            drop(state);
            return answer();
        }
        let finish = Box::new(move |_: Op, _: Result<(), Errno>| answer());
        state.requests.push_front(Request { fd: -1, at: 0, op: Op::Ping, done: 0, finish });
        self.shared.drive(state);
    }
}

/// A place in the queue, held open.
pub(super) struct Entrance<'a> {
    shared: &'a Shared,
    state: MutexGuard<'a, State>,
}

impl Entrance<'_> {
    /// Queues a request.
    pub(super) fn submit(mut self, request: Request) {
        self.state.requests.push_back(request);
        if self.state.requests.len() >= PIECE {
            self.shared.drive(self.state);
        } else {
            drop(self.state);
            self.shared.poke.notify_one();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.poke.notify_one();
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        f.debug_struct("Ring").field("made", &state.made).field("queued", &state.requests.len()).finish()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands to the kernel what is queued and takes what it reports, unless somebody is at it, who then does.
    fn drive<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        let Some(mut kernel) = state.kernel.take() else {
            state.again = true;
            return;
        };
        for _ in 0..ROUNDS {
            state.again = false;
            kernel.fetch(&mut state.requests);
            drop(state);
            let accepted = kernel.submit(0);
            kernel.reap();
            state = self.state();
            if !(accepted && (state.again || kernel.wants_more(&state.requests))) {
                break;
            }
        }
        let unfinished = state.again || kernel.wants_more(&state.requests);
        state.kernel = Some(kernel);
        drop(state);
        if unfinished {
            self.poke.notify_one();
        }
    }

    /// Drives the ring until nothing is left in it, on a thread that does nothing else.
    fn finish_all(&self) {
        loop {
            let mut state = self.state();
            let Some(mut kernel) = state.kernel.take() else {
                drop(state);
                thread::sleep(PAUSE);
                continue;
            };
            kernel.fetch(&mut state.requests);
            if kernel.is_idle() {
                state.kernel = Some(kernel);
                state.reaped = false;
                return;
            }
            drop(state);
            kernel.submit(1);
            kernel.reap();
            self.state().kernel = Some(kernel);
        }
    }
}

/// Drives the ring when the kernel reports, until nobody needs it any more.
struct Reaper {
    reports: AsyncFd<OwnedFd>,
    shared: Arc<Shared>,
}

impl Reaper {
    async fn run(self) {
        while !self.is_done() {
            tokio::select! {
                ready = self.reports.readable() => match ready {
                    // Before the look, so that no report is missed that comes after it.
                    Ok(mut ready) => ready.clear_ready(),
                    // The runtime is ending.
                    Err(_) => return,
                },
                () = self.shared.poke.notified() => {}
            }
            self.shared.drive(self.shared.state());
            if self.is_held_up() {
                tokio::time::sleep(PAUSE).await;
                self.shared.poke.notify_one();
            }
        }
    }

    /// Whether nothing is under way, and nothing will be.
    fn is_done(&self) -> bool {
        let mut state = self.shared.state();
        let idle = state.requests.is_empty() && state.kernel.as_ref().is_some_and(|kernel| kernel.is_idle());
        if state.closing && idle {
            state.reaped = false;
        }
        state.closing && idle
    }

    /// Whether the kernel does not take what is handed to it.
    fn is_held_up(&self) -> bool {
        let mut state = self.shared.state();
        state.kernel.as_mut().is_some_and(|kernel| !kernel.ring.submission().is_empty())
    }
}

impl Drop for Reaper {
    /// A runtime that ends takes the reaper along. What the kernel still has is waited for elsewhere.
    fn drop(&mut self) {
        if !self.shared.state().reaped {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let waits = thread::Builder::new().name("disk-ring".into()).spawn(move || shared.finish_all());
        if let Err(error) = waits {
            tracing::error!(%error, "nobody can wait for what is still being read or written");
        }
    }
}

/// The kernel's side: what it has now.
struct Kernel {
    ring: IoUring,
    /// Requests by the number that the kernel knows them by. Never dropped while one is in it.
    flying: ManuallyDrop<Vec<Option<Request>>>,
    free: Vec<usize>,
    /// Of `reap`, kept for its memory.
    reports: Vec<(u64, i32)>,
}

impl Kernel {
    fn new() -> io::Result<Kernel> {
        let entries = DEPTH as u32;
        let ring =
            IoUring::builder().setup_coop_taskrun().build(entries).or_else(|_| IoUring::new(entries))?;
        let flying = ManuallyDrop::new((0..DEPTH).map(|_| None).collect());
        Ok(Kernel { ring, flying, free: (0..DEPTH).rev().collect(), reports: Vec::new() })
    }

    fn is_idle(&self) -> bool {
        self.free.len() == DEPTH
    }

    /// Whether it would take something now.
    fn wants_more(&mut self, requests: &VecDeque<Request>) -> bool {
        let room = !requests.is_empty() && !self.free.is_empty();
        room || !self.ring.submission().is_empty()
    }

    /// Takes as much as there is room for.
    fn fetch(&mut self, requests: &mut VecDeque<Request>) {
        while !requests.is_empty()
            && let Some(slot) = self.free.pop()
        {
            let request = requests.pop_front().expect("there is one");
            self.start(slot, request);
        }
    }

    /// Prepares the rest of a request to be submitted.
    fn start(&mut self, slot: usize, request: Request) {
        let request = self.flying[slot].insert(request);
        let fd = types::Fd(request.fd);
        let at = request.at + request.done as u64;
        let entry = match &mut request.op {
            Op::Read(into) => {
                let rest = &mut into[request.done..];
                let len = rest.len().min(TRANSFER_MAX) as u32;
                opcode::Read::new(fd, rest.as_mut_ptr(), len).offset(at).build()
            }
            Op::Write { from, durable } => {
                let rest = &from[request.done..];
                let len = rest.len().min(TRANSFER_MAX) as u32;
                let flags = if *durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
                opcode::Write::new(fd, rest.as_ptr(), len).offset(at).rw_flags(flags.bits() as i32).build()
            }
            Op::Ping => opcode::Nop::new().build(),
        };
        self.push(&entry.user_data(slot as u64));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry points to a buffer and names a descriptor, or (a ping) does neither. The buffer and the owner
        // of the descriptor are in `flying` under the entry's number. They leave it only in `reap`, after the kernel's
        // report: `flying` is dropped only when every slot is free. Moving a request moves neither its pool memory nor
        // its descriptor, and nobody else has a view of a `BufMut`'s bytes.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the ring has an entry for every slot");
    }

    /// Submits what was started, and waits for so many reports. Returns whether the kernel took it.
    fn submit(&mut self, wanted: usize) -> bool {
        if wanted == 0 && self.ring.submission().is_empty() {
            return true;
        }
        match self.ring.submitter().submit_and_wait(wanted) {
            Ok(_) => true,
            Err(error) => {
                let errno = error.raw_os_error().map(Errno::from_raw_os_error);
                if !matches!(errno, Some(Errno::INTR | Errno::BUSY | Errno::AGAIN)) {
                    // Not known to happen. The kernel may still write into buffers, so the requests stay.
                    tracing::error!(%error, "io_uring_enter failed");
                    if wanted > 0 {
                        thread::sleep(PAUSE);
                    }
                }
                false
            }
        }
    }

    fn reap(&mut self) {
        let mut reports = mem::take(&mut self.reports);
        reports.extend(self.ring.completion().map(|report| (report.user_data(), report.result())));
        for (number, result) in reports.drain(..) {
            let slot = number as usize;
            let request = self.flying[slot].take().expect("the kernel reports each request once");
            self.advance(slot, request, result);
        }
        self.reports = reports;
    }

    /// The kernel is done with one submission of a request: the rest of it goes out again, or it is finished.
    fn advance(&mut self, slot: usize, mut request: Request, result: i32) {
        let len = match &request.op {
            Op::Read(into) => into.len(),
            Op::Write { from, .. } => from.len(),
            Op::Ping => 0,
        };
        let outcome = match usize::try_from(result) {
            Ok(0) if len > 0 => Err(Errno::IO),
            Ok(moved) => {
                request.done += moved;
                if request.done < len {
                    return self.start(slot, request);
                }
                Ok(())
            }
            Err(_) => match Errno::from_raw_os_error(-result) {
                // The last: the thread that had submitted it is gone, and what the kernel did in its name with it.
                Errno::INTR | Errno::AGAIN | Errno::CANCELED => return self.start(slot, request),
                errno => Err(errno),
            },
        };
        self.free.push(slot);
        // Its panic would be everybody's: the others in flight would never be answered.
        let _ = panic::catch_unwind(AssertUnwindSafe(move || (request.finish)(request.op, outcome)));
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.is_idle() {
            // SAFETY: it is not used again. The kernel has none of it.
            unsafe { ManuallyDrop::drop(&mut self.flying) };
        }
    }
}
