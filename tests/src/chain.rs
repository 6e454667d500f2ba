//! A chain of images in a folder of its own: made by diskchain, served as one disk.
//!
//! The images are named `base.vdi` or `base.raw`, `child1.vdi`, `child2.vdi` …; the export that a
//! test uses is always the empty name.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::server::{Server, diskchain};
use crate::sparse::SparseDisk;
use crate::tool::Tool;

/// The format of a chain's base. What stands above a base is always VDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Bytes as they are.
    Raw,
    /// VDI, blocks of 1 MiB allocated as they are written.
    Vdi,
    /// VDI, all blocks allocated.
    FixedVdi,
}

/// The images of one disk, base first, and the folder that holds them.
pub struct Chain {
    dir: TempDir,
    base: Base,
    files: Vec<PathBuf>,
}

impl Chain {
    /// A base of `size` bytes, all zero.
    #[track_caller]
    pub fn new(base: Base, size: u64) -> Chain {
        Chain::new_in(&std::env::temp_dir(), base, size)
    }

    /// The same in a folder of its own below `place`.
    #[track_caller]
    pub fn new_in(place: &Path, base: Base, size: u64) -> Chain {
        let dir = tempfile::tempdir_in(place).expect("make a temporary folder");
        let file = dir.path().join(if base == Base::Raw { "base.raw" } else { "base.vdi" });
        let size_text = size.to_string();
        let create = diskchain(&["image", "create"]).arg(&file).args(["--size", &size_text]);
        match base {
            Base::Raw => create.args(["--format", "raw"]),
            Base::Vdi => create.args(["--format", "vdi"]),
            Base::FixedVdi => create.args(["--format", "vdi", "--variant", "fixed"]),
        }
        .run();
        Chain { dir, base, files: vec![file] }
    }

    /// A base that qemu-img made from `content`.
    #[track_caller]
    pub fn from_content(base: Base, content: &SparseDisk) -> Chain {
        let dir = tempfile::tempdir().expect("make a temporary folder");
        let raw = dir.path().join("base.raw");
        content.write_raw(&raw).expect("write a raw image");
        if base == Base::Raw {
            return Chain { dir, base, files: vec![raw] };
        }
        let file = dir.path().join("base.vdi");
        let variant = if base == Base::FixedVdi { "static=on" } else { "static=off" };
        let convert = Tool::new("qemu-img").args(["convert", "-f", "raw", "-O", "vdi", "-o", variant]);
        convert.arg(&raw).arg(&file).run();
        fs::remove_file(raw).expect("remove a file");
        Chain { dir, base, files: vec![file] }
    }

    /// Puts a differencing image on top. The disk must not be served now.
    #[track_caller]
    pub fn push_child(&mut self) {
        let child = self.dir.path().join(format!("child{}.vdi", self.files.len()));
        // A raw parent has no head that tells its format.
        let format = if is_raw(self.top()) { "raw" } else { "vdi" };
        let create = diskchain(&["image", "create"]).arg(&child).arg("--parent").arg(self.top());
        create.args(["--parent-format", format]).run();
        self.files.push(child);
    }

    /// The folder of the images.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The images, base first.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The base.
    pub fn base(&self) -> &Path {
        &self.files[0]
    }

    /// The writable top.
    pub fn top(&self) -> &Path {
        self.files.last().expect("a chain has a base")
    }

    /// Serves the disk.
    #[track_caller]
    pub fn serve(&self) -> Server {
        self.serve_with(&[])
    }

    /// Serves the disk with more words on the command line; none may be given for a VDI over a raw
    /// base, which only a config file can describe.
    #[track_caller]
    pub fn serve_with(&self, options: &[&str]) -> Server {
        if self.base == Base::Raw && self.files.len() > 1 {
            assert!(options.is_empty(), "a chain over a raw base is served from a config file");
            return Server::diskchain_config(self.dir(), &self.config());
        }
        let format = if is_raw(self.top()) { "raw" } else { "vdi" };
        let options: Vec<&str> = ["--format", format].iter().chain(options).copied().collect();
        Server::diskchain(self.dir(), &[self.top()], &options)
    }

    /// The config that describes the chain layer by layer, as the disk and the default export `disk`; the
    /// control socket is `control.sock` beside the images. More keys of the disk may follow its end.
    pub fn config(&self) -> String {
        let dir = self.dir().display();
        let layers: Vec<String> = (self.files.iter().enumerate())
            .map(|(index, file)| {
                let format = if index == 0 && self.base == Base::Raw { "raw" } else { "vdi" };
                format!("  {{ file = \"{}\", format = \"{format}\" }},\n", file.display())
            })
            .collect();
        format!(
            "[server]\nlisten = [\"unix:{dir}/diskchain.sock\"]\ncontrol = \"unix:{dir}/control.sock\"\n\
             image_dirs = [\"{dir}\"]\ndefault_export = \"disk\"\n\n[disk.disk]\nlayers = [\n{}]\n",
            layers.concat()
        )
    }

    /// Every image that qemu-img can judge passes its check: a VDI base (it refuses differencing
    /// images); diskchain's own check passes the others.
    #[track_caller]
    pub fn check(&self) {
        self.check_by_diskchain();
        if !is_raw(self.base()) {
            Tool::new("qemu-img").args(["check", "-f", "vdi"]).arg(self.base()).run();
        }
    }

    /// Every image passes diskchain's own check.
    #[track_caller]
    pub fn check_by_diskchain(&self) {
        for file in self.files.iter().filter(|file| !is_raw(file)) {
            diskchain(&["image", "check"]).arg(file).run();
        }
    }
}

fn is_raw(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "raw")
}
