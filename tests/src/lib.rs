//! What the black-box tests share: servers started and killed, foreign programs run, an NBD client,
//! a model of a disk, the corpus of images, and a Linux guest.
//!
//! The one rule: this crate knows the daemon only from outside, as its users do – its command line,
//! its sockets and the files it writes. It links nothing of the product.

pub mod chain;
pub mod client;
pub mod control;
pub mod corpus;
pub mod guest;
pub mod machine;
pub mod rng;
pub mod server;
pub mod small_fs;
pub mod sparse;
pub mod stamped;
pub mod tool;

use std::path::PathBuf;

/// The project's root folder.
pub fn project_root() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the project").to_path_buf()
}

/// What `scripts/install-test-deps.sh` prepared under `target/test-deps`.
///
/// # Panics
/// When it is not there: a test without its prerequisites fails, it is never skipped.
pub fn test_dependency(name: &str) -> PathBuf {
    let path = project_root().join("target/test-deps").join(name);
    assert!(path.exists(), "{} is missing: run scripts/install-test-deps.sh", path.display());
    path
}
