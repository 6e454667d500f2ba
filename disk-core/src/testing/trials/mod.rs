//! One case of each campaign: what is done, and how it is judged. The tests say how many, the planted bugs how well.
//!
//! ```text
//!   crash    power cuts and kills at every moment of random work, recovery, use after it
//!   device   many requests at once, judged as if they had come one after the other
//!   faults   one operation after the other fails, is cut short, is slow or hangs
//!   leaving  clients that leave, and come again while their old requests still wait
//!   schedules  threads in the tracker and the throttle, in orders that a scheduler chooses (feature `shuttle`)
//!   turns    orders of events in a tracker, against its definition
//! ```
//! Invariant: a trial is decided by its case alone; the same case gives the same outcome.

pub mod crash;
pub mod device;
pub mod faults;
pub mod leaving;
#[cfg(feature = "shuttle")]
pub mod schedules;
pub mod turns;
