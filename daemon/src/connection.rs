//! One client's connection after the handshake: requests in batches in, replies in batches out.
//!
//! ```text
//!   receive ─▶ parse ─▶ admit ─▶ memory ─▶ start ──ready──▶ outbox ─▶ one vectored send
//!                                            └─pending─▶ in flight ─┘   as they finish
//! ```
//! A request that has to wait for nothing is done where it is started, and its reply joins the batch: no future, task
//! or channel was involved. Otherwise there is a future, which joins those in flight, and the loop goes on.
//!
//! Invariant: a request that has started is always finished, whatever becomes of the client; one that has not started
//! when the client is gone without a goodbye never does: who connects again sends it again, and it must not undo what
//! is acknowledged then.

use std::collections::VecDeque;
use std::future;
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use disk_core::buf::{Buf, BufMut, Pool};
use disk_core::client::Client;
use disk_core::clock::Moment;
use disk_core::device::Device;
use futures_util::poll;
use futures_util::stream::{FuturesUnordered, StreamExt};
use nbd_wire::{Admitted, Command, HeaderStyle, Refused, Request, Session, Violation};
use tokio::io::Interest;
use tokio::task::coop::consume_budget;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep};

use crate::errand::{Errands, Report};
use crate::helpers::Activity;
use crate::memory::{Allowance, Lease};
use crate::outbox::Outbox;
use crate::reply;
use crate::request::{self, Context, Going, Started, Write};
use crate::sender::Lane;
use crate::socket::Socket;
use crate::stop::Stop;

/// Bytes that one receive takes at most: what a Unix socket holds, so that a client's writes come as the batch that it
/// sent, and are answered as one.
const RECEIVE: usize = 256 << 10;

/// The same until a receive has filled it: most connections never send more at once, or are silent.
const RECEIVE_FIRST: usize = 16 << 10;

/// A payload of so many bytes is worth a receive of its own, straight to where it belongs. While such payloads come, a
/// receive takes no more than [`AHEAD`] bytes of what may be the next one.
const LARGE: usize = 32 << 10;

/// See [`LARGE`]: a hundred headers.
const AHEAD: usize = 4 << 10;

/// Bytes of replies that wait to be sent before no more requests are taken: about what a socket takes at once. More would
/// only go out of the processor's caches again before it is sent.
const QUEUED_MOST: u64 = 1 << 20;

/// Requests of a batch after which other tasks of the thread get their turn: two thousand may have come at once.
const BATCH: usize = 128;

/// Bytes of replies that are handed over to be sent on another core while there are more requests to work on. Less would
/// be waking the other core all the time, and more would leave it without work for longer.
const PIECE: u64 = 64 << 10;

/// A write of so many bytes is worth being done on another core while the next payload is received.
const ERRAND: usize = 256 << 10;

/// How often a busy connection looks around: is its client still there, does it move, does the daemon stop?
const LOOK: Duration = Duration::from_millis(100);

/// How long a client may take for the next [`STALL_BYTES`] of a payload or of replies (or for all of it, if that is less)
/// while others wait for the memory it holds. One byte now and then is not enough, or a few such clients could hold all
/// memory for ever.
const STALL_MOST: Duration = Duration::from_secs(10);

/// See [`STALL_MOST`]: a link of a megabit a second manages.
const STALL_BYTES: usize = 1 << 20;

/// How long a client that was there is taken to be still there. Nobody gives a connection up, sends what was in flight
/// over another one and has it acknowledged in less.
const TRUST: Duration = Duration::from_micros(100);

/// How long a client has to take its last replies when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// Receives of [`RECEIVE`] bytes that are made for nothing but a clean end: more than a socket holds.
const DISCARDS_MOST: usize = 1000;

/// Why a connection ended.
#[derive(Debug)]
pub enum End {
    /// The client said goodbye.
    Disconnected,
    /// The client closed the socket, or it broke.
    Gone(io::Error),
    /// The client broke the protocol.
    Violation(Violation),
    /// The client was too slow while others waited for the memory it held.
    Stalled,
    /// The daemon stops.
    Stopped,
}

