//! From what came of a request to the bytes of its reply.
//!
//! Invariant: data goes out by reference, never copied; a hole is told where the client can take it and sent as zeroes
//! where it cannot.

use disk_core::chain::{Piece, Pieces, StatusExtent};
use nbd_wire::consts::allocation;
use nbd_wire::{Admitted, CommandFlags, Context, ContextId, Descriptor, Refusal, Reply, Request, Session};

use crate::outbox::Outbox;
use crate::request::{Answer, Done};

/// Queues the reply to a request that was carried out.
#[inline]
pub fn answer(session: &Session, outbox: &mut Outbox, done: Done) {
    let Done { request, answer, lease } = done;
    let reply = session.reply(request.cookie, request.offset);
    match answer {
        Answer::Ok if lease.is_nothing() => return outbox.header(&reply.done()),
        Answer::Data(mut pieces) if matches!(pieces[..], [Piece::Data(_)]) => {
            // Nearly every read.
            if let Some(Piece::Data(bytes)) = pieces.pop() {
                return outbox.reply(&reply.data(request.length), bytes, lease);
            }
        }
        answer => rare(session, &reply, outbox, &request, answer),
    }
    outbox.hold(lease);
}

fn rare(session: &Session, reply: &Reply, outbox: &mut Outbox, request: &Admitted, answer: Answer) {
    match answer {
        Answer::Ok => outbox.header(&reply.done()),
        Answer::Data(pieces) => {
            let whole = request.flags.has(CommandFlags::DF) || !reply.is_chunked() || pieces.len() == 1;
            data(reply, outbox, request.offset, request.length, pieces, whole);
        }
        Answer::Status(extents, contexts) => status(session, reply, outbox, &extents, &contexts),
        Answer::Failed(errno, text) => outbox.header(&reply.error(errno, &text)),
    }
}

/// Queues the reply to a request that was not admitted.
pub fn refuse(session: &Session, outbox: &mut Outbox, request: &Request, refusal: &Refusal) {
    let reply = session.reply(request.cookie, request.offset);
    outbox.header(&reply.error(refusal.errno, refusal.text));
}

fn data(reply: &Reply, outbox: &mut Outbox, offset: u64, length: u64, pieces: Pieces, whole: bool) {
    match &pieces[..] {
        [] if reply.is_chunked() => return outbox.header(&reply.none()),
        [Piece::Hole(len)] if reply.is_chunked() => {
            // Admitted reads are shorter than 2³² bytes.
            return outbox.header(&reply.hole_chunk(offset, *len as u32, true));
        }
        _ if whole => outbox.header(&reply.data(length)),
        _ => {}
    }
    let count = pieces.len();
    let mut at = offset;
    for (index, piece) in pieces.into_iter().enumerate() {
        let len = piece.len();
        let last = index + 1 == count;
        match piece {
            Piece::Data(bytes) => {
                if !whole {
                    outbox.header(&reply.data_chunk(at, len, last));
                }
                outbox.data(bytes);
            }
            Piece::Hole(len) if whole => outbox.zeroes(len),
            Piece::Hole(len) => outbox.header(&reply.hole_chunk(at, len as u32, last)),
        }
        at += len;
    }
}

fn status(
    session: &Session,
    reply: &Reply,
    outbox: &mut Outbox,
    extents: &[StatusExtent],
    contexts: &[ContextId],
) {
    if contexts.is_empty() {
        return outbox.header(&reply.none());
    }
    for (index, id) in contexts.iter().enumerate() {
        let Some((_, context)) = session.contexts().iter().find(|(known, _)| known == id) else { continue };
        let descriptors = descriptors(*context, extents);
        let mut bytes = Vec::with_capacity(descriptors.len() * 16);
        for descriptor in &descriptors {
            reply.descriptor(*descriptor, &mut bytes);
        }
        outbox.header(&reply.status_chunk(*id, descriptors.len(), index + 1 == contexts.len()));
        outbox.header(&bytes);
    }
}

/// Extents as one context sees them, neighbours that it cannot tell apart as one.
fn descriptors(context: Context, extents: &[StatusExtent]) -> Vec<Descriptor> {
    let mut all: Vec<Descriptor> = Vec::with_capacity(extents.len());
    for extent in extents {
        let flags = match context {
            Context::Allocation => {
                let hole = if extent.data { 0 } else { allocation::HOLE };
                let zero = if extent.zero { allocation::ZERO } else { 0 };
                hole | zero
            }
            Context::AllocationDepth => extent.depth,
        };
        match all.last_mut() {
            Some(last) if last.flags == flags => last.len += extent.len,
            _ => all.push(Descriptor { len: extent.len, flags }),
        }
    }
    all
}
