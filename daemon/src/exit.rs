//! Exit codes: one table for every command.

use std::process::ExitCode;

use disk_core::{Error, ErrorKind};

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: all done.
    Ok,
    /// 1: something failed that no other code says.
    Failed,
    /// 2: the command line is wrong.
    Usage,
    /// 3: the configuration is wrong.
    ConfigInvalid,
    /// 4: a file or a disk that was named does not exist.
    NotFound,
    /// 5: somebody else is using it.
    Busy,
    /// 6: the right to do it is missing.
    Denied,
    /// 7: an image contradicts itself.
    Corrupt,
    /// 8: an image contradicted itself and is in order now.
    Repaired,
    /// 9: no daemon answers.
    Unreachable,
    /// 10: it took too long.
    TimedOut,
    /// That of a command that was run.
    OfCommand(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::ConfigInvalid => 3,
            Exit::NotFound => 4,
            Exit::Busy => 5,
            Exit::Denied => 6,
            Exit::Corrupt => 7,
            Exit::Repaired => 8,
            Exit::Unreachable => 9,
            Exit::TimedOut => 10,
            Exit::OfCommand(code) => code,
        })
    }
}

impl From<&Error> for Exit {
    fn from(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::Locked => Exit::Busy,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnly => Exit::Denied,
            ErrorKind::Corrupt => Exit::Corrupt,
            _ => Exit::Failed,
        }
    }
}
