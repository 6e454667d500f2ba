//! A plan without a configuration: the files that a command line names.
//!
//! Invariant: it keeps the promises of every [`Plan`], and takes its defaults from where all others do.

use std::path::{Path, PathBuf};

use crate::address::absolute;
use crate::codes;
use crate::diagnostics::{Diagnostics, Finding};
use crate::load::{DefaultSockets, check};
use crate::plan::{Disk, Export, Format, Layer, Listen, Parents, Plan};
use crate::shape::check_name;
use crate::source::Sources;

/// `serve FILE… [--format F] [--listen ADDRESS]… [--insecure] [--read-only]`
#[derive(Clone, Debug)]
pub struct FilesToServe<'a> {
    /// The images, in the order of the command line.
    pub files: &'a [PathBuf],
    /// The format of all of them; `None`: recognised by their signatures.
    pub format: Option<Format>,
    /// Where to listen; empty: the default socket.
    pub listen: &'a [Listen],
    /// Plain TCP off the loopback interface is allowed.
    pub insecure: bool,
    /// No client may write.
    pub read_only: bool,
    /// The absolute folder that relative paths start from.
    pub folder: &'a Path,
}

impl Plan {
    /// The plan to serve files that a command line names.
    ///
    /// Each file is a disk and an export under its name without the extension, or under its whole name where
    /// another file has the same stem; the first is the default export too. Parents are searched in the
    /// folders of the files, and nothing else may be opened. Everything else has the value that an empty
    /// configuration gives it.
    ///
    /// # Errors
    /// Two files of one name, a name that no export can have, an address that stands twice or is off the
    /// loopback interface without `insecure`.
    pub fn from_files(serve: &FilesToServe<'_>, sockets: &DefaultSockets) -> Result<Plan, Diagnostics> {
        let mut findings = check_listen(serve);
        let mut plan = one_disk_with_defaults(sockets);
        let (disk, export) = (plan.disks.remove(0), plan.exports.remove(0));
        for (name, file) in named(serve, &mut findings) {
            let folder = file.parent().unwrap_or(&file).to_path_buf();
            if !plan.server.image_dirs.contains(&folder) {
                plan.server.image_dirs.push(folder);
            }
            let mut export = Export { name: name.clone(), disk: name.clone(), ..export.clone() };
            export.read_only = serve.read_only;
            plan.exports.push(export);
            plan.server.default_export.get_or_insert_with(|| name.clone());
            // A raw image has no parents.
            let parents = if serve.format == Some(Format::Raw) { Parents::None } else { Parents::Auto };
            let layers = vec![Layer { file, format: serve.format, create: None }];
            plan.disks.push(Disk { name, layers, parents, read_only: serve.read_only, ..disk.clone() });
        }
        plan.disks.sort_by(|a, b| a.name.cmp(&b.name));
        plan.exports.sort_by(|a, b| a.name.cmp(&b.name));
        if !serve.listen.is_empty() {
            plan.server.listen = serve.listen.to_vec();
        }
        plan.server.insecure = serve.insecure;
        if findings.is_empty() { Ok(plan) } else { Err(Diagnostics::new(Sources::default(), findings)) }
    }
}

/// The plan of the smallest configuration, so that defaults are said in one place only.
fn one_disk_with_defaults(sockets: &DefaultSockets) -> Plan {
    let text = "[disk.any]\nfile = \"/any\"\n".to_string();
    check(Path::new("/any"), text, sockets).expect("the smallest configuration has no error").plan
}

/// The absolute path of every file and the name it is served under.
fn named(serve: &FilesToServe<'_>, findings: &mut Vec<Finding>) -> Vec<(String, PathBuf)> {
    let files: Vec<PathBuf> = serve.files.iter().map(|file| absolute(serve.folder, file)).collect();
    let stem = |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let stems: Vec<String> = files.iter().map(stem).collect();
    let mut named: Vec<(String, PathBuf)> = Vec::new();
    for (file, stem) in files.into_iter().zip(&stems) {
        let is_unique = stems.iter().filter(|other| *other == stem).count() == 1;
        let whole = file.file_name().unwrap_or_default().to_string_lossy();
        let name = if is_unique { stem.clone() } else { whole.into_owned() };
        if let Err(why) = check_name(&name) {
            findings.push(
                Finding::new(&codes::NAME, format!("{}: {}", file.display(), why.message)).help(why.help),
            );
        }
        match named.iter().find(|(other, _)| *other == name) {
            Some((_, other)) => {
                let message =
                    format!("`{}` and `{}` would have the same name", other.display(), file.display());
                findings.push(
                    Finding::new(&codes::SAME_NAME, message).help("write a configuration with two names"),
                );
            }
            None => named.push((name, file)),
        }
    }
    named
}

fn check_listen(serve: &FilesToServe<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, address) in serve.listen.iter().enumerate() {
        if serve.listen[..i].contains(address) {
            findings.push(Finding::new(&codes::SOCKET_TWICE, format!("`{address}` stands twice")));
        }
        if !serve.insecure && !address.is_local() {
            let message = format!("`{address}` is not on the loopback interface");
            let help = "whoever reaches it can read and write the disks; `--insecure` allows it";
            findings.push(Finding::new(&codes::INSECURE, message).help(help));
        }
    }
    findings
}
