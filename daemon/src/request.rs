//! One request of a client, from admitted to answered: which call of the device it is, and what comes back.
//!
//! Reads and writes are started without a future and need one only where they wait; the rest is rare.
//!
//! Invariant: every request yields exactly one [`Done`], whatever happens to it.

use std::sync::Arc;

use disk_core::buf::Buf;
use disk_core::chain::{Pieces, StatusExtent, ZeroRequest};
use disk_core::client::Client;
use disk_core::clock::Moment;
use disk_core::device::{self, Device, PreparedWrite};
use disk_core::{ByteRange, Error, ErrorKind};
use futures_util::future::{BoxFuture, FutureExt};
use nbd_wire::{Admitted, Command, CommandFlags, ContextId, Errno, Session};

use crate::errno::errno;
use crate::memory::Lease;

/// Extents that one status reply carries at most. What a client may ask in two contexts fits into a connection's own
/// memory then.
const EXTENTS_MOST: usize = 2048;

/// Bytes of a descriptor on the wire, in its longer form.
const DESCRIPTOR: usize = 16;

/// A request that is carried out and not answered yet.
#[derive(Debug)]
pub struct Done {
    /// The request.
    pub request: Admitted,
    /// What came of it.
    pub answer: Answer,
    /// Its memory, to be kept until the reply is sent.
    pub lease: Lease,
}

/// What came of a request.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Ok,
    /// The data of a read.
    Data(Pieces),
    /// The status of a range, in these contexts.
    Status(Vec<StatusExtent>, Vec<ContextId>),
    /// It failed.
    Failed(Errno, String),
}

/// What all requests of a connection share.
#[derive(Debug)]
pub struct Context {
    /// The disk.
    pub device: Arc<Device>,
    /// Who asks.
    pub client: Client,
    /// What was negotiated.
    pub session: Session,
}

/// Bytes of memory that a request takes until its reply is sent.
pub fn memory(session: &Session, request: &Admitted) -> usize {
    match request.command {
        Command::BlockStatus => {
            let each = size_of::<StatusExtent>() + session.contexts().len() * DESCRIPTOR;
            request.buffer_len() + extents_most(request) * each
        }
        _ => request.buffer_len(),
    }
}

fn extents_most(request: &Admitted) -> usize {
    if request.flags.has(CommandFlags::REQ_ONE) { 1 } else { EXTENTS_MOST }
}

/// A request that is not done yet.
pub type Going = BoxFuture<'static, Done>;

/// What came of a request that was started.
pub enum Started {
    /// It is carried out.
    Done(Done),
    /// It waits for something.
    Going(Going),
}

/// Starts an admitted request at `clock`, a moment just passed. If it is done on return, `clock` is the moment of that.
#[inline]
pub fn start(
    context: &Arc<Context>,
    request: Admitted,
    payload: Option<Buf>,
    lease: Lease,
    clock: &mut Moment,
) -> Started {
    let Context { device, client, .. } = &**context;
    let range = || ByteRange::at(request.offset, request.length);
    match (request.command, payload) {
        (Command::Read, _) => {
            end(context, request, lease, device.start_read(client, range(), clock), Answer::Data)
        }
        (Command::Write, Some(data)) => {
            let started = device.start_write(client, range(), data, request.fua(), clock);
            end(context, request, lease, started, |()| Answer::Ok)
        }
        (_, payload) => Started::Going(execute(Arc::clone(context), request, payload, lease).boxed()),
    }
}

/// A write that has its place among the requests on the same bytes and has not begun. Dropping it gives the place up.
pub struct Write {
    context: Arc<Context>,
    request: Admitted,
    lease: Lease,
    prepared: PreparedWrite,
}

impl Write {
    /// A write of `data`, listed at `began`, a moment just passed; or it is done, as it failed.
    pub fn prepare(
        context: &Arc<Context>,
        request: Admitted,
        data: Buf,
        lease: Lease,
        began: Moment,
    ) -> Result<Write, Box<Done>> {
        let Context { device, client, .. } = &**context;
        let range = ByteRange::at(request.offset, request.length);
        match device.prepare_write(client, range, data, request.fua(), began) {
            Ok(prepared) => Ok(Write { context: Arc::clone(context), request, lease, prepared }),
            Err(error) => Err(Box::new(Done { request, answer: failed(device, &request, &error), lease })),
        }
    }

