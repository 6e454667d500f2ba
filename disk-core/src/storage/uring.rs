//! io_uring: one ring and one thread a storage, for reads and writes.
//!
//! ```text
//!   submit ──▶ queue ──(eventfd, if the thread sleeps)──▶ ring thread ──▶ kernel
//!                                   finish(op, outcome) ◀──┘  completions
//! ```
//! The thread and its ring start with the first request and leave after a while without any. Flushes and holes are
//! not its business: the kernel would hand each to a thread of its own, which the pool of the storage does as well.
//!
//! Invariant: a request, and with it its buffer and its file, stays in the ring thread's table until the kernel has
//! reported it done. Nothing but that report takes it out, not even a panic.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::io::{Errno, ReadWriteFlags};

use crate::buf::{Buf, BufMut};

/// Requests of one storage that the kernel has at once; more wait in the queue. Twice what a client of ours keeps in
/// flight.
const DEPTH: usize = 128;

/// How long the thread stays without work.
const LINGER: Duration = Duration::from_secs(5);

/// Largest transfer of one submission, bytes: the kernel stops a little below 2 GiB.
const TRANSFER_MAX: usize = 1 << 30;

/// Marks the poll of the eventfd among the completions.
const WAKE: u64 = u64::MAX;

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
    /// Called on the ring thread: short, and never blocking. Must keep `fd` open as long as it exists.
    pub(super) finish: Box<dyn FnOnce(Op, Result<(), Errno>) + Send>,
}

/// The way to the ring thread. Dropping it lets what was submitted finish.
pub(super) struct Ring {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: OwnedFd,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    running: bool,
    asleep: bool,
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
    let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::PollAdd::CODE, opcode::Nop::CODE];
    if !needed.iter().all(|&code| known.is_supported(code)) || !ring.params().is_feature_ext_arg() {
        return Err("this kernel's io_uring is too old".into());
    }
    Ok(())
}

impl Ring {
    pub(super) fn new() -> io::Result<Ring> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Ring { shared: Arc::new(Shared { queue: Mutex::default(), wake }) })
    }

    /// The right to queue one request, with the thread running; none if no ring can be had (no memory, no
    /// descriptors).
    pub(super) fn enter(&self) -> Option<Entrance<'_>> {
        let mut queue = self.shared.queue();
        if !queue.running {
            if let Err(error) = self.start() {
                tracing::warn!(%error, "no io_uring for now, using threads");
                return None;
            }
            queue.running = true;
        }
        Some(Entrance { shared: &self.shared, queue })
    }

    /// Runs `answer`, which must be short, as soon as the kernel takes something new: here and now if the thread is not
    /// running, otherwise before what is queued.
    pub(super) fn ping(&self, answer: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue();
        if !queue.running {
            drop(queue);
            return answer();
        }
        let finish = Box::new(move |_: Op, _: Result<(), Errno>| answer());
        queue.requests.push_front(Request { fd: -1, at: 0, op: Op::Ping, done: 0, finish });
        Entrance { shared: &self.shared, queue }.wake();
    }

    fn start(&self) -> io::Result<()> {
        let entries = (DEPTH + 1).next_power_of_two() as u32;
        let ring =
            IoUring::builder().setup_coop_taskrun().build(entries).or_else(|_| IoUring::new(entries))?;
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("disk-ring".into()).spawn(move || RingThread::new(shared, ring).run())?;
        Ok(())
    }
}

/// A place in the queue, held open.
pub(super) struct Entrance<'a> {
    shared: &'a Shared,
    queue: MutexGuard<'a, Queue>,
}