/// What is being received.
enum Incoming {
    /// The header of the next request.
    Header,
    /// The payload of an admitted write.
    Payload { request: Admitted, lease: Lease, buffer: BufMut, filled: usize, pace: Pace },
    /// So many bytes of a refused write's payload.
    Skip(u64),
    /// Nothing: a request waits for memory.
    Memory { request: Admitted, lease: Pin<Box<dyn Future<Output = Lease> + Send>> },
}

/// Why no more of what has come is taken for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Short {
    /// More has to come first.
    OfInput,
    /// Something has to be done, sent or given back first.
    OfRoom,
}

/// Whether more requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Serving,
    /// The client said goodbye: what is in flight is finished and answered.
    Leaving,
    /// The daemon stops: the same, and what still comes is left unread. An error would be the guest's; a connection
    /// that ends makes the client send the request again, to the next daemon. Ends by then.
    Stopping(Option<Moment>),
}

/// A connection of one client to one device.
pub struct Connection {
    socket: Arc<Socket>,
    context: Arc<Context>,
    allowance: Allowance,
    most_in_flight: usize,
    input: Input,
    /// Bytes that the next receive into `input` takes at most.
    receive_most: usize,
    incoming: Incoming,
    outbox: Outbox,
    /// Where replies go that another core sends.
    lane: Lane,
    /// Another core sends, so this one does not.
    helped: bool,
    /// Large writes that another core does.
    errands: Errands,
    /// What the other core could not send; goes before the outbox.
    returned: VecDeque<Outbox>,
    activity: Activity,
    in_flight: FuturesUnordered<Going>,
    /// A moment just passed. It is read once a request: what one ends by the next begins with.
    clock: Moment,
    mood: Mood,
    /// Of replies that the socket does not take at once.
    sending: Option<Pace>,
    /// When to look around next.
    look_at: Moment,
    presence: Presence,
    /// Something came since the alarm last rang.
    active: bool,
    /// It has been silent for a while: no alarm, no memory.
    resting: bool,
}

/// What a connection listens to besides its client, made once: to make and to drop each of them for every wait would
/// cost more than a request.
struct Watch<'a> {
    stopping: Pin<&'a mut (dyn Future<Output = ()> + Send)>,
    cutting: Pin<&'a mut (dyn Future<Output = ()> + Send)>,
    /// Rings every [`LOOK`] unless the connection rests.
    alarm: Pin<&'a mut Sleep>,
}

impl Connection {
    /// A connection whose handshake is done; `leftover` are bytes that came behind it.
    pub fn new(
        socket: Socket,
        session: Session,
        leftover: &[u8],
        device: Arc<Device>,
        client: Client,
        allowance: Allowance,
        most_in_flight: usize,
    ) -> Self {
        socket.widen();
        let (socket, now) = (Arc::new(socket), Moment::now());
        Connection {
            lane: Lane::new(Arc::clone(&socket)),
            helped: false,
            errands: Errands::new(),
            returned: VecDeque::new(),
            activity: Activity::new(),
            socket,
            context: Arc::new(Context { device, client, session }),
            allowance,
            most_in_flight,
            input: Input::new(leftover),
            receive_most: RECEIVE,
            incoming: Incoming::Header,
            outbox: Outbox::default(),
            in_flight: FuturesUnordered::new(),
            clock: now,
            mood: Mood::Serving,
            sending: None,
            look_at: now,
            presence: Presence { seen_at: now, gone: false, goodbye: false },
            active: false,
            resting: false,
        }
    }

    /// Serves the client until either side ends it. All requests that started are finished when this returns, and the
    /// socket is still open.
    pub async fn serve(mut self, stop: &Stop) -> (End, Arc<Socket>) {
        let end = self.run(stop).await;
        // Who has said goodbye is owed all that was asked for before, whether or not the answers can be sent.
        let owed = self.mood == Mood::Leaving && !matches!(end, End::Stopped);
        if !owed {
            self.context.client.leave();
        }
        while self.helped {
            future::poll_fn(|context| self.lane.poll_below(context, 1)).await;
            self.helped = matches!(self.lane.take_back(), Ok(None));
        }
        while self.errands.out() > 0 {
            future::poll_fn(|context| self.errands.poll_report(context)).await;
            for report in self.errands.reports() {
                let report = match report {
                    // It was asked for before the goodbye.
                    Report::NotStarted(write) if owed => Report::Started(write.start(&mut Moment::now())),
                    report => report,
                };
                self.in_flight.extend(report.going());
            }
        }
        while self.in_flight.next().await.is_some() {}
        if let End::Stopped = end {
            self.discard_unread();
        }
        (end, self.socket)
    }

