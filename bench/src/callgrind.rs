//! What callgrind writes, summed up by source file.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::Path;

/// Instructions by source file or crate, each counted where its line of source is, also if it was inlined elsewhere.
#[derive(Debug, Default, PartialEq)]
pub struct Counts {
    files: BTreeMap<String, f64>,
}

impl Counts {
    /// All together.
    pub fn total(&self) -> f64 {
        self.files.values().sum()
    }

    /// Those of the files that are `wanted`.
    pub fn of(&self, wanted: impl Fn(&str) -> bool) -> f64 {
        self.files.iter().filter(|(file, _)| wanted(file)).map(|(_, count)| count).sum()
    }

    /// What is more in this than in `other`.
    pub fn minus(mut self, other: &Counts) -> Self {
        for (file, count) in &other.files {
            *self.files.entry(file.clone()).or_default() -= count;
        }
        self
    }

    /// Each divided by `requests`.
    pub fn each(mut self, requests: f64) -> Self {
        self.files.values_mut().for_each(|count| *count /= requests);
        self
    }
}

impl fmt::Display for Counts {
    /// The largest first; those that are nearly nothing are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<(&String, &f64)> = self.files.iter().filter(|(_, count)| **count >= 2.0).collect();
        all.sort_by(|a, b| b.1.total_cmp(a.1));
        all.into_iter().try_for_each(|(file, count)| writeln!(f, "  {count:8.0}  {file}"))
    }
}

/// Reads a file of callgrind's.
///
/// # Errors
/// If it cannot be read or is none.
pub fn read(path: &Path) -> io::Result<Counts> {
    parse(&std::fs::read_to_string(path)?)
        .ok_or_else(|| io::Error::other(format!("{}: not understood", path.display())))
}

fn parse(text: &str) -> Option<Counts> {
    let mut names = Numbered::default();
    let mut counts = Counts::default();
    let mut file = String::new();
    let mut inclusive = false;
    for line in text.lines() {
        if let Some((key, value)) = line.split_once('=') {
            match key {
                "fl" | "fi" | "fe" => file = place(names.of(value)?),
                "cfi" | "cfl" => drop(names.of(value)?),
                "calls" => inclusive = true,
                _ => {}
            }
            continue;
        }
        // "line count"; the line may be relative.
        let costs = line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first));
        if !costs {
            continue;
        }
        let count: f64 = line.split(' ').nth(1)?.parse().ok()?;
        // The line after a call has what the called function cost, which is counted there.
        if !std::mem::take(&mut inclusive) {
            *counts.files.entry(file.clone()).or_default() += count;
        }
    }
    (counts.total() > 0.0).then_some(counts)
}

/// Names that are written once, with a number, and are a number afterwards.
#[derive(Default)]
struct Numbered<'a>(HashMap<&'a str, &'a str>);

impl<'a> Numbered<'a> {
    /// What `value` stands for: "(12) name" where a name comes first, "(12)" afterwards.
    fn of(&mut self, value: &'a str) -> Option<&'a str> {
        match value.split_once(' ') {
            Some((number, name)) => {
                self.0.insert(number, name);
                Some(name)
            }
            None => self.0.get(value).copied(),
        }
    }
}

/// A file of this project as it is, a file of a crate as the crate's name, all others as libc.
fn place(path: &str) -> String {
    if let Some((_, rest)) = path.split_once("/registry/src/") {
        let mut parts = rest.split('/').skip(1);
        let package = parts.next().unwrap_or(rest);
        return package.rsplit_once('-').map_or(package, |(name, _)| name).to_owned();
    }
    if let Some((_, rest)) = path.rsplit_once("library/") {
        return rest.split('/').next().unwrap_or(rest).to_owned();
    }
    for member in ["daemon/src/", "disk-core/src/", "nbd-wire/src/", "config/src/"] {
        if let Some(at) = path.find(member) {
            return path[at..].to_owned();
        }
    }
    "libc and others".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_count_where_their_source_is_and_calls_count_once() {
        let text = "version: 1\nevents: Ir\nfl=(1) daemon/src/main.rs\nfn=(1) main\n10 5\nfi=(2) \
                    /x/registry/src/index-1/tokio-1.2.3/src/a.rs\n+3 7\nfe=(1)\n12 1\ncfi=(3) /rustc/1/library/core/src/b.rs\n\
                    cfn=(2) f\ncalls=2 4\n12 100\n13 2\nfl=(3)\nfn=(2)\n4 100\ntotals: 115\n";
        let counts = parse(text).unwrap();
        let expected = [("core", 100.0), ("daemon/src/main.rs", 8.0), ("tokio", 7.0)];
        assert_eq!(counts.files, expected.map(|(file, count)| (file.to_owned(), count)).into());
    }

    #[test]
    fn a_part_of_the_program_is_what_its_files_execute() {
        let text =
            "fl=(1) daemon/src/a.rs\nfn=(1) main\n1 5\nfi=(2) disk-core/src/b.rs\n2 30\nfe=(1)\n3 10\n";
        let counts = parse(text).unwrap();
        assert_eq!(counts.of(|file| file.starts_with("disk-core/")), 30.0);
        assert_eq!(counts.minus(&parse(text).unwrap()).of(|_| true), 0.0);
    }
}
