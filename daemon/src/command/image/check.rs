//! `diskchain image check`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use disk_core::format::{CheckReport, Format, Repair, Severity};
use disk_core::open::{ImageFile, Search, check_link, find_parents};
use disk_core::storage::{self, IoEngine, OpenOptions};
use disk_core::{Error, ErrorKind, Result};
use serde_json::json;

use super::{count, parse_format, shell_word, shown};
use crate::command::output::{fail, print, print_json};
use crate::exit::Exit;

/// Look for contradictions in an image's metadata. Ends with 0: none, 7: found, 8: found and repaired.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The image
    file: PathBuf,
    /// Format of the image, if its head does not tell
    #[arg(long, value_parser = parse_format)]
    format: Option<&'static dyn Format>,
    /// Check all images of the chain, and that they belong together; parents are searched in the image's directory
    #[arg(long)]
    chain: bool,
    /// Repair what can be repaired without losing data
    #[arg(long)]
    repair: bool,
    /// Print JSON, with the words of `qemu-img check`
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
}

/// One checked image.
struct Checked {
    name: String,
    format: &'static dyn Format,
    report: CheckReport,
    /// Its parent is not the one that it was made over.
    mismatch: Option<Error>,
}

pub(super) async fn run(args: CheckArgs) -> Exit {
    let images = match check_all(&args).await {
        Ok(images) => images,
        // Nothing of the image can be trusted, which is what was asked.
        Err(error) if error.kind() == ErrorKind::InvalidImage => return fail(Exit::Corrupt, error),
        Err(error) => return fail(Exit::from(&error), error),
    };
    let exit = verdict(&images);
    let printed = match (args.json, args.chain) {
        _ if args.quiet => Exit::Ok,
        (true, true) => print_json(&images.iter().map(Checked::to_json).collect()),
        (true, false) => print_json(&images[0].to_json()),
        (false, _) => print(&images.iter().map(Checked::to_text).collect::<String>()),
    };
    if printed == Exit::Ok { exit } else { printed }
}

/// The named image, and with `--chain` its ancestors after it, base last.
async fn check_all(args: &CheckArgs) -> Result<Vec<Checked>> {
    let top = ImageFile::look(&args.file, args.format, &[])?;
    if top.guessed {
        // A damaged head makes an image look like a raw disk; that must not pass for a clean one.
        let text = format!("{}: no known format (--format raw if it is a raw disk)", shown(&args.file));
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let mut chain = vec![(shown(&args.file), top)];
    if args.chain {
        let ancestry = find_parents(&chain[0].1, &Search::beside(&chain[0].1.path))?;
        if let Some(missing) = ancestry.missing {
            return Err(missing);
        }
        let parents = ancestry.parents.into_iter().rev();
        chain.extend(parents.map(|parent| (shown(&parent.path), parent)));
    }
    let mut images = Vec::new();
    for (at, (name, image)) in chain.iter().enumerate() {
        let report = check_one(image, args.repair).await?;
        let parent = chain.get(at + 1).map(|(_, parent)| parent);
        let link = parent.map(|parent| check_link((&image.path, &image.info), (&parent.path, &parent.info)));
        let mismatch = link.and_then(Result::err);
        images.push(Checked { name: name.clone(), format: image.format, report, mismatch });
    }
    Ok(images)
}

async fn check_one(image: &ImageFile, repair: bool) -> Result<CheckReport> {
    let engine = IoEngine::Threads;
    let (access, repair) = match repair {
        true => (OpenOptions { engine, ..OpenOptions::read_write() }, Repair::Everything),
        false => (OpenOptions { engine, ..OpenOptions::read_only() }, Repair::Nothing),
    };
    let storage = storage::open(&image.path, &access).await?;
    image.format.check(Arc::new(storage), repair).await
}

/// How the command ends: leaks alone cost space and no data, so they are told but are no corruption.
fn verdict(images: &[Checked]) -> Exit {
    let left = |image: &Checked| image.mismatch.is_some() || image.left(Severity::Error) > 0;
    let fixed = |image: &Checked| image.fixed() > 0;
    match (images.iter().any(left), images.iter().any(fixed)) {
        (true, _) => Exit::Corrupt,
        (false, true) => Exit::Repaired,
        (false, false) => Exit::Ok,
    }
}

impl Checked {
    fn left(&self, severity: Severity) -> u64 {
        self.report.found(severity) - self.report.fixed(severity)
    }

    fn fixed(&self) -> u64 {
        self.report.fixed(Severity::Error) + self.report.fixed(Severity::Leak)
    }

    fn to_json(&self) -> serde_json::Value {
        let report = &self.report;
        let findings = report.findings.iter().map(|(kind, finding)| {
            json!({
                "kind": kind,
                "severity": severity_name(finding.severity),
                "count": finding.count,
                "repaired": finding.repaired,
                "examples": finding.examples,
            })
        });
        json!({
            "filename": self.name,
            "format": self.format.name(),
            "check-errors": 0,
            "corruptions": self.left(Severity::Error),
            "corruptions-fixed": report.fixed(Severity::Error),
            "leaks": self.left(Severity::Leak),
            "leaks-fixed": report.fixed(Severity::Leak),
            "total-clusters": report.total_blocks,
            "allocated-clusters": report.allocated_blocks,
            "image-end-offset": report.end_offset,
            "findings": findings.collect::<Vec<_>>(),
            "parent-mismatch": self.mismatch.as_ref().map(Error::to_string),
        })
    }

    fn to_text(&self) -> String {
        let report = &self.report;
        let can = self.format.capabilities();
        let mut text = match (can.check, report.found(Severity::Error), report.found(Severity::Leak)) {
            (false, ..) => format!("{}: {} has no metadata to check\n", self.name, self.format.name()),
            (true, 0, 0) => format!("{}: no errors\n", self.name),
            (true, errors, leaks) => {
                format!("{}: {}, {}\n", self.name, count(errors, "error"), count(leaks, "leak"))
            }
        };
        for (kind, finding) in &report.findings {
            let name = severity_name(finding.severity);
            text += &format!(
                "  {name} {kind}: {}, {} repaired\n",
                count(finding.count, "time"),
                finding.repaired
            );
            text.extend(finding.examples.iter().map(|example| format!("    {example}\n")));
            let more = finding.count - finding.examples.len() as u64;
            if more > 0 {
                text += &format!("    and {more} more\n");
            }
        }
        if let Some(error) = &self.mismatch {
            text += &format!("  error parent-mismatch: {error}\n");
        }
        if can.check {
            let (blocks, all) = (report.allocated_blocks, report.total_blocks);
            let share = if all == 0 { 0.0 } else { blocks as f64 * 100.0 / all as f64 };
            text += &format!("  {blocks} of {all} blocks allocated ({share:.1} %)\n");
        }
        if can.repair && self.left(Severity::Error) + self.left(Severity::Leak) > 0 && self.fixed() == 0 {
            text +=
                &format!("Next:     diskchain image check {} --repair\n", shell_word(Path::new(&self.name)));
        }
        text
    }
}

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Leak => "leak",
    }
}