    /// TCP resets a connection that is closed with bytes unread, and takes the last replies along.
    fn discard_unread(&self) {
        let mut room = Pool::global().take(RECEIVE);
        for _ in 0..DISCARDS_MOST {
            if !matches!(self.socket.receive_now(&mut room), Ok(1..)) {
                return;
            }
        }
    }

    async fn run(&mut self, stop: &Stop) -> End {
        let (stopping, cutting) = (pin!(stop.stopping()), pin!(stop.cutting()));
        let mut watch = Watch { stopping, cutting, alarm: pin!(tokio::time::sleep(LOOK)) };
        loop {
            let short = match self.take_requests().await {
                Ok(short) => short,
                Err(end) => return end,
            };
            if let Err(error) = self.send() {
                return End::Gone(error);
            }
            if let Some(end) = self.ended() {
                return end;
            }
            // Sending makes room for requests that are here already, and for which no byte will come any more. Whether it
            // was room that was short is asked once: a helper may make some at any time.
            let goes_on = if short == Short::OfRoom { Ok(self.takes_more()) } else { self.receive() };
            match goes_on {
                // Once in a while other tasks of the thread get their turn.
                Ok(true) => consume_budget().await,
                Ok(false) => {
                    if let Some(end) = self.wait(&mut watch, short).await {
                        return end;
                    }
                }
                Err(error) => return End::Gone(error),
            }
            // Here, and not only where it waits: a client that floods never lets it wait.
            if let Some(end) = self.look(stop) {
                return end;
            }
        }
    }

