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

mod busy_poll;
mod input;
mod pace;
mod presence;

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
use nbd_wire::{Admitted, Refused, Request, Session, Violation};
use tokio::io::Interest;
use tokio::task::coop::consume_budget;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep};

use crate::helpers::Activity;
use crate::memory::{Allowance, Lease};
use crate::offload::{Offload, Report};
use crate::outbox::Outbox;
use crate::reply;
use crate::request::{self, Context, Going, Started, Write};
use crate::sender::Lane;
use crate::socket::Socket;
use crate::stop::Stop;
use busy_poll::BusyPoll;
use input::{Input, RECEIVE};
use pace::Pace;
use presence::Presence;

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
const OFFLOAD: usize = 256 << 10;

/// How often a busy connection looks around: is its client still there, does it move, does the daemon stop?
const LOOK: Duration = Duration::from_millis(100);

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

/// What a connection is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Requests that are in flight at once.
    pub most_in_flight: usize,
    /// How long it may look for the next request of a quick client before its thread goes to sleep.
    pub busy_poll: Duration,
}

/// A connection of one client to one device.
pub struct Connection {
    socket: Arc<Socket>,
    context: Arc<Context>,
    allowance: Allowance,
    most_in_flight: usize,
    busy_poll: BusyPoll,
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
    offload: Offload,
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
        terms: Terms,
    ) -> Self {
        socket.widen();
        let (socket, now) = (Arc::new(socket), Moment::now());
        Connection {
            lane: Lane::new(Arc::clone(&socket)),
            helped: false,
            offload: Offload::new(),
            returned: VecDeque::new(),
            activity: Activity::new(),
            socket,
            context: Arc::new(Context { device, client, session }),
            allowance,
            most_in_flight: terms.most_in_flight,
            busy_poll: BusyPoll::new(terms.busy_poll),
            input: Input::new(leftover),
            receive_most: RECEIVE,
            incoming: Incoming::Header,
            outbox: Outbox::default(),
            in_flight: FuturesUnordered::new(),
            clock: now,
            mood: Mood::Serving,
            sending: None,
            look_at: now,
            presence: Presence::new(now),
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
        while self.offload.out() > 0 {
            future::poll_fn(|context| self.offload.poll_report(context)).await;
            for report in self.offload.reports() {
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
            match self.goes_on(short) {
                // Once in a while other tasks of the thread get their turn.
                Ok(true) => consume_budget().await,
                Ok(false) => match self.poll_busily(short).await {
                    Ok(true) => {}
                    Ok(false) => {
                        if let Some(end) = self.wait(&mut watch, short).await {
                            return end;
                        }
                    }
                    Err(error) => return End::Gone(error),
                },
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
        if self.offload.out() > 0 {
            let mut reports = self.offload.reports().into_iter();
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
                self.busy_poll.took_request();
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
                    && self.in_flight.len() + self.offload.out() < self.most_in_flight
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
        let helps = payload.len() >= OFFLOAD
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
        let job = Box::new(move || {
            if socket.is_hung_up() {
                return Report::NotStarted(write);
            }
            Report::Started(write.start(&mut Moment::now()))
        });
        match self.offload.give(job) {
            Ok(()) => Ok(()),
            Err(job) => self.hear(job()).await,
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

    /// Looks for the client's next request for a moment, if that is all there is to do and it is likely to come. Returns
    /// whether anything came.
    async fn poll_busily(&mut self, short: Short) -> io::Result<bool> {
        let idle = short == Short::OfInput
            && matches!(self.incoming, Incoming::Header)
            && self.receives()
            && !self.works()
            && !self.has_unsent();
        if !idle {
            return Ok(false);
        }
        let mut now = std::time::Instant::now();
        let Some(until) = self.busy_poll.pause(now) else { return Ok(false) };
        if !self.activity.leaves_cores_to_clients() {
            return Ok(false);
        }
        while now < until {
            if self.busy_poll.is_turn_of_others(now) {
                yield_now().await;
            }
            if self.receive_by(Socket::receive_now)? {
                return Ok(true);
            }
            now = std::time::Instant::now();
        }
        Ok(false)
    }

    /// Receives what is there, if there is room for it. Returns whether anything came.
    fn receive(&mut self) -> io::Result<bool> {
        self.receive_by(Socket::try_read)
    }

    fn receive_by(&mut self, read: fn(&Socket, &mut [u8]) -> io::Result<usize>) -> io::Result<bool> {
        if !self.receives() {
            return Ok(false);
        }
        let received = match &mut self.incoming {
            // Straight into its own buffer, past the input.
            Incoming::Payload { buffer, filled, pace, .. } if self.input.is_empty() => {
                read(&self.socket, &mut buffer[*filled..]).inspect(|len| {
                    *filled += len;
                    pace.moved(*len);
                })
            }
            _ => self.input.fill(self.receive_most, |room| read(&self.socket, room)),
        };
        match received {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                self.active = true;
                self.busy_poll.ended();
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn receives(&self) -> bool {
        self.takes_more() && !self.input.is_full()
    }

    /// Whether anything of it is under way.
    fn works(&self) -> bool {
        !self.in_flight.is_empty() || self.offload.out() > 0 || self.helped
    }

    /// Whether everything is done that is going to be.
    fn ended(&self) -> Option<End> {
        let idle = !self.works() && !self.has_unsent();
        match self.mood {
            Mood::Leaving if idle => Some(End::Disconnected),
            // What is still being received was never acknowledged: the client sends it again elsewhere.
            Mood::Stopping(_) if idle => Some(End::Stopped),
            _ => None,
        }
    }

    /// Whether there is now what there was too little of. Sending makes room for requests that are here already, and for
    /// which no byte will come any more. Whether it was room that was short is asked once, before: a helper may make some
    /// at any time.
    fn goes_on(&mut self, short: Short) -> io::Result<bool> {
        match short {
            Short::OfRoom => Ok(self.takes_more()),
            Short::OfInput => self.receive(),
        }
    }

    /// Waits until something can go on.
    async fn wait(&mut self, watch: &mut Watch<'_>, short: Short) -> Option<End> {
        let receives = short == Short::OfInput && self.receives();
        let sends = self.has_unsent();
        let idle = !self.works() && !sends && matches!(self.incoming, Incoming::Header);
        if self.resting && (self.active || !idle) {
            self.resting = false;
            self.activity.set(true);
            watch.alarm.as_mut().reset(Instant::now() + LOOK);
        }
        let stops = self.mood != Mood::Leaving && !matches!(self.mood, Mood::Stopping(_));
        let memory = async {
            match &mut self.incoming {
                Incoming::Memory { lease, .. } => lease.as_mut().await,
                _ => future::pending().await,
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
        let (offload, away) = (&self.offload, self.offload.out() > 0);
        let report = future::poll_fn(|context| offload.poll_report(context));
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
            match interest(receives, sends) {
                Some(interest) => socket.ready(interest).await.map(drop),
                None => future::pending().await,
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
            lease = memory => return self.take_with(lease).await,
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
                    self.rest();
                } else {
                    self.active = false;
                    self.look_at = Moment::now();
                    watch.alarm.as_mut().reset(Instant::now() + LOOK);
                }
            }
        }
        None
    }

    /// Goes on with the request that waited for memory, which is here.
    async fn take_with(&mut self, lease: Lease) -> Option<End> {
        self.clock = Moment::now();
        if self.is_abandoned() {
            return Some(End::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Incoming::Memory { request, .. } = mem::replace(&mut self.incoming, Incoming::Header)
            && let Some(going) = self.go_on(request, lease)
        {
            self.keep(going).await;
        }
        None
    }

    /// Keeps no more memory than a client needs that is silent.
    fn rest(&mut self) {
        self.input.release();
        self.lane.release();
        self.outbox = Outbox::default();
        self.activity.set(false);
        self.resting = true;
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

/// What to wait for at the socket; `None` if for nothing.
fn interest(receives: bool, sends: bool) -> Option<Interest> {
    match (receives, sends) {
        (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
        (true, false) => Some(Interest::READABLE),
        (false, true) => Some(Interest::WRITABLE),
        (false, false) => None,
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

#[cfg(test)]
mod tests;
