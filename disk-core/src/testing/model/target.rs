//! Asking a disk and judging its answer: the same for a chain, for a device, and for whatever serves one.
//!
//! Invariant: a target only carries requests out; what is right about the answer the model alone says.

use std::sync::Arc;

use super::request::{Content, Request};
use super::{Model, stamp};
use crate::buf::Buf;
use crate::chain::{Chain, Piece, Pieces, StatusExtent};
use crate::client::Client;
use crate::device::Device;
use crate::error::{ErrorKind, Result};

/// What a disk answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The bytes of a read.
    Bytes(Vec<u8>),
    /// The extents of a status.
    Status(Vec<StatusExtent>),
    /// It is done.
    Done,
}

/// A disk that can be asked.
pub trait Target {
    /// Carries a request out; `data` is what a write writes, empty otherwise.
    fn ask(&self, request: &Request, data: Buf) -> impl Future<Output = Result<Answer>>;
}

impl Target for Chain {
    async fn ask(&self, request: &Request, data: Buf) -> Result<Answer> {
        let fua = match *request {
            Request::Read(range) => return self.read(range).await.map(|pieces| Answer::Bytes(flat(&pieces))),
            Request::Status { range, most } => return self.status(range, most).await.map(Answer::Status),
            Request::Cache(range) => {
                self.prefetch(range);
                return Ok(Answer::Done);
            }
            Request::Write { range, fua, .. } => self.write(range, data).await.map(|_| fua)?,
            Request::Zero { range, how, fua } => self.zero(range, how).await.map(|()| fua)?,
            Request::Discard { range, fua } => self.discard(range).await.map(|()| fua)?,
            Request::Flush => true,
        };
        if fua {
            self.flush().await?;
        }
        Ok(Answer::Done)
    }
}

/// A device, asked by one client.
#[derive(Debug, Clone)]
pub struct Connection<'a> {
    /// The disk.
    pub device: &'a Arc<Device>,
    /// Who asks.
    pub client: Client,
}

impl Target for Connection<'_> {
    async fn ask(&self, request: &Request, data: Buf) -> Result<Answer> {
        let Connection { device, client } = self;
        match *request {
            Request::Read(range) => {
                return device.read(client, range).await.map(|pieces| Answer::Bytes(flat(&pieces)));
            }
            Request::Status { range, most } => {
                return device.block_status(client, range, most).await.map(Answer::Status);
            }
            Request::Cache(range) => device.cache(client, range).await?,
            Request::Write { range, fua, .. } => device.write(client, range.start(), data, fua).await?,
            Request::Zero { range, how, fua } => device.write_zeroes(client, range, how, fua).await?,
            Request::Discard { range, fua } => device.discard(client, range, fua).await?,
            Request::Flush => device.flush(client).await?,
        }
        Ok(Answer::Done)
    }
}

/// What a request writes; empty if it is no write. `old` is what the disk was at first.
///
/// # Errors
/// In words, if what is there already cannot be read.
pub async fn data_of(
    target: &impl Target,
    request: &Request,
    serial: u32,
    old: &Model,
) -> Result<Buf, String> {
    let Request::Write { range, content, .. } = *request else { return Ok(Buf::copy_from(&[])) };
    let mut bytes = stamp(range.start(), range.len(), serial);
    match content {
        Content::New => {}
        Content::Zeroes => bytes.fill(0),
        Content::Old => bytes = old.bytes(range),
        Content::Striped => bytes.chunks_mut(4096).skip(1).step_by(2).for_each(|stripe| stripe.fill(0)),
        Content::Same => match target.ask(&Request::Read(range), Buf::copy_from(&[])).await {
            Ok(Answer::Bytes(now)) => bytes = now,
            other => return Err(format!("reading {range}: {other:?}")),
        },
    }
    Ok(Buf::copy_from(&bytes))
}

impl Model {
    /// Takes in what a request did, and says whether it was right. A status is judged only if the model is settled.
    ///
    /// # Errors
    /// In words: what is wrong with the answer.
    pub fn judge(&mut self, request: &Request, data: &[u8], answer: &Result<Answer>) -> Result<(), String> {
        let wrong = |what: String| Err(format!("{request:?}: {what}"));
        match (request, answer) {
            (Request::Read(range), Ok(Answer::Bytes(bytes))) if bytes.len() as u64 == range.len() => {
                self.settle(range.start(), bytes).or_else(|difference| wrong(difference.to_string()))
            }
            (Request::Status { range, most }, Ok(Answer::Status(extents))) => {
                self.judge_status(*range, *most, extents).or_else(wrong)
            }
            (Request::Cache(_) | Request::Flush, Ok(Answer::Done)) => Ok(()),
            (Request::Write { .. } | Request::Zero { .. } | Request::Discard { .. }, Ok(Answer::Done)) => {
                self.apply(request, data);
                Ok(())
            }
            (Request::Zero { how, .. }, Err(error))
                if how.fast_only && error.kind() == ErrorKind::Unsupported =>
            {
                Ok(())
            }
            (_, other) => wrong(format!("{other:?}")),
        }
    }

    /// A request that changes the disk was carried out.
    pub fn apply(&mut self, request: &Request, data: &[u8]) {
        match request {
            Request::Write { range, .. } => self.write(range.start(), data),
            Request::Zero { range, .. } => self.zero(*range),
            Request::Discard { range, .. } => self.discard(*range),
            Request::Read(_) | Request::Status { .. } | Request::Cache(_) | Request::Flush => {}
        }
    }

    /// A request failed, or was under way when the power was cut: each sector is old or new.
    pub fn apply_perhaps(&mut self, request: &Request, data: &[u8]) {
        if let Request::Write { range, .. } | Request::Zero { range, .. } | Request::Discard { range, .. } =
            request
        {
            self.perhaps(*range, |model| model.apply(request, data));
        }
    }
}

/// What a read brought, as bytes.
pub fn flat(pieces: &Pieces) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(data),
            Piece::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
        }
    }
    bytes
}