    /// Parses and starts what has been received, as far as there is room for it. Returns what there was too little of.
    async fn take_requests(&mut self) -> Result<Short, End> {
        self.clock = Moment::now();
        if self.errands.out() > 0 {
            let mut reports = self.errands.reports().into_iter();
            while let Some(report) = reports.next() {
                if let Err(end) = self.hear(report).await {
                    // What has started is awaited whatever became of another.
                    self.in_flight.extend(reports.filter_map(Report::going));
                    return Err(end);
                }
            }
        }
        let mut left = BATCH;
        while self.takes_more() {
            if self.is_abandoned() {
                return Err(End::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Incoming::Header = self.incoming {
                let style = self.context.session.header_style();
                let parsed = Request::parse(self.input.bytes(), style).map_err(End::Violation)?;
                let Some((request, len)) = parsed else { return Ok(Short::OfInput) };
                self.input.consume(len);
                if let Some(going) = self.take(request).map_err(End::Violation)? {
                    self.keep(going).await;
                }
                if self.outbox.queued() >= PIECE {
                    self.get_help();
                }
                left -= 1;
                if left == 0 {
                    yield_now().await;
                    self.clock = Moment::now();
                    left = BATCH;
                }
                continue;
            }
            match mem::replace(&mut self.incoming, Incoming::Header) {
                Incoming::Header => {}
                Incoming::Payload { request, lease, mut buffer, mut filled, pace } => {
                    filled += self.input.take_into(&mut buffer[filled..]);
                    if filled < buffer.len() {
                        self.incoming = Incoming::Payload { request, lease, buffer, filled, pace };
                        return Ok(Short::OfInput);
                    }
                    self.write(request, buffer.freeze(), lease).await?;
                }
                Incoming::Skip(left) => {
                    let skipped = (self.input.bytes().len() as u64).min(left);
                    self.input.consume(skipped as usize);
                    if skipped < left {
                        self.incoming = Incoming::Skip(left - skipped);
                        return Ok(Short::OfInput);
                    }
                }
                memory @ Incoming::Memory { .. } => {
                    self.incoming = memory;
                    return Ok(Short::OfRoom);
                }
            }
        }
        Ok(Short::OfRoom)
    }

    /// Whether what is being received goes on. A payload always does: it has its memory, and may be all that the
    /// connection waits for.
    fn takes_more(&self) -> bool {
        match self.incoming {
            _ if matches!(self.mood, Mood::Stopping(_)) => false,
            Incoming::Payload { .. } | Incoming::Skip(_) => true,
            Incoming::Memory { .. } => false,
            Incoming::Header => {
                self.mood != Mood::Leaving
                    && self.in_flight.len() + self.errands.out() < self.most_in_flight
                    && self.outbox.queued() < QUEUED_MOST
                    && self.lane.queued() < 2 * QUEUED_MOST
                    && !self.allowance.is_used_up()
            }
        }
    }

    /// One request, whole but for its payload. If it is to be waited for, it comes back to be [kept](Self::keep).
    fn take(&mut self, request: Request) -> Result<Option<Going>, Violation> {
        let admitted = match self.context.session.admit(&request) {
            Ok(admitted) => admitted,
            Err(Refused::Reply(refusal)) => {
                tracing::debug!(diskchain.client = self.context.client.id(), ?request, ?refusal, "refused");
                reply::refuse(&self.context.session, &mut self.outbox, &request, &refusal);
                self.incoming = Incoming::Skip(refusal.skip);
                return Ok(None);
            }
            Err(Refused::Drop(violation)) => return Err(violation),
        };
        if admitted.is_disconnect() {
            self.mood = Mood::Leaving;
            return Ok(None);
        }
        let memory = request::memory(&self.context.session, &admitted);
        Ok(match self.allowance.try_take(memory) {
            Some(lease) => self.go_on(admitted, lease),
            None => {
                let lease = Box::pin(self.allowance.take(memory));
                self.incoming = Incoming::Memory { request: admitted, lease };
                None
            }
        })
    }

    /// A request that has its memory: on to its payload, or to work.
    fn go_on(&mut self, request: Admitted, lease: Lease) -> Option<Going> {
        self.receive_most = if request.payload_len() < LARGE as u64 { RECEIVE } else { AHEAD };
        match request.payload_len() {
            0 => self.start(request, None, lease),
            len => {
                let buffer = Pool::global().take(len as usize);
                let pace = Pace::start(self.clock);
                self.incoming = Incoming::Payload { request, lease, buffer, filled: 0, pace };
                None
            }
        }
    }

    /// Starts a write; a large one on another core, if one is free and more is here to be received meanwhile.
    async fn write(&mut self, request: Admitted, payload: Buf, lease: Lease) -> Result<(), End> {
        let helps = payload.len() >= ERRAND
            && self.returned.is_empty()
            && self.activity.leaves_a_core()
            && (!self.input.is_empty() || self.socket.holds_more());
        if !helps {
            if let Some(going) = self.start(request, Some(payload), lease) {
                self.keep(going).await;
            }
            return Ok(());
        }
        // In its place among those on the same bytes before any other is looked at.
        let write = match Write::prepare(&self.context, request, payload, lease, self.clock) {
            Ok(write) if write.has_turn() => write,
            Ok(write) => return self.hear(Report::Started(write.start(&mut Moment::now()))).await,
            Err(done) => return self.hear(Report::Started(Started::Done(*done))).await,
        };
        let socket = Arc::clone(&self.socket);
        let errand = Box::new(move || {
            if socket.is_hung_up() {
                return Report::NotStarted(write);
            }
            Report::Started(write.start(&mut Moment::now()))
        });
        match self.errands.give(errand) {
            Ok(()) => Ok(()),
            Err(errand) => self.hear(errand()).await,
        }
    }

    /// What came of a large write.
    async fn hear(&mut self, report: Report) -> Result<(), End> {
        let started = match report {
            Report::Started(started) => started,
            Report::Lost => return Err(End::Gone(io::Error::other("a fault of this program"))),
            Report::NotStarted(..) if self.is_abandoned() => {
                return Err(End::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            Report::NotStarted(write) => write.start(&mut self.clock),
        };
        match started {
            Started::Done(done) => reply::answer(&self.context.session, &mut self.outbox, done),
            Started::Going(going) => self.keep(going).await,
        }
        self.clock = Moment::now();
        Ok(())
    }

    /// Starts a request. Most are done and answered when this returns.
    fn start(&mut self, request: Admitted, payload: Option<Buf>, lease: Lease) -> Option<Going> {
        match request::start(&self.context, request, payload, lease, &mut self.clock) {
            Started::Done(done) => {
                reply::answer(&self.context.session, &mut self.outbox, done);
                None
            }
            Started::Going(future) => Some(future),
        }
    }

    /// Takes a request that is not done up among those in flight, unless it is done when it is first looked at.
    async fn keep(&mut self, mut going: Going) {
        match poll!(&mut going) {
            Poll::Ready(done) => reply::answer(&self.context.session, &mut self.outbox, done),
            Poll::Pending => self.in_flight.push(going),
        }
        self.clock = Moment::now();
    }

    /// Whether the client is gone without a goodbye.
    fn is_abandoned(&mut self) -> bool {
        let style = self.context.session.header_style();
        let (socket, unparsed) = (&self.socket, self.input.bytes());
        self.mood != Mood::Leaving && self.presence.is_gone(socket, unparsed, style, self.clock)
    }

    /// Has another core send what is ready, if there are more requests here to work on and a core that is free.
    fn get_help(&mut self) {
        if !self.input.is_empty() && self.returned.is_empty() && self.activity.leaves_a_core() {
            self.helped |= self.lane.hand_over(&mut self.outbox, true);
        }
    }

    /// Sends as much as the socket takes, or leaves it to whoever sends already.
    fn send(&mut self) -> io::Result<()> {
        self.count_what_helpers_sent();
        while self.helped {
            match self.lane.take_back()? {
                Some(returned) => {
                    self.returned = returned;
                    self.helped = false;
                }
                None if self.outbox.is_empty() => return Ok(()),
                None if self.lane.hand_over(&mut self.outbox, false) => return Ok(()),
                // It has come to its end just now.
                None => {}
            }
        }
        while let Some(first) = self.returned.front_mut() {
            if !send_all(&self.socket, first, &mut self.sending)? {
                return Ok(());
            }
            self.returned.pop_front();
        }
        if send_all(&self.socket, &mut self.outbox, &mut self.sending)? {
            self.sending = None;
        }
        Ok(())
    }

    fn count_what_helpers_sent(&mut self) {
        if let Some(pace) = &mut self.sending {
            pace.moved(self.lane.take_sent());
        }
    }

    /// Whether there are replies that are to be sent, and not by another core.
    fn has_unsent(&self) -> bool {
        let sent = self.outbox.is_empty() && self.returned.is_empty();
        !(self.helped || sent)
    }

    /// Receives what is there, if there is room for it. Returns whether anything came.
    fn receive(&mut self) -> io::Result<bool> {
        if !self.receives() {
            return Ok(false);
        }
        let received = match &mut self.incoming {
            // Straight into its own buffer, past the input.
            Incoming::Payload { buffer, filled, pace, .. } if self.input.is_empty() => {
                self.socket.try_read(&mut buffer[*filled..]).inspect(|len| {
                    *filled += len;
                    pace.moved(*len);
                })
            }
            _ => self.input.fill(self.receive_most, |room| self.socket.try_read(room)),
        };
        match received {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                self.active = true;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn receives(&self) -> bool {
        self.takes_more() && !self.input.is_full()
    }

    /// Whether everything is done that is going to be.
    fn ended(&self) -> Option<End> {
        let idle = self.in_flight.is_empty() && self.errands.out() == 0 && !self.helped && !self.has_unsent();
        match self.mood {
            Mood::Leaving if idle => Some(End::Disconnected),
            // What is still being received was never acknowledged: the client sends it again elsewhere.
            Mood::Stopping(_) if idle => Some(End::Stopped),
            _ => None,
        }
    }

    /// Waits until something can go on.
    async fn wait(&mut self, watch: &mut Watch<'_>, short: Short) -> Option<End> {
        let receives = short == Short::OfInput && self.receives();
        let sends = self.has_unsent();
        let interest = match (receives, sends) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        };
        let works = !self.in_flight.is_empty() || self.errands.out() > 0 || self.helped;
        let idle = !works && !sends && matches!(self.incoming, Incoming::Header);
        if self.resting && (self.active || !idle) {
            self.resting = false;
            self.activity.set(true);
            watch.alarm.as_mut().reset(Instant::now() + LOOK);
        }
        let stops = self.mood != Mood::Leaving && !matches!(self.mood, Mood::Stopping(_));
        let memory = async {
            match &mut self.incoming {
                Incoming::Memory { lease, .. } => lease.as_mut().await,
                _ => std::future::pending().await,
            }
        };
        // For what a helper makes room for, or for its end.
        let below = match short {
            Short::OfInput if self.mood == Mood::Serving => 0,
            Short::OfRoom if self.lane.queued() >= 2 * QUEUED_MOST => QUEUED_MOST,
            _ => 1,
        };
        let (lane, helped) = (&self.lane, self.helped);
        let room = future::poll_fn(|context| lane.poll_below(context, below));
        let (errands, away) = (&self.errands, self.errands.out() > 0);
        let report = future::poll_fn(|context| errands.poll_report(context));
        let (socket, in_flight) = (&self.socket, &mut self.in_flight);
        let done = future::poll_fn(|context| {
            // After a long wait, before any of them goes on.
            let style = self.context.session.header_style();
            let (unparsed, now) = (self.input.bytes(), Moment::now());
            if self.mood != Mood::Leaving && self.presence.is_gone(socket, unparsed, style, now) {
                self.context.client.leave();
            }
            in_flight.poll_next_unpin(context)
        });
        let ready = async {
            match interest {
                Some(interest) => socket.ready(interest).await.map(drop),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(done) = done => {
                reply::answer(&self.context.session, &mut self.outbox, done);
                // Whatever else is done goes out with it.
                while let Poll::Ready(Some(done)) = poll!(self.in_flight.next()) {
                    reply::answer(&self.context.session, &mut self.outbox, done);
                }
            }
            lease = memory => {
                self.clock = Moment::now();
                if self.is_abandoned() {
                    return Some(End::Gone(io::ErrorKind::UnexpectedEof.into()));
                }
                if let Incoming::Memory { request, .. } =
                    mem::replace(&mut self.incoming, Incoming::Header)
                    && let Some(going) = self.go_on(request, lease)
                {
                    self.keep(going).await;
                }
            }
            () = room, if helped => {}
            () = report, if away => {}
            ready = ready => {
                if let Err(error) = ready {
                    return Some(End::Gone(error));
                }
            }
            () = &mut watch.stopping, if stops => self.mood = Mood::Stopping(None),
            () = &mut watch.cutting => return Some(End::Stopped),
            () = &mut watch.alarm, if !self.resting => {
                if idle && !self.active {
                    self.input.release();
                    self.activity.set(false);
                    self.resting = true;
                } else {
                    self.active = false;
                    self.look_at = Moment::now();
                    watch.alarm.as_mut().reset(Instant::now() + LOOK);
                }
            }
        }
        None
    }

    /// Now and then, a look around.
    fn look(&mut self, stop: &Stop) -> Option<End> {
        let now = Moment::now();
        if now < self.look_at {
            return None;
        }
        self.look_at = now.after(LOOK);
        self.count_what_helpers_sent();
        if stop.is_cutting() {
            return Some(End::Stopped);
        }
        if self.mood == Mood::Serving && stop.is_stopping() {
            self.mood = Mood::Stopping(None);
        }
        // Who has said goodbye may close its side at once, and still waits for answers.
        if self.mood != Mood::Leaving && !self.receives() && self.socket.is_hung_up() {
            return Some(End::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        let receiving = match &self.incoming {
            Incoming::Payload { pace, .. } => Some(pace),
            _ => None,
        };
        let mut paces = receiving.into_iter().chain(&self.sending);
        if paces.any(|pace| pace.stands(now)) && self.allowance.budget().is_wanted() {
            return Some(End::Stalled);
        }
        if let Mood::Stopping(until) = &mut self.mood
            && self.in_flight.is_empty()
            && now >= *until.get_or_insert(now.after(FAREWELL))
        {
            return Some(End::Stopped);
        }
        None
    }
}

/// Sends `outbox` as far as the socket takes it. Returns whether that was all.
fn send_all(socket: &Socket, outbox: &mut Outbox, pace: &mut Option<Pace>) -> io::Result<bool> {
    while !outbox.is_empty() {
        let written = socket.try_write(&outbox.slices());
        match written {
            Ok(written) => {
                outbox.advance(written);
                if let Some(pace) = pace {
                    pace.moved(written);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pace.get_or_insert_with(|| Pace::start(Moment::now()));
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// What is known of the other end of the socket.
struct Presence {
    /// When it was there.
    seen_at: Moment,
    /// It hung up, and what it sent does not end with a goodbye.
    gone: bool,
    /// It hung up, and its goodbye is still to be read.
    goodbye: bool,
}

impl Presence {
    /// Whether the client hung up without a goodbye, looked for at most once in [`TRUST`]. `unparsed` has been received
    /// and goes before what the socket holds; `now` is a moment just passed.
    fn is_gone(&mut self, socket: &Socket, unparsed: &[u8], style: HeaderStyle, now: Moment) -> bool {
        if self.gone || self.goodbye {
            return self.gone;
        }
        if now.since(self.seen_at) < TRUST {
            return false;
        }
        self.seen_at = now;
        if socket.is_hung_up() {
            // Nothing will come any more, so its last words are here.
            let unread = socket.peek_all();
            let len = style.request_len();
            let words: Vec<u8> =
                unparsed[unparsed.len().saturating_sub(len)..].iter().chain(&unread).copied().collect();
            let last = words.len().checked_sub(len).map(|start| Request::parse(&words[start..], style));
            self.goodbye =
                matches!(last, Some(Ok(Some((request, _)))) if request.command == Command::Disconnect);
            self.gone = !self.goodbye;
        }
        self.gone
    }
}

/// How fast bytes move that others may be waiting for.
struct Pace {
    since: Moment,
    bytes: usize,
}

impl Pace {
    fn start(now: Moment) -> Self {
        Pace { since: now, bytes: 0 }
    }

    fn moved(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= STALL_BYTES {
            *self = Pace::start(Moment::now());
        }
    }

    fn stands(&self, now: Moment) -> bool {
        now.since(self.since) > STALL_MOST
    }
}

/// Bytes that were received and not parsed yet.
struct Input {
    buffer: Option<BufMut>,
    /// Bytes that the buffer should have.
    size: usize,
    start: usize,
    end: usize,
}

impl Input {
    fn new(leftover: &[u8]) -> Self {
        let mut input = Input { buffer: None, size: RECEIVE_FIRST, start: 0, end: 0 };
        if !leftover.is_empty() {
            let mut buffer = Pool::global().take(leftover.len().max(input.size));
            buffer[..leftover.len()].copy_from_slice(leftover);
            (input.buffer, input.end) = (Some(buffer), leftover.len());
        }
        input
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn is_full(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| self.end - self.start >= buffer.len().max(self.size))
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves bytes to where they belong; returns how many.
    fn take_into(&mut self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.end - self.start);
        into[..len].copy_from_slice(&self.bytes()[..len]);
        self.consume(len);
        len
    }

    /// Receives up to `most` bytes more, as many as there is room for.
    fn fill(&mut self, most: usize, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let buffer = self.buffer.get_or_insert_with(|| Pool::global().take(self.size));
        if self.end == buffer.len() || (self.start == self.end && buffer.len() < self.size) {
            let left = self.end - self.start;
            if buffer.len() < self.size {
                let small = mem::replace(buffer, Pool::global().take(self.size));
                buffer[..left].copy_from_slice(&small[self.start..self.end]);
            } else {
                buffer.copy_within(self.start..self.end, 0);
            }
            (self.start, self.end) = (0, left);
        }
        let room = self.end..buffer.len().min(self.end + most);
        let wanted = room.len();
        let len = read(&mut buffer[room])?;
        self.end += len;
        if len == wanted && self.end == buffer.len() {
            self.size = RECEIVE;
        }
        Ok(len)
    }

    /// Gives the buffer back while nothing is in it.
    fn release(&mut self) {
        if self.is_empty() {
            self.buffer = None;
            self.size = RECEIVE_FIRST;
        }
    }
}

#[cfg(test)]
mod tests;