impl Entrance<'_> {
    /// Queues a request.
    pub(super) fn submit(mut self, request: Request) {
        self.queue.requests.push_back(request);
        self.wake();
    }

    fn wake(mut self) {
        let asleep = mem::take(&mut self.queue.asleep);
        drop(self.queue);
        if asleep {
            self.shared.wake();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.shared.queue().closing = true;
        self.shared.wake();
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.shared.queue();
        f.debug_struct("Ring")
            .field("running", &queue.running)
            .field("queued", &queue.requests.len())
            .finish()
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It can only fail when the counter is full, and then the thread is being woken already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The thread's side: what the kernel has now.
struct RingThread {
    ring: IoUring,
    shared: Arc<Shared>,
    /// Requests by the number that the kernel knows them by. Never dropped while one is in it.
    flying: ManuallyDrop<Vec<Option<Request>>>,
    free: Vec<usize>,
    /// Whether the kernel watches the eventfd.
    watching: bool,
}

impl RingThread {
    fn new(shared: Arc<Shared>, ring: IoUring) -> Self {
        let flying = ManuallyDrop::new((0..DEPTH).map(|_| None).collect());
        RingThread { shared, ring, flying, free: (0..DEPTH).rev().collect(), watching: false }
    }

    fn run(mut self) {
        let mut lingered = false;
        while self.fetch(lingered) {
            self.watch();
            lingered = self.submit_and_sleep();
            self.reap();
        }
        // Nothing is in flight: the table may go.
        drop(ManuallyDrop::into_inner(mem::take(&mut self.flying)));
    }

    /// Takes what was queued; false if there is nothing left to live for.
    fn fetch(&mut self, lingered: bool) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue();
        while let Some(slot) = self.free.pop() {
            let Some(request) = queue.requests.pop_front() else {
                self.free.push(slot);
                break;
            };
            self.start(slot, request);
        }
        if self.free.len() == DEPTH && (queue.closing || lingered) {
            queue.running = false;
            return false;
        }
        queue.asleep = true;
        true
    }

    /// Gives the rest of a request to the kernel.
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

    /// Has the kernel report when somebody writes to the eventfd.
    fn watch(&mut self) {
        if !self.watching {
            self.watching = true;
            let events = PollFlags::IN.bits() as u32;
            let poll = opcode::PollAdd::new(types::Fd(self.shared.wake.as_raw_fd()), events);
            self.push(&poll.build().user_data(WAKE));
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry points to a buffer and names a descriptor, or (the poll) names the eventfd alone, or (a
        // ping) does neither. The buffer and the owner of the descriptor are in `flying` under the entry's number. They
        // leave it only in `reap`, after the kernel's report: `flying` is not dropped on unwinding, and `run` ends only
        // when every slot is free. Moving a request moves neither its pool memory nor its descriptor, and nobody else
        // has a view of a `BufMut`'s bytes. The eventfd lives in `shared`, which this thread keeps until its ring is
        // closed.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the ring has an entry for every slot and one for the eventfd");
    }

    /// Submits, and sleeps until there is something to do; true if nothing came for a while.
    fn submit_and_sleep(&mut self) -> bool {
        let timeout = types::Timespec::from(LINGER);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => false,
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::TIME) => true,
                Some(Errno::INTR | Errno::BUSY | Errno::AGAIN) => false,
                _ => {
                    // Not known to happen. The kernel may still write into buffers, so the requests stay, and a
                    // short rest keeps this from being a spin.
                    tracing::error!(%error, "io_uring_enter failed");
                    thread::sleep(Duration::from_millis(100));
                    false
                }
            },
        }
    }

    fn reap(&mut self) {
        let reports: Vec<(u64, i32)> =
            self.ring.completion().map(|report| (report.user_data(), report.result())).collect();
        for (number, result) in reports {
            if number == WAKE {
                self.watching = false;
                let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
                continue;
            }
            let slot = number as usize;
            let request = self.flying[slot].take().expect("the kernel reports each request once");
            self.advance(slot, request, result);
        }
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
                Errno::INTR | Errno::AGAIN => return self.start(slot, request),
                errno => Err(errno),
            },
        };
        self.free.push(slot);
        // Its panic would be everybody's: the others in flight would never be answered.
        let _ = panic::catch_unwind(AssertUnwindSafe(move || (request.finish)(request.op, outcome)));
    }
}
