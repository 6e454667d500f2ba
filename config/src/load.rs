//! From files to a plan: reads the main file and what it includes, and runs every check over all of it.
//!
//! Invariant: a plan comes out only when there is no error in any file, and all errors of all files come out
//! together.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::address::absolute;
use crate::codes;
use crate::diagnostics::{Diagnostics, Finding};
use crate::file::{self, Parsed, Table, Value};
use crate::plan::{Listen, Plan};
use crate::resolve;
use crate::shape::{self, Settings};
use crate::source::{At, Source, Sources, Span};

/// The version of the language that this crate knows.
const VERSION: i128 = 1;

/// No configuration that people write comes near; a device file or a disk image would.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What it means.
    pub plan: Plan,
    /// What is odd about it; no errors.
    pub warnings: Diagnostics,
}

/// The sockets of a configuration that names none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultSockets {
    /// Where NBD clients connect.
    pub nbd: PathBuf,
    /// The control API.
    pub control: PathBuf,
}

impl DefaultSockets {
    /// Those of the system's daemon, the same as the systemd socket units make.
    pub fn system() -> Self {
        DefaultSockets {
            nbd: "/run/diskchain-nbd.sock".into(),
            control: "/run/diskchain-control.sock".into(),
        }
    }

    /// Those of a daemon that a user runs, in `diskchain` below the user's runtime directory.
    pub fn under(runtime_dir: &Path) -> Self {
        let folder = runtime_dir.join("diskchain");
        DefaultSockets { nbd: folder.join("nbd.sock"), control: folder.join("control.sock") }
    }

    pub(crate) fn listen(&self) -> Vec<Listen> {
        vec![Listen::Unix(self.nbd.clone())]
    }
}

/// Reads a configuration file and everything that it includes.
///
/// # Errors
/// All errors of all files, and the warnings beside them.
pub fn load(path: &Path, sockets: &DefaultSockets) -> Result<Checked, Diagnostics> {
    match read(path) {
        Ok(text) => check(path, text, sockets),
        Err(why) => {
            let mut sources = Sources::default();
            let file = sources.add(source(path, String::new()));
            let message = format!("cannot read `{}`: {why}", path.display());
            let finding = Finding::new(&codes::UNREADABLE, message).in_file(file);
            Err(Diagnostics::new(sources, vec![finding]))
        }
    }
}

/// Checks a text as if it were the content of the file `path`; relative paths start from that file's folder,
/// and what it includes is read.
///
/// # Errors
/// As [`load`].
pub fn check(path: &Path, text: String, sockets: &DefaultSockets) -> Result<Checked, Diagnostics> {
    let mut loader = Loader::default();
    let root = loader.read_all(path, text);
    let Loader { sources, mut findings, incomplete, misplaced } = loader;
    let settings = shape::settings(&root, &sources, &mut findings);
    let plan = resolve::plan(&settings, sockets, &mut findings);
    if incomplete {
        findings.retain(|finding| {
            let is_misplaced = misplaced.iter().any(|lines| finding.is_within(*lines));
            *finding.code == codes::SYNTAX || !(finding.code.about_absence || is_misplaced)
        });
    }
    let diagnostics = Diagnostics::new(sources, findings);
    if diagnostics.errors() > 0 { Err(diagnostics) } else { Ok(Checked { plan, warnings: diagnostics }) }
}

fn source(path: &Path, text: String) -> Source {
    let folder = std::path::absolute(path).ok().and_then(|path| path.parent().map(Path::to_path_buf));
    Source::new(path.to_path_buf(), absolute(Path::new("/"), folder.unwrap_or_default()), text)
}

/// The text of a file, as far as a configuration may be one.
fn read(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than 16 MiB"));
    }
    String::from_utf8(text).map_err(|_| io::Error::other("it is not UTF-8"))
}

#[derive(Default)]
struct Loader {
    sources: Sources,
    findings: Vec<Finding>,
    /// A part of the text is unreadable, so what seems to be missing may stand there.
    incomplete: bool,
    /// Lines whose table is unknown, so nothing can be said about their keys.
    misplaced: Vec<Span>,
}

