//! The running daemon that a command talks to: how it is named, and how it is said that it did not do as asked.

use std::path::PathBuf;

use clap::Args;

use super::output::fail;
use super::serve::default_sockets;
use crate::control::client::Failure;
use crate::exit::Exit;

/// Which daemon a command talks to.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// Control socket of the daemon [default: that of a daemon which was not told any]
    #[arg(long, value_name = "PATH", env = "DISKCHAIN_CONTROL")]
    control: Option<PathBuf>,
}

impl DaemonArgs {
    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        let Some(named) = &self.control else { return default_sockets().control };
        // As the configuration writes it.
        named
            .to_str()
            .and_then(|path| path.strip_prefix("unix:"))
            .map_or_else(|| named.clone(), PathBuf::from)
    }
}

/// Says why a daemon did not do as asked, and passes on how the command ends.
pub fn refused(failure: &Failure) -> Exit {
    let exit = match failure {
        Failure::Unreachable(_, error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Exit::Denied
        }
        Failure::Unreachable(..) => Exit::Unreachable,
        Failure::TimedOut(_) => Exit::TimedOut,
        Failure::Refused(problem) => match problem.status {
            403 => Exit::Denied,
            404 => Exit::NotFound,
            422 => Exit::Usage,
            _ => Exit::Failed,
        },
        Failure::NotUnderstood(..) => Exit::Failed,
    };
    let exit = fail(exit, failure);
    if exit == Exit::Unreachable {
        eprintln!(
            "help: start one with `diskchain serve`, or name its socket with --control PATH or DISKCHAIN_CONTROL"
        );
    }
    exit
}
