//! Requests that meet: everything here is forced to happen in the wrong order, by holding operations of the storage.

mod clients;
mod closing;
mod disk;
mod freezing;
mod fresh_blocks;
mod linear;
mod moving;
mod starting;
