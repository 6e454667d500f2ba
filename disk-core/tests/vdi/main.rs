//! The VDI driver from outside: against images of other programs, against a model, against power cuts and faults.

mod alloc;
mod crash;
mod disk;
mod faults;
mod hostile;
mod images;
mod model;
mod scale;