    /// Whether it has its turn.
    pub fn has_turn(&self) -> bool {
        self.prepared.has_turn()
    }

    /// Starts it, on any thread. If it is done on return, `clock` is the moment of that.
    pub fn start(self, clock: &mut Moment) -> Started {
        let Write { context, request, lease, prepared } = self;
        end(&context, request, lease, prepared.start(clock), |()| Answer::Ok)
    }
}

/// From what the device says to what the client is told.
#[inline]
fn end<T: 'static>(
    context: &Arc<Context>,
    request: Admitted,
    lease: Lease,
    started: device::Started<T, impl Future<Output = Result<T, Error>> + Send + 'static>,
    answer: fn(T) -> Answer,
) -> Started {
    let done = move |device: &Device, lease, outcome: Result<T, Error>| {
        let answer = outcome.map_or_else(|error| failed(device, &request, &error), answer);
        Done { request, answer, lease }
    };
    match started {
        device::Started::Done(outcome) => Started::Done(done(&context.device, lease, outcome)),
        device::Started::Going(future) => {
            let context = Arc::clone(context);
            Started::Going(Box::pin(async move { done(&context.device, lease, future.await) }))
        }
    }
}

/// Carries out a request of the rarer kinds.
async fn execute(context: Arc<Context>, request: Admitted, payload: Option<Buf>, lease: Lease) -> Done {
    let answer = match answer(&context, &request, payload).await {
        Ok(answer) => answer,
        Err(error) => failed(&context.device, &request, &error),
    };
    Done { request, answer, lease }
}

async fn answer(context: &Context, request: &Admitted, payload: Option<Buf>) -> Result<Answer, Error> {
    let Context { device, client, .. } = context;
    // The length of a status request with a payload is that of the payload.
    let range = || ByteRange::at(request.offset, request.length);
    match request.command {
        // A write of nothing that is to be durable.
        Command::Write if request.fua() => device.flush(client).await?,
        Command::Write => {}
        Command::WriteZeroes => {
            let how = ZeroRequest {
                may_free: !request.flags.has(CommandFlags::NO_HOLE),
                fast_only: request.flags.has(CommandFlags::FAST_ZERO),
            };
            device.write_zeroes(client, range(), how, request.fua()).await?;
        }
        Command::Trim => device.discard(client, range(), request.fua()).await?,
        Command::Flush => device.flush(client).await?,
        Command::Cache => device.cache(client, range()).await?,
        Command::BlockStatus => return status(context, request, payload).await,
        Command::Read | Command::Disconnect | Command::Unknown(_) => {
            return Err(Error::new(ErrorKind::OutOfRange, "not a request that is carried out"));
        }
    }
    Ok(Answer::Ok)
}

async fn status(context: &Context, request: &Admitted, payload: Option<Buf>) -> Result<Answer, Error> {
    let Context { device, client, session } = context;
    let (length, contexts) = match payload {
        Some(payload) => match session.status_payload(request, &payload) {
            Ok(selected) => selected,
            Err(refusal) => return Ok(Answer::Failed(refusal.errno, refusal.text.to_owned())),
        },
        None => (request.length, session.contexts().iter().map(|(id, _)| *id).collect()),
    };
    let range = ByteRange::at(request.offset, length);
    Ok(Answer::Status(device.block_status(client, range, extents_most(request)).await?, contexts))
}

/// Logs what really happened, and narrows it to what a client can be told.
fn failed(device: &Device, request: &Admitted, error: &Error) -> Answer {
    let routine = matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::Closed | ErrorKind::Unsupported);
    if !routine {
        tracing::warn!(
            diskchain.disk = %device.name(),
            op = ?request.command,
            offset = request.offset,
            length = request.length,
            %error,
            "request failed"
        );
    }
    Answer::Failed(errno(error.kind()), error.to_string())
}
