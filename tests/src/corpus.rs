//! The corpus of images that other programs made: where it is, and what its MANIFEST files say.
//!
//! The corpus is no part of the product. Without it the tests that need it say so aloud and do
//! nothing – except where CI=true, where it must be there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::project_root;
use crate::tool::Tool;

/// The corpus: DISKCHAIN_CORPUS, or `../shared/corpus` beside the project. `None`, said aloud, when
/// it is absent.
///
/// # Panics
/// When it is absent and CI=true.
pub fn locate() -> Option<PathBuf> {
    let root = match std::env::var_os("DISKCHAIN_CORPUS") {
        Some(path) => PathBuf::from(path),
        None => project_root().join("../shared/corpus"),
    };
    if root.join("foreign/MANIFEST.tsv").is_file() {
        return Some(root);
    }
    let notice = format!(
        "NOTICE: no corpus at {} (DISKCHAIN_CORPUS names it): this test proved nothing",
        root.display()
    );
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{notice}");
    eprintln!("{notice}");
    None
}

/// One line of a MANIFEST.tsv, by column.
pub struct Row(Vec<String>);

impl Row {
    /// The column `index`, counted from 0; empty when the line is shorter.
    pub fn column(&self, index: usize) -> &str {
        self.0.get(index).map_or("", String::as_str)
    }
}

/// The lines of a MANIFEST.tsv under its heading.
///
/// # Panics
/// When it cannot be read.
pub fn manifest(path: &Path) -> Vec<Row> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().skip(1);
    lines.map(|line| Row(line.split('\t').map(str::to_owned).collect())).collect()
}

/// Unpacks every `FILE.zst` of the folder `from` into the folder `to`.
///
/// # Panics
/// When a file cannot be unpacked, or there is none.
pub fn unpack(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a folder");
    let entries = fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    let mut unpacked = 0;
    for entry in entries {
        let packed = entry.expect("read a folder").path();
        if packed.extension().is_some_and(|extension| extension == "zst") {
            let stem = packed.file_stem().expect("a packed file has a name");
            let zstd = Tool::new("zstd").args(["--quiet", "--decompress", "--sparse", "-o"]);
            zstd.arg(to.join(stem)).arg(&packed).run();
            unpacked += 1;
        }
    }
    assert!(unpacked > 0, "{} holds no packed image", from.display());
}
