//! `diskchain explain CODE`: what an error code of the configuration means.

use clap::Args;
use diskchain_config::CODES;

use super::output::{fail, print};
use crate::exit::Exit;

/// Arguments of `diskchain explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A code such as E0107
    code: String,
}

/// Runs `diskchain explain`.
pub fn run(args: ExplainArgs) -> Exit {
    match diskchain_config::explain(&args.code) {
        Some(text) => print(&format!("{text}\n")),
        None => {
            let known: Vec<&str> = CODES.iter().map(|code| code.id).collect();
            let text = format!("there is no code {}; there are {}", args.code, known.join(", "));
            fail(Exit::NotFound, text)
        }
    }
}
