//! `diskchain check`: a configuration, and with `--deep` the images behind it, without serving anything.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use disk_core::open::open_chain;

use super::output::{fail, print};
use super::serve::{DEFAULT_CONFIG, default_sockets};
use crate::assemble;
use crate::exit::Exit;

/// Arguments of `diskchain check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file
    #[arg(default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Open every image read-only and check that chains fit together; images that are in use are an error
    #[arg(long)]
    deep: bool,
    /// Print nothing if there is nothing wrong
    #[arg(long, short)]
    quiet: bool,
}

/// Runs `diskchain check`.
pub async fn run(args: CheckArgs) -> Exit {
    let colours = std::io::stderr().is_terminal();
    let checked = match diskchain_config::load(&args.config, &default_sockets()) {
        Ok(checked) => checked,
        Err(diagnostics) => {
            eprint!("{}", diagnostics.render(colours));
            return Exit::ConfigInvalid;
        }
    };
    if !checked.warnings.is_empty() {
        eprint!("{}", checked.warnings.render(colours));
    }
    let plan = checked.plan;
    let mut errors = Vec::new();
    if args.deep {
        for disk in &plan.disks {
            let mut options = assemble::open_options(&plan, disk);
            options.read_only = true;
            // A missing image that would be made is not made here.
            let specs = disk.layers.iter().filter(|layer| layer.create.is_none() || layer.file.exists());
            let specs: Vec<_> = specs.map(assemble::layer_spec).collect();
            if specs.is_empty() {
                continue;
            }
            if let Err(error) = open_chain(specs, options).await {
                errors.push(error.context(format_args!("disk {}", disk.name)));
            }
        }
    }
    for error in &errors {
        fail(Exit::Failed, error);
    }
    if !errors.is_empty() {
        return assemble::exit(&errors);
    }
    if args.quiet { Exit::Ok } else { print(&summary(&args.config, plan.disks.len(), plan.exports.len())) }
}

fn summary(config: &Path, disks: usize, exports: usize) -> String {
    format!("{}: ok, {disks} disks, {exports} exports\n", config.display())
}