impl Loader {
    /// The main file with everything it includes merged into it.
    fn read_all(&mut self, path: &Path, text: String) -> Table {
        let main = self.sources.add(source(path, text));
        let (mut root, includes) = self.read_one(main);
        let mut seen = vec![absolute(&self.sources.file(main).folder, path.file_name().unwrap_or_default())];
        for pattern in includes {
            for path in self.matching(&pattern) {
                if seen.contains(&path) {
                    continue;
                }
                seen.push(path.clone());
                let shown = self.shown(&path);
                match read(&path) {
                    Ok(text) => {
                        let folder = path.parent().unwrap_or(Path::new("/")).to_path_buf();
                        let file = self.sources.add(Source::new(shown, folder, text));
                        let (table, nested) = self.read_one(file);
                        self.refuse_nested(&nested);
                        root.merge(table, "", &mut self.findings);
                    }
                    Err(why) => self.unreadable(&pattern, &shown, &why),
                }
            }
        }
        root
    }

    /// One file without its `version` and `include`, and the paths that it includes.
    fn read_one(&mut self, file: usize) -> (Table, Vec<At<PathBuf>>) {
        let Parsed { root: mut table, is_whole, misplaced } =
            file::parse(&self.sources, file, &mut self.findings);
        self.incomplete |= !is_whole;
        self.misplaced.extend(misplaced);
        if let Some(version) = table.0.get("version")
            && let Value::Integer(number) = version.node.value
            && number != Some(VERSION)
        {
            let message = "this version of the configuration language is not known";
            let help = format!("this diskchain reads version {VERSION}");
            self.findings.push(Finding::new(&codes::VERSION, message).at(version.node.span, "").help(help));
            self.incomplete = true;
            return (Table::default(), Vec::new());
        }
        let head = ["version", "include"].into_iter().filter_map(|key| table.0.remove_entry(key)).collect();
        let head: Settings = shape::settings(&Table(head), &self.sources, &mut self.findings);
        (table, head.value("include"))
    }

    /// The files that a path means, sorted; only a path with a wildcard may mean none.
    fn matching(&mut self, pattern: &At<PathBuf>) -> Vec<PathBuf> {
        let is_wild = |text: &str| text.contains(['*', '?']);
        let folder = pattern.value.parent().unwrap_or(Path::new("/"));
        let name = pattern.value.file_name().unwrap_or_default().to_string_lossy();
        if is_wild(&folder.to_string_lossy()) {
            let finding = Finding::new(&codes::INCLUDE, "a wildcard in the name of a folder")
                .at(pattern.span, "")
                .help("`*` and `?` may stand only in the last part of the path");
            self.findings.push(finding);
            self.incomplete = true;
            return Vec::new();
        }
        if !is_wild(&name) {
            return vec![pattern.value.clone()];
        }
        match list(folder) {
            Ok(names) => {
                names.iter().filter(|file| matches(&name, file)).map(|file| folder.join(file)).collect()
            }
            Err(why) => {
                self.unreadable(pattern, folder, &why);
                Vec::new()
            }
        }
    }

    /// A path as the reader of a message knows it: relative to the main file's name where it was.
    fn shown(&self, path: &Path) -> PathBuf {
        let main = self.sources.file(0);
        match path.strip_prefix(&main.folder) {
            Ok(rest) if main.name.is_relative() => main.name.parent().unwrap_or(Path::new("")).join(rest),
            _ => path.to_path_buf(),
        }
    }

    fn unreadable(&mut self, pattern: &At<PathBuf>, path: &Path, why: &io::Error) {
        let message = format!("cannot read `{}`: {why}", path.display());
        self.findings.push(Finding::new(&codes::UNREADABLE, message).at(pattern.span, "included here"));
        self.incomplete = true;
    }

    fn refuse_nested(&mut self, includes: &[At<PathBuf>]) {
        for include in includes {
            let finding = Finding::new(&codes::INCLUDE, "an included file includes another")
                .at(include.span, "")
                .help("only the main file may include files");
            self.findings.push(finding);
            self.incomplete = true;
        }
    }
}

/// The names in a folder, sorted, without hidden ones; none when there is no such folder.
fn list(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a pattern with `*` (any characters) and `?` (any one) matches a whole name.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on after the last `*` when it has to take one more character.
    let mut retry = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == '*' {
            retry = Some((p + 1, n));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == '?' || pattern[p] == name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((after_star, taken)) = retry {
            (p, n) = (after_star, taken + 1);
            retry = Some((p, n));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn wildcards_match_whole_names() {
        for (pattern, name) in
            [("*.toml", "a.toml"), ("*", ""), ("a?c", "abc"), ("*a*b", "xaab"), ("**", "x")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*.toml", "a.toml~"), ("?", ""), ("a", "ab"), ("*ab", "ba"), ("", "x")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
