//! The texts that a configuration was read from, and places in them.
//!
//! Invariant: a [`Span`] is a byte range of the text of its own file, so a value keeps its place through
//! every merge of files.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// A range of bytes in one of the [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub file: usize,
    pub start: usize,
    pub end: usize,
}

impl Span {
    pub fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// A value and the place where it was written.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub value: T,
    pub span: Span,
}

/// One text.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// As it was named; shown in messages.
    pub name: PathBuf,
    /// The absolute folder that relative paths of this text start from.
    pub folder: PathBuf,
    pub text: String,
    /// Where each line starts.
    lines: Vec<usize>,
}

impl Source {
    pub fn new(name: PathBuf, folder: PathBuf, text: String) -> Self {
        let lines =
            std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Source { name, folder, text, lines }
    }

    /// The number of the line that holds a byte, from 0.
    fn line_of(&self, byte: usize) -> usize {
        self.lines.partition_point(|start| *start <= byte) - 1
    }

    /// The lines that hold two bytes and all between them: the first one's number, from 1, and their range.
    pub fn lines(&self, first: usize, last: usize) -> (usize, Range<usize>) {
        let line = self.line_of(first);
        let end = self.lines.get(self.line_of(last) + 1).copied().unwrap_or(self.text.len());
        (line + 1, self.lines[line]..end)
    }
}

/// All texts of one configuration, the main one first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(Vec<Source>);

impl Sources {
    /// Takes in a text and returns its number.
    pub fn add(&mut self, source: Source) -> usize {
        self.0.push(source);
        self.0.len() - 1
    }

    pub fn file(&self, number: usize) -> &Source {
        &self.0[number]
    }

    /// The folder that a relative path written here starts from.
    pub fn folder(&self, span: Span) -> &Path {
        &self.0[span.file].folder
    }

    /// Line and column of a span's start, both from 1; the column counts characters.
    pub fn line_and_column(&self, span: Span) -> (usize, usize) {
        let source = &self.0[span.file];
        let line = source.line_of(span.start);
        (line + 1, source.text[source.lines[line]..span.start].chars().count() + 1)
    }
}
