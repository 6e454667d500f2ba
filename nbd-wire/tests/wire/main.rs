//! The wire from outside: one file for each part of doc/proto.md, each test named after a rule of it.

mod admission;
mod contexts;
mod conversation;
mod exports;
mod handshake;
mod hostile;
mod played;
