//! The commands: each file is one, with its arguments and what it does.

pub mod check;
pub mod daemon;
pub mod demo;
pub mod explain;
pub mod formats;
pub mod healthcheck;
pub mod image;
pub mod ls;
pub mod output;
pub mod serve;
pub mod show;
pub mod throttle;
