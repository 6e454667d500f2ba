//! A small file system of a test's own, which fills up without harm to anybody.
//!
//! Invariant: it is gone with its [`SmallFs`], and takes what lies on it along.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::tool::Tool;

/// A mounted tmpfs. It takes root to make one, as the tests under systemd do.
pub struct SmallFs {
    dir: TempDir,
}

impl SmallFs {
    /// A file system of `bytes`.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[track_caller]
    pub fn new(bytes: u64) -> SmallFs {
        let dir = tempfile::tempdir().expect("make a temporary folder");
        let options = format!("size={bytes},mode=755");
        Tool::new("mount").args(["-t", "tmpfs", "-o", &options, "diskchain-test"]).arg(dir.path()).run();
        SmallFs { dir }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes room: it has `bytes` from now on, and what [`SmallFs::fill`] took is given back.
    ///
    /// # Panics
    /// When it cannot be mounted anew.
    #[track_caller]
    pub fn make_room(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        Tool::new("mount").args(["-o", &options]).arg(self.path()).run();
        // It is not there if nothing was filled.
        let _ = fs::remove_file(self.path().join("filler"));
    }

    /// Takes all that is free with the file `filler`.
    ///
    /// # Panics
    /// When there is room left after that.
    #[track_caller]
    pub fn fill(&self) {
        use std::io::Write;
        let mut filler = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path().join("filler"))
            .expect("make a file");
        while filler.write_all(&[1; 4096]).is_ok() {}
        let space = rustix::fs::statvfs(self.path()).expect("ask a file system for its space");
        assert_eq!(space.f_bavail, 0, "the file system is full");
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        // Lazily: a server that a failing test has not ended yet may still be there.
        Tool::new("umount").arg("--lazy").arg(self.path()).run_any();
    }
}
